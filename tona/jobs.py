"""The jobs of a client: submitted until they are accepted, asked for until they have ended; pure.

A job has one id for its whole life, so that everything may be said twice. While it is not known to
be accepted (SUBMITTED) it is submitted again, at growing intervals; then (ACCEPTED) its anchor says
once how it has ended, and is asked when that may have been lost: after a long silence, and after
the connection was. Only what somebody waits for is asked for. The first whole end counts.
"""

import zlib
from collections.abc import Callable
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Any, Final

from msgspec import Struct

from protocols.messages import JobAccepted, JobEnded, JobQuery, JobStatus, JobSubmit
from protocols.messages.invocation import Failure, Timing, Value

JOBS_MAX: Final = 65_536
"""Jobs that one client follows; one more is refused."""
SUBMIT_FIRST_MS: Final = 2000
SUBMIT_MAX_MS: Final = 15_000
"""Silence after which a job is submitted again; doubled each time."""
REFUSED_FIRST_MS: Final = 100
"""Pause after a refusal that may pass; doubled each time, to `SUBMIT_MAX_MS`."""
ASK_FIRST_MS: Final = 5000
ASK_MAX_MS: Final = 60_000
"""Silence after which an accepted job is asked for; doubled each time."""
DUE_SPARE: Final = 1000
"""Entries that are not true any more, among what is due, before it is cleared of them."""


class Opened(Struct, frozen=True):
    """A new job of the application, or one it submits again."""

    body: JobSubmit


class Followed(Struct, frozen=True):
    """Somebody waits for the end of a job, perhaps of an earlier client."""

    job: str
    service: str


class Left(Struct, frozen=True):
    """Nobody waits for this job any more; it goes on by itself."""

    job: str


class JobHeard(Struct, frozen=True):
    """A word of the anchor."""

    body: JobAccepted | JobStatus | JobEnded


class JobsOnline(Struct, frozen=True):
    """The connection to the broker stands, or is gone."""

    connected: bool


class JobsWoken(Struct, frozen=True):
    """The time of the last `JobsWake` has come."""


Event = Opened | Followed | Left | JobHeard | JobsOnline | JobsWoken


class SendJob(Struct, frozen=True):
    """Say this on the topic of the job's service."""

    body: JobSubmit | JobQuery


class Taken(Struct, frozen=True):
    """The job is durable, or (with a reason) was refused for good."""

    job: str
    refused: str = ""


class Ended(Struct, frozen=True):
    """The one end of a job."""

    job: str
    outputs: dict[str, Value]
    failure: Failure | None
    timings: tuple[Timing, ...]
    attempts: int


class JobsWake(Struct, frozen=True):
    """Say `JobsWoken` at this time; replaces the one before."""

    at_ms: float


Command = SendJob | Taken | Ended | JobsWake


class Phase(StrEnum):
    """Where a job stands for its client."""

    SUBMITTED = "submitted"
    ACCEPTED = "accepted"


class _Job(Struct, eq=False):
    id: str
    service: str
    body: JobSubmit | None
    phase: Phase
    followed: bool = False
    wait_ms: float = 0.0
    refused_ms: float = 0.0
    """The pause after the last refusal that may pass."""
    due_ms: float | None = None
    parts: dict[int, JobEnded] = {}


