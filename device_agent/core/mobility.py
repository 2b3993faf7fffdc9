"""Mobility: which cell serves this node, and how it comes from one to the next.

    settled --command, condition, lost link--> seeking --welcome--> parting --complete--> settled
       ^                                          |
       +------------------nobody there------------+

*Seeking*, the node attaches to another cell while its own goes on serving it; the welcome of that
cell's scheduler makes it the serving one, at that moment and not before. *Parting*, the old
attachment still carries what comes and goes there, until the tasks have their owner at the new one
and what was under way is answered; then the node says farewell there. A node with one radio says
farewell before it seeks.

A lost link is the same without a command: at once where the network says that it is gone (carrier,
route, an error of the connection, doors that stay shut), else after `LOST_MS`, the node seeks the
best neighbour by what it has measured, then the others, the cell where it is at home last, round
after round, while the lost cell is tried as well. The first that welcomes it serves it.

An attempt that has said a birth elsewhere and came to nothing has left a higher incarnation there;
so the node attaches to its own cell anew, for the highest incarnation is where a node is.
"""

from collections import deque
from typing import Final

from msgspec import structs

from device_agent.core.commands import Attach, Detach, Place, Renew, Say, Serve
from device_agent.core.events import (
    AttachFailed,
    CellsMeasured,
    Connected,
    Disconnected,
    LinkUp,
    Received,
)
from device_agent.core.moves import Account, Conditions, Move, Node, Seek
from device_agent.core.neighbourhood import Neighbourhood
from device_agent.core.presence import Presence, PresenceState
from device_agent.core.timers import Key
from device_agent.core.turn import Turn
from protocols.messages.mobility import (
    CellPoint,
    HandoverCommand,
    HandoverComplete,
    HandoverFailed,
    HandoverTimes,
    Neighbours,
)
from protocols.messages.presence import Arrival, Death, RebirthRequest, Welcome
from protocols.topics import Channel

ATTACH_MS: Final = 5_000
"""From the first try to reach a cell to its welcome; then the cell counts as not reached."""
LINGER_MS: Final = 10_000
"""The longest that an old attachment stays beside the new one."""
LOOK_MS: Final = 50
"""How often a node that parts looks whether everything is answered."""
AFTER_MS: Final = 300
"""So long it hears the old cell after its farewell: by then the gateway carries what comes."""
LOST_MS: Final = 1_000
"""A link that is gone for so long is lost, as by 3GPP's T310; spread, as whole cells are lost."""
UNANSWERED: Final = 3
"""A serving broker that was tried so often in a row in vain, while a neighbour answers, and..."""
SILENT_MS: Final = 2_500
"""...from which nothing has come for so long, is lost; a shorter stall is waited out."""
ROUND_MS: Final = 2_000
"""Between two rounds in vain; spread, for a whole cell may be lost at once."""
ENDED_MAX: Final = 16
"""Handovers whose end is remembered: a command that comes once more is not obeyed again."""

_ATTACH: Final[Key] = ("move", "attach")
_PART: Final[Key] = ("move", "part")
_LOST: Final[Key] = ("move", "lost")


