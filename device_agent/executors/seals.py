"""Seals of compiled modules: which file in the cache is what this device has compiled.

A compiled module is native code that nobody checks, so whoever maps one is told the fingerprint of
the file that was compiled. Fingerprints outlive the daemon under a keyed hash. The key lies where
no process is let in that reads an author's bytes: what compiles or runs a module cannot seal one.
"""

import contextlib
import os
import re
import stat

# As in `hashlib`, which brings OpenSSL's megabytes.
from _blake2 import blake2b
from pathlib import Path
from typing import Final

from protocols.errors import EnvironmentFailure

KEY_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 32
FINGERPRINT: Final = re.compile(rf"[0-9a-f]{{{2 * FINGERPRINT_BYTES}}}")


class Seals:
    """The sealed fingerprints of one cache."""

    def __init__(self, folder: Path) -> None:
        """Make the folder private, and a key in it. Raises EnvironmentFailure."""
        self._folder = folder
        self._known: dict[str, str] = {}
        self._key = b""
        self.renew()

    def renew(self) -> None:
        """Make what somebody has cleared away. Raises EnvironmentFailure."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            path = self._folder / "key"
            with contextlib.suppress(FileExistsError):
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as file:
                    file.write(os.urandom(KEY_BYTES))
            self._key = _read(path)
        except OSError as error:
            raise EnvironmentFailure(
                f"cannot keep a key for compiled modules in {self._folder}: {error.strerror}"
            ) from None

    def fingerprint(self, name: str) -> str:
        """Return the fingerprint of a module's compiled file, in hex; empty when none is sealed."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._open(name)
        return known

    def _open(self, name: str) -> str:
        try:
            data = (self._folder / f"{name}.seal").read_bytes()
        except OSError:
            return ""
        found = data[:FINGERPRINT_BYTES]
        return found.hex() if data == found + self._seal(name, found) else ""

    def put(self, name: str, fingerprint: str) -> None:
        """Seal the fingerprint of a file that was compiled just now. Raises EnvironmentFailure."""
        found = bytes.fromhex(fingerprint)
        part = self._folder / f".part-{name}"
        try:
            part.write_bytes(found + self._seal(name, found))
            part.rename(self._folder / f"{name}.seal")
        except OSError as error:
            raise EnvironmentFailure(
                f"cannot seal a compiled module in {self._folder}: {error.strerror}"
            ) from None
        self._known[name] = fingerprint

    def forget(self, name: str) -> None:
        """Look at the folder again for this module."""
        self._known.pop(name, None)

    def _seal(self, name: str, found: bytes) -> bytes:
        text = name.encode() + b"\0" + found
        return blake2b(text, key=self._key, digest_size=FINGERPRINT_BYTES).digest()


def _read(path: Path) -> bytes:
    """Return a key that only its owner can read. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        key = file.read(KEY_BYTES + 1)
    mine = about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077
    if not mine or len(key) != KEY_BYTES:
        raise PermissionError(0, f"{path} must be {KEY_BYTES} bytes that only its owner can read")
    return key
