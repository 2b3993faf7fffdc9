"""The memory limit of a task: what fits is loaded, and of what does not fit it is said how much."""

import re
import struct
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path

import pytest
from executor_guests import Shelf
from executor_models import Model
from msgspec import structs

from device_agent.executors.door import Bytes, Done, ExecutorFailure
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.process import PROGRAMS
from protocols.manifest import Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

BUDGET_MS = 60_000
MIB = 1 << 20
COLUMNS = 1024
STARTS = 5
DOES_NOT = "does not load within the task's memory limit of 16777216 bytes"
TIGHT = Limits(memory_bytes=64 * MIB)
"""Of which the room for runs is a quarter."""


def product(shelf: Shelf, weights_mib: int) -> tuple[Path, Manifest]:
    """Return a task of one product, whose weights are prepared: they are there twice."""
    rows = weights_mib * MIB // (4 * COLUMNS)
    weights = Model.tensor("w", 1, (rows, COLUMNS), struct.pack("<f", 1.0) * rows * COLUMNS)
    data = Model.whole(
        Model.graph(
            [Model.node("MatMul", ["x", "w"], ["y"])],
            [Model.value("x", 1, 1, rows)],
            [Model.value("y", 1, 1, COLUMNS)],
            (weights,),
        )
    )
    inputs, outputs = (Dtype.FLOAT32, (1, rows)), (Dtype.FLOAT32, (1, COLUMNS))
    return shelf.task(
        ExecutorKind.ONNX, data, (Port("x", *inputs),), (Port("y", *outputs),), limits=TIGHT
    )


async def told(attempt: Awaitable[object]) -> int:
    """Return the bytes that are said to be enough where a model does not fit."""
    with pytest.raises(ExecutorFailure, match="memory limit of 67108864 bytes: set") as caught:
        await attempt
    assert caught.value.failed.code is FailureCode.LIMIT
    said = re.search(r"limits\.memory_bytes to (\d+)", caught.value.failed.text)
    assert said is not None
    return int(said[1])


async def answer(onnx: OnnxExecutor, artifact: Path, manifest: Manifest) -> None:
    """Load a model, from its form if there is one, and hold what it gives."""
    await onnx.start("t", artifact, manifest, {})
    (port,) = manifest.inputs
    half = Bytes(port.dtype, port.shape, struct.pack("<f", 0.5) * port.shape[1])
    result = await onnx.invoke("t", "c", {"x": half}, BUDGET_MS)
    assert isinstance(result, Done), result
    value = result.outputs["y"]
    assert isinstance(value, Bytes)
    assert struct.unpack(f"<{COLUMNS}f", value.data) == (port.shape[1] / 2,) * COLUMNS
    await onnx.stop("t")
    onnx._models.spare(None)


async def test_a_model_that_leaves_no_room_for_runs_loads_and_runs(
    onnx: OnnxExecutor, shelf: Shelf
) -> None:
    tight = product(shelf, 26)
    await answer(onnx, *tight)
    await answer(onnx, *tight)


async def test_a_run_has_the_memory_that_the_runs_before_it_have_left(
    onnx: OnnxExecutor, shelf: Shelf
) -> None:
    graph = Model.graph(
        [
            Model.node("ConstantOfShape", ["n"], ["large"]),
            Model.node("ReduceSum", ["large"], ["y"]),
        ],
        [Model.value("n", 7, 1)],
        [Model.value("y", 1, 1)],
    )
    ports = (Port("n", Dtype.INT64, (1,)),), (Port("y", Dtype.FLOAT32, (1,)),)
    task = shelf.task(ExecutorKind.ONNX, Model.whole(graph), *ports, limits=TIGHT)
    await onnx.start("t", *task, {})
    # Each beside the room; the second one not beside what the first one has taken, too.
    for large_mib in (20, 36, 20):
        items = Bytes(Dtype.INT64, (1,), struct.pack("<q", large_mib * MIB // 4))
        result = await onnx.invoke("t", "c", {"n": items}, BUDGET_MS)
        assert isinstance(result, Done), (large_mib, result)
        assert result.outputs["y"] == Bytes(Dtype.FLOAT32, (1,), bytes(4))
    items = Bytes(Dtype.INT64, (1,), struct.pack("<q", 16 * MIB))
    result = await onnx.invoke("t", "c", {"n": items}, BUDGET_MS)
    assert not isinstance(result, Done)
    assert result.code is FailureCode.LIMIT


async def test_of_a_model_that_does_not_fit_it_is_said_how_much_is_enough(
    onnx: OnnxExecutor, shelf: Shelf
) -> None:
    artifact, manifest = product(shelf, 40)
    enough = await told(onnx.deploy(artifact, manifest))
    # At most 96 MiB more are tried: less than half of them is enough.
    assert 80 * MIB < enough < (64 + 48) * MIB
    for _ in range(STARTS):
        # What a failed attempt leaves behind differs from process to process, and must not count.
        assert await told(onnx.start("t", artifact, manifest, {})) == enough
    limits = structs.replace(manifest.limits, memory_bytes=enough + 4 * MIB)
    await answer(onnx, artifact, structs.replace(manifest, limits=limits))


async def test_what_was_lifted_to_learn_that_is_given_up_by_what_runs(
    onnx: OnnxExecutor, shelf: Shelf
) -> None:
    artifact, manifest = product(shelf, 1)
    await onnx.start("t", artifact, manifest, {})
    pids = {one.pid for one in onnx._models.loaded.values()} | {onnx._instances["t"].pid}
    for pid in pids:
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
        (line,) = [one for one in lines if one.startswith("Max data size")]
        soft, hard = line.split()[3:5]
        assert soft == hard


@pytest.mark.parametrize(
    ("takes", "ago", "said"),
    [
        (64, "0", f"{DOES_NOT}, nor within 33554432 more: raise limits.memory_bytes"),
        (30, "0", f"{DOES_NOT}: set limits.memory_bytes to 33554432 and what"),
        (30, "onnx_fit.SEARCH_S", f"{DOES_NOT}: raise limits.memory_bytes"),
        (8, "onnx_fit.SEARCH_S", "loaded"),
    ],
)
def test_attempts_end_at_what_may_be_lifted_and_when_their_time_is_over(
    takes: int, ago: str, said: str
) -> None:
    program = f"""import onnx_fit, sandbox, time
sandbox.cap_memory({16 * MIB}, {32 * MIB})
try:
    onnx_fit.load({16 * MIB}, lambda: bytearray({takes * MIB}), time.monotonic() - {ago})
except onnx_fit.Refusal as refusal:
    print(refusal)
else:
    print("loaded")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=PROGRAMS,
        timeout=60,
    )
    assert said in done.stdout
