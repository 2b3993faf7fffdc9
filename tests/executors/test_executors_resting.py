"""What a process that runs a model gives back while nobody asks, and takes again when it is asked.

Real processes; memory is that of the worker alone, without what it shares with its model.
"""

import asyncio
import struct
from pathlib import Path

import pytest
from executor_guests import Shelf
from executor_models import Model

from device_agent.executors.door import Bytes, Done, Setup
from device_agent.executors.onnx import OnnxExecutor
from protocols.manifest import Dtype, ExecutorKind, Manifest, Port

ITEMS = 6_000_000
TAKEN_BYTES = 4 * ITEMS
BUDGET_MS = 30_000
WAIT_S = 20.0
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
