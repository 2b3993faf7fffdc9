"""The decider: submissions, reports, deletions, crashes and lost messages."""

import random

import msgspec
import pytest
from namo_bench import DIGEST, Delete, Host, Submit, bodies

from controller.decider import (
    Answer,
    Fired,
    Output,
    Role,
    Send,
    Timer,
    ToRole,
)
from controller.namo import submission
from controller.namo.books import RETRY_CAP_MS, RETRY_FIRST_MS
from controller.records import SERVICE, USE_CASE, ServiceRecord, UseCaseState
from protocols.errors import Blame
from protocols.messages import (
    Body,
    Escalation,
    EscalationAnswer,
    Probe,
    ServiceDelete,
    ServiceOrder,
    ServiceReport,
)
from protocols.messages.hierarchy import ServiceState


def document(name: str = "u", services: str = "a", expected_ms: float = 5, **more: object) -> str:
    task = {
        "name": "t",
        "executor": "wasm",
        "artifact": DIGEST,
        "artifact_bytes": 10,
        "inputs": {"x": {"from": "request.x", "dtype": "uint8", "shape": [-1]}},
        "outputs": {"y": {"dtype": "uint8", "shape": [-1]}},
    }
    sla = {"zone": {"latency_ms": {"at_most": 100}}}
    made = [
        {
            "name": one,
            "kind": "computing",
            "outputs": {"y": "t.y"},
            "tasks": [{**task, "expected_ms": expected_ms if one == "a" else 5}],
            "sla": sla,
        }
        for one in services
    ]
    return msgspec.json.encode({"name": name, "services": made, **more}).decode()


def refusal(out: Output) -> str:
    (answer,) = out.answers
    assert answer.blame is Blame.USER
    assert (out.records, out.sends, out.timers) == ([], [], [])
    return answer.error


def test_a_submission_is_recorded_ordered_and_answered() -> None:
    host = Host()
    out = host.call("usecase.submit", Submit(document(services="ab")))
    assert host.use_case().state is UseCaseState.ACCEPTED
    assert host.use_case().generation == 1
    assert host.use_case().submitted_unix_ms == 77
    assert host.service("b").state is ServiceState.DEPLOYING
    assert [type(body) for body in bodies(out)] == [ServiceOrder, ServiceOrder]
    assert {send.to for send in out.sends} == {ToRole("ta-main")}
    assert {send.cause for send in out.sends} == {"by-hand"}
    (answer,) = out.answers
    assert answer.value == submission.Submitted(
        name="u",
        tenant="default",
        generation=1,
        change="created",
        services=("a", "b"),
        tasks={"a.t": 100.0, "b.t": 100.0},
        decompositions={"a": "main+spread at ta-main", "b": "main+spread at ta-main"},
    )
    assert out.timers == [Timer("order/a", RETRY_FIRST_MS), Timer("order/b", RETRY_FIRST_MS)]


def test_every_record_and_answer_survives_the_codec_of_the_store() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document()))
    for value in (host.use_case(), host.service()):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value


def test_a_dry_run_changes_nothing() -> None:
    host = Host()
    out = host.call("usecase.submit", Submit(document(), dry_run=True))
    (answer,) = out.answers
    assert answer.value.change == "created"
    assert answer.value.dry_run
    assert (out.records, out.sends, out.timers) == ([], [], [])
    assert refusal(host.call("usecase.delete", Delete("u"))) == "there is no use case 'u'"


def test_the_same_document_again_changes_nothing() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document()))
    out = host.call("usecase.submit", Submit(document()))
    (answer,) = out.answers
    assert (answer.value.change, answer.value.generation) == ("unchanged", 1)
    assert (out.records, out.sends) == ([], [])


def test_a_changed_document_orders_only_the_services_that_differ() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document(services="ab")))
    for one in "ab":
        host.report(one, 1, ServiceState.RUNNING)
    out = host.call("usecase.submit", Submit(document(services="ab", expected_ms=9)))
    (order,) = bodies(out)
    assert isinstance(order, ServiceOrder)
    assert (order.service, order.generation) == ("a", 2)
    assert (host.use_case().generation, host.use_case().state) == (2, UseCaseState.ACCEPTED)
    assert host.service("b").state is ServiceState.RUNNING
    host.report("a", 1, ServiceState.RUNNING)
    assert host.use_case().state is UseCaseState.ACCEPTED
    host.report("a", 2, ServiceState.RUNNING)
    assert host.use_case().state is UseCaseState.RUNNING


