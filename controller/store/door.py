"""The durable door: one owner appends at a time, and every change can be watched.

Theory of operation. A host becomes the owner with `acquire`, which gives it an owner epoch above
every older one; from then on an append under an older epoch is fenced, in the same transaction
that would have written it. Every record takes one sequence number, and an append names the number
it builds on: when an append fails, those already queued behind it fail too instead of leaving a
hole in the story.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import Struct

from controller.decider import Record
from protocols.errors import Blame, EnvironmentFailure, TonaError


class Fenced(TonaError):
    """Another process owns the store now; this one has to stop deciding, not to retry."""

    blame = Blame.ENVIRONMENT


class OutOfOrder(EnvironmentFailure):
    """The append builds on a state that is not the newest: one before it has failed."""

    def __init__(self, text: str, seq: int) -> None:
        super().__init__(text)
        self.seq = seq
        """The newest sequence number, to build on."""


class Expired(EnvironmentFailure):
    """The changes after this number are no longer kept: load everything and watch from there."""


class Change(Struct, frozen=True):
    """One entry of the log: a record became `value`; None: it was deleted."""

    seq: int
    record: Record
    at_unix_ms: int
    owner_epoch: int


class Store(Protocol):
    """What a host needs of a store, whichever database it stands on."""

    @property
    def seq(self) -> int:
        """The newest durable sequence number that this process knows of."""
        ...

    async def acquire(self, owner: str) -> int:
        """Become the owner and return the owner epoch; every older owner is fenced."""
        ...

    async def append(
        self, owner_epoch: int, expected_seq: int | None, records: Sequence[Record]
    ) -> int:
        """Make the records durable on top of `expected_seq` and return the newest number.

        `expected_seq` None takes whatever is the newest. Raises Fenced, OutOfOrder, or
        EnvironmentFailure when the disk refuses; then nothing of this append is stored. An append
        whose waiter is cancelled may still be stored.
        """
        ...

    async def load(self) -> list[Record]:
        """Return the newest state of every record, the longest unchanged first."""
        ...

    async def changes(self, from_seq: int, limit: int) -> list[Change]:
        """Return at most `limit` changes after `from_seq`, oldest first. Raises Expired."""
        ...

    def watch(self, from_seq: int) -> AsyncIterator[Change]:
        """Follow the changes after `from_seq` as they become durable. Raises Expired."""
        ...

    async def close(self) -> None:
        """Finish what is queued and let go of the database."""
        ...
