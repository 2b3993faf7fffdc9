"""A warm request through SDK, broker, device agent and executor, beside its bare parts.

Bare is an MQTT request and response of the same sizes (gmqtt at both ends, the same broker) plus
the same run of the same model in this process. The three take turns, request by request.
"""

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import that reads it

import numpy as np
import onnxruntime

import tona
from benchmarks.harness.bare import Requester, requester
from benchmarks.harness.cell import Cell, cell
from benchmarks.harness.packages import in_package
from benchmarks.harness.report import Report, median, options, percentile, progress
from protocols.topics import TABLE, Channel, Party

REQUESTS: Final = {"silero": 4000, "magika": 1500}
QUICK: Final = {"silero": 400, "magika": 200}
WARM_UP: Final = 200
DEADLINE_S: Final = 60.0
RATIO_BOUND: Final = 1.3
MAGIKA_BYTES: Final = 2048
MAGIKA_PADDING: Final = 256


class Model(NamedTuple):
    """A real model and what it is fed."""

    name: str
    path: Path
    inputs: dict[str, Any]
    outputs: dict[str, tuple[int, ...]]
    state: dict[str, str]
    """Outputs that are an input of the next request."""


class Samples(NamedTuple):
    """Of each request, in microseconds."""

    ours: list[float]
    bare: list[float]
    run: list[float]
    queue: list[float]
    executor: list[float]


def models() -> list[Model]:
    """Return the models with a first input each."""
    chance = np.random.default_rng(1)
    voice = Model(
        "silero",
        in_package("silero_vad", "data/silero_vad.onnx"),
        {
            # 32 ms at 16 kHz and the 64 samples before them.
            "input": chance.normal(0, 0.05, (1, 576)).astype(np.float32),
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16000, np.int64),
        },
        {"output": (1, 1), "stateN": (2, 1, 128)},
        {"stateN": "state"},
    )
    # Magika looks at the beginning and the end of a file: here, at this one's.
    content = Path(__file__).read_bytes()
    half = MAGIKA_BYTES // 2
    tokens = np.full((1, MAGIKA_BYTES), MAGIKA_PADDING, np.int32)
    tokens[0, :half] = np.frombuffer(content[:half], np.uint8)
    tokens[0, half:] = np.frombuffer(content[-half:], np.uint8)
    kind = Model(
        "magika",
        in_package("magika", "models/standard_v3_3/model.onnx"),
        {"bytes": tokens},
        {"target_label": (1, 214)},
        {},
    )
    return [voice, kind]


async def _submit(one: Cell, found: list[Model]) -> None:
    lines = ['name = "bench"\n']
    for model in found:
        content = model.path.read_bytes()
        digest = await one.put(content, model.path.name)
        lines += [
            f'[[services]]\nname = "{model.name}"\nkind = "inference"\nspares = 0\n',
            "[services.outputs]\n",
            *(f'{output} = "model.{output}"\n' for output in model.outputs),
            '[[services.tasks]]\nname = "model"\nexecutor = "onnx"\n',
            f'artifact = {{ digest = "{digest}", size_bytes = {len(content)} }}\n',
            "[services.tasks.inputs]\n",
            *(
                f'{name} = {{ from = "request.{name}", dtype = "{value.dtype}", '
                f"shape = {list(value.shape)} }}\n"
                for name, value in model.inputs.items()
            ),
            "[services.tasks.outputs]\n",
            *(
                f'{output} = {{ dtype = "float32", shape = {list(shape)} }}\n'
                for output, shape in model.outputs.items()
            ),
        ]
    await one.call("usecase.submit", document="".join(lines))
    await one.serving(len(found))


def _session(model: Model) -> onnxruntime.InferenceSession:
    """Open a model as the executor does: one thread, no memory pattern."""
    wanted = onnxruntime.SessionOptions()
    wanted.intra_op_num_threads = wanted.inter_op_num_threads = 1
    wanted.enable_mem_pattern = False
    wanted.log_severity_level = 3
    return onnxruntime.InferenceSession(model.path, wanted, providers=["CPUExecutionProvider"])


