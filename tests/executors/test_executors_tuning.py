"""Workers side by side, threads, providers and shares of the machine, on real processes."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from executor_exits import Exits
from executor_guests import Shelf, floats
from executor_models import Model

from device_agent.executors import models
from device_agent.executors.calls import Instance, Run, Slots
from device_agent.executors.door import Bytes, Done, Setup, Value
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.share import Share, apply, share_of, usable_cores
from device_agent.executors.wasm import WasmExecutor
from protocols.manifest import Dtype, ExecutorKind, Manifest, Port
from protocols.messages.invocation import FailureCode

BUDGET_MS = 60_000
FLOAT, BOOL = 1, 9
Gone = Callable[[int], Awaitable[None]]
LONG_S = 60


@pytest.fixture
def endless(shelf: Shelf) -> tuple[Path, Manifest]:
    """Return a task that loops for as long as its input `go` is true."""
    body = Model.graph(
        [Model.node("Identity", ["again"], ["more"]), Model.node("Add", ["v", "v"], ["w"])],
        [Model.value("i", 7), Model.value("again", BOOL), Model.value("v", FLOAT, 1)],
        [Model.value("more", BOOL), Model.value("w", FLOAT, 1)],
    )
    loop = Model.node("Loop", ["", "go", "x"], ["y"], Model.subgraph("body", body))
    graph = Model.graph(
        [loop],
        [Model.value("go", BOOL), Model.value("x", FLOAT, 1)],
        [Model.value("y", FLOAT, 1)],
    )
    inputs = (Port("go", Dtype.BOOL, ()), Port("x", Dtype.FLOAT32, (1,)))
    outputs = (Port("y", Dtype.FLOAT32, (1,)),)
    return shelf.task(ExecutorKind.ONNX, Model.whole(graph), inputs, outputs)


def go(*, on: bool) -> dict[str, Value]:
    return {"go": Bytes(Dtype.BOOL, (), bytes([on])), "x": floats(1)}


async def workers(onnx: OnnxExecutor, number: int) -> list[int]:
    """Wait until a task has so many processes; return them."""
    async with asyncio.timeout(LONG_S):
        while len(onnx._by_task.get("t", ())) != number:  # noqa: ASYNC110 - a child owns the event
            await asyncio.sleep(0.01)
    return [one.pid for one in onnx._by_task["t"]]


def begin(onnx: OnnxExecutor, name: str, *, on: bool = True) -> asyncio.Task[Any]:
    return asyncio.create_task(onnx.invoke("t", name, go(on=on), BUDGET_MS))


async def test_replicas_are_processes_that_run_side_by_side(
    onnx: OnnxExecutor, endless: tuple[Path, Manifest]
) -> None:
    artifact, manifest = endless
    await onnx.start("t", artifact, manifest, {}, Setup(replicas=3))
    pids = await workers(onnx, 3)
    assert len(set(pids)) == 3
    busy = [begin(onnx, "a"), begin(onnx, "b")]
    assert isinstance(await onnx.invoke("t", "c", go(on=False), BUDGET_MS), Done)
    assert not any(one.done() for one in busy), "two loop while the third has answered"
    for name in ("a", "b"):
        await onnx.cancel("t", name)
    assert {one.code for one in await asyncio.gather(*busy)} == {FailureCode.CANCELLED}
    stats = await onnx.stats("t")
    assert stats is not None
    assert stats.remark == ""


async def test_a_tuning_adds_and_takes_processes_and_loses_no_call(
    onnx: OnnxExecutor, endless: tuple[Path, Manifest], gone: Gone, exits: Exits
) -> None:
    artifact, manifest = endless
    await onnx.start("t", artifact, manifest, {})
    (first,) = await workers(onnx, 1)
    await onnx.tune("t", Setup(replicas=2))
    pids = await workers(onnx, 2)
    assert pids[0] == first, "nothing was restarted"
    running = begin(onnx, "a")
    await asyncio.sleep(0)
    await onnx.tune("t", Setup(replicas=1))
    (left,) = await workers(onnx, 1)
    await gone(next(pid for pid in pids if pid != left))
    assert not running.done()
    await onnx.cancel("t", "a")
    assert (await running).code is FailureCode.CANCELLED
    await onnx.tune("t", Setup(replicas=2))
    await workers(onnx, 2)
    both = [begin(onnx, "b"), begin(onnx, "c")]
    await asyncio.sleep(0)
    await onnx.tune("t", Setup(replicas=1))
    for name in ("b", "c"):
        await onnx.cancel("t", name)
    await asyncio.gather(*both)
    await workers(onnx, 1)
    assert isinstance(await onnx.invoke("t", "d", go(on=False), BUDGET_MS), Done)
    assert exits == []


async def test_a_worker_that_is_killed_for_its_call_comes_back_beside_the_others(
    onnx: OnnxExecutor, endless: tuple[Path, Manifest], gone: Gone, exits: Exits
) -> None:
    artifact, manifest = endless
    await onnx.start("t", artifact, manifest, {}, Setup(replicas=2))
    pids = await workers(onnx, 2)
    stuck = asyncio.create_task(onnx.invoke("t", "a", go(on=True), 200))
    await asyncio.sleep(0)
    link = next(one for one in onnx._instances["t"].links if one.pending)
    victim = next(one for one in onnx._by_task["t"] if one.link is link)
    os.kill(victim.pid, signal.SIGSTOP)
    assert (await stuck).code is FailureCode.DEADLINE
    await gone(victim.pid)
    again = await workers(onnx, 2)
    assert set(again) != set(pids)
    results = await asyncio.gather(*(begin(onnx, str(one), on=False) for one in range(6)))
    assert all(isinstance(one, Done) for one in results)
    assert exits == []


async def test_one_that_dies_by_itself_is_told(
    onnx: OnnxExecutor, endless: tuple[Path, Manifest], exits: Exits
) -> None:
    artifact, manifest = endless
    await onnx.start("t", artifact, manifest, {}, Setup(replicas=2))
    pids = await workers(onnx, 2)
    os.kill(pids[1], signal.SIGKILL)
    assert (await exits.first())[0] == "t", "the core restarts it, within its bounds"
    await onnx.stop("t")
    assert "t" not in onnx._by_task


async def test_threads_and_provider_reach_the_child(
    onnx: OnnxExecutor, endless: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SPARE_S", 600.0)
    artifact, manifest = endless
    setup = Setup(threads=3, provider="NoSuchProvider")
    await onnx.deploy(artifact, manifest, setup)
    (spare,) = onnx._models.loaded.values()
    await onnx.start("u", artifact, manifest, {})
    assert spare in onnx._models.loaded.values(), "loaded for another setup"
    await onnx.start("t", artifact, manifest, {}, setup)
    assert spare not in onnx._models.loaded.values(), "threads are not forked"
    (plain,) = [one.pid for one in onnx._by_task["u"]]
    (pid,) = await workers(onnx, 1)
    assert threads(pid) - threads(plain) == 2, "two threads beside the one that runs"
    stats = await onnx.stats("t")
    assert stats is not None
    assert "NoSuchProvider" in stats.remark, "and it says that it runs on the CPU"
    assert onnx.provider("t")[0] == "CPUExecutionProvider"


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def test_a_share_is_cores_and_weight_of_every_thread(
    onnx: OnnxExecutor, endless: tuple[Path, Manifest]
) -> None:
    artifact, manifest = endless
    await onnx.start("t", artifact, manifest, {}, Setup(threads=2, cpu_percent=50.0))
    (pid,) = await workers(onnx, 1)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        assert len(os.sched_getaffinity(int(thread.name))) == 1
        assert os.getpriority(os.PRIO_PROCESS, int(thread.name)) == 3
    await onnx.tune("t", Setup(cpu_percent=100.0 * len(usable_cores()), replicas=1))
    stats = await onnx.stats("t")
    assert stats is not None
    assert os.sched_getaffinity(pid) == set(usable_cores())
    # Only who may raise a weight again gets it back; everyone else is told.
    assert (os.getpriority(os.PRIO_PROCESS, pid) == 0) is (stats.remark == "")


@pytest.mark.parametrize(
    ("percent", "priority", "cores", "nice"),
    [
        (0.0, 4, {0, 1, 2, 3}, 0),
        (0.0, 1, {0, 1, 2, 3}, 6),
        (0.0, 9, {0, 1, 2, 3}, -10),
        (100.0, 4, {1}, 0),
        (50.0, 4, {1}, 3),
        (10.0, 4, {1}, 10),
        (150.0, 4, {1, 2}, 1),
        (400.0, 4, {0, 1, 2, 3}, 0),
        (9000.0, 4, {0, 1, 2, 3}, 0),
        (0.1, 0, {1}, 19),
    ],
)
def test_a_share_in_numbers(percent: float, priority: int, cores: set[int], nice: int) -> None:
    assert share_of(percent, priority, [0, 1, 2, 3], 5) == Share(frozenset(cores), nice)


def test_a_process_that_has_ended_is_passed_over() -> None:
    assert apply(Share(frozenset(usable_cores()), 0), [2**22 + 1]) == ""


async def test_wasm_says_what_one_process_for_all_cannot_give(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    wasmtime = pytest.importorskip("wasmtime")
    code = (
        '(module (memory (export "memory") 1)'
        ' (func (export "tona_alloc") (param i32) (result i32) i32.const 16)'
        ' (func (export "tona_run") (param i32 i32 i32 i32) (result i32) i32.const 0))'
    )
    ports = (Port("x", Dtype.FLOAT32, (-1,)),), (Port("y", Dtype.FLOAT32, (-1,)),)
    artifact, manifest = shelf.task(ExecutorKind.WASM, bytes(wasmtime.wat2wasm(code)), *ports)
    await wasm.deploy(artifact, manifest)
    await wasm.start("t", artifact, manifest, {}, Setup(replicas=8, cpu_percent=50.0))
    stats = await wasm.stats("t")
    assert stats is not None
    assert "2 calls at once" in stats.remark
    assert "no share of their own" in stats.remark
    await wasm.tune("t", Setup(replicas=2))
    stats = await wasm.stats("t")
    assert stats is not None
    assert stats.remark == ""


async def test_slots_go_by_priority_and_deadline_and_can_be_taken_back() -> None:
    slots = Slots(1)
    assert slots.take()
    instance = Instance.__new__(Instance)
    runs = [Run(instance, priority) for priority in (8, 3, 12, 8, 8)]
    # A later step of an earlier request goes before a first one of another.
    for run, until_s in zip(runs, (20.0, 5.0, 30.0, 20.0, 10.0), strict=True):
        run.until_s = until_s
    waits = [asyncio.create_task(slots.wait(run)) for run in runs]
    await asyncio.sleep(0)
    order = []
    for _ in runs:
        slots.release()
        await asyncio.sleep(0)
        order += [run for run in runs if run.granted and run not in order]
    assert order == [runs[2], runs[4], runs[0], runs[3], runs[1]]
    await asyncio.gather(*waits)
    slots.shrink()
    slots.release()
    assert not slots.take(), "the one that came back was owed"
    slots.release()
    assert slots.take()