class Mobility:
    """The attachments of one node: one serves, at most one more is sought or parts."""

    def __init__(self, turn: Turn, node: Node, radios: int, home: str, place: Place) -> None:
        """Begin as served by the present cell; `place` is what the journal knows."""
        self._turn = turn
        self._node = node
        self._alone = radios == 1
        self._around = Neighbourhood(turn, home, place, alone=self._alone)
        offline = node.presence.state is PresenceState.OFFLINE
        self._up: set[str] = set() if offline else {turn.cell}
        """Cells with a connection."""
        self._apart_ms: float | None = None
        """Since when it has been attached nowhere; None: it is."""
        self._gone_ms = 0.0
        """How long it was attached nowhere since it was served last."""
        self._seek: Seek | None = None
        self._move: Move | None = None
        self._conditions = Conditions()
        self._ended: deque[str] = deque(maxlen=ENDED_MAX)
        self._unsaid: HandoverFailed | None = None
        self._broken = False
        """Whether the serving connection is known to lead nowhere."""
        self._account = Account(turn)

    @property
    def here(self) -> CellPoint:
        """The cell that serves."""
        return self._around.here

    @property
    def settled(self) -> bool:
        """Whether nothing is sought, and nothing is to be left."""
        return self._seek is None and self._move is None

    def started(self) -> None:
        """Give the cell that served before the node ended its time, then seek another one."""
        if self._around.others():
            self._turn.timers.set(_LOST, self._turn.now_ms + self._turn.spread(ATTACH_MS))

    # What schedulers say.

    def neighbours(self, body: Neighbours) -> None:
        """Take the cells around; an older word changes nothing."""
        if self._around.told(body) and not self._move:
            self._around.keep()

    def command(self, body: HandoverCommand) -> None:
        """Obey the scheduler that serves, or keep what it allows for later."""
        turn = self._turn
        if body.node != turn.node or body.incarnation != self._node.presence.incarnation:
            turn.counts["late handover"] += 1
            return
        if body.cancelled:
            self._conditions.drop(body.handover)
            return
        if body.handover in self._ended or (self._seek and self._seek.handover == body.handover):
            turn.counts["repeated handover"] += 1
            return
        until_ms = turn.now_ms + body.expires_ms
        if body.target.cell == turn.cell:
            self._failed(body.handover, f"cell {turn.cell} serves the node already")
        elif body.conditional:
            self._conditions.add(body, until_ms)
        else:
            self._execute(body, "commanded", until_ms)

    def complete(self, body: HandoverComplete) -> None:
        """Take note that the tasks have their owner here: the old attachment may end."""
        presence, move = self._node.presence, self._move
        if body.incarnation != presence.incarnation:
            self._turn.counts["late handover"] += 1
            return
        presence.arrival = None
        if move is None or move.complete_ms is not None:
            return
        move.complete_ms = self._turn.now_ms
        if move.old is not None:
            move.waits = self._node.under_way(move.old.cell)
        self._look()

    def aside(self, event: Received) -> None:
        """Take a command of a scheduler that does not serve this node: only a welcome counts."""
        seek, body = self._seek, event.body
        presence = seek.presence if seek is not None and seek.cell == event.cell else None
        if presence is not None and isinstance(body, Welcome):
            if presence.welcome(body, event.cause):
                self._arrived(presence, event, body)
        elif presence is not None and isinstance(body, RebirthRequest):
            presence.rebirth(body, event.cause)
        else:
            self._turn.counts["late command"] += 1

    def welcomed(self) -> None:
        """Take note that the serving cell has welcomed the node once more."""
        seek = self._seek
        if seek is not None and (seek.cell == self._turn.cell or not seek.handover):
            self._give_up("its own cell is back")
        failed, self._unsaid = self._unsaid, None
        if failed is not None:
            self._turn.out.append(Say(Channel.STATUS, failed, "handover"))

    def measured(self, levels: dict[str, float]) -> None:
        """Take the levels of cells, higher is better; a condition may hold by now."""
        self._around.measured(levels)
        due = self._conditions.due(levels, self._turn.cell, self._turn.now_ms)
        if due is not None and self._seek is None:
            self._execute(due.command, "its condition holds", due.until_ms)

    # What the shell says.

    def connected(self, event: Connected) -> bool:
        """Take a connection in; return whether it is that of the serving cell."""
        turn, seek = self._turn, self._seek
        cell = event.cell or turn.cell
        if cell == turn.cell and (not self._alone or seek is None or seek.cell == cell):
            self._back(seek)
            return True
        if seek is None or seek.cell != cell:
            turn.counts["late connection"] += 1
            turn.out.append(Detach(cell, at_once=True))
            return False
        if not self._up:
            self._node.heard()
        self._up.add(cell)
        self._together()
        turn.jitter = event.jitter
        seek.connected_ms = turn.now_ms
        presence = seek.presence
        if presence is None:
            presence = seek.presence = Presence(turn, self._node.birth, cell)
        presence.arrival = self._arrival(seek)
        presence.connected(event.incarnation)
        return False

    def _back(self, seek: Seek | None) -> None:
        """Be attached to the serving cell again, under the highest incarnation of all."""
        turn = self._turn
        self._up.add(turn.cell)
        self._together()
        if seek is None:
            self._gone_ms = 0.0
        turn.timers.cancel(_LOST)
        if seek is not None and seek.presence is not None:
            self._drop(seek, "its own cell is back")
            turn.timers.cancel(_ATTACH)
            self._seek = None
        if seek is not None and seek.born is not None:
            self._node.presence.arrival = Arrival(*seek.born)

    def disconnected(self, event: Disconnected) -> None:
        """Take the end of a connection in; that of the serving cell may be a lost link."""
        turn, seek, move = self._turn, self._seek, self._move
        cell = event.cell or turn.cell
        if cell not in self._up:
            return
        self._up.discard(cell)
        if seek is not None and seek.presence is not None and seek.cell == cell:
            seek.presence.disconnected()
        elif cell == turn.cell:
            self._node.unserved()
            self._lost(event.reason, at_once=self._broken or event.broken)
            self._broken = False
        elif move is not None and move.old is not None and move.old.cell == cell:
            self._leave(move)
            if turn.cell in self._up:
                self._node.cut(cell)
        if not self._up:
            self._silent()
        if cell == turn.cell:
            self._node.doubted()

    def broken(self, reason: str) -> None:
        """Seek another cell at once: the serving connection leads nowhere."""
        turn = self._turn
        if turn.cell in self._up and not self._broken and self._around.others():
            self._broken = True
            turn.out.append(Renew(turn.cell, reason))

    def unanswered(self, event: CellsMeasured) -> None:
        """Take in how the serving broker answers."""
        if event.unanswered >= UNANSWERED and event.silent_ms >= SILENT_MS:
            self.broken(f"the broker has not answered {event.unanswered} times")

    def link_up(self, event: LinkUp) -> None:
        """Take note that the way to the cell sought is there."""
        if self._seek is not None and self._seek.cell == event.cell:
            self._seek.link_ms = self._turn.now_ms

    def not_attached(self, event: AttachFailed) -> None:
        """Go on at once: the cell that is tried cannot be reached."""
        if self._seek is not None and self._seek.cell == event.cell:
            self._not_reached(event.text)

    def on_timer(self, subject: str) -> None:
        """Act on what is due."""
        seek = self._seek
        if subject == "part":
            self._look()
        elif subject == "told":
            self._account.due()
        elif subject == "lost":
            if (
                self._turn.cell not in self._up
                and seek is None
                and (points := self._around.round())
            ):
                self._begin(points, "the link was lost", "")
        elif seek is not None and seek.points:
            word = "did not welcome the node" if seek.cell in self._up else "was not reached"
            self._not_reached(f"it {word} in time")
        elif seek is not None:
            seek.points = self._around.round()
            if seek.points:
                self._try(seek)
            else:
                self._stay(seek)

    def birth_due(self, cell: str) -> None:
        """Say the birth to the cell sought once more."""
        seek = self._seek
        if seek is not None and seek.presence is not None and seek.cell == cell:
            seek.presence.on_timer()

    def farewell(self, reason: str) -> None:
        """Say at every other attachment that the node ends."""
        for cell in sorted(self._up - {self._turn.cell}):
            death = Death(reason, orderly=True)
            self._turn.out.append(Say(Channel.PRESENCE, death, cell=cell))

    # From a command, or a lost link, to a connection.

    def _execute(self, command: HandoverCommand, cause: str, until_ms: float) -> None:
        self._conditions.drop(command.handover)
        self._begin([command.target], cause, command.handover, until_ms)

    def _begin(
        self, points: list[CellPoint], cause: str, handover: str, until_ms: float = float("inf")
    ) -> None:
        """Seek a cell; what was sought or left before ends here."""
        turn = self._turn
        if self._move is not None:
            self._finish(self._move)
        before = self._seek
        if before is not None:
            self._drop(before, "another handover was begun")
        turn.timers.cancel(_LOST)
        since_ms = turn.now_ms if self._apart_ms is None else self._apart_ms
        if before is None:
            self._account.begin(since_ms)
        seek = self._seek = Seek(points, cause, handover, since_ms, until_ms)
        if before is not None:
            seek.born = before.born
        if self._alone:
            self._leave_first(seek)
        self._try(seek)

    def _leave_first(self, seek: Seek) -> None:
        """End the serving attachment: there is one radio."""
        turn, cell = self._turn, self._turn.cell
        attached = cell in self._up
        if attached:
            death = Death(seek.cause, orderly=True, moved_to=seek.cell)
            turn.out.append(Say(Channel.PRESENCE, death, "handover"))
            self._up.discard(cell)
            self._node.unserved()
            self._silent()
        turn.out.append(Detach(cell, at_once=not attached))

    def _try(self, seek: Seek) -> None:
        turn, point = self._turn, seek.points[0]
        seek.tried += 1
        seek.try_ms = turn.now_ms
        seek.link_ms = seek.connected_ms = seek.presence = None
        turn.out.append(Attach(point.cell, self._around.addresses(point)))
        turn.timers.set(_ATTACH, min(turn.now_ms + ATTACH_MS, seek.until_ms))

    def _not_reached(self, text: str) -> None:
        """Try the next cell; without one stay where the node is, or begin a new round."""
        turn, seek = self._turn, self._seek
        if seek is None or not seek.points:
            return
        self._withdraw(seek, text)
        cell = seek.points.pop(0).cell
        commanded = seek.handover
        if commanded:
            seek.handover, seek.until_ms = "", float("inf")
            self._failed(commanded, f"cell {cell}: {text}")
            if turn.cell not in self._up:
                # With one radio nobody else tries the cell that it has left.
                seek.points = self._around.fallbacks()
        if turn.cell in self._up:
            self._stay(seek)
        elif seek.points:
            self._try(seek)
        else:
            turn.timers.set(_ATTACH, turn.now_ms + turn.spread(ROUND_MS))

    def _withdraw(self, seek: Seek, text: str) -> None:
        """End the attachment that is being tried."""
        turn, cell = self._turn, seek.cell
        connected = cell in self._up
        if connected:
            self._up.discard(cell)
            if seek.presence is None:
                self._node.unserved()
            else:
                death = Death(text[:1000], orderly=True, moved_to=turn.cell)
                turn.out.append(Say(Channel.PRESENCE, death, "handover", cell=cell))
            if not self._up:
                self._silent()
        if seek.presence is not None:
            seek.presence.disconnected()
            seek.born = cell, seek.presence.incarnation
            seek.presence = None
        turn.out.append(Detach(cell, at_once=not connected))

    def _give_up(self, text: str) -> None:
        """Seek no more: the cell that serves is back."""
        seek = self._seek
        if seek is not None:
            if seek.cell != self._turn.cell:
                self._drop(seek, text)
            self._stay(seek)

    def _drop(self, seek: Seek, text: str) -> None:
        """End what is sought, for something else is wanted."""
        if seek.points:
            self._withdraw(seek, text)
        if seek.handover:
            self._failed(seek.handover, text)

    def _stay(self, seek: Seek) -> None:
        """Be served by the same cell as before."""
        turn, presence = self._turn, self._node.presence
        turn.timers.cancel(_ATTACH)
        self._seek = None
        if seek.born is not None and seek.born[1] > presence.incarnation:
            presence.arrival = Arrival(*seek.born)
            turn.out.append(Renew(turn.cell))

    def _lost(self, reason: str, *, at_once: bool) -> None:
        """Wait a little whether the link comes back; what is prepared for this is done at once."""
        if self._seek is not None:
            return
        turn = self._turn
        best = self._conditions.best(self._around.rank, turn.now_ms)
        if best is not None:
            self._execute(best.command, f"the link was lost: {reason}"[:1000], best.until_ms)
        elif self._around.others():
            turn.timers.set(_LOST, turn.now_ms + (0.0 if at_once else turn.spread(LOST_MS)))

    def _arrival(self, seek: Seek) -> Arrival:
        presence = self._node.presence
        attached = self._turn.cell in self._up
        return Arrival(
            self._turn.cell, max(0, presence.incarnation), seek.handover, attached=attached
        )

    # From the welcome to the farewell.

    def _arrived(self, presence: Presence, event: Received, body: Welcome) -> None:
        """Be served by the cell that was sought."""
        turn, seek = self._turn, self._seek
        if seek is None:
            return
        old, cell, point = self._node.presence, turn.cell, seek.points[0]
        attached = cell in self._up
        turn.timers.cancel(_ATTACH)
        turn.timers.cancel(_LOST)
        self._seek = None
        self._broken = False
        self._conditions.clear()
        if seek.handover:
            self._ended.append(seek.handover)
        turn.stores.pop(cell, None)
        turn.stores[cell] = turn.store_urls
        turn.serve(point.cell)
        turn.out.append(Serve(point.cell))
        if not attached and not self._alone:
            turn.out.append(Detach(cell, at_once=True))
        self._move = Move(self._times(seek, presence, cell), turn.now_ms, old if attached else None)
        self._gone_ms = 0.0
        self._around.entered(point)
        self._node.served(presence, event, body, apart=not attached)
        turn.timers.set(_PART, turn.now_ms + LINGER_MS)

    def _times(self, seek: Seek, presence: Presence, source: str) -> HandoverTimes:
        now_ms = self._turn.now_ms
        link_ms = seek.try_ms if seek.link_ms is None else seek.link_ms
        connected_ms = now_ms if seek.connected_ms is None else seek.connected_ms
        return HandoverTimes(
            seek.handover,
            presence.incarnation,
            source,
            seek.cell,
            seek.cause,
            seek.tried,
            seek.try_ms - seek.since_ms,
            link_ms - seek.try_ms,
            max(0.0, connected_ms - link_ms),
            now_ms - connected_ms,
            apart_ms=self._gone_ms,
        )

    def _silent(self) -> None:
        """Be attached nowhere."""
        self._apart_ms = self._turn.now_ms
        self._node.silent()

    def _together(self) -> None:
        """Be attached again."""
        if self._apart_ms is not None:
            self._gone_ms += self._turn.now_ms - self._apart_ms
            self._apart_ms = None

    def _look(self) -> None:
        """End the old attachment as soon as nobody needs it, or its time is over."""
        move, turn = self._move, self._turn
        if move is None:
            return
        left_ms = move.welcomed_ms + LINGER_MS - turn.now_ms
        waits = move.waits
        if move.old is not None and waits:
            waits = move.waits = waits & self._node.under_way(move.old.cell)
        if left_ms <= 0 or (move.complete_ms is not None and not waits):
            self._finish(move)
        else:
            wait_ms = LOOK_MS if move.complete_ms is not None else left_ms
            turn.timers.set(_PART, turn.now_ms + min(wait_ms, left_ms))

    def _finish(self, move: Move) -> None:
        """Take leave of the old cell, tell how it went, and keep where the node is now."""
        self._leave(move)
        self._move = None
        self._turn.timers.cancel(_PART)
        self._node.settled()
        self._around.keep()
        self._account.over(move)

    def _leave(self, move: Move) -> None:
        """End the old attachment; what was told of it is over."""
        turn, old = self._turn, move.old
        if old is None:
            return
        attached = old.cell in self._up
        if attached:
            death = Death(move.times.cause, orderly=True, moved_to=turn.cell)
            turn.out.append(Say(Channel.PRESENCE, death, "handover", cell=old.cell))
        turn.out.append(Detach(old.cell, AFTER_MS, at_once=not attached))
        self._up.discard(old.cell)
        if attached and not self._up:
            self._silent()
        old.disconnected()
        move.old, move.waits = None, None
        move.times = structs.replace(move.times, linger_ms=turn.now_ms - move.welcomed_ms)

    def _failed(self, handover: str, text: str) -> None:
        """Have the scheduler know that a handover did not happen, now or when one listens."""
        self._ended.append(handover)
        failed = HandoverFailed(handover, self._turn.node, text[:1000])
        seek, presence = self._seek, self._node.presence
        renewed = seek is not None and seek.born is not None
        if presence.welcomed and not renewed:
            self._turn.out.append(Say(Channel.STATUS, failed, "handover"))
        else:
            self._unsaid = failed
