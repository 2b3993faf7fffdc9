"""A node among cells, without a machine: brokers and schedulers that can go away, and be slow."""

from typing import Any

from device_harness import INVENTORY, NODE, manifest, of
from msgspec import Struct, field

from device_agent.core import commands, events
from device_agent.core.core import Core
from device_agent.core.presence import PresenceState
from protocols.messages import (
    Assign,
    Birth,
    Death,
    HandoverCommand,
    HandoverComplete,
    Neighbours,
    Welcome,
)
from protocols.messages.mobility import CellPoint
from protocols.topics import Channel

HOME = "a"
CELLS = ("a", "b", "c")


def point(cell: str) -> CellPoint:
    return CellPoint(cell, f"ts-{cell}", (f"mqtt://127.0.0.1:{ord(cell)}",), (f"http://{cell}",))


class Cell(Struct, eq=False):
    """A broker with its scheduler."""

    name: str
    reachable: bool = True
    welcomes: bool = True
    births: list[tuple[int, Birth]] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)
    owed: list[int] = field(default_factory=list)
    """Incarnations that wait for their welcome."""


class Roamer:
    """Drives a core among cells; `go` lets brokers and schedulers do what they can."""

    def __init__(self, radios: int = 2, restored: events.Restored | None = None) -> None:
        self.core = Core(
            node=NODE,
            agent_version="0",
            boot_id="b",
            inventory=INVENTORY,
            cell=HOME,
            radios=radios,
        )
        self.radios = radios
        self.now_ms = 1000.0
        self.cells = {one: Cell(one) for one in CELLS}
        place = restored.place if restored is not None else None
        here = place.serving.cell if place is not None and place.serving is not None else HOME
        self.sessions: dict[str, int] = {here: 0}
        """Incarnation of the connection with each cell; 0: the session tries."""
        self.serving = here
        self.incarnation = restored.incarnation if restored is not None else 0
        self.place: commands.Place | None = None
        self.said: list[commands.Command] = []
        self.served: list[str] = [here]
        self.handovers = 0
        self.tell(restored or events.Restored())

    # One event.

    def tell(self, event: events.Event) -> list[commands.Command]:
        return self._take(self.core.handle(event, self.now_ms))

    def _take(self, out: list[commands.Command]) -> list[commands.Command]:
        self.said += out
        renewed = []
        for command in out:
            if isinstance(command, commands.Renew):
                renewed.append(command.cell)
            self._do(command)
        self.check()
        for cell in renewed:
            self.drop(cell)
        return out

    def _do(self, command: commands.Command) -> None:
        match command:
            case commands.Attach(cell):
                assert cell not in self.sessions, "one attachment a cell"
                self.sessions[cell] = 0
            case commands.Detach(cell):
                self.sessions.pop(cell, None)
            case commands.Serve(cell):
                assert self.sessions.get(cell), "served where it is attached"
                self.serving = cell
                self.served.append(cell)
            case commands.KeepPlace(place):
                self.place = place
            case commands.Say():
                self._say(command)
            case _:
                pass

    def _say(self, command: commands.Say) -> None:
        cell = command.cell or self.serving
        incarnation = self.sessions.get(cell, 0)
        if not incarnation:
            return
        match command.body:
            case Birth() as birth:
                self.cells[cell].births.append((incarnation, birth))
                self.cells[cell].owed.append(incarnation)
            case Death() as death:
                self.cells[cell].deaths.append(death)
            case _:
                pass

    def check(self) -> None:
        core = self.core
        assert core.presence.cell == self.serving, "the core and its shell agree who serves"
        assert len(self.sessions) <= self.radios, f"{self.sessions}: more than its radios"
        if core.presence.welcomed:
            assert self.sessions.get(self.serving), "welcomed without a connection"

    # The world.

    def drop(self, cell: str) -> None:
        """Have the connection with a cell end; its session tries again."""
        if self.sessions.get(cell):
            self.sessions[cell] = 0
            self.tell(events.Disconnected("gone", cell))

    def measured(self, levels: dict[str, float]) -> None:
        """Have the levels of cells be these."""
        turn = self.core._turn
        turn.now_ms, turn.out = self.now_ms, []
        self.core.attached.mobility.measured(levels)
        self._take(turn.out)

    def cut(self, cell: str) -> None:
        """Have a cell out of reach from now on."""
        self.cells[cell].reachable = False
        self.drop(cell)

    def connect(self, cell: str) -> None:
        self.incarnation += 1
        self.sessions[cell] = self.incarnation
        self.tell(events.Connected(self.incarnation, 0.0, cell))

    def hear(self, cell: str, body: Any) -> list[commands.Command]:
        """Have the scheduler of a cell say something, if the node can hear it there."""
        if not self.sessions.get(cell):
            return []
        event = events.Received(
            Channel.COMMAND, f"ts-{cell}", 1, 0, "default", "test", body, cell=cell
        )
        return self.tell(event)

    def welcome(self, cell: str) -> list[commands.Command]:
        """Have a scheduler answer the newest birth."""
        owed = self.cells[cell].owed
        incarnation = owed[-1]
        owed.clear()
        urls = (f"http://{cell}",)
        return self.hear(cell, Welcome(f"ts-{cell}", ord(cell), incarnation, store_urls=urls))

    def go(self) -> None:
        """Let every broker and scheduler that can do its work."""
        moved = True
        while moved:
            moved = False
            for name in list(self.sessions):
                cell = self.cells[name]
                if name in self.sessions and not self.sessions[name] and cell.reachable:
                    self.connect(name)
                    moved = True
                if cell.owed and cell.welcomes and self.sessions.get(name):
                    self.welcome(name)
                    moved = True

    def after(self, ms: float) -> None:
        """Let time pass, with every tick on the way, while the world does its work."""
        until_ms = self.now_ms + ms
        self.go()
        while (due := self.core.next_due_ms) is not None and due <= until_ms:
            self.now_ms = max(self.now_ms, due)
            self.tell(events.Tick())
            self.go()
        self.now_ms = until_ms

    # What schedulers do.

    def join(self) -> None:
        """Be served at home, and know the neighbours."""
        self.go()
        self.neighbours(1)

    def neighbours(self, number: int) -> None:
        others = tuple(point(one) for one in CELLS if one != self.serving)
        self.hear(self.serving, Neighbours(number, others))

    def command(self, target: str, **more: Any) -> HandoverCommand:
        """Have the node told to go; return what it was told."""
        self.handovers += 1
        body = HandoverCommand(
            f"h{self.handovers}", NODE, point(target), self.core.presence.incarnation, **more
        )
        self.hear(self.serving, body)
        return body

    def complete(self) -> list[commands.Command]:
        body = HandoverComplete(f"h{self.handovers}", self.core.presence.incarnation)
        return self.hear(self.serving, body)

    def assign(self) -> None:
        """Have a task run."""
        self.hear(self.serving, Assign("t", "s", 1, 1, manifest()))
        for one in of(commands.FetchArtifact, self.said):
            self.tell(events.ArtifactReady(one.digest))
        for one in of(commands.StartInstance, self.said):
            self.tell(events.InstanceReady(one.instance))

    @property
    def welcomed(self) -> bool:
        return self.core.presence.state is PresenceState.WELCOMED

    def highest(self) -> str:
        """Return the cell with the highest incarnation that was ever born: where the node is."""
        return max((birth[0], name) for name, cell in self.cells.items() for birth in cell.births)[
            1
        ]
