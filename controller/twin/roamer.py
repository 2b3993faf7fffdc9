"""A simulated node among several cells: the device's core, with the attachments that it asks for.

What `device_agent.roaming` does with sessions: a cell has one attachment at a time, which tries
until it stands or is ended; the core says which one serves.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from msgspec import Struct

from controller.twin.handover_faults import Way
from controller.twin.network import Network, topic_at
from controller.twin.node import CONNECT_AGAIN_MS, WILL_MS, SimNode
from device_agent.core import commands, events
from device_agent.core.core import Core
from protocols.codec import VERSION, Frame
from protocols.messages import Body, Death
from protocols.messages.mobility import CellMeasure
from protocols.topics import Channel, Party, Topic

LINK_MS: Final = (10, 60)
"""What a radio needs for the link to another cell."""


class _Line(Struct, eq=False):
    """The attachment to one cell."""

    cell: str
    incarnation: int = 0
    """Of its connection; 0: it tries."""
    over: bool = False


class Roamer(SimNode):
    """A device that is handed over from cell to cell."""

    cells: Mapping[str, Network] = {}
    radios = 2
    overhear: Callable[[str, Body], None] = staticmethod(lambda *_: None)
    """Told of every word before it leaves; the node may die of it."""
    went: Callable[[Way, str], None] = staticmethod(lambda *_: None)
    """Told of every other cell that serves it: why, and whether it was attached there before."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lines: dict[str, _Line] = {}
        self._home = self.network.cell

    # Life.

    def make_core(self) -> Core:
        """Return a core where the journal says that it was."""
        place = self.journal.place
        here = self._home
        if place is not None and place.home == self._home and place.serving is not None:
            here = place.serving.cell
        self._at(here)
        self._lines = {}
        return Core(
            node=self.name,
            agent_version="sim",
            boot_id=f"boot-{self._life}",
            inventory=self.hands.inventory,
            cell=self._home,
            radios=self.radios,
        )

    def _at(self, cell: str) -> None:
        """Have a cell as the one that serves."""
        self.network = self.cells[cell]
        self._topics = {
            channel: topic_at(cell, Party.NODE, self.name, channel) for channel in self._topics
        }

    @property
    def attached(self) -> bool:
        """Whether the cell that serves it is reached."""
        line = self._lines.get(self.network.cell)
        return line is not None and line.incarnation > 0

    @property
    def settled(self) -> bool:
        """Whether it is not on its way."""
        roams = self.core.attached._mobility if self.alive else None  # noqa: SLF001 - the twin looks into the core
        return self.alive and self.attached and (roams is None or roams.settled)

    @property
    def sought(self) -> str:
        """The cell that it is about to attach to; empty: none."""
        roams = self.core.attached._mobility if self.alive else None  # noqa: SLF001 - as above
        seek = roams._seek if roams is not None else None  # noqa: SLF001 - as above
        return seek.cell if seek is not None else ""

    def measure(self, levels: Mapping[str, float]) -> None:
        """Hear how strong cells are, in dBm."""
        measures = tuple(CellMeasure(cell, rsrp_dbm=level) for cell, level in levels.items())
        self.tell(events.CellsMeasured(measures))

    # Connections.

    def _connect(self) -> None:
        if self.network.cell not in self._lines:
            self._open(self.network.cell)

    def _open(self, cell: str) -> None:
        line = self._lines[cell] = _Line(cell)
        self.later(self.world.dice.randint(*LINK_MS), partial(self._try, line))

    def _try(self, line: _Line) -> None:
        """Connect, or try again soon."""
        network = self.cells[line.cell]
        if line.over or line.incarnation:
            return
        if not network.reachable(self.name):
            self.later(self.world.dice.randint(*CONNECT_AGAIN_MS), partial(self._try, line))
            return
        self._incarnation += 1
        line.incarnation = self._incarnation
        for channel in (Channel.COMMAND, Channel.INVOKE):
            topic = topic_at(line.cell, Party.NODE, self.name, channel)
            network.listen(self.name, topic, partial(self._hear_at, line))
        self.tell(events.Connected(line.incarnation, self.world.dice.random(), line.cell))

    def _hear_at(self, line: _Line, topic: Topic, frame: Frame) -> None:
        if line.over or not line.incarnation:
            return
        self._take_in(topic, frame, line.cell)

    def lose_connection(self, will_ms: int | None = WILL_MS) -> None:
        """Have the connection to the serving cell end under a living node."""
        self._lose(self.network.cell, will_ms)

    def _lose(self, cell: str, will_ms: int | None) -> None:
        line = self._lines.get(cell)
        if line is None or not line.incarnation:
            return
        self._hang(line, will_ms)
        if self.alive:
            self.later(self.world.dice.randint(*CONNECT_AGAIN_MS), partial(self._try, line))
            self.tell(events.Disconnected("the connection was lost", cell))

    def _hang(self, line: _Line, will_ms: int | None) -> None:
        """End a connection; its broker publishes the will, or with None does not."""
        network, incarnation = self.cells[line.cell], line.incarnation
        if incarnation:
            network.leave(self.name)
            if will_ms is not None:
                self.world.after(will_ms, partial(self._say_will_at, network, incarnation))
        line.incarnation = 0

    def _hang_up(self, will_ms: int | None) -> None:
        for line in self._lines.values():
            self._hang(line, will_ms)
            line.over = True
        self._lines = {}

    def _say_will_at(self, network: Network, incarnation: int) -> None:
        death = Death("the connection was lost")
        frame = Frame(VERSION, self.name, incarnation, 0, "default", "will", death)
        topic = topic_at(network.cell, Party.NODE, self.name, Channel.PRESENCE)
        network.publish(self.name, topic, frame, by_broker=True)

    # What the core wants.

    def _move(self, command: commands.Command) -> None:
        match command:
            case commands.Attach(cell=cell):
                if cell not in self._lines:
                    self._open(cell)
            case commands.Serve(cell=cell):
                if cell != self.network.cell:
                    self._at(cell)
                    self.went(*self._how())
            case commands.Renew(cell=cell):
                self._lose(cell, None)
            case commands.Detach(cell=cell, after_ms=after_ms):
                line = self._lines.get(cell)
                if line is not None:
                    self.later(after_ms, partial(self._detach, line))

    def _how(self) -> tuple[Way, str]:
        """Return why the node has come here, and how."""
        roams = self.core.attached._mobility  # noqa: SLF001 - as above
        move = roams._move if roams is not None else None  # noqa: SLF001 - as above
        times = move.times if move is not None else None
        if times is None or not times.handover:
            way = Way.LOST
        elif times.cause != "commanded":
            way = Way.CONDITIONAL
        else:
            # Those of schedulers are named after them.
            way = Way.MEASURED if times.handover.startswith("ts-") else Way.BY_HAND
        if move is not None and move.old is not None:
            return way, "make before break"
        return way, "re-established" if way is Way.LOST else "break before make"

    def _detach(self, line: _Line) -> None:
        if self._lines.get(line.cell) is line:
            del self._lines[line.cell]
            self._hang(line, None)
        line.over = True

    def _say_at(self, topic: Topic, body: Body, cause: str) -> None:
        """Say something over the attachment to its cell, else over the one that serves."""
        line = self._lines.get(topic.cell)
        if line is None or not line.incarnation:
            line = self._lines.get(self.network.cell)
        if line is None or not line.incarnation:
            return
        self.overhear(self.name, body)
        if not self.alive:
            return
        self._number += 1
        frame = Frame(
            VERSION, self.name, line.incarnation, self._number, "default", cause[:128], body
        )
        self.cells[line.cell].publish(self.name, topic, frame)
