"""What waits for a worker, best first: higher priority, then earlier deadline, then first come."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from math import inf
from typing import Any, Final

Urgency = tuple[int, float]
"""Lower comes first: priority with its sign turned, deadline in milliseconds."""
LEAST: Final[Urgency] = (0, inf)
"""Of what no request waits for."""
FIRST: Final[Urgency] = (-1_000, 0.0)
"""Before every request: of what a moving task remembers, for which all its requests wait."""
Rank = tuple[int, float, int]
"""Lower comes first: priority with its sign turned, deadline in milliseconds, arrival."""


class Queue:
    """Runs by rank; each has a `rank` of its own that does not change while it waits."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: list[tuple[Rank, Any]] = []

    def __len__(self) -> int:
        return len(self._runs)

    def push(self, run: Any) -> None:
        """Let a run wait in its place."""
        insort(self._runs, (run.rank, run), key=_rank)

    def pop(self) -> Any:
        """Take the first out; there must be one."""
        return self._runs.pop(0)[1]

    def ahead(self, rank: Rank) -> int:
        """Return how many would be served before a rank."""
        return bisect_left(self._runs, rank, key=_rank)

    @property
    def last(self) -> Any:
        """The one that is worth least; there must be one."""
        return self._runs[-1][1]

    def remove(self, run: Any) -> bool:
        """Take a run out; return whether it waited here."""
        at = self.ahead(run.rank)
        found = at < len(self._runs) and self._runs[at][1] is run
        if found:
            del self._runs[at]
        return found

    def __iter__(self) -> Iterator[Any]:
        return (run for _, run in self._runs)

    def clear(self) -> None:
        """Forget all that wait."""
        self._runs.clear()


def _rank(entry: tuple[Rank, Any]) -> Rank:
    return entry[0]
