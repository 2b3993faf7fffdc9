"""What this node measures of the tasks that it runs and of the users that it answers.

Figures gather between two samples of the load and leave with the sample, only where something ran,
waits or was shed. Percentiles come from a bounded sample without chance: when it is full, every
second value is let go of and from then on every second one is taken, and so on.
"""

from collections.abc import Iterable
from math import ceil
from typing import Final

from msgspec import Struct, field

from device_agent.core.instances import Instance
from device_agent.core.turn import Turn
from protocols.messages.quality import MAX_USERS, QualityReport, TaskSample, UserSample

SAMPLE_MAX: Final = 128
"""Values of one percentile."""
TASKS_MAX: Final = 192
"""Tasks of one report, which has to fit its topic; the rest goes with the next."""
_P95: Final = 0.95


class Sample(Struct, eq=False):
    """Sum, number and a bounded choice of the values of one figure."""

    count: int = 0
    total: float = 0.0
    stride: int = 1
    kept: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Take one value in."""
        if self.count % self.stride == 0:
            if len(self.kept) == SAMPLE_MAX:
                del self.kept[1::2]
                self.stride *= 2
            if self.count % self.stride == 0:
                self.kept.append(value)
        self.count += 1
        self.total += value

    @property
    def mean(self) -> float:
        """Mean of all values; 0 of none."""
        return self.total / self.count if self.count else 0.0

    def p95(self) -> float:
        """Return the nearest-rank 95th percentile of the choice; 0 of none."""
        if not self.kept:
            return 0.0
        return sorted(self.kept)[ceil(_P95 * len(self.kept)) - 1]


class TaskWindow(Struct, eq=False):
    """One task under one epoch."""

    instance: Instance
    failed: int = 0
    shed: int = 0
    late: int = 0
    queue: Sample = field(default_factory=Sample)
    run: Sample = field(default_factory=Sample)
    fetch: Sample = field(default_factory=Sample)
    input_bytes: int = 0
    output_bytes: int = 0
    sent_bytes: int = 0


class UserWindow(Struct, eq=False):
    """One user of one service."""

    failed: int = 0
    latency: Sample = field(default_factory=Sample)


class Meter:
    """The figures since the last report."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._since_ms = turn.now_ms
        self._tasks: dict[tuple[str, int], TaskWindow] = {}
        self._users: dict[tuple[str, str], UserWindow] = {}

    def of(self, instance: Instance) -> TaskWindow:
        """Return where figures of an instance are gathered."""
        key = instance.task, instance.epoch
        window = self._tasks.get(key)
        if window is None:
            window = self._tasks[key] = TaskWindow(instance)
        return window

    def answered(self, service: str, user: str, latency_ms: float) -> None:
        """Note that a user got outputs, so long after the request had come to its first node."""
        self._user(service, user).latency.add(latency_ms)

    def refused(self, service: str, user: str) -> None:
        """Note that a user got a failure."""
        self._user(service, user).failed += 1

    def _user(self, service: str, user: str) -> UserWindow:
        key = service, user
        window = self._users.get(key)
        if window is None:
            if len(self._users) >= MAX_USERS:
                key = service, ""
                if key not in self._users and len(self._users) > MAX_USERS:
                    # More services than users may be told apart: the last place is everyone's.
                    key = next(reversed(self._users))
            window = self._users.setdefault(key, UserWindow())
        return window

    def report(self, instances: Iterable[Instance]) -> QualityReport | None:
        """Return what was gathered and begin anew; None when there is nothing to tell."""
        now_ms, since_ms = self._turn.now_ms, self._since_ms
        for instance in instances:
            if instance.queue or instance.running:
                self.of(instance)
        self._since_ms = now_ms
        if not self._tasks and not self._users:
            return None
        chosen = list(self._tasks)[:TASKS_MAX]
        tasks = tuple(_task(key[1], self._tasks.pop(key)) for key in chosen)
        users = tuple(_user(*key, window) for key, window in self._users.items())
        self._users.clear()
        return QualityReport(int(now_ms), max(1, int(now_ms - since_ms)), tasks, users)


def _task(epoch: int, window: TaskWindow) -> TaskSample:
    instance = window.instance
    # What an instance did under the epoch before is told apart, what waits is told once.
    waits = len(instance.queue) if epoch == instance.epoch else 0
    return TaskSample(
        task=instance.task,
        epoch=epoch,
        variant=instance.tuning.variant,
        done=window.run.count,
        failed=window.failed,
        shed=window.shed,
        late=window.late,
        queue=waits,
        queue_ms=window.queue.mean,
        run_ms=window.run.mean,
        run_p95_ms=window.run.p95(),
        fetch_ms=window.fetch.mean,
        input_bytes=window.input_bytes,
        output_bytes=window.output_bytes,
        sent_bytes=window.sent_bytes,
        memory_bytes=instance.memory_bytes,
        starved=bool(waits) and instance.parked,
    )


def _user(service: str, user: str, window: UserWindow) -> UserSample:
    latency = window.latency
    return UserSample(service, user, latency.count, window.failed, latency.mean, latency.p95())
