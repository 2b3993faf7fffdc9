"""What a node makes of what it measures: the kind of level, reports of events, the pace."""

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from controller.mobility.settings import BETTER, LOW, NEAR, MobilitySettings
from device_agent.core.cells import CellWatch
from protocols.codec import VERSION, Frame, decode, encode
from protocols.messages.mobility import (
    FLOOR_DB,
    CellMeasure,
    CellPoint,
    Measurement,
    Neighbours,
)
from protocols.topics import CONTROL_MAX_BYTES

SETTINGS = MobilitySettings()
STEP_MS = 200


def told(number: int = 1, *cells: str) -> Neighbours:
    points = tuple(CellPoint(one, f"ts-{one}", ("mqtt://127.0.0.1:1",)) for one in cells or ("b",))
    return Neighbours(number, points, SETTINGS.measuring)


def radio(**levels: float | None) -> list[CellMeasure]:
    return [CellMeasure(cell, rsrp_dbm=level) for cell, level in levels.items()]


def paths(**round_trips: float | None) -> list[CellMeasure]:
    return [
        CellMeasure(cell, None if ms is None else ms, 0.0, 0.0 if ms is not None else 100.0)
        for cell, ms in round_trips.items()
    ]


def reports(
    watch: CellWatch, measures: list[CellMeasure], count: int = 20, first: int = 0
) -> list[Measurement]:
    found = (watch.take(measures, step * STEP_MS) for step in range(first, first + count))
    return [one for one in found if one is not None]


def test_a_better_neighbour_is_reported_with_the_levels_of_all() -> None:
    watch = CellWatch("a", told(1, "b", "c"))
    last = reports(watch, radio(a=-100.0, b=-90.0, c=-99.0))[-1]
    assert (last.event, last.rule, last.radio) == ("a3", BETTER, True)
    assert last.holding == ("b",)
    assert [one.cell for one in last.neighbours] == ["b", "c"]
    assert last.serving.level_db == -100.0
    assert last.neighbours[0].trend_db_per_s == 0.0


def test_a_near_one_is_told_of_and_a_far_one_is_not() -> None:
    assert {one.rule for one in reports(CellWatch("a", told()), radio(a=-90.0, b=-91.0))} == {NEAR}
    assert not reports(CellWatch("a", told()), radio(a=-90.0, b=-99.0))


def test_where_nobody_decides_nothing_is_told_and_levels_are_known() -> None:
    quiet = MobilitySettings(decides="nobody").measuring
    watch = CellWatch("a", structs.replace(told(), measuring=quiet))
    assert not reports(watch, radio(a=-100.0, b=-90.0))
    assert watch.levels == {"a": -100.0, "b": -90.0}


def test_a_weak_cell_without_a_better_one_is_told_of() -> None:
    found = reports(CellWatch("a", told()), radio(a=-115.0, b=-125.0), 40)
    assert {(one.event, one.rule, one.holding) for one in found} == {("a2", LOW, ())}


def test_what_holds_is_told_again_at_its_pace_and_no_faster() -> None:
    found = reports(CellWatch("a", told()), radio(a=-100.0, b=-90.0), 50)
    assert 10 <= len(found) <= 13


def test_without_a_radio_that_tells_paths_are_compared() -> None:
    watch = CellWatch("a", told())
    last = reports(watch, paths(a=40.0, b=10.0))[-1]
    assert not last.radio
    assert round(last.neighbours[0].level_db - last.serving.level_db, 1) == 6.0
    assert last.neighbours[0].round_trip_ms == 10.0


def test_a_radio_that_only_knows_its_own_cell_compares_nothing() -> None:
    watch = CellWatch("a", told())
    measures = [CellMeasure("a", 40.0, 0.0, 0.0, -60.0), CellMeasure("b", 10.0, 0.0, 0.0)]
    assert not reports(watch, measures)[-1].radio


def test_a_strong_cell_that_carries_nothing_is_left() -> None:
    watch = CellWatch("a", told())
    reports(watch, radio(a=-60.0, b=-90.0))
    measures = [CellMeasure("a", None, None, 100.0, -60.0), CellMeasure("b", 9.0, 0.0, 0.0, -90.0)]
    last = reports(watch, measures, first=20)[-1]
    assert last.holding == ("b",)
    assert last.serving.level_db == FLOOR_DB


def test_a_radio_that_has_lost_its_cell_still_compares_by_radio() -> None:
    watch = CellWatch("a", told())
    reports(watch, radio(a=-90.0, b=-99.0))
    found = [watch.take(radio(a=None, b=-99.0), 10_000 + step * STEP_MS) for step in range(5)]
    said = [one for one in found if one is not None]
    assert said[-1].radio
    assert said[-1].holding == ("b",)


def test_while_the_serving_cell_is_good_neighbours_are_measured_seldom() -> None:
    watch = CellWatch("a", told())
    reports(watch, radio(a=-60.0, b=-99.0))
    assert watch.pace_ms == SETTINGS.rest_ms
    reports(watch, radio(a=-60.0, b=-61.0), first=20)
    assert watch.pace_ms == SETTINGS.pace_ms
    watch.served("b")
    assert watch.pace_ms == SETTINGS.pace_ms


def test_a_cell_that_is_not_measured_yet_is_not_lost() -> None:
    assert not reports(CellWatch("a", told()), paths(b=1.0))


def test_an_older_list_of_neighbours_is_ignored() -> None:
    watch = CellWatch("a", told(5, "b"))
    assert not watch.told(told(4, "c"))
    assert watch.told(told(6, "c"))
    assert not reports(watch, radio(a=-100.0, b=-60.0))


FIGURE = st.none() | st.floats(allow_nan=True, allow_infinity=True)
MEASURE = st.builds(
    CellMeasure,
    st.sampled_from(["a", "b", "c", "unknown"]),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 100),
    FIGURE,
)


@given(st.lists(st.lists(MEASURE, max_size=4), max_size=12), st.integers(1, 3000))
def test_whatever_is_measured_what_is_told_can_be_read(
    walk: list[list[CellMeasure]], step_ms: int
) -> None:
    watch = CellWatch("a", told(1, "b", "c"))
    for step, measures in enumerate(walk):
        report = watch.take(measures, step * step_ms)
        if report is not None:
            frame = Frame(VERSION, "n", 1, step, "default", "c", report)
            body = decode(encode(frame, CONTROL_MAX_BYTES), CONTROL_MAX_BYTES).body
            assert isinstance(body, Measurement)
            assert {one.cell for one in body.neighbours} <= {"b", "c"}
