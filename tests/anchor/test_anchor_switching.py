"""Tasks that follow their node: words of the anchor and of a scheduler that cross."""

import pytest
from anchor_bench import Bench, said

from controller.anchor.settings import Settings
from controller.records import TaskState
from protocols.messages import (
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    Relinquished,
    ServiceReport,
)
from protocols.messages.hierarchy import Attempt, ServiceState

WEST, EAST = "ts-west", "ts-east"


@pytest.fixture
def followed() -> tuple[Bench, EnvelopeRevoke]:
    """A task that runs on n1 and may on n2, just as n1 has turned up in the other cell."""
    bench = Bench(Settings(schedulers=(WEST, EAST), cells=("w", "e")))
    for node in ("n1", "n2"):
        bench.node(node, scheduler=WEST)
    bench.order(1, spares=1)
    bench.ready("n1", 1, by=WEST)
    [revoke] = said(bench.node("n1", scheduler=EAST, incarnation=2), EnvelopeRevoke, WEST)
    return bench, revoke


def test_what_is_served_on_another_node_by_then_stays(
    followed: tuple[Bench, EnvelopeRevoke],
) -> None:
    bench, _ = followed
    assert bench.task().heir == EAST
    bench.ready("n2", 2, by=WEST)
    assert (bench.task().scheduler, bench.task().node, bench.task().heir) == (WEST, "n2", "")


def test_what_was_to_stay_and_is_let_go_of_all_the_same_goes_on_there(
    followed: tuple[Bench, EnvelopeRevoke],
) -> None:
    """It was served on another node, and has ended there before the scheduler has heard."""
    bench, revoke = followed
    bench.ready("n2", 2, by=WEST)
    told = Relinquished("svc.a", 1, None, 0, 2, revoke.leased)
    [grant] = said(bench.hear(told, WEST), EnvelopeGrant, WEST)
    assert grant.epoch_from == revoke.leased + 1
    assert grant.nodes == ("n1", "n2")
    before = bench.task()
    assert not said(bench.hear(told, WEST), EnvelopeGrant), "an old word grants nothing"
    assert bench.task() == before


def test_a_service_runs_when_its_newest_generation_does_wherever_it_goes(
    followed: tuple[Bench, EnvelopeRevoke],
) -> None:
    """Who had the one before ends it when it hears that the newest runs."""
    bench, revoke = followed
    bench.order(2, spares=1)
    bench.hear(Relinquished("svc.a", 1, "n1", 1, 1, revoke.leased), WEST)
    bench.ready("n1", 1, by=EAST)
    assert bench.task().state is TaskState.MODIFYING
    bench.node("n1", scheduler=WEST, incarnation=3)
    gone = Escalation(
        *("e", "svc.a", 2, "no node of the envelope can run the task"),
        attempts=(Attempt("run on n1", "moved"),),
        epoch_seen=bench.task().epoch_high,
    )
    output = bench.hear(gone, EAST)
    assert bench.task().state is TaskState.TRANSFERRING
    assert not said(output, ServiceReport)
    [told] = said(bench.order(2, spares=1), ServiceReport)
    assert told.state is ServiceState.DEPLOYING


def test_who_is_to_let_go_hears_of_a_generation_that_is_ordered_meanwhile(
    followed: tuple[Bench, EnvelopeRevoke],
) -> None:
    """It may have one above the last of another anchor: then it has not answered for that."""
    bench, first = followed
    [revoke] = said(bench.order(2, spares=1, epochs_above=5000), EnvelopeRevoke, WEST)
    assert (revoke.transferred, revoke.generation) == (True, 2)
    late = Relinquished("svc.a", 1, "n1", 1, 1, first.leased)
    assert not said(bench.hear(late, WEST), EnvelopeGrant), "epochs above have been set aside"
    told = Relinquished("svc.a", 2, "n1", 1, 1, revoke.leased)
    grants = said(bench.hear(told, WEST), EnvelopeGrant, EAST)
    assert [one.generation for one in grants] == [1, 2]
