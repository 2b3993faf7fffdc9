"""What `mobility` keeps of a cell that is sought, of a move and of conditions, and its core."""

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from device_agent.core.events import Received
from device_agent.core.presence import Presence
from protocols.messages.mobility import (
    MAX_CANDIDATES,
    CellPoint,
    HandoverCommand,
    HandoverTimes,
)
from protocols.messages.presence import Arrival, Birth, Welcome


class Node(Protocol):
    """What the core does for mobility."""

    presence: Presence
    """Towards the cell that serves."""

    def birth(self, arrival: Arrival | None) -> Birth:
        """Return the birth of the moment."""

    def unserved(self) -> None:
        """Keep what is for the scheduler: none listens."""

    def silent(self) -> None:
        """Keep what is for anybody: there is no attachment at all."""

    def heard(self) -> None:
        """Send what was kept: there is an attachment again."""

    def served(self, presence: Presence, event: Received, body: Welcome, *, apart: bool) -> None:
        """Be served by the scheduler that has just welcomed the node.

        `apart`: the old attachment is gone, so what is under way has to be asked for again.
        """

    def settled(self) -> None:
        """Keep what the move has changed: it is over."""

    def under_way(self, cell: str) -> frozenset[str]:
        """Return the requests of clients in a cell that are not answered yet."""


class Seek(Struct, eq=False):
    """A cell that is sought; the first point is the one being tried."""

    points: list[CellPoint]
    cause: str
    handover: str
    """Empty: without a command."""
    since_ms: float
    """The moment of the command, or of the loss."""
    until_ms: float
    """Of the command."""
    tried: int = 0
    try_ms: float = 0.0
    link_ms: float | None = None
    connected_ms: float | None = None
    presence: Presence | None = None
    """Towards the cell tried, once there is a connection."""
    born: tuple[str, int] | None = None
    """The last cell where a birth was said in vain, and under which incarnation."""

    @property
    def cell(self) -> str:
        """The cell being tried; empty between two rounds."""
        return self.points[0].cell if self.points else ""


class Move(Struct, eq=False):
    """A move whose end is still due."""

    times: HandoverTimes
    welcomed_ms: float
    old: Presence | None
    """Towards the cell before, while it is still attached there."""
    waits: frozenset[str] | None = None
    """Requests that the old attachment waits for; None: its tasks have no owner here yet."""
    complete_ms: float | None = None


class Condition(Struct, eq=False):
    """A handover that the node executes by itself."""

    command: HandoverCommand
    until_ms: float
    since_ms: float | None = None
    """Since when the condition has held without a break."""


class Conditions:
    """The handovers that the node executes by itself, `MAX_CANDIDATES` at most."""

    def __init__(self) -> None:
        self._all: dict[str, Condition] = {}

    def add(self, command: HandoverCommand, until_ms: float) -> None:
        """Keep a condition; the oldest makes room."""
        self._all[command.handover] = Condition(command, until_ms)
        while len(self._all) > MAX_CANDIDATES:
            del self._all[next(iter(self._all))]

    def drop(self, handover: str) -> None:
        """Forget one condition, if it is there."""
        self._all.pop(handover, None)

    def clear(self) -> None:
        """Forget them all."""
        self._all.clear()

    def due(self, levels: dict[str, float], here: str, now_ms: float) -> Condition | None:
        """Return the oldest that has held for its time; `levels` by cell, higher is better."""
        allowed = self._allowed(now_ms)
        self._all = {one.command.handover: one for one in allowed}
        serving = levels.get(here)
        for one in allowed:
            there = levels.get(one.command.target.cell)
            if serving is None or there is None or there - serving <= one.command.offset_db:
                one.since_ms = None
            elif one.since_ms is None:
                one.since_ms = now_ms
        held = (
            one
            for one in allowed
            if one.since_ms is not None and now_ms - one.since_ms >= one.command.time_to_trigger_ms
        )
        return next(held, None)

    def best(self, rank: Callable[[str], int], now_ms: float) -> Condition | None:
        """Return the one whose cell ranks first, whether its condition holds or not."""
        return min(
            self._allowed(now_ms), key=lambda one: rank(one.command.target.cell), default=None
        )

    def _allowed(self, now_ms: float) -> list[Condition]:
        return [one for one in self._all.values() if now_ms < one.until_ms]
