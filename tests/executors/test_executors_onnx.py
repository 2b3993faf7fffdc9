"""The ONNX executor with models made by hand, in real children of a real zygote."""

import asyncio
import os
import pwd
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from executor_exits import WAIT_S, Exits
from executor_guests import Shelf, floats
from executor_models import Model

from device_agent.executors import models, remote
from device_agent.executors.contract import file_of
from device_agent.executors.door import Bytes, Done, ExecutorFailure, File, Setup, Value
from device_agent.executors.onnx import OnnxExecutor
from protocols.errors import Blame, EnvironmentFailure
from protocols.manifest import Constant, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

Make = Callable[..., tuple[Path, Manifest]]
Gone = Callable[[int], Awaitable[None]]
BUDGET_MS = 60_000
LONG_S = 600.0
FLOAT, INT64, BOOL = 1, 7, 9
X = (Port("x", Dtype.FLOAT32, (-1,)),)
Y = (Port("y", Dtype.FLOAT32, (-1,)),)


@pytest.fixture
def double(shelf: Shelf) -> Make:
    """Return a task whose y is x + x."""

    def make(**parts: Any) -> tuple[Path, Manifest]:
        graph = Model.graph(
            [Model.node("Add", ["x", "x"], ["y"])],
            [Model.value("x", FLOAT, "n")],
            [Model.value("y", FLOAT, "n")],
        )
        parts = {"inputs": X, "outputs": Y} | parts
        return shelf.task(ExecutorKind.ONNX, Model.whole(graph), **parts)

    return make


@pytest.fixture
def zeros(shelf: Shelf) -> Make:
    """Return a task whose y is as many zeros as n says."""

    def make(**parts: Any) -> tuple[Path, Manifest]:
        graph = Model.graph(
            [Model.node("ConstantOfShape", ["n"], ["y"])],
            [Model.value("n", INT64, 1)],
            [Model.value("y", FLOAT, "n")],
        )
        inputs = (Port("n", Dtype.INT64, (1,)),)
        return shelf.task(ExecutorKind.ONNX, Model.whole(graph), inputs, Y, **parts)

    return make


@pytest.fixture
def endless(shelf: Shelf) -> Make:
    """Return a task that loops for as long as its input `go` is true."""

    def make(**parts: Any) -> tuple[Path, Manifest]:
        body = Model.graph(
            [
                Model.node("Identity", ["again"], ["more"]),
                Model.node("Add", ["v", "v"], ["w"]),
            ],
            [Model.value("i", INT64), Model.value("again", BOOL), Model.value("v", FLOAT, 1)],
            [Model.value("more", BOOL), Model.value("w", FLOAT, 1)],
        )
        loop = Model.node("Loop", ["", "go", "x"], ["y"], Model.subgraph("body", body))
        graph = Model.graph(
            [loop],
            [Model.value("go", BOOL), Model.value("x", FLOAT, 1)],
            [Model.value("y", FLOAT, 1)],
        )
        inputs = (Port("go", Dtype.BOOL, ()), Port("x", Dtype.FLOAT32, (1,)))
        return shelf.task(ExecutorKind.ONNX, Model.whole(graph), inputs, Y, **parts)

    return make


def go(on: bool) -> dict[str, Value]:
    return {"go": Bytes(Dtype.BOOL, (), bytes([on])), "x": Bytes(Dtype.FLOAT32, (1,), bytes(4))}


def count(number: int) -> dict[str, Value]:
    return {"n": Bytes(Dtype.INT64, (1,), struct.pack("<q", number))}


async def ready(onnx: OnnxExecutor, artifact: Path, manifest: Manifest, task: str = "t") -> None:
    await onnx.deploy(artifact, manifest)
    await onnx.start(task, artifact, manifest, {})


async def test_a_model_runs(onnx: OnnxExecutor, double: Make) -> None:
    await ready(onnx, *double())
    result = await onnx.invoke("t", "c", {"x": floats(1.5, -2)}, BUDGET_MS)
    assert result.outputs == {"y": floats(3, -4)}
    assert onnx.provider("t") == ("CPUExecutionProvider", "")
    stats = await onnx.stats("t")
    assert stats.calls == 1
    assert stats.memory_bytes > 1 << 20


async def test_the_probe_names_version_and_providers(onnx: OnnxExecutor) -> None:
    info = await onnx.probe()
    assert (info.kind, info.providers) == ("onnx", ("CPUExecutionProvider",))
    assert info.version.startswith("1.")


