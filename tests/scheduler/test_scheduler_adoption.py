"""A scheduler without memory, and nodes in the midst of a change: one serves, one is prepared."""

from collections.abc import Callable

import msgspec
import pytest
from quality_bench import envelope
from scheduler_bench import READY, Bench, grant, running, said, told

from controller.decider import Output
from controller.scheduler.orphans import MAX_OF_NODE, MAX_ORPHANS, Orphans
from protocols.messages import (
    AnchorWelcome,
    Assign,
    EnvelopeGrant,
    RebirthRequest,
    Release,
    Route,
    Status,
    TaskReport,
)
from protocols.messages.presence import Holding
from protocols.messages.quality import Leeway, Tuning
from protocols.messages.task import InstanceState

FETCHING, FAILED = InstanceState.FETCHING, InstanceState.FAILED
SMALL = Tuning(variant="small")
TINY = Tuning(variant="tiny")
MODIFIES = Holding("svc.a", 8, FETCHING, 1, TINY, 7, 1, SMALL)
"""The task runs as `small` under epoch 7, and `tiny` is prepared beside it under 8."""


def offered() -> EnvelopeGrant:
    leeway = Leeway(variants=("small", "tiny"))
    return envelope("n1", "n2", first=33, leeway=leeway, current_node="n1", current_epoch=7)


def restarted(*, born_first: bool, holding: Holding = MODIFIES) -> tuple[Bench, Output]:
    """Start a scheduler anew that hears of a node and of its grant in either order."""
    bench = Bench(epoch=2)
    steps: list[Callable[[], Output]] = [
        lambda: bench.born("n1", holdings=(holding,)),
        lambda: bench.anchor(offered()),
    ]
    output = Output()
    for step in steps if born_first else steps[::-1]:
        output.extend(step())
    output.extend(bench.anchor(AnchorWelcome("ta-main", 2, 1)))
    return bench, output


def epochs(output: Output) -> list[int | None]:
    """Return where routes have pointed, in their order; None: nowhere."""
    return [one.plan.steps[0].epoch if one.plan else None for one in said(output, Route)]


@pytest.mark.parametrize("born_first", [True, False])
def test_the_route_stays_at_what_serves_until_the_other_is_ready(*, born_first: bool) -> None:
    bench, output = restarted(born_first=born_first)
    assert epochs(output) == ([7] if born_first else [None, 7])
    assert not said(output, Release)
    assert not said(output, Assign), "what is prepared is waited for"
    assert said(output, TaskReport)[-1].variant == "small"
    output = bench.ready("n1", 8)
    assert epochs(output) == [8]
    assert not said(output, Release)
    assert said(output, TaskReport)[-1].variant == "tiny"
    assert not said(bench.passes(5000, "n1"), Assign)


@pytest.mark.parametrize("late", [True, False])
def test_a_change_that_fails_leaves_what_serves_as_it_runs(*, late: bool) -> None:
    """The node tells of the failure after the scheduler has started, or in its birth."""
    failed = msgspec.structs.replace(MODIFIES, state=FAILED)
    bench, output = restarted(born_first=True, holding=MODIFIES if late else failed)
    if late:
        status = Status(1, "svc.a", 8, FAILED, "no room", generation=1, serving_epoch=7)
        output.extend(bench.node("n1", status))
    output.extend(bench.passes(5000, "n1"))
    assert epochs(output)[-1] == 7
    assert None not in epochs(output)
    assert not said(output, Release)
    assert not said(output, Assign)
    assert said(output, TaskReport)[-1].variant == "small"


def test_what_is_over_is_released_with_all_that_its_node_holds() -> None:
    """A copy on another node is newer than what serves beside a preparation."""
    bench = Bench(epoch=2)
    newer = Holding("svc.a", 7, READY, 1)
    older = msgspec.structs.replace(MODIFIES, serving_epoch=5)
    bench.born("n2", holdings=(newer,))
    bench.anchor(offered())
    output = bench.born("n1", holdings=(older,))
    assert [one.epoch for one in told(output, "n1", Release)] == [8]
    assert epochs(Output(sends=bench.seen))[-1] == 7


