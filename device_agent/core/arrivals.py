"""How long a task lies idle between calls, learnt from its past; pure.

A histogram of idle times, as in "Serverless in the Wild" (Shahrad et al., 2020): an instance stays
as long as nearly all idle times last; where they are long and alike it leaves at once and comes
back shortly before the next call. Too few or too unlike idle times give a fixed time instead.
"""

from math import log2
from typing import Final

BINS_PER_OCTAVE: Final = 4
OCTAVES: Final = 22
"""From a millisecond to more than an hour; longer ones count as that."""
ENOUGH: Final = 10
"""Idle times before they are believed."""
FORGET: Final = 512
"""Of so many, half are forgotten, so that a new pattern is learnt."""
FALLBACK_MS: Final = 60_000.0
KEEP_MIN_MS: Final = 1000.0
KEEP_MAX_MS: Final = 600_000.0
"""Longer than this nobody waits for the next call."""
EARLY, LATE = 0.05, 0.99
"""Parts of the idle times that are shorter than the pre-warm and the keep-alive time."""
ALIKE: Final = 4.0
"""Between the early and the late ones at most this factor: then the next call can be foretold."""
MARGIN: Final = 0.9


class Arrivals:
    """The idle times of one task."""

    __slots__ = ("_bins", "_idle_since_ms", "_total")

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}
        self._total = 0
        self._idle_since_ms: float | None = None

    def went(self, now_ms: float) -> None:
        """Take note that the last call is over and none waits."""
        self._idle_since_ms = now_ms

    def came(self, now_ms: float) -> None:
        """Take note of the call that ends an idle time."""
        if self._idle_since_ms is None:
            return
        at = _bin(now_ms - self._idle_since_ms)
        self._idle_since_ms = None
        self._bins[at] = self._bins.get(at, 0) + 1
        self._total += 1
        if self._total > FORGET:
            self._bins = {one: count // 2 for one, count in self._bins.items() if count > 1}
            self._total = sum(self._bins.values())

    def keep_ms(self) -> float:
        """Return how long an instance stays after a call."""
        if self._total < ENOUGH:
            return FALLBACK_MS
        late_ms = _edge_ms(self._quantile(LATE) + 1)
        if late_ms <= KEEP_MAX_MS:
            return max(KEEP_MIN_MS, late_ms)
        return KEEP_MIN_MS if self.next_ms() is not None else FALLBACK_MS

    def next_ms(self) -> float | None:
        """Return how long after a call to make an instance ready again; None: nobody can tell."""
        if self._total < ENOUGH:
            return None
        early, late = self._quantile(EARLY), self._quantile(LATE) + 1
        if _edge_ms(late) <= KEEP_MAX_MS or _edge_ms(late) > ALIKE * _edge_ms(early):
            return None
        return MARGIN * _edge_ms(early)

    def until_ms(self) -> float:
        """Return how long after a call one that was made ready for the next has been in vain."""
        return _edge_ms(self._quantile(LATE) + 1)

    def _quantile(self, part: float) -> int:
        """Return the bin below whose upper edge this part of the idle times lies."""
        left = part * self._total
        for at in sorted(self._bins):
            left -= self._bins[at]
            if left <= 0:
                return at
        return max(self._bins, default=0)


def _bin(gap_ms: float) -> int:
    if gap_ms <= 1.0:
        return 0
    return min(int(log2(gap_ms) * BINS_PER_OCTAVE), OCTAVES * BINS_PER_OCTAVE)


def _edge_ms(at: int) -> float:
    """Return the lower edge of a bin."""
    return float(2.0 ** (at / BINS_PER_OCTAVE))
