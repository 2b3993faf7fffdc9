"""Autonomy: what waits for a person, and what never does."""

from typing import Any

import msgspec
from msgspec.structs import replace
from namo_bench import Decide, Delete, Host, a_service, bodies, step, summary

from controller.decider import Output, ToRole
from controller.namo.approvals import DENIED_MS, PENDING_MS, STEPS
from controller.namo.books import MAX_ANSWERED
from controller.namo.decider import Namo
from controller.records import APPROVAL, ApprovalRecord, ApprovalState
from protocols.errors import Blame
from protocols.messages import Escalation, EscalationAnswer, ServiceOrder
from protocols.messages.hierarchy import Attempt, Autonomy, ServiceState

SLOW: dict[str, Any] = {"indicator": "latency_ms", "target": 50.0, "measured": 400.0}
SMALL: dict[str, Any] = {
    "name": "small",
    "tasks": [step("q", expected_ms=9)],
    "outputs": {"y": "q.y"},
}


def served(level: str) -> Host:
    host = Host()
    host.hear(summary())
    zone = {"autonomy": {"level": level}}
    host.submit(a_service([step("t", expected_ms=5)], alternatives=[SMALL], sla={"zone": zone}))
    host.runs()
    return host


def escalate(host: Host, number: str = "e1", **more: Any) -> Output:
    record = host.service()
    task = record.order.tasks[0].task
    said = Escalation(number, task, record.order.generation, "too slow", **more)
    return host.hear(said)


def error_of(out: Output) -> str:
    (answer,) = out.answers
    assert answer.blame is Blame.USER
    return answer.error


def test_what_an_anchor_proposes_for_a_manual_service_waits_for_a_person() -> None:
    host = served("manual")
    attempts = (Attempt("nothing", "not allowed"),)
    out = escalate(host, proposal="use the variant tiny", attempts=attempts, **SLOW)
    assert out.sends == []
    (asked,) = host.approvals()
    assert (asked.number, asked.state) == ("1", ApprovalState.PENDING)
    assert asked.decision == "use the variant tiny"
    assert asked.reason == "a.t: too slow (tried: nothing: not allowed)"
    granted = host.call("approve.grant", Decide("1"))
    assert [(send.to, send.body) for send in granted.sends] == [
        (
            ToRole("ta-main"),
            EscalationAnswer("e1", "a.t", True, "approval 1 was granted by user 'default'"),
        )
    ]
    assert granted.answers[0].value.state is ApprovalState.GRANTED
    assert host.approvals()[0].answered_by == "default"
    # Saying it again changes nothing and sends nothing.
    again = host.call("approve.grant", Decide("1"))
    assert (again.sends, again.records) == ([], [])
    assert error_of(host.call("approve.deny", Decide("1"))) == "approval 1 is granted already"


def test_another_decomposition_of_a_partly_autonomous_service_waits() -> None:
    host = served("partial")
    assert host.service().order.autonomy is Autonomy.PARTIAL
    assert bodies(escalate(host, **SLOW)) == []
    (asked,) = host.approvals()
    assert asked.decision == "order small+spread at ta-main instead of main+spread at ta-main"
    out = host.call("approve.grant", Decide("1"))
    order, answer = bodies(out)
    assert isinstance(order, ServiceOrder)
    assert order.decomposition == "small+spread"
    assert isinstance(answer, EscalationAnswer)
    assert (answer.number, answer.granted) == ("e1", True)
    assert host.approvals()[0].state is ApprovalState.GRANTED


def test_a_denied_decision_is_not_asked_again_soon() -> None:
    host = served("partial")
    escalate(host, **SLOW)
    (answer,) = bodies(host.call("approve.deny", Decide("1")))
    assert answer == EscalationAnswer("e1", "a.t", False, "approval 1 was denied by user 'default'")
    (refused,) = bodies(escalate(host, "e2", **SLOW))
    assert refused == EscalationAnswer("e2", "a.t", False, "a person has denied this")
    host.pass_time(DENIED_MS)
    assert bodies(escalate(host, "e3", **SLOW)) == []
    assert [one.state for one in host.approvals()] == [ApprovalState.DENIED, ApprovalState.PENDING]


def test_the_same_question_is_asked_once_and_the_newest_gets_the_answer() -> None:
    host = served("partial")
    escalate(host, "e1", **SLOW)
    escalate(host, "e2", **SLOW)
    (asked,) = host.approvals()
    assert asked.escalation is not None
    assert asked.escalation.number == "e2"


def test_a_loss_is_mended_without_a_person() -> None:
    for level in ("manual", "partial", "full"):
        host = served(level)
        (order, answer) = bodies(escalate(host))
        assert isinstance(order, ServiceOrder), level
        assert isinstance(answer, EscalationAnswer)
        assert answer.granted
        assert host.approvals() == []


def test_a_question_about_a_service_that_has_changed_is_withdrawn() -> None:
    host = served("partial")
    escalate(host, **SLOW)
    host.call("usecase.delete", Delete("u"))
    assert host.approvals()[0].state is ApprovalState.WITHDRAWN
    assert "withdrawn already" in error_of(host.call("approve.grant", Decide("1")))


def test_what_is_no_longer_possible_is_told() -> None:
    host = served("partial")
    escalate(host, **SLOW)
    host.hear(summary(nodes=0))
    (answer,) = bodies(host.call("approve.grant", Decide("1")))
    assert answer == EscalationAnswer(
        "e1", "a.t", False, "small+spread at ta-main was approved, but is possible no more"
    )


def test_a_question_survives_a_crash() -> None:
    host = served("manual")
    escalate(host, proposal="use the variant tiny", **SLOW)
    (asked,) = host.approvals()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=type(asked)) == asked
    host.restart()
    (answer,) = bodies(host.call("approve.grant", Decide("1")))
    assert isinstance(answer, EscalationAnswer)
    assert answer.granted


