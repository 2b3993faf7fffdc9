"""What a scheduler is held to: what its own anchors have granted, and that alone."""

import pytest
from scheduler_bench import grant
from tests_support import INVENTORY

from controller.decider import Output, Received, Send, ToNode, ToRole
from controller.scheduler.adoption import OVERTAKEN_MS
from controller.twin.envelopes import PATIENCE_MS, Envelopes
from controller.twin.rules import BrokenRule, Rule
from protocols.messages import Assign, Birth, EnvelopeGrant, EnvelopeRevoke, Relinquished
from protocols.messages.presence import Holding
from protocols.messages.task import InstanceState

GRANT = grant("a")
LATE_MS = GRANT.spec.policy.lost_after_ms + PATIENCE_MS + 1
ASSIGN = Assign("svc.a", "svc", 1, 1, GRANT.spec.manifest)


@pytest.fixture
def envelopes() -> Envelopes:
    return Envelopes(BrokenRule, ("ta-main",))


def hears(envelopes: Envelopes, sender: str, body: EnvelopeGrant | EnvelopeRevoke) -> None:
    envelopes.decided([Received(sender, 0, 0, "default", "test", body)], Output(), 0)


def test_a_task_that_is_not_served_must_be_handed_up(envelopes: Envelopes) -> None:
    hears(envelopes, "ta-main", GRANT)
    envelopes.watch(LATE_MS - 1)
    with pytest.raises(BrokenRule) as broken:
        envelopes.watch(LATE_MS)
    assert broken.value.rule is Rule.ESCALATION


def test_what_a_node_holds_of_the_next_generation_is_waited_for_where_another_may_grant_it() -> (
    None
):
    several = Envelopes(BrokenRule, ("ta-a", "ta-b"))
    birth = Birth("1", "boot", INVENTORY, (Holding("svc.a", 1001, InstanceState.READY, 2),))
    several.decided([Received("a", 1, 0, "default", "test", birth)], Output(), 0)
    hears(several, "ta-a", GRANT)
    several.watch(LATE_MS)
    with pytest.raises(BrokenRule) as broken:
        several.watch(LATE_MS + OVERTAKEN_MS)
    assert broken.value.rule is Rule.ESCALATION


def test_what_a_stranger_grants_nobody_has_to_serve_and_nobody_may(envelopes: Envelopes) -> None:
    hears(envelopes, "ta-nobody", GRANT)
    envelopes.watch(LATE_MS)
    with pytest.raises(BrokenRule) as broken:
        envelopes.decided([], assigning(), 0)
    assert broken.value.rule is Rule.ENVELOPE


def test_what_a_stranger_revokes_is_still_to_be_served(envelopes: Envelopes) -> None:
    hears(envelopes, "ta-main", GRANT)
    hears(envelopes, "ts-cell-2", EnvelopeRevoke("svc.a", 9, ""))
    envelopes.decided([], assigning(), 0)
    with pytest.raises(BrokenRule):
        envelopes.watch(LATE_MS)


def test_an_older_generation_that_is_granted_late_and_ends_takes_nothing_of_the_newer_one() -> None:
    """NAMO had another anchor make the next generation, and the one before goes on with its own."""
    envelopes = Envelopes(BrokenRule, ("ta-a", "ta-b"))
    hears(envelopes, "ta-b", grant("a", generation=2, first=1001))
    hears(envelopes, "ta-a", grant("a"))
    hears(envelopes, "ta-a", EnvelopeRevoke("svc.a", 1, ""))
    next_one = Assign("svc.a", "svc", 1001, 2, GRANT.spec.manifest)
    envelopes.decided([], Output(sends=[Send(ToNode("a"), next_one, "test")]), 0)
    hears(envelopes, "ta-b", EnvelopeRevoke("svc.a", 2, ""))
    with pytest.raises(BrokenRule):
        envelopes.decided([], Output(sends=[Send(ToNode("a"), next_one, "test")]), 0)


def test_what_is_granted_anew_as_it_is_let_go_may_be_assigned(envelopes: Envelopes) -> None:
    """Both may come in one turn, after a link that was long away."""
    hears(envelopes, "ta-main", GRANT)
    let_go = Send(ToRole("ta-main"), Relinquished("svc.a", 1, leased=GRANT.epoch_to), "test")
    anew = grant("a", first=GRANT.epoch_to + 1)
    after = Assign("svc.a", "svc", anew.epoch_from, 1, GRANT.spec.manifest)
    assigned = Send(ToNode("a"), after, "test")
    event = Received("ta-main", 0, 0, "default", "test", anew)
    envelopes.decided([event], Output(sends=[let_go, assigned]), 0)
    last = Send(ToRole("ta-main"), Relinquished("svc.a", 1, leased=anew.epoch_to), "test")
    with pytest.raises(BrokenRule):
        envelopes.decided([], Output(sends=[last, assigned]), 0)


def test_what_is_granted_late_need_not_be_served_and_may_not() -> None:
    envelopes = Envelopes(BrokenRule, ("ta-a", "ta-b"))
    let_go = Relinquished("svc.a", 1, leased=GRANT.epoch_to)
    envelopes.decided([], Output(sends=[Send(ToRole("ta-b"), let_go, "test")]), 0)
    hears(envelopes, "ta-a", GRANT)
    envelopes.watch(LATE_MS)
    with pytest.raises(BrokenRule):
        envelopes.decided([], assigning(), 0)


def test_what_one_takes_back_of_a_generation_takes_nothing_of_who_has_the_one_before() -> None:
    envelopes = Envelopes(BrokenRule, ("ta-a", "ta-b"))
    hears(envelopes, "ta-a", GRANT)
    let_go = Relinquished("svc.a", 2, leased=1000)
    envelopes.decided([], Output(sends=[Send(ToRole("ta-b"), let_go, "test")]), 0)
    envelopes.decided([], assigning(), 0)


def assigning() -> Output:
    return Output(sends=[Send(ToNode("a"), ASSIGN, "test")])
