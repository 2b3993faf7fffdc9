"""Round trip, jitter and loss of the way to the broker, from numbered probes. Pure: no clock."""

from itertools import pairwise
from typing import Final

from msgspec import Struct

WINDOW: Final = 32
"""Probes that count; the oldest goes when a new one is sent."""
TIMEOUT_MS: Final = 3000.0
"""A probe that is not back by then is lost, and stays lost when it comes later."""


class PathFigures(Struct, frozen=True):
    """What the recent probes say; None where none of them does yet."""

    round_trip_ms: float | None = None
    jitter_ms: float | None = None
    loss_percent: float | None = None


class PathMonitor:
    """Keeps the last probes. Numbers may come back in any order, twice, or never."""

    def __init__(self, *, window: int = WINDOW, timeout_ms: float = TIMEOUT_MS) -> None:
        self._window = window
        self._timeout_ms = timeout_ms
        self._sent: dict[int, float] = {}
        self._round_trips: dict[int, float] = {}

    def sent(self, number: int, now_ms: float) -> None:
        """Note that a probe has left."""
        if number in self._sent:
            return
        self._sent[number] = now_ms
        while len(self._sent) > self._window:
            oldest = next(iter(self._sent))
            del self._sent[oldest]
            self._round_trips.pop(oldest, None)

    def returned(self, number: int, now_ms: float) -> None:
        """Note that a probe is back; one that is unknown, late or back already is passed over."""
        since = self._sent.get(number)
        if since is None or number in self._round_trips:
            return
        if 0 <= now_ms - since <= self._timeout_ms:
            self._round_trips[number] = now_ms - since

    def unanswered(self, now_ms: float) -> tuple[int, float]:
        """Return how many of the newest probes were lost in a row, and when the first left."""
        count, since_ms = 0, now_ms
        for number in reversed(self._sent):
            if number in self._round_trips:
                break
            if now_ms - self._sent[number] > self._timeout_ms:
                count, since_ms = count + 1, self._sent[number]
        return count, since_ms

    def answered_since(self, at_ms: float) -> bool:
        """Whether a probe that left at this time or later is back."""
        return any(self._sent[one] >= at_ms for one in self._round_trips)

    def figures(self, now_ms: float) -> PathFigures:
        """Return median, jitter and loss at this time."""
        trips = [self._round_trips[one] for one in self._sent if one in self._round_trips]
        lost = sum(
            1
            for number, since in self._sent.items()
            if number not in self._round_trips and now_ms - since > self._timeout_ms
        )
        steps = [abs(after - before) for before, after in pairwise(trips)]
        decided = len(trips) + lost
        return PathFigures(
            round_trip_ms=_median(trips) if trips else None,
            jitter_ms=sum(steps) / len(steps) if steps else None,
            loss_percent=100.0 * lost / decided if decided else None,
        )

    def clear(self) -> None:
        """Forget every probe: the way is another one."""
        self._sent.clear()
        self._round_trips.clear()


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
