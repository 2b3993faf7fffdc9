"""Quality that a scheduler cannot keep: remedies in order, approvals, NAMO, and never silence."""

from typing import Any

import pytest
from anchor_bench import MEMORY, Bench, chain, said, sized
from msgspec import structs
from tests_support import manifest, task_spec

from controller.anchor.escalations import ASK_AGAIN_MS, COOLDOWN_MS, KEPT_MS, REFUSED_MS
from controller.decider import Linked, Output
from controller.records import StoryRecord, TaskState
from protocols.messages import (
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    ServiceReport,
    TaskEvent,
)
from protocols.messages.hierarchy import Attempt, Autonomy, NodeState, ServiceState, TaskQos
from protocols.messages.quality import Leeway, Variant
from protocols.qoais import Bound

LEEWAY = Leeway(variants=("small", "large", "poor"), cpu_percent_max=205.0, replicas_max=3)
SMALL = Variant("small", manifest(), 90.0)
LARGE = Variant("large", sized(task_spec(), 2 * MEMORY).manifest, 99.0)
POOR = Variant("poor", manifest(), 10.0)


def complaint(number: str, indicator: str = "latency_ms", **changes: Any) -> Escalation:
    said = {"target": 50.0, "measured": 80.0, "attempts": (Attempt("tune", "slower"),)} | changes
    return Escalation(number, "svc.a", 1, "latency is in danger", indicator=indicator, **said)


def told(bench: Bench) -> list[tuple[str, str, str]]:
    entries = [one.value for one in bench.store.values() if isinstance(one.value, StoryRecord)]
    return [(one.layer, one.event, one.detail) for one in sorted(entries, key=lambda e: e.number)]


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    for name in ("n1", "n2", "n3"):
        bench.tight(name, 4)
    return bench


def runs(bench: Bench, **changes: Any) -> None:
    qos = TaskQos(50.0, (Bound("accuracy_percent", at_least=80.0),))
    specs = {"leeway": LEEWAY, "variants": (SMALL, LARGE, POOR), "qos": qos}
    output = bench.order(specs=specs | changes.pop("specs", {}), **changes)
    [grant] = said(output, EnvelopeGrant)
    bench.ready(grant.nodes[0], grant.epoch_from)
    bench.passes(1000)


def complains(bench: Bench, number: int, indicator: str = "latency_ms") -> tuple[Any, Output]:
    bench.passes(COOLDOWN_MS)
    output = bench.hear(complaint(f"q{number}", indicator))
    [answer] = said(output, EscalationAnswer, "ts-main")
    return answer, output


def test_the_first_envelope_holds_something_back(bench: Bench) -> None:
    runs(bench)
    leeway = bench.task().leeway
    assert leeway.cpu_percent_max == 105.0, "half of what is beyond the demand of 5 %"
    assert leeway.replicas_max == 2
    assert leeway.variants == ("small",), "large needs more room, poor is too inaccurate"
    assert leeway.moves


def test_remedies_come_in_order_and_then_namo(bench: Bench) -> None:
    runs(bench)
    answer, output = complains(bench, 1)
    assert (answer.granted, answer.reason) == (True, "grant svc.a also n3")
    [grant] = said(output, EnvelopeGrant)
    assert grant.nodes == ("n3", "n1", "n2")
    assert bench.task().state is TaskState.DEGRADED
    assert said(output, ServiceReport)[-1].state is ServiceState.DEGRADED
    answer, output = complains(bench, 2)
    assert answer.reason == "allow svc.a up to 3 workers"
    assert said(output, EnvelopeGrant)[0].leeway.replicas_max == 3
    answer, output = complains(bench, 3)
    assert answer.reason == "allow svc.a variants large"
    assert said(output, EnvelopeGrant)[0].leeway.variants == ("small", "large")
    assert bench.task().reserved == dict.fromkeys(("n1", "n2", "n3"), 2 * MEMORY)
    answer, output = complains(bench, 4)
    assert not answer.granted
    assert "NAMO is asked" in answer.reason
    [up] = said(output, Escalation, "namo-main")
    assert up.indicator == "latency_ms"
    assert [one.action for one in up.attempts][:4] == [
        "tune",
        "grant svc.a also n3",
        "allow svc.a up to 3 workers",
        "allow svc.a variants large",
    ]
    assert up.attempts[1].outcome == "did not help: latency_ms measured 80, target 50"
    answer, output = complains(bench, 5)
    assert "NAMO knows" in answer.reason
    assert not said(output, Escalation, "namo-main"), "not again so soon"
    bench.passes(ASK_AGAIN_MS)
    _, output = complains(bench, 6)
    assert said(output, Escalation, "namo-main")


