"""Timers by key: the core says when it wants to be woken, and the shell wakes it with a `Tick`."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Final

Key = tuple[str, str]
"""(what is due, for whom)."""

SLACK: Final = 64
"""Cancelled entries that may stay in the heap beyond as many as are live."""


class Timers:
    """Each key is due at one time; setting it again moves it. Memory follows the live keys."""

    __slots__ = ("_due", "_heap")

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: Key) -> bool:
        return key in self._due

    def set(self, key: Key, at_ms: float) -> None:
        """Have `key` due at `at_ms`."""
        self._due[key] = at_ms
        heappush(self._heap, (at_ms, key))
        if len(self._heap) > 2 * len(self._due) + SLACK:
            self._heap = [(due, one) for one, due in self._due.items()]
            heapify(self._heap)

    def cancel(self, key: Key) -> None:
        """Forget `key`; an unknown one is fine."""
        self._due.pop(key, None)

    def next_ms(self) -> float | None:
        """Return when the next key is due; None when there is none."""
        heap, due = self._heap, self._due
        while heap and due.get(heap[0][1]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now_ms: float) -> Iterator[Key]:
        """Yield and forget every key that is due."""
        while (at_ms := self.next_ms()) is not None and at_ms <= now_ms:
            key = heappop(self._heap)[1]
            del self._due[key]
            yield key
