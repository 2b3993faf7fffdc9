"""Escalations: another decomposition, another anchor, a refusal; and no oscillation."""

from typing import Any

import pytest
from namo_bench import Delete, Host, a_service, bodies, chain, step, summary

from controller.decider import Output, ToRole
from controller.namo.books import RETRY_CAP_MS
from controller.namo.decider import Namo
from controller.namo.positions import CALM_MS, COOLDOWN_MS, EPOCH_MARGIN, MAX_TRIES
from controller.records import EPOCHS_OF_GENERATION
from protocols.messages import (
    AnchorMoved,
    Escalation,
    EscalationAnswer,
    ServiceDelete,
    ServiceOrder,
)
from protocols.messages.hierarchy import ServiceState

ALTERNATIVE: dict[str, Any] = {
    "name": "small",
    "tasks": [step("quick", expected_ms=1)],
    "outputs": {"y": "quick.y"},
}
SLOW: dict[str, Any] = {
    "indicator": "latency_ms",
    "target": 50.0,
    "measured": 400.0,
    "broken": True,
}


def served(**more: Any) -> Host:
    """Return a host whose service `a` runs, and has an alternative."""
    host = Host()
    host.hear(summary())
    host.submit(a_service(chain("p", "q"), alternatives=[ALTERNATIVE], **more))
    host.runs(epoch_high=40)
    return host


def escalate(host: Host, number: str = "e1", task: str = "", **more: Any) -> Output:
    record = host.service()
    task = task or record.order.tasks[0].task
    said = Escalation(number, task, record.order.generation, "too slow", **more)
    return host.hear(said, record.anchor)


def answer_of(out: Output) -> EscalationAnswer:
    (found,) = [body for body in bodies(out) if isinstance(body, EscalationAnswer)]
    return found


def order_in(out: Output) -> ServiceOrder:
    (found,) = [body for body in bodies(out) if isinstance(body, ServiceOrder)]
    return found


def test_another_decomposition_is_ordered_and_the_anchor_told() -> None:
    host = served()
    assert host.service().order.decomposition == "small+spread"
    out = escalate(host, **SLOW)
    made = order_in(out)
    assert (made.decomposition, made.generation) == ("main+spread", 2)
    assert answer_of(out).granted
    assert answer_of(out).reason == (
        "generation 2: small+spread at ta-main did not do: main+spread at ta-main is ordered"
    )
    assert host.service().state is ServiceState.DEPLOYING
    assert host.service().candidates[0].decomposition == "main+spread"
    assert made.epochs_above == 0


def test_a_change_has_time_to_help_and_no_candidate_is_tried_twice() -> None:
    host = served()
    escalate(host, **SLOW)
    soon = answer_of(escalate(host, "e2", **SLOW))
    assert not soon.granted
    assert "it has 30 s to show whether that helps" in soon.reason
    host.runs()
    host.pass_time(COOLDOWN_MS)
    third = escalate(host, "e3", **SLOW)
    assert order_in(third).decomposition == "main+fused"
    host.runs()
    host.pass_time(COOLDOWN_MS)
    last = answer_of(escalate(host, "e4", **SLOW))
    assert not last.granted
    assert "small+spread at ta-main: tried already" in last.reason


def test_tries_are_bounded_however_many_candidates_there_are() -> None:
    host = Host()
    ways = [
        {**ALTERNATIVE, "name": f"w{at}", "tasks": [step("quick", expected_ms=1 + at)]}
        for at in range(8)
    ]
    host.hear(summary())
    host.submit(a_service([step("t")], alternatives=ways))
    orders = 0
    for at in range(20):
        host.runs()
        out = escalate(host, f"e{at}", **SLOW)
        orders += any(isinstance(body, ServiceOrder) for body in bodies(out))
        host.pass_time(COOLDOWN_MS)
    assert orders == MAX_TRIES - 1
    assert "ways to do service 'a' were tried within 10 minutes" in answer_of(out).reason


def test_after_calm_all_candidates_may_be_tried_again() -> None:
    host = served()
    escalate(host, **SLOW)
    host.runs()
    host.pass_time(700_000)
    assert order_in(escalate(host, "e2", **SLOW)).decomposition == "small+spread"


def test_what_was_tried_is_not_tried_again_after_a_crash() -> None:
    host = served()
    escalate(host, **SLOW)
    host.runs()
    host.pass_time(COOLDOWN_MS)
    host.restart()
    soon = answer_of(escalate(host, "e2", **SLOW))
    assert "it has 30 s to show whether that helps" in soon.reason
    host.pass_time(COOLDOWN_MS)
    assert order_in(escalate(host, "e3", **SLOW)).decomposition == "main+fused"
    host.runs()
    host.restart()
    host.pass_time(COOLDOWN_MS)
    last = answer_of(escalate(host, "e4", **SLOW))
    assert not last.granted
    assert "small+spread at ta-main: tried already" in last.reason


