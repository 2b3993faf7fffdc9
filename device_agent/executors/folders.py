"""Folders that sandboxed processes were let into: one that was made anew is not theirs any more."""

import os
from collections.abc import Iterable
from pathlib import Path


class Folders:
    """Tells whether somebody has cleared a folder away and another stands in its place.

    The sandbox knows folders, not their names: who was let into the old one is kept out of the new.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._known: dict[Path, int] = dict.fromkeys(paths, -1)

    def remade(self) -> bool:
        """Whether one is another than it was, which is then taken for the known one."""
        found = False
        for path, before in self._known.items():
            try:
                # Held open, so that the new one cannot have the old one's number.
                now = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            if before >= 0 and os.path.sameopenfile(before, now):
                os.close(now)
                continue
            self._known[path] = now
            if before >= 0:
                os.close(before)
                found = True
        return found

    def close(self) -> None:
        """Let go of them."""
        for path, handle in self._known.items():
            if handle >= 0:
                os.close(handle)
                self._known[path] = -1
