"""Calls that share a run of a model, in real processes: each is answered as if it ran alone."""

import asyncio
import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from executor_exits import WAIT_S
from executor_guests import Shelf
from executor_models import Model
from msgspec import structs

from device_agent.executors.contract import file_of
from device_agent.executors.door import Bytes, Call, Done, Failed, File, Setup
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.programs.wire import INLINE_MAX_BYTES
from protocols.errors import Blame
from protocols.manifest import Constant, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

FLOAT, INT64, BOOL = 1, 7, 9
BUDGET_MS: Final = 60_000
X = (Port("x", Dtype.FLOAT32, (-1, 2)),)
Y = (Port("y", Dtype.FLOAT32, (-1, 2)),)
Rows = list[tuple[float, float]]


def floats(rows: Rows) -> Bytes:
    flat = [number for row in rows for number in row]
    return Bytes(Dtype.FLOAT32, (len(rows), 2), struct.pack(f"<{len(flat)}f", *flat))


def told(result: Done | Failed) -> Rows:
    assert isinstance(result, Done), result
    value = result.outputs["y"]
    assert isinstance(value, Bytes)
    flat = struct.unpack(f"<{len(value.data) // 4}f", value.data)
    return list(zip(flat[::2], flat[1::2], strict=True))


class Together:
    """Calls of a task that are begun at once."""

    def __init__(self, onnx: OnnxExecutor) -> None:
        self.onnx = onnx
        self.results: dict[str, asyncio.Future[Done | Failed]] = {}

    def begin(self, budget_ms: int = BUDGET_MS, **inputs: dict[str, Any]) -> bool:
        loop = asyncio.get_running_loop()
        self.results = {name: loop.create_future() for name in inputs}
        calls = [
            Call(name, given, budget_ms, self.results[name].set_result)
            for name, given in inputs.items()
        ]
        return self.onnx.invoke_together("t", calls)

    async def all(self) -> dict[str, Done | Failed]:
        async with asyncio.timeout(BUDGET_MS / 1000):
            return dict(
                zip(self.results, await asyncio.gather(*self.results.values()), strict=True)
            )


@pytest.fixture
def together(onnx: OnnxExecutor) -> Together:
    return Together(onnx)


@pytest.fixture
def adds(shelf: Shelf) -> tuple[Path, Manifest, dict[str, Path]]:
    """Return a task that adds a constant, a row for all rows."""
    graph = Model.graph(
        [Model.node("Add", ["x", "c"], ["y"])],
        [Model.value("x", FLOAT, "n", 2), Model.value("c", FLOAT, 1, 2)],
        [Model.value("y", FLOAT, "n", 2)],
    )
    path, ref = shelf.put(struct.pack("<2f", 10, 20))
    inputs = (*X, Port("c", Dtype.FLOAT32, (1, 2)))
    constants = (Constant("c", ref),)
    artifact, manifest = shelf.task(
        ExecutorKind.ONNX, Model.whole(graph), inputs, Y, constants=constants, batch=8
    )
    return artifact, manifest, {"c": path}


@pytest.fixture
def picks(shelf: Shelf) -> tuple[Path, Manifest]:
    """Return a task that gathers from two numbers: an index of three or more is refused."""
    graph = Model.graph(
        [Model.node("Gather", ["table", "x"], ["y"])],
        [Model.value("x", INT64, "n")],
        [Model.value("y", FLOAT, "n")],
        (Model.tensor("table", FLOAT, (2,), struct.pack("<2f", 5, 6)),),
    )
    inputs, outputs = (Port("x", Dtype.INT64, (-1,)),), (Port("y", Dtype.FLOAT32, (-1,)),)
    return shelf.task(ExecutorKind.ONNX, Model.whole(graph), inputs, outputs, batch=8)


