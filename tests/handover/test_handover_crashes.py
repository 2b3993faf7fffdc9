"""What dies or is cut off in the midst of a handover: one owner or none, and the copy runs on."""

import pytest
from cells_bench import CellsBench

from controller.anchor.switching import LEASE_MS as ANCHOR_LEASE_MS
from controller.anchor.switching import MARGIN_MS
from controller.decider import Linked, Received
from controller.handover_records import HandoverState
from controller.scheduler.leases import ASK_MS, LEASE_MS, Leases
from protocols.messages import Assign, EnvelopeRevoke, HandoverComplete, Release, Relinquished
from protocols.messages.hierarchy import NodeState

BOUND_MS = LEASE_MS + MARGIN_MS + ASK_MS


class Watched(CellsBench):
    """A bench on which nobody ever sees two owners of the task."""

    def run(self) -> None:
        super().run()
        if len(self.roles) == len(self.lives):
            assert len(self.owners()) < 2, self.owners()


@pytest.fixture
def bench() -> CellsBench:
    bench = Watched("a", "b")
    bench.born("n", "a")
    bench.order("a", spares=0)
    bench.passes(1000, "n")
    return bench


def settled(bench: CellsBench, cell: str = "b") -> None:
    """Check that the task has come along, in the copy that there was."""
    assert bench.task().scheduler == f"ts-{cell}"
    assert bench.owners() == [f"ts-{cell}"]
    assert (bench.task().heir, bench.task().former) == ("", ())
    assert bench.held["n"]["svc.a"].epoch == bench.task().epoch
    assert len(bench.told("n", Assign)) == 1
    assert not bench.told("n", Release)
    assert bench.handovers("n")[-1].state is HandoverState.COMPLETED


def test_the_leases_of_both_sides_fit() -> None:
    assert ANCHOR_LEASE_MS == LEASE_MS


def test_a_source_that_is_cut_off_is_waited_out(bench: CellsBench) -> None:
    bench.cut.add("ts-a")
    bench.moves("n", "b", attached=False)
    began_ms = bench.now_ms
    while bench.task().scheduler == "ts-a":
        bench.passes(100, "n")
    assert bench.now_ms - began_ms <= BOUND_MS
    assert bench.task().former == ("ts-a",)
    assert bench.owners() == ["ts-b"]
    assert bench.handovers("n")[-1].phases["ownerless"] <= BOUND_MS
    # It comes back, and hears what it has lost before it has leave to act.
    bench.cut.clear()
    bench.passes(2000, "n")
    settled(bench)


def test_a_source_that_is_cut_off_rests_before_the_target_begins(bench: CellsBench) -> None:
    bench.cut.add("ts-a")
    bench.moves("n", "b", attached=True)
    rested_ms = granted_ms = None
    for _ in range(80):
        bench.passes(100, "n")
        if rested_ms is None and not bench.owners():
            rested_ms = bench.now_ms
        if granted_ms is None and bench.task().scheduler == "ts-b":
            granted_ms = bench.now_ms
    assert rested_ms is not None
    assert granted_ms is not None
    assert rested_ms < granted_ms


def test_without_leave_to_act_two_would_own_a_task(
    bench: CellsBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leases, "hold", lambda *_: True)
    bench.cut.add("ts-a")
    bench.moves("n", "b", attached=True)
    with pytest.raises(AssertionError, match=r"\['ts-a', 'ts-b'\]"):
        bench.passes(BOUND_MS + 1000, "n")


def test_an_anchor_that_dies_in_the_switch_goes_on(bench: CellsBench) -> None:
    bench.cut.add("ts-a")
    bench.moves("n", "b")
    assert bench.task().heir == "ts-b"
    bench.cut.clear()
    bench.start("ta")
    for cell in "ab":
        bench.feed(f"ts-{cell}", Linked("ta"))
    bench.passes(3000, "n")
    settled(bench)


def linked(bench: CellsBench, *cells: str) -> None:
    """Have the links of schedulers to an anchor begin anew, one after the other."""
    for cell in cells:
        bench.feed("ta", Linked(f"ts-{cell}"))
        bench.feed(f"ts-{cell}", Linked("ta"))


