"""The daemon's timers for sampling: what is read how often, on a clock of the test's."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from device_agent.core import events
from device_agent.senses import Senses
from protocols.messages.sense import LoadReport


class Clock:
    """The loop, as far as senses need one: time stands until the test lets it pass."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, work: Callable[[], None]) -> "Clock":
        self._due.append((self.now_s + delay_s, work))
        return self

    def cancel(self) -> None:
        """Let what was asked for happen all the same: senses are paced before they begin."""

    def run(self, until_s: float) -> None:
        while self._due and min(self._due, key=lambda one: one[0])[0] <= until_s:
            first = min(self._due, key=lambda one: one[0])
            self._due.remove(first)
            self.now_s, work = first
            work()


class Sampler:
    """Says how it was asked."""

    def __init__(self) -> None:
        self.whole: list[int] = []
        self.processor: list[int] = []

    def sample(self, now_ms: int) -> LoadReport:
        self.whole.append(now_ms)
        return LoadReport(now_ms, 0.0, 0, 0)

    def sample_processor(self, now_ms: int) -> LoadReport:
        self.processor.append(now_ms)
        return LoadReport(now_ms, 0.0, 0, 0)


@pytest.mark.parametrize(
    ("pace_ms", "every", "whole", "processor"),
    [
        (100, 5, [100, 600], [200, 300, 400, 500, 700, 800, 900, 1000]),
        (500, 1, [500, 1000], []),
    ],
)
def test_all_is_read_at_its_own_pace(
    monkeypatch: pytest.MonkeyPatch,
    pace_ms: int,
    every: int,
    whole: list[int],
    processor: list[int],
) -> None:
    clock, sampler, told = Clock(), Sampler(), []
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    link: Any = None
    read: Any = sampler
    senses = Senses(read, link, told.append, lambda _: False, lambda: None)
    senses.pace(pace_ms, 10_000, every)
    clock.run(1.0)
    assert (sampler.whole, sampler.processor) == (whole, processor)
    # The core hears of each, whatever was read.
    assert [one.load.sampled_ms for one in told if isinstance(one, events.Sampled)] == sorted(
        [*whole, *processor]
    )
