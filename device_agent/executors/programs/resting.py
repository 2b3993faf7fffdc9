"""What a process gives back while nobody asks it: memory that its next call takes again.

A model's activations leave the arena of the runtime, free heap goes back to the kernel, and code
and constants of libraries and the weights of a model's form are let go: they lie in the page cache,
from where the next call maps them again. What was computed, and state, stays.

Standard library only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import socket
import time
from collections import deque
from typing import Final

IDLE_S: Final = 0.1
"""Without a call, before anything is given back: what comes in a burst pays nothing for it."""
CALLS: Final = 4
"""When none of so many came within that time, nobody waits for the next one."""
Part = tuple[int, int]
"""Address and bytes of a mapping."""
INODE, NAME = 3, 4
"""Words of a mapping's line behind the area: the file's number and name."""
WRITTEN: Final = frozenset({"Anonymous:", "Swap:"})
"""What of a mapping is not as the file has it."""
_M_MMAP_THRESHOLD: Final = -3
"""Of glibc's mallopt."""
_MAPPED_BYTES: Final = 128 << 10
_MADV_DONTNEED: Final = 4
_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23
_PR_SET_THP_DISABLE: Final = 41
_libc = ctypes.CDLL(None)
for _change in (_libc.madvise, _libc.mprotect):
    _change.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def maps() -> int:
    """Open the list of what this process has mapped, to be read after a sandbox has hidden it.

    -1 where there is none.
    """
    try:
        return os.open("/proc/self/smaps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def mapped(handle: int, file: str = "") -> tuple[list[Part], list[Part]]:
    """Return what lies in the page cache as well; closes `handle`.

    That is what this process has of files and may not write: first code and constants of libraries,
    then the `file` if it is told, which nobody can write to any more. What is mapped later stays in
    memory.
    """
    if handle < 0:
        return [], []
    found: dict[Part, bool] = {}
    part = 0, 0
    with open(handle, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            first, *rest = line.split(maxsplit=5)
            if not first.endswith(":"):
                start, _, end = first.partition("-")
                part = int(start, 16), int(end, 16) - int(start, 16)
                told = bool(file) and len(rest) > NAME and rest[NAME].rstrip("\n") == file
                if rest[0].endswith("p") and rest[INODE] != "0" and (told or "w" not in rest[0]):
                    found[part] = told
            elif first in WRITTEN and rest[0] != "0":
                # The loader has written there what the file does not know.
                found.pop(part, None)
    code = [one for one, told in found.items() if not told]
    of_file = [one for one, told in found.items() if told]
    return code, [one for one in of_file if not _libc.mprotect(*one, mmap.PROT_READ)]


def give_back(*mapped: list[Part]) -> None:
    """Let go of free heap, and of what is `mapped` until it is used again."""
    _libc.malloc_trim(0)
    for parts in mapped:
        leave(parts)


def map_large() -> None:
    """Have every large buffer from now on in a mapping of its own, which ends with it.

    Else the heap takes in what is as large as what was left before, and keeps the room of it.
    """
    _libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def leave(mapped: list[Part]) -> None:
    """Let go of what is `mapped` until it is used again."""
    for start, size in mapped:
        # Nobody can have written there, so nothing is lost.
        _libc.madvise(start, size, _MADV_DONTNEED)


def look_up(mapped: list[Part]) -> bool:
    """Have what is `mapped` in memory before it is used; False before Linux 5.14: it is not."""
    return not any(_libc.madvise(*one, _MADV_POPULATE_READ) for one in mapped)


def let_go(address: int, size: int) -> int:
    """Let go of what a piece of memory holds that is the caller's; it is zero when it is used.

    Returns up to where it was in memory, in bytes from the first whole page.
    """
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    pages = max(0, (address + size - start) // mmap.PAGESIZE)
    here = ctypes.create_string_buffer(pages)
    _libc.mincore(start, pages * mmap.PAGESIZE, here)
    _libc.madvise(start, pages * mmap.PAGESIZE, _MADV_DONTNEED)
    return (here.raw.rfind(b"\1") + 1) * mmap.PAGESIZE


def take_up(address: int, size: int) -> None:
    """Have so much of such a piece in memory before it is used; nothing before Linux 5.14."""
    start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    _libc.madvise(start, size, _MADV_POPULATE_WRITE)


def huge_pages(*, on: bool) -> None:
    """Have what is taken from now on come in large pages, where it asks for them, or not.

    They make a run faster; what stays between calls takes more in them.
    """
    _libc.prctl(_PR_SET_THP_DISABLE, int(not on), 0, 0, 0)


def readable(sock: socket.socket, wait_s: float = 0.0) -> bool:
    """Whether there is something to read, within that time."""
    return bool(select.select([sock], [], [], wait_s)[0])


class Lull:
    """Whether nothing comes for a while: waits for it only where waiting has been of use lately."""

    def __init__(self) -> None:
        self._soon = deque([True] * CALLS, CALLS)
        """Of the last calls: whether it came soon after the answer before it."""
        self._answered_s = 0.0

    def begins(self, sock: socket.socket, expected: bool = False) -> bool:
        """Wait a while for something to read; at once where no call came so soon of late.

        One that is `expected` is waited for.
        """
        return not readable(sock, IDLE_S if expected or any(self._soon) else 0.0)

    def answered(self) -> None:
        """Note that an answer was sent."""
        self._answered_s = time.monotonic()

    def heard(self) -> None:
        """Note that a call came."""
        self._soon.append(time.monotonic() - self._answered_s < IDLE_S)
