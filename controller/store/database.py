"""The store's transactions on one SQLite connection; synchronous, used by one thread at a time.

WAL with `synchronous = FULL`: a commit returns when its log is on the disk. A group of appends
shares one commit, so the price of the disk is paid once a group.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from controller.decider import Record
from controller.records import UNWATCHED
from controller.store.door import Change, Expired, Fenced, OutOfOrder
from controller.store.kinds import decode
from controller.store.schema import blamed, check, migrate
from protocols.errors import UserError

LOG_LENGTH: Final = 50_000
"""Changes that are kept for watchers; an older revision is expired."""
BUSY_TIMEOUT_S: Final = 5.0
"""How long another process may hold the write lock before we give up."""
WAL_MAX_BYTES: Final = 64 << 20
"""The write-ahead log is cut back to this after a checkpoint."""

_CHANGES: Final = (
    "SELECT seq, kind, key, body, cause, at_unix_ms, owner_epoch FROM log "  # noqa: S608 - marks alone
    f"WHERE seq > ? AND kind NOT IN ({', '.join('?' * len(UNWATCHED))}) ORDER BY seq LIMIT ?"
)

Row = tuple[str, str, bytes | None, str]
"""Kind, key, body (None: deleted) and cause of a record."""


class Append(Struct, frozen=True):
    """One append, encoded."""

    owner_epoch: int
    expected_seq: int | None
    rows: list[Row]


class Database:
    """One open store file. Every method may raise UserError or EnvironmentFailure."""

    def __init__(
        self, path: Path, clock_unix_ms: Callable[[], int], log_length: int = LOG_LENGTH
    ) -> None:
        self._path = path
        self._clock_unix_ms = clock_unix_ms
        self._log_length = log_length
        with blamed(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its side files the mode of this one: records name tenants.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self.connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self.connection.close()
                raise

    def _prepare(self) -> None:
        # First of all: a file of someone else is not even switched to WAL.
        check(self.connection, self._path)
        (mode,) = self.connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise UserError(
                f"the store {self._path} lies on a file system without shared memory "
                f"(SQLite offers {mode}): use a local disk"
            )
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(f"PRAGMA journal_size_limit = {WAL_MAX_BYTES}")
        migrate(self.connection)

    def acquire(self, owner: str) -> tuple[int, int]:
        """Fence every older owner. Returns the new owner epoch and the newest number."""
        with blamed(self._path), _Transaction(self.connection):
            epoch, seq = self.connection.execute(
                "UPDATE owner SET name = ?, owner_epoch = owner_epoch + 1 "
                "RETURNING owner_epoch, seq",
                (owner,),
            ).fetchone()
        return epoch, seq

    def append(self, group: Sequence[Append]) -> list[int | Fenced | OutOfOrder]:
        """Store a group of appends in one commit; each gets its number or why it has none.

        Raises EnvironmentFailure when the disk refuses: then nothing of the group is stored.
        """
        answers: list[int | Fenced | OutOfOrder] = []
        now = self._clock_unix_ms()
        with blamed(self._path), _Transaction(self.connection):
            owner, epoch, seq = self.connection.execute(
                "SELECT name, owner_epoch, seq FROM owner"
            ).fetchone()
            first = seq
            for one in group:
                refusal = self._refusal(one, owner, epoch, seq)
                if refusal is None:
                    self._write(one, seq + 1, now)
                    seq += len(one.rows)
                answers.append(seq if refusal is None else refusal)
            if seq != first:
                self.connection.execute("UPDATE owner SET seq = ?", (seq,))
                self.connection.execute("DELETE FROM log WHERE seq <= ?", (seq - self._log_length,))
        return answers

    def _refusal(self, one: Append, owner: str, epoch: int, seq: int) -> Fenced | OutOfOrder | None:
        if one.owner_epoch != epoch:
            return Fenced(
                f"the store {self._path} belongs to {owner!r} since owner epoch {epoch}, "
                f"this process held {one.owner_epoch}"
            )
        if one.expected_seq is not None and one.expected_seq != seq:
            return OutOfOrder(
                f"the store {self._path} stands at {seq}, the append builds on {one.expected_seq}",
                seq,
            )
        return None

    def _write(self, one: Append, seq: int, now_unix_ms: int) -> None:
        self.connection.executemany(
            "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (number, *_logged(row), now_unix_ms, one.owner_epoch)
                for number, row in enumerate(one.rows, seq)
            ),
        )
        newest = {(kind, key): (body, n) for n, (kind, key, body, _) in enumerate(one.rows, seq)}
        self.connection.executemany(
            "INSERT OR REPLACE INTO current VALUES (?, ?, ?, ?)",
            ((*name, body, n) for name, (body, n) in newest.items() if body is not None),
        )
        self.connection.executemany(
            "DELETE FROM current WHERE kind = ? AND key = ?",
            (name for name, (body, _) in newest.items() if body is None),
        )

    def load(self) -> tuple[list[Record], int]:
        """Return the newest state of every record, and the number that it stands for."""
        with blamed(self._path), _Transaction(self.connection, "DEFERRED"):
            rows = self.connection.execute(
                "SELECT kind, key, body FROM current ORDER BY seq"
            ).fetchall()
            (seq,) = self.connection.execute("SELECT seq FROM owner").fetchone()
        return [
            Record(kind, key, decode(kind, key, body), "restore") for kind, key, body in rows
        ], seq

    def changes(self, from_seq: int, limit: int) -> list[Change]:
        """Return the changes after a number. Raises Expired."""
        with blamed(self._path), _Transaction(self.connection, "DEFERRED"):
            (seq,) = self.connection.execute("SELECT seq FROM owner").fetchone()
            (oldest,) = self.connection.execute("SELECT min(seq) FROM log").fetchone()
            rows = self.connection.execute(_CHANGES, (from_seq, *UNWATCHED, limit)).fetchall()
        if not (oldest or 1) - 1 <= from_seq <= seq:
            raise Expired(
                f"the store {self._path} keeps changes {oldest or 1} to {seq}, "
                f"not those after {from_seq}: load everything and watch from there"
            )
        return list(_changes(rows))

    def close(self) -> None:
        """Let go of the file."""
        with blamed(self._path):
            self.connection.close()


def _logged(row: Row) -> Row:
    """Return what the log holds of a row: of bulk that nobody watches that it was there."""
    kind, key, _, cause = row
    return (kind, key, None, cause) if kind in UNWATCHED else row


def _changes(rows: Iterable[tuple[int, str, str, bytes | None, str, int, int]]) -> Iterable[Change]:
    for seq, kind, key, body, cause, at_unix_ms, owner_epoch in rows:
        value = None if body is None else decode(kind, key, body)
        yield Change(seq, Record(kind, key, value, cause), at_unix_ms, owner_epoch)


class _Transaction:
    """Commit at the end, roll back on any error; a writer takes its lock at once."""

    def __init__(self, connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> None:
        self._connection = connection
        self._kind = kind

    def __enter__(self) -> None:
        self._connection.execute(f"BEGIN {self._kind}")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