async def test_an_interpreter_without_onnxruntime_is_no_executor(
    tmp_path: Path, blobs: Path, double: Make
) -> None:
    bare = tmp_path / "bare-python"
    # -S: no site-packages, as with an interpreter that lacks the runtime.
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', encoding="ascii")
    bare.chmod(0o755)
    executor = OnnxExecutor(blobs=blobs, empty=tmp_path / "e", interpreter=str(bare))
    try:
        assert await executor.probe() is None
        with pytest.raises(ExecutorFailure, match="bare-python") as caught:
            await executor.deploy(*double())
        assert caught.value.failed.blame is Blame.ENVIRONMENT
    finally:
        await executor.close()


@pytest.fixture
def packaged(tmp_path: Path) -> str:
    """Return an interpreter whose ONNX Runtime brings no library beside its Python package."""
    site, here = tmp_path / "site", Path(onnxruntime.__file__).parent
    capi = site / here.name / "capi"
    capi.mkdir(parents=True)
    for one in (*here.iterdir(), *(here / "capi").iterdir(), Path(np.__file__).parent):
        inner = capi if one.parent.name == "capi" else site / here.name
        place = (site if one.name == "numpy" else inner) / one.name
        if not one.name.startswith("libonnxruntime.so") and not place.exists():
            place.symlink_to(one)
    for one in Path(np.__file__).parents[1].glob("numpy.libs"):
        (site / one.name).symlink_to(one)
    bare = tmp_path / "packaged-python"
    text = f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n'
    bare.write_text(text, encoding="ascii")
    bare.chmod(0o755)
    return str(bare)


def family(onnx: OnnxExecutor) -> list[int]:
    children = [one.pid for every in onnx._by_task.values() for one in every]
    models = [one.pid for one in onnx._models.loaded.values()]
    return [onnx._models.zygote.pid, *models, *children]


def libraries(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return {Path(one.split()[-1]).name for one in lines if ".so" in one}


async def test_models_run_without_numpy_or_the_package(onnx: OnnxExecutor, double: Make) -> None:
    await ready(onnx, *double())
    for pid in family(onnx):
        found = libraries(pid)
        assert any(one.startswith("libonnxruntime.so") for one in found)
        assert not any("pybind11" in one or "multiarray" in one for one in found)


async def test_the_package_serves_where_it_brings_no_library(
    tmp_path: Path, blobs: Path, double: Make, endless: Make, packaged: str
) -> None:
    executor = OnnxExecutor(blobs=blobs, empty=tmp_path / "e", interpreter=packaged)
    try:
        about = await executor.probe()
        assert about is not None
        assert about.providers == ("CPUExecutionProvider",)
        await ready(executor, *double())
        assert any("pybind11" in one for pid in family(executor) for one in libraries(pid))
        result = await executor.invoke("t", "c", {"x": floats(1.5, -2)}, BUDGET_MS)
        assert result.outputs == {"y": floats(3, -4)}
        await ready(executor, *endless(), "loop")
        stopped = await executor.invoke("loop", "c", go(on=True), 200)
        assert stopped.code is FailureCode.DEADLINE
        assert isinstance(await executor.invoke("loop", "d", go(on=False), BUDGET_MS), Done)
    finally:
        await executor.close()


async def test_the_working_folder_must_be_empty(tmp_path: Path, blobs: Path) -> None:
    (blobs / "made" / "weights.bin").touch()
    with pytest.raises(EnvironmentFailure, match=r"weights\.bin"):
        OnnxExecutor(blobs=tmp_path, empty=blobs / "made")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])


