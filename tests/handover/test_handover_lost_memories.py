"""A node is lost with what its task remembered, and another cell goes on with the checkpoint."""

from typing import Any

import pytest
from cells_bench import CellsBench, store_of
from tests_following import EDGE, EDGES, following_bench
from tests_support import manifest, task_spec

from controller.anchor.checkpoints import CHECKPOINTS_MAX, CHECKPOINTS_MAX_BYTES, Checkpoints
from controller.decider import Linked, Received
from controller.desk import Desk
from controller.records import TaskState
from controller.scheduler.memories import WAIT_MAX_MS
from protocols.manifest import HostFunction, Limits
from protocols.messages import MemoryState, ServiceDelete, TaskEvent
from protocols.messages.invocation import REQUEST
from protocols.messages.task import MEMORY_INLINE_BYTES, LostPolicy

CHECKPOINT_MS = 1000
LONG_MS = 30_000
"""Enough for a loss to be seen, its task to be placed, and its node to be waited for."""


def bench_with(*nodes: str, **policy: Any) -> CellsBench:
    """Give a service of one task that remembers, on the first of these nodes."""
    bench = CellsBench()
    for node in nodes or EDGES:
        bench.born(node, node.removeprefix("edge-"))
    order(bench, **policy)
    bench.memory["edge-a", EDGE] = b"one"
    bench.passes(2 * CHECKPOINT_MS, *bench.nodes)
    return bench


def order(bench: CellsBench, **policy: Any) -> None:
    counter = manifest(functions=(HostFunction.MEMORY,), limits=Limits(state_bytes=1 << 20))
    kept = LostPolicy(**{"checkpoint_ms": CHECKPOINT_MS, **policy})
    edge = task_spec(EDGE, REQUEST, manifest=counter, nodes=EDGES, policy=kept)
    bench.order("edge", tasks=(edge,), spares=0)
    bench.passes(1000, *bench.nodes)
    assert bench.task(EDGE).node == "edge-a"


def dies(bench: CellsBench) -> None:
    """Have the node with the memory die; time passes."""
    bench.dead.add("edge-a")
    bench.passes(LONG_MS, *(bench.nodes.keys() - bench.dead))


def lost(bench: CellsBench) -> list[str]:
    """Return what schedulers have told of memories that were lost."""
    said = [one for ts in bench.schedulers for one in bench.said(ts, TaskEvent)]
    return [one.detail for one in said if one.event == "memory-lost"]


def serves_there(bench: CellsBench) -> bool:
    task = bench.task(EDGE)
    there = (task.scheduler, task.node, task.memory) == ("ts-b", "edge-b", None)
    return there and ("edge-b", EDGE) not in bench.awaits and task.state is TaskState.RUNNING


def goes_on_with(bench: CellsBench, memory: bytes | None) -> str:
    """Hold that the task serves in the other cell with this; return what is told of it."""
    assert serves_there(bench), bench.task(EDGE)
    assert bench.memory.get(("edge-b", EDGE)) == memory
    [told] = lost(bench)
    return told


def test_the_checkpoint_goes_to_the_other_cell() -> None:
    bench = bench_with()
    bench.memory["edge-a", EDGE] = b"one, and what nobody has heard"
    dies(bench)
    told = goes_on_with(bench, b"one")
    age_ms = int(told.partition("it goes on with what was known ")[2].split()[0])
    assert told.startswith("edge-a is lost with what it remembered; ")
    # A checkpoint's time, until the loss was seen, and until its node was waited for there.
    assert 0 < age_ms <= CHECKPOINT_MS + 12_000
    said = [one for one in bench.said("ta", MemoryState, "ts-b") if one.data is not None]
    assert len(said) == 1, "its bytes are said once"


def test_it_goes_there_also_when_the_task_had_to_wait_for_a_node() -> None:
    bench = bench_with("edge-a")
    dies(bench)
    assert bench.task(EDGE).state is TaskState.WAITING
    bench.born("edge-b", "b")
    bench.passes(LONG_MS, "edge-b")
    assert "it goes on with what was known" in goes_on_with(bench, b"one")


def test_an_anchor_that_begins_anew_is_told_again() -> None:
    bench = bench_with()
    bench.start("ta")
    for ts in bench.schedulers:
        bench.feed("ta", Linked(ts))
        bench.feed(ts, Linked("ta"))
    bench.passes(500, "edge-b")
    dies(bench)
    goes_on_with(bench, b"one")


def test_a_scheduler_that_begins_anew_has_not_to_remember() -> None:
    bench = bench_with("edge-a")
    dies(bench)
    bench.start("ts-a")
    bench.feed("ts-a", Linked("ta"))
    bench.born("edge-b", "b")
    bench.passes(2 * LONG_MS, "edge-b")
    goes_on_with(bench, b"one")


