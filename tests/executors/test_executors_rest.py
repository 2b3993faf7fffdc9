"""Instances that rest: they hold nothing, and their next call is served all the same."""

import asyncio
import hashlib
import os
import shutil
import signal
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from executor_exits import WAIT_S, Exits
from executor_guests import Shelf, floats
from executor_models import Model

from device_agent.executors.calls import Run
from device_agent.executors.contract import Described
from device_agent.executors.door import Done, Failed, File, Setup
from device_agent.executors.link import Link
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.wasm import WasmExecutor
from protocols.manifest import Dtype, ExecutorKind, Manifest, Port
from protocols.messages.invocation import FailureCode

MAPPED = 64
"""Modules that a host keeps mapped, at most."""
Gone = Callable[[int], Awaitable[None]]
BUDGET_MS = 30_000


def model(shelf: Shelf) -> tuple[Path, Manifest]:
    ports = (Port("x", Dtype.FLOAT32, (-1,)),), (Port("y", Dtype.FLOAT32, (-1,)),)
    graph = Model.graph(
        [Model.node("Add", ["x", "x"], ["y"])],
        [Model.value("x", 1, "n")],
        [Model.value("y", 1, "n")],
    )
    return shelf.task(ExecutorKind.ONNX, Model.whole(graph), *ports)


async def test_a_resting_module_answers_its_next_call(wasm: WasmExecutor, shelf: Shelf) -> None:
    artifact, manifest = shelf.guest("echo")
    await wasm.start("t", artifact, manifest, {})
    for wakes in (False, True):
        await wasm.rest("t")
        if wakes:
            await wasm.wake("t")
        result = await now(wasm, "t", f"c{wakes}")
        assert isinstance(result, Done), result
        assert result.outputs["y"] == floats(1)


