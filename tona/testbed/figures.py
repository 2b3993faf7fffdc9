"""What a run of the testbed says: what was lost, what was doubled, how long nobody answered. Pure.

A *gap* is the time between two answers of one caller that follow each other, whatever they answer.
It belongs to the window in which it ends. Windows of a node in which a handover took place, or was
asked for, are *handover* windows; those that replay the radio of such a one without it are their
*control*; the others are *steady*. Of the steady ones as many count as there are handover windows.
`gap_ratio` holds the 99.9th percentiles of the first and the last against each other, `radio_ratio`
those of the control and the last: what the radio of a handover window costs by itself.
`matched_ratio` holds handover windows against those steady ones of the run whose radio is likest to
theirs, by the traces alone.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from math import ceil
from typing import Final

from msgspec import Struct

from tona.testbed.likeness import Likeness, Traced, likeness, likest
from tona.testbed.stages import Gap, Longest, Move, Share, Stage, longest, shares, staged

QUANTILE: Final = 0.999


class Kind(StrEnum):
    """What a window is."""

    HANDOVER = "handover"
    STEADY = "steady"
    CONTROL = "control"


class Passed(Struct, frozen=True):
    """A window of a node, on the monotonic clock in nanoseconds."""

    node: str
    begin_ns: int
    end_ns: int
    kind: Kind
    radio: Traced | None = None
    """By its trace; None: unknown."""


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
    different: int = 0
    """Windows, each counted once."""
    radio: Likeness | None = None


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
    control: Gaps | None = None
    """None: there were no such windows."""
    matched: Gaps | None = None
    """Steady windows with the radio of handover windows, one for each; None: no radio is known."""
    gap_ratio: float | None = None
    """p99.9 of handover windows over p99.9 of steady ones."""
    radio_ratio: float | None = None
    """p99.9 of control windows over p99.9 of steady ones."""
    matched_ratio: float | None = None
    """p99.9 of handover windows over p99.9 of those matched with them."""
    stages: Mapping[Stage, Share] = {}
    """Of the gaps in handover windows, by what was done when they ended."""
    longest: tuple[Longest, ...] = ()
    """Of them, the longest first."""
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that so large a share does not exceed; None of nothing."""
    if not ordered:
        return None
    return ordered[max(0, ceil(len(ordered) * share) - 1)]


def gaps(answers_ns: Sequence[int], windows: Iterable[Passed]) -> list[Gap]:
    """Return the gaps in the windows of one caller; `answers_ns` in order.

    A window in which nobody answers has one gap, as long as it lasted at its end at least.
    """
    found: list[Gap] = []
    for one in windows:
        first = bisect_left(answers_ns, one.begin_ns)
        last = bisect_right(answers_ns, one.end_ns)
        inside = [*answers_ns[max(0, first - 1) : last]]
        if last == first:
            inside.append(one.end_ns)
        found += (
            Gap(one.node, after, (after - before) / 1e6) for before, after in pairwise(inside)
        )
    return found


def summed(windows: Sequence[Passed], found: Iterable[Gap]) -> Gaps:
    """Return the figures of the gaps in some windows, of which one may be there several times."""
    ordered = sorted(one.ms for one in found)
    return Gaps(
        len(windows),
        len(ordered),
        quantile(ordered, 0.5),
        quantile(ordered, 0.99),
        quantile(ordered, QUANTILE),
        ordered[-1] if ordered else None,
        len({(one.node, one.begin_ns) for one in windows}),
        likeness([one.radio for one in windows if one.radio is not None]),
    )


def matched(windows: Sequence[Passed]) -> list[Passed]:
    """Return for each handover window the steady one with the likest radio; see `likest`."""
    radios: dict[Kind, list[Traced]] = {}
    steady = []
    for one in windows:
        if one.radio is not None:
            radios.setdefault(one.kind, []).append(one.radio)
            steady += [one] if one.kind is Kind.STEADY else []
    wanted, among = radios.get(Kind.HANDOVER, []), radios.get(Kind.STEADY, [])
    return [steady[number] for number in likest(wanted, among)]


def chosen(windows: Sequence[Passed]) -> dict[Kind, list[Passed]]:
    """Return the windows that count: of the steady ones as many as there are with a handover.

    They are taken evenly over the run.
    """
    found = {kind: [one for one in windows if one.kind is kind] for kind in Kind}
    count, steady = len(found[Kind.HANDOVER]), found[Kind.STEADY]
    if len(steady) > count:
        found[Kind.STEADY] = [steady[number * len(steady) // count] for number in range(count)]
    return found


class Driven(Struct):
    """What came of one node's windows."""

    passed: list[Passed] = []
    handovers: int = 0
    failed: int = 0
    reasons: list[str] = []
    """Why some were refused."""


def verdict(
    called: Mapping[str, Called], driven: Mapping[str, Driven], moves: Iterable[Move] = ()
) -> Verdict:
    """Return what became of some nodes, each with its caller, and `moves` of any nodes."""
    passed = [one for node in driven.values() for one in node.passed]
    windows, alike = chosen(passed), matched(passed)
    found = {kind: _gaps(called, of_kind) for kind, of_kind in windows.items()}
    figures = {kind: summed(windows[kind], found[kind]) for kind in Kind}
    same = summed(alike, _gaps(called, alike)) if alike else None
    steady = figures[Kind.STEADY]
    told = staged(found[Kind.HANDOVER], moves)
    sums = [one.sums for one in called.values()]
    latencies = sorted(each for one in called.values() for each in one.latencies_ms)
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
        handover=figures[Kind.HANDOVER],
        steady=steady,
        control=figures[Kind.CONTROL] if windows[Kind.CONTROL] else None,
        matched=same,
        gap_ratio=_ratio(figures[Kind.HANDOVER], steady),
        radio_ratio=_ratio(figures[Kind.CONTROL], steady),
        matched_ratio=_ratio(figures[Kind.HANDOVER], same) if same else None,
        stages=shares(told, steady.p999_ms),
        longest=longest(told),
        latency_p50_ms=quantile(latencies, 0.5),
        latency_p99_ms=quantile(latencies, 0.99),
    )


def _gaps(called: Mapping[str, Called], windows: Sequence[Passed]) -> list[Gap]:
    return [
        gap
        for node, one in called.items()
        for gap in gaps(one.answers_ns, [each for each in windows if each.node == node])
    ]


def _ratio(one: Gaps, other: Gaps) -> float | None:
    return one.p999_ms / other.p999_ms if one.p999_ms is not None and other.p999_ms else None
