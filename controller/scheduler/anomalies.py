"""Whether a version behaves unlike its task's own history: pure statistics over its reports.

Figures of single calls (times, memory, bytes) are held against those of before by one test without
assumptions on how they are spread. A bar is set two buckets beyond the median of the history. The
share of the history beyond it, and what may be wrong with that share (the inequality of Dvoretzky,
Kiefer and Wolfowitz), bounds the share that ordinary calls have beyond it; how improbable the share
of the newest calls is then, says Chernoff's bound. For calls that are as ever and independent of
each other the chance of a false alarm is below `3 * CHANCE` for each window and figure, whatever
their distribution; and two windows in a row have to alarm. At least `MOST` of the calls must lie
beyond the bar, so that what is told is a change of nearly all of them.

A version without a history of its own is held against the version that ran before it, on the same
node, else on any. What is suspicious becomes history only when it has lasted `ADOPTED` windows.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import exp, log, sqrt
from statistics import median
from typing import Final

from msgspec import Struct, field

from protocols.histogram import BUCKETS, quantile, unpack
from protocols.messages.profile import VersionProfile

CHANCE: Final = 1e-6
CALLS_MIN: Final = 30
"""Of a window; fewer wait for those after them."""
HISTORY_MIN: Final = 100
"""Calls of a history."""
MOST: Final = 0.5
AWAY: Final = 2
"""Buckets between the median of the history and the bar: a factor of 1.6 to 2.5."""
IN_A_ROW: Final = 2
ADOPTED: Final = 30
RATES_MIN: Final = 16
RATES_KEPT: Final = 64
RATE_FACTOR: Final = 4.0
"""A rate that differs less from the median is never flagged."""
RATE_DEVIATIONS: Final = 8.0
MAD_TO_SIGMA: Final = 1.4826
FAULTS: Final = ("executor", "limit", "check-failed", "flagged")
"""Verdicts that speak of the version; others speak of load, of clients or of the network."""
FAULTS_MOST: Final = 0.1
"""Share of calls that may fail without being flagged, whatever the history."""

RUN, CPU, MEMORY, OUTPUT, INPUT = (
    "run time",
    "processor time",
    "memory",
    "output size",
    "input size",
)
FAILURES, RATE, CALLERS = "failures", "call rate", "callers"
_FIGURES: Final = {
    RUN: ("run_us", 1),
    CPU: ("cpu_us", 1),
    MEMORY: ("memory_bytes", 1),
    OUTPUT: ("output_bytes", 0),
    INPUT: ("input_bytes", 0),
}
"""Field of each, and whether only a growth is told (1)."""
_GRAVE: Final = {CPU, MEMORY, OUTPUT, FAILURES}
"""Speak of the version itself; its run time does so only where processor time is not measured."""


class Flag(Struct, frozen=True):
    """A word on one figure of a version."""

    what: str
    detail: str
    grave: bool
    over: bool = False


def improbable(share: float, calls: int, usual: float, history: int) -> bool:
    """Whether a share of the calls is too large for one that was usual in a history.

    Its chance is below `2 * CHANCE` where both are of the same kind.
    """
    bound = usual + sqrt(log(2 / CHANCE) / (2 * history))
    if bound >= 1.0 or share <= bound:
        return False
    distance = share * log(share / bound)
    if share < 1.0:
        distance += (1.0 - share) * log((1.0 - share) / (1.0 - bound))
    return exp(-calls * distance) <= CHANCE


def shifted(history: Sequence[int], window: Sequence[int], *, growth: bool) -> str:
    """Return in words how calls have moved away from a history; empty: they have not.

    Both are counts of all buckets.
    """
    before, now = sum(history), sum(window)
    if before < HISTORY_MIN or now < CALLS_MIN:
        return ""
    middle = bisect_left(list(accumulate(history)), before / 2)
    sides = {"above": slice(min(middle + AWAY, BUCKETS), BUCKETS)}
    if not growth:
        sides["below"] = slice(0, max(0, middle - AWAY + 1))
    for side, buckets in sides.items():
        share = sum(window[buckets]) / now
        usual = sum(history[buckets]) / before
        if share >= MOST and improbable(share, now, usual, before):
            times = (quantile(window, MOST) or 1.0) / (quantile(history, MOST) or 1.0)
            moved = f"{times:.1f} times" if side == "above" else f"{times:.2f} of"
            return f"the median is {moved} what it was ({now} calls against {before})"
    return ""


class _Window(Struct):
    """What was reported since the last judgement."""

    counts: dict[str, list[int]] = field(default_factory=dict)
    ends: int = 0
    faults: int = 0
    callers: dict[str, int] = field(default_factory=dict)
    ms: int = 0


class _Track(Struct):
    """The history of one version on one node."""

    counts: dict[str, list[int]] = field(default_factory=dict)
    ends: int = 0
    faults: int = 0
    callers: set[str] = field(default_factory=set)
    newcomers: int = 0
    """Calls of the history whose caller was new in its window."""
    called: int = 0
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=RATES_KEPT))
    window: _Window = field(default_factory=_Window)
    sampled_ms: int = 0
    suspicious: dict[str, int] = field(default_factory=dict)
    """Windows in a row that alarmed, by figure; below 0: windows in a row that did not since."""
    flagged: set[str] = field(default_factory=set)
    odd: int = 0
    """Windows in a row that were kept out of the history."""

    def learn(self, window: _Window) -> None:
        """Take a window into the history."""
        for name, counts in window.counts.items():
            mine = self.counts.setdefault(name, [0] * BUCKETS)
            for at, count in enumerate(counts):
                mine[at] += count
        self.ends += window.ends
        self.faults += window.faults


Key = tuple[str, str, str]
"""Task, digest, node."""


class Anomalies:
    """The histories of every version, as far as this scheduler has seen or read them."""

    def __init__(self) -> None:
        self._tracks: dict[str, dict[tuple[str, str], _Track]] = {}
        """By task, then digest and node; what was heard of last stands last."""

    def restore(self, node: str, whole: VersionProfile) -> None:
        """Take what is durable of a version as its history."""
        track = self._tracks.setdefault(whole.task, {}).setdefault((whole.digest, node), _Track())
        track.learn(_difference(None, whole, 0))
        track.callers.update(whole.callers)

    def forget(self, task: str, digest: str, node: str) -> None:
        """Forget a version on a node."""
        tracks = self._tracks.get(task, {})
        tracks.pop((digest, node), None)
        if not tracks:
            self._tracks.pop(task, None)

    def take(
        self, node: str, before: VersionProfile | None, now: VersionProfile, sampled_ms: int
    ) -> list[Flag]:
        """Judge what has been added to the sums of a node's life; `before` None: all of it."""
        tracks = self._tracks.setdefault(now.task, {})
        key = now.digest, node
        track = tracks.pop(key, None) or _Track()
        passed_ms = sampled_ms - track.sampled_ms if track.sampled_ms else 0
        track.sampled_ms = sampled_ms
        _add(track.window, _difference(before, now, max(0, passed_ms)))
        flags: list[Flag] = []
        if track.window.ends >= CALLS_MIN:
            window, track.window = track.window, _Window()
            flags = self._judge(track, window, self._history(tracks, track, key))
        tracks[key] = track
        return flags

    def _history(
        self, tracks: Mapping[tuple[str, str], _Track], own: _Track, key: tuple[str, str]
    ) -> _Track:
        """Return what a version is held against: itself, or the one before it."""
        if own.ends >= HISTORY_MIN:
            return own
        others = [(at, one) for at, one in tracks.items() if at[0] != key[0]]
        known = [(at, one) for at, one in others if one.ends >= HISTORY_MIN]
        here = [one for at, one in known if at[1] == key[1]]
        return (here or [one for _, one in known] or [own])[-1]

    def _judge(self, track: _Track, window: _Window, history: _Track) -> list[Flag]:
        found = {
            name: words
            for name, (_, growth) in _FIGURES.items()
            if (words := _moved(history, window, name, growth=bool(growth)))
        }
        found |= _failures(history, window)
        grave = {name for name in found if name in _GRAVE}
        if RUN in found and CPU not in window.counts:
            grave.add(RUN)
        if found:
            track.odd += 1
        if not found or track.odd >= ADOPTED:
            track.odd = 0
            track.learn(window)
        found |= _pattern(track, window)
        return _told(track, found, grave)


