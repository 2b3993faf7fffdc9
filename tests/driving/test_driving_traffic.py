"""The steps around the forecaster against numpy, the forecaster against untrained forecasts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_forecaster as training
from forecaster_weights import constants
from forecasts import (
    baselines,
    errors,
    forecaster,
    futures,
    held_out_from,
    historical,
    judged_rows,
    persistence,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from material import SPEEDS, minute_of_week, speeds, traffic_request
from reference import HERE, TRAFFIC, Array, Guest, GuestError, Runner

Guests = Callable[[str], Guest]
Runners = Callable[[Path], Runner]
DETECTORS = 207
WEEK = 7 * 1440
measured = pytest.mark.skipif(not SPEEDS.is_file(), reason=f"needs the speeds in {SPEEDS}")


def stations() -> Array:
    return np.fromfile(HERE / "tables" / "stations.f32", "<f4").reshape(DETECTORS, 2)


def seen(hour: Array, minute: int, table: Array) -> tuple[Array, Array]:
    """What `recent` gives, in numpy."""
    there = (hour > 0) & (hour <= 200)
    filled = np.empty_like(hour)
    for station, speed in enumerate(hour.T):
        known = np.flatnonzero(there[:, station])
        for row in range(len(hour)):
            before = known[known <= row]
            source = before[-1] if len(before) else known[0] if len(known) else None
            filled[row, station] = table[station, 0] if source is None else speed[source]
    x = np.concatenate(
        [((filled - table[:, 0]) / np.float32(10)).T, 1 - there.mean(axis=0)[:, None]], axis=1
    )
    columns = []
    for step in range(1, 13):
        then = (minute + 5 * step) % WEEK
        weekend, angle = then >= 5 * 1440, 2 * np.pi * (then % 1440) / 1440
        column = [1.0, float(weekend)]
        for turns, on in [(k, not weekend) for k in range(1, 9)] + [(k, weekend) for k in (1, 2)]:
            column += [on * np.sin(turns * angle), on * np.cos(turns * angle)]
        columns.append(column)
    return x, np.array(columns).T


@measured
@pytest.mark.parametrize("row", [11, 300, 900, 1800, 2015])
def test_recent_equals_numpy_on_real_hours(guest: Guests, row: int) -> None:
    request = traffic_request(speeds(), row)
    hour = request["speeds"].copy()
    hour[np.random.default_rng(row).random(hour.shape) < 0.3] = 0
    hour[:, :3] = 0
    hour[2, 5], hour[3, 5], hour[4, 5] = np.nan, -4, 900
    x, when = guest("recent")([hour, request["minute"], stations()], 2)
    wanted, moments = seen(hour, int(request["minute"][0]), stations())
    assert np.array_equal(x[:, :12], wanted[:, :12].astype(np.float32))
    assert np.allclose(x[:, 12], wanted[:, 12], atol=1e-7)
    assert np.allclose(when, moments, atol=1e-6)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 5), minute=st.integers(0, WEEK - 1), seed=st.integers(0, 2**32 - 1))
def test_recent_equals_numpy_whatever_is_missing(
    guest: Guests, count: int, minute: int, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    hour = (chance.random((12, count)) * 70 * (chance.random((12, count)) < 0.5)).astype("f4")
    table = (chance.random((count, 2)) * 60 + 5).astype(np.float32)
    x, when = guest("recent")([hour, np.array([minute], np.int32), table], 2)
    wanted, moments = seen(hour, minute, table)
    assert np.array_equal(x[:, :12], wanted[:, :12].astype(np.float32))
    assert np.allclose(when, moments, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"minute": WEEK}, "the minute of the week is not between 0 and 10079"),
        ({"minute": -1}, "the minute of the week"),
        ({"speeds": np.zeros((11, 4), np.float32)}, "recent takes speeds"),
        ({"speeds": np.zeros((12, 0), np.float32)}, "there are 0 detectors, 1 to 4096"),
        ({"speeds": np.zeros((12, 5000), np.float32)}, "there are 5000 detectors"),
        ({"stations": np.ones((3, 2), np.float32)}, "not one of 4 stations"),
        ({"stations": np.full((4, 2), np.nan, np.float32)}, "not one of 4 stations"),
    ],
)
def test_recent_refuses_what_does_not_fit(
    guest: Guests, change: dict[str, Any], sentence: str
) -> None:
    given_ = {
        "speeds": np.ones((12, 4), np.float32),
        "minute": 7,
        "stations": np.ones((4, 2), "f4"),
    }
    given_ |= change
    minute = np.array([given_["minute"]], np.int32)
    with pytest.raises(GuestError, match=sentence):
        guest("recent")([given_["speeds"], minute, given_["stations"]], 2)


def test_outlook_equals_numpy(guest: Guests) -> None:
    table = stations()
    y = (np.random.default_rng(3).normal(size=(DETECTORS, 12)) * 4).astype(np.float32)
    mph, level = guest("outlook")([y, table], 2)
    wanted = np.clip(y * np.float32(10) + table[:, :1], 0, 100)
    assert np.array_equal(mph, wanted)
    part = wanted / table[:, 1:]
    bounds = np.array([0.8, 0.6, 0.4], np.float32)
    assert np.array_equal(level, (part[..., None] < bounds).sum(-1))
    assert set(np.unique(level)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("y", "table", "sentence"),
    [
        (np.full((2, 12), np.inf, "f4"), np.ones((2, 2), "f4"), "the forecast for detector 0"),
        (np.zeros((2, 11), "f4"), np.ones((2, 2), "f4"), "outlook takes y"),
        (np.zeros((2, 12), "f4"), np.zeros((2, 2), "f4"), "not one of 2 stations"),
        (np.zeros((2, 12), "f4"), np.ones((3, 2), "f4"), "not one of 2 stations"),
    ],
)
def test_outlook_refuses_what_does_not_fit(
    guest: Guests, y: Array, table: Array, sentence: str
) -> None:
    with pytest.raises(GuestError, match=sentence):
        guest("outlook")([y, table], 2)


@measured
def test_the_forecaster_beats_what_needs_no_training(
    runner: Runners, record_property: Callable[[str, object], None]
) -> None:
    table = speeds()
    rows = judged_rows(table)[::6]
    came = futures(table, rows)
    ours = errors(forecaster(runner(TRAFFIC), table, rows), came)
    record_property("forecaster_mph", str(ours))
    for name, forecast in baselines(table, rows).items():
        other = errors(forecast, came)
        assert all(ours[minutes] < 0.9 * other[minutes] for minutes in ours), name


@measured
def test_the_forecaster_bears_gaps(runner: Runners) -> None:
    table = speeds()
    rows = judged_rows(table)[::12]
    holes = np.where(np.random.default_rng(5).random(table.shape) < 0.2, np.float32(0), table)
    came = futures(table, rows)
    ours = errors(forecaster(runner(TRAFFIC), holes, rows), came)
    last = errors(persistence(table, rows), came)
    assert all(ours[minutes] < last[minutes] for minutes in ours)


def test_zeros_are_missing_for_the_baselines_and_the_metric() -> None:
    table = np.tile(np.arange(1, 101, dtype=np.float32)[:, None], (1, 2))
    table[19, 0] = table[30:, 1] = 0
    came = futures(table, range(19, 20))
    assert np.isnan(came[0, 1, 10:]).all()
    last = persistence(table, range(19, 20))
    assert last[0, :, 0].tolist() == [19, 20]
    assert errors(last, came)[15] == 3.5
    empty = persistence(np.zeros((20, 2), np.float32), range(15, 16))
    assert np.isnan(empty).all()


@measured
def test_the_historical_mean_is_that_of_the_same_time_on_training_days() -> None:
    table = speeds()
    row = 1700
    at, end = row + 1, held_out_from(table)
    slots = np.arange(at % 288, end, 288)
    every = historical(table, range(row, row + 1), kinds=False)
    assert np.allclose(every[0, :, 0], table[slots].mean(axis=0), rtol=1e-5)
    weekdays = [one for one in slots if minute_of_week(one) < 5 * 1440]
    kind = historical(table, range(row, row + 1), kinds=True)
    assert np.allclose(kind[0, :, 0], table[weekdays].mean(axis=0), rtol=1e-5)
    assert 0 < len(weekdays) < len(slots)


@measured
def test_the_committed_stations_are_those_of_the_training_rows() -> None:
    table = speeds()
    assert np.allclose(training.stations_of(table[: held_out_from(table)]), stations(), rtol=1e-6)
    assert np.allclose(training.near_by().sum(axis=1), 1, atol=1e-5)


def test_the_gradients_are_those_of_the_loss() -> None:
    chance = np.random.default_rng(2)
    net = training.fresh(3, 6, 4, chance)
    net = {name: chance.normal(size=one.shape) * 0.3 for name, one in net.items()}
    batch = training.Hours(
        chance.normal(size=(2, 3, 6)),
        chance.normal(size=(2, 4)),
        chance.normal(size=(2, 3, 1)),
        chance.normal(size=(2, 3, 12)),
    )
    batch.came[0, 0, :3] = np.nan

    def loss(changed: dict[str, Array]) -> float:
        first = batch.seen @ changed["w_seen"] + changed["nature"] @ changed["w_nature"]
        first = first + changed["b_first"] + (batch.when @ changed["w_when"])[:, None]
        second = np.maximum(first, 0) @ changed["w_second"] + changed["b_second"]
        out = batch.last + np.maximum(second, 0) @ changed["w_last"] + changed["b_last"]
        return float(np.nanmean(np.abs(out - batch.came)))

    for name, slope in training.gradients(net, batch).items():
        for _ in range(4):
            at = tuple(chance.integers(0, side) for side in net[name].shape)
            higher = {**net, name: net[name].copy()}
            lower = {**net, name: net[name].copy()}
            higher[name][at] += 1e-6
            lower[name][at] -= 1e-6
            assert slope[at] == pytest.approx((loss(higher) - loss(lower)) / 2e-6, abs=1e-5)


def test_an_expectation_does_not_know_the_day_that_it_leaves_out() -> None:
    chance = np.random.default_rng(4)
    when = chance.normal(size=(40, 3)).astype(np.float32)
    speed = (when @ chance.normal(size=(3, 2))).astype(np.float32)
    days = np.arange(40) // 10
    whole = training.expectations(when, speed, days)
    speed[days == 2] = 99
    other = training.expectations(when, speed, days)
    assert np.array_equal(whole[2], other[2])
    assert not np.allclose(whole[1], other[1])


@measured
def test_the_forecaster_gives_the_same_without_a_runtime_for_models(
    guest: Guests, runner: Runners
) -> None:
    weights = np.fromfile(HERE / "tables" / "forecaster.f32", "<f4")
    assert np.array_equal(weights, np.concatenate([*constants().values()]))
    table = speeds()
    for row in (1700, 1800, len(table) - 1):
        values = runner(TRAFFIC).values(traffic_request(table, row))
        (y,) = guest("forecast")([values["recent", "x"], values["recent", "when"], weights], 1)
        assert np.abs(y - values["forecast", "y"]).max() < 1e-5


def test_the_forecast_refuses_weights_of_another_road(guest: Guests) -> None:
    x, when = np.zeros((5, 13), np.float32), np.zeros((22, 12), np.float32)
    with pytest.raises(GuestError, match="not those of a road with 5"):
        guest("forecast")([x, when, np.zeros(9, np.float32)], 1)