def test_accuracy_asks_for_another_model_first(bench: Bench) -> None:
    runs(bench)
    answer, _ = complains(bench, 1, "accuracy_percent")
    assert answer.reason == "allow svc.a variants large"


def test_a_change_has_to_show_its_effect(bench: Bench) -> None:
    runs(bench)
    complains(bench, 1)
    answer = said(bench.hear(complaint("q2")), EscalationAnswer)[0]
    assert not answer.granted
    assert answer.reason.endswith("has to show its effect")


def test_the_same_question_gets_the_same_answer_and_no_second_change(bench: Bench) -> None:
    runs(bench)
    answer, _ = complains(bench, 1)
    bench.passes(COOLDOWN_MS)
    output = bench.hear(complaint("q1"))
    assert said(output, EscalationAnswer) == [answer]
    assert not said(output, EnvelopeGrant)


def test_silence_ends_the_danger(bench: Bench) -> None:
    runs(bench)
    complains(bench, 1)
    output = bench.passes(KEPT_MS)
    assert bench.task().state is TaskState.RUNNING
    assert said(output, ServiceReport)[-1].state is ServiceState.RUNNING
    assert ("ta", "kept", "its quality is kept again") in told(bench)


def test_after_a_refusal_silence_must_last_longer(bench: Bench) -> None:
    runs(bench)
    for number in range(1, 5):
        complains(bench, number)
    bench.passes(REFUSED_MS - 1)
    assert bench.task().state is TaskState.DEGRADED
    bench.passes(1)
    assert bench.task().state is TaskState.RUNNING


def test_the_word_of_its_scheduler_ends_it_at_once(bench: Bench) -> None:
    runs(bench)
    complains(bench, 1)
    bench.hear(TaskEvent("svc.a", "calm", "latency_ms is 20"))
    assert bench.task().state is TaskState.RUNNING
    assert ("ts", "calm", "latency_ms is 20") in told(bench)


def test_whoever_asks_is_answered(bench: Bench) -> None:
    runs(bench)
    unknown = Escalation("u", "svc.z", 1, "why")
    old = structs.replace(complaint("o"), generation=7)
    for question, sender in ((unknown, "ts-main"), (old, "ts-main"), (complaint("f"), "ts-else")):
        [answer] = said(bench.hear(question, sender), EscalationAnswer, sender)
        assert not answer.granted
        assert answer.number == question.number
        assert answer.reason


def test_with_manual_autonomy_a_person_is_asked_first(bench: Bench) -> None:
    runs(bench, autonomy=Autonomy.MANUAL, specs={"leeway": Leeway(moves=False)})
    assert bench.task().leeway == Leeway(moves=False)
    answer, output = complains(bench, 1)
    assert not answer.granted
    assert answer.reason == "a person is asked whether to move svc.a from n1 to n2"
    [up] = said(output, Escalation, "namo-main")
    assert up.proposal == "move svc.a from n1 to n2"
    assert bench.task().state is TaskState.APPROVAL
    assert said(output, ServiceReport)[-1].reason.endswith(f"an approval to {up.proposal}")
    assert not said(output, EnvelopeGrant)
    _, output = complains(bench, 2)
    assert not said(output, Escalation, "namo-main"), "asked once"
    bench.restart()
    for name in ("n1", "n2", "n3"):
        bench.tight(name, 4)
    [again] = said(bench.feed(Linked("namo-main")), Escalation)
    assert (again.number, again.proposal) == (up.number, up.proposal)
    yes = EscalationAnswer(up.number, "svc.a", granted=True, reason="go")
    output = bench.hear(yes, "namo-main")
    [grant] = said(output, EnvelopeGrant)
    assert grant.nodes[0] == "n2"
    assert "n1" not in grant.nodes
    assert bench.task().state is TaskState.DEGRADED


