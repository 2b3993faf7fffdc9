"""A model under more clients than it has workers: each request in a run of its own, or shared.

Both tasks run the same model on the same device agent, in blocks that take turns; so many clients
ask again as soon as they are answered. The inputs go in the message, the outputs are small.
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
from benchmarks.harness.cell import Cell, cell
from benchmarks.harness.packages import in_package
from benchmarks.harness.report import Report, median, options, percentile, progress

CLIENTS: Final = 12
BLOCKS: Final = 8
REQUESTS: Final = 240
QUICK: Final = 48
WARM_UP: Final = 96
BATCH: Final = 16
SIZES: Final = (1, 2, 4, 8, 16)
RUNS: Final = 15
DEADLINE_S: Final = 60.0


class Model(NamedTuple):
    """A real model, one row of its input, and how its ports are declared."""

    path: Path
    port: str
    row: Any
    """Made of a generator of random numbers."""
    declared: str
    output: str
    gives: str


def models() -> dict[str, Model]:
    """Return the models by name."""
    return {
        "magika": Model(
            in_package("magika", "models/standard_v3_3/model.onnx"),
            "bytes",
            lambda dice: dice.integers(0, 256, (1, 2048), dtype=np.int32),
            'dtype = "int32", shape = [-1, 2048]',
            "target_label",
            "[-1, 214]",
        ),
        "rec": Model(
            in_package("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"),
            "x",
            lambda dice: dice.random((1, 3, 48, 96), dtype=np.float32),
            'dtype = "float32", shape = [-1, 3, 48, -1]',
            "softmax_11.tmp_0",
            "[-1, -1, 6625]",
        ),
    }


TASK: Final = """
[[services]]
name = "{name}"
kind = "inference"
spares = 0
outputs = {{ y = "model.{output}" }}
[[services.tasks]]
name = "model"
executor = "onnx"
artifact = {{ digest = "{digest}", size_bytes = {size} }}
batch = {batch}
limits = {{ deadline_ms = 60000 }}
inputs.{port} = {{ from = "request.x", {declared} }}
outputs."{output}" = {{ dtype = "float32", shape = {gives} }}
"""


class Way:
    """One of the two tasks under load."""

    def __init__(self, service: str, model: Model, client: tona.AsyncClient) -> None:
        self._service = service
        self._model = model
        self._client = client
        self.latency_ms: list[float] = []
        self.took_s = 0.0
        self.done = 0

    async def block(self, count: int) -> None:
        """Answer so many requests, `CLIENTS` of them under way at a time."""
        left = iter(range(count))
        began = time.perf_counter()
        await asyncio.gather(*(self._ask(left, np.random.default_rng(n)) for n in range(CLIENTS)))
        self.took_s += time.perf_counter() - began
        self.done += count

    async def _ask(self, left: Any, dice: Any) -> None:
        for _ in left:
            inputs = {"x": self._model.row(dice)}
            began = time.perf_counter()
            await self._client.invoke(self._service, inputs, deadline_s=DEADLINE_S)
            self.latency_ms.append((time.perf_counter() - began) * 1000)


def _bare(report: Report, name: str, model: Model) -> None:
    """Tell what a row takes in runs of several sizes, in this process, on one thread."""
    wanted = onnxruntime.SessionOptions()
    wanted.intra_op_num_threads = wanted.inter_op_num_threads = 1
    wanted.enable_mem_pattern = False
    wanted.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.path, wanted, providers=["CPUExecutionProvider"])
    dice = np.random.default_rng(1)
    row = model.row(dice)
    feeds = {rows: {model.port: np.concatenate([row] * rows)} for rows in SIZES}
    took: dict[int, list[float]] = {rows: [] for rows in SIZES}
    for _ in range(RUNS):
        for rows, feed in feeds.items():
            began = time.perf_counter()
            session.run(None, feed)
            took[rows].append((time.perf_counter() - began) * 1000)
    for rows, values in took.items():
        report.figure(f"{name}_row_ms_in_runs_of_{rows}", median(values) / rows)


async def _submit(one: Cell, name: str, model: Model) -> None:
    digest = await one.put(model.path.read_bytes(), model.path.name)
    size = model.path.stat().st_size
    ports = {
        "port": model.port, "declared": model.declared, "output": model.output, "gives": model.gives
    }  # fmt: skip
    text = "".join(
        TASK.format(name=f"{name}-{way}", digest=digest, size=size, batch=batch, **ports)
        for way, batch in (("alone", 0), ("shared", BATCH))
    )
    await one.call("usecase.submit", document=f'name = "{name}"\n{text}')


async def _measure(
    report: Report, name: str, model: Model, client: tona.AsyncClient, count: int
) -> None:
    ways = {way: Way(f"{name}-{way}", model, client) for way in ("alone", "shared")}
    for one in ways.values():
        await one.block(WARM_UP)
        one.latency_ms.clear()
        one.took_s, one.done = 0.0, 0
    for block in range(BLOCKS):
        progress(f"{name}: block {block + 1} of {BLOCKS}")
        for one in ways.values():
            await one.block(count // BLOCKS)
    for way, one in ways.items():
        report.figure(f"{name}_{way}_requests_per_s", one.done / one.took_s)
        for share in (50, 99):
            report.figure(f"{name}_{way}_p{share}_ms", percentile(one.latency_ms, share))
    alone, shared = ways["alone"], ways["shared"]
    report.figure(f"{name}_throughput_ratio", alone.took_s / shared.took_s)


async def main() -> None:
    """Run the benchmark."""
    asked = options("batches", __doc__ or "").parse_args()
    count = QUICK if asked.quick else REQUESTS
    report = Report("batches")
    found = models()
    for name, model in found.items():
        _bare(report, name, model)
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as folder:
        async with cell(Path(folder)) as one, one.agent("node-1"):
            for name, model in found.items():
                await _submit(one, name, model)
            await one.serving(2 * len(found))
            async with tona.connect(one.api_url) as client:
                for name, model in found.items():
                    await _measure(report, name, model, client, count)
    report.note(f"{CLIENTS} clients, one worker of one thread, requests of one row.")
    report.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