@pytest.fixture
def endless(shelf: Shelf) -> tuple[Path, Manifest]:
    """Return a task that doubles its rows, for ever when the first of all rows is above zero."""
    body = Model.graph(
        [Model.node("Identity", ["again"], ["more"]), Model.node("Add", ["v", "v"], ["w"])],
        [Model.value("i", INT64), Model.value("again", BOOL), Model.value("v", FLOAT, "n")],
        [Model.value("more", BOOL), Model.value("w", FLOAT, "n")],
    )
    graph = Model.graph(
        [
            Model.node("ReduceMax", ["x"], ["top"], Model.number("keepdims", 0)),
            Model.node("Greater", ["top", "zero"], ["go"]),
            Model.node("Loop", ["", "go", "x"], ["y"], Model.subgraph("body", body)),
        ],
        [Model.value("x", FLOAT, "n")],
        [Model.value("y", FLOAT, "n")],
        (Model.tensor("zero", FLOAT, (), bytes(4)),),
    )
    port = Port("x", Dtype.FLOAT32, (-1,))
    outputs = (Port("y", Dtype.FLOAT32, (-1,)),)
    return shelf.task(ExecutorKind.ONNX, Model.whole(graph), (port,), outputs, batch=8)


def number(value: float) -> dict[str, Any]:
    return {"x": Bytes(Dtype.FLOAT32, (1,), struct.pack("<f", value))}


def index(value: int) -> dict[str, Any]:
    return {"x": Bytes(Dtype.INT64, (1,), struct.pack("<q", value))}


async def test_calls_of_one_run_get_their_own_rows(
    together: Together, adds: tuple[Path, Manifest, dict[str, Path]]
) -> None:
    await together.onnx.start("t", *adds)
    rows: dict[str, Rows] = {"a": [(1, 2)], "b": [(3, 4), (5, 6)], "c": [(7, 8)]}
    assert together.begin(**{name: {"x": floats(own)} for name, own in rows.items()})
    results = await together.all()
    for name, own in rows.items():
        assert told(results[name]) == [(x + 10, y + 20) for x, y in own]
    assert {one.calls for one in results.values() if isinstance(one, Done)} == {3}
    stats = await together.onnx.stats("t")
    assert stats is not None
    assert (stats.calls, stats.failures) == (3, 0)


async def test_a_bad_input_fails_alone(together: Together, picks: tuple[Path, Manifest]) -> None:
    await together.onnx.start("t", *picks, {})
    assert together.begin(a=index(0), bad=index(9), c=index(1))
    results = await together.all()
    assert isinstance(results["bad"], Failed)
    assert results["bad"].blame is Blame.USER
    good = [results["a"], results["c"]]
    values = [one.outputs["y"] for one in good if isinstance(one, Done)]
    assert values == [Bytes(Dtype.FLOAT32, (1,), struct.pack("<f", one)) for one in (5, 6)]
    assert [one.calls for one in good if isinstance(one, Done)] == [1, 1], "they ran one by one"
    assert together.begin(a=index(0), c=index(1)), "the worker is free again"
    assert all(isinstance(one, Done) for one in (await together.all()).values())


async def test_a_missing_value_fails_alone(
    together: Together, adds: tuple[Path, Manifest, dict[str, Path]]
) -> None:
    await together.onnx.start("t", *adds)
    gone = File(Dtype.FLOAT32, (1, 2), "sha256:" + "0" * 64, 8)
    assert together.begin(a={"x": floats([(1, 2)])}, gone={"x": gone})
    results = await together.all()
    assert isinstance(results["gone"], Failed)
    assert results["gone"].code is FailureCode.FETCH
    assert told(results["a"]) == [(11, 22)]


async def test_outputs_that_are_too_large_fail_alone(
    together: Together, adds: tuple[Path, Manifest, dict[str, Path]]
) -> None:
    artifact, manifest, constants = adds
    manifest = structs.replace(manifest, limits=Limits(output_bytes=8))
    await together.onnx.start("t", artifact, manifest, constants)
    assert together.begin(a={"x": floats([(1, 2)])}, wide={"x": floats([(1, 2), (3, 4)])})
    results = await together.all()
    assert isinstance(results["wide"], Failed)
    assert results["wide"].code is FailureCode.LIMIT
    assert told(results["a"]) == [(11, 22)]


async def test_one_that_is_cancelled_leaves_the_run_to_the_others(
    together: Together, endless: tuple[Path, Manifest]
) -> None:
    onnx = together.onnx
    onnx.stop_grace_s = WAIT_S
    await onnx.start("t", *endless, {})
    pid = onnx._instances["t"].pid
    assert together.begin(a=number(1), b=number(-1), c=number(-2))
    await onnx.cancel("t", "a")
    await onnx.cancel("t", "b")
    results = await asyncio.gather(together.results["a"], together.results["b"])
    assert [one.code for one in results if isinstance(one, Failed)] == [FailureCode.CANCELLED] * 2
    assert not together.results["c"].done()
    await onnx.cancel("t", "c")
    assert isinstance(await together.results["c"], Failed)
    alone = await onnx.invoke("t", "d", number(-3), BUDGET_MS)
    assert isinstance(alone, Done), "nobody waited any more: the run was stopped"
    assert onnx._instances["t"].pid == pid, "without a new process"


