"""Who comes, in an orderly line: many births at once never make those wait who are here. Pure.

Theory of operation. A birth costs a scheduler many times what a report costs, and after the loss of
a cell, or its own restart, hundreds come at once. Each turn takes in what is urgent first: every
word of a node that does not wait in line. Births stand in line; a turn takes SLICE of them, and
PAUSE_MS later comes the next slice, so that whatever comes meanwhile waits for one slice at most.
When nobody waits a birth is taken in at once. Who brings tasks comes before who brings none, each
in the order of coming, and a newer birth takes the place of the one that waits. What a node says
after its birth waits behind it, unless the node is known without it.
"""

from collections.abc import Callable, Iterator
from typing import Final

from controller.decider import Received
from protocols.messages import Birth

SLICE: Final = 16
"""Births in one turn."""
PAUSE_MS: Final = 5
"""Between two slices."""
AFTER_MAX: Final = 32
"""Words of one node that wait behind its birth; the oldest is dropped, as if lost on its way."""


class Joins:
    """The line of nodes whose birth waits; `known` says whether a word counts without a birth."""

    def __init__(self, known: Callable[[Received], bool], counters: dict[str, int]) -> None:
        self._known = known
        self._counters = counters
        self._counters |= dict.fromkeys(("births_waited", "births_replaced", "words_outrun"), 0)
        self._bringing: dict[str, list[Received]] = {}
        """Nodes that bring tasks: the birth, and what came after it."""
        self._bare: dict[str, list[Received]] = {}
        self._open_ms = 0
        """When the next slice begins."""
        self._left = SLICE
        """How many more the present one takes."""

    def __len__(self) -> int:
        return len(self._bringing) + len(self._bare)

    @property
    def due_ms(self) -> int | None:
        """When the next slice begins; None: nobody waits."""
        return self._open_ms if self else None

    def admits(self, event: Received, now_ms: int) -> bool:
        """Return whether an event is to be handled now; else it stands in line."""
        waiting = self._bringing.get(event.sender) or self._bare.get(event.sender)
        if not isinstance(event.body, Birth):
            if waiting is None or self._known(event):
                return True
            if len(waiting) > AFTER_MAX:
                del waiting[1]
                self._counters["words_outrun"] += 1
            waiting.append(event)
            return False
        self._refill(now_ms)
        if waiting is not None:
            self._counters["births_replaced"] += 1
            if event.incarnation == waiting[0].incarnation:
                waiting[0] = event
            elif event.incarnation > waiting[0].incarnation:
                waiting[:] = [event]
            return False
        if self._left and not self:
            self._left -= 1
            return True
        self._counters["births_waited"] += 1
        line = self._bringing if event.body.holdings else self._bare
        line[event.sender] = [event]
        return False

    def next(self, now_ms: int) -> Iterator[Received]:
        """Yield what this turn takes from the line, in order."""
        self._refill(now_ms)
        while self and self._left:
            self._left -= 1
            line = self._bringing or self._bare
            yield from line.pop(next(iter(line)))

    def _refill(self, now_ms: int) -> None:
        if now_ms >= self._open_ms:
            self._open_ms, self._left = now_ms + PAUSE_MS, SLICE
