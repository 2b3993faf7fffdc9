"""The store on SQLite: an asyncio door before the one thread that touches the file.

The loop never waits for the disk. Whatever is queued while a commit runs goes into the next one:
the slower the disk, the larger the group.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

from msgspec import Struct

from controller.decider import Record
from controller.store.database import LOG_LENGTH, Append, Database
from controller.store.door import Change
from controller.store.kinds import encode
from protocols.errors import EnvironmentFailure

QUEUE_LENGTH: Final = 1024
"""Operations that may wait for the thread; whoever comes later waits for a place."""
GROUP_MAX_RECORDS: Final = 4096
"""Records that share one commit; it bounds how long a group keeps its first append waiting."""
WATCH_BATCH: Final = 512
"""Changes that a watcher reads at once."""

T = TypeVar("T")


class _Job(Struct):
    """One thing for the thread to do, and who waits for it."""

    work: Append | Callable[[Database], Any]
    done: "asyncio.Future[Any]"


def unix_ms() -> int:
    """Return the wall clock in milliseconds, for people only."""
    return time.time_ns() // 1_000_000


class SqliteStore:
    """`controller.store.door.Store` on one file; make it with `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seq = 0
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._places = asyncio.Semaphore(QUEUE_LENGTH)
        self._grown = asyncio.Event()
        self._closed = False
        self._thread: Thread | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        clock_unix_ms: Callable[[], int] = unix_ms,
        log_length: int = LOG_LENGTH,
    ) -> "SqliteStore":
        """Open or make the store file. Raises UserError, EnvironmentFailure."""
        store = cls(path)
        database = await asyncio.to_thread(Database, path, clock_unix_ms, log_length)
        store._thread = Thread(target=store._run, args=(database,), name="store", daemon=True)
        store._thread.start()
        return store

    async def acquire(self, owner: str) -> int:
        """Become the owner and return the owner epoch; `seq` is then the newest number."""
        epoch, self.seq = await self._do(lambda database: database.acquire(owner))
        return epoch

    async def append(
        self, owner_epoch: int, expected_seq: int | None, records: Sequence[Record]
    ) -> int:
        """Make the records durable and return the newest number; see `Store.append`."""
        rows = [
            (
                one.kind,
                one.key,
                None if one.value is None else encode(one.kind, one.value),
                one.cause,
            )
            for one in records
        ]
        seq: int = await self._put(Append(owner_epoch, expected_seq, rows))
        return seq

    async def load(self) -> list[Record]:
        """Return the newest state of every record; `seq` is then the number it stands for."""
        records, self.seq = await self._do(lambda database: database.load())
        return records

    async def changes(self, from_seq: int, limit: int = WATCH_BATCH) -> list[Change]:
        """Return at most `limit` changes after `from_seq`, oldest first. Raises Expired."""
        return await self._do(lambda database: database.changes(from_seq, limit))

    async def watch(self, from_seq: int) -> AsyncIterator[Change]:
        """Follow the changes after `from_seq` that this process makes. Raises Expired."""
        while not self._closed:
            grown = self._grown
            changes = await self.changes(from_seq)
            for change in changes:
                yield change
                from_seq = change.seq
            if not changes:
                await grown.wait()

    async def close(self) -> None:
        """Finish what is queued and let go of the file. A second call does nothing."""
        if self._closed or self._thread is None:
            return
        self._closed = True
        self._wake_watchers()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _do(self, work: Callable[[Database], T]) -> T:
        answer: T = await self._put(work)
        return answer

    async def _put(self, work: Append | Callable[[Database], Any]) -> Any:
        async with self._places:
            if self._closed:
                raise EnvironmentFailure(f"the store {self.path} is closed")
            done: asyncio.Future[Any] = self._loop.create_future()
            self._queue.put(_Job(work, done))
            return await done

    def _settle(self, answers: list[tuple[_Job, Any]]) -> None:
        newest = self.seq
        for job, answer in answers:
            if isinstance(job.work, Append) and isinstance(answer, int):
                newest = max(newest, answer)
            if job.done.done():
                continue
            if isinstance(answer, Exception):
                job.done.set_exception(answer)
            else:
                job.done.set_result(answer)
        if newest > self.seq:
            self.seq = newest
            self._wake_watchers()

    def _wake_watchers(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    def _run(self, database: Database) -> None:
        """Serve the queue until its end; this is the whole life of the thread."""
        ended = False
        while not ended:
            jobs: list[_Job] = []
            size = 0
            while not ended and size < GROUP_MAX_RECORDS and not (jobs and self._queue.empty()):
                job = self._queue.get()
                if job is None:
                    ended = True
                else:
                    jobs.append(job)
                    size += len(job.work.rows) if isinstance(job.work, Append) else 1
            if jobs:
                self._loop.call_soon_threadsafe(self._settle, _serve(database, jobs))
        database.close()


def _serve(database: Database, jobs: list[_Job]) -> list[tuple[_Job, Any]]:
    """Do the jobs in order; appends that stand together share one commit."""
    answers: list[tuple[_Job, Any]] = []
    for appends, run in groupby(jobs, key=lambda job: isinstance(job.work, Append)):
        together = list(run)
        for group in [together] if appends else [[job] for job in together]:
            answers += zip(group, _attempt(database, group), strict=True)
    return answers


def _attempt(database: Database, jobs: list[_Job]) -> Sequence[Any]:
    appends = [job.work for job in jobs if isinstance(job.work, Append)]
    try:
        if appends:
            return database.append(appends)
        return [job.work(database) for job in jobs if not isinstance(job.work, Append)]
    # The edge of the thread: whatever went wrong belongs to those who wait, or they wait for ever.
    except Exception as error:  # noqa: BLE001 - as said
        return [error] * len(jobs)
