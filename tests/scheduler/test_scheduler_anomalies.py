"""Anomalies: no false alarm on the ordinary, and every real change of a version is told."""

import random
from bisect import bisect_left
from collections.abc import Callable

import pytest

from controller.scheduler.anomalies import (
    ADOPTED,
    CALLERS,
    CPU,
    FAILURES,
    INPUT,
    MEMORY,
    OUTPUT,
    RATE,
    RUN,
    Anomalies,
    Flag,
    improbable,
)
from protocols.histogram import BOUNDS, BUCKETS, pack
from protocols.messages.profile import VersionProfile

OLD, NEW = ("sha256:" + one * 64 for one in "ab")
Draw = Callable[[random.Random], float]


def about(middle: float, spread: float = 0.3) -> Draw:
    return lambda dice: dice.lognormvariate(0.0, spread) * middle


USUAL: dict[str, Draw] = {
    "run_us": about(5_000),
    "cpu_us": about(4_000),
    "memory_bytes": about(20e6, 0.05),
    "input_bytes": about(2_000, 0.8),
    "output_bytes": about(400, 0.1),
}


class Node:
    """A node that runs a version and reports sums."""

    def __init__(self, seed: int, name: str = "n1") -> None:
        self.dice = random.Random(seed)
        self.name = name
        self.ms = 1_000
        self.sums: dict[str, VersionProfile] = {}
        self.deciders = Anomalies()

    def runs(
        self,
        calls: int,
        digest: str = OLD,
        *,
        over_ms: int = 2_000,
        failing: float = 0.0,
        users: Callable[[random.Random], str] = lambda _: "app",
        **other: Draw,
    ) -> list[Flag]:
        before = self.sums.get(digest)
        counts = {name: [0] * BUCKETS for name in USUAL}
        callers: dict[str, int] = {}
        failed = 0
        for _ in range(calls):
            user = users(self.dice)
            callers[user] = callers.get(user, 0) + 1
            if self.dice.random() < failing:
                failed += 1
                continue
            for name, draw in {**USUAL, **other}.items():
                counts[name][bisect_left(BOUNDS, draw(self.dice))] += 1
        self.ms += over_ms
        fresh = VersionProfile(
            "t", digest, 1, calls=calls - failed,
            failures={"executor": failed} if failed else {}, callers=callers,
            **{name: pack(one) for name, one in counts.items()},
        )  # fmt: skip
        from controller.accounts import summed  # noqa: PLC0415 - the sums are its

        now = self.sums[digest] = fresh if before is None else summed(before, fresh)
        return self.deciders.take(self.name, before, now, self.ms)


@pytest.mark.parametrize("seed", range(12))
def test_ordinary_calls_are_never_flagged(seed: int) -> None:
    """2,400 windows of seven figures: at 3e-6 each, and two in a row, none is expected."""
    node = Node(seed)
    dice = random.Random(seed + 1000)
    spread = dice.choice((0.05, 0.3, 1.0, 2.0))
    crowd = dice.choice((1, 5, 1000))
    draws = {name: about(10 ** dice.uniform(1, 6), spread) for name in USUAL}
    for _ in range(200):
        found = node.runs(
            dice.randint(30, 80),
            over_ms=dice.randint(1_800, 4_000),
            failing=0.03,
            users=lambda one: f"u{one.randrange(crowd)}",
            **draws,
        )
        assert found == []


@pytest.mark.parametrize(
    ("what", "field", "times", "grave"),
    [
        (CPU, "cpu_us", 3.0, True),
        (MEMORY, "memory_bytes", 3.0, True),
        (OUTPUT, "output_bytes", 4.0, True),
        (OUTPUT, "output_bytes", 0.2, True),
        (RUN, "run_us", 3.0, False),
        (INPUT, "input_bytes", 20.0, False),
    ],
)
def test_a_changed_version_is_flagged_against_the_one_before(
    what: str, field: str, times: float, grave: bool
) -> None:
    node = Node(7)
    for _ in range(4):
        assert node.runs(50) == []
    usual = USUAL[field]
    changed: dict[str, Draw] = {field: lambda dice: usual(dice) * times}
    found = [flag for _ in range(4) for flag in node.runs(50, NEW, **changed)]
    assert [(one.what, one.grave, one.over) for one in found] == [(what, grave, False)]
    assert "the median is" in found[0].detail
    assert f"against {4 * 50}" in found[0].detail


