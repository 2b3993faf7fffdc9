"""The repository of trust in artifacts: who may sign what, said in metadata after TUF.

    FOLDER/               0700
      keys/root.pem       0600  names the keys of the others; one or several, at best elsewhere
      keys/targets.pem    0600  says who may sign for which tenant
      keys/online.pem     0600  signs what is newest, again and again, before it expires
      publishers.json           who was allowed: the truth
      metadata/                 what nodes read: N.root.json, N.targets.json, N.PUBLISHER.json,
                                N.snapshot.json, timestamp.json

Every change writes a new file for each version and `timestamp.json` last: a reader in between, or
a crash, sees what was before. Authors sign with keys that are never here.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Self, TypeVar

import msgspec
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from controller.trust import metadata as made
from controller.trust.files import PUBLIC, locked, write_atomic
from controller.trust.publishers import (
    METADATA_MAX_BYTES,
    TARGETS_MAX,
    Publisher,
    Publishers,
    PublisherState,
    Request,
    TrustState,
    check_new,
    check_target,
)
from controller.trust.roots import KEYS_MAX, RootKeys
from controller.trust.signers import load_signer, new_signer, save_signer
from protocols.errors import UserError

FOLDER_MODE: Final = 0o700
RENEW_AT: Final = 0.5
"""What expires is signed anew when so much of its life is left."""
WARN: Final = timedelta(days=60)
"""Before what cannot be renewed here expires, people are told."""
VERSIONS_KEPT: Final = 16
"""Of each role but root: a node may be in the midst of reading an older view."""
PUBLISHER_DAYS_MAX: Final = 2 * made.TARGETS_DAYS
Rotated = Literal["root", "targets", "online"]

_T = TypeVar("_T", bound=Signed)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class Repository:
    """Signs who may sign; made by `init` or `open`. Every method raises UserError."""

    def __init__(self, folder: Path, now: Callable[[], datetime] = _now) -> None:
        self.folder = folder
        self._now = now
        self._roots = RootKeys(folder / "keys")

    @classmethod
    def init(cls, folder: Path, now: Callable[[], datetime] = _now) -> Self:
        """Make a new repository with new keys; one that is there already is opened instead."""
        repository = cls(folder, now)
        try:
            for one in (folder, folder / "keys", folder / "metadata"):
                one.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make {folder}: {error.strerror}; name another folder"
            ) from None
        with locked(folder):
            # The last file of all: without it an earlier attempt was cut short, and begins anew.
            if not repository.file("timestamp.json").exists():
                repository._begin()
        return repository

    @classmethod
    def open(cls, folder: Path, now: Callable[[], datetime] = _now) -> Self:
        """Open a repository."""
        repository = cls(folder, now)
        repository._read(Timestamp, "timestamp.json")
        return repository

    def file(self, name: str) -> Path:
        """Return where a metadata file lies."""
        return self.folder / "metadata" / name

    def root(self) -> bytes:
        """Return the newest root: what a node begins to trust."""
        return self._bytes(f"{self._root_version()}.root.json")

    def state(self) -> TrustState:
        """Return who may sign, and until when everything holds."""
        root, snapshot = self._newest(Root), self._snapshot()
        timestamp, targets = self._read(Timestamp, "timestamp.json"), self._targets(snapshot)
        trusted = targets.delegations.roles if targets.delegations else {}
        shown = []
        for one in self._publishers().publishers:
            file = snapshot.meta.get(f"{one.name}.json")
            role = self._role(one.name, file) if file else None
            shown.append(
                PublisherState(
                    name=one.name,
                    tenant=one.tenant,
                    keys=tuple(sorted(one.keys)),
                    version=file.version if file else 0,
                    artifacts=len(role.signed.targets) if role else 0,
                    expires=role.signed.expires if role else None,
                    trusted=one.name in (trusted or {}),
                )
            )
        return TrustState(
            required=True,
            root_version=root.version,
            root_expires=root.expires,
            targets_expires=targets.expires,
            snapshot_expires=snapshot.expires,
            timestamp_expires=timestamp.expires,
            timestamp_version=timestamp.version,
            offline=tuple(one for one in ("root", "targets", "online") if not self._has(one)),
            publishers=tuple(shown),
            root_keys=len(root.roles[Root.type].keyids),
            root_threshold=root.roles[Root.type].threshold,
        )

    def allow(self, request: Request, tenant: str) -> Publisher:
        """Let an author's key sign for a tenant; a known publisher gets it beside his others."""
        with locked(self.folder):
            known = self._publishers()
            check_new(known, request.publisher, tenant, request.keyid)
            try:
                SSlibKey.from_dict(request.keyid, dict(request.key))
            except (KeyError, ValueError, TypeError, AttributeError):
                raise UserError(
                    "the request holds no key: make it with `tona artifact key new`"
                ) from None
            old = known.get(request.publisher)
            keys = {**(old.keys if old else {}), request.keyid: request.key}
            publisher = Publisher(name=request.publisher, tenant=tenant, keys=keys)
            alone = Publisher(name=publisher.name, tenant=tenant, keys={request.keyid: request.key})
            first = made.read_targets(bytes(request.metadata), "the request's metadata")
            made.check_signature(alone, first, "the request")
            if first.signed.targets or first.signed.delegations or first.signed.version != 1:
                raise UserError("the request's metadata is not a first one: make the request anew")
            self._write_publishers(known.with_(publisher))
            fresh = {}
            if f"{publisher.name}.json" not in self._snapshot().meta:
                fresh[publisher.name] = (bytes(request.metadata), 1)
            self._publish(fresh, delegate=True)
        return publisher

    def revoke(self, name: str, keyid: str = "") -> None:
        """Take a publisher's key, or all of him, out of force; what it alone has signed with it."""
        with locked(self.folder):
            known = self._publishers()
            publisher = known.get(name)
            if publisher is None:
                raise UserError(f"there is no publisher {name!r}: see `tona artifact key list`")
            keys = {one: key for one, key in publisher.keys.items() if not one.startswith(keyid)}
            if keyid and len(keys) == len(publisher.keys):
                raise UserError(f"{name} has no key {keyid!r}: see `tona artifact key list`")
            if keyid and keys:
                left = Publisher(name=name, tenant=publisher.tenant, keys=keys)
                self._write_publishers(known.with_(left))
            else:
                self._write_publishers(known.without(name))
            self._publish({}, delegate=True)

    def publish(self, name: str, data: bytes) -> None:
        """Take in what a publisher has signed anew."""
        if len(data) > METADATA_MAX_BYTES:
            raise UserError(f"the metadata has {len(data)} bytes, at most {METADATA_MAX_BYTES}")
        found = made.read_targets(data, "the metadata")
        with locked(self.folder):
            publisher = self._publishers().get(name)
            if publisher is None:
                raise UserError(
                    f"there is no publisher {name!r}: have the key allowed with "
                    "`tona artifact key allow`"
                )
            made.check_signature(publisher, found, "the metadata")
            snapshot = self._snapshot()
            self._check_content(publisher, found.signed, snapshot.meta.get(f"{name}.json"))
            delegations = self._targets(snapshot).delegations
            known = delegations is not None and name in (delegations.roles or {})
            self._publish({name: (data, found.signed.version)}, delegate=not known)

    def renew(self) -> tuple[str, ...]:
        """Sign anew what is to expire; returns what is amiss, for people."""
        with locked(self.folder):
            now, warnings = self._now(), []
            for role, kind, days in (
                ("root", Root, made.ROOT_DAYS),
                ("targets", Targets, made.TARGETS_DAYS),
            ):
                signed = self._newest(kind) if kind is Root else self._targets(self._snapshot())
                if signed.expires - now > timedelta(days=days) * RENEW_AT:
                    continue
                if self._has(role):
                    self._renew_root() if kind is Root else self._publish({}, delegate=True)
                elif signed.expires - now < WARN:
                    warnings.append(
                        f"the {role} of the artifacts' trust expires on {signed.expires:%Y-%m-%d} "
                        f"and its key is not here: bring {self._file_of(role)} back for a moment"
                    )
            snapshot = self._snapshot()
            if snapshot.expires - now < timedelta(days=made.SNAPSHOT_DAYS) * RENEW_AT:
                self._publish({}, delegate=False)
            timestamp = self._read(Timestamp, "timestamp.json")
            if timestamp.expires - now < timedelta(days=made.TIMESTAMP_DAYS) * RENEW_AT:
                self._stamp(timestamp.snapshot_meta)
        return tuple(warnings)

    def rotate(
        self,
        role: Rotated,
        root_keys: Sequence[Path] = (),
        keys: int | None = None,
        threshold: int | None = None,
    ) -> int:
        """Replace the keys of a role; returns the new version of root, which nodes follow.

        `root_keys` are those of the present root that are kept elsewhere. Root alone may have
        several `keys`, of which a `threshold` has to sign: as many as before unless told. Raises
        UserError.
        """
        with locked(self.folder):
            root = self._newest(Root)
            old = self._roots.signers(root, root_keys)
            if role == "root":
                return self._rotate_root(root, old, keys, threshold)
            if keys is not None or threshold is not None:
                raise UserError(f"{role} has one key: only root may have several")
            fresh = new_signer()
            names = {
                "targets": (Targets.type,),
                "online": (Snapshot.type, Timestamp.type),
            }[role]
            for name in names:
                for keyid in list(root.roles[name].keyids):
                    root.revoke_key(keyid, name)
                root.add_key(fresh.public_key, name)
            made.stamp(root, root.version + 1, self._now(), made.ROOT_DAYS)
            data = made.sealed(root, old)
            # The key before what names it, so that no crash leaves a root whose key nobody has.
            draft = self._key(f"{role}.new")
            save_signer(fresh, draft)
            write_atomic(self.file(f"{root.version}.root.json"), data, PUBLIC)
            draft.replace(self._key(role))
            self._publish({}, delegate=True)
        return root.version

    # How it is done.

    def _rotate_root(
        self, root: Root, old: list[CryptoSigner], keys: int | None, threshold: int | None
    ) -> int:
        """Give root other keys; the old threshold and the new one sign that."""
        role = root.roles[Root.type]
        keys = len(role.keyids) if keys is None else keys
        threshold = min(role.threshold, keys) if threshold is None else threshold
        if not 1 <= threshold <= keys <= KEYS_MAX:
            raise UserError(
                f"{threshold} of {keys} keys cannot sign: root has up to {KEYS_MAX} keys, of which "
                "1 to all have to sign"
            )
        for keyid in list(role.keyids):
            root.revoke_key(keyid, Root.type)
        fresh = self._roots.draft(keys)
        for one in fresh:
            root.add_key(one.public_key, Root.type)
        role.threshold = threshold
        made.stamp(root, root.version + 1, self._now(), made.ROOT_DAYS)
        data = made.sealed(root, [*old, *fresh])
        write_atomic(self.file(f"{root.version}.root.json"), data, PUBLIC)
        self._roots.here(root)
        return root.version

    def _begin(self) -> None:
        signers = {role: new_signer() for role in ("root", "targets", "online")}
        for role, signer in signers.items():
            save_signer(signer, self._key(role))
        public = [signers[role].public_key for role in ("root", "targets", "online")]
        root = made.stamp(made.make_root(*public), 1, self._now(), made.ROOT_DAYS)
        write_atomic(self.file("1.root.json"), made.sealed(root, [signers["root"]]), PUBLIC)
        self._write_publishers(Publishers())
        self._publish({}, delegate=True)

    def _renew_root(self) -> None:
        root = self._newest(Root)
        signers = self._roots.signers(root)
        made.stamp(root, root.version + 1, self._now(), made.ROOT_DAYS)
        data = made.sealed(root, signers)
        write_atomic(self.file(f"{root.version}.root.json"), data, PUBLIC)

    def _publish(self, fresh: dict[str, tuple[bytes, int]], *, delegate: bool) -> None:
        """Write new metadata of roles, the delegations where asked, a snapshot and a timestamp."""
        online = self._signer("online")
        files: dict[str, MetaFile] = {}
        version = 0
        if self.file("timestamp.json").exists():
            before = self._snapshot()
            version = before.version
            files = {name.removesuffix(".json"): one for name, one in before.meta.items()}
        for name, (data, number) in fresh.items():
            write_atomic(self.file(f"{number}.{name}.json"), data, PUBLIC)
            files[name] = made.file_of(data, number)
        if delegate:
            number = files["targets"].version + 1 if "targets" in files else 1
            targets = made.make_targets(self._whole(files))
            made.stamp(targets, number, self._now(), made.TARGETS_DAYS)
            data = made.sealed(targets, [self._signer("targets")])
            write_atomic(self.file(f"{number}.targets.json"), data, PUBLIC)
            files["targets"] = made.file_of(data, number)
        snapshot = made.make_snapshot(files)
        made.stamp(snapshot, version + 1, self._now(), made.SNAPSHOT_DAYS)
        data = made.sealed(snapshot, [online])
        write_atomic(self.file(f"{snapshot.version}.snapshot.json"), data, PUBLIC)
        self._stamp(made.file_of(data, snapshot.version))
        self._prune({**{name: one.version for name, one in files.items()}, "snapshot": version + 1})

    def _stamp(self, snapshot: MetaFile) -> None:
        version = 0
        if self.file("timestamp.json").exists():
            version = self._read(Timestamp, "timestamp.json").version
        timestamp = Timestamp(snapshot_meta=snapshot)
        made.stamp(timestamp, version + 1, self._now(), made.TIMESTAMP_DAYS)
        data = made.sealed(timestamp, [self._signer("online")])
        write_atomic(self.file("timestamp.json"), data, PUBLIC)

    def _whole(self, files: dict[str, MetaFile]) -> list[Publisher]:
        """Return the publishers whose metadata holds under their keys.

        One whose does not would stop nodes from asking the others of the tenant.
        """
        found = []
        for one in self._publishers().publishers:
            role = self._role(one.name, files.get(one.name))
            if role is None:
                continue
            try:
                made.check_signature(one, role, one.name)
            except UserError:
                continue
            found.append(one)
        return found

    def _check_content(
        self, publisher: Publisher, signed: Targets, before: MetaFile | None
    ) -> None:
        wanted = before.version + 1 if before else 1
        if signed.version != wanted:
            raise UserError(
                f"the metadata has version {signed.version}, the next one of {publisher.name} is "
                f"{wanted}: sign again"
            )
        if signed.delegations is not None:
            raise UserError("a publisher cannot hand on what he may sign")
        if len(signed.targets) > TARGETS_MAX:
            raise UserError(
                f"{len(signed.targets)} artifacts, a publisher has {TARGETS_MAX} at most"
            )
        now = self._now()
        if not now < signed.expires <= now + timedelta(days=PUBLISHER_DAYS_MAX):
            raise UserError(
                f"the metadata expires on {signed.expires:%Y-%m-%d}: let it hold for 1 to "
                f"{PUBLISHER_DAYS_MAX} days"
            )
        for path, target in signed.targets.items():
            check_target(path, publisher.tenant, target.hashes)

    def _prune(self, newest: dict[str, int]) -> None:
        for name, version in newest.items():
            for number in range(version - VERSIONS_KEPT, 0, -1):
                path = self.file(f"{number}.{name}.json")
                if not path.exists():
                    break
                path.unlink(missing_ok=True)

    def _role(self, name: str, file: MetaFile | None) -> Metadata[Targets] | None:
        if file is None:
            return None
        return made.read_targets(self._bytes(f"{file.version}.{name}.json"), name)

    def _root_version(self) -> int:
        return max(
            (int(one.name.partition(".")[0]) for one in self.file("").glob("*.root.json")),
            default=0,
        )

    def _newest(self, kind: type[Root]) -> Root:
        return self._read(kind, f"{self._root_version()}.root.json")

    def _snapshot(self) -> Snapshot:
        timestamp = self._read(Timestamp, "timestamp.json")
        return self._read(Snapshot, f"{timestamp.snapshot_meta.version}.snapshot.json")

    def _targets(self, snapshot: Snapshot) -> Targets:
        return self._read(Targets, f"{snapshot.meta['targets.json'].version}.targets.json")

    def _read(self, kind: type[_T], name: str) -> _T:
        try:
            signed = Metadata.from_bytes(self._bytes(name)).signed
        except (RepositoryError, ValueError) as error:
            raise UserError(f"{self.file(name)} is damaged ({error}): restore it") from None
        if not isinstance(signed, kind):
            raise UserError(f"{self.file(name)} is of another kind: restore it")
        return signed

    def _bytes(self, name: str) -> bytes:
        try:
            return self.file(name).read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"no trust for artifacts in {self.folder} ({name} is absent): `tona ca init` "
                "makes it with an authority"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {self.file(name)}: {error.strerror}") from None

    def _publishers(self) -> Publishers:
        path = self.folder / "publishers.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Publishers)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is absent or damaged ({error}): restore it") from None

    def _write_publishers(self, publishers: Publishers) -> None:
        data = msgspec.json.format(msgspec.json.encode(publishers))
        write_atomic(self.folder / "publishers.json", data, PUBLIC)

    def _key(self, role: str) -> Path:
        return self.folder / "keys" / f"{role}.pem"

    def _has(self, role: str) -> bool:
        return (
            self._roots.enough(self._newest(Root)) if role == "root" else self._key(role).exists()
        )

    def _file_of(self, role: str) -> str:
        several = role == "root" and len(self._newest(Root).roles[Root.type].keyids) > 1
        return "root-*.pem" if several else f"{role}.pem"

    def _settle(self, role: str) -> None:
        """Finish a rotation that was cut short: the new key is in force when root names it."""
        draft = self._key(f"{role}.new")
        if not draft.exists():
            return
        name = Snapshot.type if role == "online" else role
        if load_signer(draft).public_key.keyid in self._newest(Root).roles[name].keyids:
            draft.replace(self._key(role))
        else:
            draft.unlink()

    def _signer(self, role: str) -> CryptoSigner:
        self._settle(role)
        if not self._has(role):
            raise UserError(
                f"the {role} key is not in {self.folder / 'keys'}: bring {role}.pem back for this"
            )
        return load_signer(self._key(role))
