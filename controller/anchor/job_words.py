"""What an anchor says to clients about jobs, by way of the schedulers that they spoke through."""

from controller.anchor.job_failures import REASON_MAX
from controller.anchor.job_lifecycle import Phase
from controller.anchor.job_line import Job
from controller.decider import Received
from controller.desk import Desk
from controller.records import JobRecord
from protocols.messages import JobAccepted, JobEnded, JobQuery, JobStatus, JobSubmit
from protocols.messages.job import JobState


class Words:
    """Builds the answers to clients; who named no topic hears nothing."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def taken(self, job: Job) -> None:
        """Tell a client that its job is durable."""
        if job.via and job.reply_to:
            name = job.record.submit.job
            body = JobAccepted(
                name, accepted=True, reply_to=job.reply_to, correlation=job.correlation
            )
            self._desk.tell_role(job.via, body, job.cause, job.record.tenant)

    def refused(
        self, event: Received, body: JobSubmit | JobQuery, reason: str, *, retryable: bool = False
    ) -> None:
        """Tell a client why there is no such job."""
        refusal = JobAccepted(
            body.job,
            accepted=False,
            reason=reason,
            retryable=retryable,
            reply_to=body.reply_to,
            correlation=body.correlation,
        )
        self._desk.tell_role(event.sender, refusal, event.cause, event.tenant)

    def status(self, job: Job) -> None:
        """Tell a client where its open job stands."""
        record = job.record
        runs = job.phase is Phase.RUNNING
        status = JobStatus(
            record.submit.job,
            JobState.RUNNING if runs else JobState.ACCEPTED,
            job.attempt if runs else job.attempt - 1,
            record.failure.text[:REASON_MAX] if record.failure is not None else "",
            job.reply_to,
            job.correlation,
        )
        self._desk.tell_role(job.via, status, job.cause, record.tenant)

    def end(
        self, record: JobRecord, via: str, reply_to: str, correlation: bytes, cause: str
    ) -> None:
        """Tell a client how its job has ended, part by part."""
        if not (via and reply_to):
            return
        parts = record.parts or {0: {}}
        for at, part in enumerate(sorted(parts)):
            body = JobEnded(
                record.submit.job,
                record.attempts,
                record.submit.service,
                parts[part],
                record.failure,
                at,
                len(parts),
                record.timings,
                reply_to=reply_to,
                correlation=correlation,
            )
            self._desk.tell_role(via, body, cause, record.tenant)