def test_a_service_that_is_gone_from_the_document_is_ended() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document(services="ab")))
    out = host.call("usecase.submit", Submit(document(services="a")))
    assert bodies(out) == [ServiceDelete("b", 1)]
    (answer,) = out.answers
    assert answer.value.removed == ("b",)
    back = host.call("usecase.submit", Submit(document(services="ab")))
    assert refusal(back) == "service 'b' is being deleted: submit it when that has ended"
    host.report("b", 1, ServiceState.DELETED)
    (order,) = bodies(host.call("usecase.submit", Submit(document(services="ab"))))
    assert isinstance(order, ServiceOrder)
    assert (order.service, order.generation) == ("b", 3)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((ServiceState.RUNNING, ServiceState.RUNNING), UseCaseState.RUNNING),
        ((ServiceState.RUNNING, ServiceState.DEPLOYING), UseCaseState.ACCEPTED),
        ((ServiceState.RUNNING, ServiceState.DEGRADED), UseCaseState.DEGRADED),
        ((ServiceState.WAITING, ServiceState.DEGRADED), UseCaseState.WAITING),
    ],
)
def test_a_use_case_is_as_well_as_its_worst_service(
    states: tuple[ServiceState, ...], expected: UseCaseState
) -> None:
    host = Host()
    host.call("usecase.submit", Submit(document(services="ab")))
    for name, state in zip("ab", states, strict=True):
        host.report(name, 1, state)
    assert host.use_case().state is expected
    if expected is not UseCaseState.RUNNING:
        assert host.use_case().reason in {"", "b is degraded", "a is waiting", "b is deploying"}


def test_a_report_that_repeats_itself_writes_nothing() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document()))
    host.report("a", 1, ServiceState.RUNNING)
    out = host.report("a", 1, ServiceState.RUNNING)
    assert (out.records, out.sends, out.timers) == ([], [], [])


def test_deletion_ends_when_the_anchor_says_so() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document(services="ab")))
    out = host.call("usecase.delete", Delete("u"))
    assert bodies(out) == [ServiceDelete("a", 1), ServiceDelete("b", 1)]
    assert host.use_case().state is UseCaseState.DELETING
    again = host.call("usecase.delete", Delete("u"))
    assert (again.sends, again.records) == ([], [])
    host.report("a", 1, ServiceState.DELETED)
    assert host.use_case().state is UseCaseState.DELETING
    # A report that was under way when the deletion was ordered.
    host.report("b", 1, ServiceState.RUNNING)
    host.report("b", 1, ServiceState.DELETED)
    assert host.use_case().state is UseCaseState.DELETED
    assert host.timers == {}


def test_a_name_that_is_used_again_goes_on_counting() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document()))
    host.call("usecase.delete", Delete("u"))
    while_deleting = host.call("usecase.submit", Submit(document()))
    assert "is being deleted" in refusal(while_deleting)
    host.report("a", 1, ServiceState.DELETED)
    (order,) = bodies(host.call("usecase.submit", Submit(document("other"))))
    assert isinstance(order, ServiceOrder)
    assert order.generation == 2
    # The late report speaks of the older service, not of this one.
    host.report("a", 1, ServiceState.DELETED)
    assert host.service().state is ServiceState.DEPLOYING


def test_a_service_belongs_to_one_use_case() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document()))
    out = host.call("usecase.submit", Submit(document("v")))
    assert refusal(out) == "service 'a' belongs to use case 'u': choose another name"


def test_a_tenant_touches_only_its_own() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document()), tenant="red")
    assert host.use_case().tenant == "red"
    blue = host.call("usecase.submit", Submit(document(expected_ms=6)), tenant="blue")
    assert refusal(blue) == "use case 'u' is of tenant 'red', you are 'blue'"
    assert "is of tenant 'red'" in refusal(host.call("usecase.delete", Delete("u"), "blue"))
    other = host.call("usecase.submit", Submit(document("w", tenant="red")), tenant="blue")
    assert "is of tenant 'red'" in refusal(other)
    (answer,) = host.call("usecase.submit", Submit(document(expected_ms=6))).answers
    assert answer.value.tenant == "red"


