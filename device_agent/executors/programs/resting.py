"""What a process gives back while nobody asks it: memory that its next call takes again.

A model's activations leave the arena of the runtime, free heap goes back to the kernel, and the
code of libraries and the weights of a model's form are let go: they lie in the page cache, from
where the next call maps them again. What was computed, and state, stays. Standard library only.
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
CODE: Final = "r-xp"
_MADV_DONTNEED: Final = 4
_libc = ctypes.CDLL(None)
for _change in (_libc.madvise, _libc.mprotect):
    _change.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def maps() -> int:
    """Open the list of what this process has mapped, to be read after a sandbox has hidden it.

    -1 where there is none.
    """
    try:
        return os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def mapped(handle: int, file: str = "") -> list[tuple[int, int]]:
    """Return what lies in the page cache as well, address and bytes of each part; closes `handle`.

    That is libraries' code, and the `file` if it is told: nobody can write to that any more. What
    is mapped later stays in memory.
    """
    if handle < 0:
        return []
    found = []
    with open(handle, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            area, mode, _, _, inode, *rest = line.split(maxsplit=5)
            name = rest[0].rstrip("\n") if rest else ""
            start, _, end = area.partition("-")
            part = int(start, 16), int(end, 16) - int(start, 16)
            code = mode == CODE and inode != "0" and name
            if code or (file and name == file and _libc.mprotect(*part, mmap.PROT_READ) == 0):
                found.append(part)
    return found


def give_back(parts: list[tuple[int, int]]) -> None:
    """Let go of free heap, and of what is `mapped` until it is used again."""
    _libc.malloc_trim(0)
    for start, size in parts:
        # Nobody can have written there, so nothing is lost.
        _libc.madvise(start, size, _MADV_DONTNEED)


class Lull:
    """Whether nothing comes for a while: waits for it only where waiting has been of use lately."""

    def __init__(self) -> None:
        self._soon = deque([True] * CALLS, CALLS)
        """Of the last calls: whether it came soon after the answer before it."""
        self._answered_s = 0.0

    def begins(self, sock: socket.socket) -> bool:
        """Wait a while for something to read; at once where no call came so soon of late."""
        wait_s = IDLE_S if any(self._soon) else 0.0
        return not select.select([sock], [], [], wait_s)[0]

    def answered(self) -> None:
        """Note that an answer was sent."""
        self._answered_s = time.monotonic()

    def heard(self) -> None:
        """Note that a call came."""
        self._soon.append(time.monotonic() - self._answered_s < IDLE_S)