def test_what_runs_beside_a_task_stays_when_it_moves(bench: Bench) -> None:
    output = bench.order(1, "a", "b", spares=0, autonomy=Autonomy.MANUAL)
    for grant in said(output, EnvelopeGrant):
        assert grant.nodes == ("n1",)
        bench.ready("n1", grant.epoch_from, task=grant.spec.task)
    answer, output = complains(bench, 1)
    assert answer.reason.endswith("move svc.a from n1 to n2")
    [up] = said(output, Escalation, "namo-main")
    yes = EscalationAnswer(up.number, "svc.a", granted=True, reason="go")
    [grant] = said(bench.hear(yes, "namo-main"), EnvelopeGrant)
    assert (grant.spec.task, grant.nodes) == ("svc.a", ("n2",))
    assert bench.task().reserved.keys() == {"n1", "n2"}, "n1 serves until n2 is ready"
    bench.ready("n2", grant.epoch_from)
    assert bench.task().reserved.keys() == {"n2"}


def test_a_person_who_says_no_is_heard(bench: Bench) -> None:
    runs(bench, autonomy=Autonomy.MANUAL)
    _, output = complains(bench, 1)
    [up] = said(output, Escalation, "namo-main")
    no = EscalationAnswer(up.number, "svc.a", granted=False, reason="not now")
    assert not said(bench.hear(no, "namo-main"), EnvelopeGrant)
    assert bench.task().asked is None
    assert bench.task().state is TaskState.DEGRADED
    assert ("namo", "refused", "not now") in told(bench)
    _, output = complains(bench, 2)
    assert not said(output, Escalation, "namo-main"), "and not asked again at once"


def test_what_was_agreed_to_is_done_or_nothing(bench: Bench) -> None:
    runs(bench, autonomy=Autonomy.MANUAL)
    _, output = complains(bench, 1)
    [up] = said(output, Escalation, "namo-main")
    bench.tight("n2", 0)
    yes = EscalationAnswer(up.number, "svc.a", granted=True, reason="go")
    assert not said(bench.hear(yes, "namo-main"), EnvelopeGrant)
    assert ("ta", "not done", f"{up.proposal}: not possible any more") in told(bench)


def test_a_late_answer_does_nothing(bench: Bench) -> None:
    runs(bench, autonomy=Autonomy.MANUAL)
    stale = EscalationAnswer("other", "svc.a", granted=True, reason="go")
    assert not said(bench.hear(stale, "namo-main"), EnvelopeGrant)


def test_a_loss_is_mended_whatever_the_autonomy(bench: Bench) -> None:
    runs(bench, autonomy=Autonomy.MANUAL, spares=0)
    attempts = (Attempt("run on n1", "no memory"),)
    lost = Escalation("l", "svc.a", 1, "no node of the envelope can run the task", attempts)
    output = bench.hear(lost)
    assert said(output, EscalationAnswer)[0].granted
    assert said(output, EnvelopeGrant)[0].nodes == ("n2",)


def test_tasks_of_a_group_move_together(bench: Bench) -> None:
    output = bench.order(1, "a", "b", spares=0, specs={"group": "g", "leeway": LEEWAY})
    for grant in said(output, EnvelopeGrant):
        assert grant.nodes == ("n1",)
        bench.ready("n1", grant.epoch_from, task=grant.spec.task)
    answer, output = complains(bench, 1)
    assert answer.granted
    assert {grant.nodes for grant in said(output, EnvelopeGrant)} == {("n2",)}
    assert len(said(output, EnvelopeGrant)) == 2


