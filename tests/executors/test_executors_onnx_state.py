"""What an ONNX model remembers: through calls, kills, restarts and moves."""

import importlib.util
import os
import signal
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from executor_exits import Exits
from executor_guests import Shelf, floats
from executor_models import Model
from msgspec import structs

from device_agent.executors.door import Bytes, Done, ExecutorFailure, Setup
from device_agent.executors.onnx import OnnxExecutor
from protocols.errors import Blame
from protocols.manifest import Carry, Constant, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

Make = Callable[..., tuple[Path, Manifest]]
Gone = Callable[[int], Awaitable[None]]
BUDGET_MS = 60_000
FLOAT = 1
Y = (Port("y", Dtype.FLOAT32, (-1,)),)


@pytest.fixture
def sums(shelf: Shelf) -> Make:
    """Return a task whose y is x and everything that came before."""

    def make(**parts: Any) -> tuple[Path, Manifest]:
        graph = Model.graph(
            [Model.node("Add", ["x", "old"], ["new"]), Model.node("Identity", ["new"], ["y"])],
            [Model.value("x", FLOAT, 1), Model.value("old", FLOAT, 1)],
            [Model.value("y", FLOAT, 1), Model.value("new", FLOAT, 1)],
        )
        port = (Port("x", Dtype.FLOAT32, (1,)),)
        parts = {"carries": (Carry("new", "old"),), "limits": Limits(state_bytes=64)} | parts
        artifact, manifest = shelf.task(ExecutorKind.ONNX, Model.whole(graph), port, Y)
        return artifact, structs.replace(manifest, **parts)

    return make


async def summed(onnx: OnnxExecutor, number: float, task: str = "t") -> float:
    result = await onnx.invoke(task, "c", {"x": floats(number)}, BUDGET_MS)
    assert isinstance(result, Done), result
    return struct.unpack("<f", result.outputs["y"].data)[0]


async def test_a_model_remembers_through_kills_and_restarts(
    onnx: OnnxExecutor, sums: Make, gone: Gone, exits: Exits
) -> None:
    artifact, manifest = sums()
    await onnx.start("t", artifact, manifest, {}, Setup(replicas=3))
    assert [await summed(onnx, one) for one in (1, 2)] == [1, 3]
    pid = onnx._instances["t"].pid
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    await exits.first()
    assert await summed(onnx, 4) == 7
    await onnx.start("t", artifact, manifest, {})
    assert await summed(onnx, 8) == 15
    assert len(onnx._by_task["t"]) == 1, "each call continues the one before"


async def test_a_state_goes_to_another_instance(onnx: OnnxExecutor, sums: Make) -> None:
    artifact, manifest = sums()
    await onnx.start("t", artifact, manifest, {})
    assert await onnx.snapshot("t") == b""
    assert await summed(onnx, 5) == 5
    state = await onnx.snapshot("t")
    await onnx.start("u", artifact, manifest, {})
    assert await summed(onnx, 1, "u") == 1
    await onnx.restore("u", state)
    assert await summed(onnx, 1, "u") == 6
    assert await summed(onnx, 1) == 6
    await onnx.restore("u", b"")
    assert await summed(onnx, 1, "u") == 1
    for bad in (b"\xff", state + b"x", state[:-1], bytes(5)):
        with pytest.raises(ExecutorFailure) as caught:
            await onnx.restore("u", bad)
        assert caught.value.failed.blame is Blame.PEER
    with pytest.raises(ExecutorFailure, match="64 are allowed"):
        await onnx.restore("u", bytes(65))
    assert await summed(onnx, 1, "u") == 2
    assert await onnx.snapshot("absent") == b""
    await onnx.stop("t")
    assert onnx.recall("t") == state[:-4] + struct.pack("<f", 6)
    assert onnx.recall("absent") == b""


async def test_what_is_remembered_stays_within_its_limit(onnx: OnnxExecutor, sums: Make) -> None:
    await onnx.start("t", *sums(limits=Limits(state_bytes=8)), {})
    result = await onnx.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert (result.code, result.blame) == (FailureCode.LIMIT, Blame.USER)
    assert "8 are allowed" in result.text


async def test_what_cannot_be_carried_is_refused(onnx: OnnxExecutor, sums: Make) -> None:
    with pytest.raises(ExecutorFailure, match="names no input old"):
        await onnx.deploy(*sums(carries=()))
    with pytest.raises(ExecutorFailure, match="cannot carry output 'y' to input 'other'"):
        await onnx.deploy(*sums(carries=(Carry("y", "other"),)))


async def test_silero_vad_hears_silence_and_remembers(onnx: OnnxExecutor, shelf: Shelf) -> None:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None:
        pytest.skip("the package silero_vad is not installed")
    model = Path(spec.origin).parent / "data" / "silero_vad.onnx"
    path, rate = shelf.put(struct.pack("<q", 16_000))
    artifact, manifest = shelf.task(
        ExecutorKind.ONNX,
        model.read_bytes(),
        (Port("input", Dtype.FLOAT32, (1, -1)), Port("sr", Dtype.INT64, ())),
        (Port("output", Dtype.FLOAT32, (-1, 1)),),
        constants=(Constant("sr", rate),),
        limits=Limits(state_bytes=4096),
    )
    manifest = structs.replace(manifest, carries=(Carry("stateN", "state"),))
    await onnx.deploy(artifact, manifest)
    await onnx.start("t", artifact, manifest, {"sr": path})
    sounds = [struct.pack("<f", level) * 576 for level in (0.0, 0.3)]
    frames = [{"input": Bytes(Dtype.FLOAT32, (1, 576), one)} for one in sounds]
    first = await onnx.invoke("t", "c", frames[0], BUDGET_MS)
    assert struct.unpack("<f", first.outputs["output"].data)[0] < 0.1
    assert len(await onnx.snapshot("t")) == 1 + 3 * 8 + 2 * 128 * 4
    second = await onnx.invoke("t", "c", frames[0], BUDGET_MS)
    await onnx.invoke("t", "c", frames[1], BUDGET_MS)
    third = await onnx.invoke("t", "c", frames[0], BUDGET_MS)
    await onnx.restore("t", b"")
    again = await onnx.invoke("t", "c", frames[0], BUDGET_MS)
    assert again.outputs == first.outputs
    assert len({one.outputs["output"].data for one in (first, second, third)}) == 3
