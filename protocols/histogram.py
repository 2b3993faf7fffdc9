"""Histograms of positive figures over fixed buckets, five to a decade: small, and they add up.

Whatever is counted, microseconds or bytes, falls into the same buckets, so that histograms of any
node, version and hour can be added and held against each other. A bucket is 58 % wider than the one
before; a quantile is read with half of that as its largest error.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

from msgspec import Meta

from protocols.base import Count

BUCKETS: Final = 56
PER_DECADE: Final = 5
BOUNDS: Final = tuple(10 ** (one / PER_DECADE) for one in range(BUCKETS - 1))
"""Upper ends of all buckets but the last: from 1 to 63 thousand million."""

Packed = Annotated[tuple[Count, ...], Meta(max_length=BUCKETS + 1)]
"""A histogram on the wire: the index of the first bucket, then the counts of it and those after it;
empty: nothing was counted.
"""


def pack(counts: Sequence[int]) -> tuple[int, ...]:
    """Return counts of all buckets as they go on the wire."""
    used = [at for at, count in enumerate(counts) if count]
    return (used[0], *counts[used[0] : used[-1] + 1]) if used else ()


def unpack(packed: Sequence[int]) -> list[int]:
    """Return the counts of all buckets; what a peer puts beyond them counts in the last."""
    counts = [0] * BUCKETS
    for at, count in enumerate(packed[1:], packed[0] if packed else 0):
        counts[min(at, BUCKETS - 1)] += count
    return counts


def add(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Return the sum of two histograms, packed like them."""
    return pack([a + b for a, b in zip(unpack(one), unpack(other), strict=True)])


def total(packed: Sequence[int]) -> int:
    """Return how many figures a packed histogram counts."""
    return sum(packed[1:])


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return the figure below which this share lies, by position inside its bucket; None of none.

    `counts` are those of all buckets, `share` lies in (0, 1].
    """
    wanted, seen = share * sum(counts), 0
    if wanted <= 0:
        return None
    for at, count in enumerate(counts):
        if count and seen + count >= wanted:
            low = (at - 1) / PER_DECADE
            return float(10 ** (low + (wanted - seen) / count / PER_DECADE)) if at else 1.0
        seen += count
    return None


def merged(many: Iterable[Sequence[int]]) -> list[int]:
    """Return the sum of packed histograms, all buckets."""
    counts = [0] * BUCKETS
    for packed in many:
        for at, count in enumerate(unpack(packed)):
            counts[at] += count
    return counts
