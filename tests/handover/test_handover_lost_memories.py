"""A node is lost with what its task remembered, and another cell goes on with the checkpoint."""

from typing import Any

import pytest
from cells_bench import CellsBench, store_of
from tests_following import EDGE, EDGES, following_bench
from tests_support import manifest, task_spec

from controller.anchor.checkpoints import (
    CHECKPOINTS_MAX,
    CHECKPOINTS_MAX_BYTES,
    DURABLE_BURST_BYTES,
    DURABLE_BYTES_PER_S,
    DURABLE_MS,
    NO_ROOM,
    RECORD_BYTES,
    Checkpoints,
)
from controller.decider import Linked, Received
from controller.desk import Desk
from controller.records import CheckpointRecord, TaskState
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


def test_what_is_durable_bears_that_anchor_scheduler_and_node_are_lost_together() -> None:
    bench = bench_with()
    bench.passes(DURABLE_MS, *bench.nodes)
    bench.memory["edge-a", EDGE] = b"one, and what nobody has written yet"
    bench.passes(2 * CHECKPOINT_MS, *bench.nodes)
    bench.dead.add("edge-a")
    for role in ("ta", "ts-a"):
        bench.start(role)
    for ts in bench.schedulers:
        bench.feed("ta", Linked(ts))
        bench.feed(ts, Linked("ta"))
    bench.passes(2 * LONG_MS, "edge-b")
    told = goes_on_with(bench, b"one")
    age_ms = int(told.partition("it goes on with what was known ")[2].split()[0])
    # The restart is in it, as is the wait for schedulers to speak and for the node.
    assert 2 * CHECKPOINT_MS < age_ms <= 2 * CHECKPOINT_MS + 12_000


def test_a_checkpoint_goes_with_its_task() -> None:
    bench = bench_with()
    assert ("checkpoint", EDGE) in bench.store
    bench.feed("ta", Received("namo", 0, 0, "default", "test", ServiceDelete("svc", 2)))
    assert ("checkpoint", EDGE) not in bench.store


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
        assert kept.take(said(f"t{number}", 1))
    assert (kept.of("t0"), kept.of("t1") is None) == (None, False)
    kept = Checkpoints(desk)
    count = CHECKPOINTS_MAX_BYTES // MEMORY_INLINE_BYTES
    for number in range(count):
        assert kept.take(said(f"t{number}", MEMORY_INLINE_BYTES))
    assert not kept.take(said(f"t{count}", MEMORY_INLINE_BYTES))
    assert kept.of(f"t{count}") is None
    kept.forget("t0")
    assert kept.take(said(f"t{count}", MEMORY_INLINE_BYTES))
    assert kept.of(f"t{count}") is not None


def test_one_that_has_no_room_leaves_the_older_one_marked(desk: Desk) -> None:
    kept = Checkpoints(desk)
    kept.take(said("t", 1))
    for number in range(CHECKPOINTS_MAX_BYTES // MEMORY_INLINE_BYTES):
        kept.take(said(f"t{number}", MEMORY_INLINE_BYTES))
    room = CHECKPOINTS_MAX_BYTES % MEMORY_INLINE_BYTES
    desk.begin(11_000)
    grown = said("t", room + 1, digest="sha256:" + "b" * 64)
    assert not kept.take(grown)
    older = kept.of("t")
    assert older is not None
    assert (older.data, older.checkpoint_age_ms, older.reason) == (bytes(1), 1000, NO_ROOM)
    kept.forget("t0")
    assert kept.take(grown)
    newest = kept.of("t")
    assert newest is not None
    assert (newest.size_bytes, newest.checkpoint_age_ms, newest.reason) == (room + 1, 0, "")


def written(desk: Desk) -> list[str]:
    return [one.key for one in desk.output.learnt]


def test_a_checkpoint_is_written_at_once_and_then_seldom(desk: Desk) -> None:
    kept = Checkpoints(desk)
    for number in range(2 * DURABLE_MS // 1000):
        desk.begin(10_000 + 1000 * number)
        kept.take(said("t", 4, digest=f"sha256:{number:064}"))
        assert written(desk) == (["t"] if 1000 * number % DURABLE_MS == 0 else [])
    # Who has heard the last change in between is told again that it is so, and writes it then.
    desk.begin(10_000 + 2 * DURABLE_MS)
    kept.take(said("t", 4, data=None, digest=f"sha256:{number:064}"))
    assert written(desk) == ["t"]
    desk.begin(10_000 + 3 * DURABLE_MS)
    kept.take(said("t", 4, data=None, digest=f"sha256:{number:064}"))
    assert written(desk) == []


def test_more_than_may_be_written_stands_in_line(desk: Desk) -> None:
    kept = Checkpoints(desk)
    tasks = [f"t{number}" for number in range(40)]
    for task in tasks:
        kept.take(said(task, MEMORY_INLINE_BYTES))
    each = MEMORY_INLINE_BYTES + RECORD_BYTES
    first = written(desk)
    assert first == tasks[: -(-DURABLE_BURST_BYTES // each)]
    kept.forget(tasks[len(first)])
    told, seconds = list(first), 0
    while len(told) < len(tasks) - 1:
        seconds += 1
        desk.begin(10_000 + 1000 * seconds)
        kept.take(said("t0", MEMORY_INLINE_BYTES, data=None))
        told += written(desk)
    assert told == [one for one in tasks if one != tasks[len(first)]]
    assert len(told) * each <= DURABLE_BURST_BYTES + seconds * DURABLE_BYTES_PER_S + each


def test_a_durable_checkpoint_is_taken_in_again_with_its_age() -> None:
    desk = Desk("ta", 5_000_000)
    desk.begin(10_000)
    kept = Checkpoints(desk)
    kept.take(said("t", 4, checkpoint_age_ms=300))
    kept.take(said("u", 4))
    records = [one.value for one in desk.output.learnt]
    # Another life of the machine: its clock begins anew.
    desk = Desk("ta", 5_017_000)
    desk.begin(2000)
    kept = Checkpoints(desk)
    for one in records:
        assert isinstance(one, CheckpointRecord)
        kept.restore(one)
    kept.restored({"t"})
    again = kept.of("t")
    assert again == said("t", 4, checkpoint_age_ms=9300)
    assert kept.of("u") is None
    assert [(one.key, one.value) for one in desk.output.records] == [("u", None)]


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