def test_calm_is_over_for_good_whatever_crashes_after_it() -> None:
    host = served()
    escalate(host, **SLOW)
    host.runs()
    host.restart()
    host.pass_time(CALM_MS)
    assert host.service().tried == ()
    host.restart()
    assert order_in(escalate(host, "e2", **SLOW)).decomposition == "small+spread"


def test_a_change_that_waits_is_followed_up_after_a_crash() -> None:
    host = Host()
    host.hear(summary())
    second = {**ALTERNATIVE, "name": "second", "tasks": [step("quick", expected_ms=2)]}
    host.submit(a_service([step("t", expected_ms=9)], alternatives=[ALTERNATIVE, second]))
    host.runs()
    escalate(host, **SLOW)
    assert host.service().order.decomposition == "second+spread"
    host.report("a", 2, ServiceState.WAITING)
    host.restart()
    host.hear(summary())
    host.pass_time(COOLDOWN_MS)
    assert host.service().order.decomposition == "main+spread"


def test_a_new_document_begins_anew() -> None:
    host = served()
    escalate(host, **SLOW)
    host.submit(a_service(chain("p", "q", replicas=2), alternatives=[ALTERNATIVE]))
    assert not any(key.startswith("settle/") for key in host.timers)
    host.runs()
    assert answer_of(escalate(host, "e2", **SLOW)).granted


def test_what_is_predicted_to_be_no_better_than_measured_is_not_tried() -> None:
    host = served()
    said = {**SLOW, "measured": 2.0, "target": 1.0}
    refused = answer_of(escalate(host, **said))
    assert not refused.granted
    assert "promises no more" in refused.reason


# Another anchor.


def moved() -> tuple[Host, Output]:
    """Return a host that moves its service from ta-main, which has no node left, to ta-radio."""
    host = Host()
    host.hear(summary("ta-main", cells=("north",)))
    host.submit(a_service([step("t")]))
    host.runs(epoch_high=40)
    host.hear(summary("ta-main", cells=("north",), nodes=0))
    host.hear(summary("ta-radio", cells=("south",)), "ta-radio")
    return host, escalate(host)


def test_another_anchor_begins_its_epochs_above_those_of_the_old_one() -> None:
    host, out = moved()
    made = order_in(out)
    assert (made.generation, made.epochs_above) == (2, 40 + EPOCH_MARGIN)
    assert made.taken_from == ("ta-main",)
    assert {send.to for send in out.sends if isinstance(send.body, ServiceOrder)} == {
        ToRole("ta-radio")
    }
    assert not any(isinstance(body, ServiceDelete) for body in bodies(out))
    assert answer_of(out).granted
    record = host.service()
    assert (record.anchor, record.leaving) == ("ta-radio", ("ta-main",))


def test_what_anchors_hand_on_meanwhile_ends_where_it_went() -> None:
    host, _ = moved()
    host.hear(AnchorMoved("a", 1, 1, "ta-third", "ta-main", 50), "ta-third")
    record = host.service()
    assert (record.anchor, record.leaving, record.number) == ("ta-radio", ("ta-third",), 1)
    assert [send.to for send in host.runs().sends] == [ToRole("ta-third")]


def test_another_anchor_of_the_same_cells_is_no_help_for_a_lost_node() -> None:
    host = Host()
    host.hear(summary("ta-main", cells=("north", "south"), nodes=2))
    host.submit(a_service([step("t")]))
    host.runs()
    host.hear(summary("ta-radio", cells=("south", "north"), nodes=3), "ta-radio")
    assert not answer_of(escalate(host)).granted
    assert host.service().anchor == "ta-main"


def test_nobody_but_an_anchor_is_believed() -> None:
    host = Host()
    host.namo = Namo(anchors=("ta-main",))
    host.hear(AnchorMoved("a", 1, 1, "ta-thief", "ta-main", 50), "ta-thief")
    assert host.namo.counters["forged_message"] == 1


