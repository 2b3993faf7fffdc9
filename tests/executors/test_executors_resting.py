"""What processes that run tasks give back while nobody asks, and take again when they are asked.

Real processes; memory is what no file backs.
"""

import asyncio
import socket
import struct
import sys
from pathlib import Path

import pytest
from executor_guests import ECHO, Shelf, floats
from executor_models import Model
from msgspec import structs

from device_agent.executors.door import Bytes, Done, Setup
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.process import PROGRAMS
from device_agent.executors.wasm import WasmExecutor
from protocols.manifest import Dtype, ExecutorKind, Manifest, Port

sys.path.insert(0, str(PROGRAMS))

import resting

ITEMS = 6_000_000
TAKEN_BYTES = 4 * ITEMS
BUDGET_MS = 30_000
WAIT_S = 60
POLL_S = 0.02


def large(shelf: Shelf) -> tuple[Path, Manifest]:
    """Return a model whose run takes 24 MB and whose answer is one number."""
    graph = Model.graph(
        [
            Model.node("Expand", ["x", "n"], ["many"]),
            Model.node("ReduceSum", ["many"], ["y"], Model.number("keepdims", 1)),
        ],
        [Model.value("x", 1, 1), Model.value("n", 7, 1)],
        [Model.value("y", 1, 1)],
    )
    ports = (Port("x", Dtype.FLOAT32, (1,)), Port("n", Dtype.INT64, (1,)))
    return shelf.task(
        ExecutorKind.ONNX, Model.whole(graph), ports, (Port("y", Dtype.FLOAT32, (1,)),)
    )


