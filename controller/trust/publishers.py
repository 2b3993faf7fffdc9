"""Who may sign artifacts for which tenant, and the request with which an author asks for that."""

import re
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from protocols.base import Name
from protocols.errors import UserError

PUBLISHERS_MAX: Final = 256
"""Of one repository; those of a tenant are asked one after another."""
TENANT_PUBLISHERS_MAX: Final = 32
KEYS_MAX: Final = 16
"""Of one publisher."""
TARGETS_MAX: Final = 10_000
"""Artifacts that one publisher vouches for."""
METADATA_MAX_BYTES: Final = 5_000_000
"""Of one publisher's metadata; a client of TUF reads no more."""
RESERVED: Final = frozenset({"root", "targets", "snapshot", "timestamp"})
_HEX: Final = re.compile(r"[0-9a-f]{64}")


class Publisher(Struct, frozen=True, kw_only=True):
    """One who signs, and for whom."""

    name: Name
    tenant: Name
    keys: dict[str, dict[str, Any]]
    """Public keys in the form of TUF, by key id; any one of them is enough."""


class Publishers(Struct, frozen=True, kw_only=True):
    """All of them: what the folder's `publishers.json` holds."""

    publishers: tuple[Publisher, ...] = ()

    def get(self, name: str) -> Publisher | None:
        """Return one by name."""
        return next((one for one in self.publishers if one.name == name), None)

    def with_(self, publisher: Publisher) -> "Publishers":
        """Return them with one added or replaced."""
        others = [one for one in self.publishers if one.name != publisher.name]
        return Publishers(publishers=(*others, publisher))

    def without(self, name: str) -> "Publishers":
        """Return them with one gone."""
        return Publishers(publishers=tuple(one for one in self.publishers if one.name != name))


class Request(Struct, frozen=True, kw_only=True):
    """An author's public key, and the proof that he has the secret one.

    The proof is a first, empty metadata of the role, signed with it: the role is whole at once.
    """

    publisher: Name
    keyid: Annotated[str, Meta(max_length=64)]
    key: dict[str, Any]
    metadata: msgspec.Raw


class PublisherState(Struct, frozen=True, kw_only=True):
    """A publisher as people see him."""

    name: str
    tenant: str
    keys: tuple[str, ...]
    """Key ids."""
    version: int
    """Of his metadata."""
    artifacts: int
    expires: datetime | None
    trusted: bool
    """Whether nodes take what he has signed; false: a key of his was revoked, he signs anew."""


class TrustState(Struct, frozen=True, kw_only=True):
    """The state of a repository; without one nobody has to sign."""

    required: bool
    """Whether nodes ask who signed what they run."""
    root_version: int = 0
    root_expires: datetime | None = None
    targets_expires: datetime | None = None
    snapshot_expires: datetime | None = None
    timestamp_expires: datetime | None = None
    timestamp_version: int = 0
    offline: tuple[str, ...] = ()
    """Keys that are kept elsewhere."""
    publishers: tuple[PublisherState, ...] = ()
    root_keys: int = 1
    root_threshold: int = 1
    """How many of its keys have to sign the next root."""


def target_path(tenant: str, hex_: str) -> str:
    """Return the name of an artifact among the targets: no tenant reaches into another's."""
    return f"{tenant}/{hex_}"


def check_target(path: str, tenant: str, hashes: dict[str, str]) -> None:
    """Hold a target's name against its tenant and content. Raises UserError."""
    head, _, hex_ = path.rpartition("/")
    if head != tenant or _HEX.fullmatch(hex_) is None:
        raise UserError(
            f"{path[:160]!r} is no artifact of tenant {tenant}: name it {tenant}/SHA256"
        )
    if hashes != {"sha256": hex_}:
        raise UserError(f"{path}: its hash is not the SHA-256 that its name says")


def check_new(publishers: Publishers, name: str, tenant: str, keyid: str) -> None:
    """Raise UserError where a request cannot be granted."""
    if name in RESERVED:
        raise UserError(f"{name!r} is a role of the repository itself: choose another name")
    known = publishers.get(name)
    if known is None:
        if len(publishers.publishers) >= PUBLISHERS_MAX:
            raise UserError(f"there are {PUBLISHERS_MAX} publishers already: revoke one first")
        same = [one for one in publishers.publishers if one.tenant == tenant]
        if len(same) >= TENANT_PUBLISHERS_MAX:
            raise UserError(
                f"tenant {tenant} has {TENANT_PUBLISHERS_MAX} publishers already: revoke one first"
            )
        return
    if known.tenant != tenant:
        raise UserError(f"{name} already signs for tenant {known.tenant}: choose another name")
    if keyid not in known.keys and len(known.keys) >= KEYS_MAX:
        raise UserError(f"{name} has {KEYS_MAX} keys already: revoke one first")