def _moved(history: _Track, window: _Window, name: str, *, growth: bool) -> str:
    if name not in history.counts or name not in window.counts:
        return ""
    return shifted(history.counts[name], window.counts[name], growth=growth)


def _failures(history: _Track, window: _Window) -> dict[str, str]:
    if history.ends < HISTORY_MIN:
        return {}
    share, usual = window.faults / window.ends, history.faults / history.ends
    if share < FAULTS_MOST or not improbable(share, window.ends, usual, history.ends):
        return {}
    return {FAILURES: f"{share:.0%} of {window.ends} calls fail, {usual:.1%} did"}


def _pattern(track: _Track, window: _Window) -> dict[str, str]:
    """Hold the rate and the callers of a window against those of before, and learn them."""
    found = {}
    if window.ms:
        rate = log(window.ends / window.ms)
        if len(track.rates) >= RATES_MIN:
            middle = median(track.rates)
            spread = median(abs(one - middle) for one in track.rates)
            allowed = max(log(RATE_FACTOR), RATE_DEVIATIONS * MAD_TO_SIGMA * spread)
            if abs(rate - middle) > allowed:
                times = exp(rate - middle)
                found[RATE] = f"{times:.2g} times the usual number of calls in a second"
        track.rates.append(rate)
    named = {name: calls for name, calls in window.callers.items() if name}
    fresh = sum(calls for name, calls in named.items() if name not in track.callers)
    total = sum(named.values())
    if total >= CALLS_MIN and track.called >= HISTORY_MIN:
        share, usual = fresh / total, track.newcomers / track.called
        if share >= MOST and improbable(share, total, usual, track.called):
            found[CALLERS] = f"{share:.0%} of {total} calls are of callers it never had"
    if track.callers:
        track.newcomers += fresh
        track.called += total
    if len(track.callers) < HISTORY_MIN:
        track.callers.update(named)
    return found


