"""Tasks at the edge follow the device that they serve, and what they remember comes along."""

import pytest
from cells_bench import CellsBench
from tests_following import EDGE, EDGES, OWN, following_bench
from tests_support import manifest, task_spec

from controller.anchor.following import SETTLE_MS
from controller.anchor.lifecycle import SERVING
from controller.decider import Abroad, Linked
from controller.handover_records import HandoverState
from controller.records import TaskState
from protocols.manifest import HostFunction, Limits
from protocols.messages import (
    Assign,
    CellReport,
    Escalation,
    MemoryState,
    QualityReport,
    Release,
    Status,
)
from protocols.messages.hierarchy import Attempt
from protocols.messages.invocation import REQUEST
from protocols.messages.quality import TaskSample
from protocols.messages.task import MEMORY_INLINE_BYTES, InstanceState


@pytest.fixture
def bench() -> CellsBench:
    return following_bench()


def served(bench: CellsBench, cell: str) -> tuple[str, str]:
    plan = bench.route(cell).plan
    [step] = [one for one in plan.steps if one.task == EDGE]
    return step.node, step.cell


def test_a_task_follows_its_device_with_all_that_it_remembers(bench: CellsBench) -> None:
    bench.hand_over("n", "b")
    bench.moves("n", "b")
    # It is prepared with a first copy, and goes on where it is.
    assert bench.awaits["edge-b", EDGE].node == "edge-a"
    assert bench.memory["edge-b", EDGE] == b"one"
    assert (served(bench, "a"), served(bench, "b")) == (("edge-a", "a"), ("edge-a", "a"))
    bench.memory["edge-a", EDGE] = b"one, two"
    bench.passes(SETTLE_MS + 200, "n", *EDGES)
    task = bench.task(EDGE)
    assert (task.scheduler, task.node, task.leaving, task.memory) == ("ts-b", "edge-b", None, None)
    assert bench.memory["edge-b", EDGE] == b"one, two"
    assert (served(bench, "a"), served(bench, "b")) == (("edge-b", "b"), ("edge-b", ""))
    assert EDGE not in bench.held["edge-a"]
    [*_, last] = bench.told("edge-b", MemoryState)
    # Only what was new was moved while requests waited.
    assert (last.final, last.data, last.after_bytes) == (True, b", two", 3)
    # A checkpoint is for what is lost.
    assert not [one for one in bench.said("ta", MemoryState) if one.checkpoint_age_ms is not None]
    [record] = bench.handovers("n")
    assert record.state is HandoverState.COMPLETED
    assert record.edge == {EDGE: task.following}
    assert task.following.startswith("follows to edge-b: a request takes ")


def test_what_is_too_large_for_a_message_is_fetched_from_the_store_where_it_lies(
    bench: CellsBench,
) -> None:
    whole = b"." * (MEMORY_INLINE_BYTES + 1)
    bench.memory["edge-a", EDGE] = whole
    bench.moves("n", "b")
    bench.passes(SETTLE_MS + 500, "n", *EDGES)
    assert (bench.task(EDGE).node, bench.task(EDGE).memory) == ("edge-b", None)
    assert bench.memory["edge-b", EDGE] == whole
    [copy, *_] = bench.told("edge-b", MemoryState)
    assert (copy.data, copy.store_urls) == (None, ("http://a",))


def test_how_far_the_cells_are_is_timed_and_told_also_to_an_anchor_that_begins_anew() -> None:
    bench = following_bench()
    for answer_ms in (None, 0.2, 0.3, 90.0):
        bench.feed("ts-b", Abroad({"a": answer_ms, "elsewhere": 1.0}))
    # The first one, and no more: the longest is one of a gateway that was busy.
    reports = bench.said("ts-b", CellReport)
    assert [one.ways[0].round_trip_ms for one in reports if len(one.ways) > 1] == [0.2]
    bench.start("ta")
    for edge in EDGES:
        bench.born(edge, bench.nodes[edge][0])
    bench.feed("ta", Linked("ts-b"))
    bench.feed("ts-b", Linked("ta"))
    bench.feed("ts-a", Linked("ta"))
    bench.born("n", "a")
    bench.passes(1000, "n", *EDGES)
    bench.moves("n", "b")
    bench.passes(SETTLE_MS + 200, "n", *EDGES)
    task = bench.task(EDGE)
    assert task.node == "edge-a"
    assert task.following.endswith("ms in b (0.2 ms between them, measured)")
    # A cell that is out of reach is as far as is assumed.
    bench.feed("ts-b", Abroad({}))
    assert bench.said("ts-b", CellReport)[-1].ways == ()


def test_a_device_that_goes_back_finds_its_instance_as_it_was(bench: CellsBench) -> None:
    assigned = len(bench.told("edge-a", Assign))
    for _ in range(2):
        bench.moves("n", "b")
        bench.passes(300, "n", *EDGES)
        bench.moves("n", "a")
        bench.passes(300, "n", *EDGES)
    task = bench.task(EDGE)
    assert (task.scheduler, task.node, task.leaving, task.memory) == ("ts-a", "edge-a", None, None)
    assert served(bench, "a")[0] == "edge-a"
    assert len(bench.told("edge-a", Assign)) == assigned
    assert not bench.told("edge-a", Release)
    assert EDGE not in bench.held["edge-b"]
    bench.passes(SETTLE_MS + 200, "n", *EDGES)
    assert bench.task(EDGE).node == "edge-a"


