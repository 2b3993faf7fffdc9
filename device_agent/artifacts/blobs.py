"""The node's blob folder: large values of invocations, shared with executors.

Values by digest lie here, where executors can but read them. What they make themselves lies in a
folder below, each under a name that nobody can guess and no digest, until the core drops it: most
of it never leaves the node. `trim` keeps the bounds; what is in use is pinned by whoever uses it.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from device_agent.artifacts.shelf import Entry, Shelf, hex_of, to_evict
from device_agent.executors.programs.wire import MADE
from protocols.errors import EnvironmentFailure

PRIVATE: Final = 0o700
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - checked to be ours alone before its use
FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
HOLD_ATTEMPTS: Final = 10
SPARE_SHARE: Final = 16
"""One part in so many of the bound is made free at once: to look at all values costs more than to
fetch a small one."""
FRESH_S: Final = 5.0
"""A value so young may be on its way to its pin."""


class BlobFolder(Shelf):
    """Large values by digest; empty at the start of the daemon, held until its end."""

    def __init__(self, folder: Path, max_bytes: int, max_age_s: float) -> None:
        """Open the folder and empty it: no invocation outlives the daemon in here.

        Raises EnvironmentFailure.
        """
        self._lock = -1
        self._sure_bytes = 0
        """That fit without another look."""
        super().__init__(folder, max_bytes)
        self.max_age_s = max_age_s
        for entry in self.entries():
            self._unlink(folder / entry.name)

    def name(self, digest: str) -> str:
        """Return the file of a value: the hex of its digest, or where its maker put it.

        Raises EnvironmentFailure when it is neither.
        """
        kind, _, name = digest.partition(":")
        return f"{MADE}/{hex_of(f'sha256:{name}')}" if kind == MADE else hex_of(digest)

    def entries(self) -> list[Entry]:
        """Read the folder and the one below. Raises EnvironmentFailure."""
        made = self._listed(self.folder / MADE)
        named = (Entry(f"{MADE}/{one.name}", one.size_bytes, one.used_s) for one in made)
        return [*super().entries(), *named]

    def make(self, data: bytes) -> str:
        """Lay down a value that has not left the node; return its name. Raises OSError."""
        name = os.urandom(32).hex()
        path = self.folder / MADE / name
        try:
            path.write_bytes(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return f"{MADE}:{name}"

    def make_room(self, more_bytes: int, *, busy: frozenset[str] = frozenset()) -> None:
        """As every shelf; what executors make meanwhile is `trim`'s to bound."""
        self._sure_bytes -= more_bytes
        if self._sure_bytes >= 0:
            return
        spare = self.max_bytes // SPARE_SHARE
        try:
            super().make_room(more_bytes + spare, busy=busy)
            self._sure_bytes = spare
        except EnvironmentFailure:
            self._sure_bytes = 0
            super().make_room(more_bytes, busy=busy)

    def hold(self, made: str) -> None:
        """Keep what an executor has made until it is dropped."""
        self._pins[self.name(made)] = 1

    def drop(self, digest: str) -> None:
        """Delete content at once, held or not; what cannot be deleted now goes by age."""
        self._pins.pop(self.name(digest), None)
        with contextlib.suppress(EnvironmentFailure):
            super().drop(digest)

    def _make(self) -> None:
        """Make the folder and hold it, so that no sweep takes it while this process lives."""
        for _ in range(HOLD_ATTEMPTS):
            super()._make()
            try:
                (self.folder / MADE).mkdir(mode=PRIVATE, exist_ok=True)
                self._lock_it()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise EnvironmentFailure(f"cannot hold {self.folder}: {error.strerror}") from None
            return
        raise EnvironmentFailure(f"cannot hold {self.folder}: it is removed again and again")

    def _lock_it(self) -> None:
        """Share the folder's lock. Raises FileNotFoundError when a sweep has just taken it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        lock = os.open(self.folder, FOLDER_FLAGS)
        try:
            # A sweep has it for a moment only.
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not os.path.samestat(os.fstat(lock), self.folder.stat()):
                raise FileNotFoundError
        except OSError:
            os.close(lock)
            raise
        self._lock = lock

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
    mine = _mine()
    try:
        mine.mkdir(mode=PRIVATE, exist_ok=True)
    except OSError:
        return fallback
    return mine / name if _is_ours(mine) else fallback


def sweep() -> None:
    """Remove from shared memory what agents of this user left that live no more."""
    mine = _mine()
    if not _is_ours(mine):
        return
    with contextlib.suppress(FileNotFoundError):
        for folder in mine.iterdir():
            with contextlib.suppress(OSError):
                _remove_abandoned(folder)


def clear(folder: Path) -> None:
    """Remove a blob folder and all that lies in it. Raises OSError."""
    for one in (folder / MADE, folder):
        with contextlib.suppress(FileNotFoundError):
            for file in one.iterdir():
                file.unlink()
            one.rmdir()


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder unless an agent holds it. Raises OSError, BlockingIOError among it."""
    lock = os.open(folder, FOLDER_FLAGS | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        clear(folder)
    finally:
        os.close(lock)


def _mine() -> Path:
    return SHARED_MEMORY / f"tona-{os.geteuid()}"


def _is_ours(mine: Path) -> bool:
    """Whether this is a folder that nobody else can have put anything into."""
    try:
        about = mine.lstat()
    except OSError:
        return False
    private = about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) == PRIVATE
    return private and stat.S_ISDIR(about.st_mode)