def test_who_only_knows_that_a_node_is_gone_does_not_inherit_its_tasks() -> None:
    """The anchor dies, and hears of the cell before first and of the one that has it not yet."""
    bench = Watched("a", "b", "c")
    bench.born("n", "c")
    bench.passes(1000, "n")
    bench.moves("n", "a", attached=False)
    bench.order("a", spares=0)
    bench.passes(3000, "n")
    bench.cut.add("ts-a")
    bench.moves("n", "b", attached=False)
    assert (bench.task().heir, bench.task().attached) == ("ts-b", 3)
    bench.passes(3000, "n")
    bench.cut = {"ts-b"}
    bench.start("ta")
    linked(bench, "c", "a")
    assert (bench.task().scheduler, bench.task().heir) == ("ts-b", "")
    bench.cut.clear()
    linked(bench, "b")
    bench.passes(3000, "n")
    assert bench.owners() == ["ts-b"]


def test_the_attachments_of_the_node_before_say_nothing_of_the_next_one() -> None:
    bench = Watched("a", "b")
    bench.born("m", "b")
    bench.born("n", "a")
    bench.order("a", spares=0)
    bench.passes(1000, "n", "m")
    bench.goes("n", "b")
    assert (bench.task().node, bench.task().attached) == ("n", 2)
    bench.passes(20_000, "m")
    assert (bench.task().node, bench.task().attached) == ("m", 0)
    bench.start("ta")
    linked(bench, "a", "b")
    bench.passes(1000, "m")
    assert bench.roles["ta"].book.nodes["m"].state is NodeState.ONLINE
    assert len(bench.told("m", Assign)) == 1


def test_an_anchor_that_is_away_is_waited_for(bench: CellsBench) -> None:
    bench.cut.add("ta")
    bench.moves("n", "b")
    bench.passes(8000, "n")
    assert not bench.told("n", HandoverComplete)
    assert not bench.told("n", Release)
    bench.cut.clear()
    for cell in "ab":
        bench.feed("ta", Linked(f"ts-{cell}"))
        bench.feed(f"ts-{cell}", Linked("ta"))
    bench.passes(3000, "n")
    settled(bench)
    assert bench.told("n", HandoverComplete)


def test_a_source_that_dies_has_nothing_to_let_go(bench: CellsBench) -> None:
    bench.cut.add("ts-a")
    bench.moves("n", "b")
    bench.cut.clear()
    bench.start("ts-a")
    bench.passes(3000, "n")
    settled(bench)


def test_a_target_that_dies_adopts_when_it_is_back(bench: CellsBench) -> None:
    bench.moves("n", "b")
    bench.start("ts-b")
    bench.born("n", "b")
    bench.passes(2000, "n")
    settled(bench)


def test_a_target_that_dies_before_the_grant_adopts_when_it_is_back(bench: CellsBench) -> None:
    bench.cut.add("ts-a")
    bench.moves("n", "b")
    bench.start("ts-b")
    bench.born("n", "b")
    bench.cut.clear()
    bench.feed("ta", Linked("ts-a"))
    bench.feed("ts-a", Linked("ta"))
    bench.passes(3000, "n")
    settled(bench)


def test_a_node_that_dies_on_its_way_begins_in_the_other_cell(bench: CellsBench) -> None:
    bench.leaves("n", "b")
    bench.passes(1000)
    bench.born("n", "b")
    bench.passes(1000, "n")
    settled(bench)


def test_a_node_that_returns_to_its_cell_stays_with_it(bench: CellsBench) -> None:
    bench.leaves("n", "b")
    bench.passes(1000)
    bench.born("n", "a")
    bench.passes(1000, "n")
    assert bench.owners() == ["ts-a"]
    assert len(bench.told("n", Assign)) == 1


def test_a_task_that_was_replaced_stays_and_the_copy_that_comes_ends(bench: CellsBench) -> None:
    bench.born("m", "a")
    bench.passes(10_000, "m")
    if bench.task().node != "m":
        pytest.fail(f"it is on {bench.task().node}: {bench.task().reason}")
    bench.moves("n", "b", attached=False)
    bench.passes(3000, "n", "m")
    assert bench.task().scheduler == "ts-a"
    assert bench.owners() == ["ts-a"]
    assert "svc.a" not in bench.held["n"]
    assert "svc.a" in bench.held["m"]


def test_what_a_source_serves_elsewhere_stays_with_it(bench: CellsBench) -> None:
    """The anchor has not heard yet that the source has moved the task to another node."""
    bench.born("m", "a")
    bench.passes(1000, "n", "m")
    leased = bench.task().epoch_high
    revoke = EnvelopeRevoke("svc.a", 1, transferred=True, node="m", cell="b", leased=leased)
    bench.feed("ts-a", Received("ta", 0, 0, "default", "test", revoke))
    assert not bench.said("ts-a", Relinquished)
    assert bench.owners() == ["ts-a"]
