"""An author with a key of his own, as the command line makes him."""

import hashlib
from datetime import datetime, timedelta
from typing import Any

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile, Targets

from controller.trust.publishers import Request


class Author:
    def __init__(self, name: str, tenant: str, now: datetime) -> None:
        self.name = name
        self.tenant = tenant
        self.signer = CryptoSigner.generate_ed25519()
        self.targets: dict[str, TargetFile] = {}
        self.version = 1
        self.now = now

    def sealed(self, **changes: Any) -> bytes:
        signed = Targets(
            version=changes.get("version", self.version),
            expires=changes.get("expires", self.now + timedelta(days=100)),
            targets=self.targets,
        )
        metadata = Metadata(signed)
        metadata.sign(changes.get("signer", self.signer))
        return metadata.to_bytes()

    def request(self) -> Request:
        key = self.signer.public_key
        return Request(
            publisher=self.name,
            keyid=key.keyid,
            key=key.to_dict(),
            metadata=msgspec.Raw(self.sealed()),
        )

    def sign(self, content: bytes, path: str = "") -> bytes:
        """Return the next metadata, with one more artifact."""
        hex_ = hashlib.sha256(content).hexdigest()
        path = path or f"{self.tenant}/{hex_}"
        self.targets[path] = TargetFile(len(content), {"sha256": hex_}, path)
        self.version += 1
        return self.sealed()
