"""What a model remembers between runs, in a file that outlives the process which runs it.

    u64 number of states written | half 0 | half 1        a half: u32 length | bytes

Each state goes to the half that does not hold the last one, and counts when the number says so: a
process that is killed while it writes leaves the state before. A state is a row of tensors:
`u8 rank | rank x i64 | data`, in the order of the manifest's `carries`. Nothing is forced to the
disk: it outlives processes, not power.

The device agent makes it and uses this file too; standard library only.
"""

from __future__ import annotations

import os
import struct
from typing import Final

_NUMBER: Final = struct.Struct("<Q")
_LENGTH: Final = struct.Struct("<I")
_TRIES: Final = 16
"""How often a state that is written anew meanwhile is read again."""

Tensor = tuple["tuple[int, ...]", bytes]
"""Shape, bytes."""


class Memory:
    """A file with two states; whoever has the descriptor shares it."""

    def __init__(self, handle: int, state_bytes: int) -> None:
        self.handle = handle
        self.state_bytes = state_bytes

    @classmethod
    def at(cls, path: str, state_bytes: int) -> Memory:
        """Open the file of a task, anew if it was for states of another size. Raises OSError."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        size = _NUMBER.size + 2 * (_LENGTH.size + state_bytes)
        if os.fstat(handle).st_size != size:
            os.ftruncate(handle, 0)
            os.ftruncate(handle, size)
        return cls(handle, state_bytes)

    @classmethod
    def kept(cls, path: str) -> Memory:
        """Open the file of a task that is there. Raises OSError, ValueError when it is not ours."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        state_bytes, odd = divmod(os.fstat(handle).st_size - _NUMBER.size, 2)
        if odd or state_bytes < _LENGTH.size:
            os.close(handle)
            raise ValueError("it has the size of no state")
        return cls(handle, state_bytes - _LENGTH.size)

    def _half(self, number: int) -> int:
        return _NUMBER.size + number % 2 * (_LENGTH.size + self.state_bytes)

    def _number(self) -> int:
        number: int = _NUMBER.unpack(os.pread(self.handle, _NUMBER.size, 0))[0]
        return number

    def read(self) -> bytes:
        """Return the last state; empty when there is none. Raises TimeoutError."""
        for _ in range(_TRIES):
            number = self._number()
            at = self._half(number)
            size = _LENGTH.unpack(os.pread(self.handle, _LENGTH.size, at))[0]
            state = os.pread(self.handle, min(size, self.state_bytes), at + _LENGTH.size)
            if self._number() == number:
                return state
        raise TimeoutError("the state changes faster than it is read")

    def write(self, state: bytes) -> None:
        """Put a state in place of the last one. Raises ValueError when it is too large."""
        if len(state) > self.state_bytes:
            raise ValueError(f"the state takes {len(state)} bytes, {self.state_bytes} are allowed")
        number = self._number() + 1
        os.pwrite(self.handle, _LENGTH.pack(len(state)) + state, self._half(number))
        os.pwrite(self.handle, _NUMBER.pack(number), 0)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.handle)


def pack(tensors: list[Tensor]) -> bytes:
    """Return tensors as a state."""
    parts = []
    for shape, data in tensors:
        parts.append(struct.pack(f"<B{len(shape)}q", len(shape), *shape))
        parts.append(data)
    return b"".join(parts)


def unpack(state: bytes, item_bytes: list[int]) -> list[Tensor]:
    """Take a state apart, by the bytes of one element of each tensor. Raises ValueError."""
    found: list[Tensor] = []
    at = 0
    for item in item_bytes:
        rank = state[at] if at < len(state) else 0
        end = at + 1 + 8 * rank
        if end > len(state):
            raise ValueError("the state is cut off")
        shape = struct.unpack_from(f"<{rank}q", state, at + 1)
        size = item
        for axis in shape:
            size *= axis
        if min(shape, default=0) < 0 or end + size > len(state):
            raise ValueError("the state has other shapes than its bytes allow")
        found.append((shape, state[end : end + size]))
        at = end + size
    if at != len(state):
        raise ValueError(f"the state has {len(state) - at} bytes too many")
    return found
