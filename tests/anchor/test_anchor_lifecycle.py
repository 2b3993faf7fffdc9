"""The life of a task: deploy, start, modify, monitor, delete, and what goes wrong."""

import pytest
from anchor_bench import MEMORY, Bench, chain, said, sized
from msgspec import structs
from tests_support import INVENTORY

from controller.anchor.lifecycle import SERVING, TABLE, TaskEvent, advance
from controller.records import TaskState
from protocols.errors import TonaBug
from protocols.messages import (
    EnvelopeGrant,
    EnvelopeRevoke,
    NodeSummary,
    ServiceDelete,
    ServiceReport,
    TaskReport,
)
from protocols.messages.hierarchy import NodeState, ServiceState
from protocols.messages.task import InstanceState, LostPolicy


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    for name in ("n1", "n2", "n3"):
        bench.node(name)
    return bench


def test_every_state_answers_or_refuses_every_event() -> None:
    for state in TaskState:
        for event in TaskEvent:
            if (state, event) in TABLE:
                assert advance(state, event) in TaskState
            else:
                with pytest.raises(TonaBug, match="its story"):
                    advance(state, event, "its story")


def test_every_state_can_be_reached_and_left() -> None:
    reached, edge = {TaskState.ACCEPTED}, [TaskState.ACCEPTED]
    while edge:
        state = edge.pop()
        for (before, _), after in TABLE.items():
            if before is state and after not in reached:
                reached.add(after)
                edge.append(after)
    assert reached == set(TaskState)
    ends = {TaskState.DELETED}
    for state in set(TaskState) - ends:
        assert any(before is state and after is not state for (before, _), after in TABLE.items())


def test_whatever_serves_stays_so_while_there_is_no_other_node() -> None:
    for state in SERVING:
        assert advance(state, TaskEvent.NO_NODE) is state
        assert advance(state, TaskEvent.FAIL) is state


def test_a_task_starts_when_what_feeds_it_runs(bench: Bench) -> None:
    bench.order(1, "a", "b")
    output = bench.ready("n1", 1, task="svc.b")
    assert bench.task("svc.b").state is TaskState.READY
    assert bench.task("svc.b").reason == "is ready and waits for a"
    assert not said(output, ServiceReport)
    output = bench.ready("n1", 1, task="svc.a")
    assert {bench.task(f"svc.{one}").state for one in "ab"} == {TaskState.RUNNING}
    assert bench.task("svc.b").reason == ""
    assert said(output, ServiceReport)[-1].state is ServiceState.RUNNING


def test_running_is_only_said_of_the_generation_that_serves(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 1)
    output = bench.order(2)
    assert said(output, ServiceReport)[-1].state is ServiceState.DEPLOYING
    assert bench.task().state is TaskState.MODIFYING
    [grant] = said(output, EnvelopeGrant)
    assert grant.nodes[0] == "n1", "it keeps its node"
    bench.ready("n1", 1)
    assert bench.task().state is TaskState.MODIFYING, "the older one serves"
    output = bench.ready("n1", grant.epoch_from, generation=2)
    assert bench.task().state is TaskState.RUNNING
    assert said(output, ServiceReport)[-1].state is ServiceState.RUNNING


def test_a_modified_task_keeps_a_loaded_node(bench: Bench) -> None:
    """Another node scores better, but a change is no reason to move."""
    bench.order(spares=0)
    bench.ready("n3", 1)
    for number in range(8):
        bench.hear(chain(f"other{number}", 1, "x", tasks=_on("n3", f"other{number}.x")))
    [grant] = said(bench.order(2, spares=0), EnvelopeGrant)
    assert grant.nodes == ("n3",)


def _on(node: str, task: str) -> tuple[object, ...]:
    [spec] = chain(task.split(".", maxsplit=1)[0], 1, "x").tasks
    return (structs.replace(spec, nodes=(node,)),)


def test_a_service_is_placed_as_a_whole_or_not_at_all() -> None:
    bench = Bench()
    bench.tight("n1", 1)
    bench.tight("n2", 1)
    output = bench.order(1, "a", "b", "c", spares=0)
    assert not said(output, EnvelopeGrant)
    assert {bench.task(f"svc.{one}").state for one in "abc"} == {TaskState.WAITING}
    assert not bench.reserved()
    assert said(output, ServiceReport)[-1].state is ServiceState.WAITING
    output = bench.tight("n3", 1)
    assert len(said(output, EnvelopeGrant)) == 3
    assert {grant.nodes for grant in said(output, EnvelopeGrant)} == {("n1",), ("n2",), ("n3",)}


