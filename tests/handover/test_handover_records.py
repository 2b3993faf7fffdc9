"""What a handover makes durable survives the store."""

from cells_bench import CellsBench
from msgspec import structs

from controller.handover_records import (
    CrossingRecord,
    HandoverRecord,
    HandoverState,
    one_of_each,
    summed,
)
from controller.mobility.settings import MobilitySettings
from controller.store.kinds import TYPES, decode, encode
from protocols.messages import Neighbours


def test_every_record_of_a_handover_can_be_stored() -> None:
    bench = CellsBench("a", "b")
    bench.born("n", "a")
    bench.order("a", spares=0)
    bench.passes(1000, "n")
    bench.hand_over("n", "b")
    bench.moves("n", "b")
    kinds = {kind for kind, _ in bench.store}
    assert {"handover", "crossing", "point"} <= kinds <= TYPES.keys()
    assert "reach" in {kind for kind, _ in bench.stores["ts-a"]} <= TYPES.keys()
    for (kind, key), record in (bench.store | bench.stores["ts-a"]).items():
        assert record.value is not None
        assert decode(kind, key, encode(kind, record.value)) == record.value


def test_a_return_to_the_cell_that_was_just_left_is_marked_and_counted() -> None:
    bench = CellsBench("a", "b")
    bench.born("n", "a")
    bench.passes(1000, "n")
    back_ms = MobilitySettings().back_ms
    for cell, stays_ms in (("b", 1000), ("a", back_ms), ("b", 1000)):
        bench.hand_over("n", cell)
        bench.moves("n", cell)
        bench.passes(stays_ms, "n")
    found = [(one.target, one.state, one.ping_pong) for one in bench.handovers("n")]
    completed = HandoverState.COMPLETED
    assert found == [("b", completed, False), ("a", completed, True), ("b", completed, False)]
    values = [one.value for one in bench.store.values()]
    counted = {one.target: one.ping_pongs for one in values if isinstance(one, CrossingRecord)}
    assert counted == {"a": 1, "b": 0}


def test_an_anchor_that_begins_anew_knows_the_cells() -> None:
    bench = CellsBench("a", "b")
    bench.start("ta")
    bench.born("n", "a")
    bench.passes(1000, "n")
    bench.hand_over("n", "b")
    assert not bench.answers[-1].error


def test_what_two_anchors_have_seen_of_a_handover_is_told_once() -> None:
    completed = HandoverState.COMPLETED
    mine = HandoverRecord(
        *("ts-a-1.1", "n", 3, "a", "b", HandoverState.SWITCHING, "+4 dB"),
        incarnation=7,
        arrived=8,
        tasks=("t",),
        phases={"preparing": 0, "commanded": 5, "switching": 40, "ownerless": 3},
        started_unix_ms=1000,
    )
    theirs = HandoverRecord(
        *("ts-a-1.1", "n", 9, "a", "b", completed, "another anchor has handed it over"),
        arrived=8,
        tasks=("u",),
        phases={"switching": 0, "ownerless": 9, "completed": 20},
        started_unix_ms=1042,
        times={"link_ms": 1.0},
        gap_ms=30.0,
        asked_again=1,
        said_again=0,
        client_gap_ms=33.0,
        ping_pong=True,
    )
    alone = HandoverRecord("n-9", "n", 4, "b", "a", completed, arrived=9, started_unix_ms=2000)
    [one, other] = one_of_each([theirs, alone, mine])
    assert (one.state, one.cause, one.tasks) == (HandoverState.SWITCHING, "+4 dB", ("t", "u"))
    assert one.phases == {
        "preparing": 0, "commanded": 5, "switching": 40, "ownerless": 9, "completed": 62
    }  # fmt: skip
    assert (one.times, one.gap_ms, one.asked_again) == ({"link_ms": 1.0}, 30.0, 1)
    assert (one.client_gap_ms, one.ping_pong) == (33.0, True)
    assert other == alone
    # A node that comes of its own will, late: the anchor that has given it up sees it come.
    late = HandoverRecord("x", "n", 5, "a", "b", HandoverState.FAILED, reason="not in time")
    came = HandoverRecord("x", "n", 6, "a", "b", completed, arrived=10, started_unix_ms=9)
    [one] = one_of_each([late, came])
    assert (one.state, one.reason) == (completed, "")


def test_what_two_anchors_have_counted_of_a_pair_of_cells_is_told_once() -> None:
    mine = CrossingRecord("a", "b", completed=4, failed=1, total_ms=80.0)
    theirs = CrossingRecord("a", "b", completed=5, gaps=(3, 1), gap_p50_ms=9.0, asked_again=2)
    back = CrossingRecord("b", "a", completed=1)
    [one, other] = summed([mine, back, theirs])
    assert (one.completed, one.failed, one.total_ms, one.asked_again) == (5, 1, 80.0, 2)
    assert (one.gaps, one.gap_p50_ms) == ((3, 1), 9.0)
    assert other == back


def test_a_scheduler_that_begins_anew_carries_on_without_its_anchor() -> None:
    bench = CellsBench("a", "b", "c")
    assert bench.reach["ts-a"] == ("b", "c")
    bench.cut.add("ta")
    bench.reach.clear()
    bench.start("ts-a")
    assert bench.reach["ts-a"] == ("b", "c")
    bench.born("n", "a")
    assert [one.cell for one in bench.told("n", Neighbours)[-1].cells] == ["b", "c"]


def test_what_an_anchor_that_is_not_ours_any_more_has_named_is_forgotten() -> None:
    bench = CellsBench("a", "b")
    kept = bench.stores["ts-a"]
    kept["reach", "former"] = structs.replace(kept["reach", "ta"], key="former")
    bench.start("ts-a")
    assert ("reach", "former") not in kept
    assert ("reach", "ta") in kept
