"""Tasks that follow their node: words of the anchor and of a scheduler that cross."""

import pytest
from anchor_bench import Bench, said

from controller.anchor.settings import Settings
from protocols.messages import EnvelopeGrant, EnvelopeRevoke, Relinquished

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