def test_what_runs_goes_on_when_the_whole_cannot_be_placed() -> None:
    bench = Bench()
    for name in ("n1", "n2"):
        bench.tight(name, 1)
    bench.order(1, "a", "b", spares=0)
    homes = {name: bench.task(f"svc.{name}").nodes[0] for name in "ab"}
    for name in "ab":
        bench.ready(homes[name], 1, task=f"svc.{name}")
    output = bench.order(2, "a", "b", "c", spares=0)
    assert not said(output, EnvelopeGrant)
    assert not said(output, EnvelopeRevoke)
    assert {bench.task(f"svc.{name}").state for name in "ab"} == {TaskState.MODIFYING}
    assert said(output, ServiceReport)[-1].state in (ServiceState.DEGRADED, ServiceState.WAITING)
    assert bench.reserved() == {homes["a"]: 1 << 28, homes["b"]: 1 << 28}


def test_a_spare_gives_way_to_a_service_that_has_no_room_else() -> None:
    bench = Bench()
    for name in ("n1", "n2"):
        bench.tight(name, 1)
    bench.order()
    assert len(bench.task().nodes) == 2
    output = bench.hear(chain("late", 1, "x", spares=0), "namo-main")
    assert bench.task("late.x").state is TaskState.PLACED
    assert set(bench.task().nodes) & set(bench.task("late.x").nodes) == set()
    assert {grant.spec.task for grant in said(output, EnvelopeGrant)} == {"svc.a", "late.x"}


def test_a_spare_gives_way_under_the_generation_that_has_it() -> None:
    bench = Bench()
    for name in ("n1", "n2"):
        bench.tight(name, 1)
    bench.order()
    too_large = chain("svc", 2, "a")
    tasks = (sized(too_large.tasks[0], 2 * MEMORY),)
    bench.hear(structs.replace(too_large, tasks=tasks), "namo-main")
    output = bench.hear(chain("late", 1, "x", spares=0), "namo-main")
    given = {grant.spec.task: grant for grant in said(output, EnvelopeGrant)}
    assert given.keys() == {"svc.a", "late.x"}
    assert given["svc.a"].generation == 1
    assert given["svc.a"].spec.manifest.limits.memory_bytes == MEMORY
    bench.tight("n3", 2)
    assert (bench.task().granted, bench.task().nodes) == (2, ("n3",)), "it was waited for"


def test_a_node_that_comes_back_has_room_for_what_it_ran(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 1)
    [grant] = said(bench.node("n1", NodeState.LOST), EnvelopeGrant)
    assert grant.nodes == ("n2", "n3", "n1"), "its spare first, the lost one last"
    assert bench.reserved().keys() == {"n1", "n2", "n3"}
    bench.ready("n2", grant.epoch_from)
    assert bench.task().state is TaskState.RUNNING


def test_an_older_copy_serves_again_when_its_node_is_back_first(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 1)
    bench.lost("n1", 1)
    bench.hear(TaskReport("svc.a", 1, "n2", 2, InstanceState.DEPLOYING))
    assert bench.task().state is TaskState.MOVING
    bench.ready("n1", 1)
    assert bench.task().state is TaskState.RUNNING
    assert (bench.task().node, bench.task().epoch) == ("n1", 1)


def test_a_task_that_is_not_replaced_waits_for_its_node(bench: Bench) -> None:
    bench.order(spares=0, specs={"policy": LostPolicy(replace=False)})
    bench.ready("n1", 1)
    assert not said(bench.node("n1", NodeState.LOST), EnvelopeGrant)
    bench.lost("n1", 1)
    assert bench.task().state is TaskState.MOVING
    assert not said(bench.node("n4"), EnvelopeGrant)


def test_a_suspect_node_moves_nothing(bench: Bench) -> None:
    bench.order(spares=0)
    bench.ready("n1", 1)
    assert not said(bench.node("n1", NodeState.SUSPECT), EnvelopeGrant)


def test_a_transferred_service_is_forgotten_and_runs_on(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 1)
    output = bench.hear(ServiceDelete("svc", 2, transferred=True), "namo-main")
    [revoke] = said(output, EnvelopeRevoke)
    assert revoke.generation == 1, "which a scheduler that holds the next one does not believe"
    assert not bench.ta.book.tasks
    assert not bench.reserved()
    assert said(output, ServiceReport)[-1].state is ServiceState.DELETED


def test_a_task_that_is_taken_over_stays_where_it_is(bench: Bench) -> None:
    for number in range(12):
        bench.hear(chain(f"other{number}", 1, "x", tasks=_on("n3", f"other{number}.x")))
    bench.hear(NodeSummary("n3", NodeState.ONLINE, 1, INVENTORY, tasks=("svc.a",)))
    [grant] = said(bench.order(2, epochs_above=500), EnvelopeGrant)
    assert grant.nodes[0] == "n3", "although it is the one most booked"
    assert grant.current_node == "n3"


def test_epochs_begin_above_those_of_another_anchor(bench: Bench) -> None:
    output = bench.order(3, epochs_above=7_000_000)
    [grant] = said(output, EnvelopeGrant)
    assert grant.epoch_from == 7_000_001
    assert said(output, ServiceReport)[-1].epoch_high == grant.epoch_to
