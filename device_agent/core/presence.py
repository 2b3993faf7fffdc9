"""Presence: birth, welcome and rebirth of this node at the scheduler of a cell.

    offline --connected--> unwelcomed --welcome--> welcomed
       ^                       |  ^                    |
       +------disconnected-----+--+----rebirth---------+

Unwelcomed, the birth is repeated with growing waits: the scheduler may not be up yet. A welcome
with another scheduler epoch than the last known is of a scheduler without memory, and one more
birth brings it the holdings. Rebirths are limited in rate, for a confused scheduler must not drive
the node. A welcome answers one incarnation; one of an older connection is ignored.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from device_agent.core.commands import Say, Warn
from device_agent.core.timers import Key
from device_agent.core.turn import Turn
from protocols.messages.presence import Arrival, Birth, RebirthRequest, Welcome
from protocols.topics import Channel

WELCOME_FIRST_MS: Final = 1_000
UNHEARD_MS: Final = 8_000
"""The wait with which the log says that nobody has answered: the fourth, after 7 s."""
WELCOME_MAX_MS: Final = 30_000
REBIRTH_MIN_MS: Final = 1_000
"""Between two births that the scheduler asked for."""
_UNHEARD: Final = (
    "the broker is there, but no scheduler of cell {cell} has answered since we came: does its "
    "controller run, and is that the name of the cell? the node tries on"
)


class PresenceState(StrEnum):
    """How far this node is known to its cell."""

    OFFLINE = "offline"
    UNWELCOMED = "unwelcomed"
    WELCOMED = "welcomed"


class Presence:
    """Says births until a scheduler answers; `birth` builds the message of the moment.

    Each cell that a node is attached to has one.
    """

    def __init__(self, turn: Turn, birth: Callable[[Arrival | None], Birth], cell: str) -> None:
        self._turn = turn
        self._birth = birth
        self._timer: Key = ("birth", cell)
        self.cell = cell
        self.arrival: Arrival | None = None
        """Where the node comes from, until its new scheduler has everything."""
        self.state = PresenceState.OFFLINE
        self.incarnation = -1
        self.scheduler = ""
        self.scheduler_epoch: int | None = None
        self._wait_ms = WELCOME_FIRST_MS
        self._last_birth_ms: float | None = None

    @property
    def welcomed(self) -> bool:
        """Whether a scheduler listens to this connection."""
        return self.state is PresenceState.WELCOMED

    def connected(self, incarnation: int) -> None:
        """Begin a connection with a birth."""
        self.state = PresenceState.UNWELCOMED
        self.incarnation = incarnation
        self._wait_ms = WELCOME_FIRST_MS
        self._say("connected")

    def disconnected(self) -> None:
        """End a connection; the broker publishes the will."""
        self.state = PresenceState.OFFLINE
        self._turn.timers.cancel(self._timer)

    def welcome(self, message: Welcome, cause: str) -> bool:
        """Take in a scheduler's answer; return whether it counts."""
        if self.state is PresenceState.OFFLINE or message.incarnation != self.incarnation:
            self._turn.counts["late welcome"] += 1
            return False
        forgot = self.scheduler_epoch not in (None, message.scheduler_epoch)
        self.scheduler = message.scheduler
        self.scheduler_epoch = message.scheduler_epoch
        self.state = PresenceState.WELCOMED
        self._wait_ms = WELCOME_FIRST_MS
        self._turn.timers.cancel(self._timer)
        if forgot:
            self.again(cause)
        return True

    def rebirth(self, message: RebirthRequest, cause: str) -> None:
        """Introduce the node again, for the scheduler does not know it."""
        if self.state is PresenceState.OFFLINE:
            return
        self.scheduler_epoch = message.scheduler_epoch
        self.state = PresenceState.UNWELCOMED
        self.again(cause)

    def again(self, cause: str) -> None:
        """Say birth again, now or as soon as the rate allows."""
        if self.state is PresenceState.OFFLINE:
            return
        last = self._last_birth_ms
        if last is None or self._turn.now_ms >= last + REBIRTH_MIN_MS:
            self._say(cause)
        else:
            self._turn.timers.set(self._timer, last + REBIRTH_MIN_MS)

    def on_timer(self) -> None:
        """Repeat the birth: no welcome has come, or a limited rebirth is due."""
        if self.state is PresenceState.UNWELCOMED:
            self._wait_ms = min(2 * self._wait_ms, WELCOME_MAX_MS)
            if self._wait_ms == UNHEARD_MS:
                self._turn.out.append(Warn(_UNHEARD.format(cell=self.cell)))
        self._say("no welcome")

    def _say(self, cause: str) -> None:
        turn = self._turn
        self._last_birth_ms = turn.now_ms
        turn.out.append(Say(Channel.PRESENCE, self._birth(self.arrival), cause, cell=self.cell))
        if self.state is PresenceState.UNWELCOMED:
            turn.timers.set(self._timer, turn.now_ms + turn.spread(self._wait_ms))