class Bench:
    """One model, and the three ways to run it."""

    def __init__(self, model: Model, client: tona.AsyncClient, bare: Requester) -> None:
        self._model = model
        self._client = client
        self._bare = bare
        self._session = _session(model)
        self._request = b"".join(one.tobytes() for one in model.inputs.values())
        self._names = list(model.outputs)

    async def measure(self, count: int) -> Samples:
        """Take turns, `count` times."""
        samples = Samples([], [], [], [], [])
        inputs = dict(self._model.inputs)
        for _ in range(count):
            began = time.perf_counter_ns()
            result = await self._client.invoke(self._model.name, inputs, deadline_s=DEADLINE_S)
            samples.ours.append((time.perf_counter_ns() - began) / 1000)
            assert result.attempts == 1
            samples.queue.append(result.timings[0].queue_us)
            samples.executor.append(result.timings[0].run_us)
            samples.bare.append(await self._bare.ask(self._request))
            began = time.perf_counter_ns()
            outputs = self._session.run(self._names, inputs)
            samples.run.append((time.perf_counter_ns() - began) / 1000)
            for name, output in zip(self._names, outputs, strict=True):
                assert np.allclose(result[name], output, atol=1e-4)
                if name in self._model.state:
                    inputs[self._model.state[name]] = output
        return samples


def _tell(report: Report, suffix: str, found: Samples, *, bounded: bool) -> None:
    both = [mqtt + run for mqtt, run in zip(found.bare, found.run, strict=True)]
    bound = RATIO_BOUND if bounded else None
    for share in (50, 99):
        ratio = percentile(found.ours, share) / percentile(both, share)
        report.figure(f"warm_p{share}_ratio{suffix}", ratio, bound)
    overhead = [ours - bare for ours, bare in zip(found.ours, both, strict=True)]
    report.figure(f"overhead_p50_us{suffix}", median(overhead))


def _tell_parts(report: Report, model: str, found: Samples) -> None:
    parts = {
        "warm": found.ours,
        "bare_mqtt": found.bare,
        "bare_run": found.run,
        "executor": found.executor,
        "queue": found.queue,
    }
    for name, values in parts.items():
        report.figure(f"{name}_p50_us_{model}", median(values))
        if name in {"warm", "bare_mqtt", "bare_run"}:
            report.figure(f"{name}_p99_us_{model}", percentile(values, 99))


async def main() -> None:
    """Run the benchmark."""
    parser = options("invocation", __doc__ or "")
    parser.add_argument("--broker", choices=("embedded", "mosquitto"), default="embedded")
    asked = parser.parse_args()
    counts = QUICK if asked.quick else REQUESTS
    report = Report("invocation")
    found = models()
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        async with cell(Path(name), broker=asked.broker) as one, one.agent("node-1"):
            await _submit(one, found)
            async with tona.connect(one.api_url) as client:
                for model in found:
                    samples = await _measure(one, model, client, counts[model.name])
                    if model.name == "silero":
                        _tell(report, "", samples, bounded=True)
                    _tell(report, f"_{model.name}", samples, bounded=True)
                    _tell_parts(report, model.name, samples)
    report.note(f"Broker: {asked.broker}. Without a suffix: Silero, whose run is the shortest.")
    report.note(
        "executor is the time from the executor taking the call to its outputs; what warm has "
        "beyond bare_mqtt and executor is SDK, daemon and the socket between daemon and executor."
    )
    report.close()


async def _measure(one: Cell, model: Model, client: tona.AsyncClient, count: int) -> Samples:
    answer_bytes = sum(4 * int(np.prod(shape)) for shape in model.outputs.values())
    progress(f"{model.name}: {count} requests, three ways in turn")
    there = TABLE[Party.NODE, Channel.INVOKE].qos
    back = TABLE[Party.CLIENT, Channel.REPLY].qos
    async with requester(one, model.name, answer_bytes, qos=there, answer_qos=back) as bare:
        bench = Bench(model, client, bare)
        await bench.measure(WARM_UP)
        return await bench.measure(count)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
