"""The tables of the SQLite store, their migrations, and who is to blame when SQLite refuses.

`user_version` counts the migrations that a file has seen, `application_id` says that it is ours.
Migrations are only ever appended; each is a list of statements and runs in one transaction with
its count, so that a crash leaves the file before or after, never between.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from protocols.errors import EnvironmentFailure, TonaBug, TonaError, UserError

APPLICATION_ID: Final = int.from_bytes(b"tona")

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE owner (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            name TEXT NOT NULL,
            owner_epoch INTEGER NOT NULL,
            seq INTEGER NOT NULL
        )""",
        "INSERT INTO owner VALUES (1, '', 0, 0)",
        """CREATE TABLE current (
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            body BLOB NOT NULL,
            seq INTEGER NOT NULL,
            PRIMARY KEY (kind, key)
        )""",
        """CREATE TABLE log (
            seq INTEGER PRIMARY KEY,
            kind TEXT NOT NULL,
            key TEXT NOT NULL,
            body BLOB,
            cause TEXT NOT NULL,
            at_unix_ms INTEGER NOT NULL,
            owner_epoch INTEGER NOT NULL
        )""",
    ),
)

_FOREIGN: Final = "is not a tona store: name another folder, or move that file away"
_TORN: Final = "is damaged: restore a backup, or move it away to start empty"
_MANY: Final = 1 << 8
"""SQLite's extended codes keep the primary code in their lowest byte."""

_SENTENCES: Final[dict[int, tuple[type[TonaError], str]]] = {
    sqlite3.SQLITE_NOTADB: (UserError, _FOREIGN),
    sqlite3.SQLITE_CORRUPT: (EnvironmentFailure, _TORN),
    sqlite3.SQLITE_CANTOPEN: (
        UserError,
        "cannot be opened: check that its folder exists and that this user may write there",
    ),
    sqlite3.SQLITE_READONLY: (
        UserError,
        "may not be written: give this user write access to the file and its folder",
    ),
    sqlite3.SQLITE_PERM: (
        UserError,
        "may not be written: give this user write access to the file and its folder",
    ),
    sqlite3.SQLITE_FULL: (
        EnvironmentFailure,
        "cannot grow, the disk is full: free space; nothing that was accepted is lost",
    ),
    sqlite3.SQLITE_BUSY: (
        EnvironmentFailure,
        "is held by another process: end that one, or wait until it is done",
    ),
    sqlite3.SQLITE_IOERR: (
        EnvironmentFailure,
        "cannot be read or written, the disk reports an error: check the disk and its mount",
    ),
}


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one sentence of whoever has to act."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None or code % _MANY not in _SENTENCES:
            raise TonaBug(f"the store {path}: {error}") from error
        kind, sentence = _SENTENCES[code % _MANY]
        raise kind(f"the store {path} {sentence}") from error
    except OSError as error:
        raise UserError(
            f"the store {path} cannot be opened ({error.strerror}): name a folder that this user "
            "may write"
        ) from error


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Check that a file is ours, known and whole, and change nothing in it.

    Damage shows at the start and not in the middle of work. Raises UserError, EnvironmentFailure.
    """
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    application = _pragma(connection, "application_id")
    # An empty file is what a crash leaves at the very first start.
    if application != APPLICATION_ID and (tables or application):
        raise UserError(f"the store {path} {_FOREIGN}")
    version = _pragma(connection, "user_version")
    if version > len(MIGRATIONS):
        raise UserError(
            f"the store {path} was written by a newer version (schema {version}, this one knows "
            f"{len(MIGRATIONS)}): start that version"
        )
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise EnvironmentFailure(f"the store {path} {_TORN}")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a checked file to the newest schema, in one transaction. Raises sqlite3.Error."""
    # Takes the write lock even when there is nothing to migrate: a file that cannot be written is
    # reported now and not at the first task.
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _pragma(connection, "user_version")
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
