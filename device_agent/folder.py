"""The data folder of one node, and the lock that lets one daemon use it."""

import fcntl
import os
from pathlib import Path
from typing import Final

from protocols.errors import EnvironmentFailure, UserError

PRIVATE: Final = 0o700


class DataFolder:
    """A private folder that this process holds alone until it ends."""

    def __init__(self, path: Path) -> None:
        """Create and lock. Raises UserError when another daemon has it, EnvironmentFailure."""
        self.path = path
        try:
            path.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self.lock = os.open(path / "lock", flags, 0o600)
        except OSError as error:
            raise EnvironmentFailure(
                f"{path}: cannot be used as data folder: {error.strerror}; name another with --data"
            ) from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self.lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self.lock)
            raise UserError(
                f"{path}: another device agent (process {holder}) uses this data folder; "
                "stop it, or give this one a folder of its own with --data"
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
        """Let another daemon have it."""
        os.close(self.lock)
