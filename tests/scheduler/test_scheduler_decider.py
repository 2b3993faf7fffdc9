"""The scheduler as a decider: envelopes, moves, adoption, escalation, routes."""

import pytest
from msgspec.structs import replace
from scheduler_bench import READY, Bench, grant, running, said, told
from tests_support import task_spec

from controller.decider import Output, Received, ToRole, ToService
from protocols.errors import Blame
from protocols.messages import (
    Acknowledge,
    AnchorWelcome,
    Assign,
    Death,
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    LinkReport,
    LoadReport,
    NodeSummary,
    RebirthRequest,
    Release,
    Route,
    RouteRequest,
    Status,
    TaskReport,
    Welcome,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.invocation import Edge
from protocols.messages.presence import Holding
from protocols.messages.task import InstanceState, LostPolicy, Reconcile


def test_a_birth_is_welcomed_and_told_upwards() -> None:
    bench = Bench(store_urls=("http://s",))
    output = bench.born("n1")
    [welcome] = told(output, "n1", Welcome)
    assert (welcome.incarnation, welcome.store_urls) == (1, ("http://s",))
    assert [record.kind for record in output.learnt] == ["node"]
    assert not bench.born("n1").learnt, "an unchanged node writes nothing"


def test_an_unknown_node_is_asked_for_its_birth_once_a_while() -> None:
    bench = Bench()
    assert told(bench.node("n9", LoadReport(1, 5.0)), "n9", RebirthRequest)
    assert not told(bench.node("n9", LoadReport(1, 5.0)), "n9", RebirthRequest)
    bench.now_ms += 2000
    assert told(bench.node("n9", LoadReport(1, 5.0)), "n9", RebirthRequest)


def test_a_granted_task_is_assigned_and_routed(bench: Bench) -> None:
    output = bench.anchor(grant("n1", "n2"))
    [assign] = told(output, "n1", Assign)
    assert assign.epoch == 1
    output = bench.ready("n1", 1)
    assert told(output, "n1", Acknowledge)
    [route] = said(output, Route)
    assert route.plan is not None
    assert (route.plan.steps[0].node, route.plan.steps[0].epoch) == ("n1", 1)
    assert route.plan.outputs == (Edge("y", "svc.a", "x"),)
    assert route.inputs == ("x",)
    [report] = said(output, TaskReport)
    assert (report.state, report.node, report.epoch) == (InstanceState.READY, "n1", 1)


def test_an_assignment_without_answer_is_repeated_with_the_same_epoch(bench: Bench) -> None:
    bench.anchor(grant("n1"))
    repeats = told(bench.passes(2600, "n1", "n2", "n3"), "n1", Assign)
    assert [one.epoch for one in repeats] == [1, 1]


def test_a_lost_node_is_replaced_after_its_policy(bench: Bench) -> None:
    epoch = running(bench, "n1", "n2", policy=LostPolicy(lost_after_ms=4000))
    early = bench.passes(3800, "n2", "n3")
    assert not told(early, "n2", Assign)
    assert said(early, Route)[-1].plan is None, "nobody is sent to a lost node"
    [assign] = told(bench.passes(1000, "n2", "n3"), "n2", Assign)
    assert assign.epoch > epoch
    output = bench.ready("n2", assign.epoch)
    assert said(output, Route)[-1].plan.steps[0].node == "n2"


def test_a_task_that_must_not_be_replaced_waits_for_its_node(bench: Bench) -> None:
    epoch = running(bench, "n1", "n2", policy=LostPolicy(lost_after_ms=1000, replace=False))
    assert not said(bench.passes(10_000, "n2", "n3"), Assign)
    held = Holding("svc.a", epoch, READY, 1)
    output = bench.born("n1", holdings=(held,))
    assert not said(output, Assign), "the healthy copy is not restarted"
    assert said(output, Route)[-1].plan.steps[0].node == "n1"


def test_a_will_is_a_hint_and_a_living_node_answers_it(bench: Bench) -> None:
    running(bench, "n1", "n2")
    output = bench.node("n1", Death("gone"))
    assert told(output, "n1", RebirthRequest)
    assert bench.ts.nodes.state("n1") is NodeState.SUSPECT
    bench.node("n1", LoadReport(1, 5.0))
    assert bench.ts.nodes.state("n1") is NodeState.ONLINE
    assert not said(bench.passes(3000, "n1", "n2", "n3"), Assign)


def test_a_late_will_of_an_older_connection_is_ignored(bench: Bench) -> None:
    bench.born("n1")
    bench.feed(Received("n1", 1, 0, "default", "test", Death("old")))
    assert bench.ts.nodes.state("n1") is NodeState.ONLINE
    assert bench.ts.counters["late_incarnation"] == 1


def test_a_farewell_moves_the_task_at_once(bench: Bench) -> None:
    running(bench, "n1", "n2", policy=LostPolicy(lost_after_ms=60_000))
    assert told(bench.node("n1", Death("bye", orderly=True)), "n2", Assign)


@pytest.mark.parametrize("keep", list(Reconcile))
def test_a_node_that_comes_back_after_its_replacement(bench: Bench, keep: Reconcile) -> None:
    policy = LostPolicy(lost_after_ms=1000, reconcile=keep)
    old = running(bench, "n1", "n2", policy=policy)
    assign, *_ = told(bench.passes(5000, "n2", "n3"), "n2", Assign)
    bench.ready("n2", assign.epoch)
    output = bench.born("n1", holdings=(Holding("svc.a", old, READY, 1),))
    if keep is Reconcile.KEEP_REPLACEMENT:
        assert [one.epoch for one in told(output, "n1", Release)] == [old]
        assert not said(output, Assign)
        return
    [back] = told(output, "n1", Assign)
    assert back.epoch > assign.epoch
    switched = bench.ready("n1", back.epoch)
    assert [one.epoch for one in told(switched, "n2", Release)] == [assign.epoch]


def test_a_failed_node_leads_to_the_next_and_then_upwards(bench: Bench) -> None:
    bench.anchor(grant("n1", "n2"))
    output = bench.node("n1", Status(1, "svc.a", 1, InstanceState.FAILED, "no memory"))
    [assign] = told(output, "n2", Assign)
    [report] = said(output, TaskReport)
    assert report.node == "n2"
    assert [(one.action, one.outcome) for one in report.attempts] == [("run on n1", "no memory")]
    output = bench.node("n2", Status(2, "svc.a", assign.epoch, InstanceState.FAILED, "no disk"))
    [escalation] = said(output, Escalation)
    assert {one.outcome for one in escalation.attempts} == {"no memory", "no disk"}
    bench.anchor(EscalationAnswer(escalation.number, "svc.a", granted=False, reason="none"))
    assert not said(bench.passes(2000, "n1", "n2", "n3"), Escalation)
    assert said(bench.passes(3000, "n1", "n2", "n3"), Escalation)
    output = bench.anchor(grant("n3", first=33))
    assert [one.epoch for one in told(output, "n3", Assign)] == [33]


def test_an_artifact_at_fault_is_tried_on_two_nodes_only(bench: Bench) -> None:
    def fails(node: str, epoch: int) -> Output:
        why = "the artifact is no Wasm module"
        said_so = Status(epoch, "svc.a", epoch, InstanceState.FAILED, why, Blame.USER)
        return bench.node(node, said_so)

    bench.anchor(grant("n1", "n2", "n3"))
    [assign] = told(fails("n1", 1), "n2", Assign)
    output = fails("n2", assign.epoch)
    assert not said(output, Assign)
    [escalation] = said(output, Escalation)
    assert [one.blame for one in escalation.attempts] == [Blame.USER, Blame.USER]
    assert said(output, TaskReport)[-1].blame is Blame.USER


def test_load_moves_a_task_make_before_break(bench: Bench) -> None:
    old = running(bench, "n1", "n2")
    bench.node("n2", LoadReport(1, 10.0))
    assert not said(bench.lasts("n1", LoadReport(1, 97.0), 800, 200), Assign), "it has to last"
    assert not said(bench.lasts("n1", LoadReport(1, 70.0), 200, 200), Assign)
    assert not said(bench.node("n1", LoadReport(1, 97.0)), Assign), "one sample moves nothing"
    output = bench.lasts("n1", LoadReport(1, 97.0))
    [assign] = told(output, "n2", Assign)
    assert not said(output, Route), "the old copy serves until the new one is ready"
    output = bench.ready("n2", assign.epoch)
    assert said(output, Route)[-1].plan.steps[0].node == "n2"
    assert [one.epoch for one in told(output, "n1", Release)] == [old]
    again = bench.lasts("n2", LoadReport(1, 97.0))
    assert not said(again, Assign), "a task that has just moved stays"


def test_a_link_in_danger_moves_a_task(bench: Bench) -> None:
    running(bench, "n1", "n2")
    bench.node("n2", LoadReport(1, 10.0))
    lossy = LinkReport(1, "wlan0", "wifi", carrier=True, loss_percent=50.0)
    assert not told(bench.node("n1", lossy), "n2", Assign), "one report moves nothing"
    assert told(bench.lasts("n1", lossy), "n2", Assign)


def test_anchors_hear_how_far_a_node_is_when_that_has_changed(bench: Bench) -> None:
    bench.born("n1")
    heard = []
    for trip_ms in (1.0, 20.0, 25.0, None, 4.0):
        link = LinkReport(1, "eth0", "wired", carrier=True, round_trip_ms=trip_ms)
        heard += [one.round_trip_ms for one in said(bench.node("n1", link), NodeSummary)]
    assert heard == [20.0, 4.0]


def test_a_lost_carrier_moves_a_task_at_once(bench: Bench) -> None:
    running(bench, "n1", "n2")
    bench.node("n2", LoadReport(1, 10.0))
    assert told(bench.node("n1", LinkReport(1, "eth0", "wired", carrier=False)), "n2", Assign)


def test_a_scheduler_without_memory_adopts_what_runs() -> None:
    bench = Bench(epoch=2)
    bench.born("n1", holdings=(Holding("svc.a", 7, READY, 1), Holding("old.x", 3, READY, 1)))
    output = bench.anchor(grant("n1", "n2", first=33, current_node="n1", current_epoch=7))
    assert not said(output, Assign)
    assert said(output, Route)[-1].plan.steps[0].epoch == 7
    output = bench.anchor(AnchorWelcome("ta-main", 2, 1))
    assert [(one.task, one.epoch) for one in told(output, "n1", Release)] == [("old.x", 3)]


def test_a_scheduler_without_memory_waits_for_the_node_that_ran_the_task() -> None:
    bench = Bench(epoch=2)
    bench.born("n2")
    output = bench.anchor(grant("n1", "n2", first=33, current_node="n1", current_epoch=7))
    assert not said(output, Assign)
    output = bench.born("n1", holdings=(Holding("svc.a", 7, READY, 1),))
    assert not said(output, Assign)
    assert said(output, Route)[-1].plan.steps[0].node == "n1"


def test_a_node_that_never_returns_is_not_awaited_for_ever() -> None:
    bench = Bench(epoch=2)
    bench.born("n2")
    bench.anchor(grant("n1", "n2", first=33, current_node="n1", current_epoch=7))
    assert told(bench.passes(4000, "n2"), "n2", Assign)


def test_a_release_is_repeated_until_the_node_confirms(bench: Bench) -> None:
    epoch = running(bench, "n1")
    assert told(bench.anchor(EnvelopeRevoke("svc.a", 1, "over")), "n1", Release)
    assert told(bench.passes(1200, "n1", "n2", "n3"), "n1", Release)
    bench.node("n1", Status(2, "svc.a", epoch, InstanceState.STOPPED))
    assert not told(bench.passes(3000, "n1", "n2", "n3"), "n1", Release)


def test_a_new_generation_runs_beside_the_old_until_it_is_ready(bench: Bench) -> None:
    running(bench, "n1", "n2")
    output = bench.anchor(grant("n1", "n2", generation=2, first=33))
    [assign] = told(output, "n1", Assign)
    assert (assign.generation, assign.epoch) == (2, 33)
    assert not said(output, Route)
    output = bench.ready("n1", 33, generation=2)
    assert said(output, Route)[-1].plan.generation == 2
    assert not told(output, "n1", Release), "the node itself replaced the older copy"


def changed() -> tuple[EnvelopeGrant, EnvelopeGrant]:
    """Return the grants of a service that gets a second task."""
    tasks, outputs = ("svc.a", "svc.b"), (Edge("y", "b", "x"),)
    first = replace(grant("n1", "n2", generation=2, first=33), plan_tasks=tasks, outputs=outputs)
    spec = replace(first.spec, task="svc.b", step="b")
    return first, replace(first, spec=spec, epoch_from=65, epoch_to=96)


def test_a_change_that_adds_a_task_is_routed_when_that_is_ready(bench: Bench) -> None:
    running(bench, "n1", "n2")
    first, second = changed()
    output = bench.anchor(second)
    [assign] = told(output, "n1", Assign)
    assert assign.task == "svc.b"
    assert not said(output, Route), "the service goes on as it was"
    output = bench.node("n1", Status(2, "svc.b", 65, READY, generation=2))
    bench.anchor(first)
    output = bench.ready("n1", 33, generation=2)
    plan = said(output, Route)[-1].plan
    assert [(step.task, step.epoch) for step in plan.steps] == [("svc.a", 33), ("svc.b", 65)]


def test_tasks_of_two_generations_that_do_not_fit_are_not_routed(bench: Bench) -> None:
    running(bench, "n1", "n2")
    _, second = changed()
    wired = replace(second.spec, inputs=(Edge("x", "a", "new"),))
    bench.anchor(replace(second, spec=wired))
    output = bench.node("n1", Status(2, "svc.b", 65, READY, generation=2))
    assert not said(output, Route), "what serves goes on"
    bench.node("n1", Status(3, "svc.a", 1, InstanceState.FAILED, "it broke"))
    assert said(bench.passes(200, "n1", "n2"), Route) == []
    assert bench.ts.serving.routes["svc"].plan is None


def test_a_service_in_change_is_not_served_when_what_served_is_lost(bench: Bench) -> None:
    running(bench, "n1", "n2")
    _, second = changed()
    bench.anchor(second)
    output = bench.node("n1", Status(2, "svc.a", 1, InstanceState.FAILED, "it broke"))
    assert said(output, Route)[-1].plan is None


def test_routes_grow_and_are_given_on_request(bench: Bench) -> None:
    running(bench, "n1")
    ask = RouteRequest("r1", "svc", "tona/1/cell/client/c/reply")
    [route] = said(bench.feed(Received("c", 1, 0, "default", "r1", ask)), Route)
    assert route.plan is not None
    bench.anchor(EnvelopeRevoke("svc.a", 1, "over"))
    [none] = said(bench.feed(Received("c", 1, 0, "default", "r1", ask)), Route)
    assert none.plan is None
    assert none.epoch > route.epoch
    services = [send for send in bench.seen if isinstance(send.to, ToService)]
    epochs = [send.body.epoch for send in services if isinstance(send.body, Route)]
    assert epochs == sorted(set(epochs))


def test_used_up_epochs_are_asked_for(bench: Bench) -> None:
    narrow = EnvelopeGrant(
        "svc", 1, task_spec(), ("n1", "n2"), 1, 1, ("svc.a",), (Edge("y", "a", "x"),)
    )
    bench.anchor(narrow)
    output = bench.node("n1", Status(1, "svc.a", 1, InstanceState.FAILED, "no memory"))
    [escalation] = said(output, Escalation)
    assert "epochs" in escalation.problem
    assert all(send.to == ToRole("ta-main") for send in output.sends if send.body is escalation)


def test_what_only_an_anchor_may_say_nobody_else_is_believed() -> None:
    bench = Bench()
    bench.born("n1")
    bench.anchor(grant("n1"))
    before = bench.ts.table.tasks["svc.a"].grant
    for body in (
        grant("n1", generation=2, first=100),
        EnvelopeRevoke("svc.a", 1, "it is over"),
        EnvelopeRevoke("svc.a", 1, transferred=True, node="n1", leased=1000),
    ):
        output = bench.feed(Received("ts-other", 0, 0, "default", "forged", body))
        assert not [one for one in output.sends if one.cause == "forged"]
    assert bench.ts.counters["forged_message"] == 3
    assert bench.ts.table.tasks["svc.a"].grant is before


def test_a_grant_that_is_older_than_that_of_the_next_anchor_is_late() -> None:
    bench = Bench(anchors=("ta-main", "ta-next"))
    bench.born("n1")
    bench.feed(Received("ta-next", 0, 0, "default", "test", grant("n1", first=100)))
    bench.anchor(grant("n1"))
    assert bench.ts.table.tasks["svc.a"].anchor == "ta-next"
    assert bench.ts.counters["late_grant"] == 1
    body = EnvelopeRevoke("svc.a", 1, transferred=True, node="n1", leased=131)
    bench.feed(Received("ta-next", 0, 0, "default", "test", body))
    bench.anchor(grant("n1", first=50))
    assert "svc.a" not in bench.ts.table.tasks, "nobody's any more, and not ours again"
    assert bench.ts.counters["late_grant"] == 2
    bench.anchor(grant("n1", first=200))
    assert bench.ts.table.tasks["svc.a"].anchor == "ta-main"
