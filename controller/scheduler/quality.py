"""What is measured: each task's numbers in columns, each user's latency, the satisfaction ratio.

Numbers are smoothed over a second or two of time, not of windows: a node says nothing of a window
in which nothing happened, so that what it tells stands for all the time since it last spoke. They
speak of one way of running only: whoever changes a task forgets what was measured before.
"""

from enum import IntEnum
from math import exp, isnan
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from protocols.messages.quality import QualityReport, TaskSample, UserSample, UserZone
from protocols.qoais import Sla, satisfied

SMOOTH_MS: Final = 1200.0
"""Time constant of every mean."""
USER_MS: Final = 10_000
"""A user who was not heard of for so long is not counted."""
MAX_SERVICE_USERS: Final = 1024
FIRST_SLOTS: Final = 64
MAX_FIGURE: Final = 1e12
"""No time in ms, nor energy in J, of a window is longer or greater."""
_HAIR: Final = 1e-9
"""0.07 * 100 is more than 7 to a computer."""


def sane(*figures: float | None) -> bool:
    """Whether what a peer has measured can be reckoned with: a number, not negative, not absurd."""
    return all(one is None or 0.0 <= one <= MAX_FIGURE for one in figures)


def sane_report(report: QualityReport) -> bool:
    """Whether every figure of a report can be reckoned with."""
    return all(
        sane(one.queue_ms, one.run_ms, one.run_p95_ms, one.fetch_ms, one.energy_j)
        for one in report.tasks
    ) and all(sane(one.latency_ms, one.latency_p95_ms) for one in report.users)


class Col(IntEnum):
    """The columns of the task table."""

    OFFERED_PER_S = 0
    DONE_PER_S = 1
    FAILED_PER_S = 2
    SHED_PER_S = 3
    LATE_PER_S = 4
    QUEUE = 5
    QUEUE_MS = 6
    RUN_MS = 7
    RUN_P95_MS = 8
    FETCH_MS = 9
    INPUT_BYTES = 10
    OUTPUT_BYTES = 11
    SENT_BYTES = 12
    """These three of one run."""
    MEMORY_BYTES = 13
    ENERGY_J = 14
    LEVEL_MS = 15
    """Time that a run spends at the node, at its 95th percentile."""


_OF_RUNS: Final = slice(Col.QUEUE_MS, Col.SENT_BYTES + 1)
_OF_TIME: Final = slice(Col.OFFERED_PER_S, Col.QUEUE + 1)


class TaskMeters:
    """The newest numbers of every task that runs, smoothed."""

    def __init__(self) -> None:
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._values: NDArray[np.float64] = np.full((FIRST_SLOTS, len(Col)), np.nan)
        self._heard_ms: NDArray[np.int64] = np.zeros(FIRST_SLOTS, np.int64)
        self._since_ms: NDArray[np.int64] = np.zeros(FIRST_SLOTS, np.int64)
        self._moved_ms: NDArray[np.int64] = np.zeros(FIRST_SLOTS, np.int64)
        """When a run last ended, or nothing waited."""
        self._samples: NDArray[np.int64] = np.zeros(FIRST_SLOTS, np.int64)
        self._rows: dict[str, list[float]] = {}
        """Rows as plain numbers, for what looks at one task at a time."""

    def take(self, sample: TaskSample, window_ms: int, now_ms: int) -> None:
        """Take in one window of a task."""
        slot = self._slot(sample.task)
        span_ms = max(1, window_ms)
        began_ms = now_ms - span_ms
        if self._samples[slot]:
            span_ms = max(span_ms, now_ms - int(self._heard_ms[slot]))
        else:
            self._since_ms[slot] = self._moved_ms[slot] = began_ms
        new = _row(sample, span_ms)
        row = self._values[slot]
        mixed = row + _share(span_ms, now_ms - int(self._since_ms[slot])) * (new - row)
        mixed = np.where(np.isnan(new), row, np.where(np.isnan(row), new, mixed))
        if sample.done or not sample.queue:
            self._moved_ms[slot] = now_ms
        else:
            if span_ms > 2 * window_ms:
                # In a silent window nothing waited.
                self._moved_ms[slot] = began_ms
            # What runs has kept others waiting since something last came out: known, no mean.
            mixed[Col.LEVEL_MS] = np.fmax(mixed[Col.LEVEL_MS], now_ms - self._moved_ms[slot])
        self._values[slot] = mixed
        self._heard_ms[slot] = now_ms
        self._samples[slot] += 1
        self._rows[sample.task] = self._values[slot].tolist()

    def get(self, task: str, column: Col) -> float | None:
        """Return one number of a task; None: not measured."""
        row = self._rows.get(task)
        if row is None:
            return None
        value = row[column]
        return None if isnan(value) else value

    def number(self, task: str, column: Col) -> float:
        """Return one number of a task, 0 where nothing is measured."""
        return self.get(task, column) or 0.0

    def samples(self, task: str) -> int:
        """Return how many windows the numbers stand on."""
        slot = self._slots.get(task)
        return 0 if slot is None else int(self._samples[slot])

    def heard_ms(self, task: str) -> int | None:
        """Return when a task was last measured; None: never."""
        slot = self._slots.get(task)
        return None if slot is None or not self._samples[slot] else int(self._heard_ms[slot])

    def renew(self, task: str) -> None:
        """Forget what was measured: the task runs in another way now."""
        slot = self._slots.get(task)
        if slot is not None:
            self._values[slot] = np.nan
            self._samples[slot] = 0
            self._rows.pop(task, None)

    def drop(self, task: str) -> None:
        """Forget a task."""
        self.renew(task)
        slot = self._slots.pop(task, None)
        if slot is not None:
            self._free.append(slot)

    def silent(self, now_ms: int, for_ms: int) -> list[str]:
        """Return the tasks that were measured once and not for so long now."""
        old = (self._samples > 0) & (now_ms - self._heard_ms > for_ms)
        return [task for task, slot in self._slots.items() if old[slot]] if old.any() else []

    def _slot(self, task: str) -> int:
        slot = self._slots.get(task)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._slots)
            if slot == len(self._values):
                self._values = np.concatenate([self._values, np.full_like(self._values, np.nan)])
                for name in ("_heard_ms", "_since_ms", "_moved_ms", "_samples"):
                    old = getattr(self, name)
                    setattr(self, name, np.concatenate([old, np.zeros_like(old)]))
            self._slots[task] = slot
        return slot