async def test_a_resting_module_is_mapped_anew_and_its_seal_checked(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    artifact, manifest = shelf.guest("echo")
    await wasm.start("t", artifact, manifest, {})
    await wasm.rest("t", keep=True)
    await _crowd(wasm, shelf)
    _break(wasm, manifest)
    assert isinstance(await now(wasm, "t", "c1"), Done), "what keeps its process stays mapped"
    await wasm.rest("t")
    first = await now(wasm, "t", "c2")
    # A host lets go of modules after its answer: who comes first has an old one mapped again.
    async with asyncio.timeout(WAIT_S):
        while isinstance(first, Done):
            await _crowd(wasm, shelf)
            await wasm.rest("t")
            first = await now(wasm, "t", "c2")
    assert (first.code, first.retryable) == (FailureCode.NOT_READY, True)
    second = await wasm.invoke("t", "c3", {"x": floats(1)}, BUDGET_MS)
    assert isinstance(second, Done), second


async def test_one_whose_module_is_broken_is_compiled_when_it_wakes(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    artifact, manifest = shelf.guest("echo")
    await wasm.start("t", artifact, manifest, {})
    await wasm.rest("t")
    await _crowd(wasm, shelf)
    _break(wasm, manifest)
    await wasm.wake("t")
    assert isinstance(await now(wasm, "t", "c"), Done)


async def test_what_rests_leaves_no_memory_behind(
    wasm: WasmExecutor, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.executors.wasm.LULL_S", 60.0)
    fill = """(drop (memory.grow (i32.const 50)))
      (memory.fill (i32.const 100000) (i32.const 255) (i32.const 3000000))
      (i32.store (local.get $out) (i32.const 32))
      (i32.store offset=4 (local.get $out) (i32.const 4)) (i32.const 0)"""
    artifact, manifest = shelf.guest(fill)
    await wasm.start("t", artifact, manifest, {})
    host = wasm._hosts.of("default").pid
    assert isinstance(await now(wasm, "t", "first"), Done)
    kept = anonymous_bytes(host)
    # A guest that has just answered is cleared away beside what comes next.
    async with asyncio.timeout(WAIT_S):
        while kept - anonymous_bytes(host) < 2_500_000:
            await wasm.rest("t")
            await wasm.wake("t")
    assert isinstance(await now(wasm, "t", "again"), Done)
    assert anonymous_bytes(host) > kept - 500_000, "for the next guest"


def anonymous_bytes(pid: int) -> int:
    """Return what no file backs: whoever else maps the same files changes nothing of it."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(one for one in text.splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


async def _crowd(wasm: WasmExecutor, shelf: Shelf) -> None:
    """Have the host map so many other modules that it lets go of those that nobody uses."""
    for at in range(MAPPED):
        artifact, manifest = shelf.guest("add", extra=f"(global i32 (i32.const {at}))")
        await wasm.start("other", artifact, manifest, {})


def _break(wasm: WasmExecutor, manifest: Manifest) -> None:
    """Have something else lie where a compiled module was."""
    path = wasm._cache / f"{manifest.artifact.digest.removeprefix('sha256:')}.cwasm"
    assert path.exists()
    path.write_bytes(b"nothing")


async def test_calls_that_come_at_once_wake_it_once(wasm: WasmExecutor, shelf: Shelf) -> None:
    artifact, manifest = shelf.guest("echo")
    await wasm.start("t", artifact, manifest, {})
    await wasm.rest("t")
    before = wasm._keys
    calls = [wasm.invoke("t", f"c{at}", {"x": floats(at)}, BUDGET_MS) for at in range(8)]
    for at, result in enumerate(await asyncio.gather(*calls)):
        assert isinstance(result, Done), result
        assert result.outputs["y"] == floats(at)
    assert wasm._keys == before, "its host still has its recipe"


async def test_an_instance_with_a_call_does_not_rest(wasm: WasmExecutor, shelf: Shelf) -> None:
    artifact, manifest = shelf.guest("echo")
    await wasm.start("t", artifact, manifest, {})
    call = asyncio.create_task(wasm.invoke("t", "c", {"x": floats(1)}, BUDGET_MS))
    await asyncio.sleep(0)
    await wasm.rest("t")
    assert wasm._instances["t"].links
    assert isinstance(await call, Done)
    await wasm.rest("nobody")
    await wasm.wake("nobody")


async def test_a_resting_models_workers_go_and_come_back(
    onnx: OnnxExecutor, shelf: Shelf, gone: Gone
) -> None:
    artifact, manifest = model(shelf)
    setup = Setup(replicas=2)
    await onnx.start("t", artifact, manifest, {}, setup)
    worker = onnx._instances["t"].pid
    await onnx.rest("t")
    await gone(worker)
    assert not onnx._by_task
    result = await onnx.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert isinstance(result, Done), result


async def test_a_model_that_rests_for_long_is_loaded_again(
    onnx: OnnxExecutor, shelf: Shelf, gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.executors.models.SPARE_S", 0.05)
    artifact, manifest = model(shelf)
    await onnx.start("t", artifact, manifest, {})
    (held,) = onnx._models.loaded.values()
    await onnx.rest("t")
    await gone(held.pid)
    assert not onnx._models.loaded, "an idle function costs a table row"
    result = await onnx.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert isinstance(result, Done), result


async def test_a_compiled_module_that_is_gone_is_compiled_for_the_next_host(
    wasm: WasmExecutor, shelf: Shelf, exits: Exits
) -> None:
    artifact, manifest = shelf.guest("echo")
    other, plain = shelf.guest("add")
    await wasm.start("t", artifact, manifest, {})
    os.kill(wasm._hosts.of("default").pid, signal.SIGKILL)
    await exits.first()
    await wasm.start("other", other, plain, {})
    _break(wasm, manifest)
    result = await now(wasm, "t", "c")
    assert isinstance(result, Done), result


async def test_calls_behind_the_one_that_loads_wait_for_it(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    artifact, manifest = shelf.guest("echo")
    await wasm.start("t", artifact, manifest, {})
    for turn in range(20):
        await wasm.rest("t")
        results = await asyncio.gather(now(wasm, "t", f"a{turn}"), now(wasm, "t", f"b{turn}"))
        assert all(isinstance(one, Done) for one in results), results


async def now(wasm: WasmExecutor, task: str, call: str) -> Done | Failed:
    """Make a call without a turn of the loop before it; one that cannot be, in the usual way."""
    answer: asyncio.Future[Done | Failed] = asyncio.get_running_loop().create_future()
    if wasm.invoke_now(task, call, {"x": floats(1)}, BUDGET_MS, answer.set_result):
        return await answer
    return await wasm.invoke(task, call, {"x": floats(1)}, BUDGET_MS)


@pytest.mark.parametrize("kind", ["wasm", "onnx"])
async def test_a_folder_that_was_cleared_away_costs_one_more_try(
    kind: str, wasm: WasmExecutor, onnx: OnnxExecutor, shelf: Shelf, blobs: Path
) -> None:
    """The sandbox lets processes into a folder, not into whatever has its name."""
    executor: WasmExecutor | OnnxExecutor = wasm if kind == "wasm" else onnx
    artifact, manifest = shelf.guest("echo") if kind == "wasm" else model(shelf)
    await executor.start("t", artifact, manifest, {})
    shutil.rmtree(blobs)
    (blobs / "made").mkdir(parents=True)
    data = struct.pack("<f", 1.0) * 40_000
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    large = {"x": File(Dtype.FLOAT32, (40_000,), f"sha256:{digest}", len(data))}
    first = await executor.invoke("t", "c1", large, BUDGET_MS)
    assert isinstance(first, Failed)
    assert first.retryable, first.text
    second = await executor.invoke("t", "c2", large, BUDGET_MS)
    assert isinstance(second, Done), second


async def test_what_keeps_its_process_has_its_model_until_that_goes_too(
    onnx: OnnxExecutor, shelf: Shelf, gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.executors.models.SPARE_S", 0.05)
    artifact, manifest = model(shelf)
    await onnx.start("t", artifact, manifest, {})
    worker = onnx._instances["t"].pid
    (held,) = onnx._models.loaded.values()
    await onnx.rest("t", keep=True)
    await gone(worker)
    await asyncio.sleep(0.2)
    assert list(onnx._models.loaded.values()) == [held], "longer than any spare model stays"
    stats = await onnx.stats("t")
    assert stats is not None
    assert stats.memory_bytes > 0
    result = await onnx.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert isinstance(result, Done), result
    await onnx.rest("t", keep=True)
    await onnx.rest("t")
    await gone(held.pid)
    assert not onnx._models.loaded


async def test_a_fresh_model_has_a_process_for_each_run_and_none_between(
    onnx: OnnxExecutor, shelf: Shelf, gone: Gone
) -> None:
    artifact, manifest = model(shelf)
    setup = Setup(replicas=2, fresh=True)
    await onnx.deploy(artifact, manifest, setup)
    await onnx.start("t", artifact, manifest, {}, setup)
    pids: list[int] = []
    sent = onnx._send

    def noting(run: Run, link: Link, described: list[Described], inline: list[bytes]) -> None:
        pids.extend(child.pid for child in onnx._by_task["t"])
        sent(run, link, described, inline)

    onnx._send = noting  # type: ignore[method-assign, assignment]
    calls = [onnx.invoke("t", f"c{at}", {"x": floats(at)}, BUDGET_MS) for at in range(4)]
    for at, result in enumerate(await asyncio.gather(*calls)):
        assert isinstance(result, Done), result
        assert result.outputs["y"] == floats(2 * at)
    assert len(set(pids)) == 4
    for pid in set(pids):
        await gone(pid)
    assert not onnx._by_task
    assert not onnx._models.loaded
    assert isinstance(await onnx.invoke("t", "again", {"x": floats(1)}, BUDGET_MS), Done)


async def test_a_fresh_run_that_is_given_up_while_it_loads_leaves_its_worker_free(
    onnx: OnnxExecutor, shelf: Shelf
) -> None:
    artifact, manifest = model(shelf)
    await onnx.start("t", artifact, manifest, {}, Setup(fresh=True))
    late = await onnx.invoke("t", "late", {"x": floats(1)}, 1)
    assert isinstance(late, Failed)
    assert late.code is FailureCode.DEADLINE
    call = asyncio.create_task(onnx.invoke("t", "cancelled", {"x": floats(1)}, BUDGET_MS))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert isinstance(await onnx.invoke("t", "next", {"x": floats(1)}, BUDGET_MS), Done)
