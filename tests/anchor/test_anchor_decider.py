"""The anchor as a decider: durable tasks, envelopes, escalation, restart."""

import pytest
from anchor_bench import Bench, said, sized
from msgspec import structs
from tests_support import task_spec

from controller.anchor import stories
from controller.anchor.stories import FIRST_KEPT
from controller.decider import Fired, Output
from controller.records import StoryRecord, TaskState
from protocols.base import EPOCH_LIMIT
from protocols.messages import (
    AnchorWelcome,
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    SchedulerHello,
    ServiceDelete,
    ServiceReport,
    TaskReport,
)
from protocols.messages.hierarchy import Attempt, NodeState, ServiceState
from protocols.messages.task import InstanceState


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    for name in ("n1", "n2", "n3"):
        bench.node(name)
    return bench


def test_an_order_becomes_a_durable_task_with_an_envelope(bench: Bench) -> None:
    output = bench.order()
    [grant] = said(output, EnvelopeGrant)
    assert grant.nodes == ("n1", "n2")
    assert (grant.epoch_from, grant.epoch_to) == (1, 32)
    assert bench.task().epoch_high == 32
    assert ("task", "svc.a") in bench.store
    assert said(output, ServiceReport)[-1].state is ServiceState.DEPLOYING
    [report] = said(bench.ready("n1", 1), ServiceReport)
    assert report.state is ServiceState.RUNNING


def test_the_same_order_again_changes_nothing(bench: Bench) -> None:
    bench.order()
    output = bench.order()
    assert not output.records
    assert not said(output, EnvelopeGrant)
    assert said(output, ServiceReport), "but it is answered"


def test_without_a_node_the_task_waits_and_namo_hears_why() -> None:
    bench = Bench()
    output = bench.order()
    assert bench.task().state is TaskState.WAITING
    [escalation] = said(output, Escalation)
    assert escalation.problem == "no node has joined yet"
    output = bench.node("n1")
    assert said(output, EnvelopeGrant)[0].nodes == ("n1",)


def test_leases_never_overlap_even_across_restarts(bench: Bench) -> None:
    seen: list[range] = []
    for _ in range(3):
        for grant in said(bench.order(), EnvelopeGrant) + said(
            bench.hear(SchedulerHello("ts-main", 1)), EnvelopeGrant
        ):
            lease = range(grant.epoch_from, grant.epoch_to + 1)
            assert not any(set(lease) & set(old) for old in seen)
            seen.append(lease)
        bench.restart()
        bench.node("n1")
    assert len(seen) >= 3


def test_a_restarted_anchor_knows_its_tasks(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 1)
    stories = bench.ta.book.stories._numbers["svc.a"]
    bench.restart()
    assert bench.task().state is TaskState.RUNNING
    assert bench.ta.book.stories._numbers["svc.a"] == stories
    output = bench.hear(SchedulerHello("ts-main", 2))
    [grant] = said(output, EnvelopeGrant)
    assert (grant.current_node, grant.current_epoch) == ("n1", 1)
    assert said(output, AnchorWelcome)[0].grants == 1


def test_a_lost_spare_is_topped_up_without_touching_the_task(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 1)
    [grant] = said(bench.node("n2", NodeState.LOST), EnvelopeGrant)
    assert grant.nodes == ("n1", "n3")
    assert bench.task().state is TaskState.RUNNING


def test_an_escalation_gets_other_nodes_or_a_refusal(bench: Bench) -> None:
    bench.order(spares=0)
    attempts = (Attempt("run on n1", "no memory"),)
    output = bench.hear(Escalation("e1", "svc.a", 1, "no node of the envelope", attempts))
    assert said(output, EscalationAnswer)[0].granted
    assert said(output, EnvelopeGrant)[0].nodes == ("n2",)
    everywhere = tuple(Attempt(f"run on n{at}", "no memory") for at in (1, 2, 3))
    output = bench.hear(Escalation("e2", "svc.a", 1, "no node of the envelope", everywhere))
    [answer] = said(output, EscalationAnswer)
    assert not answer.granted
    assert bench.task().state is TaskState.FAILED
    [timer] = output.timers
    bench.now_ms = timer.at_ms or 0
    assert said(bench.feed(Fired(timer.key)), EnvelopeGrant), "it is tried again by itself"


def test_a_stale_report_is_not_believed(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 5)
    bench.ready("n2", 4)
    assert (bench.task().node, bench.task().epoch) == ("n1", 5)
    bench.ready("n3", 99)
    assert bench.task().epoch == 5, "an epoch that was never leased"
    assert bench.ta.counters["stale_report"] == 2


def test_a_new_generation_keeps_what_runs_and_ends_what_is_gone(bench: Bench) -> None:
    bench.order(1, "a", "b")
    bench.ready("n1", 1)
    output = bench.order(2, "a", "c")
    assert [one.task for one in said(output, EnvelopeRevoke)] == ["svc.b"]
    assert {one.spec.task for one in said(output, EnvelopeGrant)} == {"svc.a", "svc.c"}
    assert bench.task().nodes[0] == "n1"
    assert ("task", "svc.b") not in bench.store


def test_a_delete_leaves_only_the_story(bench: Bench) -> None:
    bench.order()
    output = bench.hear(ServiceDelete("svc", 1), "namo-main")
    assert said(output, EnvelopeRevoke)
    assert said(output, ServiceReport)[-1].state is ServiceState.DELETED
    assert {kind for kind, _ in bench.store} == {"story"}


