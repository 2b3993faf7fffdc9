"""A cell's store whose artifacts are signed, and the attacker who has taken it over."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from artifact_store import Store
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, TargetFile, Targets

from controller.trust import metadata as made
from controller.trust.publishers import Request
from controller.trust.repository import Repository
from controller.trust.signers import load_signer
from protocols.manifest import ArtifactRef

TRUST = "/v1/trust/"


class Cell:
    """A repository, one author, and a store that shows what the attacker wants."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.repository = Repository.init(folder, lambda: self.now)
        self.store = store
        self.authors: dict[str, CryptoSigner] = {}
        self.targets: dict[str, dict[str, TargetFile]] = {}
        self.allow("alice", "default")
        self.show()

    def allow(self, name: str, tenant: str) -> None:
        signer = self.authors[name] = CryptoSigner.generate_ed25519()
        self.targets[name] = {}
        key = signer.public_key
        first = msgspec.Raw(self.sealed(name, 1))
        request = Request(publisher=name, keyid=key.keyid, key=key.to_dict(), metadata=first)
        self.repository.allow(request, tenant)

    def sealed(self, name: str, version: int) -> bytes:
        expires = self.now + timedelta(days=100)
        metadata = Metadata(Targets(version, expires=expires, targets=self.targets[name]))
        metadata.sign(self.authors[name])
        return metadata.to_bytes()

    @staticmethod
    def target(ref: ArtifactRef, path: str) -> TargetFile:
        return TargetFile(ref.size_bytes, {"sha256": ref.digest[7:]}, path)

    def offer(self, content: bytes) -> ArtifactRef:
        hex_ = hashlib.sha256(content).hexdigest()
        self.store.content[f"/v1/artifacts/{hex_}"] = content
        return ArtifactRef(f"sha256:{hex_}", len(content))

    def sign(self, content: bytes, name: str = "alice", tenant: str = "default") -> ArtifactRef:
        """Offer an artifact that is signed, and show the metadata."""
        ref = self.offer(content)
        path = f"{tenant}/{ref.digest[7:]}"
        self.targets[name][path] = self.target(ref, path)
        self.repository.publish(name, self.sealed(name, self.version(name) + 1))
        self.show()
        return ref

    def version(self, name: str) -> int:
        return next(one.version for one in self.repository.state().publishers if one.name == name)

    def files(self) -> dict[str, bytes]:
        folder = self.repository.file("")
        return {TRUST + one.name: one.read_bytes() for one in folder.iterdir()}

    def show(self, files: dict[str, bytes] | None = None) -> None:
        """Serve these metadata files and no others; by default what is true."""
        for path in [one for one in self.store.content if one.startswith(TRUST)]:
            del self.store.content[path]
        self.store.content.update(files if files is not None else self.files())

    def key(self, role: str) -> CryptoSigner:
        return load_signer(self.repository.folder / "keys" / f"{role}.pem")

    def forge(self, name: str, change: Callable[[Any], None], *signers: CryptoSigner) -> None:
        """Serve a changed metadata file, signed by these keys alone."""
        metadata: Metadata[Any] = Metadata.from_bytes(self.store.content[TRUST + name])
        change(metadata.signed)
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        self.store.content[TRUST + name] = metadata.to_bytes()

    def reseal(self, role: str, data: bytes, version: int) -> None:
        """Serve other metadata of a role, with the stolen key of snapshot and timestamp."""
        online = self.key("online")
        self.store.content[f"{TRUST}{version}.{role}.json"] = data
        stamp = Metadata.from_bytes(self.store.content[f"{TRUST}timestamp.json"]).signed
        number = stamp.snapshot_meta.version
        snapshot = Metadata.from_bytes(self.store.content[f"{TRUST}{number}.snapshot.json"]).signed
        snapshot.meta[f"{role}.json"] = made.file_of(data, version)
        snapshot.version = number + 1
        sealed = made.sealed(snapshot, [online])
        self.store.content[f"{TRUST}{number + 1}.snapshot.json"] = sealed
        stamp.snapshot_meta = MetaFile(number + 1)
        stamp.version += 1
        self.store.content[f"{TRUST}timestamp.json"] = made.sealed(stamp, [online])
