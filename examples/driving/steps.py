"""What each step of the three services costs in this process: time, memory, bytes to the next one.

    python examples/driving/steps.py [TIMES]     20 runs unless told otherwise

Times are the least and the median of a step's runs, instance and copies included, sessions loaded
before. Memory of a Wasm step is what its instance had grown to; of a model, by how much a fresh
process that has the runtime imported grows at most through session and runs.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from material import (
    Photo,
    Request,
    photos,
    plates_request,
    speeds,
    surround_request,
    traffic_request,
)
from reference import PLATES, SURROUND, TRAFFIC, Array, Chain, Runner, load

from protocols.manifest import ExecutorKind
from protocols.messages.hierarchy import TaskSpec

REQUEST_ROW: Final = 1800
"""Tuesday noon and more: a row that no training has seen."""
TIMES: Final = 20
RUNS: Final = 3
TIMEOUT_S: Final = 120

Values = dict[tuple[str, str], Array]


class Cost(NamedTuple):
    """Of one step."""

    step: str
    kind: str
    least_ms: float
    run_ms: float
    memory_bytes: int
    in_bytes: int
    """Constants left out."""
    out_bytes: int


def middle_photo() -> Photo:
    """Return the photo whose file is of median size."""
    every = sorted(photos(), key=lambda one: one.path.stat().st_size)
    return every[len(every) // 2]


def requests() -> dict[Path, Request]:
    """Return a usual request for each use case."""
    return {
        PLATES: plates_request(middle_photo()),
        TRAFFIC: traffic_request(speeds(), REQUEST_ROW),
        SURROUND: surround_request(),
    }


def costs(use_case: Path, request: Request, times: int) -> list[Cost]:
    """Run a service so many times and say what each step took."""
    chain = load(use_case)
    runner = Runner(chain)
    took: dict[str, list[float]] = {spec.step: [] for spec in chain.order.tasks}
    values: Values = {}
    for _ in range(times):
        values = runner.values(request)
        for step, run_ms in runner.step_ms.items():
            took[step].append(run_ms)
    return [_cost(spec, runner, values, took[spec.step]) for spec in chain.order.tasks]


def _cost(spec: TaskSpec, runner: Runner, values: Values, took: list[float]) -> Cost:
    taken = {edge.port: values[edge.source, edge.source_port] for edge in spec.inputs}
    given = [values[spec.step, port.name] for port in spec.manifest.outputs]
    wasm = spec.manifest.kind is ExecutorKind.WASM
    return Cost(
        spec.step,
        str(spec.manifest.kind),
        min(took),
        statistics.median(took),
        runner.used_bytes(spec.step) if wasm else growth(runner.chain, spec, taken),
        sum(one.nbytes for one in taken.values()),
        sum(one.nbytes for one in given),
    )


def growth(chain: Chain, spec: TaskSpec, inputs: Request) -> int:
    """Return by how many bytes a fresh process grows that loads a model and runs it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.npz"
        np.savez(path, **inputs)  # type: ignore[arg-type]
        model = chain.files[spec.manifest.artifact.digest]
        ended = subprocess.run(
            [sys.executable, __file__, "--model", str(model), str(path)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
    return int(ended.stdout)


def grow(model: str, inputs: str) -> int:
    """Load a model, run it on the inputs in a file, and return how many bytes that took at most."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # noqa: PLC0415 - after telemetry was switched off

    named = dict(np.load(inputs))
    before = _status("VmRSS")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(RUNS):
        session.run(None, named)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def main(arguments: list[str]) -> int:
    """Print the table."""
    if arguments[:1] == ["--model"]:
        print(grow(*arguments[1:]))
        return 0
    times = int(arguments[0]) if arguments else TIMES
    print("| service | step | executor | least ms | median ms | memory MB | in KB | out KB |")
    print("|---|---|---|---|---|---|---|---|")
    for use_case, request in requests().items():
        for one in costs(use_case, request, times):
            print(
                f"| {use_case.stem} | {one.step} | {one.kind} "
                f"| {one.least_ms:.1f} | {one.run_ms:.1f} | {one.memory_bytes / 1e6:.1f} "
                f"| {one.in_bytes / 1e3:.0f} | {one.out_bytes / 1e3:.0f} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
