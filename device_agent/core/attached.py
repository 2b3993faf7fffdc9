"""The attachment that serves this node: what begins and ends with it.

With one cell there is no more to it; what there is beyond is in `mobility`, loaded with the first
word of another cell.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import structs

from device_agent.core.absence import Absence
from device_agent.core.commands import Place
from device_agent.core.events import AttachFailed, Connected, Disconnected, LinkUp, Received
from device_agent.core.jobs import JobEnds
from device_agent.core.outbox import Outbox
from device_agent.core.presence import Presence, PresenceState
from device_agent.core.replies import Replies
from device_agent.core.requests import Requests
from device_agent.core.turn import Turn, cell_of
from protocols.messages.mobility import HandoverCommand, HandoverComplete, Missed, Neighbours
from protocols.messages.presence import Arrival, Birth, RebirthRequest, Welcome
from protocols.messages.sense import LinkReport

if TYPE_CHECKING:
    from device_agent.core.cells import Surroundings
    from device_agent.core.events import CellsMeasured, PublishRefused
    from device_agent.core.feeder import Feeder
    from device_agent.core.mobility import Mobility


class Kept:
    """What waits for somebody to listen; `feeder` is there once the node feeds a service."""

    def __init__(self, outbox: Outbox, jobs: JobEnds, replies: Replies, requests: Requests) -> None:
        self.outbox = outbox
        self.jobs = jobs
        self.replies = replies
        self.requests = requests
        self.feeder: Feeder | None = None


class Attached:
    """Who serves this node, and what is kept while nobody does.

    `welcomed` is told of every welcome that counts, and whether another scheduler takes over.
    """

    def __init__(
        self,
        turn: Turn,
        kept: Kept,
        birth: Callable[[Arrival | None], Birth],
        welcomed: Callable[[Received, Welcome, bool], None],
        radios: int,
    ) -> None:
        self._turn = turn
        self._kept = kept
        self.birth = birth
        self._welcomed = welcomed
        self._radios = radios
        self._home = turn.cell
        self._mobility: Mobility | None = None
        self._surroundings: Surroundings | None = None
        self._absence = Absence(turn)
        self._spent: tuple[float, float, bool] | None = None
        """On measuring cells; None: it measures none."""
        self._refused = ""
        """What the broker has refused last, and why."""
        self.presence = Presence(turn, birth, turn.cell)

    @property
    def mobility(self) -> "Mobility":
        """Return who knows other cells; loaded with the first word of any."""
        if self._mobility is None:
            self._mobility = self._roam(Place())
        return self._mobility

    def _roam(self, place: Place) -> "Mobility":
        from device_agent.core.mobility import Mobility  # noqa: PLC0415 - few nodes move

        return Mobility(self._turn, self, self._radios, self._home, place)

    def restore(self, place: Place | None) -> None:
        """Be where the node was, unless its configuration has changed since."""
        if place is None or place.home != self._home:
            return
        if place.serving is not None:
            self._turn.serve(place.serving.cell)
            self.presence = Presence(self._turn, self.birth, place.serving.cell)
        self._mobility = self._roam(place)
        self._mobility.started()

    # What the shell and the schedulers say.

    def connected(self, event: Connected) -> None:
        """Begin a connection."""
        if self._mobility is not None and not self._mobility.connected(event):
            return
        self._turn.jitter = event.jitter
        self.presence.connected(event.incarnation)
        self.heard()
        if self._kept.feeder is not None:
            self._kept.feeder.flights.connected()

    def disconnected(self, event: Disconnected) -> None:
        """End a connection."""
        if self._mobility is not None:
            self._mobility.disconnected(event)
        else:
            self.unserved()
            self.silent()
            self.doubted()

    def welcome(self, event: Received, body: Welcome) -> None:
        """Take the scheduler's answer to a birth."""
        if self.presence.welcome(body, event.cause):
            self._listens(event, body, self.presence.cell, another=False)
            if self._mobility is not None:
                self._mobility.welcomed()

    def rebirth(self, body: RebirthRequest, cause: str) -> None:
        """Introduce the node again."""
        self._kept.outbox.offline()
        self._kept.jobs.offline()
        self.presence.rebirth(body, cause)

    def birth_due(self, cell: str) -> None:
        """Say the birth once more."""
        if self.presence.cell == cell:
            self.presence.on_timer()
        elif self._mobility is not None:
            self._mobility.birth_due(cell)

    def told(self, _event: Received, body: Neighbours | HandoverCommand | HandoverComplete) -> None:
        """Take a word of the serving scheduler about cells."""
        mobility = self.mobility
        if isinstance(body, Neighbours):
            mobility.neighbours(body)
            self._around().told(body, mobility.here)
        elif isinstance(body, HandoverCommand):
            mobility.command(body)
        else:
            mobility.complete(body)

    def _around(self) -> "Surroundings":
        if self._surroundings is None:
            from device_agent.core.cells import Surroundings  # noqa: PLC0415 - as above

            self._surroundings = Surroundings(self._turn)
        return self._surroundings

    def measured(self, event: "CellsMeasured") -> None:
        """Take in what was measured of the cells around."""
        mobility = self.mobility
        self._spent = event.bytes_per_s, event.cpu_percent, event.saving
        levels = self._around().measured(event, mobility.here, heard=self.presence.welcomed)
        mobility.measured(levels)
        mobility.unanswered(event)

    def refused(self, event: "PublishRefused") -> None:
        """Take note of what the broker does not let this node publish."""
        self._turn.counts["publish refused"] += 1
        self._refused = event.text

    def priced(self, link: LinkReport) -> LinkReport:
        """Return a report of the link with what waited or was refused, and what measuring took."""
        counts = self._turn.counts
        if counts["kept"]:
            link = structs.replace(link, kept=counts["kept"], kept_dropped=counts["kept dropped"])
        if counts["missed"]:
            link = structs.replace(link, missed=counts["missed"])
        thinned, replaced = counts["feed thinned"], counts["feed replaced"]
        if thinned or replaced:
            link = structs.replace(link, feed_thinned=thinned, feed_replaced=replaced)
        if self._refused:
            count = counts["publish refused"]
            link = structs.replace(link, refused=f"{self._refused}, {count} refused in all"[:1000])
        if self._spent is None:
            return link
        taken, cpu, saving = self._spent
        return structs.replace(
            link, cells_bytes_per_s=taken, cells_cpu_percent=cpu, cells_saving=saving
        )

    def broken(self, reason: str) -> None:
        """Take note that the serving connection cannot go on; without neighbours that is all."""
        if self._mobility is not None:
            self._mobility.broken(reason)

    def aside(self, event: Received) -> None:
        """Take a command from a cell that does not serve this node."""
        self.mobility.aside(event)

    def link_told(self, event: LinkUp | AttachFailed) -> None:
        """Take note of the link to a cell that is sought."""
        if isinstance(event, LinkUp):
            self.mobility.link_up(event)
        else:
            self.mobility.not_attached(event)

    def move_due(self, subject: str) -> None:
        """Act on what is due of a move."""
        self.mobility.on_timer(subject)

    def farewell(self, reason: str) -> None:
        """Say at other attachments that the node ends."""
        if self._mobility is not None:
            self._mobility.farewell(reason)

    # What mobility asks for.

    def unserved(self) -> None:
        """Keep what is for the scheduler: none listens."""
        self.presence.disconnected()
        self._kept.outbox.offline()
        self._kept.jobs.offline()

    def silent(self) -> None:
        """Keep what is for anybody: there is no attachment at all."""
        self._absence.begin()
        self._kept.replies.disconnected()
        if self._kept.feeder is not None:
            self._kept.feeder.sinks.disconnected()

    def doubted(self) -> None:
        """Say again what a lost link may not have carried."""
        self._absence.doubted()
        if self._kept.feeder is not None:
            self._kept.feeder.sinks.doubted()

    def cut(self, cell: str) -> None:
        """Ask for what may not have come from a cell that was lost while the node left it."""
        feeder = self._kept.feeder
        self._absence.doubted()
        self._absence.end(cell, feeder.followed if feeder is not None else ())

    def heard(self) -> None:
        """Send what was kept: there is an attachment again."""
        self._kept.replies.connected()
        if self._kept.feeder is not None:
            self._kept.feeder.sinks.connected()

    def served(self, presence: Presence, event: Received, body: Welcome, *, apart: bool) -> None:
        """Be served by the scheduler of another cell, which has just welcomed the node.

        `apart`: the old attachment is gone, so what is under way has to be asked for again.
        """
        source = self.presence.cell
        self.unserved()
        self.presence = presence
        if self._kept.feeder is not None:
            self._kept.feeder.moved(source, apart=apart)
        self._listens(event, body, source, another=True)

    @property
    def left(self) -> bool:
        """Whether the node has taken leave of the serving cell, or lost it."""
        return self.presence.state is PresenceState.OFFLINE

    def fed(self) -> None:
        """Take note that feeds were told."""
        if self._kept.feeder is not None:
            self._absence.fed(self._kept.feeder.followed)

    def missed(self, body: Missed) -> None:
        """Take note that a gateway hands on what was missed."""
        self._absence.heard(body.cell)

    def missed_due(self) -> None:
        """Ask again for what was missed, where nothing has come."""
        self._absence.on_timer()

    def settled(self) -> None:
        """Journal what a move has changed."""
        if self._kept.feeder is not None:
            self._kept.feeder.settled()

    def under_way(self, cell: str) -> frozenset[str]:
        """Return the requests of clients in a cell that are not answered yet."""
        live = self._kept.requests.admission.live.values()
        return frozenset(one.id for one in live if cell_of(one.reply_to) == cell)

    def _listens(self, event: Received, body: Welcome, before: str, *, another: bool) -> None:
        self._welcomed(event, body, another)
        self._kept.outbox.online()
        self._kept.jobs.online()
        feeder = self._kept.feeder
        self._absence.end(before, feeder.followed if feeder is not None else ())