def _told(track: _Track, found: Mapping[str, str], grave: set[str]) -> list[Flag]:
    """Return what is new: a figure that has alarmed often enough, or is as usual again."""
    flags = []
    for name in {*found, *track.suspicious}:
        was = track.suspicious.get(name, 0)
        if name in found:
            track.suspicious[name] = max(0, was) + 1
            if track.suspicious[name] >= IN_A_ROW and name not in track.flagged:
                track.flagged.add(name)
                flags.append(Flag(name, found[name], name in grave))
        elif name not in track.flagged or was <= 1 - IN_A_ROW:
            del track.suspicious[name]
            if name in track.flagged:
                track.flagged.discard(name)
                flags.append(Flag(name, "is as before", grave=False, over=True))
        else:
            track.suspicious[name] = min(0, was) - 1
    return sorted(flags, key=_what)


def _what(flag: Flag) -> str:
    return flag.what


def _difference(before: VersionProfile | None, now: VersionProfile, ms: int) -> _Window:
    """Return what was added to the sums of a life."""
    window = _Window(ms=ms)
    for name, (attribute, _) in _FIGURES.items():
        counts = unpack(getattr(now, attribute))
        if before is not None:
            then = unpack(getattr(before, attribute))
            counts = [max(0, a - b) for a, b in zip(counts, then, strict=True)]
        if any(counts):
            window.counts[name] = counts
    then_failures = before.failures if before is not None else {}
    failed = {
        code: max(0, count - then_failures.get(code, 0)) for code, count in now.failures.items()
    }
    window.faults = sum(failed.get(code, 0) for code in FAULTS)
    calls = max(0, now.calls - (before.calls if before is not None else 0))
    window.ends = calls + sum(count for code, count in failed.items() if code != "flagged")
    then_callers = before.callers if before is not None else {}
    window.callers = {
        name: count - then_callers.get(name, 0)
        for name, count in now.callers.items()
        if count > then_callers.get(name, 0)
    }
    return window


def _add(window: _Window, more: _Window) -> None:
    for name, counts in more.counts.items():
        mine = window.counts.setdefault(name, [0] * BUCKETS)
        for at, count in enumerate(counts):
            mine[at] += count
    window.ends += more.ends
    window.faults += more.faults
    window.ms += more.ms
    for name, count in more.callers.items():
        window.callers[name] = window.callers.get(name, 0) + count
