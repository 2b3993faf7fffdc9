"""A private folder of files that this device has made: optimised models.

What lies in it is used without another look, so each file has a seal beside it, a keyed hash over
its name, what it is bound to and its bytes. The key never leaves the folder, and no process that
reads an author's bytes may have read it. A file is never written again: what is open stays as it
was checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import mmap
import os
import stat
from typing import Final

KEY_BYTES: Final = 32
SEAL: Final = ".seal"
MODE: Final = 0o644


def make_private(folder: str) -> None:
    """Create the folder and its key where they are not yet. Raises OSError."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    with contextlib.suppress(FileExistsError):
        handle = os.open(f"{folder}/key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            file.write(os.urandom(KEY_BYTES))


def read_key(folder: str) -> bytes:
    """Return the folder's sealing key. Raises OSError when others may read it."""
    path = f"{folder}/key"
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        about = os.fstat(handle)
        key = os.read(handle, KEY_BYTES + 1)
    finally:
        os.close(handle)
    mine = about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077
    if not mine or len(key) != KEY_BYTES:
        raise PermissionError(f"{path} must be {KEY_BYTES} bytes that only its owner can read")
    return key


def seal(key: bytes, name: str, data: bytes | bytearray | memoryview | mmap.mmap) -> bytes:
    """Return the keyed hash over a file's name and bytes."""
    keyed = hashlib.blake2b(name.encode() + b"\0", key=key, digest_size=32)
    keyed.update(data)
    return keyed.digest()


def store(folder: str, file: str, name: str, data: bytes | memoryview) -> None:
    """Put a file and its seal into the folder, each in one step. Raises OSError."""
    for path, content in ((file, data), (file + SEAL, seal(read_key(folder), name, data))):
        part = f"{folder}/.part-{os.getpid()}"
        with open(part, "wb") as written:
            # Nobody else enters the folder; whom it is handed to may be somebody else.
            os.fchmod(written.fileno(), MODE)
            written.write(content)
        os.rename(part, f"{folder}/{path}")


def whole(folder: str, file: str, name: str, handle: int) -> bool:
    """Whether the seal of a file is that of what is open there."""
    try:
        with open(f"{folder}/{file}{SEAL}", "rb") as sealed:
            wanted = sealed.read(64)
        size = os.fstat(handle).st_size
        if not size:
            return False
        with mmap.mmap(handle, size, prot=mmap.PROT_READ) as data:
            return hmac.compare_digest(wanted, seal(read_key(folder), name, data))
    except OSError:
        return False


def trim(folder: str, suffix: str, limit_bytes: int) -> None:
    """Remove the files with this suffix that were used longest ago, until the others fit."""
    found = []
    for name in os.listdir(folder):
        if name.endswith(suffix):
            with contextlib.suppress(OSError):
                about = os.stat(f"{folder}/{name}")
                found.append((about.st_mtime_ns, about.st_size, name))
    total = sum(size for _, size, _ in found)
    for _, size, name in sorted(found):
        if total <= limit_bytes:
            return
        for path in (f"{folder}/{name}", f"{folder}/{name}{SEAL}"):
            with contextlib.suppress(OSError):
                os.unlink(path)
        total -= size
