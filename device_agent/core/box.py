"""What waits for a connection, in order, within a bound of number and bytes."""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Box(Generic[T]):
    """Messages with an end each; the oldest make room."""

    __slots__ = ("_all", "_bytes", "_most", "_most_bytes")

    def __init__(self, most: int, most_bytes: int) -> None:
        self._all: deque[tuple[float, int, T]] = deque()
        self._bytes = 0
        self._most = most
        self._most_bytes = most_bytes

    def put(self, said: T, size_bytes: int, until_ms: float) -> int:
        """Keep a message until a time; return how many had to go."""
        kept, gone = self._all, 0
        kept.append((until_ms, size_bytes, said))
        self._bytes += size_bytes
        while len(kept) > self._most or self._bytes > self._most_bytes:
            self._bytes -= kept.popleft()[1]
            gone += 1
        return gone

    def take(self, now_ms: float) -> tuple[list[T], int]:
        """Empty it; return what still counts, in order, and how many came too late."""
        found = [said for until_ms, _, said in self._all if until_ms > now_ms]
        late = len(self._all) - len(found)
        self._all.clear()
        self._bytes = 0
        return found, late
