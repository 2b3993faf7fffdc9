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
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, Final

from msgspec import structs

from controller.anchor import job_failures
from controller.anchor.job_arrivals import TIMER as ASK_TIMER
from controller.anchor.job_arrivals import Arrivals
from controller.anchor.job_due import Due
from controller.anchor.job_lifecycle import JobEvent, Phase
from controller.anchor.job_line import OVERLOADED, Job, Line, pause_ms
from controller.anchor.job_moves import OPEN, Move, Moves, arrived
from controller.anchor.job_moves import TIMER as MOVE_TIMER
from controller.anchor.job_shelf import Shelf
from controller.anchor.job_values import fingerprint, inline_bytes, merged, unfitting
from controller.anchor.job_words import Words
from controller.decider import Answer, Called, Received, Record, View
from controller.desk import Desk
from controller.job_view import job_view
from controller.records import JOB, AnchoredRecord, JobRecord
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
from protocols.messages.invocation import MAX_STEPS, Failure, Timings, Values
from protocols.messages.job import JobState

OPEN_MAX: Final = 20_000
OPEN_MAX_BYTES: Final = 256 << 20
"""Open jobs of one anchor, and the inline tensors that they hold."""
ATTEMPTS_MAX: Final = 64
HOLD_MS: Final = 10
"""How long the record of a new job that runs at once waits for the end, to be one with it."""
_START: Final = "job/start"
_HOLD: Final = "job/hold"
_CHANGES: Final = "service {!r} has changed its anchor, and jobs are on their way: ask again"


