"""The read model: tables by kind, one growing revision, a bounded log of changes for each kind.

Theory of operation. Records (durable) and views (volatile) of the deciders come in; every change
takes the next revision. A token `EPOCH.REVISION` names a point in that history; the epoch is
another one after each restart, so that nobody continues on a history that is gone. Whoever watches
a kind gets what changed after its token, or Expired when that is no longer kept: then list again
and watch from the token given. Logs are kept by kind, so that a thousand load reports do not push
a use case's change out.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct

from controller.decider import Record, View
from controller.records import UNWATCHED
from protocols.errors import UserError

LOG_LENGTH: Final = 16_384
"""Changes kept for each kind."""


class Change(Struct, frozen=True):
    """A thing became `value`; None: it is gone."""

    revision: int
    kind: str
    key: str
    value: Struct | None


class Expired(Struct, frozen=True):
    """The history since the token is gone: list again, then watch from `token`."""

    token: str
    reason: str


class _Table(Struct):
    """The things of one kind, and how they came to be so."""

    rows: dict[str, Any]
    log: deque[Change]
    dropped: int
    """The highest revision that the log no longer holds."""


class Registry:
    """The newest state of everything that people watch. Pure: it has no clock and wakes nobody."""

    def __init__(self, epoch: str, log_length: int = LOG_LENGTH) -> None:
        self._epoch = epoch
        self._log_length = log_length
        self._tables: dict[str, _Table] = {}
        self.revision = 0

    @property
    def token(self) -> str:
        """Now, as a point to watch from."""
        return self.token_at(self.revision)

    def token_at(self, revision: int) -> str:
        """Return a revision of this registry as a token."""
        return f"{self._epoch}.{revision}"

    def apply(self, changes: Iterable[Record | View]) -> None:
        """Take in what a decider wants recorded or seen, in its order."""
        for one in changes:
            if one.kind in UNWATCHED:
                continue
            self.revision += 1
            table = self._tables.get(one.kind)
            if table is None:
                table = self._tables[one.kind] = _Table({}, deque(), 0)
            if one.value is None:
                table.rows.pop(one.key, None)
            else:
                table.rows[one.key] = one.value
            if len(table.log) == self._log_length:
                table.dropped = table.log.popleft().revision
            table.log.append(Change(self.revision, one.kind, one.key, one.value))

    def get(self, kind: str, key: str) -> Any:
        """Return the newest state of one thing, or None."""
        table = self._tables.get(kind)
        return None if table is None else table.rows.get(key)

    def keys(self, kind: str) -> Iterable[str]:
        """Return the keys of a kind, in no order."""
        table = self._tables.get(kind)
        return () if table is None else table.rows.keys()

    def list(
        self, kind: str, prefix: str = "", where: Callable[[Any], bool] | None = None
    ) -> list[Any]:
        """Return the things of a kind by key, those that start with `prefix` and pass `where`."""
        table = self._tables.get(kind)
        if table is None:
            return []
        return [
            table.rows[key]
            for key in sorted(table.rows)
            if key.startswith(prefix) and (where is None or where(table.rows[key]))
        ]

    def watch(self, kind: str, token: str) -> Sequence[Change] | Expired:
        """Return what changed in a kind after the token, oldest first.

        Raises UserError when the token is none of ours.
        """
        epoch, dot, number = token.rpartition(".")
        if not (dot and epoch and number.isascii() and number.isdigit()):
            raise UserError(f"{token[:80]!r} is no revision token: take one from a listing")
        if epoch != self._epoch:
            return Expired(self.token, "the controller has restarted since")
        revision = int(number)
        if revision > self.revision:
            raise UserError(f"revision {revision} lies ahead of the newest, {self.revision}")
        table = self._tables.get(kind)
        if table is None:
            return []
        if revision < table.dropped:
            return Expired(self.token, f"more than {len(table.log)} changes have passed since")
        newer: list[Change] = []
        for change in reversed(table.log):
            if change.revision <= revision:
                break
            newer.append(change)
        newer.reverse()
        return newer
