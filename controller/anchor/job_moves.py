"""Jobs of a service that another anchor has now, on their way there.

A job stays durable here until the other anchor says that it is durable there: it is never nowhere,
and who has it already keeps its own. What nobody takes in a long time fails for good.
"""

from collections.abc import Callable
from typing import Final

from msgspec import Struct, structs

from controller.decider import Received
from controller.desk import Desk
from controller.records import JOB, JobRecord
from protocols.errors import Blame
from protocols.messages import JobHandover, JobOwned, JobsMoved
from protocols.messages.invocation import Failure, FailureCode
from protocols.messages.job import JobState

WINDOW: Final = 32
"""Jobs that are said at once; the next ones follow as these are taken."""
AGAIN_MS: Final = 2000
TRIES_MAX: Final = 300
TIMER: Final = "job/move"
OPEN: Final = (JobState.ACCEPTED, JobState.RUNNING)


class _Move(Struct):
    record: JobRecord
    cause: str
    scheduler: str
    tries: int = 0


class Moves:
    """The jobs of an anchor that leave it; `failed` takes those that nobody wants, as they end."""

    def __init__(
        self, desk: Desk, failed: Callable[[JobRecord, str], None], schedulers: tuple[str, ...]
    ) -> None:
        self._desk = desk
        self._failed = failed
        self._schedulers = schedulers
        self._moves: dict[str, _Move] = {}

    def __contains__(self, job: str) -> bool:
        return job in self._moves

    def begin(self, record: JobRecord, cause: str, scheduler: str) -> None:
        """Have a job handed over by way of the scheduler of its service, when it is its turn."""
        self._moves[record.submit.job] = _Move(record, cause, scheduler)

    def fired(self) -> None:
        """Say the first ones, again where they were not taken."""
        for name, move in list(self._moves.items())[:WINDOW]:
            move.tries += 1
            if move.tries <= TRIES_MAX:
                self._say(move)
                continue
            del self._moves[name]
            record = move.record
            if record.state in OPEN:
                text = f"service {record.submit.service!r} has an anchor that took no job"
                failure = Failure(FailureCode.NO_SERVICE, Blame.ENVIRONMENT, text, retryable=False)
                record = structs.replace(record, state=JobState.FAILED, failure=failure)
            self._failed(record, move.cause)
        if self._moves:
            self._desk.wake(TIMER, self._desk.now_ms + AGAIN_MS)

    def returned(self, anchored: Callable[[str], bool]) -> list[tuple[JobRecord, str]]:
        """Return the jobs whose services are here again, and hand them over no more."""
        found = [one for one in self._moves.values() if anchored(one.record.submit.service)]
        for one in found:
            del self._moves[one.record.submit.job]
        return [(one.record, one.cause) for one in found]

    def owned(self, _event: Received, body: JobOwned) -> None:
        """Forget a job that is durable with its new anchor."""
        move = self._moves.pop(body.job, None)
        if move is None:
            return
        self._desk.keep(JOB, body.job, None, move.cause)
        self.settle(move.record.submit.service, move.scheduler, move.cause)
        if self._moves and all(one.tries == 0 for one in list(self._moves.values())[:WINDOW]):
            self.fired()

    def settle(self, service: str, scheduler: str, cause: str) -> None:
        """Say that there is no other job of a service here, once that is so."""
        left = any(one.record.submit.service == service for one in self._moves.values())
        if scheduler and not left:
            self._desk.tell_role(scheduler, JobsMoved(service), cause)

    def _say(self, move: _Move) -> None:
        one = move.record
        parts = tuple(one.parts[at] for at in sorted(one.parts))
        body = JobHandover(
            one.submit, self._desk.name, one.state, one.attempts, parts, one.failure,
            one.timings, one.left_ms, one.content, one.accepted_unix_ms, one.started_unix_ms,
            one.ended_unix_ms,
        )  # fmt: skip
        # After a restart nobody knows whose the service is: the one that has it passes it on.
        for scheduler in (move.scheduler,) if move.scheduler else self._schedulers:
            self._desk.tell_role(scheduler, body, move.cause, one.tenant)


def arrived(body: JobHandover, tenant: str) -> JobRecord:
    """Return the record of a job as another anchor had it."""
    return JobRecord(
        body.submit,
        body.submit.client,
        tenant,
        body.state,
        body.attempts,
        dict(enumerate(body.parts)),
        body.failure,
        body.accepted_unix_ms,
        body.ended_unix_ms,
        timings=body.timings,
        left_ms=body.left_ms,
        content=body.content,
        started_unix_ms=body.started_unix_ms,
    )
