"""Files that are whole or absent, and a lock between processes."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from protocols.errors import UserError

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


def write_atomic(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by `data`, durable and all of it, or leave it as it was. Raises UserError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(data)
            file.flush()
            os.fsync(handle)
        draft.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror}; name a folder that this user may write to"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder` while the body runs. Raises UserError."""
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    except OSError as error:
        raise UserError(
            f"cannot use {folder}: {error.strerror}; run this as the user who owns it"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
