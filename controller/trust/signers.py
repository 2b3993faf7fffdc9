"""Ed25519 keys in PEM files that their owner alone can read."""

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from controller.trust.files import PRIVATE, write_atomic
from protocols.errors import UserError

_OTHERS: Final = 0o077


def new_signer() -> CryptoSigner:
    """Return a new key."""
    return CryptoSigner.generate_ed25519()


def save_signer(signer: CryptoSigner, path: Path) -> None:
    """Write the secret key. Raises UserError."""
    write_atomic(path, signer.private_bytes, PRIVATE)


def load_signer(path: Path) -> CryptoSigner:
    """Read a secret key. Raises UserError: absent, readable by others, or no Ed25519 key."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(1 << 16)
    except OSError as error:
        raise UserError(f"{path}: cannot read the key: {error.strerror}") from None
    if mode & _OTHERS:
        raise UserError(f"{path}: others can read this secret key: run chmod 600 on it")
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} holds no usable key ({error}): restore it from a backup") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} holds no Ed25519 key: make one with `tona artifact key new`")
    return CryptoSigner(key)
