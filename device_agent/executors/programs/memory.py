"""What a task remembers between invocations: keys and values, in a file of its own.

The file is a log of commits, each a block with its length and checksum, so that a torn end costs
the last commit alone and a process that is killed costs nothing that was committed. It is written
anew when most of it is out of date. It is not forced to the disk: it outlives processes, not power.

    block:  u32 length of the entries, u32 CRC-32 of them, entries
    entry:  u32 length of the key, u32 length of the value (0xffffffff: deleted), key, value
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_KEY_BYTES: Final = 256
SLACK_BYTES: Final = 64 * 1024
"""What a log may hold beside twice its living entries before it is written anew."""
_BLOCK: Final = struct.Struct("<2I")
_ENTRY: Final = struct.Struct("<2I")
_DELETED: Final = 0xFFFFFFFF

Changes = dict[bytes, "bytes | None"]
"""What a commit writes; None deletes."""


class MemoryFull(Exception):
    """A commit that would take more than the limit; nothing of it was done."""


class Memory:
    """The memory of one task; one process has it open at a time."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        """Read what is there, up to the first block that is not whole. Raises OSError."""
        self._path = path
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._entries: dict[bytes, bytes] = {}
        self._size = 0
        self._log_bytes = 0
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            for entries, end in read_blocks(file.read()):
                self._take(entries)
                self._log_bytes = end
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the task runs
        self._file.truncate(self._log_bytes)

    def get(self, key: bytes) -> bytes | None:
        """Return a value; None when there is none."""
        return self._entries.get(key)

    def size(self) -> int:
        """Return what keys and values take, in bytes."""
        return self._size

    def entries(self) -> bytes:
        """Return everything as one block: the whole of a new log."""
        with self._lock:
            return write_block(dict(self._entries))

    def commit(self, changes: Changes) -> None:
        """Write all changes or none. Raises MemoryFull and OSError."""
        if not changes:
            return
        with self._lock:
            if self._file.closed:
                raise OSError(errno.EBADF, "the memory is being replaced")
            after = self._size + sum(
                _weight(key, value) - _weight(key, self._entries.get(key))
                for key, value in changes.items()
            )
            if after > self.limit_bytes:
                raise MemoryFull(f"{after} bytes, the task's limit is {self.limit_bytes}")
            block = write_block(changes)
            if self._log_bytes + len(block) > 2 * after + SLACK_BYTES:
                self._rewrite({**self._entries, **changes})
            else:
                self._append(block)
            self._take(changes)

    def _take(self, changes: Changes) -> None:
        for key, value in changes.items():
            self._size += _weight(key, value) - _weight(key, self._entries.get(key))
            if value is None:
                self._entries.pop(key, None)
            else:
                self._entries[key] = value

    def _append(self, block: bytes) -> None:
        left = memoryview(block)
        try:
            while left.nbytes:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(self._log_bytes)
            raise
        self._log_bytes += len(block)

    def _rewrite(self, entries: Changes) -> None:
        part = f"{self._path}.part"
        block = write_block({key: value for key, value in entries.items() if value is not None})
        with open(part, "wb") as file:
            file.write(block)
        os.rename(part, self._path)
        self._file.close()
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - as above
        self._log_bytes = len(block)

    def close(self) -> None:
        """Close the file; later commits fail."""
        with self._lock:
            self._file.close()


def _weight(key: bytes, value: bytes | None) -> int:
    return 0 if value is None else len(key) + len(value)


def write_block(changes: Changes) -> bytes:
    """Return a commit as a block."""
    parts = []
    for key, value in changes.items():
        length = _DELETED if value is None else len(value)
        parts += [_ENTRY.pack(len(key), length), key, value or b""]
    entries = b"".join(parts)
    return _BLOCK.pack(len(entries), zlib.crc32(entries)) + entries


def read_blocks(data: bytes) -> Iterator[tuple[Changes, int]]:
    """Yield the changes of each whole block and where it ends; the rest is torn or not ours."""
    at = 0
    while at + _BLOCK.size <= len(data):
        length, checksum = _BLOCK.unpack_from(data, at)
        at += _BLOCK.size
        entries = data[at : at + length]
        if len(entries) < length or zlib.crc32(entries) != checksum:
            return
        changes = _read_entries(entries)
        if changes is None:
            return
        at += length
        yield changes, at


def _read_entries(data: bytes) -> Changes | None:
    changes: Changes = {}
    at = 0
    while at < len(data):
        if at + _ENTRY.size > len(data):
            return None
        key_bytes, value_bytes = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        value = None if value_bytes == _DELETED else data[at + key_bytes :][:value_bytes]
        end = at + key_bytes + len(value or b"")
        if end > len(data) or (value is not None and len(value) != value_bytes):
            return None
        changes[data[at : at + key_bytes]] = value
        at = end
    return changes
