"""A node among cells measures them as it is told to, reports what holds, and moves by itself."""

from device_cells import Roamer, point
from device_harness import of

from controller.mobility.settings import BETTER, MobilitySettings
from device_agent.core import commands, events
from protocols.messages import Measurement, Neighbours
from protocols.messages.mobility import CellMeasure
from protocols.topics import Channel

SETTINGS = MobilitySettings()


def among(*cells: str, number: int = 1) -> Roamer:
    node = Roamer()
    node.go()
    points = tuple(point(one) for one in cells)
    node.hear(node.serving, Neighbours(number, points, SETTINGS.measuring))
    return node


def measure(node: Roamer, count: int = 20, **levels: float | None) -> list[Measurement]:
    """Let a radio tell the same for a while; return what is reported."""
    before = len(of(Measurement, node.said))
    for _ in range(count):
        node.now_ms += SETTINGS.pace_ms
        found = tuple(CellMeasure(cell, rsrp_dbm=level) for cell, level in levels.items())
        node.tell(events.CellsMeasured(found, 123.0, 0.25))
    return of(Measurement, node.said)[before:]


def test_without_neighbours_nothing_is_measured() -> None:
    assert not of(commands.WatchCells, among().said)


def test_the_cells_are_measured_at_the_pace_of_the_moment() -> None:
    node = among("b", "c")
    (first,) = of(commands.WatchCells, node.said)
    assert (first.serving, first.pace_ms) == ("a", SETTINGS.pace_ms)
    assert first.cells == {"a": (), "b": point("b").broker_urls, "c": point("c").broker_urls}
    measure(node, a=-60.0, b=-100.0)
    assert [one.pace_ms for one in of(commands.WatchCells, node.said)] == [
        SETTINGS.pace_ms,
        SETTINGS.rest_ms,
    ]


def test_what_holds_is_reported_on_the_link_topic_with_what_it_cost() -> None:
    node = among("b")
    report = measure(node, a=-100.0, b=-90.0)[-1]
    assert (report.rule, report.holding, report.radio) == (BETTER, ("b",), True)
    assert (report.spent_bytes_per_s, report.spent_cpu_percent) == (123.0, 0.25)
    says = [one for one in of(commands.Say, node.said) if isinstance(one.body, Measurement)]
    assert {one.channel for one in says} == {Channel.LINK}


def test_after_a_move_the_events_of_the_new_cell_count() -> None:
    node = among("b")
    measure(node, a=-100.0, b=-90.0)
    node.command("b")
    node.go()
    node.complete()
    assert node.serving == "b"
    assert not measure(node, a=-100.0, b=-90.0)
    node.hear("b", Neighbours(1, (point("a"),), SETTINGS.measuring))
    (report, *_) = measure(node, a=-80.0, b=-90.0)
    assert (report.serving.cell, report.holding) == ("b", ("a",))
    assert of(commands.WatchCells, node.said)[-1].serving == "b"


def test_a_prepared_node_moves_by_itself_when_its_condition_holds() -> None:
    node = among("b")
    rule = SETTINGS.condition
    node.command(
        "b",
        conditional=True,
        offset_db=rule.offset_db,
        time_to_trigger_ms=rule.time_to_trigger_ms,
    )
    measure(node, a=-90.0, b=-90.0)
    node.go()
    assert node.serving == "a"
    measure(node, a=-96.0, b=-85.0)
    node.go()
    assert node.serving == "b"


def test_while_nobody_listens_nothing_is_reported() -> None:
    node = among("b")
    node.cells["a"].welcomes = False
    node.drop("a")
    node.connect("a")
    assert not measure(node, 5, a=-100.0, b=-90.0)
    node.welcome("a")
    assert measure(node, a=-100.0, b=-90.0)


def test_measures_before_any_neighbour_are_harmless() -> None:
    node = Roamer()
    node.go()
    assert not measure(node, a=-100.0, b=-90.0)