async def test_workers_are_forks_of_the_process_that_vetted(
    onnx: OnnxExecutor, double: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SPARE_S", LONG_S)
    artifact, manifest = double()
    await onnx.deploy(artifact, manifest)
    await onnx.deploy(artifact, manifest)
    (model,) = onnx._models.loaded.values()
    await onnx.start("t", artifact, manifest, {})
    await onnx.start("u", artifact, manifest, {})
    workers = [onnx._instances[task].pid for task in "tu"]
    assert [parent(pid) for pid in workers] == [model.pid, model.pid]
    assert parent(model.pid) == onnx._models.zygote.pid
    assert len({model.pid, *workers}) == 3


async def test_tenants_share_no_process(onnx: OnnxExecutor, double: Make) -> None:
    artifact, manifest = double()
    await onnx.start("t", artifact, manifest, {}, Setup(tenant="one"))
    await onnx.start("u", artifact, manifest, {}, Setup(tenant="two"))
    pids = [onnx._instances[task].pid for task in "tu"]
    assert len({*pids, *map(parent, pids)}) == 4


async def test_a_restart_is_a_fork_of_what_is_loaded(
    onnx: OnnxExecutor, double: Make, exits: Exits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SPARE_S", LONG_S)
    artifact, manifest = double()
    await onnx.start("t", artifact, manifest, {})
    pid = onnx._instances["t"].pid
    (model,) = onnx._models.loaded.values()
    os.kill(pid, signal.SIGKILL)
    await exits.first()
    await onnx.start("t", artifact, manifest, {})
    again = onnx._instances["t"].pid
    assert pid != again
    assert parent(again) == model.pid
    await onnx.stop("t")
    await onnx.start("u", artifact, manifest, {})
    assert parent(onnx._instances["u"].pid) == model.pid


async def test_a_killed_model_takes_its_workers_and_comes_back(
    onnx: OnnxExecutor, endless: Make, exits: Exits, gone: Gone
) -> None:
    await ready(onnx, *endless(), task="t")
    pid = onnx._instances["t"].pid
    call = asyncio.create_task(onnx.invoke("t", "c", go(on=True), BUDGET_MS))
    await asyncio.sleep(0)
    os.kill(parent(pid), signal.SIGKILL)
    result = await call
    assert (result.code, result.retryable) == (FailureCode.EXECUTOR, True)
    assert "the process of its model" in (await exits.first())[1]
    await gone(pid)
    assert isinstance(await onnx.invoke("t", "d", go(on=False), BUDGET_MS), Done)
    assert [task for task, _ in exits] == ["t"]


async def test_a_constant_fills_the_port_it_names(onnx: OnnxExecutor, shelf: Shelf) -> None:
    path, ref = shelf.put(struct.pack("<2f", 10, 20))
    graph = Model.graph(
        [Model.node("Add", ["x", "c"], ["y"])],
        [Model.value("x", FLOAT, "n"), Model.value("c", FLOAT, "n")],
        [Model.value("y", FLOAT, "n")],
    )
    artifact, manifest = shelf.task(
        ExecutorKind.ONNX,
        Model.whole(graph),
        (*X, Port("c", Dtype.FLOAT32, (-1,))),
        Y,
        constants=(Constant("c", ref),),
    )
    with pytest.raises(ExecutorFailure, match="not on this node"):
        await onnx.start("t", artifact, manifest, {})
    await onnx.start("t", artifact, manifest, {"c": path})
    result = await onnx.invoke("t", "c", {"x": floats(1, 2)}, BUDGET_MS)
    assert result.outputs == {"y": floats(11, 22)}


async def test_large_values_go_as_files_both_ways(
    onnx: OnnxExecutor, double: Make, shelf: Shelf, blobs: Path
) -> None:
    await ready(onnx, *double())
    path, ref = shelf.put(struct.pack("<f", 1.0) * 100_000)
    path.rename(blobs / path.name)
    value = File(Dtype.FLOAT32, (100_000,), ref.digest, 400_000)
    result = await onnx.invoke("t", "c", {"x": value}, BUDGET_MS)
    output = result.outputs["y"]
    assert isinstance(output, File)
    assert (blobs / file_of(output.digest)).read_bytes() == struct.pack("<f", 2.0) * 100_000
    again = await onnx.invoke("t", "d", {"x": output}, BUDGET_MS)
    doubled = blobs / file_of(again.outputs["y"].digest)
    assert doubled.read_bytes() == struct.pack("<f", 4.0) * 100_000
    assert len(list(blobs.glob("made/*"))) == 2


async def test_values_without_elements_and_without_axes_pass(
    onnx: OnnxExecutor, zeros: Make, endless: Make
) -> None:
    await ready(onnx, *zeros())
    empty = await onnx.invoke("t", "c", count(0), BUDGET_MS)
    assert empty.outputs == {"y": Bytes(Dtype.FLOAT32, (0,), b"")}
    await ready(onnx, *endless(), task="loop")
    assert isinstance(await onnx.invoke("loop", "c", go(on=False), BUDGET_MS), Done)


async def test_an_endless_loop_stops_at_its_deadline_in_the_same_child(
    onnx: OnnxExecutor, endless: Make, exits: Exits
) -> None:
    onnx.stop_grace_s = WAIT_S
    await ready(onnx, *endless(limits=Limits(deadline_ms=1500)))
    pid = onnx._instances["t"].pid
    late = await onnx.invoke("t", "c", go(on=True), BUDGET_MS)
    assert (late.code, late.blame) == (FailureCode.DEADLINE, Blame.USER)
    assert isinstance(await onnx.invoke("t", "d", go(on=False), BUDGET_MS), Done)
    assert onnx._instances["t"].pid == pid
    assert exits == []


async def test_a_run_that_cannot_stop_is_killed_and_forked_again(
    onnx: OnnxExecutor, endless: Make, gone: Gone, exits: Exits
) -> None:
    await ready(onnx, *endless(limits=Limits(deadline_ms=100)))
    pid = onnx._instances["t"].pid
    os.kill(pid, signal.SIGSTOP)
    late = await onnx.invoke("t", "c", go(on=False), BUDGET_MS)
    assert late.code is FailureCode.DEADLINE
    await gone(pid)
    artifact, manifest = endless()
    await onnx.start("u", artifact, manifest, {})
    again = await onnx.invoke("t", "d", go(on=False), BUDGET_MS)
    # A start may take longer than this task's deadline on a busy machine; it must not fail else.
    assert isinstance(again, Done) or again.code is FailureCode.DEADLINE
    assert exits == []


async def test_a_cancelled_call_and_those_behind_it_end(onnx: OnnxExecutor, endless: Make) -> None:
    await ready(onnx, *endless(limits=Limits(queue=2)))
    calls = [
        asyncio.create_task(onnx.invoke("t", str(one), go(on=True), BUDGET_MS)) for one in range(4)
    ]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert [one.result().code for one in done] == [FailureCode.BUSY]
    for one in range(4):
        await onnx.cancel("t", str(one))
    codes = [one.code for one in await asyncio.gather(*calls)]
    assert sorted(codes) == [FailureCode.BUSY] + 3 * [FailureCode.CANCELLED]
    assert isinstance(await onnx.invoke("t", "z", go(on=False), BUDGET_MS), Done)


async def test_memory_ends_at_its_limit(onnx: OnnxExecutor, zeros: Make) -> None:
    await ready(onnx, *zeros(limits=Limits(memory_bytes=64 << 20, output_bytes=1 << 30)))
    result = await onnx.invoke("t", "c", count(64 << 20), BUDGET_MS)
    assert (result.code, result.blame, result.retryable) == (FailureCode.LIMIT, Blame.USER, False)
    assert isinstance(await onnx.invoke("t", "d", count(4), BUDGET_MS), Done)


async def test_outputs_beyond_their_limit_are_refused(
    onnx: OnnxExecutor, zeros: Make, blobs: Path
) -> None:
    await ready(onnx, *zeros(limits=Limits(output_bytes=100_000)))
    result = await onnx.invoke("t", "c", count(30_000), BUDGET_MS)
    assert (result.code, result.blame) == (FailureCode.LIMIT, Blame.USER)
    assert list(blobs.glob("made/*")) == []


async def test_a_killed_child_fails_its_call_and_comes_back(
    onnx: OnnxExecutor, endless: Make, exits: Exits
) -> None:
    await ready(onnx, *endless())
    call = asyncio.create_task(onnx.invoke("t", "c", go(on=True), BUDGET_MS))
    await asyncio.sleep(0)
    os.kill(onnx._instances["t"].pid, signal.SIGKILL)
    result = await call
    assert (result.code, result.blame, result.retryable) == (
        FailureCode.EXECUTOR,
        Blame.ENVIRONMENT,
        True,
    )
    assert await exits.first() == ("t", "its process was killed by SIGKILL")
    assert isinstance(await onnx.invoke("t", "d", go(on=False), BUDGET_MS), Done)


async def test_a_killed_zygote_takes_its_children_and_comes_back(
    onnx: OnnxExecutor, endless: Make, exits: Exits, gone: Gone
) -> None:
    await ready(onnx, *endless(), task="t")
    await ready(onnx, *endless(), task="u")
    pids = [onnx._instances[task].pid for task in "tu"]
    call = asyncio.create_task(onnx.invoke("t", "c", go(on=True), BUDGET_MS))
    await asyncio.sleep(0)
    os.kill(onnx._models.zygote.pid, signal.SIGKILL)
    result = await call
    assert (result.code, result.retryable) == (FailureCode.EXECUTOR, True)
    _, reason = await exits.first()
    assert "zygote" in reason
    for pid in pids:
        await gone(pid)
    for task in "tu":
        assert isinstance(await onnx.invoke(task, "d", go(on=False), BUDGET_MS), Done)
    assert {task for task, _ in exits} == {"t", "u"}


async def test_stop_and_close_leave_nothing(onnx: OnnxExecutor, endless: Make, gone: Gone) -> None:
    await ready(onnx, *endless(), task="t")
    await ready(onnx, *endless(), task="u")
    await onnx.deploy(*endless(limits=Limits(deadline_ms=5)))
    pids = [onnx._models.zygote.pid, *(one.pid for one in onnx._models.loaded.values())]
    pids += [onnx._instances[task].pid for task in "tu"]
    call = asyncio.create_task(onnx.invoke("t", "c", go(on=True), BUDGET_MS))
    await asyncio.sleep(0)
    await onnx.stop("t")
    assert (await call).code is FailureCode.NOT_READY
    await gone(pids[-2])
    await onnx.close()
    for pid in pids:
        await gone(pid)
    async with asyncio.timeout(WAIT_S):
        # Whoever has started them takes note of their end a moment later.
        while any(Path(f"/proc/{pid}").exists() for pid in pids):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
async def test_weights_in_other_files_are_refused(
    onnx: OnnxExecutor, shelf: Shelf, tmp_path: Path, where: str
) -> None:
    (tmp_path / "empty" / "weights.bin").write_bytes(bytes(8))
    weights = Model.external("w", (1,), "weights.bin")
    nodes = [Model.node("Add", ["x", "w"], ["y"])]
    initializers = (weights,)
    if where == "attribute":
        nodes.insert(0, Model.node("Constant", [], ["w"], _tensor_attribute(weights)))
        initializers = ()
    elif where == "subgraph":
        inner = Model.graph(
            [Model.node("Identity", ["w"], ["w2"])], [], [Model.value("w2", FLOAT, 1)], (weights,)
        )
        nodes = [
            Model.node(
                "If",
                ["go"],
                ["y"],
                Model.subgraph("then_branch", inner),
                Model.subgraph("else_branch", inner),
            )
        ]
        initializers = ()
    inputs = [Model.value("x", FLOAT, 1), Model.value("go", BOOL)]
    graph = Model.graph(nodes, inputs, [Model.value("y", FLOAT, 1)], initializers)
    artifact, manifest = shelf.task(ExecutorKind.ONNX, Model.whole(graph), X, Y)
    try:
        with pytest.raises(ExecutorFailure, match="weights in other files") as caught:
            await onnx.deploy(artifact, manifest)
        assert caught.value.failed.blame is Blame.USER
    finally:
        (tmp_path / "empty" / "weights.bin").unlink()


def _tensor_attribute(tensor: bytes) -> bytes:
    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    return field(1, b"value") + field(5, tensor) + bytes([0xA0, 1, 4])


async def test_a_tensor_named_location_is_no_other_file(onnx: OnnxExecutor, shelf: Shelf) -> None:
    graph = Model.graph(
        [Model.node("Add", ["x", "location"], ["y"])],
        [Model.value("x", FLOAT, 1)],
        [Model.value("y", FLOAT, 1)],
        (Model.tensor("location", FLOAT, (1,), struct.pack("<f", 5)),),
    )
    port = (Port("x", Dtype.FLOAT32, (1,)),)
    await ready(onnx, *shelf.task(ExecutorKind.ONNX, Model.whole(graph), port, Y))
    result = await onnx.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert result.outputs == {"y": floats(6)}


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x3a\xff\xff\xff\xff\x0flocation", bytes(99)])
async def test_garbage_is_refused_at_deploy(onnx: OnnxExecutor, shelf: Shelf, data: bytes) -> None:
    artifact, manifest = shelf.task(ExecutorKind.ONNX, data, X, Y)
    with pytest.raises(ExecutorFailure) as caught:
        await onnx.deploy(artifact, manifest)
    assert (caught.value.failed.blame, caught.value.failed.retryable) == (Blame.USER, False)


@pytest.mark.parametrize(
    ("ports", "said"),
    [
        ({"inputs": (Port("z", Dtype.FLOAT32, (-1,)),)}, "no input 'z', it has x"),
        ({"inputs": (Port("x", Dtype.INT64, (-1,)),)}, "the manifest says tensor"),
        ({"inputs": (Port("x", Dtype.FLOAT32, (-1, 2)),)}, "has 1 axes, the manifest 2"),
        ({"inputs": ()}, "names no input x"),
        ({"outputs": (Port("q", Dtype.FLOAT32, (-1,)),)}, "no output 'q'"),
    ],
)
async def test_a_manifest_that_is_not_the_models_is_refused(
    onnx: OnnxExecutor, double: Make, ports: dict[str, tuple[Port, ...]], said: str
) -> None:
    with pytest.raises(ExecutorFailure, match=said) as caught:
        await onnx.deploy(*double(**ports))
    assert caught.value.failed.blame is Blame.USER


async def test_a_fixed_axis_must_be_the_manifests(
    onnx: OnnxExecutor, zeros: Make, shelf: Shelf
) -> None:
    artifact, manifest = zeros()
    loose = (Port("n", Dtype.INT64, (-1,)),)
    artifact, manifest = shelf.task(ExecutorKind.ONNX, artifact.read_bytes(), loose, Y)
    with pytest.raises(ExecutorFailure, match="length 1 at axis 0, the manifest -1"):
        await onnx.deploy(artifact, manifest)


async def test_an_output_that_breaks_the_manifest_is_a_failure(
    onnx: OnnxExecutor, zeros: Make, shelf: Shelf
) -> None:
    artifact, manifest = zeros()
    three = (Port("y", Dtype.FLOAT32, (3,)),)
    artifact, manifest = shelf.task(
        ExecutorKind.ONNX, artifact.read_bytes(), manifest.inputs, three
    )
    await ready(onnx, artifact, manifest)
    result = await onnx.invoke("t", "c", count(4), BUDGET_MS)
    assert (result.code, result.blame) == (FailureCode.EXECUTOR, Blame.USER)
    assert "[4]" in result.text
    assert isinstance(await onnx.invoke("t", "d", count(3), BUDGET_MS), Done)


async def test_a_provider_that_is_absent_falls_back_and_says_so(
    onnx: OnnxExecutor, double: Make
) -> None:
    await ready(onnx, *double(providers=("TensorrtExecutionProvider",)))
    provider, note = onnx.provider("t")
    assert provider == "CPUExecutionProvider"
    assert "TensorrtExecutionProvider" in note
    result = await onnx.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert isinstance(result, Done)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_models_run_as_the_user_that_the_machine_has_for_them(
    tmp_path: Path, blobs: Path, double: Make, shelf: Shelf, exits: Exits
) -> None:
    blobs.chmod(0o700)
    onnx = OnnxExecutor(blobs=blobs, empty=tmp_path / "empty", user="nobody", on_exit=exits)
    try:
        await ready(onnx, *double())
        path, ref = shelf.put(struct.pack("<f", 1.0) * 100_000)
        path.rename(blobs / path.name)
        value = File(Dtype.FLOAT32, (100_000,), ref.digest, 400_000)
        result = await onnx.invoke("t", "c", {"x": value}, BUDGET_MS)
        assert isinstance(result.outputs["y"], File)
        about = pwd.getpwnam("nobody")
        for pid in (onnx._instances["t"].pid, parent(onnx._instances["t"].pid)):
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            assert [*status.partition("Uid:")[2].split()[:4]] == 4 * [str(about.pw_uid)]
        os.kill(onnx._instances["t"].pid, signal.SIGKILL)
        await exits.first()
        assert isinstance(await onnx.invoke("t", "d", {"x": floats(1)}, BUDGET_MS), Done)
        stats = await onnx.stats("t")
        assert stats.memory_bytes > 1 << 20
    finally:
        await onnx.close()


async def test_the_zygote_goes_when_no_model_is_left(
    onnx: OnnxExecutor, double: Make, gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SPARE_S", 0.05)
    monkeypatch.setattr(remote, "IDLE_EXIT_S", 0.05)
    artifact, manifest = double()
    await onnx.deploy(artifact, manifest)
    pid = onnx._models.zygote.pid
    await gone(pid)
    await ready(onnx, artifact, manifest)
    assert isinstance(await onnx.invoke("t", "c", {"x": floats(1)}, BUDGET_MS), Done)
    assert onnx._models.zygote.pid != pid


async def test_the_zygote_has_one_thread(onnx: OnnxExecutor, double: Make) -> None:
    await ready(onnx, *double())
    assert len(list(Path(f"/proc/{onnx._models.zygote.pid}/task").iterdir())) == 1
