"""Events of cells: entering and leaving, time to trigger, hysteresis, filter and trend."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.cell_events import (
    LOST_LEVEL_PERCENT,
    TREND_STEEPEST_DB_PER_S,
    Evaluator,
    Levels,
    Trend,
    begins,
    ends,
    path_db,
    radio_db,
)
from protocols.messages.mobility import FLOOR_DB, EventRule

LEVELS = st.floats(-140, -40)
RULES = st.builds(
    EventRule,
    st.sampled_from(["a1", "a2", "a3", "a4", "a5"]),
    threshold_db=LEVELS,
    neighbour_db=LEVELS,
    offset_db=st.floats(-10, 10),
    hysteresis_db=st.floats(0.1, 10),
    time_to_trigger_ms=st.sampled_from([0, 160, 320, 640, 5120]),
)
A3 = EventRule("a3", offset_db=3.0, hysteresis_db=1.0, time_to_trigger_ms=320)


@given(RULES, LEVELS, LEVELS)
def test_no_event_begins_and_ends_at_the_same_levels(
    rule: EventRule, serving: float, neighbour: float
) -> None:
    assert not (begins(rule, serving, neighbour) and ends(rule, serving, neighbour))


@given(RULES, st.lists(st.tuples(LEVELS, LEVELS), max_size=80))
def test_what_happens_alternates_and_lasted_its_time(
    rule: EventRule, walk: list[tuple[float, float]]
) -> None:
    evaluator = Evaluator((rule,), {})
    step_ms, held, since = 80.0, False, None
    for number, (serving, neighbour) in enumerate(walk):
        now_ms = number * step_ms
        against = (ends if held else begins)(rule, serving, neighbour)
        since = (now_ms if since is None else since) if against else None
        happened = evaluator.take("here", {"here": serving, "there": neighbour}, now_ms)
        due = since is not None and now_ms - since >= rule.time_to_trigger_ms
        assert [one.begun for one in happened] == ([not held] if due else [])
        if due:
            held, since = not held, None


@given(RULES, LEVELS, LEVELS, st.data())
def test_flutter_inside_the_hysteresis_never_flaps(
    rule: EventRule, serving: float, neighbour: float, data: st.DataObject
) -> None:
    flutter = st.floats(-rule.hysteresis_db / 2.01, rule.hysteresis_db / 2.01)
    evaluator = Evaluator((rule,), {})
    happened = []
    for number in range(12):
        levels = {"here": serving + data.draw(flutter), "there": neighbour + data.draw(flutter)}
        happened += evaluator.take("here", levels, number * 1000.0)
    assert len(happened) <= 1


def test_a_break_begins_the_time_to_trigger_anew() -> None:
    evaluator = Evaluator((A3,), {})
    better, equal = {"here": -100.0, "there": -95.0}, {"here": -100.0, "there": -100.0}
    assert not evaluator.take("here", better, 0)
    assert not evaluator.take("here", equal, 200)
    assert not evaluator.take("here", better, 400)
    assert not evaluator.take("here", better, 700)
    assert [one.cell for one in evaluator.take("here", better, 720)] == ["there"]
    assert evaluator.holding(0) == ("there",)


def test_offsets_favour_a_cell_and_another_serving_cell_begins_anew() -> None:
    evaluator = Evaluator((A3,), {"there": 3.0})
    levels = {"here": -100.0, "there": -98.0}
    for now_ms in (0, 400):
        evaluator.take("here", levels, now_ms)
    assert evaluator.holding(0) == ("there",)
    evaluator.take("there", levels, 800)
    assert evaluator.holding(0) == ()


def test_a_cell_that_is_heard_no_more_ends_its_event_and_is_forgotten() -> None:
    evaluator = Evaluator((A3,), {})
    for now_ms in (0, 400):
        evaluator.take("here", {"here": -100.0, "there": -90.0}, now_ms)
    assert not evaluator.take("here", {"here": -100.0}, 800)
    assert [one.begun for one in evaluator.take("here", {"here": -100.0}, 1200)] == [False]


def test_a_lost_serving_cell_makes_every_neighbour_better() -> None:
    evaluator = Evaluator((A3,), {})
    for now_ms in (0, 400):
        evaluator.take("here", {"there": -120.0}, now_ms)
    assert evaluator.holding(0) == ("there",)


@given(st.integers(0, 19), st.lists(LEVELS, min_size=1, max_size=50), st.integers(20, 2000))
def test_the_filter_stays_between_what_was_measured(
    coefficient: int, walk: list[float], step_ms: int
) -> None:
    levels = Levels(coefficient)
    for number, level in enumerate(walk):
        levels.take("cell", level, number * step_ms)
    assert min(walk) - 1e-6 <= levels.level("cell") <= max(walk) + 1e-6


def test_the_filter_is_as_slow_at_any_pace() -> None:
    fast, slow = Levels(4), Levels(4)
    for one in (fast, slow):
        one.take("cell", -100.0, 0)
    for number in range(1, 11):
        fast.take("cell", -80.0, number * 100)
    for number in range(1, 6):
        slow.take("cell", -80.0, number * 200)
    assert abs(fast.level("cell") - slow.level("cell")) < 1e-9
    assert abs(slow.level("cell") - (-80.0 - 20.0 * 0.5**5)) < 1e-9


@given(st.floats(-20, 20), st.integers(0, 9), LEVELS)
def test_one_wrong_sample_does_not_turn_a_trend(slope: float, wrong: int, odd: float) -> None:
    trend = Trend()
    for number in range(10):
        level = odd if number == wrong else -80.0 + slope * number * 0.2
        trend.take(number * 200.0, level)
    told = trend.db_per_s
    assert told is not None
    assert abs(told) <= TREND_STEEPEST_DB_PER_S
    assert abs(told - slope) < 1e-6


def test_too_few_samples_have_no_trend() -> None:
    trend = Trend()
    for number in range(3):
        trend.take(number * 200.0, -80.0 - number)
    assert trend.db_per_s is None


def test_levels_of_paths() -> None:
    assert abs(path_db(10) - path_db(20) - 3.01) < 0.01
    assert path_db(0.2) == path_db(9.0) == path_db(10)
    assert path_db(10, jitter_ms=5) < path_db(10)
    assert path_db(10, loss_percent=10) < path_db(10, loss_percent=1)
    assert path_db(10, loss_percent=LOST_LEVEL_PERCENT) == FLOOR_DB
    assert radio_db(-70, 100) == FLOOR_DB
    assert radio_db(-70) == -70
    assert radio_db(float("nan")) == FLOOR_DB
