"""Jobs at their anchor: recorded before they are accepted, run until they end, completed once.

Theory of operation. A client hears that its job is accepted when that is durable. A job that runs
at once is recorded with its end if that comes within `HOLD_MS`: one record, one commit, one answer;
else its acceptance is recorded then, and one that must wait in line is recorded at once. A first
run leaves beside all commits: a run of a job that was never accepted does no harm, for its end
finds no job here and is only acknowledged, and the client repeats its submit by the same id. An end
becomes a record before anybody hears of it; the first one counts, whatever comes later is
acknowledged and dropped.

    WAITING --credit--> RUNNING --outputs, or a failure for good--> over
       ^                   |
       +---- PAUSED <------+ a failure that may pass: recorded with the number of the next attempt

A restart finds every open job in line again, under the attempt that its record names: nodes know a
run by its id and repeat what they have said.
"""

from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Final
from zlib import crc32

from msgspec import structs

from controller.anchor.job_lifecycle import JobEvent, Phase
from controller.anchor.job_line import OVERLOADED, Job, Line
from controller.anchor.job_moves import OPEN, Moves, arrived
from controller.anchor.job_moves import TIMER as MOVE_TIMER
from controller.anchor.job_shelf import Shelf
from controller.anchor.job_values import fingerprint, inline_bytes, merged
from controller.anchor.job_words import REASON_MAX, Words
from controller.decider import Answer, Called, Received, Record, View
from controller.desk import Desk
from controller.job_view import job_view
from controller.records import JOB, JobRecord
from protocols.errors import Blame
from protocols.messages import (
    Cancel,
    JobEnded,
    JobHandover,
    JobKept,
    JobOwned,
    JobQuery,
    JobRun,
    JobsMoved,
    JobSubmit,
)
from protocols.messages.invocation import MAX_STEPS, Failure, FailureCode, Timings, Values
from protocols.messages.job import JobState

OPEN_MAX: Final = 20_000
OPEN_MAX_BYTES: Final = 256 << 20
"""Open jobs of one anchor, and the inline tensors that they hold."""
ATTEMPTS_MAX: Final = 64
PAUSE_FIRST_MS: Final = 100
PAUSE_MAX_MS: Final = 30_000
"""Between a failed attempt and the next; doubled with each."""
HANDOVER_MS: Final = 60_000
"""How long a service that was taken over waits for the jobs of its anchor of before."""
HOLD_MS: Final = 10
"""How long the record of a new job that runs at once waits for the end, to be one with it."""
DUE_SPARE: Final = 1000
"""Entries of ended jobs that may lie among what is due, beside one for each open job."""
_DUE: Final = "job/due"
_START: Final = "job/start"
_HOLD: Final = "job/hold"