def test_what_is_wrong_with_a_document_comes_back_in_full() -> None:
    host = Host()
    text = refusal(host.call("usecase.submit", Submit("name = 1\nx = 2", "toml")))
    assert text.splitlines() == [
        "the use case is not valid:",
        "the document: the field 'services' is missing",
        "line 1, name: expected str, got int",
        "line 2, x: there is no field 'x' here",
    ]


def test_an_unknown_name_suggests_the_near_one() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document("reading")))
    out = host.call("usecase.delete", Delete("readng"))
    assert refusal(out) == "there is no use case 'readng'; did you mean 'reading'?"


def test_an_unconfirmed_order_is_sent_again_ever_more_slowly() -> None:
    host = Host()
    (order,) = bodies(host.call("usecase.submit", Submit(document())))
    gaps = []
    for _ in range(8):
        before = host.now_ms
        assert bodies(host.fire()) == [order]
        gaps.append(host.now_ms - before)
    assert gaps == [1000, 2000, 4000, 8000, 16000, RETRY_CAP_MS, RETRY_CAP_MS, RETRY_CAP_MS]
    host.report("a", 1, ServiceState.DEPLOYING)
    assert host.timers == {}


def test_a_service_that_its_anchor_has_lost_is_ordered_again_but_not_in_a_storm() -> None:
    host = Host()
    (order,) = bodies(host.call("usecase.submit", Submit(document())))
    host.report("a", 1, ServiceState.RUNNING)
    for _ in range(5):
        assert bodies(host.report("a", 1, ServiceState.DELETED)) == []
    assert bodies(host.fire()) == [order]


def test_after_a_crash_what_is_unconfirmed_is_sent_again_and_nothing_else() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document(services="abc")))
    host.report("a", 1, ServiceState.RUNNING)
    host.call("usecase.submit", Submit(document(services="ac")))
    out = host.restart()
    assert sorted(type(body).__name__ for body in bodies(out)) == ["ServiceDelete", "ServiceOrder"]
    assert out.records == []
    assert sorted(host.timers) == ["order/b", "order/c"]
    assert (host.call("usecase.submit", Submit(document(services="ac")))).sends == []


def test_an_escalation_is_refused_with_a_reason_a_person_can_read() -> None:
    host = Host()
    host.call("usecase.submit", Submit(document()))
    (send,) = host.hear(Escalation("e1", "a.t", 1, "too slow")).sends
    assert send.to == ToRole("ta-main")
    answer = send.body
    assert isinstance(answer, EscalationAnswer)
    assert (answer.number, answer.task, answer.granted) == ("e1", "a.t", False)
    assert "has no other decomposition" in answer.reason
    assert send.cause == "heard"


@pytest.mark.parametrize(
    ("task", "generation", "reason"),
    [
        ("x.t", 1, "service 'x' is not ordered: nothing is to be kept up"),
        ("a.t", 7, "generation 7 of service 'a' is over: 1 was ordered"),
    ],
)
def test_an_escalation_about_something_else_is_refused_too(
    task: str, generation: int, reason: str
) -> None:
    host = Host()
    host.call("usecase.submit", Submit(document()))
    (answer,) = bodies(host.hear(Escalation("e1", task, generation, "")))
    assert isinstance(answer, EscalationAnswer)
    assert (answer.granted, answer.reason) == (False, reason)


def test_what_is_not_for_this_layer_is_left_alone() -> None:
    host = Host()
    assert host.hear(Probe(1)) == Output()
    assert host.report("nobody", 1, ServiceState.RUNNING) == Output()
    assert host.take(host.namo.handle([Fired("order/nobody")], 5)) == Output()
    (answer,) = host.call("node.drain", Delete("n")).answers
    assert answer == Answer("c1", error="'node.drain' is no operation of namo", blame=Blame.OURS)
    assert (host.namo.role, host.namo.name) == (Role.NAMO, "namo-main")


def test_tombstones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.namo.books.MAX_TOMBSTONES", 2)
    host = Host()
    for at in range(5):
        host.call("usecase.submit", Submit(document(f"u{at}", services="abcde"[at])))
        host.call("usecase.delete", Delete(f"u{at}"))
        host.report("abcde"[at], 1, ServiceState.DELETED)
    assert sorted(host.records) == [
        (SERVICE, "d"), (SERVICE, "e"), (USE_CASE, "u3"), (USE_CASE, "u4"),
    ]  # fmt: skip


