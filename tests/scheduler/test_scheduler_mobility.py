"""The scheduler decides which cell is to serve a node, or hands the report on to whoever does."""

from typing import Any

from scheduler_bench import Bench, said, told
from tests_support import INVENTORY

from controller.api import client
from controller.decider import Received
from controller.mobility.settings import BETTER, NEAR, MobilitySettings
from protocols.messages import (
    Birth,
    Death,
    HandoverAnswer,
    HandoverFailed,
    HandoverRequired,
    Measurement,
    Neighbours,
    Welcome,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.mobility import CellMeasure, CellPoint
from protocols.messages.presence import Arrival

POINTS = tuple(CellPoint(one, f"ts-{one}", (f"mqtt://10.0.0.1:{ord(one)}",)) for one in "bc")
REST_MS = 5000


def gateway(**mobility: Any) -> Bench:
    settings = MobilitySettings(offsets_db={"c": -1.0}, **mobility)
    bench = Bench(cell="a", mobility=settings)
    bench.anchor(Neighbours(1, POINTS, loads=(0.0, 0.2)))
    bench.born("n1")
    return bench


def arrives(bench: Bench, source: str) -> None:
    bench.incarnations["n1"] += 1
    arrival = Arrival(source, bench.incarnations["n1"] - 1)
    bench.node("n1", Birth("1", "boot", INVENTORY, arrival=arrival))


def report(bench: Bench, here: float, rule: int = BETTER, **levels: float) -> list[Any]:
    measures = tuple(CellMeasure(cell, level_db=level) for cell, level in levels.items())
    body = Measurement("a3", CellMeasure("a", level_db=here), measures, rule, tuple(levels), True)
    return said(bench.node("n1", body), HandoverRequired)


def test_nodes_are_told_of_their_neighbours_and_how_to_measure_them() -> None:
    bench = gateway()
    (one,) = told(bench.born("n9"), "n9", Neighbours)
    assert [(cell.cell, cell.offset_db) for cell in one.cells] == [("b", 0.0), ("c", -1.0)]
    assert one.measuring == bench.ts.settings.mobility.measuring
    assert one.loads == ()


def test_a_better_cell_is_required_of_the_anchor_once() -> None:
    bench = gateway()
    (asked,) = report(bench, -100.0, b=-90.0, c=-92.0)
    assert (asked.node, asked.cells, asked.conditional) == ("n1", ("b",), False)
    assert "b" in asked.cause
    assert not report(bench, -100.0, b=-90.0), "one at a time"


def test_where_nobody_decides_no_report_moves_a_node() -> None:
    bench = gateway(decides="nobody")
    assert not report(bench, -100.0, b=-90.0, c=-92.0)
    assert bench.ts.counters["measurements"] == 1


def test_a_handover_is_shown_under_the_name_that_its_scheduler_gives() -> None:
    (asked,) = report(gateway(), -100.0, b=-90.0, c=-92.0)
    shown = client.call("handover.show", name=asked.handover)
    assert shown.path == f"/v1/handovers/{asked.handover}", "one segment, as it is"
    assert "/" not in asked.handover


def test_load_that_the_anchor_tells_weighs() -> None:
    bench = gateway()
    bench.anchor(Neighbours(1, POINTS, loads=(1.0, 0.0)))
    (asked,) = report(bench, -100.0, b=-93.0, c=-93.0)
    assert asked.cells == ("c",)


def test_what_is_refused_rests_and_what_fails_too() -> None:
    bench = gateway()
    (asked,) = report(bench, -100.0, b=-90.0)
    bench.anchor(HandoverAnswer(asked.handover, "n1", False, "b", "it is full"))
    assert not report(bench, -100.0, b=-90.0)
    bench.passes(2500, "n1")
    (again,) = report(bench, -100.0, b=-90.0)
    assert again.handover != asked.handover
    bench.node("n1", HandoverFailed(again.handover, "n1", "not reached"))
    assert report(bench, -100.0, b=-90.0, c=-94.0)[0].cells == ("c",)


def test_no_node_says_that_the_handover_of_another_has_failed() -> None:
    bench = gateway()
    bench.born("n2")
    (asked,) = report(bench, -100.0, b=-90.0)
    bench.node("n2", HandoverFailed(asked.handover, "n1", "not reached"))
    assert bench.ts.counters["forged_message"] == 1
    assert not report(bench, -100.0, b=-90.0, c=-94.0), "it is still under way"


def test_a_dying_link_is_prepared_ahead_with_its_condition() -> None:
    bench = gateway()
    measures = (CellMeasure("b", level_db=-90.0, trend_db_per_s=8.0),)
    here = CellMeasure("a", level_db=-90.0, trend_db_per_s=-12.0)
    body = Measurement("a3", here, measures, NEAR, ("b",), True)
    (asked,) = said(bench.node("n1", body), HandoverRequired)
    rule = bench.ts.settings.mobility.condition
    assert (asked.conditional, asked.offset_db) == (True, rule.offset_db)
    assert asked.time_to_trigger_ms == rule.time_to_trigger_ms


def test_a_return_has_its_price_and_is_counted() -> None:
    bench = gateway()
    arrives(bench, "b")
    assert not report(bench, -100.0, b=-95.0), "it has just come from there"
    bench.passes(REST_MS, "n1")
    assert report(bench, -100.0, b=-95.0)
    arrives(bench, "b")
    bench.node("n1", Death("moved", orderly=True, moved_to="b"))
    assert bench.ts.counters["ping_pongs"] == 1


def test_a_birth_that_is_said_again_brings_nobody_back() -> None:
    bench = gateway()
    bench.node("n1", Death("moved", orderly=True, moved_to="b"))
    assert not told(bench.node("n1", Birth("1", "boot", INVENTORY)), "n1", Welcome)
    assert bench.ts.nodes.state("n1") is NodeState.MOVED
    assert bench.ts.counters["late_incarnation"] == 1
    arrives(bench, "b")
    assert bench.ts.nodes.state("n1") is NodeState.ONLINE


def test_a_report_of_another_cell_or_of_nobody_is_dropped() -> None:
    bench = gateway()
    measures = (CellMeasure("b", level_db=-50.0),)
    lying = Measurement("a3", CellMeasure("x", level_db=-90.0), measures, BETTER, ("b",), True)
    assert not said(bench.node("n1", lying), HandoverRequired)
    event = Received("stranger", 1, 1, "default", "c", lying)
    assert not said(bench.feed(event), HandoverRequired)


def test_where_the_anchor_decides_reports_are_handed_on() -> None:
    bench = gateway(decides="ta")
    body = Measurement("a3", CellMeasure("a", level_db=-99.0), (), BETTER, (), True)
    (handed,) = said(bench.node("n1", body), Measurement)
    assert handed.node == "n1"
    assert not said(bench.node("n1", body), HandoverRequired)