def test_the_old_anchor_lets_go_only_when_the_new_one_runs_it() -> None:
    host, _ = moved()
    host.report("a", 1, ServiceState.DEGRADED, "ta-main")
    assert host.service().state is ServiceState.DEPLOYING
    out = host.runs()
    assert [(send.to, send.body) for send in out.sends] == [
        (ToRole("ta-main"), ServiceDelete("a", 2, anchor="ta-radio"))
    ]
    # It is said again until it is heard.
    assert bodies(host.fire()) == bodies(out)
    host.report("a", 2, ServiceState.DELETED, "ta-main")
    assert host.service().leaving == ()
    assert host.service().state is ServiceState.RUNNING
    assert not any(key.startswith("leave/") for key in host.timers)


def test_where_anchors_share_a_cell_the_tasks_run_on() -> None:
    host = Host()
    host.hear(summary("ta-main", cells=("north",)))
    host.submit(a_service([step("t")]))
    host.runs()
    host.hear(summary("ta-main", cells=("north",), executors={}))
    host.hear(summary("ta-radio", cells=("north",)), "ta-radio")
    escalate(host)
    assert bodies(host.runs()) == [ServiceDelete("a", 2, transferred=True, anchor="ta-radio")]


def test_a_new_anchor_that_does_not_run_it_is_given_up_for_the_next() -> None:
    host, _ = moved()
    host.report("a", 2, ServiceState.WAITING, "ta-radio")
    host.hear(summary("ta-third", cells=("west",)), "ta-third")
    (out,) = [out for out in host.pass_time(COOLDOWN_MS) if any(bodies(out))]
    made = order_in(out)
    assert made.generation == 3
    assert made.epochs_above == 40 + 2 * EPOCH_MARGIN
    assert host.service().anchor == "ta-third"
    assert host.service().leaving == ("ta-main", "ta-radio")
    gone = host.runs()
    assert {send.to for send in gone.sends} == {ToRole("ta-main"), ToRole("ta-radio")}
    host.report("a", 3, ServiceState.DELETED, "ta-radio")
    assert host.service().leaving == ("ta-main",)


def test_what_is_ordered_elsewhere_begins_above_what_has_not_been_heard_of() -> None:
    """The last anchor may have begun a generation anew, and its word be on its way."""
    host, _ = moved()
    for expected_ms in (7, 8):
        host.submit(a_service([step("t", expected_ms=expected_ms)]))
    assert (host.service().anchor, host.service().order.generation) == ("ta-radio", 4)
    host.hear(summary("ta-third", cells=("west",)), "ta-third")
    host.pass_time(COOLDOWN_MS)
    made = order_in(escalate(host, "e2"))
    assert made.generation == 5
    assert made.epochs_above == 3 * EPOCHS_OF_GENERATION + EPOCH_MARGIN


def test_who_had_it_is_not_told_to_leave_while_the_next_but_one_begins() -> None:
    """What was to be said again is of the anchor before; the present one has to go on."""
    host, _ = moved()
    host.runs()
    host.hear(summary("ta-third", cells=("west",)), "ta-third")
    host.pass_time(COOLDOWN_MS)
    escalate(host, "e2")
    assert host.service().anchor == "ta-third"
    assert host.service().leaving == ("ta-main", "ta-radio")
    said = [body for out in host.pass_time(RETRY_CAP_MS) for body in bodies(out)]
    assert {type(one) for one in said} == {ServiceOrder}
    assert {send.to for send in host.runs().sends} == {ToRole("ta-main"), ToRole("ta-radio")}


def test_a_move_survives_a_crash_at_any_time() -> None:
    host, out = moved()
    again = host.restart()
    assert order_in(again) == order_in(out)
    assert not any(isinstance(body, ServiceDelete) for body in bodies(again))
    host.runs()
    assert bodies(host.restart()) == [ServiceDelete("a", 2, transferred=True, anchor="ta-radio")]


def test_a_deletion_in_the_middle_of_a_move_ends_it_at_both_anchors() -> None:
    host, _ = moved()
    out = host.call("usecase.delete", Delete("u"))
    assert {(send.to, send.body) for send in out.sends} == {
        (ToRole(anchor), ServiceDelete("a", 2)) for anchor in ("ta-main", "ta-radio")
    }
    host.report("a", 2, ServiceState.DELETED, "ta-main")
    host.report("a", 2, ServiceState.DELETED, "ta-radio")
    assert host.use_case().state == "deleted"
    assert host.timers == {}


def test_a_late_word_of_the_old_anchor_changes_nothing() -> None:
    host, _ = moved()
    host.runs()
    host.report("a", 2, ServiceState.DELETED, "ta-main")
    for state in ServiceState:
        host.report("a", 2, state, "ta-main")
        host.report("a", 1, state, "ta-main")
    assert host.service().state is ServiceState.RUNNING


# Waiting.


