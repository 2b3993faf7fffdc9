"""What every end of a call leaves behind: a record for the log, and figures of its version.

Loaded with the first call, so that a node which runs none has none of it. Records gather, encoded,
until there are `BATCH_RECORDS` or `BATCH_MS` have passed, and go to the log as one write: that much
a process that is killed may lose. Figures are sums since the process began, at constant memory.

A record is a MessagePack array: index of its subject in the batch, time on the node's clock in ms,
request, tenant, user, AI agent, verdict, reason, wait, run and processor time in us, bytes taken,
bytes given, cause. Neither inputs nor outputs are ever in it, nor words of the program.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct, field

from device_agent.core.commands import Say, WriteLog
from device_agent.core.events import ExecutorDone
from device_agent.core.instances import Instance
from device_agent.core.request import Run
from device_agent.core.turn import Turn
from device_agent.core.values import total_bytes
from protocols.histogram import BOUNDS, BUCKETS, pack
from protocols.messages import ProfileReport
from protocols.messages.invocation import FailureCode
from protocols.messages.profile import MAX_CALLERS, MAX_CODES, MAX_VERSIONS, VersionProfile
from protocols.messages.sense import LoadReport
from protocols.topics import Channel

BATCH_RECORDS: Final = 256
BATCH_MS: Final = 1000
"""A killed process loses the records of so long, or so many, at most."""
VERSIONS_KEPT: Final = 256
"""Whose figures are kept at once; the one that ran longest ago makes room."""
REPORT_MIN_MS: Final = 2_000
REPORT_MAX_MS: Final = 30_000
REPORT_CALLS: Final = 64
"""Ends after which figures are reported at the faster pace."""
REASON_LENGTH: Final = 160
FLAGGED: Final = "flagged"
"""Verdict of a run whose outputs broke a check that only flags."""
OK: Final = "ok"

_TIMER: Final = ("log", "")
_FIGURES: Final = 6
_US: Final = 1000


def _no_counts() -> tuple["array[int]", ...]:
    return tuple(array("L", bytes(8 * BUCKETS)) for _ in range(_FIGURES))


class Version(Struct, eq=False):
    """The figures of one version of a task, since the process began."""

    task: str
    digest: str
    generation: int
    variant: str
    calls: int = 0
    ends: int = 0
    told: int = 0
    """Ends at the last report."""
    told_ms: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    counts: tuple["array[int]", ...] = field(default_factory=_no_counts)
    """Wait, run, processor time, memory, bytes in, bytes out."""
    sums: list[int] = field(default_factory=lambda: [0] * _FIGURES)
    peak_bytes: int = 0
    energy_j: float | None = None
    spent_us: int = 0
    """Processor time since the last sample of the load."""
    callers: dict[str, int] = field(default_factory=dict)
    batch: int = -1
    subject: int = 0
    """Its index among the subjects of that batch."""

    def count(self, which: int, value: int) -> None:
        """Count one figure of a run."""
        self.counts[which][bisect_left(BOUNDS, value)] += 1
        self.sums[which] += value

    def end(self, user: str) -> None:
        """Count that a call of somebody has ended."""
        self.ends += 1
        if user not in self.callers and len(self.callers) >= MAX_CALLERS:
            user = ""
        self.callers[user] = self.callers.get(user, 0) + 1

    def fail(self, code: str) -> None:
        """Count a call that gave no outputs, or wrong ones."""
        if code in self.failures or len(self.failures) < MAX_CODES:
            self.failures[code] = self.failures.get(code, 0) + 1


class Ledger:
    """The figures and the records that are not written yet."""

    def __init__(self, turn: Turn, cores: int, life: int) -> None:
        self._turn = turn
        self._cores = cores
        self._life = life
        self._versions: dict[tuple[str, str], Version] = {}
        """The one that ran last comes last."""
        self._of: dict[str, Version] = {}
        """By instance."""
        self._encode = msgspec.msgpack.Encoder()
        self._body = bytearray()
        self._count = 0
        self._batch = 0
        self._subjects: list[tuple[str, str, int, str, str]] = []
        self._others: dict[tuple[str, str], int] = {}
        """Subjects without a version: by task and service."""
        self._sampled_ms = turn.now_ms
        self._logged, self._head = 0, b""
        self._told_logged = 0

    # Ends of calls.

    def ran(self, run: Run, event: ExecutorDone) -> None:
        """Note a run that gave outputs."""
        version = self._version(run.instance)
        version.calls += 1
        in_bytes, out_bytes = total_bytes(run.inputs), total_bytes(event.outputs)
        version.count(0, run.queue_us)
        version.count(1, event.run_us)
        cpu_us = event.cpu_us
        if cpu_us is not None:
            version.count(2, cpu_us)
            version.spent_us += cpu_us
        if event.peak_bytes:
            version.count(3, event.peak_bytes)
            version.peak_bytes = max(version.peak_bytes, event.peak_bytes)
        version.count(4, in_bytes)
        version.count(5, out_bytes)
        verdict, reason = OK, ""
        if event.flags:
            verdict, reason = FLAGGED, event.flags
            version.fail(FLAGGED)
        figures = run.queue_us, event.run_us, cpu_us or 0, in_bytes, out_bytes
        self._end(version, run, verdict, reason, figures)

    def failed(self, run: Run, code: FailureCode, reason: str) -> None:
        """Note a run, or one that waited for its turn, that gave no outputs."""
        version = self._version(run.instance)
        version.fail(code.value)
        run_us = 0 if run.batch is None else int((self._turn.now_ms - run.batch.began_ms) * _US)
        figures = run.queue_us, run_us, 0, total_bytes(run.inputs), 0
        self._end(version, run, code.value, _wording(code, reason), figures)

    def refused(
        self,
        who: tuple[str, str, str, str, str],
        service: str,
        task: str,
        code: FailureCode,
        reason: str,
    ) -> None:
        """Note a request that never became a run; `who` is request, tenant, user, agent, cause."""
        subject = self._others.get((task, service))
        if subject is None:
            subject = self._others[task, service] = len(self._subjects)
            self._subjects.append((task, service, 0, "", ""))
        request, tenant, user, agent, cause = who
        told = request, tenant, user, agent, code.value, _wording(code, reason)
        self._log((subject, int(self._turn.now_ms), *told, 0, 0, 0, 0, 0, cause))

    def _end(
        self, version: Version, run: Run, verdict: str, reason: str, figures: Sequence[int]
    ) -> None:
        request = run.request
        version.end(request.user)
        if version.batch != self._batch:
            version.batch, version.subject = self._batch, len(self._subjects)
            service, instance = request.plan.service, run.instance
            self._subjects.append(
                (version.task, service, instance.generation, version.digest, version.variant)
            )
        cause = "" if request.cause == request.id else request.cause
        who = request.id, request.tenant, request.user, request.agent
        at_ms = int(self._turn.now_ms)
        self._log((version.subject, at_ms, *who, verdict, reason, *figures, cause))

    def _version(self, instance: Instance) -> Version:
        version = self._of.get(instance.name)
        if version is not None:
            return version
        key = instance.task, instance.manifest.artifact.digest
        version = self._versions.pop(key, None)
        if version is None:
            if len(self._versions) >= VERSIONS_KEPT:
                gone = self._versions.pop(next(iter(self._versions)))
                self._of = {name: one for name, one in self._of.items() if one is not gone}
            version = Version(*key, instance.generation, instance.tuning.variant)
        version.generation = max(version.generation, instance.generation)
        self._versions[key] = version
        if len(self._of) >= VERSIONS_KEPT:
            self._of.clear()
        self._of[instance.name] = version
        return version

    # The log.

    def _log(self, record: tuple[object, ...]) -> None:
        self._encode.encode_into(record, self._body, len(self._body))
        self._count += 1
        if self._count >= BATCH_RECORDS:
            self.flush()
        elif self._count == 1:
            self._turn.timers.set(_TIMER, self._turn.now_ms + BATCH_MS)

    def flush(self) -> None:
        """Have the records that wait written."""
        if not self._count:
            return
        self._turn.timers.cancel(_TIMER)
        subjects = self._encode.encode(self._subjects)
        head = b"\x92", subjects, b"\xdd", self._count.to_bytes(4)
        self._turn.out.append(WriteLog(b"".join((*head, self._body)), self._count))
        self._body.clear()
        self._subjects.clear()
        self._others.clear()
        self._count, self._batch = 0, self._batch + 1

    def written(self, logged: int, head: bytes) -> None:
        """Take note of how far the log has come."""
        self._logged, self._head = logged, head

    # Figures.

    def sampled(self, load: LoadReport) -> None:
        """Share out what the board has drawn since the last sample."""
        window_ms, self._sampled_ms = self._turn.now_ms - self._sampled_ms, self._turn.now_ms
        busy_us = load.cpu_percent / 100 * self._cores * window_ms * _US
        spent_us = sum(one.spent_us for one in self._versions.values())
        if not spent_us:
            return
        for one in self._versions.values():
            if load.power_w is not None and one.spent_us:
                share = one.spent_us / max(busy_us, spent_us)
                drawn_j = load.power_w * window_ms / _US
                one.energy_j = (one.energy_j or 0.0) + drawn_j * share
            one.spent_us = 0

    def report(self) -> None:
        """Say what has changed, where it is time to."""
        due = [one for one in self._versions.values() if self._due(one)]
        if not due and self._logged == self._told_logged:
            return
        if not due and any(one.ends > one.told for one in self._versions.values()):
            return
        self._told_logged = self._logged
        now_ms = self._turn.now_ms
        chosen = sorted(due, key=_told_ms)[:MAX_VERSIONS]
        for one in chosen:
            one.told, one.told_ms = one.ends, now_ms
        versions = tuple(_profile(one) for one in chosen)
        report = ProfileReport(self._life, int(now_ms), versions, self._logged, self._head)
        self._turn.out.append(Say(Channel.LOAD, report, "sample"))

    def _due(self, version: Version) -> bool:
        fresh = version.ends - version.told
        since_ms = self._turn.now_ms - version.told_ms
        if not fresh or since_ms < REPORT_MIN_MS:
            return False
        return fresh >= REPORT_CALLS or since_ms >= REPORT_MAX_MS or not version.told


def _told_ms(version: Version) -> float:
    return version.told_ms


def _wording(code: FailureCode, reason: str) -> str:
    """Return why a call failed, where the words are ours: a program's own may hold what it read."""
    return "" if code is FailureCode.EXECUTOR else reason[:REASON_LENGTH]


def _profile(version: Version) -> VersionProfile:
    queue, run, cpu, memory, taken, given = (pack(one) for one in version.counts)
    queue_sum_us, run_sum_us, cpu_sum_us, _, taken_sum, given_sum = version.sums
    return VersionProfile(
        version.task,
        version.digest,
        version.generation,
        version.variant,
        version.calls,
        dict(version.failures),
        queue_us=queue,
        run_us=run,
        cpu_us=cpu,
        memory_bytes=memory,
        input_bytes=taken,
        output_bytes=given,
        queue_sum_us=queue_sum_us,
        run_sum_us=run_sum_us,
        cpu_sum_us=cpu_sum_us,
        input_sum_bytes=taken_sum,
        output_sum_bytes=given_sum,
        peak_bytes=version.peak_bytes or None,
        energy_j=version.energy_j,
        callers=dict(version.callers),
    )
