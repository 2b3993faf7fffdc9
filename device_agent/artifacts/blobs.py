"""The node's blob folder: large values of invocations, shared with executors by digest.

Executors write here on their own; `trim` keeps the bounds. What is in use is pinned by whoever uses
it: an input until its call is answered, an output until it is delivered.
"""

import os
import stat
from pathlib import Path
from typing import Final

from device_agent.artifacts.shelf import Shelf, to_evict

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - checked to be ours alone before its use
FRESH_S: Final = 5.0
"""A value so young may be on its way to its pin."""


class BlobFolder(Shelf):
    """Large values by digest; empty at the start of the daemon."""

    def __init__(self, folder: Path, max_bytes: int, max_age_s: float) -> None:
        """Open the folder and empty it: no invocation outlives the daemon in here.

        Raises EnvironmentFailure.
        """
        super().__init__(folder, max_bytes)
        self.max_age_s = max_age_s
        for entry in self.entries():
            self._unlink(folder / entry.name)

    def trim(self, now_s: float) -> int:
        """Give up what nobody used for the bound of age, then what exceeds the bytes.

        Returns how many bytes were freed. Call it after outputs came as files, and now and then.
        """
        entries = self.entries()
        excess = sum(entry.size_bytes for entry in entries) - self.max_bytes
        # What a clock that has gone back left in the future is not fresh for ever.
        fresh = {entry.name for entry in entries if abs(entry.used_s - now_s) < FRESH_S}
        chosen = to_evict(entries, self.pinned() | fresh, excess, now_s - self.max_age_s)
        for entry in chosen:
            self._unlink(self.folder / entry.name)
        return sum(entry.size_bytes for entry in chosen)


def blob_path(name: str, fallback: Path) -> Path:
    """Return a folder in shared memory that is this user's alone, or the fallback.

    Values in memory spare the flash and the copy; the folder is `tona-UID/NAME`.
    """
    mine = SHARED_MEMORY / f"tona-{os.geteuid()}"
    try:
        mine.mkdir(mode=0o700, exist_ok=True)
        about = mine.lstat()
    except OSError:
        return fallback
    ours = about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) == 0o700  # noqa: PLR2004
    return mine / name if ours and stat.S_ISDIR(about.st_mode) else fallback