class Jobs:
    """Every job that a client follows; `reply_to` is the topic of its answers from now on."""

    def __init__(self, reply_to: str) -> None:
        self.reply_to = reply_to
        self._jobs: dict[str, _Job] = {}
        self._online = False
        self._now_ms = 0.0
        self._out: list[Command] = []
        self._due: list[tuple[float, str]] = []
        self._armed_ms: float | None = None
        self._on: dict[type[Struct], Callable[[Any], None]] = {
            Opened: self._opened,
            Followed: self._followed,
            Left: self._left,
            JobHeard: self._heard,
            JobsOnline: self._connection,
            JobsWoken: self._woken,
        }

    def __len__(self) -> int:
        return len(self._jobs)

    def handle(self, event: Event, now_ms: float) -> list[Command]:
        """Decide on one event. Nothing else changes the state."""
        self._now_ms, self._out = now_ms, []
        self._on[type(event)](event)
        if len(self._due) > 2 * len(self._jobs) + DUE_SPARE:
            self._due = [one for one in self._due if self._current(*one)]
            heapify(self._due)
        if self._due and (self._armed_ms is None or self._due[0][0] < self._armed_ms):
            self._armed_ms = self._due[0][0]
            self._out.append(JobsWake(self._armed_ms))
        return self._out

    # From the application.

    def _opened(self, event: Opened) -> None:
        body = event.body
        job = self._jobs.get(body.job)
        if job is None:
            job = self._enter(body.job, body.service, body, Phase.SUBMITTED)
        if job is not None:
            self._submit(job)

    def _followed(self, event: Followed) -> None:
        job = self._jobs.get(event.job)
        if job is None:
            job = self._enter(event.job, event.service, None, Phase.ACCEPTED)
            if job is not None:
                job.followed = True
                self._ask(job)
        elif not job.followed:
            job.followed = True
            if job.phase is Phase.ACCEPTED:
                self._wake(job, ASK_FIRST_MS)

    def _enter(self, name: str, service: str, body: JobSubmit | None, phase: Phase) -> _Job | None:
        if len(self._jobs) >= JOBS_MAX:
            self._out.append(Taken(name, f"this client follows {JOBS_MAX} jobs already"))
            return None
        job = self._jobs[name] = _Job(name, service, body, phase)
        return job

    def _left(self, event: Left) -> None:
        self._jobs.pop(event.job, None)

    # From the anchor.

    def _heard(self, event: JobHeard) -> None:
        body = event.body
        job = self._jobs.get(body.job)
        if job is None:
            return
        if isinstance(body, JobEnded):
            self._collect(job, body)
        elif isinstance(body, JobStatus) or body.accepted:
            self._accepted(job)
        elif body.retryable and job.phase is Phase.ACCEPTED:
            # A question keeps its own pace.
            return
        elif body.retryable:
            job.refused_ms = min(2 * job.refused_ms or REFUSED_FIRST_MS, SUBMIT_MAX_MS)
            self._wake(job, job.refused_ms)
        else:
            del self._jobs[job.id]
            self._out.append(Taken(job.id, body.reason or "the job was refused"))

    def _accepted(self, job: _Job) -> None:
        if job.phase is Phase.SUBMITTED:
            job.phase = Phase.ACCEPTED
            job.body = None
            self._out.append(Taken(job.id))
            if job.followed:
                self._wake(job, ASK_FIRST_MS)
            else:
                job.due_ms = None

    def _collect(self, job: _Job, body: JobEnded) -> None:
        job.parts[body.part] = body
        if len(job.parts) < body.parts:
            return
        self._accepted(job)
        del self._jobs[job.id]
        outputs: dict[str, Value] = {}
        for part in job.parts.values():
            outputs.update(part.outputs)
        self._out.append(Ended(job.id, outputs, body.failure, body.timings, body.attempt))

    # The connection and time.

    def _connection(self, event: JobsOnline) -> None:
        self._online = event.connected
        if not event.connected:
            return
        for job in list(self._jobs.values()):
            # What was said while the line was down is lost.
            if job.phase is Phase.SUBMITTED:
                self._submit(job)
            elif job.followed:
                self._ask(job)

    def _woken(self, _event: JobsWoken) -> None:
        self._armed_ms = None
        while self._due and self._due[0][0] <= self._now_ms:
            at_ms, name = heappop(self._due)
            if self._current(at_ms, name):
                job = self._jobs[name]
                if job.phase is Phase.SUBMITTED:
                    self._submit(job)
                else:
                    self._ask(job)

    def _current(self, at_ms: float, name: str) -> bool:
        job = self._jobs.get(name)
        return job is not None and job.due_ms == at_ms

    def _submit(self, job: _Job) -> None:
        if job.body is not None:
            self._say(job, job.body, SUBMIT_FIRST_MS, SUBMIT_MAX_MS)

    def _ask(self, job: _Job) -> None:
        query = JobQuery(job.id, job.service, self.reply_to)
        self._say(job, query, ASK_FIRST_MS, ASK_MAX_MS)

    def _say(self, job: _Job, body: JobSubmit | JobQuery, first_ms: float, most_ms: float) -> None:
        if self._online:
            self._out.append(SendJob(body))
        longer = 2 * job.wait_ms if job.wait_ms >= first_ms else first_ms
        self._wake(job, min(longer, most_ms))

    def _wake(self, job: _Job, wait_ms: float) -> None:
        """Be woken for a job; spread by its name, for thousands may wait alike."""
        draw = zlib.crc32(job.id.encode()) / 2**32
        job.wait_ms = wait_ms
        job.due_ms = self._now_ms + wait_ms * (1 + draw / 4)
        heappush(self._due, (job.due_ms, job.id))
