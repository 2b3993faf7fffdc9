"""Which waiting calls of a model had best share a run, from what runs of so many rows have taken.

Runs do not wait to be filled: when a worker is free, the first call takes along others that wait
already, ask for the same shapes and have the time. Sharing is not always faster: on one core a run
of eight rows takes about as long as eight runs, and those that might have been first wait for all.
So the time of a row is learnt by the size of the run, and calls share one only where all that wait
together wait less for it. A size that is not known yet is tried once when so many calls wait.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from device_agent.core.values import total_bytes
from protocols.messages.invocation import Value

if TYPE_CHECKING:
    from device_agent.core.request import Run

CALLS_MAX: Final = 64
"""Of one run."""
SCANNED_MAX: Final = 256
"""Calls that are looked at for one run."""
BYTES_MAX: Final = 16 << 20
"""Inputs of one run that several calls share."""
LEARNING: Final = 0.25
"""Weight of the newest run."""
MARGIN: Final = 1.25
"""A run that several calls share may take so much longer than predicted before one is late."""
RUNS_KNOWN: Final = 512
"""After so many runs everything is learnt anew: the machine may have other work now."""


class Pace(Struct, eq=False):
    """What a row takes, by the size of the run."""

    row_ms: dict[int, float] = field(default_factory=dict)
    """By the rows of the run, rounded up to a power of two."""
    share_ms: float = 0.0
    """Of the worker's time, for each call."""
    runs: int = 0

    def learn(self, rows: int, calls: int, took_ms: float) -> None:
        """Take in how long a run took."""
        self.runs += 1
        if self.runs % RUNS_KNOWN == 0:
            self.row_ms.clear()
        size = _size(rows)
        self.row_ms[size] = _mean(self.row_ms.get(size), took_ms / rows)
        self.share_ms = _mean(self.share_ms or None, took_ms / calls)

    def ms(self, rows: int) -> float:
        """Predict a run: between known sizes by both, beyond them a row takes as in the largest."""
        known = sorted(self.row_ms)
        at = bisect_right(known, rows)
        if at == 0:
            return known[0] * self.row_ms[known[0]] if known else 0.0
        least = known[at - 1]
        least_ms = least * self.row_ms[least]
        if at == len(known):
            return rows * self.row_ms[least]
        most = known[at]
        return least_ms + (most * self.row_ms[most] - least_ms) * (rows - least) / (most - least)

    def share(self, rows: Sequence[int], left_ms: Sequence[float], waiting: float) -> int:
        """Return how many of these calls, from the first on, had best share a run; 1: none.

        `rows` and `left_ms` say what each brings and how much time it has, `waiting` how many calls
        wait for this worker, the first one among them.
        """
        untried = self._untried()
        best, best_ms, tried = 1, 0.0, 0
        total, least_ms, apart_ms, sum_ms = 0, float("inf"), 0.0, 0.0
        alone_ms = {more: self.ms(more) for more in set(rows)}
        for number, (more, has_ms) in enumerate(zip(rows, left_ms, strict=True), 1):
            total += more
            least_ms = min(least_ms, has_ms)
            # When the last of them would be answered one by one, and all of them together.
            apart_ms += alone_ms[more]
            sum_ms += apart_ms
            together_ms = self.ms(total)
            if number == 1 or MARGIN * together_ms > least_ms:
                continue
            if _size(total) == untried:
                tried = number
            # What everybody who waits, these and those behind them, waits more for it.
            more_ms = number * together_ms - sum_ms
            more_ms += max(0.0, waiting - number) * (together_ms - apart_ms)
            if more_ms < best_ms:
                best, best_ms = number, more_ms
        return tried or best

    def sharing(
        self, first: "Run", others: Iterable["Run"], waiting: float, free: int, now_ms: float
    ) -> list["Run"]:
        """Return the calls for one run: `first`, and those of the others that had best share it.

        `waiting` calls wait for each worker, `free` workers have nothing to do. Nobody is passed
        over by a call of a lower priority, nor made late by one.
        """
        most, kind = first.instance.manifest.batch, _kind(first.inputs)
        total, size_bytes = rows_of(first.inputs), total_bytes(first.inputs)
        most = min(most, self._reach())
        if not 0 < total < most:
            return [first]
        chosen, rows, left_ms = [first], [total], [first.request.deadline_ms - now_ms]
        passed_ms, behind_ms, least = float("inf"), 0.0, 0
        for run in islice(others, SCANNED_MAX):
            if len(chosen) == CALLS_MAX or run.request.priority < least:
                break
            more, bytes_more = rows_of(run.inputs), total_bytes(run.inputs)
            has_ms = run.request.deadline_ms - now_ms
            fits = 0 < more <= most - total and size_bytes + bytes_more <= BYTES_MAX
            if not fits or _kind(run.inputs) != kind:
                least = run.request.priority
                behind_ms += self.ms(max(1, more))
                passed_ms = min(passed_ms, has_ms - behind_ms)
                continue
            chosen.append(run)
            rows.append(more)
            left_ms.append(min(has_ms, passed_ms))
            total += more
            size_bytes += bytes_more
        fair = ceil(len(chosen) / max(1, free))
        return chosen[: self.share(rows[:fair], left_ms[:fair], waiting)]

    def rows(self, calls: Sequence[Mapping[str, Value]]) -> int:
        """Return the rows of a run for these inputs; 0 when they cannot be told."""
        rows = [rows_of(one) for one in calls]
        return sum(rows) if all(rows) else 0

    def _reach(self) -> int:
        """Return the rows beyond which a run is no better than those of one call, or not known."""
        known = sorted(self.row_ms)
        better = [size for size in known[1:] if self.row_ms[size] < self.row_ms[known[0]]]
        return max([self._untried(), *better])

    def _untried(self) -> int:
        """Return the next size to try; 0: nothing is known, or larger runs were no better."""
        known = sorted(self.row_ms)[-2:]
        if not known or (len(known) > 1 and self.row_ms[known[1]] >= self.row_ms[known[0]]):
            return 0
        return 2 * known[-1]


def rows_of(inputs: Mapping[str, Value]) -> int:
    """Return the rows that a call brings; 0 when its inputs do not agree."""
    rows = {one.shape[0] if one.shape else 0 for one in inputs.values()}
    return rows.pop() if len(rows) == 1 else 0


def _kind(inputs: Mapping[str, Value]) -> dict[str, tuple[int, ...]]:
    """Return what calls must have in common to share a run."""
    return {name: one.shape[1:] for name, one in inputs.items()}


def _size(rows: int) -> int:
    return 1 << (rows - 1).bit_length()


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + LEARNING * (value - before)
