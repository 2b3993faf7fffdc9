"""What a guest takes: large values are read into its memory, without being mapped beside it.

A read gives the interpreter up while it copies, leaves no mapping for all threads to forget, and
finds out when a value is shorter than it was said to be.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agent.executors.programs.stream import (
        Refusal,
        map_handle,
        open_value,
        sized,
    )
else:
    from stream import Refusal, map_handle, open_value, sized

Given = tuple[str, int, "tuple[int, ...]", "memoryview | Unread"]
"""Name, dtype number, shape, bytes."""


class Unread:
    """A large value that is to be read; its file is open as long as this object lives."""

    __slots__ = ("_handle", "_what", "nbytes")

    def __init__(self, path: str, size: int) -> None:
        """Open a file of exactly this size. Raises Refusal."""
        self._handle = -1
        self._handle = open_value(path)
        self._what = f"value {path}"
        self.nbytes = size
        sized(self._handle, size, self._what)

    def __del__(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)

    def into(self, room: memoryview) -> None:
        """Read it into a room of its size. Raises Refusal."""
        at = 0
        while at < self.nbytes:
            count = os.readv(self._handle, [room[at:]])
            if not count:
                text = f"{self._what} ends {self.nbytes - at} bytes too early"
                raise Refusal("fetch", "environment", text)
            at += count

    def mapped(self) -> memoryview:
        """Map it for reading instead. Raises Refusal."""
        return map_handle(os.dup(self._handle), self.nbytes, self._what)


def given(described: list[list[Any]], body: memoryview, blobs: str) -> dict[str, Given]:
    """Take the values of a frame apart, by name. Raises Refusal."""
    found: dict[str, Given] = {}
    at = 0
    for name, dtype, shape, size, file in described:
        if file:
            found[name] = name, dtype, tuple(shape), Unread(f"{blobs}/{file}", size)
        else:
            found[name] = name, dtype, tuple(shape), body[at : at + size]
            at += size
    return found


def put(value: memoryview | Unread, room: memoryview) -> None:
    """Copy a value into a room of its size. Raises Refusal."""
    if isinstance(value, Unread):
        value.into(room)
    else:
        room[:] = value