class Jobs:
    """The jobs of an anchor.

    `scheduler_of(service)` is the TS that holds the service's envelopes; empty: none of its tasks
    has a place yet. `anchored(service)`: whether the service is here. Timers of keys `job/...` come
    to `fired`.
    """

    def __init__(
        self,
        desk: Desk,
        scheduler_of: Callable[[str], str],
        anchored: Callable[[str], bool],
        schedulers: tuple[str, ...] = (),
    ) -> None:
        self._desk = desk
        self._scheduler_of = scheduler_of
        self._anchored = anchored
        self._open: dict[str, Job] = {}
        self._open_bytes = 0
        self._lines: dict[str, Line] = {}
        self._ended = Shelf(desk)
        self._words = Words(desk)
        self._held: deque[tuple[int, Job]] = deque()
        """New jobs that run and are not recorded yet, with the time when they are at the latest."""
        self._orders = count()
        self._due: list[tuple[int, int, Job]] = []
        """When a pause or a deadline is over; may hold entries that are not true any more."""
        self._armed_ms: int | None = None
        self._moves = Moves(desk, self._untaken, schedulers)
        self.owned = self._moves.owned
        self._expected: dict[str, int] = {}
        """Services taken over, and until when to wait for the jobs of their anchor of before."""
        self._started: list[Job] = []
        """In this turn, without a record that says so."""

    def __len__(self) -> int:
        return len(self._open)

    def restore(self, records: Iterable[Record]) -> None:
        """Take in the durable jobs (kind `job`), before the first event."""
        for record in records:
            if record.kind != JOB or not isinstance(record.value, JobRecord):
                continue
            if record.value.state in (JobState.ACCEPTED, JobState.RUNNING):
                self._enter(record.value, record.cause).recorded = True
            else:
                self._ended.put(record.value, record.cause)
        if self._open:
            # Services and schedulers are not known yet: this is a part of an anchor.
            self._desk.wake(_START, self._desk.now_ms)

    # What clients say.

    def submit(self, event: Received, body: JobSubmit) -> None:
        """Take in a client's job."""
        if self._expects(body.service, body.job):
            # It may be on its way here; the client says it again.
            return
        reason, retryable = self._refusal(body, event.tenant)
        if reason:
            self._words.refused(event, body, reason, retryable=retryable)
        elif (job := self._open.get(body.job)) is not None:
            job.listen(event.sender, body.reply_to, body.correlation)
            if job.recorded:
                self._words.taken(job)
        elif (ended := self._ended.get(body.job)) is not None:
            self._words.end(ended, event.sender, body.reply_to, body.correlation, event.cause)
        else:
            self._take(body, event.tenant, event.cause, event.sender)

    def _refusal(self, body: JobSubmit, tenant: str) -> tuple[str, bool]:
        """Say why a job is not taken, and whether that may pass; empty: it is."""
        known = self._find(body.job)
        if known is not None:
            if known.tenant != tenant or known.content != fingerprint(body):
                return f"job {body.job[:80]!r} is another one: choose an id of its own", False
            return "", False
        if not self._anchored(body.service):
            return f"there is no service {body.service!r} here", False
        size_bytes = inline_bytes(body.inputs)
        if len(self._open) >= OPEN_MAX or self._open_bytes + size_bytes > OPEN_MAX_BYTES:
            return f"too many open jobs: {len(self._open)} here; try again when some ended", True
        return "", False

    def _find(self, name: str) -> JobRecord | None:
        job = self._open.get(name)
        return job.record if job is not None else self._ended.get(name)

    def _take(self, body: JobSubmit, tenant: str, cause: str, via: str) -> None:
        """Open a job. One that runs at once is recorded with its end, if that comes soon."""
        record = JobRecord(
            body, body.client, tenant, JobState.ACCEPTED, left_ms=body.deadline_ms,
            content=fingerprint(body), accepted_unix_ms=self._desk.unix_ms,
        )  # fmt: skip
        job = self._enter(record, cause, via)
        self._pump(body.service, fresh=job)
        if job.phase is Phase.RUNNING and via:
            if not self._held:
                self._desk.wake(_HOLD, self._desk.now_ms + HOLD_MS)
            self._held.append((self._desk.now_ms + HOLD_MS, job))
        else:
            self._keep(job)

    def query(self, event: Received, body: JobQuery) -> None:
        """Tell how a job stands, or cancel it."""
        if self._expects(body.service, body.job):
            return
        known, job = self._find(body.job), self._open.get(body.job)
        if known is None or known.tenant != event.tenant:
            reason = f"there is no job {body.job[:80]!r}: it was not accepted, or long ago"
            self._words.refused(event, body, reason)
        elif job is None:
            self._words.end(known, event.sender, body.reply_to, body.correlation, event.cause)
        else:
            job.listen(event.sender, body.reply_to, body.correlation)
            if body.cancel:
                self._cancel(job, event.cause)
            else:
                self._record(job)
                self._words.status(job)

    def called(self, event: Called) -> None:
        """Serve the operations `job.submit` and `job.cancel`."""
        asked: Any = event.arguments
        if event.unix_ms:
            # The wall clock may have been set since our start.
            self._desk.unix_offset_ms = event.unix_ms - self._desk.now_ms
        if event.operation == "job.submit":
            submit = asked.submit()
            name = submit.job
            reason, _ = self._refusal(submit, event.tenant)
            if not reason and self._expects(submit.service, name):
                reason = f"service {submit.service!r} changes its anchor: try again in a moment"
            if not reason and self._find(name) is None:
                self._take(submit, event.tenant, event.cause, "")
        else:
            name = asked.name
            known = self._find(name)
            absent = known is None or known.tenant != event.tenant
            reason = f"there is no job {name[:80]!r}" if absent else ""
            job = self._open.get(name)
            if job is not None and not reason:
                self._cancel(job, event.cause)
        record = self._find(name)
        if reason or record is None:
            self._desk.output.answers.append(Answer(event.call, error=reason, blame=Blame.USER))
            return
        if name in self._open:
            self._record(self._open[name])
        self._desk.output.answers.append(Answer(event.call, value=job_view(record)))

    # What schedulers say.

    def ended(self, event: Received, body: JobEnded) -> None:
        """Take in a scheduler's word that a run is over."""
        job = self._open.get(body.job)
        if job is not None and job.record.submit.service == body.service:
            if body.failure is not None:
                self._failed(job, body, body.failure)
            else:
                self._gave(job, body)
        if body.job in self._moves:
            # It is for the new anchor, which has the run as well.
            return
        kept = JobKept(body.job, body.attempt, body.part)
        self._desk.tell_role(event.sender, kept, event.cause, event.tenant)

    def _failed(self, job: Job, body: JobEnded, failure: Failure) -> None:
        """Count a failed attempt, once; an older one is no news."""
        if body.attempt < job.attempt or job.phase is not Phase.RUNNING:
            return
        job.attempt = body.attempt
        line = self._line(body.service)
        line.refused(failure.code)
        record = job.record
        # A run that came too late because of others may come in time next time.
        crowded = failure.code in OVERLOADED and failure.blame is not Blame.USER
        may_pass = failure.retryable or crowded
        if not may_pass or job.attempt >= ATTEMPTS_MAX:
            self._end(job, JobState.FAILED, {}, failure, body.timings)
            return
        pause_ms = min(PAUSE_MAX_MS, PAUSE_FIRST_MS << min(job.attempt - 1, 10))
        # Spread by the job's own name: many that failed together do not come back together.
        draw = crc32(f"{body.job}/{job.attempt}".encode()) / 2**32
        job.turn(JobEvent.FAIL)
        job.attempt += 1
        job.record = structs.replace(
            record,
            state=JobState.ACCEPTED,
            attempts=job.attempt,
            failure=failure,
            left_ms=self._left_ms(job),
        )
        del line.running[body.job]
        self._keep(job)
        self._at(self._desk.now_ms + round(pause_ms * (0.5 + draw / 2)), job)
        self._pump(body.service)

    def _gave(self, job: Job, body: JobEnded) -> None:
        """Take outputs: they may be of an older attempt, for a run is as good as another."""
        if body.parts == 1:
            self._line(body.service).ran(job.record.submit.run_ms, body.timings)
            self._end(job, JobState.DONE, {0: body.outputs}, None, body.timings)
            return
        record = job.record
        # Parts of two runs need not fit together.
        if body.attempt < record.parts_of or not body.part < body.parts <= MAX_STEPS:
            return
        same = body.attempt == record.parts_of
        parts = {**(record.parts if same else {}), body.part: body.outputs}
        timings = merged(record.timings if same else (), body.timings)
        if len(parts) >= body.parts:
            self._line(body.service).ran(record.submit.run_ms, timings)
            self._end(job, JobState.DONE, parts, None, timings)
        elif not same or body.part not in record.parts:
            job.record = structs.replace(
                record, parts=parts, parts_of=body.attempt, timings=timings
            )
            self._keep(job)

    def linked(self, role: str) -> None:
        """Say again what a scheduler may not have heard: it has begun anew, or we have."""
        for service, line in self._lines.items():
            if line.scheduler == role:
                for job in line.running.values():
                    self._run(job, role)
                self._pump(service)

    def placed(self, service: str) -> None:
        """Look at what waits for this service: its scheduler is another one, or there is one."""
        line = self._lines.get(service)
        if line is None:
            return
        scheduler = self._scheduler_of(service)
        if scheduler and line.scheduler not in ("", scheduler):
            for job in line.running.values():
                self._stop(job, line.scheduler)
                self._run(job, scheduler)
            line.scheduler = scheduler
        self._pump(service)

    def gone(self, service: str, reason: str) -> None:
        """End the jobs of a service that was deleted."""
        text = f"service {service!r} has gone: {reason}"[:REASON_MAX]
        failure = Failure(FailureCode.NO_SERVICE, Blame.USER, text, retryable=False)
        for job in [one for one in self._open.values() if one.record.submit.service == service]:
            self._end(job, JobState.FAILED, {}, failure, (), stop=True)
        self._lines.pop(service, None)

    # From anchor to anchor.

    def leave(self, service: str, cause: str) -> None:
        """Hand all jobs of a service over to the anchor that has it now."""
        line = self._lines.pop(service, None)
        scheduler = self._scheduler_of(service) or (line.scheduler if line is not None else "")
        for job in [one for one in self._open.values() if one.record.submit.service == service]:
            self._hand_over(job, scheduler, line or Line())
        for record in self._ended.of_service(service):
            self._ended.drop(record.submit.job)
            self._moves.begin(record, cause, scheduler)
        self._expected.pop(service, None)
        self._moves.settle(service, scheduler, cause)
        self._moves.fired()

    def _hand_over(self, job: Job, scheduler: str, line: Line) -> None:
        record, submit = job.record, job.record.submit
        line.leave(job)
        del self._open[submit.job]
        self._open_bytes -= job.size_bytes
        listened = structs.replace(submit, reply_to=job.reply_to, correlation=job.correlation)
        left = structs.replace(
            record,
            submit=listened,
            state=JobState.ACCEPTED,
            attempts=job.attempt,
            parts={},
            parts_of=0,
            timings=(),
            left_ms=self._left_ms(job),
        )
        if not job.recorded:
            self._desk.keep(JOB, submit.job, left, job.cause)
        self._moves.begin(left, job.cause, scheduler)

    def _untaken(self, record: JobRecord, cause: str) -> None:
        self._desk.keep(JOB, record.submit.job, record, cause)
        self._ended.put(record, cause)

    def expect(self, service: str) -> None:
        """Answer nobody about unknown jobs of a service until its anchor of before has said all."""
        self._expected[service] = self._desk.now_ms + HANDOVER_MS

    def _expects(self, service: str, job: str) -> bool:
        return self._desk.now_ms < self._expected.get(service, 0) and self._find(job) is None

    def moved(self, _event: Received, body: JobsMoved) -> None:
        """Take in that all jobs of a service that its anchor of before had are here."""
        self._expected.pop(body.service, None)

    def handed(self, event: Received, body: JobHandover) -> None:
        """Own a job of another anchor from here on; what is known here already stays as it is."""
        submit = body.submit
        if not self._anchored(submit.service):
            return
        job = self._open.get(submit.job)
        record = arrived(body, event.tenant)
        over = record.state not in OPEN
        if job is not None and over:
            # The client has begun it here anew; the end that there was counts.
            self._end(job, record.state, record.parts, record.failure, record.timings, stop=True)
        elif self._find(submit.job) is None:
            self._desk.keep(JOB, submit.job, record, event.cause)
            if over:
                self._ended.put(record, event.cause)
            else:
                self._enter(record, event.cause, event.sender).recorded = True
                self._pump(submit.service)
        owned = JobOwned(submit.job, body.owner)
        self._desk.tell_role(event.sender, owned, event.cause, event.tenant)

    def settle(self) -> None:
        """Show people what runs since this turn, and be woken when the next thing is due."""
        for job in self._started:
            # Views come after records: what has ended in the same turn is not to be shown again.
            if job.phase is Phase.RUNNING:
                view = View(JOB, job.record.submit.job, job.record)
                self._desk.output.views.append(view)
        self._started.clear()
        self._rearm()

    # Time.

    def fired(self, key: str) -> None:
        """Do what was due."""
        if key == _HOLD:
            self._release()
            return
        if key == MOVE_TIMER:
            self._move()
            return
        if key == _START:
            for service in sorted({one.record.submit.service for one in self._open.values()}):
                if self._anchored(service):
                    self._pump(service)
                else:
                    # Deleted ones were ended with their service: another anchor has it.
                    self.leave(service, "restore")
            return
        self._fall_due()

    def _move(self) -> None:
        """Hand over what was not taken; what has come back with its service stays."""
        for record, cause in self._moves.returned(self._anchored):
            if record.state in OPEN:
                self._enter(record, cause).recorded = True
                self._pump(record.submit.service)
            else:
                self._ended.put(record, cause)
        self._moves.fired()

    def _fall_due(self) -> None:
        """End what is overdue, and let those wait in line whose pause is over."""
        self._armed_ms = None
        now_ms = self._desk.now_ms
        ready: set[str] = set()
        while self._due and self._due[0][0] <= now_ms:
            job = heappop(self._due)[2]
            if job.phase is Phase.OVER:
                continue
            if job.until_ms is not None and job.until_ms <= now_ms:
                self._overdue(job)
            elif job.phase is Phase.PAUSED:
                job.turn(JobEvent.DUE)
                self._line(job.record.submit.service).wait(job)
                ready.add(job.record.submit.service)
        for service in sorted(ready):
            self._pump(service)

    def _release(self) -> None:
        """Record the jobs whose end has not come soon."""
        while self._held:
            at_ms, job = self._held[0]
            if job.phase is not Phase.OVER and at_ms > self._desk.now_ms:
                self._desk.wake(_HOLD, at_ms)
                return
            self._held.popleft()
            if job.phase is not Phase.OVER:
                self._record(job)

    def _overdue(self, job: Job) -> None:
        record = job.record
        text = f"the job was not done within its deadline of {record.submit.deadline_ms} ms"
        if record.failure is not None:
            text += f"; its last attempt failed: {record.failure.text}"
        failure = Failure(
            FailureCode.DEADLINE, Blame.ENVIRONMENT, text[:REASON_MAX], retryable=False
        )
        self._end(job, JobState.FAILED, {}, failure, (), stop=True)

    def _at(self, at_ms: int, job: Job) -> None:
        heappush(self._due, (at_ms, next(self._orders), job))

    def _rearm(self) -> None:
        """Be woken when the next thing is due; an earlier waking does no harm."""
        if len(self._due) > 2 * len(self._open) + DUE_SPARE:
            self._due = [one for one in self._due if one[2].phase is not Phase.OVER]
            heapify(self._due)
        if self._due and (self._armed_ms is None or self._due[0][0] < self._armed_ms):
            self._armed_ms = self._due[0][0]
            self._desk.wake(_DUE, self._armed_ms)

    # The way of a job.

    def _enter(self, record: JobRecord, cause: str, via: str = "") -> Job:
        submit = record.submit
        job = Job(
            record, next(self._orders), cause, submit.reply_to, submit.correlation, via,
            inline_bytes(submit.inputs), max(1, record.attempts),
        )  # fmt: skip
        if submit.deadline_ms:
            job.until_ms = self._desk.now_ms + record.left_ms
            self._at(job.until_ms, job)
        self._open[submit.job] = job
        self._open_bytes += job.size_bytes
        self._line(submit.service).wait(job)
        return job

    def _line(self, service: str) -> Line:
        line = self._lines.get(service)
        if line is None:
            line = self._lines[service] = Line()
        return line

    def _pump(self, service: str, fresh: Job | None = None) -> None:
        """Start what waits longest, as far as credit and a scheduler allow.

        That a job runs is shown, not recorded: only a `fresh` one is recorded anyway.
        """
        line = self._line(service)
        scheduler = self._scheduler_of(service)
        if not scheduler:
            return
        line.scheduler = scheduler
        while (job := line.next()) is not None:
            job.record = structs.replace(
                job.record,
                state=JobState.RUNNING,
                attempts=job.attempt,
                started_unix_ms=job.record.started_unix_ms or self._desk.unix_ms,
            )
            self._run(job, scheduler)
            if job is not fresh:
                self._started.append(job)

    def _run(self, job: Job, scheduler: str) -> None:
        submit = job.record.submit
        run = JobRun(
            submit.job, job.attempt, submit.service, submit.inputs, submit.run_ms, submit.priority
        )
        # The number of a later attempt must be durable first: it may not be given twice.
        tell = self._desk.tell_early if job.attempt == 1 else self._desk.tell_role
        tell(scheduler, run, job.cause, job.record.tenant)

    def _stop(self, job: Job, scheduler: str) -> None:
        name = job.record.submit.job
        self._desk.tell_role(scheduler, Cancel(name), job.cause, job.record.tenant)

    def _cancel(self, job: Job, cause: str) -> None:
        job.cause = cause
        failure = Failure(
            FailureCode.CANCELLED, Blame.USER, "the job was cancelled", retryable=False
        )
        self._end(job, JobState.CANCELLED, {}, failure, (), stop=True)

    def _end(
        self,
        job: Job,
        state: JobState,
        parts: dict[int, Values],
        failure: Failure | None,
        timings: Timings,
        *,
        stop: bool = False,
    ) -> None:
        """Record the end, tell the client, and let the next one run."""
        submit = job.record.submit
        service, name = submit.service, submit.job
        line = self._line(service)
        scheduler = line.scheduler or self._scheduler_of(service)
        if stop and job.phase is Phase.RUNNING and scheduler:
            self._stop(job, scheduler)
        line.leave(job)
        del self._open[name]
        self._open_bytes -= job.size_bytes
        job.record = structs.replace(
            job.record,
            submit=structs.replace(submit, inputs={}),
            state=state,
            attempts=job.attempt,
            parts=parts,
            failure=failure,
            timings=timings,
            ended_unix_ms=self._desk.unix_ms,
        )
        self._keep(job)
        self._ended.put(job.record, job.cause)
        via = job.via or scheduler
        self._words.end(job.record, via, job.reply_to, job.correlation, job.cause)
        self._pump(service)

    def _record(self, job: Job) -> None:
        """Make a job durable that is held, and tell its client."""
        if not job.recorded:
            self._keep(job)

    def _keep(self, job: Job) -> None:
        self._desk.keep(JOB, job.record.submit.job, job.record, job.cause)
        if not job.recorded:
            job.recorded = True
            # An end says that the job was accepted, too.
            if job.phase is not Phase.OVER:
                self._words.taken(job)

    def _left_ms(self, job: Job) -> int:
        return 0 if job.until_ms is None else max(0, job.until_ms - self._desk.now_ms)
