"""Meters: means stand for time, whatever windows a node tells of."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.scheduler.quality import SMOOTH_MS, Col, TaskMeters, Users
from protocols.messages.quality import TaskSample, UserSample

TASK = "svc.a"


def sample(done: int = 1, *, queue: int = 0, run_ms: float = 40.0, shed: int = 0) -> TaskSample:
    return TaskSample(TASK, 1, done=done, shed=shed, queue=queue, run_ms=run_ms, run_p95_ms=run_ms)


@settings(deadline=None)
@given(
    window_ms=st.sampled_from([50, 100, 250, 1000]),
    rate_per_s=st.sampled_from([2.0, 8.0, 40.0]),
    seed=st.integers(0, 1000),
)
def test_a_rate_is_the_same_whatever_the_windows(
    window_ms: int, rate_per_s: float, seed: int
) -> None:
    """Nothing is told of a window in which nothing happened: it was still there."""
    meters, chance = TaskMeters(), random.Random(seed)
    told, next_ms = 0, chance.expovariate(rate_per_s) * 1000
    found = []
    for now_ms in range(window_ms, 60_000, window_ms):
        count = 0
        while next_ms < now_ms:
            count += 1
            next_ms += chance.expovariate(rate_per_s) * 1000
        if count:
            meters.take(sample(count), window_ms, now_ms)
            told += 1
            found.append(meters.number(TASK, Col.OFFERED_PER_S))
    late = found[len(found) // 4 :]
    assert 0.6 * rate_per_s < sum(late) / len(late) < 1.6 * rate_per_s


def test_the_first_window_is_not_taken_for_the_usual() -> None:
    meters = TaskMeters()
    for now_ms in range(50, 2050, 250):
        meters.take(sample(), 50, now_ms)
    assert meters.number(TASK, Col.OFFERED_PER_S) == pytest.approx(4.0, rel=0.2)


def test_a_rise_is_known_after_the_same_time_from_many_answers_and_from_few() -> None:
    reached = []
    for every_ms in (50, 250, 500):
        users = Users()
        for now_ms in range(every_ms, 10_000 + every_ms, every_ms):
            users.take(UserSample("svc", "u", 1, 0, 50.0, 50.0), 50, now_ms)
        now_ms = 10_000
        while users.present(now_ms)["u"].latency_p95_ms < 150.0:
            now_ms += every_ms
            users.take(UserSample("svc", "u", 1, 0, 350.0, 350.0), 50, now_ms)
        reached.append(now_ms - 10_000)
    assert all(one <= SMOOTH_MS for one in reached), reached


def test_what_waits_behind_a_run_that_does_not_end_is_known_at_once() -> None:
    meters = TaskMeters()
    for now_ms in range(50, 1000, 50):
        meters.take(sample(), 50, now_ms)
    for now_ms in range(1000, 1500, 50):
        meters.take(sample(0, queue=2), 50, now_ms)
    assert meters.number(TASK, Col.LEVEL_MS) == pytest.approx(500.0, abs=50.0)
    assert meters.number(TASK, Col.RUN_MS) == pytest.approx(40.0)


def test_after_silence_a_queue_is_new() -> None:
    meters = TaskMeters()
    meters.take(sample(), 50, 1000)
    meters.take(sample(0, queue=1), 50, 5000)
    assert meters.number(TASK, Col.LEVEL_MS) == pytest.approx(50.0)


def test_a_delayed_window_weighs_no_more_than_everything() -> None:
    meters = TaskMeters()
    meters.take(sample(run_ms=10.0), 50, 100)
    meters.take(sample(run_ms=30.0), 2000, 110)
    assert meters.number(TASK, Col.RUN_MS) == pytest.approx(30.0)
