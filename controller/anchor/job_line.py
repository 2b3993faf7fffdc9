"""The jobs of one service in line: who runs, who waits, and how many may run at once.

Order is by priority, then by acceptance. The credit bounds the runs under way: it starts at its
maximum, falls by half when a node says that it is overloaded, by one when a run has waited long at
its node, and grows by one with every run that has not.
"""

from heapq import heapify, heappop, heappush
from typing import Final
from zlib import crc32

from msgspec import Struct

from controller.anchor.job_lifecycle import JobEvent, Phase, advance
from controller.records import JobRecord
from protocols.messages.invocation import FailureCode, Timings

CREDIT_MAX: Final = 64
"""Runs of one service under way; no more than a task's queue holds unless its author says less."""
WAIT_SHARE: Final = 8
"""A run that waited for more than this part of its time was sent too early."""
PAUSE_FIRST_MS: Final = 100
PAUSE_MAX_MS: Final = 30_000
"""Between a failed attempt and the next; doubled with each."""
LEFT_MAX: Final = 1000
"""Ended jobs that may lie in the heap before it is looked at whether to clear it."""
OVERLOADED: Final = frozenset((FailureCode.BUSY, FailureCode.SHED, FailureCode.DEADLINE))


class Job(Struct, eq=False):
    """An open job: its record, and what a restart may forget."""

    record: JobRecord
    order: int
    """Of acceptance."""
    cause: str
    reply_to: str
    """Where the client listens now; the record holds where it listened first."""
    correlation: bytes
    via: str
    """The scheduler through which the client spoke last; empty: not since a restart."""
    size_bytes: int
    attempt: int = 1
    """The newest."""
    phase: Phase = Phase.WAITING
    until_ms: int | None = None
    """When its deadline comes."""
    recorded: bool = False
    """Whether it is durable, as soon as this turn's records are."""

    def turn(self, event: JobEvent) -> None:
        """Take an event of its life. Raises TonaBug where that is illegal."""
        self.phase = advance(self.phase, event, self.record.submit.job)

    def listen(self, via: str, reply_to: str, correlation: bytes) -> None:
        """Answer there from now on."""
        if reply_to:
            self.via, self.reply_to, self.correlation = via, reply_to, correlation


class Line:
    """The open jobs of a service that wait or run."""

    def __init__(self) -> None:
        self.scheduler = ""
        """Who was told to run those under way."""
        self.credit = CREDIT_MAX
        self.running: dict[str, Job] = {}
        self._waiting: list[tuple[int, int, Job]] = []
        self._left = 0
        """Jobs in the heap that have ended."""

    def wait(self, job: Job) -> None:
        """Put a job in line that waits."""
        heappush(self._waiting, (-job.record.submit.priority, job.order, job))

    def next(self) -> Job | None:
        """Take out the job that may run now, if any."""
        while self._waiting and len(self.running) < self.credit:
            job = heappop(self._waiting)[2]
            if job.phase is Phase.OVER:
                self._left -= 1
            else:
                job.turn(JobEvent.START)
                self.running[job.record.submit.job] = job
                return job
        return None

    def leave(self, job: Job) -> None:
        """End a job where it stands; the heap is cleared of ended ones when they are many."""
        if job.phase is Phase.WAITING:
            self._left += 1
        self.running.pop(job.record.submit.job, None)
        job.turn(JobEvent.END)
        if self._left > LEFT_MAX and self._left * 2 > len(self._waiting):
            self._waiting = [one for one in self._waiting if one[2].phase is Phase.WAITING]
            heapify(self._waiting)
            self._left = 0

    def ran(self, run_ms: int, timings: Timings) -> None:
        """Learn from a run that gave its outputs."""
        waited_us = max((one.queue_us for one in timings), default=0)
        step = -1 if waited_us * WAIT_SHARE > run_ms * 1000 else 1
        self.credit = max(1, min(CREDIT_MAX, self.credit + step))

    def refused(self, code: FailureCode) -> None:
        """Learn from a run that failed."""
        if code in OVERLOADED:
            self.credit = max(1, self.credit // 2)


def pause_ms(job: str, attempt: int) -> int:
    """Return how long a job pauses after an attempt that has failed."""
    most_ms = min(PAUSE_MAX_MS, PAUSE_FIRST_MS << min(attempt - 1, 10))
    # Spread by the job's own name: many that failed together do not come back together.
    draw = crc32(f"{job}/{attempt}".encode()) / 2**32
    return round(most_ms * (0.5 + draw / 2))
