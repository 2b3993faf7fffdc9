"""Loads a model and shows what of the memory of its runs stays; writes it as JSON.

executor_room.py given_back|kept_output|expected|weights
"""

import json
import os
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from executor_models import Model

from device_agent.executors.process import PROGRAMS

sys.path.insert(0, str(PROGRAMS))

import onnx_child
import onnx_program
import resting
from ort_api import CPU, Tensor
from stream import Stream

ITEMS = 5_000_000
TAKEN_BYTES = 4 * ITEMS
WEIGHTS = 1 << 20
EACH = 0.5
LIMIT_BYTES = 256 << 20
WAIT_S = 60
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


def request() -> dict[str, Any]:
    """Return how the model is loaded, its sums wanted."""
    return {
        "providers": [],
        "threads": 1,
        "memory": LIMIT_BYTES,
        "limit": LIMIT_BYTES,
        "carries": [],
        "inputs": [(name, dtype, shape) for name, dtype, shape, _ in WORKING],
        "outputs": [("all", 1, (1,)), ("sum", 1, (1,))],
    }


class Served:
    """The model with its weights mapped from its form, served by a thread of this process.

    It does not rest: whatever is given back is given back after a run.
    """

    def __init__(self, folder: Path) -> None:
        resting.IDLE_S = 10.0 * WAIT_S
        source = folder / "m.onnx"
        source.write_bytes(model())
        form = os.open(folder / "m.ort", os.O_RDWR | os.O_CREAT)
        assert onnx_program.Model(request(), os.open(source, 0), "", os.dup(form), make=True).made
        self._model = onnx_program.Model(request(), os.open(source, 0), "", form)
        self._model.code, self._model.weights = resting.mapped(
            resting.maps(), str(folder / "m.ort")
        )
        self.weights = self._model.weights
        self._done: SimpleQueue[None] = SimpleQueue()
        self._model.occupy = self._noted(self._model.occupy)  # type: ignore[method-assign]
        self._model.vacate = self._noted(self._model.vacate)  # type: ignore[method-assign]
        ours, theirs = socket.socketpair()
        self._sockets = [ours, *socket.socketpair()]
        self._stream = Stream(ours)
        worker = onnx_child.Worker(self._model, theirs, self._sockets[1])
        self._thread = threading.Thread(target=worker.serve)
        self._thread.start()

    def _noted(self, act: Callable[[], None]) -> Callable[[], None]:
        def noted() -> None:
            act()
            self._done.put(None)

        return noted

    def expect(self) -> None:
        self._stream.send({"op": "expect"})
        self._done.get(timeout=WAIT_S)

    def sums(self) -> list[float]:
        given = [(name, dtype, shape, len(data), "") for name, dtype, shape, data in WORKING]
        bodies = [memoryview(data) for *_, data in WORKING]
        self._stream.send({"op": "invoke", "id": 1, "in": given}, bodies)
        answer = self._stream.receive()
        assert answer is not None
        assert "fail" not in answer[0], answer[0]
        self._done.get(timeout=WAIT_S)
        return list(struct.unpack("<2f", answer[1]))

    def hang_up(self) -> None:
        for one in self._sockets:
            one.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def here(self) -> int:
        """Return how much of the form is in memory, bytes."""
        return sum(rss for start, rss in resident() if start in dict(self.weights))


def resident() -> list[tuple[int, int]]:
    """Return where each mapping of this process is and how much of it is in memory, bytes."""
    found, start = [], 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        first, *more = line.split()
        if not first.endswith(":"):
            start = int(first.partition("-")[0], 16)
        elif first == "Rss:":
            found.append((start, int(more[0]) * 1024))
    return found


def weights() -> tuple[list[bool], list[list[float]]]:
    """Return whether weights are there for a run that is told of, go after it, stay after another.

    And what the runs gave.
    """
    with tempfile.TemporaryDirectory() as name:
        served = Served(Path(name))
        try:
            resting.leave(served.weights)
            assert not served.here()
            served.expect()
            there = served.here() >= 4 * WEIGHTS
            sums = [served.sums()]
            gone = not served.here()
            sums.append(served.sums())
            return [there, gone, served.here() >= 4 * WEIGHTS], sums
        finally:
            served.hang_up()


if __name__ == "__main__":
    works = given_back, kept_output, expected, weights
    work = {one.__name__: one for one in works}[sys.argv[1]]
    sys.stdout.write(json.dumps(work()))
