"""What `mobility` keeps of a cell that is sought, of a move and of conditions, and its core."""

from collections.abc import Callable
from typing import Final, Protocol

from msgspec import Struct, structs

from device_agent.core.commands import Say
from device_agent.core.events import Received
from device_agent.core.presence import Presence
from device_agent.core.timers import Key
from device_agent.core.turn import Turn
from protocols.messages.mobility import (
    MAX_CANDIDATES,
    CellPoint,
    HandoverCommand,
    HandoverTimes,
)
from protocols.messages.presence import Arrival, Birth, Welcome
from protocols.topics import Channel

STREAM_MS: Final = 10_000
"""Who was answered so long ago counts as asking on: that long a dead link may go unnoticed."""
TELL_MS: Final = 1_000
"""So long after a move it is told of, and so often it is looked whether anybody was answered."""

_TELL: Final[Key] = ("move", "told")


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

    def cut(self, cell: str) -> None:
        """Ask for what may not have come from a cell that was lost while the node left it."""

    def doubted(self) -> None:
        """Say again what a lost link may not have carried."""

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


class Account:
    """What a move has cost: how long answers were apart, what was asked and said again.

    Answers may stay away for longer than the move takes, so it is told a moment after its end.
    """

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._streams = False
        """Whether anybody was answered before."""
        self._spacing_ms = 0.0
        self._counts = (0, 0)
        self._times: HandoverTimes | None = None
        self._over_ms = 0.0

    def begin(self, since_ms: float) -> None:
        """Count from now on; the node was attached until then."""
        self.tell()
        turn = self._turn
        self._streams = since_ms - turn.answered_ms <= STREAM_MS
        self._spacing_ms, turn.silence_ms, turn.stood_ms = turn.spacing_ms, 0.0, 0
        self._counts = self._now()

    def _now(self) -> tuple[int, int]:
        counts = self._turn.counts
        return counts["asked again"], counts["said again"]

    def over(self, move: Move) -> None:
        """Take in the times of a move that has ended, and tell of it soon."""
        times = move.times
        if move.complete_ms is not None:
            times = structs.replace(times, complete_ms=move.complete_ms - move.welcomed_ms)
        self._times, self._over_ms = times, self._turn.now_ms
        if self._streams:
            self._turn.timers.set(_TELL, self._over_ms + TELL_MS)
        else:
            self.tell()

    def due(self) -> None:
        """Tell, unless the first answer after the move is still waited for."""
        turn = self._turn
        if turn.answered_ms < self._over_ms and turn.now_ms < self._over_ms + STREAM_MS:
            turn.timers.set(_TELL, turn.now_ms + TELL_MS)
        else:
            self.tell()

    def tell(self) -> None:
        """Tell the scheduler of the last move, if that is still to be done."""
        times, self._times = self._times, None
        if times is None:
            return
        turn = self._turn
        turn.timers.cancel(_TELL)
        asked, said = (now - before for now, before in zip(self._now(), self._counts, strict=True))
        stood_ms = turn.stood_ms or None
        times = structs.replace(times, asked_again=asked, said_again=said, client_gap_ms=stood_ms)
        if self._streams and turn.silence_ms:
            times = structs.replace(times, gap_ms=turn.silence_ms, spacing_ms=self._spacing_ms)
        turn.out.append(Say(Channel.STATUS, times, "handover"))


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