class Anchor:
    """What a TA keeps: the newest order of each service, by generation."""

    def __init__(self) -> None:
        self.held: dict[str, ServiceOrder | int] = {}

    def hear(self, body: Body) -> ServiceReport:
        assert isinstance(body, ServiceOrder | ServiceDelete)
        held = self.held.get(body.service, -1)
        newest = held if isinstance(held, int) else held.generation
        if isinstance(body, ServiceDelete):
            if body.generation >= newest:
                self.held[body.service] = body.generation
            return ServiceReport(body.service, body.generation, ServiceState.DELETED)
        if body.generation > newest:
            self.held[body.service] = body
        return ServiceReport(body.service, body.generation, ServiceState.RUNNING)


class Wire:
    """Carries messages between the two, out of order, doubled and with losses, from a seed."""

    def __init__(self, host: Host, anchor: Anchor, dice: random.Random) -> None:
        self.host, self.anchor, self.dice = host, anchor, dice
        self.to_anchor: list[Send] = []
        self.to_namo: list[ServiceReport] = []

    def step(self, out: Output) -> None:
        self.to_anchor.extend(out.sends)

    def deliver(self, keep: float) -> None:
        dice = self.dice
        dice.shuffle(self.to_anchor)
        for send in [self.to_anchor.pop() for _ in range(dice.randint(0, len(self.to_anchor)))]:
            copies = dice.randint(int(keep == 1), 2)
            self.to_namo.extend([self.anchor.hear(send.body)] * copies)
        dice.shuffle(self.to_namo)
        for report in [self.to_namo.pop() for _ in range(dice.randint(0, len(self.to_namo)))]:
            if dice.random() < keep:
                self.step(self.host.hear(report))

    def disturb(self) -> None:
        dice, host = self.dice, self.host
        chance = dice.random()
        if chance < 0.3:
            services = "".join(sorted(dice.sample("abc", dice.randint(1, 3))))
            text = document(services=services, expected_ms=dice.choice([5, 9]))
            self.step(host.call("usecase.submit", Submit(text)))
        elif chance < 0.4:
            self.step(host.call("usecase.delete", Delete("u")))
        elif chance < 0.5:
            self.step(host.restart())
        elif chance < 0.7 and host.timers:
            self.step(host.fire())
        else:
            self.deliver(keep=0.7)

    def settle(self) -> None:
        for _ in range(200):
            while self.to_anchor or self.to_namo:
                self.deliver(keep=1)
            if not self.host.timers:
                return
            self.step(self.host.fire())
        pytest.fail("the system does not settle")


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_lost_doubled_late_or_crashes_namo_and_anchor_agree_in_the_end(
    seed: int,
) -> None:
    host, anchor = Host(), Anchor()
    wire = Wire(host, anchor, random.Random(seed))
    wire.step(host.call("usecase.submit", Submit(document())))
    for _ in range(40):
        wire.disturb()
    wire.settle()
    services = [one.value for (kind, _), one in host.records.items() if kind == SERVICE]
    wanted = {
        one.order.service: one.order
        for one in services
        if isinstance(one, ServiceRecord) and not one.ending
    }
    running = {k: held for k, held in anchor.held.items() if not isinstance(held, int)}
    assert running == wanted
    assert host.use_case().state is (UseCaseState.RUNNING if wanted else UseCaseState.DELETED)


def test_a_name_that_was_given_up_may_be_taken_while_the_rest_is_still_deleted() -> None:
    """Use case u goes; its service a has ended, b has not, and v takes the name a."""
    host = Host()
    host.call("usecase.submit", Submit(document(services="ab")))
    host.call("usecase.delete", Delete("u"))
    host.report("a", 1, ServiceState.DELETED)
    host.call("usecase.submit", Submit(document("v", services="a")))
    host.report("a", host.service("a").order.generation, ServiceState.RUNNING)
    assert host.use_case("u").state is UseCaseState.DELETING
    host.report("b", 1, ServiceState.DELETED)
    assert host.use_case("u").state is UseCaseState.DELETED
    assert host.use_case("v").state is UseCaseState.RUNNING