def test_what_waits_is_looked_at_again_when_there_may_be_room() -> None:
    host = Host()
    host.hear(summary("ta-main"))
    host.submit(a_service([step("t")]))
    host.report("a", 1, ServiceState.WAITING)
    refused = answer_of(escalate(host))
    assert not refused.granted
    assert "has no other decomposition" in refused.reason
    host.hear(summary("ta-radio", cells=("south",)), "ta-radio")
    orders = [body for out in host.pass_time(COOLDOWN_MS) for body in bodies(out)]
    assert [one.service for one in orders if isinstance(one, ServiceOrder)] == ["a"]
    assert host.service().anchor == "ta-radio"


def test_what_goes_on_waiting_is_looked_at_ever_more_rarely() -> None:
    host = Host()
    host.submit(a_service([step("t")]))
    host.report("a", 1, ServiceState.WAITING)
    escalate(host)
    host.timers.pop("order/a", None)
    gaps = []
    for _ in range(6):
        before = host.now_ms
        host.fire()
        gaps.append(host.now_ms - before)
    assert gaps == [30_000, 60_000, 120_000, 240_000, 300_000, 300_000]


def test_steps_that_must_share_a_node_are_no_easier_to_place() -> None:
    host = Host()
    host.hear(summary())
    host.submit(a_service(chain("p", "q")))
    host.report("a", 1, ServiceState.WAITING)
    assert host.service().order.decomposition == "main+spread"
    assert not answer_of(escalate(host)).granted


def test_a_group_that_finds_no_node_is_spread() -> None:
    host = Host()
    host.hear(summary(round_trip_ms=40.0))
    host.submit(a_service(chain("p", "q")))
    assert host.service().order.decomposition == "main+fused"
    out = escalate(host)
    assert order_in(out).decomposition == "main+spread"
    assert {one.group for one in order_in(out).tasks} == {""}


def test_a_link_begun_anew_says_everything_again_to_that_anchor_alone() -> None:
    host, _ = moved()
    host.submit(a_service([step("t")], "b"), name="v")
    host.runs("a")
    host.runs("b")
    assert sorted(send.body.service for send in host.linked("ta-radio").sends) == ["a", "b"]
    assert bodies(host.linked("ta-main")) == [ServiceDelete("a", 2, anchor="ta-radio")]
    assert bodies(host.linked("ts-main")) == []


@pytest.mark.parametrize("autonomy", ["full", "partial"])
def test_a_proposal_that_needs_no_person_is_granted_at_once(autonomy: str) -> None:
    host = served(sla={"zone": {"autonomy": {"level": autonomy}}})
    out = escalate(host, proposal="use the variant tiny", **SLOW)
    assert answer_of(out).granted
    assert out.records == []


# Anchors hand services on themselves.


def changes(host: Host) -> Output:
    """Submit a changed document of the service that `served` has."""
    quick = {**ALTERNATIVE, "tasks": [step("quick", expected_ms=2)]}
    return host.submit(a_service(chain("p", "q"), alternatives=[quick]))


def test_nobody_is_told_to_leave_what_anchors_have_handed_on_themselves() -> None:
    host, _ = moved()
    host.runs()
    assert "leave/a" in host.timers
    host.hear(AnchorMoved("a", 2, 1, "ta-radio", "ta-main", 50), "ta-radio")
    assert host.service().leaving == ()
    assert "leave/a" not in host.timers


def test_a_changed_document_goes_on_counting_how_often_its_service_was_handed_on() -> None:
    host = served()
    host.hear(AnchorMoved("a", 1, 1, "ta-radio", "ta-main", 50), "ta-radio")
    host.hear(AnchorMoved("a", 1, 2, "ta-third", "ta-radio", 60), "ta-third")
    out = changes(host)
    assert order_in(out).handed == 2
    host.hear(AnchorMoved("a", 1, 1, "ta-radio", "ta-main", 50), "ta-main")
    assert host.service().anchor == "ta-third", "the first one only knows of the first time"


def test_what_was_ordered_before_another_was_handed_on_counts_by_its_generation() -> None:
    """The one before goes on while the next is ordered; each counts from what its anchor knows."""
    host, _ = moved()
    host.hear(AnchorMoved("a", 1, 1, "ta-third", "ta-main", 50), "ta-third")
    host.runs()
    host.report("a", 2, ServiceState.DELETED, "ta-third")
    host.hear(AnchorMoved("a", 2, 1, "ta-main", "ta-radio", 60), "ta-main")
    assert (host.service().anchor, host.service().number) == ("ta-main", 1)
    host.hear(AnchorMoved("a", 2, 2, "ta-third", "ta-main", 70), "ta-third")
    host.hear(AnchorMoved("a", 2, 1, "ta-main", "ta-radio", 60), "ta-main")
    assert (host.service().anchor, host.service().number) == ("ta-third", 2)
    order = order_in(changes(host))
    assert (order.moved_generation, order.moved_number) == (2, 2)


