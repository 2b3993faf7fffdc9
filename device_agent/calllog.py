"""The log of calls: appended in batches, chained by hashes, bounded; loaded with the first call.

Segments of `SEGMENT_BYTES` lie side by side, each named after the number of its first record; the
oldest goes when there are `SEGMENTS`. A segment begins with the head of the chain before it. A
batch is its header, the records packed with zlib, and the head of the chain with it: SHA-256 over
the head before, header and packed records. Nothing is synced but a full segment, for flash wears: a
process that is killed loses nothing that was written, a machine that loses power what its kernel
had not brought to the disk, and then the torn end is cut off.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

SEGMENT_BYTES: Final = 1 << 20
SEGMENTS: Final = 8
HEAD_BYTES: Final = 32
FOLDER_MODE: Final = 0o700
FILE_MODE: Final = 0o600
ZERO: Final = bytes(HEAD_BYTES)
"""The head before the first record."""
BATCH: Final = struct.Struct("<4sIIQqI")
"""Mark, bytes of the packed records, their number, number of the first, wall clock less the node's
clock in ms, records that were dropped before it.
"""
MARK: Final = b"tcl1"
PACKING: Final = 1
"""Level of zlib: a tenth of the time of the usual one for a sixth more bytes."""


class Batch(NamedTuple):
    """One batch of a segment, its records still packed."""

    first: int
    length: int
    """Its records."""
    offset_ms: int
    dropped: int
    packed: bytes
    head: bytes
    """As it stands in the file."""
    chained: bytes
    """As it follows from what is before."""
    end: int
    """Where the batch ends in the file."""


def segments(folder: Path) -> list[Path]:
    """Return the segments of a log, oldest first. Raises OSError."""
    if not folder.exists():
        return []
    return sorted(one for one in folder.iterdir() if one.suffix == ".log" and one.stem.isdigit())


def batches(data: bytes) -> Iterator[Batch]:
    """Yield the batches of a segment up to its end, or to what is torn or none of ours."""
    head, at = data[:HEAD_BYTES], HEAD_BYTES
    while at + BATCH.size <= len(data):
        mark, size, count, first, offset_ms, dropped = BATCH.unpack_from(data, at)
        start = at + BATCH.size
        end = start + size + HEAD_BYTES
        if mark != MARK or end > len(data):
            return
        body = data[at : start + size]
        stands, chained = data[start + size : end], sha256(head + body).digest()
        packed = data[start : start + size]
        yield Batch(first, count, offset_ms, dropped, packed, stands, chained, end)
        head, at = stands, end


class CallLog:
    """The end of the log, where it grows. One process has it open at a time."""

    def __init__(self, folder: Path) -> None:
        """Go on where the log ends; what is torn is cut off. Raises OSError."""
        self._folder = folder
        self.logged = 0
        """Records over all lives: the number of the next one."""
        self.head = ZERO
        self.dropped = 0
        """Records that could not be written since the last batch that was."""
        self.problem = ""
        """Why the last one could not."""
        self._file = -1
        self._size = 0
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        found = segments(folder)
        if found:
            self._continue(found[-1])
        else:
            self._begin()

    def _continue(self, path: Path) -> None:
        data = path.read_bytes()
        self.logged, self._size = int(path.stem), min(len(data), HEAD_BYTES)
        self.head = data[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0")
        for one in batches(data):
            self.logged, self.head, self._size = one.first + one.length, one.head, one.end
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(self._file, self._size)
        if self._size < HEAD_BYTES:
            self._append(self.head)

    def _begin(self) -> None:
        """Begin a segment, and let the oldest go."""
        path = self._folder / f"{self.logged:016d}.log"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        handle = os.open(path, flags, FILE_MODE)
        if self._file >= 0:
            # A file system that cannot sync has written all the same.
            with suppress(OSError):
                os.fsync(self._file)
            os.close(self._file)
        self._file, self._size = handle, 0
        self._append(self.head)
        for old in segments(self._folder)[:-SEGMENTS]:
            old.unlink(missing_ok=True)

    def write(self, records: bytes, count: int, offset_ms: int) -> bool:
        """Append a batch; False when the disk does not take it: then it is dropped, and counted."""
        try:
            if self._size >= SEGMENT_BYTES:
                self._begin()
            packed = zlib.compress(records, PACKING)
            header = BATCH.pack(MARK, len(packed), count, self.logged, offset_ms, self.dropped)
            head = sha256(b"".join((self.head, header, packed))).digest()
            self._append(b"".join((header, packed, head)))
        except OSError as error:
            self.dropped += count
            self.problem = error.strerror or "it cannot be written"
            return False
        self.logged, self.head, self.dropped = self.logged + count, head, 0
        return True

    def _append(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left.nbytes:
                left = left[os.write(self._file, left) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