def test_a_task_may_not_leave_what_no_node_there_takes() -> None:
    bench = following_bench(nodes=("edge-a", "edge-x"))
    bench.moves("n", "b")
    bench.passes(SETTLE_MS + 200, "n", *EDGES)
    task = bench.task(EDGE)
    assert (task.scheduler, task.node) == ("ts-a", "edge-a")
    assert task.following.startswith("stays on edge-a: ")
    assert bench.handovers("n")[0].edge[EDGE] == task.following
    assert served(bench, "b") == ("edge-a", "a")


def test_a_task_that_follows_waits_for_no_other_task_of_its_service(bench: CellsBench) -> None:
    bench.moves("n", "b")
    bench.passes(SETTLE_MS - 500, "n", *EDGES)
    # The device's own task fails where it has come: that is nothing to wait for at the edge.
    for _ in range(4):
        held = bench.held["n"][OWN]
        bench.say("n", Status(1, OWN, held.epoch, InstanceState.FAILED, generation=held.generation))
        bench.passes(300, "n", *EDGES)
    assert bench.task(OWN).state not in SERVING
    bench.passes(SETTLE_MS, "n", *EDGES)
    assert (bench.task(EDGE).leaving, bench.task(EDGE).node) == (None, "edge-b")


def test_who_has_prepared_in_vain_is_told_where_the_device_is() -> None:
    bench = following_bench("a", "b", "c")
    for cell in ("b", "a"):
        bench.moves("n", cell)
        bench.passes(300, "n", *EDGES)
    bench.hand_over("n", "b")
    assert bench.task(EDGE).scheduler == "ts-b"
    # Some task of the service is handed on meanwhile.
    bench.roles["ta"].elsewheres.moved("svc", "ts-a", "test")
    bench.moves("n", "c")
    bench.passes(300, "n", *EDGES)
    for cell in ("a", "b"):
        assert [one.cell for one in bench.route(cell).plan.steps if one.node == "n"] == ["c"], cell


def test_a_device_that_was_lost_is_found_in_another_cell_though_its_edge_stays() -> None:
    bench = following_bench(nodes=("edge-a",))
    bench.passes(30_000, *EDGES)
    assert bench.task(OWN).state is TaskState.WAITING
    bench.moves("n", "b", attached=False)
    bench.passes(300, "n", *EDGES)
    own, edge = bench.task(OWN), bench.task(EDGE)
    assert (own.state, own.scheduler, own.node) == (TaskState.RUNNING, "ts-b", "n")
    assert (edge.scheduler, edge.node) == ("ts-a", "edge-a")


def test_a_node_lost_in_one_cell_has_not_failed_in_another() -> None:
    bench = following_bench()
    bench.cut = {"ts-a"}
    bench.moves("n", "b", attached=False)
    tried = (Attempt("run on n", "lost"),)
    lost = Escalation("1", OWN, 1, "no node of the envelope can run the task", tried)
    bench.hear_at_anchor("ts-a", lost)
    assert not bench.roles["ta"].placing.search.failed.get(OWN)


def asked(bench: CellsBench, seconds: int, **per_s: int) -> None:
    """Have the clients of cells ask for the service, wherever it is served."""
    for second in range(seconds):
        task = bench.task(EDGE)
        sample = TaskSample(EDGE, task.epoch, done=sum(per_s.values()))
        bench.say(task.node, QualityReport(second, 1000, (sample,)))
        for cell in bench.cells:
            away = task.scheduler != f"ts-{cell}" and per_s.get(cell, 0) > 0
            bench.feed(f"ts-{cell}", Abroad({}, {"svc": per_s[cell]} if away else {}))
        bench.passes(1000, *EDGES)


@pytest.fixture
def alone() -> CellsBench:
    """Give a service that serves no device: two edge nodes may have it."""
    bench = CellsBench()
    for cell in bench.cells:
        bench.born(f"edge-{cell}", cell)
    counter = manifest(functions=(HostFunction.MEMORY,), limits=Limits(state_bytes=1 << 16))
    edge = task_spec(EDGE, REQUEST, manifest=counter, nodes=EDGES)
    bench.order("edge", tasks=(edge,), spares=0)
    bench.passes(1000, *EDGES)
    bench.memory["edge-a", EDGE] = b"one"
    assert bench.task(EDGE).node == "edge-a"
    return bench


def test_a_service_without_a_device_follows_its_clients(alone: CellsBench) -> None:
    asked(alone, 4, b=20)
    assert alone.task(EDGE).leaving is None, "it has to last"
    asked(alone, 20, b=20)
    task = alone.task(EDGE)
    assert (task.scheduler, task.node, task.leaving, task.memory) == ("ts-b", "edge-b", None, None)
    assert alone.memory["edge-b", EDGE] == b"one"
    assert task.following.startswith("follows to edge-b: a request takes 10.0 ms from a, 0.0 ms ")
    # Who has asked where it was goes on from there.
    assert (served(alone, "a"), served(alone, "b")) == (("edge-b", "b"), ("edge-b", ""))
    asked(alone, 40, b=20, a=15)
    assert alone.task(EDGE).node == "edge-b", "most of them are there"


def test_a_service_stays_where_most_of_its_clients_are(alone: CellsBench) -> None:
    asked(alone, 20, a=30, b=20)
    task = alone.task(EDGE)
    assert (task.node, task.leaving) == ("edge-a", None)
    assert task.following.startswith("stays on edge-a: a request takes 4.0 ms from a, 6.0 ms in b")
