"""Orders of NAMO and services that anchors hand on cross each other: what runs goes on."""

from typing import Any

import pytest
from anchor_bench import Bench, chain, said
from tests_support import INVENTORY

from controller.anchor.handing import LOOK_MS, LOOKS_MAX
from controller.anchor.settings import Settings
from controller.decider import Output, ToRole
from controller.records import GIVEN, TaskState
from protocols.messages import (
    AnchorMoved,
    AnchorOffer,
    AnchorTaken,
    AnchorTransfer,
    Elsewhere,
    EnvelopeGrant,
    EnvelopeRevoke,
    JobsMoved,
    LeaseRequest,
    NodeSummary,
    Relinquished,
    SchedulerHello,
    ServiceDelete,
    ServiceReport,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.mobility import CellPoint

WEST, EAST, NAMO = "ta-west", "ta-east", "namo-main"
BESIDE = {"ts-west": WEST, "ts-east": EAST}
ABOVE = 5_000_000
"""Epochs that NAMO takes the anchor before to have given at most."""


class One(Bench):
    """The anchor of a cell, beside another one."""

    def __init__(self, name: str) -> None:
        super().__init__(Settings(name, tuple(BESIDE), (WEST, EAST), NAMO, cells=("w", "e")))

    def greet(self) -> None:
        for scheduler, beside in BESIDE.items():
            self.hear(SchedulerHello(scheduler, 1, None, beside), scheduler)
            self.hear(LeaseRequest(1), scheduler)

    def at(self, node: str, scheduler: str, incarnation: int = 1) -> Output:
        """Have a node in the cell of a scheduler."""
        summary = NodeSummary(node, NodeState.ONLINE, incarnation, INVENTORY)
        return self.hear(summary, scheduler)

    def ordered(self, generation: int, *names: str, **changes: Any) -> Output:
        return self.hear(chain("svc", generation, *(names or ("a",)), **changes), NAMO)

    def wanted(self, *names: str, **changes: Any) -> Output:
        """Hear NAMO's order to have what the other anchor has."""
        changes = {"taken_from": (WEST,), "epochs_above": ABOVE} | changes
        return self.ordered(2, *names, **changes)

    def lets_go(self, scheduler: str, output: Output) -> Output:
        """Have a scheduler answer that it has let go of what it is asked for."""
        [revoke] = said(output, EnvelopeRevoke, scheduler)
        assert revoke.transferred
        told = Relinquished(revoke.task, revoke.generation, None, 0, 0, revoke.leased)
        return self.hear(told, scheduler)


def offers(generation: int = 1) -> tuple[One, AnchorOffer]:
    """Return the western anchor and what it offers: a service on n1, in the eastern cell."""
    west = One(WEST)
    west.greet()
    west.at("n1", "ts-west")
    west.ordered(generation)
    west.ready("n1", west.task().epoch_high, generation, by="ts-west")
    output = west.at("n1", "ts-east", 2)
    [revoke] = said(output, EnvelopeRevoke, "ts-west")
    epoch = west.task().epoch
    west.hear(Relinquished("svc.a", generation, "n1", epoch, epoch, revoke.leased), "ts-west")
    west.ready("n1", epoch, generation, by="ts-east")
    [offer] = said(west.passes(1000), AnchorOffer)
    return west, offer


def gives(generation: int = 1) -> tuple[One, AnchorTransfer]:
    """Return the western anchor and what it gives."""
    west, offer = offers(generation)
    output = west.hear(AnchorTaken("svc", offer.number, offer=True), EAST)
    [transfer] = said(output, AnchorTransfer, EAST)
    return west, transfer


def given(generation: int = 1) -> AnchorTransfer:
    return gives(generation)[1]


@pytest.fixture
def east() -> One:
    """An anchor that NAMO has ordered nothing of yet; n1 is in its cell, n2 in the other one."""
    one = One(EAST)
    one.greet()
    one.at("n1", "ts-east", 2)
    one.at("n2", "ts-west")
    return one


def begins_elsewhere(east: One) -> None:
    """Have it ordered where it is to begin on the node of the other cell."""
    east.wanted(specs={"nodes": ("n2",)})
    assert (east.task().scheduler, east.task().node) == ("ts-west", "")


def runs_on(east: One, output: Output) -> None:
    """What was given goes on where it is, as the newest order says, and nowhere else."""
    task = east.task()
    assert (task.scheduler, task.node, task.heir) == ("ts-east", "n1", "")
    assert (task.state, task.generation, task.granted) == (TaskState.MODIFYING, 2, 2)
    assert task.served == 1
    grant = said(output, EnvelopeGrant, "ts-east")[-1]
    assert (grant.generation, grant.nodes[0], grant.current_node) == (2, "n1", "n1")
    assert grant.current_epoch == task.epoch > 0
    assert grant.epoch_from > ABOVE
    east.ready("n1", grant.epoch_from, 2, by="ts-east")
    assert east.task().state is TaskState.RUNNING


@pytest.mark.parametrize("restarts", [False, True])
def test_what_waits_for_a_node_is_adopted_where_it_runs(restarts: bool) -> None:
    east = One(EAST)
    east.greet()
    east.wanted()
    east.passes(1000)
    assert east.task().state is TaskState.WAITING
    if restarts:
        east.restart()
        east.greet()
    east.at("n1", "ts-east", 2)
    output = east.hear(given(), WEST)
    assert said(output, AnchorTaken, WEST) == [AnchorTaken("svc", 1)]
    runs_on(east, output)


@pytest.mark.parametrize("restarts", [False, True])
def test_what_was_to_begin_where_it_runs_goes_on_there(east: One, restarts: bool) -> None:
    east.wanted(specs={"nodes": ("n1",)})
    assert (east.task().scheduler, east.task().state) == ("ts-east", TaskState.PLACED)
    if restarts:
        east.restart()
        east.greet()
        east.at("n1", "ts-east", 2)
    runs_on(east, east.hear(given(), WEST))


def test_what_was_to_begin_in_another_cell_is_taken_back_first(east: One) -> None:
    begins_elsewhere(east)
    assert (east.task().scheduler, east.task().state) == ("ts-west", TaskState.PLACED)
    output = east.hear(given(), WEST)
    assert not said(output, EnvelopeGrant), "the other one has leave for it still"
    assert (east.task().heir, east.task().home) == ("ts-east", "n1")
    runs_on(east, east.lets_go("ts-west", output))


def test_who_is_to_have_what_it_runs_keeps_it_until_then(east: One) -> None:
    begins_elsewhere(east)
    east.hear(given(), WEST)
    for before in (WEST, EAST):
        output = east.hear(SchedulerHello("ts-east", 1, None, EAST, 2), "ts-east")
        [moved] = said(output, AnchorMoved, "ts-east")
        assert (moved.service, moved.anchor, moved.before) == ("svc", EAST, before)
        assert moved.going
        east.hear(AnchorTaken("svc", 1), NAMO)


def test_what_serves_here_already_stays(east: One) -> None:
    begins_elsewhere(east)
    east.ready("n2", east.task().epoch_high, 2, by="ts-west")
    before = east.task()
    output = east.hear(given(), WEST)
    assert east.task() == before
    assert not said(output, EnvelopeRevoke)
    assert east.ta.book.services["svc"].number == 1


def test_a_task_that_is_not_ordered_any_more_ends(east: One) -> None:
    east.wanted("b")
    output = east.hear(given(), WEST)
    assert list(east.ta.book.tasks) == ["svc.b"]
    assert [one.task for one in said(output, EnvelopeRevoke, "ts-east")] == ["svc.a"]


@pytest.mark.parametrize("names", [("a", "b"), ("b",)])
def test_an_order_that_was_on_its_way_for_long_gives_way_to_a_newer_generation(
    east: One, names: tuple[str, ...]
) -> None:
    east.ordered(0, *names)
    output = east.hear(given(), WEST)
    task = east.task()
    assert (task.generation, task.node, task.state) == (1, "n1", TaskState.RUNNING)
    assert list(east.ta.book.tasks) == ["svc.a"]
    assert said(output, EnvelopeGrant, "ts-east")[-1].current_node == "n1"


def test_namo_and_those_with_jobs_hear_of_what_was_adopted(east: One) -> None:
    east.wanted(taken_from=())
    output = east.hear(given(), WEST)
    [moved] = said(output, AnchorMoved, NAMO)
    assert (moved.generation, moved.number, moved.anchor, moved.before) == (2, 1, EAST, WEST)
    held = east.ta.book.services["svc"]
    assert (held.number, held.expects) == (1, (WEST,))
    questions = said(east.passes(5000), JobsMoved)
    assert {(one.owner, one.asks) for one in questions} == {(WEST, True)}


def test_what_was_adopted_and_comes_again_changes_nothing(east: One) -> None:
    east.wanted()
    transfer = given()
    east.hear(transfer, WEST)
    before = east.store.copy()
    output = east.hear(transfer, WEST)
    assert said(output, AnchorTaken, WEST) == [AnchorTaken("svc", 1)]
    assert east.store == before


def test_it_goes_on_from_there_under_the_next_number(east: One) -> None:
    east.wanted()
    runs_on(east, east.hear(given(), WEST))
    output = east.at("n1", "ts-west", 3)
    east.lets_go("ts-east", output)
    task = east.task()
    east.ready("n1", task.epoch, 2, by="ts-west")
    [offer] = said(east.passes(1000), AnchorOffer, WEST)
    assert offer.number == 2


def test_clients_of_any_cell_may_go_on_with_what_another_anchor_has_had(east: One) -> None:
    for scheduler, beside in BESIDE.items():
        point = CellPoint(scheduler, scheduler, ("mqtt://h:1",))
        east.hear(SchedulerHello(scheduler, 1, point, beside), scheduler)
    east.wanted()
    output = east.ready("n1", east.task().epoch_high, 2, by="ts-east")
    [told] = said(output, Elsewhere, "ts-west")
    assert (told.node, told.epoch) == ("n1", east.task().epoch)


def test_of_two_that_give_a_generation_each_the_newer_one_goes_on(east: One) -> None:
    """NAMO has had another one order it anew; both follow its node before the first one hears."""
    east.hear(given(), WEST)
    newer = given(2)
    output = east.hear(newer, WEST)
    assert (east.task().generation, east.task().node) == (2, "n1")
    assert [one.number for one in said(output, AnchorMoved, NAMO)] == [2]
    assert said(output, EnvelopeGrant, "ts-east")[-1].generation == 2
    before = east.store.copy()
    for again in (newer, given()):
        assert not said(east.hear(again, WEST), AnchorTaken)[0].refused
        assert east.store == before


def test_what_is_refused_all_the_time_stays() -> None:
    west, offer = offers()
    refused, count = AnchorTaken("svc", offer.number, offer=True, refused="it is here"), 0
    for _ in range(LOOKS_MAX):
        west.hear(refused, EAST)
        count += len(said(west.passes(LOOK_MS), AnchorOffer))
    assert 0 < count < LOOKS_MAX
    assert not said(west.passes(10 * LOOK_MS), AnchorOffer)


# What NAMO says to an anchor that gave a service away, or got it back.


def gave_away() -> One:
    """Return the western anchor after the other one has taken the service."""
    west, transfer = gives()
    west.hear(AnchorTaken("svc", transfer.number), EAST)
    return west


def test_namo_may_order_it_back_from_whoever_has_it_by_then() -> None:
    west = gave_away()
    west.wanted(taken_from=("ta-third",), handed=2, moved_generation=1, moved_number=2)
    assert west.ta.book.services["svc"].number == 2
    assert (GIVEN, "svc") not in west.store


def test_what_comes_back_by_order_is_numbered_above_its_going() -> None:
    west = gave_away()
    west.wanted(taken_from=(EAST,), moved_generation=1, moved_number=1)
    assert west.ta.book.services["svc"].number == 1


def test_an_order_of_who_does_not_know_that_it_has_gone_is_answered() -> None:
    west = gave_away()
    # It has heard as often of another generation, and had it from there before.
    output = west.wanted(taken_from=("ta-third", EAST), handed=2, moved_number=2)
    assert [one.anchor for one in said(output, AnchorMoved, NAMO)] == [EAST]
    assert "svc" not in west.ta.book.services


def test_an_order_of_who_does_not_know_that_it_has_come_is_answered(east: One) -> None:
    """It may have been long on its way, and another anchor have the same order since."""
    east.hear(given(), WEST)
    before = east.store.copy()
    output = east.wanted()
    assert said(output, AnchorMoved, NAMO) == [AnchorMoved("svc", 1, 1, EAST, WEST, 96)]
    assert east.store == before
    east.wanted(handed=1, moved_generation=1, moved_number=1)
    assert east.task().generation == 2


def test_a_word_to_leave_from_before_it_was_given_back_changes_nothing(east: One) -> None:
    """NAMO has had it go from here to the other one, which has given it back since."""
    east.hear(given(), WEST)
    before = east.task()
    for shared in (False, True):
        output = east.hear(ServiceDelete("svc", 1, shared, WEST), NAMO)
        assert east.task() == before
        assert not said(output, EnvelopeRevoke)
        assert [one.generation for one in said(output, ServiceReport, NAMO)] == [1]
    output = east.hear(ServiceDelete("svc", 2, transferred=True, anchor=WEST), NAMO)
    assert "svc" not in east.ta.book.services
    assert [one.to for one in output.sends if isinstance(one.body, ServiceReport)] == [ToRole(NAMO)]
