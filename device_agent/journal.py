"""What outlives the daemon: assignments, tombstones, feeds, the cell that serves, the incarnation.

All of it is one SQLite file. Flash wears by pages written and by syncs, so: written on change only;
all changes of one turn of the loop are one transaction; the write-ahead log makes a commit one sync
of a few appended pages (the rollback journal syncs three times and writes pages twice); the lock is
exclusive, so there is no shared-memory file. `synchronous = FULL` syncs each commit: what the
daemon has acknowledged is there after a power cut. The cell that serves alone is not synced, for
nobody was promised it: after a power cut the node comes back to a cell before, and goes on from
there, while answers would wait for the disk in the midst of a handover. The incarnation is reserved
in blocks, one write a start.

A damaged file is moved aside with a warning, and the daemon starts with none: the scheduler brings
the tasks back.
"""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from device_agent.core.commands import Change, ForgetFeed, Keep, KeepFeed, KeepPlace, Place
from device_agent.core.events import Restored
from device_agent.core.tasks import TOMBSTONES_MAX
from protocols.errors import EnvironmentFailure
from protocols.messages import Assign, Feed

INCARNATION_BLOCK: Final = 1000
FOLDER_MODE: Final = 0o700
_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS assignments (task TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS older (task TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tombstones (
    number INTEGER PRIMARY KEY, task TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS feeds (service TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS incarnation (one INTEGER PRIMARY KEY CHECK (one = 1), next INTEGER);
CREATE TABLE IF NOT EXISTS place (one TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
"""

_PRUNE: Final = "DELETE FROM tombstones WHERE number <= (SELECT max(number) FROM tombstones) - ?"

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_assign = msgspec.msgpack.Decoder(Assign)
_feed = msgspec.msgpack.Decoder(Feed)
_place = msgspec.msgpack.Decoder(Place)


class Journal:
    """The journal of one node; the caller has the data folder for itself (`flock`)."""

    def __init__(self, path: Path, unix_ms: int) -> None:
        """Open or create. Raises EnvironmentFailure when the disk does not let us.

        `unix_ms` is the wall clock, where the incarnations of a new journal begin.
        """
        self.warning = ""
        """One sentence, when a damaged journal was moved aside."""
        self._path = path
        self._first = unix_ms
        try:
            path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            try:
                self._file = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._move_aside(error)
                self._file = self._open()
        except (OSError, sqlite3.Error) as error:
            raise EnvironmentFailure(f"{path}: the journal cannot be opened: {error}") from None

    def restored(self) -> Restored:
        """Return everything that was kept; a line that cannot be read is dropped with a warning."""
        assigns = self._all("assignments", "task", _assign)
        older = self._all("older", "task", _assign)
        feeds = self._all("feeds", "service", _feed)
        rows = self._file.execute("SELECT task, epoch FROM tombstones ORDER BY number").fetchall()
        tombstones = tuple((task, epoch) for task, epoch in rows)
        place = next(iter(self._all("place", "one", _place)), None)
        return Restored(tuple(assigns), tombstones, tuple(feeds), 0, place, tuple(older))

    def _all(self, table: str, key: str, decoder: msgspec.msgpack.Decoder[T]) -> list[T]:
        found = []
        for name, body in self._file.execute(f"SELECT {key}, body FROM {table}").fetchall():  # noqa: S608 - names of ours
            try:
                found.append(decoder.decode(body))
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.warning = f"{self._path}: what was kept of {key} {name} could not be read"
                self._file.execute(f"DELETE FROM {table} WHERE {key} = ?", (name,))  # noqa: S608 - as above
        return found

    def reserve(self) -> tuple[int, int]:
        """Reserve a block of incarnations: all above the first and up to the second number.

        Milliseconds of the wall clock grow faster than blocks are used up, so a journal that was
        lost and made anew begins above every number it has ever given. Raises EnvironmentFailure.
        """
        try:
            row = self._file.execute("SELECT next FROM incarnation").fetchone()
            first = row[0] if row else self._first
            last = first + INCARNATION_BLOCK
            self._file.execute("INSERT OR REPLACE INTO incarnation VALUES (1, ?)", (last,))
        except sqlite3.Error as error:
            raise self._failure(error) from None
        return first, last

    def write(self, changes: Sequence[Change]) -> None:
        """Make changes durable, all or none, in their order. Raises EnvironmentFailure."""
        run = self._file.execute
        synced = any(not isinstance(one, KeepPlace) for one in changes)
        try:
            if not synced:
                run("PRAGMA synchronous = NORMAL")
            run("BEGIN IMMEDIATE")
            for change in changes:
                self._change(change)
            run("COMMIT")
        except sqlite3.Error as error:
            if self._file.in_transaction:
                run("ROLLBACK")
            raise self._failure(error) from None
        finally:
            if not synced:
                run("PRAGMA synchronous = FULL")

    def _change(self, change: Change) -> None:
        run = self._file.execute
        if isinstance(change, Keep):
            task, body = change.assign.task, _encode(change.assign)
            run("INSERT OR REPLACE INTO assignments VALUES (?, ?)", (task, body))
            run("DELETE FROM tombstones WHERE task = ?", (task,))
            run("DELETE FROM older WHERE task = ?", (task,))
            if change.older is not None:
                run("INSERT INTO older VALUES (?, ?)", (task, _encode(change.older)))
        elif isinstance(change, KeepFeed):
            service, body = change.feed.service, _encode(change.feed)
            run("INSERT OR REPLACE INTO feeds VALUES (?, ?)", (service, body))
        elif isinstance(change, KeepPlace):
            run("INSERT OR REPLACE INTO place VALUES ('here', ?)", (_encode(change.place),))
        elif isinstance(change, ForgetFeed):
            run("DELETE FROM feeds WHERE service = ?", (change.service,))
        else:
            line = (change.task, change.epoch)
            run("DELETE FROM assignments WHERE task = ?", line[:1])
            run("DELETE FROM older WHERE task = ?", line[:1])
            run("INSERT OR REPLACE INTO tombstones VALUES (NULL, ?, ?)", line)
            run(_PRUNE, (TOMBSTONES_MAX,))

    def close(self) -> None:
        """Close the file; the log is folded into it."""
        self._file.close()

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._path, isolation_level=None)
        try:
            run = file.execute
            run("PRAGMA locking_mode = EXCLUSIVE")
            run("PRAGMA journal_mode = WAL")
            run("PRAGMA synchronous = FULL")
            run("PRAGMA cache_size = -256")
            run("PRAGMA wal_autocheckpoint = 256")
            run("PRAGMA journal_size_limit = 1048576")
            _check(file)
            file.executescript(_SCHEMA)
            run(f"PRAGMA user_version = {_FORMAT}")
        except BaseException:
            file.close()
            raise
        self._path.chmod(0o600)
        return file

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self.warning = (
            f"{self._path}: the journal is damaged ({error}) and was moved to {aside.name}; "
            "tasks come back when the scheduler assigns them again"
        )

    def _failure(self, error: sqlite3.Error) -> EnvironmentFailure:
        space = os.statvfs(self._path.parent)
        free_mib = space.f_bavail * space.f_frsize >> 20
        return EnvironmentFailure(f"{self._path}: {error}; {free_mib} MiB are free on its disk")


def _check(file: sqlite3.Connection) -> None:
    (verdict,) = file.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    (version,) = file.execute("PRAGMA user_version").fetchone()
    if version not in {0, _FORMAT}:
        raise sqlite3.DatabaseError(f"format {version}, this version writes {_FORMAT}")
