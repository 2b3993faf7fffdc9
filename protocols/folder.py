"""A data folder, and the lock that lets one process at a time use it."""

import fcntl
import os
from pathlib import Path
from typing import Final

from protocols.errors import EnvironmentFailure, UserError

_PRIVATE: Final = 0o700
_PID_BYTES: Final = 32


class FolderInUse(UserError):
    """Another process holds the folder; once that has ended, the same request is served."""


class DataFolder:
    """A private folder that `who` of this process holds alone; the kernel frees it at our end."""

    def __init__(self, path: Path, who: str) -> None:
        """Create and lock. Raises FolderInUse, or EnvironmentFailure."""
        self.path = path
        try:
            path.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            self.lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvironmentFailure(
                f"{path}: cannot be used as data folder: {error.strerror}; name another with --data"
            ) from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.pread(self.lock, _PID_BYTES, 0).decode("ascii", "replace").strip()
            os.close(self.lock)
            raise FolderInUse(
                f"{path}: another {who} (process {said or 'unknown'}) runs in this data folder; "
                "end it, or name another folder with --data"
            ) from None
        try:
            os.ftruncate(self.lock, 0)
            os.pwrite(self.lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(self.lock)
            raise EnvironmentFailure(
                f"{path}: cannot be written: {error.strerror}; free space there"
            ) from None

    def close(self) -> None:
        """Let another process have it."""
        os.close(self.lock)
