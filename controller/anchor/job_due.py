"""When pauses and deadlines of open jobs are over: one timer for all of them."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

from controller.anchor.job_lifecycle import Phase
from controller.anchor.job_line import Job
from controller.desk import Desk

DUE_SPARE: Final = 1000
"""Entries of ended jobs that may lie among what is due, beside one for each open job."""
TIMER: Final = "job/due"


class Due:
    """Jobs by the time at which they are to be looked at; may hold entries that are not true."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._numbers = count()
        self._entries: list[tuple[int, int, Job]] = []
        self._armed_ms: int | None = None

    def at(self, at_ms: int, job: Job) -> None:
        """Have a job looked at then."""
        heappush(self._entries, (at_ms, next(self._numbers), job))

    def fired(self) -> Iterator[Job]:
        """Take out the open jobs whose time has come."""
        self._armed_ms = None
        while self._entries and self._entries[0][0] <= self._desk.now_ms:
            job = heappop(self._entries)[2]
            if job.phase is not Phase.OVER:
                yield job

    def rearm(self, open_jobs: int) -> None:
        """Be woken when the next thing is due; an earlier waking does no harm."""
        if len(self._entries) > 2 * open_jobs + DUE_SPARE:
            self._entries = [one for one in self._entries if one[2].phase is not Phase.OVER]
            heapify(self._entries)
        if self._entries and (self._armed_ms is None or self._entries[0][0] < self._armed_ms):
            self._armed_ms = self._entries[0][0]
            self._desk.wake(TIMER, self._armed_ms)
