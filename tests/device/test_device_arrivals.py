"""How long an idle instance stays: what is learnt of its past, against a fixed time."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.core.arrivals import (
    ENOUGH,
    FALLBACK_MS,
    KEEP_MAX_MS,
    KEEP_MIN_MS,
    Arrivals,
)

HOUR_MS = 3_600_000.0


def learnt(gaps_ms: list[float]) -> Arrivals:
    arrivals, now_ms = Arrivals(), 0.0
    for gap_ms in gaps_ms:
        arrivals.went(now_ms)
        now_ms += gap_ms
        arrivals.came(now_ms)
    return arrivals


def test_few_idle_times_are_not_believed() -> None:
    arrivals = learnt([100.0] * (ENOUGH - 1))
    assert arrivals.keep_ms() == FALLBACK_MS
    assert arrivals.next_ms() is None


def test_an_instance_stays_as_long_as_nearly_all_idle_times() -> None:
    dice = random.Random(1)
    gaps = [dice.expovariate(1 / 5000) for _ in range(400)]
    keep_ms = learnt(gaps).keep_ms()
    kept = sum(gap <= keep_ms for gap in gaps) / len(gaps)
    assert kept >= 0.985
    assert keep_ms < 1.5 * sorted(gaps)[int(0.99 * len(gaps))]


def test_calls_that_follow_at_once_keep_it_for_the_shortest_time() -> None:
    assert learnt([3.0] * 50).keep_ms() == KEEP_MIN_MS


def test_a_call_each_half_hour_is_expected() -> None:
    arrivals = learnt([1_800_000.0 + 1000 * (at % 7) for at in range(40)])
    assert arrivals.keep_ms() == KEEP_MIN_MS
    next_ms = arrivals.next_ms()
    assert next_ms is not None
    assert 0.7 * 1_800_000 < next_ms < 1_800_000
    assert arrivals.until_ms() > 1_806_000


def test_long_and_unlike_idle_times_give_the_fixed_time() -> None:
    dice = random.Random(1)
    arrivals = learnt([dice.uniform(1000, 3 * HOUR_MS) for _ in range(200)])
    assert arrivals.keep_ms() == FALLBACK_MS
    assert arrivals.next_ms() is None


def test_a_new_pattern_replaces_the_old_one() -> None:
    old, new = [200_000.0] * 600, [2000.0] * 6000
    assert learnt(old).keep_ms() > 200_000
    assert learnt(old + new).keep_ms() < 5000


@given(st.lists(st.floats(0, 1e9), max_size=80))
def test_times_are_within_their_bounds(gaps: list[float]) -> None:
    arrivals = learnt(gaps)
    assert KEEP_MIN_MS <= arrivals.keep_ms() <= KEEP_MAX_MS
    next_ms = arrivals.next_ms()
    assert next_ms is None or 0 < next_ms <= arrivals.until_ms()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_learnt_is_warmer_or_leaner_than_the_fixed_time(seed: int) -> None:
    """Bursts with pauses: at least as many warm starts for less held time, or more of them."""
    dice = random.Random(seed)
    gaps = [
        dice.expovariate(1 / 400) if dice.random() < 0.9 else dice.expovariate(1 / 9000)
        for _ in range(1000)
    ]
    keep_ms = learnt(gaps[:500]).keep_ms()
    rest = gaps[500:]
    warm = sum(gap <= keep_ms for gap in rest)
    held = sum(min(gap, keep_ms) for gap in rest)
    fixed_held = sum(min(gap, FALLBACK_MS) for gap in rest)
    assert warm >= 0.97 * len(rest)
    assert held <= fixed_held