def test_an_assignment_that_overtakes_a_birth_is_asked_for_and_taken_in() -> None:
    """The scheduler before this one had sent it; the node gets it after its birth here."""
    bench, output = restarted(born_first=True, holding=Holding("svc.a", 7, READY, 1, SMALL))
    bench.passes(1200, "n1")
    status = Status(1, "svc.a", 8, FETCHING, generation=1, serving_epoch=7)
    output = bench.node("n1", status)
    assert told(output, "n1", RebirthRequest), "only a birth says how it shall run"
    output = bench.born("n1", holdings=(MODIFIES,))
    assert not epochs(output)
    output = bench.ready("n1", 8)
    assert epochs(output) == [8]
    assert said(output, TaskReport)[-1].variant == "tiny"


def test_a_node_that_has_gone_over_meanwhile_is_followed() -> None:
    bench, _ = restarted(born_first=True, holding=Holding("svc.a", 7, READY, 1, SMALL))
    output = bench.born("n1", holdings=(Holding("svc.a", 8, READY, 1, TINY),))
    assert epochs(output) == [8]
    assert not said(output, Release)
    assert not said(output, Assign)


def test_a_status_alone_does_not_say_how_a_copy_runs() -> None:
    """The node is asked, and believed."""
    bench = Bench(epoch=2)
    bench.born("n1")
    bench.anchor(offered())
    bench.passes(1200, "n1")
    output = bench.ready("n1", 7)
    assert epochs(output) == [7]
    assert told(output, "n1", RebirthRequest)
    output = bench.born("n1", holdings=(Holding("svc.a", 7, READY, 1, SMALL),))
    assert said(output, TaskReport)[-1].variant == "small"
    assert not said(output, Assign)
    output = bench.passes(3000, "n1")
    assert not said(output, Assign)


def test_a_rebirth_in_the_midst_of_a_change_withdraws_no_route(bench: Bench) -> None:
    running(bench, "n1")
    [assign] = said(bench.anchor(grant("n1", generation=2)), Assign)
    holding = Holding("svc.a", assign.epoch, FETCHING, 2, Tuning(), 1, 1, Tuning())
    output = bench.born("n1", holdings=(holding,))
    assert not said(output, Route)
    assert not told(output, "n1", Assign), "it has come"
    assert epochs(bench.ready("n1", assign.epoch, 2)) == [assign.epoch]


@pytest.mark.parametrize("serving", [8, 9, 40])
def test_no_node_serves_an_epoch_that_cannot_be(serving: int) -> None:
    forged = msgspec.structs.replace(MODIFIES, serving_epoch=serving)
    _, output = restarted(born_first=True, holding=forged)
    assert not [one for one in epochs(output) if one is not None]


def test_an_anchor_that_did_not_want_a_copy_is_heard_anew_when_its_node_comes_again() -> None:
    orphans, held = Orphans(), Holding("t", 1, InstanceState.READY, 1)
    orphans.put("n", "t", ((5, 1), held))
    assert orphans.refuse("n", "t", "ta-1") == {"ta-1"}
    orphans.put("n", "t", ((6, 1), held))
    assert orphans.refuse("n", "t", "ta-2", 6) == {"ta-2"}
    # It has the task by now, and has spoken before.
    assert orphans.refuse("n", "t", "ta-1", 5) == {"ta-2"}


def test_what_a_node_holds_no_more_is_not_adopted_when_it_is_granted() -> None:
    """It was released by the scheduler of another cell; no birth names it since."""
    bench, held = Bench(), Holding("svc.a", 5, READY, 1)
    bench.born("n1", holdings=(held, msgspec.structs.replace(held, task="svc.b")))
    bench.born("n1")
    output = bench.anchor(grant("n1", first=33))
    assert [one.epoch for one in told(output, "n1", Assign)] == [33]


@pytest.mark.parametrize(("epoch", "goes"), [(5, True), (9, False)])
def test_a_copy_left_over_is_not_taken_for_what_a_transfer_prepares(epoch: int, goes: bool) -> None:
    bench = Bench()
    bench.born("n1", holdings=(Holding("svc.a", epoch, READY, 1),))
    done = bench.anchor(grant("n1", first=33, arriving=True, current_epoch=8))
    assert bool(told(done, "n1", Assign)) is goes


def test_no_node_takes_the_room_of_what_others_hold() -> None:
    orphans = Orphans()
    for number in range(MAX_ORPHANS + 1):
        task = f"svc.{number}"
        orphans.put("liar", task, ((5, 1), Holding(task, 1, InstanceState.READY, 1)))
    orphans.put("n", "svc.1", ((5, 1), Holding("svc.1", 1, InstanceState.READY, 1)))
    assert len(orphans.tasks_on("liar")) == MAX_OF_NODE
    assert orphans.nodes_of("svc.1") == ["liar", "n"]
