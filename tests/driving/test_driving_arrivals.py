"""When the requests of the case study come."""

import math

import pytest

from benchmarks.case_study import arrivals

ROWS = 60
FREE = 60.0


def road(slow: range) -> list[list[float]]:
    """Give speeds of two detectors that are at half their speed in some rows."""
    return [[FREE / 2 if row in slow else FREE, 0.0 if row == 3 else FREE] for row in range(ROWS)]


def test_density_follows_from_speed() -> None:
    density = arrivals.density(road(range(20, 40)))
    assert density[0] == 0
    assert density[20] == pytest.approx(0.25)
    assert density[3] == 0, "a missing speed is not a jam"


def test_the_window_is_where_traffic_grows_most() -> None:
    assert arrivals.rush(arrivals.density(road(range(20, 40))), 6) == 17


@pytest.mark.parametrize("speed", [1, 10, 60])
def test_the_mean_of_the_window_is_the_rate(speed: int) -> None:
    density = [0.1 + row / ROWS for row in range(ROWS)]
    seconds, rate = 400.0 / speed, 20.0 * speed / 10
    due = arrivals.traffic(density, rate, speed, seconds, seed=1)
    assert due == sorted(due)
    assert due[0] >= 0
    assert due[-1] < seconds
    wanted = rate * seconds
    assert abs(len(due) - wanted) < 5 * math.sqrt(wanted)


def test_denser_traffic_asks_more() -> None:
    density = [0.1] * 30 + [0.9] * 30
    due = arrivals.traffic(density, 50.0, 300, 20.0, seed=1)
    first = sum(one < 10 for one in due)
    assert len(due) - first > 3 * first


def test_equal_seeds_give_equal_arrivals() -> None:
    density = [0.1, 0.5, 0.9] * 9
    assert arrivals.traffic(density, 5, 60, 20, 1) == arrivals.traffic(density, 5, 60, 20, 1)
    assert arrivals.traffic(density, 5, 60, 20, 1) != arrivals.traffic(density, 5, 60, 20, 2)


def test_real_arrivals_are_thinned_to_the_rate() -> None:
    trace = [at / 10 for at in range(36_000)]
    due = arrivals.thinned(trace, 4.0, 60, 30.0, seed=1)
    assert abs(len(due) - 120) < 60
    assert all(0 <= one < 30 for one in due)