def test_run_time_is_grave_where_processor_time_is_not_measured() -> None:
    node = Node(7)
    nothing: dict[str, Draw] = {"cpu_us": about(1.0, 0.0)}
    for _ in range(4):
        node.runs(50, **nothing)
    before = node.sums.pop(OLD)
    node.sums[OLD] = before
    profile = VersionProfile("t", NEW, 2)
    for window in range(1, 4):
        counts = [0] * BUCKETS
        counts[25] = 50 * window
        now = VersionProfile("t", NEW, 2, calls=50 * window, run_us=pack(counts))
        flags = node.deciders.take("n1", profile, now, 10_000 * window)
        profile = now
        if window == 2:
            assert [(one.what, one.grave) for one in flags] == [(RUN, True)]


def test_one_odd_window_is_not_enough_and_what_is_over_is_told() -> None:
    node = Node(3)
    slow: dict[str, Draw] = {"cpu_us": about(20_000)}
    for _ in range(4):
        node.runs(50)
    assert node.runs(50, **slow) == []
    assert node.runs(50) == []
    assert node.runs(50, **slow) == []
    assert [one.what for one in node.runs(50, **slow)] == [CPU]
    found = [flag for _ in range(3) for flag in node.runs(50)]
    assert [(one.what, one.over) for one in found] == [(CPU, True)]


def test_what_lasts_becomes_the_history() -> None:
    node = Node(3)
    slow: dict[str, Draw] = {"cpu_us": about(20_000)}
    for _ in range(4):
        node.runs(50)
    found = [flag for _ in range(5 * ADOPTED) for flag in node.runs(100, **slow)]
    assert [(one.what, one.over) for one in found] == [(CPU, False), (CPU, True)]


def test_a_version_that_fails_is_flagged() -> None:
    node = Node(5)
    for _ in range(4):
        node.runs(60, failing=0.02)
    found = [flag for _ in range(3) for flag in node.runs(60, NEW, failing=0.6)]
    assert [(one.what, one.grave) for one in found] == [(FAILURES, True)]


def test_another_pattern_of_calls_is_told_and_never_grave() -> None:
    node = Node(5)
    for _ in range(20):
        node.runs(50)
    found = [flag for _ in range(3) for flag in node.runs(50, over_ms=100)]
    assert [(one.what, one.grave) for one in found] == [(RATE, False)]
    found = [flag for at in range(3) for flag in node.runs(50, users=lambda _, at=at: f"new{at}")]
    assert CALLERS in {one.what for one in found}
    assert not any(one.grave for one in found)


def test_few_calls_wait_for_more() -> None:
    node = Node(5)
    for _ in range(20):
        node.runs(10)
    slow: dict[str, Draw] = {"cpu_us": about(30_000)}
    assert [one.what for _ in range(5) for one in node.runs(10, NEW, **slow)] == []
    assert CPU in [one.what for _ in range(3) for one in node.runs(10, NEW, **slow)]


def test_a_restart_of_the_scheduler_keeps_the_history() -> None:
    node = Node(9)
    for _ in range(4):
        node.runs(50)
    node.deciders = Anomalies()
    node.deciders.restore("n1", node.sums[OLD])
    slow: dict[str, Draw] = {"cpu_us": about(30_000)}
    assert [one.what for _ in range(3) for one in node.runs(50, **slow)] == [CPU]


def test_the_bound_knows_how_little_a_short_history_says() -> None:
    assert improbable(1.0, 30, 0.0, 100)
    assert not improbable(0.2, 30, 0.0, 100)
    assert improbable(0.2, 300, 0.0, 10_000)
    assert not improbable(1.0, 3, 0.5, 100)
    assert not improbable(0.6, 30, 0.5, 100_000)