def test_what_comes_once_more_to_an_anchor_that_had_left_it_ends_there() -> None:
    """A transfer that was said again finds nothing at its anchor and is taken a second time."""
    host, _ = moved()
    host.hear(summary("ta-third", cells=("east",)), "ta-third")
    late = AnchorMoved("a", 1, 1, "ta-third", "ta-main", 50)
    host.hear(late, "ta-third")
    host.runs()
    host.report("a", 2, ServiceState.DELETED, "ta-third")
    assert host.service().leaving == ()
    out = host.hear(late, "ta-third")
    assert (host.service().anchor, host.service().leaving) == ("ta-radio", ("ta-third",))
    left = ToRole("ta-third"), ServiceDelete("a", 2, anchor="ta-radio")
    assert left in [(one.to, one.body) for one in out.sends]
    host.report("a", 2, ServiceState.DELETED, "ta-third")
    assert host.service().leaving == ()


def test_who_is_to_leave_what_it_has_handed_on_is_asked_no_more() -> None:
    """The next generation was handed on as well, and whoever has got this one is not heard."""
    host, _ = moved()
    for anchor, cell in (("ta-third", "east"), ("ta-fourth", "west")):
        host.hear(summary(anchor, cells=(cell,)), anchor)
    host.hear(AnchorMoved("a", 2, 1, "ta-fourth", "ta-radio", 60), "ta-fourth")
    host.runs()
    assert host.service().leaving == ("ta-main",)
    out = host.hear(AnchorMoved("a", 1, 1, "ta-third", "ta-main", 50), "ta-main")
    assert (host.service().anchor, host.service().leaving) == ("ta-fourth", ("ta-third",))
    left = ToRole("ta-third"), ServiceDelete("a", 2, anchor="ta-fourth")
    assert left in [(one.to, one.body) for one in out.sends]
    host.report("a", 2, ServiceState.DELETED, "ta-third")
    assert host.service().leaving == ()


def test_who_has_had_the_next_generation_as_well_is_asked_no_more_to_leave() -> None:
    """It was handed on to where the one before ends, and from there on, and nobody has said so."""
    host, _ = moved()
    host.runs()
    host.hear(AnchorMoved("a", 2, 3, "ta-radio", "ta-third", 70), "ta-radio")
    assert (host.service().anchor, host.service().leaving) == ("ta-radio", ("ta-main",))
    host.hear(AnchorMoved("a", 2, 2, "ta-third", "ta-main", 60), "ta-main")
    assert (host.service().anchor, host.service().leaving) == ("ta-radio", ())
    assert "leave/a" not in host.timers


def test_a_generation_that_ends_takes_the_next_one_nowhere() -> None:
    """Its anchors have handed it on more often than anybody heard, and the next one has come."""
    host, _ = moved()
    host.hear(AnchorMoved("a", 2, 1, "ta-main", "ta-radio", 50), "ta-main")
    assert host.service().anchor == "ta-main"
    out = host.hear(AnchorMoved("a", 1, 3, "ta-third", "ta-main", 60), "ta-third")
    assert not [one for one in bodies(out) if isinstance(one, ServiceOrder)]
    assert (host.service().anchor, host.service().leaving) == ("ta-main", ("ta-third",))
    host.hear(AnchorMoved("a", 1, 4, "ta-main", "ta-third", 60), "ta-main")
    assert (host.service().anchor, host.service().leaving) == ("ta-main", ())


def test_what_was_handed_on_while_its_deletion_was_ordered_ends_where_it_is() -> None:
    host, _ = moved()
    host.call("usecase.delete", Delete("u"))
    host.report("a", 2, ServiceState.DELETED, "ta-main")
    out = host.hear(AnchorMoved("a", 1, 1, "ta-third", "ta-main", 50), "ta-third")
    assert (ToRole("ta-third"), ServiceDelete("a", 2)) in [(one.to, one.body) for one in out.sends]


def test_a_changed_document_goes_to_the_anchor_that_owns_it_although_that_is_silent() -> None:
    host = served()
    host.restart()
    host.hear(summary("ta-radio"), "ta-radio")
    out = changes(host)
    assert order_in(out).generation == 2
    assert {one.to for one in out.sends} == {ToRole("ta-main")}
    assert (host.service().anchor, host.service().leaving) == ("ta-main", ())