def test_a_group_that_loses_a_spare_keeps_the_generation_that_it_has(bench: Bench) -> None:
    group = {"group": "g"}
    for grant in said(bench.order(1, "a", "b", specs=group), EnvelopeGrant):
        bench.ready(grant.nodes[0], grant.epoch_from, task=grant.spec.task)
    spare = bench.task("svc.b").nodes[1]
    newer = chain("svc", 2, "a", "b", specs=group)
    tasks = tuple(sized(one, 9 * MEMORY) for one in newer.tasks)
    bench.hear(structs.replace(newer, tasks=tasks), "namo-main")
    epoch = bench.task().epoch_high
    refused = Escalation("r", "svc.a", 1, "no room", epoch_seen=epoch, refused=(spare,))
    grants = {one.spec.task: one for one in said(bench.hear(refused), EnvelopeGrant)}
    assert spare not in grants["svc.b"].nodes
    assert grants["svc.b"].generation == 1


def test_a_task_does_not_go_back_to_a_node_that_it_has_just_left(bench: Bench) -> None:
    runs(bench, specs={"leeway": Leeway(moves=False)}, spares=0)
    been = [bench.task().node]
    for number in (1, 2):
        answer, output = complains(bench, number)
        assert answer.granted
        assert answer.reason.startswith(f"move svc.a from {been[-1]} to ")
        [grant] = said(output, EnvelopeGrant)
        been.append(grant.nodes[0])
        bench.ready(grant.nodes[0], grant.epoch_from)
    assert len(set(been)) == 3
    answer, _ = complains(bench, 3)
    assert "move" not in answer.reason.partition("(")[0]


def test_what_comes_to_run_after_it_was_given_up_is_released_and_gets_no_empty_envelope() -> None:
    bench = Bench()
    bench.node("n1")
    bench.order()
    epoch = bench.task().epoch_high
    refused = Escalation("r", "svc.a", 1, "no room", epoch_seen=epoch, refused=("n1",))
    bench.hear(refused)
    given_up = bench.task()
    assert not given_up.nodes
    output = bench.ready("n1", epoch)
    assert not said(output, EnvelopeGrant)
    [revoke] = said(output, EnvelopeRevoke, "ts-main")
    assert revoke.task == "svc.a"
    assert bench.task() == given_up
    bench.node("n2")
    bench.passes(60_000)
    assert bench.task().nodes


def test_a_task_on_a_node_that_is_emptied_waits_where_there_is_no_other_place() -> None:
    bench = Bench()
    bench.node("n1")
    bench.order()
    bench.ready("n1", 1)
    assert bench.task().state is TaskState.RUNNING
    output = bench.node("n1", NodeState.DRAINING)
    stuck = Escalation(
        "d",
        "svc.a",
        1,
        "no node of the envelope can run the task",
        (Attempt("run on n1", "draining"),),
    )
    output.sends += bench.hear(stuck).sends
    assert bench.task().state is TaskState.WAITING
    assert "is draining (1)" in bench.task().reason
    assert said(output, ServiceReport)[-1].state is ServiceState.WAITING
    assert said(output, Escalation, "namo-main"), "NAMO hears of it"
    resumed = bench.node("n1")
    resumed.sends += bench.passes(60_000).sends
    assert said(resumed, EnvelopeGrant), "what goes on there is reported after a grant"
    bench.ready("n1", 1)
    assert bench.task().state is TaskState.RUNNING


def test_a_question_to_a_person_is_told_as_waiting(bench: Bench) -> None:
    runs(bench, autonomy=Autonomy.MANUAL, specs={"leeway": Leeway(moves=False)})
    complains(bench, 1)
    complains(bench, 2)
    proposal = "a person is asked whether to move svc.a from n1 to n2"
    words = [(event, detail) for layer, event, detail in told(bench) if layer == "ta"]
    assert [event for event, detail in words if detail.startswith(proposal)] == ["waits", "waits"]
    assert "refused" not in [event for event, _ in words]