def test_the_story_is_bounded_and_ordered(bench: Bench) -> None:
    bench.order()
    for number in range(200):
        bench.ready("n1", 1)
        bench.hear(TaskReport("svc.a", 1, "n1", 1, InstanceState.DEPLOYING, f"restart {number}"))
    entries = [one.value for (kind, _), one in bench.store.items() if kind == "story"]
    numbers = sorted(one.number for one in entries if isinstance(one, StoryRecord))
    assert len(numbers) == 64
    assert numbers[:FIRST_KEPT] == list(range(FIRST_KEPT)), "how it began is kept"
    rest = 64 - FIRST_KEPT
    assert numbers[FIRST_KEPT:] == list(range(numbers[-1] + 1 - rest, numbers[-1] + 1))


def failed(*nodes: str, number: str = "e") -> Escalation:
    attempts = tuple(Attempt(f"run on {node}", "no memory") for node in nodes)
    return Escalation(number, "svc.a", 1, "no node of the envelope can run the task", attempts)


def fired(bench: Bench, output: Output) -> Output:
    [timer] = [one for one in output.timers if one.key.startswith("retry/")]
    bench.now_ms = timer.at_ms or 0
    return bench.feed(Fired(timer.key))


def test_a_task_does_not_stand_in_its_own_way() -> None:
    """The room that a task has reserved on a node is room for that task."""
    bench = Bench()
    bench.tight("n1")
    bench.order()
    waits = bench.hear(failed("n1"))
    assert bench.task().state is TaskState.FAILED
    assert [one.nodes for one in said(fired(bench, waits), EnvelopeGrant)] == [("n1",)]


def test_a_new_generation_that_fits_nowhere_is_placed_when_a_node_comes() -> None:
    bench = Bench()
    bench.tight("n1")
    bench.order(spares=0)
    bench.ready("n1", 1)
    large = sized(task_spec(), 3 << 30)
    order = structs.replace(bench.ta.book.services["svc"].order, generation=2, tasks=(large,))
    output = bench.hear(order, "namo-main")
    assert not said(output, EnvelopeGrant), "the node of the old one is too small"
    assert bench.task().state is TaskState.MODIFYING
    assert said(output, ServiceReport)[-1].state is ServiceState.DEGRADED
    [grant] = said(bench.node("n2"), EnvelopeGrant)
    assert grant.nodes == ("n2",)


def test_escalations_do_not_put_the_retry_off(bench: Bench) -> None:
    bench.order(spares=0)
    due = bench.hear(failed("n1", "n2", "n3")).timers
    for number in range(5):
        bench.now_ms += 500
        due += bench.hear(failed("n1", "n2", "n3", number=f"e{number}")).timers
    [timer] = due
    bench.now_ms = timer.at_ms or 0
    assert said(bench.feed(Fired(timer.key)), EnvelopeGrant)


def test_a_waiting_task_is_tried_again_and_again() -> None:
    bench = Bench()
    output = bench.order()
    for _ in range(20):
        began_ms = bench.now_ms
        output = fired(bench, output)
        assert 0 < bench.now_ms - began_ms <= 60_000


def test_a_waiting_task_is_tried_again_after_a_restart() -> None:
    bench = Bench()
    bench.order()
    bench.restart()
    assert fired(bench, bench.restart()).timers


def test_room_that_is_given_back_goes_to_who_waits() -> None:
    bench = Bench()
    bench.tight("n1")
    bench.order()
    other = structs.replace(
        bench.ta.book.services["svc"].order, service="late", tasks=(task_spec("late.a"),)
    )
    bench.hear(other, "namo-main")
    assert bench.task("late.a").state is TaskState.WAITING
    output = bench.hear(ServiceDelete("svc", 1), "namo-main")
    assert [one.spec.task for one in said(output, EnvelopeGrant)] == ["late.a"]


def test_a_late_delete_does_not_end_a_newer_generation(bench: Bench) -> None:
    bench.order(2)
    output = bench.hear(ServiceDelete("svc", 1), "namo-main")
    assert not said(output, EnvelopeRevoke)
    assert [one.generation for one in said(output, ServiceReport)] == [2]


def test_a_task_that_is_ordered_anew_is_not_taken_for_its_former_life(bench: Bench) -> None:
    """Nodes remember the epochs that are over."""
    [before] = said(bench.order(), EnvelopeGrant)
    bench.hear(ServiceDelete("svc", 1), "namo-main")
    [after] = said(bench.order(2), EnvelopeGrant)
    assert after.epoch_from > before.epoch_to


def test_a_lease_begins_above_what_nodes_have_seen(bench: Bench) -> None:
    bench.order()
    seen = Escalation("e", "svc.a", 1, "the leased epochs are used up", epoch_seen=500)
    output = bench.hear(seen)
    assert [one.epoch_from for one in said(output, EnvelopeGrant)] == [501]
    assert said(output, EscalationAnswer)[0].granted
    absurd = structs.replace(seen, epoch_seen=EPOCH_LIMIT)
    bench.hear(absurd)
    assert bench.task().epoch_high < 1000


def test_stories_of_what_is_over_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "MAX_OVER", 3)
    for number in range(20):
        bench.order(2 * number + 1, f"t{number}")
        bench.hear(ServiceDelete("svc", 2 * number + 1), "namo-main")
        if number == 10:
            bench.restart()
    kept = {key.split("/")[0] for kind, key in bench.store if kind == "story"}
    assert kept == {"svc.t17", "svc.t18", "svc.t19"}
    assert set(bench.ta.book.stories._numbers) == set(bench.ta.book.stories._last) == kept
