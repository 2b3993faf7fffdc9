"""The metadata of the repository, made and signed: no files, no clock (TUF specification 1.0)."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from controller.trust.publishers import Publisher
from protocols.errors import UserError

ROOT_DAYS: Final = 730
TARGETS_DAYS: Final = 365
"""Of the delegations, and of what a publisher signs."""
SNAPSHOT_DAYS: Final = 7
TIMESTAMP_DAYS: Final = 2
"""For so long a node can be held at what was, by whoever keeps the newest from it."""
ISSUED: Final = "issued"
"""A field of ours: when it was signed, in UTC, so that a clock that is behind is noticed."""
_STAMP: Final = "%Y-%m-%dT%H:%M:%SZ"

_S = TypeVar("_S", Root, Targets, Snapshot, Timestamp)


def stamp(signed: _S, version: int, now: datetime, days: int) -> _S:
    """Set version, expiry and time of issue."""
    signed.version = version
    signed.expires = now + timedelta(days=days)
    signed.unrecognized_fields[ISSUED] = now.strftime(_STAMP)
    return signed


def sealed(signed: _S, signers: Iterable[CryptoSigner]) -> bytes:
    """Return the signed bytes."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    data: bytes = metadata.to_bytes(JSONSerializer(compact=True))
    return data


def make_root(root: Key, targets: Key, online: Key) -> Root:
    """Return a root that gives each role its key."""
    made = Root(consistent_snapshot=True)
    made.add_key(root, Root.type)
    made.add_key(targets, Targets.type)
    for role in (Snapshot.type, Timestamp.type):
        made.add_key(online, role)
    return made


def make_targets(publishers: Iterable[Publisher]) -> Targets:
    """Return the delegations: each publisher for his tenant's artifacts and nothing else."""
    keys: dict[str, Key] = {}
    roles: dict[str, DelegatedRole] = {}
    for one in publishers:
        keys |= {keyid: SSlibKey.from_dict(keyid, dict(key)) for keyid, key in one.keys.items()}
        # Not the last word: another publisher of the tenant may vouch for it too.
        paths = [f"{one.tenant}/*"]
        roles[one.name] = DelegatedRole(
            one.name, sorted(one.keys), 1, terminating=False, paths=paths
        )
    return Targets(delegations=Delegations(keys, roles))


def file_of(data: bytes, version: int) -> MetaFile:
    """Return what is said of a metadata file one level up."""
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def make_snapshot(files: Mapping[str, MetaFile]) -> Snapshot:
    """Return the snapshot of these files, by role."""
    return Snapshot(meta={f"{role}.json": file for role, file in files.items()})


def read_targets(data: bytes, what: str) -> Metadata[Targets]:
    """Read the metadata of a publisher. Raises UserError."""
    try:
        found: Metadata[Targets] = Metadata[Targets].from_bytes(data)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise UserError(f"{what} is no signed metadata: {str(error)[:200]}") from None
    if not isinstance(found.signed, Targets):
        raise UserError(f"{what} is metadata of another kind: {found.signed.type}")
    return found


def check_signature(publisher: Publisher, found: Metadata[Targets], what: str) -> None:
    """Hold a publisher's metadata against his keys. Raises UserError."""
    delegating = make_targets([publisher])
    try:
        delegating.verify_delegate(publisher.name, found.signed_bytes, found.signatures)
    except (RepositoryError, UnverifiedSignatureError, ValueError):
        raise UserError(
            f"{what} is not signed with a key of {publisher.name}: have yours allowed with "
            "`tona artifact key allow`"
        ) from None


def issued(signed: Signed) -> datetime | None:
    """Return when it was signed, where it says so."""
    text = signed.unrecognized_fields.get(ISSUED)
    try:
        return datetime.strptime(f"{text}+0000", f"{_STAMP}%z")
    except ValueError:
        return None
