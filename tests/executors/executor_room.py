"""Loads a model and shows what of the memory of its runs stays; writes it as JSON.

executor_room.py given_back|kept_output|expected
"""

import json
import struct
import sys
from pathlib import Path

from executor_models import Model

from device_agent.executors.process import PROGRAMS

sys.path.insert(0, str(PROGRAMS))

import onnx_program
from ort_api import CPU, Tensor

ITEMS = 5_000_000
TAKEN_BYTES = 4 * ITEMS
WEIGHTS = 1 << 20
EACH = 0.5
LIMIT_BYTES = 256 << 20
WORKING = [("x", 1, (1,), struct.pack("<f", EACH)), ("n", 7, (1,), struct.pack("<q", ITEMS))]


def model() -> bytes:
    """Return a model with 4 MB of weights whose run takes 20 MB: their sum, and that of `many`."""
    weights = Model.tensor("w", 1, (WEIGHTS,), struct.pack(f"<{WEIGHTS}f", *range(WEIGHTS)))
    graph = Model.graph(
        [
            Model.node("Expand", ["x", "n"], ["many"]),
            Model.node("ReduceSum", ["many"], ["all"], Model.number("keepdims", 1)),
            Model.node("Mul", ["w", "x"], ["half"]),
            Model.node("ReduceSum", ["half"], ["sum"], Model.number("keepdims", 1)),
        ],
        [Model.value("x", 1, 1), Model.value("n", 7, 1)],
        [Model.value("many", 1, 1), Model.value("all", 1, 1), Model.value("sum", 1, 1)],
        (weights,),
    )
    return Model.whole(graph)


def anonymous() -> int:
    """Return what this process has of its own, bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(one for one in text.splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


class Loaded:
    """The model, in this process."""

    def __init__(self) -> None:
        self.arena = onnx_program.Arena(onnx_program.runtime, LIMIT_BYTES)
        shared = self.arena.shared()
        self._session = onnx_program._session(
            onnx_program.runtime, model(), 1, [CPU], shared=shared
        )
        self.arena.loaded()

    def run(self, *wanted: str) -> list[Tensor]:
        feeds = {name: (dtype, shape, memoryview(data)) for name, dtype, shape, data in WORKING}
        found: list[Tensor] = self._session.run(list(wanted), feeds)
        return found

    def sums(self) -> list[float]:
        return [struct.unpack("<f", view)[0] for _, _, view in self.run("all", "sum")]


def given_back() -> tuple[list[int], list[list[float]]]:
    """Return how much there was before and after each time, and what the runs gave."""
    loaded = Loaded()
    sizes: list[int] = []
    sums: list[list[float]] = []
    for _ in range(3):
        sums.append(loaded.sums())
        sizes.append(anonymous())
        loaded.arena.vacate()
        sizes.append(anonymous())
    return sizes, sums


def kept_output() -> bool:
    """Return whether an output that is held is what it was."""
    loaded = Loaded()
    ((_, _, many),) = loaded.run("many")
    loaded.arena.vacate()
    return bytes(many) == struct.pack("<f", EACH) * ITEMS


def expected() -> tuple[list[int], list[float]]:
    """Return how much there was before the first run and the second one, and what another gave."""
    loaded = Loaded()
    sizes = []
    for _ in range(2):
        loaded.arena.occupy()
        sizes.append(anonymous())
        loaded.sums()
        loaded.arena.vacate()
    loaded.arena.occupy()
    return sizes, loaded.sums()


if __name__ == "__main__":
    work = {"given_back": given_back, "kept_output": kept_output, "expected": expected}[sys.argv[1]]
    sys.stdout.write(json.dumps(work()))
