"""Jobs of services that another anchor has now, on their way there.

A job stays durable here until the other anchor says that it is durable there: it is never nowhere,
and who has it already keeps its own. Each service has a window of its own, so that one that nobody
takes holds no other one up. The link delivers what is said; it is said again, ever more rarely, for
the scheduler between may not know yet whose the service is. What nobody takes in a long time fails,
as does what is overdue.
"""

from collections.abc import Callable
from typing import Final

from msgspec import Struct, structs

from controller.anchor import job_failures
from controller.anchor.job_values import inline_bytes
from controller.decider import Received
from controller.desk import Desk
from controller.records import JOB, JobRecord
from protocols.messages import JobHandover, JobOwned, JobsMoved
from protocols.messages.job import JobState

WINDOW: Final = 32
WINDOW_BYTES: Final = 128 << 10
"""Jobs of a service that are said at once, and their inline tensors, though never less than one
job; the next ones follow as these are taken.
"""
AGAIN_BYTES: Final = 64 << 10
"""Of these, what is said again; a link that is only slow is not to carry large jobs twice."""
AGAIN_MS: Final = 2000
AGAIN_MAX_MS: Final = 30_000
"""Silence after which a service's jobs are said again; doubled each time."""
UNTAKEN_MS: Final = 600_000
"""How long none of a service's jobs is taken before all of them have failed."""
TIMER: Final = "job/move"
OPEN: Final = (JobState.ACCEPTED, JobState.RUNNING)


class Move(Struct, eq=False):
    """A job that leaves."""

    record: JobRecord
    cause: str
    via: str
    """The scheduler that its client listens behind; empty: not known."""
    size_bytes: int
    until_ms: int | None
    """When its deadline comes; None: it has none, or has ended."""
    said: bool = False

    def left(self, now_ms: int) -> JobRecord:
        """Return the job with what is left of its deadline: on the way time goes on."""
        if self.until_ms is None:
            return self.record
        return structs.replace(self.record, left_ms=max(0, self.until_ms - now_ms))


class _Leaving(Struct, eq=False):
    """A service that another anchor has, and its jobs that are still here."""

    to: str
    """The other anchor; empty: its scheduler knows."""
    heard_ms: int
    due_ms: int
    wait_ms: int = AGAIN_MS
    moves: dict[str, Move] = {}


