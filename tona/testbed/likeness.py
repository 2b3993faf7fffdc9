"""How alike the radio of two windows is, by their traces, and which is most like which. Pure.

A gap is longer than the time between two requests by what the way of its second answer takes more.
So the windows are held against each other by how much longer ways become, how long they are, and
how much is lost on them; what was measured in them says nothing here.
"""

from collections.abc import Sequence
from heapq import nlargest
from itertools import pairwise
from statistics import fmean
from typing import Final

from msgspec import Struct

from tona.testbed.replay import link
from tona.testbed.traces import Window

RISES: Final = 5
"""So many of a window are compared: those behind its longest gaps."""
LOSS_MS: Final = 50.0
"""What each per cent that is lost counts for, where its repetition takes a round trip and more."""
USED_MAX: Final = 4
"""So often one window may be the likest of others."""


class Traced(Struct, frozen=True):
    """What a trace makes of the links of a window that serve."""

    rises_ms: tuple[float, ...]
    """The largest, in order: both ways longer than the row before, and the jitter of both."""
    delay_ms: float
    """One way, on average."""
    loss_percent: float
    """On average."""


class Likeness(Struct, frozen=True):
    """The radio of several windows, on average."""

    rise_ms: float
    """The largest of each."""
    delay_ms: float
    loss_percent: float


def traced(window: Window) -> Traced:
    """Return the radio of a window."""
    links = [link(one) for one in window.samples]
    rises = [links[0].jitter_ms]
    rises += (
        2 * max(0.0, after.delay_ms - before.delay_ms) + after.jitter_ms
        for before, after in pairwise(links)
    )
    largest = nlargest(RISES, rises)
    return Traced(
        (*largest, *[0.0] * (RISES - len(largest))),
        fmean(one.delay_ms for one in links),
        fmean(one.loss_percent for one in links),
    )


def likeness(radios: Sequence[Traced]) -> Likeness | None:
    """Return their averages; None of none."""
    if not radios:
        return None
    return Likeness(
        fmean(one.rises_ms[0] for one in radios),
        fmean(one.delay_ms for one in radios),
        fmean(one.loss_percent for one in radios),
    )


def likest(wanted: Sequence[Traced], among: Sequence[Traced]) -> list[int]:
    """Return for each of `wanted` which of the others is likest, those with the worst radio first.

    One is taken `USED_MAX` times at most; where all are used up the rest has none.
    """
    left = dict.fromkeys(range(len(among)), USED_MAX)
    found = []
    for one in sorted(wanted, key=_weight, reverse=True):
        if not left:
            break
        apart_ms = {number: _apart_ms(one, among[number]) for number in left}
        nearest = min(apart_ms, key=apart_ms.__getitem__)
        found.append(nearest)
        left[nearest] -= 1
        if not left[nearest]:
            del left[nearest]
    return found


def _weight(one: Traced) -> float:
    return sum(one.rises_ms) + one.delay_ms + LOSS_MS * one.loss_percent


def _apart_ms(one: Traced, other: Traced) -> float:
    rises = zip(one.rises_ms, other.rises_ms, strict=True)
    return (
        sum(abs(mine - its) for mine, its in rises)
        + abs(one.delay_ms - other.delay_ms)
        + LOSS_MS * abs(one.loss_percent - other.loss_percent)
    )
