"""What a process gives back while nobody asks it: memory that its next call takes again.

A model's activations leave the arena of the runtime, free heap goes back to the kernel, and the
code of libraries is unmapped: it lies in the page cache, from where the next call maps it again.
What was computed, weights and state, stays. Standard library only.
"""

from __future__ import annotations

import ctypes
import select
import socket
from typing import Final

IDLE_S: Final = 0.1
"""Without a call, before anything is given back: what comes in a burst pays nothing for it."""
CODE: Final = "r-xp"
_MADV_DONTNEED: Final = 4
_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def code() -> list[tuple[int, int]]:
    """Return where libraries' code is mapped from files: address and bytes of each part.

    To be called before a sandbox hides /proc; what is loaded later stays mapped.
    """
    found = []
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                area, mode, _, _, inode, *name = line.split(maxsplit=5)
                if mode == CODE and inode != "0" and name:
                    start, _, end = area.partition("-")
                    found.append((int(start, 16), int(end, 16) - int(start, 16)))
    except OSError:
        return []
    return found


def give_back(parts: list[tuple[int, int]]) -> None:
    """Let go of free heap, and of code until it runs again."""
    _libc.malloc_trim(0)
    for start, size in parts:
        # Nobody can have written there, so nothing is lost.
        _libc.madvise(start, size, _MADV_DONTNEED)


def quiet(sock: socket.socket) -> bool:
    """Whether nothing comes for a while."""
    return not select.select([sock], [], [], IDLE_S)[0]
