"""Ended jobs, kept so that whoever asks again is told again; bounded in number and bytes."""

from typing import Final

from controller.desk import Desk
from controller.records import JOB, JobRecord
from protocols.messages.invocation import Tensor

ENDED_MAX: Final = 20_000
ENDED_MAX_BYTES: Final = 64 << 20
"""Ended jobs that are remembered, and their inline outputs; the oldest are forgotten."""


class Shelf:
    """The ended jobs of an anchor, oldest first."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._records: dict[str, JobRecord] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def get(self, job: str) -> JobRecord | None:
        """Return an ended job that is still remembered."""
        return self._records.get(job)

    def of_service(self, service: str) -> list[JobRecord]:
        """Return the ended jobs of a service."""
        return [one for one in self._records.values() if one.submit.service == service]

    def drop(self, job: str) -> None:
        """Keep an ended job no longer here; its record is somebody else's to delete."""
        self._bytes -= _size(self._records.pop(job))

    def put(self, record: JobRecord, cause: str) -> None:
        """Remember one more, and have the oldest deleted for it."""
        self._records[record.submit.job] = record
        self._bytes += _size(record)
        while len(self._records) > ENDED_MAX or self._bytes > ENDED_MAX_BYTES:
            job, oldest = next(iter(self._records.items()))
            del self._records[job]
            self._bytes -= _size(oldest)
            self._desk.keep(JOB, job, None, cause)


def _size(record: JobRecord) -> int:
    return sum(
        len(value.data)
        for part in record.parts.values()
        for value in part.values()
        if isinstance(value, Tensor)
    )
