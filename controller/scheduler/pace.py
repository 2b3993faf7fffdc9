"""How often a node samples: as often as its tightest task needs, else at the cell's pace."""

from collections.abc import Iterable
from typing import Final

SAMPLES_PER_BUDGET: Final = 5
"""Danger is to be seen well within the time that a request may take."""
FASTEST_SAMPLE_MS: Final = 50


def sample_ms(usual_ms: int, latencies_ms: Iterable[float | None]) -> int:
    """Return the sampling interval of a node whose tasks have these latency budgets."""
    budgets = [one for one in latencies_ms if one is not None]
    if not budgets:
        return usual_ms
    return min(usual_ms, max(FASTEST_SAMPLE_MS, int(min(budgets) / SAMPLES_PER_BUDGET)))
