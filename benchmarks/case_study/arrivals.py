"""When requests come: the traffic of Los Angeles, and real arrivals of a service; pure.

The traffic is given as speeds. Density follows from speed by Greenshields ("A Study of Traffic
Capacity", 1935): k = k_jam (1 - v / v_free). Every vehicle asks at the same pace, so requests are
proportional to the density, summed over the detectors. `v_free` of a detector is the 95th
percentile of its speeds; a speed of 0 is missing.
"""

import csv
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

FREE_PERCENTILE: Final = 95
ROW_S: Final = 300.0
"""Between two rows of the speeds."""


def density(speeds: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean density of each row, as a share of the jam density."""
    columns = list(zip(*speeds, strict=True))
    free = [_percentile([one for one in column if one > 0]) for column in columns]
    found = []
    for row in speeds:
        shares = [
            max(0.0, 1.0 - speed / top) for speed, top in zip(row, free, strict=True) if speed > 0
        ]
        found.append(sum(shares) / max(1, len(shares)))
    return found


def _percentile(values: list[float]) -> float:
    ordered = sorted(values) or [1.0]
    return ordered[min(len(ordered) - 1, len(ordered) * FREE_PERCENTILE // 100)]


def rush(densities: Sequence[float], rows: int) -> int:
    """Return where so many rows begin whose second half is above the first by most."""
    half = max(1, rows // 2)

    def rise(at: int) -> float:
        return sum(densities[at + half : at + 2 * half]) - sum(densities[at : at + half])

    return max(range(len(densities) - 2 * half), key=rise)


def traffic(
    densities: Sequence[float], rate_per_s: float, speed: float, seconds: float, seed: int
) -> list[float]:
    """Return when requests are due: `rate_per_s` in the mean of the window, speed times as fast.

    Within a row arrivals are a Poisson process.
    """
    chance = random.Random(seed)  # noqa: S311 - arrivals, not secrets
    rows = max(1, round(seconds * speed / ROW_S))
    start = rush(densities, rows)
    window = densities[start : start + rows + 1]
    mean = sum(window) / len(window)
    highest = max(window)
    found, at_s = [], 0.0
    while True:
        at_s += chance.expovariate(rate_per_s * highest / mean)
        if at_s >= seconds:
            return found
        here = window[min(len(window) - 1, int(at_s * speed / ROW_S))]
        if chance.random() < here / highest:
            found.append(at_s)


def azure(path: Path) -> list[float]:
    """Return the seconds of all arrivals of the trace from its first."""
    with path.open(encoding="utf-8", newline="") as file:
        told = [
            datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC).timestamp()
            for row in csv.DictReader(file)
        ]
    return [one - told[0] for one in told]


def thinned(
    arrivals: Sequence[float], rate_per_s: float, speed: float, seconds: float, seed: int
) -> list[float]:
    """Return the arrivals of a window, speed times as fast, each kept by chance.

    The chance is such that the whole trace has `rate_per_s` in the mean; the window is that whose
    number of arrivals is nearest to its share of them.
    """
    chance = random.Random(seed)  # noqa: S311 - arrivals, not secrets
    span_s = arrivals[-1] / speed
    keep = min(1.0, rate_per_s * span_s / len(arrivals))
    share = len(arrivals) * min(1.0, seconds / span_s)
    starts = [step * seconds / 2 for step in range(max(1, int((span_s - seconds) / seconds * 2)))]

    def inside(start_s: float) -> list[float]:
        due = (one / speed - start_s for one in arrivals)
        return [one for one in due if 0 <= one < seconds]

    start_s = min(starts, key=lambda one: abs(len(inside(one)) - share))
    return [one for one in inside(start_s) if chance.random() < keep]
