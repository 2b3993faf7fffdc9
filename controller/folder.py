"""A data folder, and the lock that lets one process at a time use it."""

import fcntl
import os
from pathlib import Path
from typing import Final

from protocols.errors import UserError

_PID_BYTES: Final = 32


class FolderLock:
    """A private folder that `who` of this process holds alone; the kernel frees it at our end."""

    def __init__(self, folder: Path, who: str) -> None:
        """Create and lock. Raises UserError: another holds it, or it cannot be used."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be used as data folder: {error.strerror}; "
                "name another with --data"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.pread(self._lock, _PID_BYTES, 0).decode("ascii", "replace").strip()
            os.close(self._lock)
            raise UserError(
                f"{folder}: another {who} (process {said or 'unknown'}) runs in this data folder; "
                "end it, or name another folder with --data"
            ) from None
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(self._lock)
            raise UserError(
                f"{folder}: cannot be written: {error.strerror}; free space there"
            ) from None

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)
