"""The version of a use case that can be gone back to, until the present one has proved itself.

A changed use case keeps the document of the version before it: of the last one that had proved
itself, for a version on probation is nothing to go back to. It proves itself by running without a
break for `PROVING_MS`. Then the one before is given up, and the store collects what only it needed:
so whatever can be gone back to is whole, and what was collected is never named.
"""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from controller.namo.books import Books
from controller.records import UseCaseRecord, UseCaseState
from protocols.errors import UserError

PROVE: Final = "prove/"
PROVING_MS: Final = 600_000
"""Every service runs for so long without a break: then the version has proved itself."""


class Again(Struct, frozen=True):
    """The document of an earlier version, as it is submitted again."""

    document: str
    dry_run: bool
    format: str = "json"


class Versions:
    """Watches versions on probation."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._probations: dict[str, int] = {}
        """The generation that is on probation, by use case."""

    def restore(self) -> None:
        """Begin the probations anew: nobody knows what broke meanwhile."""
        for record in self._books.use_cases.values():
            self.changed(record)

    def changed(self, record: UseCaseRecord) -> None:
        """Take in the newest state of a use case."""
        name = record.name
        runs = bool(record.former) and record.state is UseCaseState.RUNNING
        if runs and self._probations.get(name) == record.generation:
            return
        if runs:
            self._probations[name] = record.generation
            self._books.timer(PROVE + name, self._books.now_ms + PROVING_MS)
        elif self._probations.pop(name, None) is not None:
            self._books.timer(PROVE + name, None)

    def fired(self, name: str, cause: str) -> None:
        """Give the version before up: this one has proved itself."""
        record = self._books.use_cases.get(name)
        if self._probations.pop(name, None) is not None and record is not None:
            self._books.put_use_case(replace(record, former=""), cause)


def former_of(before: UseCaseRecord | None, document: str) -> str:
    """Return the document that a changed use case can go back to; empty: none."""
    if before is None or before.state is UseCaseState.DORMANT:
        return ""
    former = before.former or before.document
    return "" if former == document else former


def again(record: UseCaseRecord, *, dry_run: bool) -> Again:
    """Return what to submit to go back. Raises UserError."""
    if not record.former:
        raise UserError(
            f"use case {record.name!r} has no version to go back to: the present one is the first, "
            f"or has run for {PROVING_MS // 60_000} minutes and proved itself"
        )
    return Again(record.former, dry_run)
