"""An anchor that decides for its cells, and what it tells them of each other."""

import pytest
from anchor_bench import Bench, said
from msgspec import structs
from tests_support import INVENTORY

from controller.anchor.cells import LOADS_MS
from controller.anchor.decider import Settings
from controller.mobility.settings import BETTER, NEAR, MobilitySettings
from protocols.messages import (
    HandoverAnswer,
    HandoverCommand,
    HandoverRequest,
    Measurement,
    Neighbours,
    NodeSummary,
    SchedulerHello,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.mobility import CellMeasure, CellPoint, TaskLatency

A, B = "ts-a", "ts-b"


def anchor(decides: str = "ta") -> Bench:
    mobility = MobilitySettings(decides=decides)
    bench = Bench(Settings(schedulers=(A, B), cells=("a", "b"), mobility=mobility))
    for name in ("a", "b"):
        point = CellPoint(name, f"ts-{name}", (f"mqtt://10.0.0.1:{ord(name)}",))
        bench.hear(SchedulerHello(f"ts-{name}", 1, point), f"ts-{name}")
    bench.node("n1", scheduler=A)
    return bench


def handed(node: str = "n1", here: str = "a") -> Measurement:
    there = CellMeasure("b", level_db=-90.0)
    serving = CellMeasure(here, level_db=-100.0)
    return Measurement("a3", serving, (there,), BETTER, ("b",), True, node=node)


def test_it_prepares_and_commands_what_it_decides() -> None:
    bench = anchor()
    (asked,) = said(bench.hear(handed(), A), HandoverRequest, B)
    assert asked.node == "n1"
    answer = HandoverAnswer(asked.handover, "n1", True, "b")
    (command,) = said(bench.hear(answer, B), HandoverCommand, A)
    assert (command.target.cell, command.conditional) == ("b", False)
    assert not said(bench.hear(handed(), A), HandoverRequest), "one at a time"


@pytest.mark.parametrize("measured", [True, False], ids=["as measured", "as is usual there"])
def test_what_tasks_would_take_through_the_target_weighs(measured: bool) -> None:
    bench = anchor()
    bench.hear(_summary("n1", 10.0), A)
    bench.hear(_summary("n2", 210.0), B)
    bench.passes(LOADS_MS + 1000)
    far = CellMeasure("b", round_trip_ms=210.0 if measured else None, level_db=-94.0)
    here = CellMeasure("a", round_trip_ms=10.0 if measured else None, level_db=-100.0)
    body = Measurement("a3", here, (far,), BETTER, ("b",), True, node="n1")
    slow = structs.replace(body, tasks=(TaskLatency(40.0, 60.0),))
    assert not said(bench.hear(slow, A), HandoverRequest), "240 of 60 ms is worse than 6 dB"
    assert said(bench.hear(body, A), HandoverRequest), "nothing has to be fast"


def _summary(node: str, round_trip_ms: float) -> NodeSummary:
    return NodeSummary(
        node, NodeState.ONLINE, 1, INVENTORY, cpu_percent=5.0, round_trip_ms=round_trip_ms
    )


def test_a_condition_reaches_the_command() -> None:
    bench = anchor()
    body = Measurement(
        "a3",
        CellMeasure("a", level_db=-90.0, trend_db_per_s=-12.0),
        (CellMeasure("b", level_db=-90.0, trend_db_per_s=8.0),),
        NEAR,
        ("b",),
        True,
        node="n1",
    )
    (asked,) = said(bench.hear(body, A), HandoverRequest, B)
    answer = HandoverAnswer(asked.handover, "n1", True, "b")
    (command,) = said(bench.hear(answer, B), HandoverCommand, A)
    rule = MobilitySettings().condition
    assert (command.conditional, command.offset_db) == (True, rule.offset_db)
    assert command.time_to_trigger_ms == rule.time_to_trigger_ms


def test_a_refused_target_rests() -> None:
    bench = anchor()
    (asked,) = said(bench.hear(handed(), A), HandoverRequest, B)
    bench.hear(HandoverAnswer(asked.handover, "n1", False, "b", "full"), B)
    assert not said(bench.hear(handed(), A), HandoverRequest)
    bench.passes(MobilitySettings().patience_ms)
    assert said(bench.hear(handed(), A), HandoverRequest)


def test_reports_that_are_not_its_to_decide_are_dropped() -> None:
    assert not said(anchor("ts").hear(handed(), A), HandoverRequest)
    bench = anchor()
    for sender, body in ((B, handed()), (A, handed("n2")), (A, handed(here="b"))):
        assert not said(bench.hear(body, sender), HandoverRequest)


def test_schedulers_hear_how_busy_the_other_cells_are() -> None:
    bench = anchor()
    busy = NodeSummary("n1", NodeState.ONLINE, 1, INVENTORY, cpu_percent=80.0)
    bench.hear(busy, A)
    output = bench.passes(2 * LOADS_MS)
    (told,) = said(output, Neighbours, B)
    assert [(one.cell, load) for one, load in zip(told.cells, told.loads, strict=True)] == [
        ("a", 0.8)
    ]
    assert not said(bench.passes(2 * LOADS_MS), Neighbours)