def _share(span_ms: int, whole_ms: int) -> float:
    """Return the weight of the last `span_ms` beside a mean, of `whole_ms` in all.

    The beginning counts by its length: a first window, which is only told because something
    happened in it, is not taken for the usual.
    """
    return min(1.0, (1.0 - exp(-span_ms / SMOOTH_MS)) / (1.0 - exp(-whole_ms / SMOOTH_MS)))


def _row(sample: TaskSample, span_ms: int) -> NDArray[np.float64]:
    """Return a sample as a row of the table; its counts are of so long."""
    row = np.full(len(Col), np.nan)
    offered = sample.done + sample.failed + sample.shed + sample.late
    counts = (offered, sample.done, sample.failed, sample.shed, sample.late)
    row[_OF_TIME] = [*(count * 1000 / span_ms for count in counts), sample.queue]
    if sample.done:
        row[_OF_RUNS] = (
            sample.queue_ms,
            sample.run_ms,
            max(sample.run_ms, sample.run_p95_ms),
            sample.fetch_ms,
            sample.input_bytes / sample.done,
            sample.output_bytes / sample.done,
            sample.sent_bytes / sample.done,
        )
        row[Col.LEVEL_MS] = row[Col.QUEUE_MS] + row[Col.RUN_P95_MS] + row[Col.FETCH_MS]
        if sample.energy_j is not None:
            row[Col.ENERGY_J] = sample.energy_j / sample.done
    if sample.memory_bytes is not None:
        row[Col.MEMORY_BYTES] = sample.memory_bytes
    return row


class User(Struct):
    """One user of one service, smoothed."""

    latency_p95_ms: float = 0.0
    availability_percent: float = 100.0
    answers_per_s: float = 0.0
    since_ms: int = 0
    heard_ms: int = 0


class Users:
    """The users of one service."""

    def __init__(self) -> None:
        self._users: dict[str, User] = {}

    def take(self, sample: UserSample, window_ms: int, now_ms: int) -> None:
        """Take in one window of a user."""
        total = sample.answered + sample.failed
        if not total:
            return
        began_ms = now_ms - max(1, window_ms)
        user = self._users.get(sample.user)
        if user is None:
            if len(self._users) >= MAX_SERVICE_USERS:
                oldest = min(self._users, key=lambda name: self._users[name].heard_ms)
                del self._users[oldest]
            user = self._users[sample.user] = User(since_ms=began_ms, heard_ms=began_ms)
        span_ms = max(1, window_ms, now_ms - user.heard_ms)
        share = _share(span_ms, max(1, now_ms - user.since_ms))
        if sample.answered:
            latency_ms = max(sample.latency_ms, sample.latency_p95_ms)
            user.latency_p95_ms += share * (latency_ms - user.latency_p95_ms)
        good = 100.0 * sample.answered / total
        user.availability_percent += share * (good - user.availability_percent)
        rate = sample.answered * 1000 / span_ms
        user.answers_per_s += share * (rate - user.answers_per_s)
        user.heard_ms = now_ms

    def present(self, now_ms: int) -> dict[str, User]:
        """Return the users of the last seconds; the others are forgotten."""
        for name in [one for one, user in self._users.items() if now_ms - user.heard_ms > USER_MS]:
            del self._users[name]
        return self._users

    def renew(self) -> None:
        """Forget what was measured: the service runs in another way now."""
        self._users.clear()


def count_satisfied(
    users: dict[str, User],
    sla: Sla,
    own: tuple[UserZone, ...],
    common: dict[str, float],
) -> int:
    """Return how many users are inside their own zones; `common` are values of the service."""
    zones = {one.user: one.zone for one in own}
    count = 0
    for name, user in users.items():
        values: dict[str, float | str] = {
            **common,
            "latency_ms": user.latency_p95_ms,
            "availability_percent": user.availability_percent,
        }
        count += satisfied(zones.get(name, sla.zone), values)
    return count


def latency_use(users: dict[str, User], sla: Sla, own: tuple[UserZone, ...]) -> float | None:
    """Return measured latency over the bound, at the user who must just be satisfied."""
    zones = {one.user: one.zone for one in own}
    uses = sorted(
        user.latency_p95_ms / bound.at_most
        for name, user in users.items()
        for bound in zones.get(name, sla.zone).bounds
        if bound.indicator == "latency_ms" and bound.at_most
    )
    if not uses:
        return None
    last = max(0, min(len(uses) - 1, int(np.ceil(sla.satisfaction_ratio * len(uses) - _HAIR)) - 1))
    return uses[last]
