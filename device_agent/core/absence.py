"""What others published while this node was attached nowhere: it asks where it was attached.

The gateways of its cells have kept the last of it. What comes to the cell that was left also after
the node has asked is handed on for a while, until that of the new cell brings it. A cell of which
nothing comes is asked again, for a gateway that begins anew loses the question.
"""

from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

from device_agent.core.commands import Say
from device_agent.core.turn import Turn
from protocols.messages.mobility import MAX_FOLLOWED, CatchUp, Followed
from protocols.topics import Channel

LEFT_MS: Final = 10_000
"""A cell that was left so long ago hands nothing on any more."""
DOUBT_MS: Final = 10_000
"""So long a dead link may go unnoticed."""
LATE_MS: Final = 5000
"""What was asked for may take so long to come: a stay that was shorter may not have got it."""
ANSWER_MS: Final = 2000
"""A cell of which nothing has come for so long is asked again."""
AGAIN_MAX: Final = 3
"""So often after each move. Nothing may have been published."""
WAYS: Final = 3
"""Over brokers: of a value to the node, which leaves meanwhile, and of the question: twice."""
DUE: Final = ("catch up", "")

Topics = Sequence[tuple[str, Channel]]


class Absence:
    """The time in which this node was attached nowhere."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._since_ms: float | None = None
        self._left: dict[str, float] = {}
        """Cells that served until another one did, or it did anew, and when that was."""
        self._gap = 0.0, -inf
        """When the last absence began, and until when more of it is asked for."""
        self._topics: set[tuple[str, Channel]] = set()
        """What was asked for of it."""
        self._unheard: dict[str, list[tuple[str, Channel]]] = {}
        """By cell: what it was asked for since something came of it."""
        self._again = 0
        """How often cells were asked again since the last absence."""

    def begin(self) -> None:
        """Take note that the last attachment has ended."""
        if self._since_ms is None:
            self._since_ms = self._turn.now_ms

    def doubted(self) -> None:
        """Take note that it may have ended before that was noticed."""
        # Attached elsewhere it may not have heard there yet what came here.
        self.begin()
        if self._since_ms is not None:
            self._since_ms -= DOUBT_MS

    def end(self, left: str, followed: Iterable[tuple[str, Channel]]) -> None:
        """Ask for what was missed, at the cell that served before and those shortly before it."""
        since_ms, self._since_ms = self._since_ms, None
        now_ms, (before_ms, until_ms) = self._turn.now_ms, self._gap
        self._left = {one: at for one, at in self._left.items() if at > now_ms - LEFT_MS}
        self._left[left] = now_ms
        if since_ms is None:
            return
        if since_ms < until_ms - LEFT_MS + LATE_MS or self._unheard:
            since_ms = min(since_ms, before_ms)
        self._gap, self._topics = (since_ms, now_ms + LEFT_MS), set()
        self._unheard, self._again = {}, 0
        self.fed(followed)

    def fed(self, followed: Iterable[tuple[str, Channel]]) -> None:
        """Ask also for what feeds take in that are told anew after a move."""
        fresh = [one for one in followed if one not in self._topics]
        if not fresh or self._turn.now_ms >= self._gap[1]:
            return
        self._topics.update(fresh)
        for cell in self._left:
            self._unheard.setdefault(cell, []).extend(fresh)
            self._ask(cell, fresh)
        self._turn.timers.set(DUE, self._turn.now_ms + ANSWER_MS)

    def heard(self, cell: str) -> None:
        """Take note that the gateway of a cell has the question; empty: of whichever."""
        if cell:
            self._unheard.pop(cell, None)
        else:
            self._unheard.clear()

    def on_timer(self) -> None:
        """Ask the cells again of which nothing has come."""
        if self._again == AGAIN_MAX:
            self._unheard.clear()
        if not self._unheard:
            return
        self._again += 1
        if self._since_ms is None:
            for cell, topics in self._unheard.items():
                self._ask(cell, topics)
        self._turn.timers.set(DUE, self._turn.now_ms + ANSWER_MS)

    def _ask(self, cell: str, topics: Topics) -> None:
        turn = self._turn
        since_ms = self._gap[0] - WAYS * turn.round_trip_ms
        for first in range(0, len(topics), MAX_FOLLOWED):
            some = tuple(Followed(*one) for one in topics[first : first + MAX_FOLLOWED])
            asked = CatchUp(turn.cell, turn.now_ms - since_ms, some)
            turn.out.append(Say(Channel.CATCHUP, asked, "catch up", cell=cell))
