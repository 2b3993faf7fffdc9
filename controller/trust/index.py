"""Who was issued a certificate and who lost it. Pure: the time comes in from outside."""

import difflib
from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from protocols.base import Name
from protocols.errors import UserError
from protocols.topics import Speaker

VERSION: Final = 1

Moment = Annotated[datetime, Meta(tz=True)]


class Entry(Struct, frozen=True, kw_only=True):
    """One certificate that was issued."""

    name: Name
    speaker: Speaker
    cell: Name
    serial: Annotated[str, Meta(pattern="^[0-9a-f]{1,40}$")]
    """Hexadecimal, random."""
    issued: Moment
    expires: Moment
    addresses: tuple[str, ...] = ()
    """Names and addresses that the certificate may serve at, besides its own machine's."""
    revoked: Moment | None = None


class Index(Struct, frozen=True, kw_only=True):
    """All certificates of one authority; a name has at most one that is not revoked."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION
    authority: Name
    crl_number: Annotated[int, Meta(ge=0)] = 0
    """Grows with every change of the set of revoked certificates."""
    entries: tuple[Entry, ...] = ()


def active(index: Index) -> tuple[Entry, ...]:
    """Return what is not revoked; TLS itself refuses what has expired."""
    return tuple(entry for entry in index.entries if entry.revoked is None)


def revoked(index: Index) -> tuple[Entry, ...]:
    """Return what a revocation list must name."""
    return tuple(entry for entry in index.entries if entry.revoked is not None)


def check_kind(index: Index, name: str, speaker: Speaker) -> None:
    """Raise UserError when `name` already belongs to an identity of another kind."""
    for entry in active(index):
        if entry.name == name and entry.speaker is not speaker:
            raise UserError(
                f"{name} is already the name of a {entry.speaker}: choose another name, or run "
                f"`tona ca revoke {name}` first"
            )


def issue(index: Index, entry: Entry, now: datetime) -> Index:
    """Return the index with `entry` in force; an older certificate of that name is revoked."""
    before = _pruned(index.entries, now)
    after = tuple(_revoke_named(one, entry.name, now) for one in before)
    number = index.crl_number + (after != before)
    return msgspec.structs.replace(index, entries=(*after, entry), crl_number=number)


def revoke(index: Index, name: str, now: datetime) -> Index:
    """Return the index without a valid certificate of `name`. Raises UserError."""
    names = sorted(entry.name for entry in active(index))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "`tona ca list` shows who has"
        raise UserError(f"{name} has no valid certificate of this authority; {hint}")
    entries = tuple(_revoke_named(one, name, now) for one in _pruned(index.entries, now))
    return msgspec.structs.replace(index, entries=entries, crl_number=index.crl_number + 1)


def _revoke_named(entry: Entry, name: str, now: datetime) -> Entry:
    if entry.name != name or entry.revoked is not None:
        return entry
    return msgspec.structs.replace(entry, revoked=now)


def _pruned(entries: tuple[Entry, ...], now: datetime) -> tuple[Entry, ...]:
    # A certificate that is revoked and has expired is refused for its date alone.
    return tuple(one for one in entries if one.revoked is None or one.expires > now)
