"""What a run of the testbed says: what was lost, what was doubled, how long nobody answered. Pure.

A *gap* is the time between two answers of one caller that follow each other, whatever they answer.
It belongs to the window in which it ends. Windows of a node in which a handover took place, or was
asked for, are *handover* windows; the others are *steady*. Of the steady ones as many count as
there are handover windows. `gap_ratio` holds the 99.9th percentiles against each other.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Final

from msgspec import Struct

QUANTILE: Final = 0.999


class Passed(Struct, frozen=True):
    """A window of a node, on the monotonic clock in nanoseconds."""

    node: str
    begin_ns: int
    end_ns: int
    handover: bool


class Sums(Struct, frozen=True):
    """What a caller has counted."""

    sent: int
    answered: int
    lost: int
    wrong: int
    doubled: int
    """Answers handed to the application beyond the first of a request."""
    repeated: int
    """Answers that came again and were dropped by the client."""
    retries: int
    skipped: int
    """Requests that were not sent, for too many were under way."""
    failures: tuple[str, ...] = ()
    """The first that were lost, in words."""


class Called(Struct, frozen=True):
    """What a caller has to say."""

    sums: Sums
    answers_ns: list[int]
    """When answers came, in order."""
    latencies_ms: list[float]


class Gaps(Struct, frozen=True):
    """Over windows of one kind."""

    windows: int
    gaps: int
    p50_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None


class Verdict(Struct, frozen=True):
    """What became of the requests of some nodes."""

    nodes: int
    sent: int
    answered: int
    lost: int
    doubled: int
    repeated: int
    """Answers that came again and were dropped by the client, unseen by its application."""
    retries: int
    skipped: int
    handovers: int
    """That took place."""
    failed: int
    """That were asked for and did not take place."""
    handover: Gaps
    steady: Gaps
    gap_ratio: float | None = None
    """p99.9 of the one over p99.9 of the other."""
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that so large a share does not exceed; None of nothing."""
    if not ordered:
        return None
    return ordered[max(0, ceil(len(ordered) * share) - 1)]


def gaps(answers_ns: Sequence[int], windows: Iterable[Passed]) -> list[float]:
    """Return the gaps (ms) in the windows of one caller; `answers_ns` in order.

    A window in which nobody answers has one gap, as long as it lasted at its end at least.
    """
    found: list[float] = []
    for one in windows:
        first = bisect_left(answers_ns, one.begin_ns)
        last = bisect_right(answers_ns, one.end_ns)
        inside = [*answers_ns[max(0, first - 1) : last]]
        if last == first:
            inside.append(one.end_ns)
        found += ((after - before) / 1e6 for before, after in pairwise(inside))
    return found


def summed(windows: int, found: Iterable[float]) -> Gaps:
    """Return the figures of some gaps."""
    ordered = sorted(found)
    return Gaps(
        windows,
        len(ordered),
        quantile(ordered, 0.5),
        quantile(ordered, 0.99),
        quantile(ordered, QUANTILE),
        ordered[-1] if ordered else None,
    )


def chosen(windows: Sequence[Passed]) -> tuple[list[Passed], list[Passed]]:
    """Return the handover windows, and as many steady ones, taken evenly over the run."""
    moved = [one for one in windows if one.handover]
    still = [one for one in windows if not one.handover]
    if len(still) > len(moved):
        still = [still[number * len(still) // len(moved)] for number in range(len(moved))]
    return moved, still


class Driven(Struct):
    """What came of one node's windows."""

    passed: list[Passed] = []
    handovers: int = 0
    failed: int = 0
    reasons: list[str] = []
    """Why some were refused."""


def verdict(called: Mapping[str, Called], driven: Mapping[str, Driven]) -> Verdict:
    """Return what became of some nodes, each with its caller."""
    moved: list[float] = []
    still: list[float] = []
    windows = [one for node in driven.values() for one in node.passed]
    moving, steady = chosen(windows)
    for node, one in called.items():
        moved += gaps(one.answers_ns, [each for each in moving if each.node == node])
        still += gaps(one.answers_ns, [each for each in steady if each.node == node])
    sums = [one.sums for one in called.values()]
    latencies = sorted(each for one in called.values() for each in one.latencies_ms)
    handover, calm = summed(len(moving), moved), summed(len(steady), still)
    ratio = None
    if handover.p999_ms is not None and calm.p999_ms:
        ratio = handover.p999_ms / calm.p999_ms
    return Verdict(
        nodes=len(called),
        sent=sum(one.sent for one in sums),
        answered=sum(one.answered for one in sums),
        lost=sum(one.lost + one.wrong for one in sums),
        doubled=sum(one.doubled for one in sums),
        repeated=sum(one.repeated for one in sums),
        retries=sum(one.retries for one in sums),
        skipped=sum(one.skipped for one in sums),
        handovers=sum(one.handovers for one in driven.values()),
        failed=sum(one.failed for one in driven.values()),
        handover=handover,
        steady=calm,
        gap_ratio=ratio,
        latency_p50_ms=quantile(latencies, 0.5),
        latency_p99_ms=quantile(latencies, 0.99),
    )