async def test_the_deadline_of_all_stops_the_run(
    together: Together, endless: tuple[Path, Manifest]
) -> None:
    onnx = together.onnx
    await onnx.start("t", *endless, {})
    assert together.begin(50, a=number(1), b=number(1))
    results = await together.all()
    assert {one.code for one in results.values() if isinstance(one, Failed)} == {
        FailureCode.DEADLINE
    }
    assert isinstance(await onnx.invoke("t", "d", number(-3), BUDGET_MS), Done)


async def test_a_dead_process_loses_all_of_them_as_worth_another_try(
    together: Together, endless: tuple[Path, Manifest]
) -> None:
    onnx = together.onnx
    await onnx.start("t", *endless, {})
    assert together.begin(a=number(1), b=number(1))
    (child,) = onnx._by_task["t"]
    child.kill()
    results = await together.all()
    assert [one.retryable for one in results.values() if isinstance(one, Failed)] == [True, True]
    assert isinstance(await onnx.invoke("t", "d", number(-3), BUDGET_MS), Done)


async def test_they_go_one_by_one_where_something_is_in_the_way(
    together: Together, endless: tuple[Path, Manifest]
) -> None:
    onnx = together.onnx
    assert not together.begin(a=number(1), b=number(1)), "no such task"
    await onnx.start("t", *endless, {}, Setup(replicas=1))
    busy = asyncio.create_task(onnx.invoke("t", "busy", number(1), BUDGET_MS))
    await asyncio.sleep(0)
    assert not together.begin(a=number(1), b=number(1)), "the worker is taken"
    await onnx.cancel("t", "busy")
    await busy
    assert not together.begin(a=number(1), b=index(1)), "one is of another type"
    await onnx.rest("t")
    assert not together.begin(a=number(-1), b=number(-1)), "it rests"


# A real model.

MODEL: Final = "models/ch_PP-OCRv4_rec_infer.onnx"
WIDTH: Final = 96
CALLS: Final = 4


@pytest.fixture
def reader(shelf: Shelf) -> tuple[Path, Manifest]:
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("rapidocr-onnxruntime is not installed")
    model = Path(spec.submodule_search_locations[0], MODEL).read_bytes()
    inputs = (Port("x", Dtype.FLOAT32, (-1, 3, 48, -1)),)
    outputs = (Port("softmax_11.tmp_0", Dtype.FLOAT32, (-1, -1, 6625)),)
    return shelf.task(ExecutorKind.ONNX, model, inputs, outputs, batch=8)


async def test_a_real_model_reads_the_same_together_and_alone(
    together: Together, reader: tuple[Path, Manifest], blobs: Path
) -> None:
    np: Callable[..., Any] = pytest.importorskip("numpy")
    await together.onnx.start("t", *reader, {})
    dice = np.random.default_rng(1)
    inputs = {}
    for at in range(CALLS):
        data = dice.random((1, 3, 48, WIDTH), dtype=np.float32).tobytes()
        assert len(data) <= INLINE_MAX_BYTES
        inputs[f"c{at}"] = {"x": Bytes(Dtype.FLOAT32, (1, 3, 48, WIDTH), data)}
    assert together.begin(**inputs)
    joined = await together.all()
    for name, given in inputs.items():
        alone = await together.onnx.invoke("t", name, given, BUDGET_MS)
        both = []
        for one in (joined[name], alone):
            assert isinstance(one, Done), one
            (value,) = one.outputs.values()
            assert isinstance(value, File)
            data = (blobs / file_of(value.digest)).read_bytes()
            both.append(np.frombuffer(data, np.float32).reshape(value.shape))
        assert both[0].shape == both[1].shape
        np.testing.assert_allclose(*both, rtol=0, atol=1e-4)
        assert (both[0].argmax(-1) == both[1].argmax(-1)).all()