def status(pid: int, field: str) -> int:
    """Return a size that the kernel tells of a process, bytes."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(one for one in text.splitlines() if one.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


async def ask(onnx: OnnxExecutor, call: str) -> None:
    inputs = {
        "x": Bytes(Dtype.FLOAT32, (1,), struct.pack("<f", 0.5)),
        "n": Bytes(Dtype.INT64, (1,), struct.pack("<q", ITEMS)),
    }
    result = await onnx.invoke("t", call, dict(inputs), BUDGET_MS)
    assert isinstance(result, Done), result
    value = result.outputs["y"]
    assert isinstance(value, Bytes)
    assert struct.unpack("<f", value.data)[0] == pytest.approx(ITEMS / 2)


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_model_that_nobody_asks_gives_back_what_its_run_took(
    onnx: OnnxExecutor, shelf: Shelf, threads: int
) -> None:
    artifact, manifest = large(shelf)
    await onnx.start("t", artifact, manifest, {}, Setup(threads=threads))
    (child,) = onnx._by_task["t"]
    before = status(child.pid, "RssAnon")
    for at in range(3):
        await ask(onnx, f"c{at}")
        async with asyncio.timeout(WAIT_S):
            # The kernel offers no event for memory that a process gives back.
            while status(child.pid, "RssAnon") > before + TAKEN_BYTES // 2:  # noqa: ASYNC110 - as said
                await asyncio.sleep(POLL_S)
    assert status(child.pid, "VmHWM") > before + TAKEN_BYTES, "each run has taken it"
    assert onnx._by_task["t"] == [child], "it is the same process all the time"


async def test_a_model_that_is_told_of_a_call_which_does_not_come_waits_for_it_only_so_long(
    onnx: OnnxExecutor, shelf: Shelf
) -> None:
    artifact, manifest = large(shelf)
    limits = structs.replace(manifest.limits, memory_bytes=512 << 20)
    await onnx.start("t", artifact, structs.replace(manifest, limits=limits), {})
    (child,) = onnx._by_task["t"]
    before = status(child.pid, "RssAnon")
    await ask(onnx, "c")
    async with asyncio.timeout(WAIT_S):
        while status(child.pid, "RssAnon") > before + TAKEN_BYTES // 2:  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL_S)
        low = True
        # It may be gone again between two looks: then it is told once more.
        while low:
            onnx.expect("t")
            for _ in range(5):
                await asyncio.sleep(POLL_S / 10)
                low = low and status(child.pid, "RssAnon") < before + TAKEN_BYTES // 2
        while status(child.pid, "RssAnon") > before + TAKEN_BYTES // 2:  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL_S)
    onnx.expect("nobody")
    await ask(onnx, "d")


WEIGHTS = 1 << 20


def heavy(shelf: Shelf) -> tuple[Path, Manifest]:
    """Return a model with 4 MB of weights."""
    weights = Model.tensor("w", 1, (WEIGHTS,), struct.pack(f"<{WEIGHTS}f", *range(WEIGHTS)))
    graph = Model.graph(
        [
            Model.node("Add", ["x", "w"], ["sum"]),
            Model.node("ReduceSum", ["sum"], ["y"], Model.number("keepdims", 1)),
        ],
        [Model.value("x", 1, 1)],
        [Model.value("y", 1, 1)],
        (weights,),
    )
    return shelf.task(
        ExecutorKind.ONNX,
        Model.whole(graph),
        (Port("x", Dtype.FLOAT32, (1,)),),
        (Port("y", Dtype.FLOAT32, (1,)),),
    )


def in_memory(pid: int, suffix: str) -> tuple[int, int]:
    """Return how much of the files of such names a process has mapped and in memory, bytes."""
    mapped = here = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        first, *more = line.split()
        if not first.endswith(":"):
            ours = more[-1].endswith(suffix)
        elif ours and first in {"Size:", "Rss:"}:
            size = int(more[0]) * 1024
            mapped, here = (mapped + size, here) if first == "Size:" else (mapped, here + size)
    return mapped, here


@pytest.mark.parametrize("threads", [1, 2])
async def test_weights_are_pages_of_the_form_and_in_memory_while_they_are_used(
    onnx: OnnxExecutor, shelf: Shelf, threads: int
) -> None:
    artifact, manifest = heavy(shelf)
    await onnx.start("t", artifact, manifest, {}, Setup(threads=threads))
    (child,) = onnx._by_task["t"]
    for at in range(2):
        given = {"x": Bytes(Dtype.FLOAT32, (1,), struct.pack("<f", 0.0))}
        result = await onnx.invoke("t", f"c{at}", dict(given), BUDGET_MS)
        assert isinstance(result, Done), result
        value = result.outputs["y"]
        assert isinstance(value, Bytes)
        assert struct.unpack("<f", value.data)[0] == pytest.approx(WEIGHTS * (WEIGHTS - 1) / 2)
        async with asyncio.timeout(WAIT_S):
            while in_memory(child.pid, ".ort")[1] > 0:  # noqa: ASYNC110 - as above
                await asyncio.sleep(POLL_S)
    assert in_memory(child.pid, ".ort")[0] >= 4 * WEIGHTS


def test_nobody_waits_for_a_next_call_that_did_not_come_soon_of_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    now_s = 0.0

    def select(
        readers: list[object], *_: object
    ) -> tuple[list[object], list[object], list[object]]:
        waited.append(float(_[-1]))  # type: ignore[arg-type]
        return readers if now_s else [], [], []

    monkeypatch.setattr(resting.select, "select", select)
    monkeypatch.setattr(resting.time, "monotonic", lambda: now_s)
    ours, theirs = socket.socketpair()
    lull = resting.Lull()

    def gap(seconds: float) -> float:
        nonlocal now_s
        lull.answered()
        lull.begins(ours)
        now_s += seconds
        lull.heard()
        return waited[-1]

    with ours, theirs:
        assert lull.begins(ours), "nothing has come"
        late, soon = 2 * resting.IDLE_S, resting.IDLE_S / 2
        # The first call has nothing before it.
        assert [gap(late) for _ in range(resting.CALLS)] == [resting.IDLE_S] * resting.CALLS
        assert gap(soon) == 0.0, "none came soon: it is given back at once"
        assert [gap(late) for _ in range(resting.CALLS)] == [resting.IDLE_S] * resting.CALLS
        assert gap(late) == 0.0
        assert not lull.begins(ours), "something has come"


FILLED_BYTES = 3 << 20
FILL = f"(memory.fill (i32.const 65536) (i32.const 7) (i32.const {FILLED_BYTES})) {ECHO}"


async def test_a_host_that_nobody_asks_gives_back_the_room_of_its_guests(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    artifact, manifest = shelf.guest(FILL, pages="64")
    await wasm.start("t", artifact, manifest, {})
    host = wasm._hosts.bound("default")
    assert host is not None
    before = status(host.pid, "RssAnon")
    for at in range(3):
        result = await wasm.invoke("t", f"c{at}", {"x": floats(at)}, BUDGET_MS)
        assert isinstance(result, Done), result
        assert result.outputs["y"] == floats(at)
        async with asyncio.timeout(WAIT_S):
            # As above; the module itself, mapped with its first call, takes about as much.
            while status(host.pid, "RssAnon") > before + FILLED_BYTES * 3 // 2:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(POLL_S)
    assert status(host.pid, "VmHWM") > before + 2 * FILLED_BYTES