def test_only_the_owner_decides_and_an_unknown_number_is_told() -> None:
    host = served("manual")
    escalate(host, proposal="use the variant tiny", **SLOW)
    out = host.call("approve.grant", Decide("1"), "red")
    assert error_of(out) == "approval 1 is of tenant 'default', you are 'red'"
    assert error_of(host.call("approve.deny", Decide("7"))) == "there is no approval '7'"
    assert host.service().state is ServiceState.RUNNING


def test_what_is_only_in_danger_is_not_changed_behind_a_persons_back() -> None:
    host = served("manual")
    escalate(host, proposal="use the variant tiny", **SLOW)
    escalate(host, "e2", **SLOW)
    host.call("approve.deny", Decide("2"))
    host.report("a", 1, ServiceState.DEGRADED)
    for out in host.pass_time(10 * DENIED_MS):
        assert not any(isinstance(body, ServiceOrder) for body in bodies(out))


# What a restart may not forget.


def test_a_denial_survives_a_crash_and_ends_in_its_time() -> None:
    host = served("partial")
    escalate(host, **SLOW)
    host.call("approve.deny", Decide("1"))
    host.pass_time(DENIED_MS // 2)
    host.restart()
    (refused,) = bodies(escalate(host, "e2", **SLOW))
    assert refused == EscalationAnswer("e2", "a.t", False, "a person has denied this")
    host.pass_time(DENIED_MS // 2)
    host.restart()
    assert host.approvals()[0].left_ms == 0
    assert bodies(escalate(host, "e3", **SLOW)) == []
    assert [one.state for one in host.approvals()] == [ApprovalState.DENIED, ApprovalState.PENDING]


def test_a_restart_lengthens_a_denial_by_one_step_at_most() -> None:
    host = served("partial")
    escalate(host, **SLOW)
    host.call("approve.deny", Decide("1"))
    for _ in range(STEPS):
        host.pass_time(DENIED_MS // STEPS)
        host.pass_time(DENIED_MS // STEPS - 1)
        host.restart()
    assert bodies(escalate(host, "e2", **SLOW)) == []


def test_a_question_that_nobody_answers_expires_and_the_anchor_hears_it() -> None:
    host = served("manual")
    escalate(host, proposal="use the variant tiny", **SLOW)
    host.pass_time(PENDING_MS // 2)
    # Asked again, and across a crash, it is the same question and has no more time.
    escalate(host, "e2", proposal="use the variant tiny", **SLOW)
    host.restart()
    outs = host.pass_time(PENDING_MS // 2)
    told = [body for out in outs for body in bodies(out)]
    why = "approval 1 has expired: nobody answered within 24 hours"
    assert told == [EscalationAnswer("e2", "a.t", False, why)]
    (asked,) = host.approvals()
    assert (asked.state, asked.outcome) == (
        ApprovalState.EXPIRED,
        "nobody answered within 24 hours",
    )
    assert "expired already" in error_of(host.call("approve.grant", Decide("1")))
    assert not any(key.startswith("hold/") for key in host.timers)


def test_a_question_of_a_version_that_waited_for_ever_expires_too() -> None:
    host = served("manual")
    escalate(host, proposal="use the variant tiny", **SLOW)
    old = host.records[APPROVAL, "1"]
    assert isinstance(old.value, ApprovalRecord)
    host.records[APPROVAL, "1"] = replace(old, value=replace(old.value, left_ms=0))
    host.restart()
    host.pass_time(PENDING_MS)
    assert host.approvals()[0].state is ApprovalState.EXPIRED


def test_a_changed_service_begins_without_denials_also_after_a_crash() -> None:
    host = served("partial")
    escalate(host, **SLOW)
    host.call("approve.deny", Decide("1"))
    zone = {"autonomy": {"level": "partial"}}
    tasks = [step("t", expected_ms=6)]
    host.submit(a_service(tasks, alternatives=[SMALL], sla={"zone": zone}))
    host.runs()
    host.restart()
    assert bodies(escalate(host, "e2", **SLOW)) == []
    assert host.approvals()[-1].state is ApprovalState.PENDING


def test_a_denial_that_holds_is_not_pushed_out_by_those_answered_later() -> None:
    host = served("manual")
    escalate(host, proposal="use the variant tiny", **SLOW)
    host.call("approve.deny", Decide("1"))
    for at in range(MAX_ANSWERED + 1):
        escalate(host, f"g{at}", proposal=f"way {at}", **SLOW)
        host.call("approve.grant", Decide(str(2 + at)))
    host.restart()
    (refused,) = bodies(escalate(host, "e2", proposal="use the variant tiny", **SLOW))
    assert isinstance(refused, EscalationAnswer)
    assert not refused.granted


def test_a_question_says_when_it_was_asked_first() -> None:
    host = served("partial")
    asked_ms = host.now_ms
    escalate(host, "e1", **SLOW)
    host.pass_time(5000)
    escalate(host, "e2", **SLOW)
    (asked,) = host.approvals()
    # A call at the start of the bench's clock has said that it was 77 then.
    assert asked.asked_unix_ms == 77 + asked_ms


def test_without_a_clock_a_question_has_no_time() -> None:
    host = served("partial")
    host.restart()
    host.hear(summary())
    escalate(host, **SLOW)
    assert host.approvals()[0].asked_unix_ms == 0
    host = served("partial")
    host.restart()
    host.namo.books.unix_offset_ms = Namo(unix_offset_ms=1000).books.unix_offset_ms
    host.hear(summary())
    escalate(host, **SLOW)
    assert host.approvals()[0].asked_unix_ms == 1000 + host.now_ms