def test_a_scheduler_that_is_silent_with_its_node_is_waited_for_within_a_bound() -> None:
    bench = following_bench(policy=LostPolicy(checkpoint_ms=CHECKPOINT_MS))
    bench.passes(2 * CHECKPOINT_MS, "n", *EDGES)
    bench.cut = {"ts-a"}
    bench.dead.add("edge-a")
    bench.moves("n", "b", attached=False)
    bench.passes(WAIT_MAX_MS - 5000, "n", "edge-b")
    assert ("edge-b", EDGE) in bench.awaits
    bench.passes(LONG_MS, "n", "edge-b")
    assert "it goes on with what was known" in goes_on_with(bench, b"one")


def test_a_node_that_comes_back_in_time_has_more_than_its_checkpoint() -> None:
    bench = bench_with(lost_after_ms=20_000)
    bench.dead.add("edge-a")
    for _ in range(300):
        bench.passes(100, "edge-b")
        if ("edge-b", EDGE) in bench.awaits:
            break
    assert ("edge-b", EDGE) in bench.awaits
    bench.memory["edge-a", EDGE] = b"one, two"
    bench.born("edge-a", "a")
    bench.passes(LONG_MS, *EDGES)
    assert serves_there(bench)
    assert (bench.memory["edge-b", EDGE], lost(bench)) == (b"one, two", [])


def test_without_checkpoints_it_begins_empty_and_says_so() -> None:
    bench = bench_with(checkpoint_ms=0)
    dies(bench)
    assert goes_on_with(bench, None).endswith("; nothing of it is known")


def large() -> tuple[CellsBench, bytes]:
    bench, whole = bench_with(), b"." * (MEMORY_INLINE_BYTES + 1)
    bench.memory["edge-a", EDGE] = whole
    bench.passes(2 * CHECKPOINT_MS, *bench.nodes)
    return bench, whole


def test_a_large_checkpoint_is_fetched_from_the_store_of_the_cell_that_is_left() -> None:
    bench, whole = large()
    dies(bench)
    goes_on_with(bench, whole)
    given = [one for one in bench.told("edge-b", MemoryState) if one.digest is not None]
    assert {(one.data, one.store_urls) for one in given} == {(None, (store_of("a"),))}


def test_a_large_checkpoint_whose_store_is_gone_is_waited_for_within_a_bound() -> None:
    bench, _ = large()
    bench.lying.clear()
    dies(bench)
    assert ("edge-b", EDGE) in bench.awaits
    bench.passes(WAIT_MAX_MS, "edge-b")
    told = goes_on_with(bench, None)
    assert told.endswith(" ms before, which no store has given; it begins with nothing")


def test_another_task_of_that_name_is_told_nothing_of_it() -> None:
    bench = bench_with()
    delete = ServiceDelete("svc", 2)
    bench.feed("ta", Received("namo", 0, 0, "default", "test", delete))
    del bench.memory["edge-a", EDGE]
    order(bench, checkpoint_ms=0)
    dies(bench)
    assert goes_on_with(bench, None).endswith("; nothing of it is known")


def test_only_who_has_a_task_tells_of_its_checkpoints() -> None:
    bench = bench_with()
    forged = MemoryState(EDGE, 1, "sha256:" + "a" * 64, 4, b"evil", checkpoint_age_ms=0)
    bench.hear_at_anchor("ts-b", forged)
    dies(bench)
    goes_on_with(bench, b"one")


@pytest.fixture
def desk() -> Desk:
    desk = Desk("ta")
    desk.begin(10_000)
    return desk


def said(task: str, size: int, epoch: int = 1, **changes: Any) -> MemoryState:
    state = MemoryState(task, epoch, "sha256:" + "a" * 64, size, bytes(size), checkpoint_age_ms=0)
    fields = {name: getattr(state, name) for name in state.__struct_fields__}
    return MemoryState(**(fields | changes))


def test_an_anchor_keeps_no_more_than_it_may(desk: Desk) -> None:
    kept = Checkpoints(desk)
    for number in range(CHECKPOINTS_MAX + 1):
        kept.take(said(f"t{number}", 1))
    assert (kept.of("t0"), kept.of("t1") is None) == (None, False)
    kept = Checkpoints(desk)
    count = CHECKPOINTS_MAX_BYTES // MEMORY_INLINE_BYTES
    for number in range(count + 1):
        kept.take(said(f"t{number}", MEMORY_INLINE_BYTES))
    assert kept.of(f"t{count}") is None
    kept.forget("t0")
    kept.take(said(f"t{count}", MEMORY_INLINE_BYTES))
    assert kept.of(f"t{count}") is not None


def test_a_checkpoint_ages_until_it_is_heard_again(desk: Desk) -> None:
    kept = Checkpoints(desk)
    kept.take(said("t", 4, checkpoint_age_ms=300))
    desk.begin(11_000)
    assert getattr(kept.of("t"), "checkpoint_age_ms", 0) == 1300
    kept.take(said("t", 4, data=None))
    again = kept.of("t")
    assert again is not None
    assert (again.checkpoint_age_ms, again.data) == (0, bytes(4))
    # Neither what is older counts, nor the age of something else.
    kept.take(said("t", 5, epoch=0))
    kept.take(said("t", 4, data=None, digest="sha256:" + "b" * 64))
    assert kept.of("t") == again
