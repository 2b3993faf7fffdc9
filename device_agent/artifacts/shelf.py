"""A folder of files named by the hex of their SHA-256, bounded in bytes; the folder is the truth.

Whoever writes here writes a `.part-` file and renames it, so that a name stands for whole content.
The time of last use is the file's own modification time: it survives a restart.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import Final

from msgspec import Struct

from protocols.errors import EnvironmentFailure

DIGEST_PREFIX: Final = "sha256:"
PART_PREFIX: Final = ".part-"
DISK_RESERVE_BYTES: Final = 16 << 20
"""Of the disk, left free: the journal lives there too."""
_HEX: Final = re.compile(r"[0-9a-f]{64}")


class Entry(Struct, frozen=True):
    """One file: its name, size and last use in seconds of the wall clock."""

    name: str
    size_bytes: int
    used_s: float


def hex_of(digest: str) -> str:
    """Return the hex of `sha256:HEX`. Raises EnvironmentFailure when it is no such digest."""
    name = digest.removeprefix(DIGEST_PREFIX)
    if not digest.startswith(DIGEST_PREFIX) or _HEX.fullmatch(name) is None:
        raise EnvironmentFailure(f"{digest[:80]!r} is no SHA-256 digest")
    return name


def to_evict(
    entries: list[Entry], pinned: frozenset[str], excess_bytes: int, unused_since_s: float = 0.0
) -> list[Entry]:
    """Choose what to give up: all unpinned ones unused since then, then the least lately used.

    Pure. It may free less than asked, when what is left is pinned.
    """
    chosen: list[Entry] = []
    for entry in sorted(entries, key=lambda one: one.used_s):
        if entry.name in pinned:
            continue
        if entry.used_s < unused_since_s or excess_bytes > 0:
            chosen.append(entry)
            excess_bytes -= entry.size_bytes
    return chosen


class Shelf:
    """The files of one folder, which of them are in use, and room for more."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Create the folder. Raises EnvironmentFailure when that is not possible."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._pins: dict[str, int] = {}
        self._make()

    def name(self, digest: str) -> str:
        """Return the file of a digest. Raises EnvironmentFailure when it is none."""
        return hex_of(digest)

    def path(self, digest: str) -> Path:
        """Return where the content of a digest lies or would lie."""
        return self.folder / self.name(digest)

    def part(self, digest: str) -> Path:
        """Return where content of a digest is gathered until it is whole."""
        return self.folder / f"{PART_PREFIX}{hex_of(digest)}"

    def gathered(self, digest: str) -> int:
        """Return how many bytes of content that is not whole lie here."""
        try:
            return self.part(digest).stat().st_size
        except OSError:
            return 0

    def has(self, digest: str, size_bytes: int) -> bool:
        """Whether a file of this digest and size lies here."""
        try:
            return self.path(digest).stat().st_size == size_bytes
        except OSError:
            return False

    def pin(self, digest: str) -> None:
        """Keep content for as long as it is in use; pins are counted."""
        name = self.name(digest)
        self._pins[name] = self._pins.get(name, 0) + 1
        with contextlib.suppress(OSError):
            os.utime(f"{self.folder}/{name}")

    def unpin(self, digest: str) -> None:
        """Take one pin back; without one nothing happens.

        What was in use until now is the last to go: a version that was replaced may come back.
        """
        name = self.name(digest)
        left = self._pins.get(name, 0) - 1
        if left > 0:
            self._pins[name] = left
        elif self._pins.pop(name, None) is not None:
            with contextlib.suppress(OSError):
                os.utime(f"{self.folder}/{name}")

    def pinned(self) -> frozenset[str]:
        """Return the names in use."""
        return frozenset(self._pins)

    def drop(self, digest: str) -> None:
        """Delete content at once."""
        self._unlink(self.path(digest))

    def entries(self) -> list[Entry]:
        """Read the folder, unfinished files included. Raises EnvironmentFailure."""
        return self._listed(self.folder)

    def _listed(self, folder: Path) -> list[Entry]:
        found: list[Entry] = []
        try:
            listing = os.scandir(folder)
        except FileNotFoundError:
            # Cleared away, as a logout does with shared memory: the next value needs it again.
            self._make()
            return found
        except OSError as error:
            raise EnvironmentFailure(f"cannot read {folder}: {error.strerror}") from None
        with listing:
            for file in listing:
                # Another process may rename or remove a file meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    about = file.stat(follow_symlinks=False)
                    if _HEX.fullmatch(file.name) or file.name.startswith(PART_PREFIX):
                        found.append(Entry(file.name, about.st_size, about.st_mtime))
        return found

    def used_bytes(self) -> int:
        """Return how much lies here."""
        return sum(entry.size_bytes for entry in self.entries())

    def make_room(self, more_bytes: int, *, busy: frozenset[str] = frozenset()) -> None:
        """Give up the least lately used until so much fits; `busy` files are being written.

        Raises EnvironmentFailure, and gives up nothing, when what is in use leaves too little, be
        it of our own bound or of the disk.
        """
        entries = self.entries()
        keep = self.pinned() | busy
        used = sum(entry.size_bytes for entry in entries)
        in_use = sum(entry.size_bytes for entry in entries if entry.name in keep)
        if in_use + more_bytes > self.max_bytes:
            raise EnvironmentFailure(
                f"{more_bytes} bytes do not fit into {self.folder}: "
                f"{in_use} of its {self.max_bytes} bytes are in use"
            )
        free = self._free_bytes() - DISK_RESERVE_BYTES
        if free + used - in_use < more_bytes:
            raise EnvironmentFailure(
                f"{more_bytes} bytes do not fit on the disk of {self.folder}: {max(0, free)} bytes "
                f"are free and {used - in_use} can be: free space there"
            )
        excess = more_bytes - min(self.max_bytes - used, free)
        for entry in to_evict(entries, keep, excess):
            self._unlink(self.folder / entry.name)

    def _free_bytes(self) -> int:
        try:
            disk = os.statvfs(self.folder)
        except OSError as error:
            raise EnvironmentFailure(f"cannot read {self.folder}: {error.strerror}") from None
        return disk.f_bavail * disk.f_frsize

    def _make(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFailure(f"cannot make {self.folder}: {error.strerror}") from None

    @staticmethod
    def _unlink(path: Path) -> None:
        """Delete a file that may be gone. Raises EnvironmentFailure."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise EnvironmentFailure(f"cannot delete {path}: {error.strerror}") from None
