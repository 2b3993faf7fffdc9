"""Contents by digest in a folder: verified before they are visible, never changed after.

A content grows under a name of its own and takes its address by a rename, once its SHA-256 is
right and its bytes are on the disk. Synchronous: the shell calls it on threads.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

from controller.api.errors import Refused
from protocols.errors import Blame, UserError

RESERVE_BYTES: Final = 64 << 20
"""Disk that an announced upload must leave free: the store of records lives there too."""
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Contents:
    """A folder of contents; their names are their digests in hexadecimal."""

    def __init__(self, folder: Path, max_bytes: int, *, passing: bool = False) -> None:
        """Keep contents there; `passing` ones need not outlive the machine."""
        self.folder = folder
        self.max_bytes = max_bytes
        self._passing = passing
        self._incoming = folder / "incoming"

    def prepare(self) -> None:
        """Make the folders and remove what a crash left. Raises UserError."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.rmtree(self._incoming, ignore_errors=True)
            self._incoming.mkdir(mode=0o700)
            if self._passing:
                self._forget_unsure()
        except OSError as error:
            raise UserError(
                f"the folder {self.folder} cannot be used ({error.strerror}): "
                "name one that this user may write"
            ) from error

    def _forget_unsure(self) -> None:
        """Remove what was written before the machine started: it may not be on the disk whole."""
        started_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for name, _, since_s in self.held():
            if since_s < started_s:
                self.remove(name)

    def path(self, hex_: str) -> Path:
        """Return where a content lies, or would."""
        return self.folder / hex_

    def look(self, hex_: str, most_bytes: int) -> tuple[os.stat_result | None, bytes | None]:
        """Return the status of a content, and its bytes where it has no more than so many."""
        try:
            with self.path(hex_).open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                return status, file.read() if status.st_size <= most_bytes else None
        except FileNotFoundError:
            return None, None

    def held(self) -> list[tuple[str, int, float]]:
        """Return name, bytes and time of the last write of every content, oldest first."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat()
                    found.append((entry.name, status.st_size, status.st_mtime))
        return sorted(found, key=lambda one: one[2])

    def remove(self, hex_: str) -> None:
        """Remove a content; who reads it now reads on."""
        self.path(hex_).unlink(missing_ok=True)

    def take(self, hex_: str, data: bytes | bytearray) -> "Upload":
        """Take a content in that has come whole. Raises Refused."""
        upload = self.receive(hex_, len(data))
        try:
            upload.end(data)
        except BaseException:
            upload.close()
            raise
        return upload

    def receive(self, hex_: str, declared_bytes: int | None) -> "Upload":
        """Begin to take a content in. Raises Refused (507) when the disk has no room for it."""
        if self.path(hex_).exists():
            return Upload(self.path(hex_), None, None, passing=self._passing)
        if (declared_bytes or 0) + RESERVE_BYTES > shutil.disk_usage(self.folder).free:
            raise _no_room()
        try:
            descriptor, part = tempfile.mkstemp(dir=self._incoming, prefix=f"{hex_[:12]}-")
        except OSError as error:
            raise _blamed(error) from error
        return Upload(self.path(hex_), Path(part), descriptor, passing=self._passing)


class Upload:
    """One content on its way in. A content that is there already is only compared."""

    def __init__(
        self, target: Path, part: Path | None, descriptor: int | None, *, passing: bool
    ) -> None:
        self.size_bytes = 0
        self._target = target
        self._passing = passing
        self._part = part
        self._hash = hashlib.sha256()
        self._file = None if descriptor is None else os.fdopen(descriptor, "wb", buffering=0)

    @property
    def new(self) -> bool:
        """Whether this content was not there when the upload began."""
        return self._part is not None

    def end(self, data: bytes | bytearray) -> None:
        """Take the last bytes and make the content visible. Raises Refused."""
        self.write(data)
        self.commit()
        self.close()

    def write(self, data: bytes | bytearray) -> None:
        """Take the next bytes. Raises Refused (507) when the disk is full."""
        self._hash.update(data)
        self.size_bytes += len(data)
        if self._file is None:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError as error:
            raise _blamed(error) from error

    def commit(self) -> None:
        """Make the content visible, and durable unless it only passes.

        Raises Refused when it is not what it should be.
        """
        if self._hash.hexdigest() != self._target.name:
            raise Refused(
                400,
                f"the content has SHA-256 {self._hash.hexdigest()}, "
                f"the address says {self._target.name}: send it again",
                "hex",
            )
        try:
            if self._file is None or self._part is None:
                os.utime(self._target)
                return
            if self._passing:
                self._part.rename(self._target)
                return
            os.fsync(self._file.fileno())
            self._part.rename(self._target)
            folder = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except FileNotFoundError as error:
            raise Refused(
                503, "the content was removed meanwhile: send it again", blame=Blame.ENVIRONMENT
            ) from error
        except OSError as error:
            raise _blamed(error) from error

    def close(self) -> None:
        """Let go; without a commit nothing is left."""
        if self._file is not None:
            self._file.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)


class Retention:
    """Which contents have to go: all over an age, and the oldest while there are too many bytes.

    Pure; times are any clock in seconds.
    """

    def __init__(self, max_bytes: int, max_age_s: float) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._held: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def add(self, name: str, size_bytes: int, now_s: float) -> None:
        """Note a content that came, or came again."""
        self._forget(name)
        self._held[name] = (size_bytes, now_s)
        self.size_bytes += size_bytes

    def sweep(self, now_s: float) -> list[str]:
        """Forget the contents that have to go, and return them."""
        gone: list[str] = []
        for name, (_, since_s) in list(self._held.items()):
            if self.size_bytes <= self._max_bytes and now_s - since_s <= self._max_age_s:
                break
            self._forget(name)
            gone.append(name)
        return gone

    def _forget(self, name: str) -> None:
        self.size_bytes -= self._held.pop(name, (0, 0.0))[0]


def _no_room() -> Refused:
    return Refused(
        507,
        "the disk of the cell's store is full: free space there, then send it again",
        blame=Blame.ENVIRONMENT,
    )


def _blamed(error: OSError) -> Refused:
    if error.errno in _NO_ROOM:
        return _no_room()
    return Refused(
        503,
        f"the cell's store cannot write ({error.strerror}): check its disk",
        blame=Blame.ENVIRONMENT,
    )