class Moves:
    """The jobs of an anchor that leave it; `untaken` takes those that nobody wants, as they end."""

    def __init__(
        self, desk: Desk, untaken: Callable[[JobRecord, Move], None], schedulers: tuple[str, ...]
    ) -> None:
        self._desk = desk
        self._untaken = untaken
        self._schedulers = schedulers
        self._moves: dict[str, Move] = {}
        self._leaving: dict[str, _Leaving] = {}
        """By service; none without jobs."""

    def __contains__(self, job: str) -> bool:
        return job in self._moves

    def has(self, service: str) -> bool:
        """Whether jobs of a service are still on their way."""
        return service in self._leaving

    def begin(self, record: JobRecord, cause: str, via: str, to: str = "") -> None:
        """Have a job handed over, when it is its turn."""
        now_ms, submit = self._desk.now_ms, record.submit
        timed = submit.deadline_ms and record.state in OPEN
        size = sum(map(inline_bytes, (submit.inputs, *record.parts.values())))
        move = Move(record, cause, via, size, now_ms + record.left_ms if timed else None)
        leaving = self._leaving.get(submit.service)
        if leaving is None:
            leaving = self._leaving[submit.service] = _Leaving(to, now_ms, now_ms)
        leaving.moves[submit.job] = self._moves[submit.job] = move

    def returned(self, service: str) -> list[tuple[JobRecord, Move]]:
        """Return the jobs of a service that is here again, and hand them over no more."""
        leaving = self._leaving.pop(service, None)
        moves = leaving.moves if leaving is not None else {}
        for name in moves:
            del self._moves[name]
        return [(move.left(self._desk.now_ms), move) for move in moves.values()]

    def owned(self, _event: Received, body: JobOwned) -> None:
        """Forget a job that is durable with its new anchor, and say the next one."""
        move = self._moves.get(body.job)
        if move is None:
            return
        service = move.record.submit.service
        leaving = self._leaving[service]
        self._desk.keep(JOB, body.job, None, move.cause)
        leaving.heard_ms = self._desk.now_ms
        leaving.wait_ms = AGAIN_MS
        leaving.due_ms = self._desk.now_ms + AGAIN_MS
        self._drop(body.job)
        if leaving.moves:
            self._say(leaving)
        else:
            self.settle(service, leaving.to, move.cause)

    def settle(self, service: str, to: str, cause: str) -> None:
        """Say that no other job of a service is here, once that is so."""
        leaving = self._leaving.get(service)
        if leaving is not None:
            leaving.to = to or leaving.to
            return
        for scheduler in self._schedulers:
            self._desk.tell_role(scheduler, JobsMoved(service, self._desk.name, to), cause)

    def linked(self) -> None:
        """Say every window at once: what was under way may be lost."""
        for move in self._moves.values():
            move.said = False
        for leaving in self._leaving.values():
            leaving.wait_ms, leaving.due_ms = AGAIN_MS, self._desk.now_ms
        self.fired()

    def fired(self) -> None:
        """Say what is due, and end what nobody takes, or too late."""
        now_ms = self._desk.now_ms
        for service, leaving in list(self._leaving.items()):
            self._give_up(service, leaving)
            if leaving.moves and leaving.due_ms <= now_ms:
                self._say(leaving, again_bytes=AGAIN_BYTES)
                leaving.due_ms = now_ms + leaving.wait_ms
                leaving.wait_ms = min(2 * leaving.wait_ms, AGAIN_MAX_MS)
        due = [one.due_ms for one in self._leaving.values()]
        due += [one.until_ms for one in self._moves.values() if one.until_ms is not None]
        if due:
            self._desk.wake(TIMER, min(due))

    def _give_up(self, service: str, leaving: _Leaving) -> None:
        now_ms, untaken = self._desk.now_ms, job_failures.untaken(service)
        too_long = now_ms - leaving.heard_ms >= UNTAKEN_MS
        for name, move in list(leaving.moves.items()):
            record = move.left(now_ms)
            overdue = move.until_ms is not None and move.until_ms <= now_ms
            if not (too_long or overdue):
                continue
            self._drop(name)
            if record.state in OPEN:
                record = structs.replace(
                    record,
                    submit=structs.replace(record.submit, inputs={}),
                    state=JobState.FAILED,
                    failure=job_failures.overdue(record) if overdue else untaken,
                    ended_unix_ms=self._desk.unix_ms,
                )
            self._untaken(record, move)
            if not leaving.moves:
                self.settle(service, leaving.to, move.cause)

    def _drop(self, job: str) -> None:
        service = self._moves.pop(job).record.submit.service
        moves = self._leaving[service].moves
        del moves[job]
        if not moves:
            del self._leaving[service]

    def _say(self, leaving: _Leaving, again_bytes: int = 0) -> None:
        """Say what stands in the window of a service and was not said, and the first ones again.

        So many bytes are said again, or one job; 0: none.
        """
        size_bytes = 0
        for at, move in enumerate(leaving.moves.values()):
            size_bytes += move.size_bytes
            if at >= WINDOW or (at and size_bytes > WINDOW_BYTES):
                return
            again = again_bytes and (not at or size_bytes <= again_bytes)
            if again or not move.said:
                move.said = True
                self._hand_over(move, leaving.to)

    def _hand_over(self, move: Move, to: str) -> None:
        one = move.left(self._desk.now_ms)
        parts = tuple(one.parts[at] for at in sorted(one.parts))
        body = JobHandover(
            one.submit, self._desk.name, one.state, one.attempts, parts, one.failure,
            one.timings, one.left_ms, one.content, one.accepted_unix_ms, one.started_unix_ms,
            one.ended_unix_ms, to,
        )  # fmt: skip
        # Its new place may be with any of them: who knows its new anchor passes it on.
        for scheduler in self._schedulers:
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