class Jobs:
    """The jobs of an anchor.

    `scheduler_of(service)` is the TS that holds the service's envelopes; empty: none of its tasks
    has a place yet. `services` are those that are here. Timers of keys `job/...` come
    to `fired`.
    """

    def __init__(
        self,
        desk: Desk,
        scheduler_of: Callable[[str], str],
        services: Mapping[str, AnchoredRecord],
        schedulers: tuple[str, ...],
        arrivals: Arrivals,
    ) -> None:
        self._desk = desk
        self._scheduler_of = scheduler_of
        self._services = services
        self._open: dict[str, Job] = {}
        self._open_bytes = 0
        self._lines: dict[str, Line] = {}
        self._ended = Shelf(desk)
        self._words = Words(desk)
        self._held: deque[tuple[int, Job]] = deque()
        """New jobs that run and are not recorded yet, with the time when they are at the latest."""
        self._orders = count()
        self._due = Due(desk)
        self._schedulers = schedulers
        self._moves = Moves(desk, self._untaken, schedulers)
        self.owned = self._moves.owned
        self._arrivals = arrivals
        self._started: list[Job] = []
        """In this turn, without a record that says so."""

    def __len__(self) -> int:
        return len(self._open)

    def restore(self, records: Iterable[Record]) -> None:
        """Take in the durable jobs (kind `job`), before the first event."""
        self._arrivals.restored()
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
        if self._find(body.job) is None and self._arrivals.silent(body.service):
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
        if body.job in self._moves:
            return _CHANGES.format(body.service), True
        unfit = unfitting(self._services.get(body.service), body)
        if unfit:
            return unfit, False
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
        known, job = self._find(body.job), self._open.get(body.job)
        if known is None and self._arrivals.silent(body.service):
            return
        if known is None and (body.job in self._moves or self._arrivals.expects(body.service)):
            reason = _CHANGES.format(body.service)
            self._words.refused(event, body, reason, retryable=True)
        elif known is None or known.tenant != event.tenant:
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
            unknown = self._find(name) is None
            if not reason and unknown and self._arrivals.silent(submit.service):
                reason = _CHANGES.format(submit.service)
            if not reason and unknown:
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
        due_ms = self._desk.now_ms + pause_ms(body.job, job.attempt)
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
        self._due.at(due_ms, job)
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

    def relinked(self, role: str) -> None:
        """Say again at once what may be lost with a link to a scheduler."""
        self._moves.linked()
        self._arrivals.linked()
        self.linked(role)

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

    def gone(self, service: str, failure: Failure) -> None:
        """End the jobs of a service that is not here any more and takes none along."""
        self.back(service)
        for job in self._of(service):
            self._end(job, JobState.FAILED, {}, failure, (), stop=True)
        self._lines.pop(service, None)
        self._arrivals.end(service)

    # From anchor to anchor.

    def leave(self, service: str, cause: str, to: str = "") -> None:
        """Hand all jobs of a service over to the anchor that has it now; empty: not known here."""
        line = self._lines.pop(service, None) or Line()
        for job in self._of(service):
            self._hand_over(job, line, to)
        for record in self._ended.of_service(service):
            self._ended.drop(record.submit.job)
            self._moves.begin(record, cause, "", to)
        self._arrivals.end(service)
        self._moves.settle(service, to, cause)
        self._moves.fired()

    def _of(self, service: str) -> list[Job]:
        return [one for one in self._open.values() if one.record.submit.service == service]

    def _hand_over(self, job: Job, line: Line, to: str) -> None:
        record, submit = job.record, job.record.submit
        line.leave(job)
        del self._open[submit.job]
        self._open_bytes -= job.size_bytes
        listened = structs.replace(submit, reply_to=job.reply_to, correlation=job.correlation)
        left = structs.replace(
            record,
            submit=listened,
            state=JobState.ACCEPTED,
            # What has come of a run stays behind, and its nodes have forgotten that: begin anew.
            attempts=job.attempt + bool(record.parts),
            parts={},
            parts_of=0,
            timings=(),
            left_ms=self._left_ms(job),
        )
        if not job.recorded:
            self._desk.keep(JOB, submit.job, left, job.cause)
        self._moves.begin(left, job.cause, job.via or line.scheduler, to)

    def _untaken(self, record: JobRecord, move: Move) -> None:
        """Keep the end of a job that nobody has taken, and tell its client if it is a new one."""
        self._desk.keep(JOB, record.submit.job, record, move.cause)
        self._ended.put(record, move.cause)
        if move.record.state in OPEN:
            submit = record.submit
            for scheduler in (move.via,) if move.via else self._schedulers:
                self._words.end(record, scheduler, submit.reply_to, submit.correlation, move.cause)

    def back(self, service: str) -> None:
        """Take back the jobs of a service that is here again, before anybody speaks of them."""
        for record, move in self._moves.returned(service):
            if record.state in OPEN:
                # Its next attempt may have another number than is durable.
                self._desk.keep(JOB, record.submit.job, record, move.cause)
                self._enter(record, move.cause, move.via).recorded = True
            else:
                self._ended.put(record, move.cause)

    def arrive(self, service: str) -> None:
        """Take in that a service is here now, perhaps again."""
        self.back(service)
        self._arrivals.begin(service)

    def moved(self, event: Received, body: JobsMoved) -> None:
        """Take in, or say when asked, that an anchor of before has no jobs of a service more."""
        service = body.service
        if not body.asks:
            self._arrivals.moved(body, event.cause)
        elif not (service in self._services or self._moves.has(service) or self._of(service)):
            said = JobsMoved(service, self._desk.name, body.to)
            self._desk.tell_role(event.sender, said, event.cause)

    def handed(self, event: Received, body: JobHandover) -> None:
        """Own a job of another anchor from here on; what is known here already stays as it is."""
        submit = body.submit
        if submit.service not in self._services:
            return
        job = self._open.get(submit.job)
        record = arrived(body, event.tenant)
        over = record.state not in OPEN
        if job is not None and over:
            # The client has begun it here anew; the end that there was counts.
            self._end(job, record.state, record.parts, record.failure, record.timings, stop=True)
        elif job is not None:
            self._renumber(job, record.attempts)
        elif self._find(submit.job) is None:
            self._desk.keep(JOB, submit.job, record, event.cause)
            if over:
                self._ended.put(record, event.cause)
            else:
                self._enter(record, event.cause, event.sender).recorded = True
                self._pump(submit.service)
        owned = JobOwned(submit.job, body.owner)
        self._desk.tell_role(event.sender, owned, event.cause, event.tenant)

    def _renumber(self, job: Job, attempt: int) -> None:
        """Go on with the number of another anchor, if it is newer: its runs were begun anew."""
        if attempt <= job.attempt:
            return
        job.attempt = attempt
        job.record = structs.replace(job.record, attempts=attempt)
        self._keep(job)
        if job.phase is Phase.RUNNING:
            self._run(job, self._line(job.record.submit.service).scheduler)

    def settle(self) -> None:
        """Show people what runs since this turn, and be woken when the next thing is due."""
        for job in self._started:
            # Views come after records: what has ended in the same turn is not to be shown again.
            if job.phase is Phase.RUNNING:
                view = View(JOB, job.record.submit.job, job.record)
                self._desk.output.views.append(view)
        self._started.clear()
        self._due.rearm(len(self._open))

    # Time.

    def fired(self, key: str) -> None:
        """Do what was due."""
        parts = {
            _START: self._begin,
            _HOLD: self._release,
            MOVE_TIMER: self._moves.fired,
            ASK_TIMER: self._arrivals.fired,
        }
        parts.get(key, self._fall_due)()

    def _begin(self) -> None:
        """Go on with what was open before a restart, here or on its way to another anchor."""
        for service in sorted({one.record.submit.service for one in self._open.values()}):
            if service in self._services:
                self._pump(service)
            else:
                # Deleted ones were ended with their service: another anchor has it.
                self.leave(service, "restore")

    def _fall_due(self) -> None:
        """End what is overdue, and let those wait in line whose pause is over."""
        now_ms = self._desk.now_ms
        ready: set[str] = set()
        for job in self._due.fired():
            if job.until_ms is not None and job.until_ms <= now_ms:
                failure = job_failures.overdue(job.record)
                self._end(job, JobState.FAILED, {}, failure, (), stop=True)
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

    # The way of a job.

    def _enter(self, record: JobRecord, cause: str, via: str = "") -> Job:
        submit = record.submit
        job = Job(
            record, next(self._orders), cause, submit.reply_to, submit.correlation, via,
            inline_bytes(submit.inputs), max(1, record.attempts),
        )  # fmt: skip
        if submit.deadline_ms:
            job.until_ms = self._desk.now_ms + record.left_ms
            self._due.at(job.until_ms, job)
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
        self._end(job, JobState.CANCELLED, {}, job_failures.cancelled(), (), stop=True)

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
