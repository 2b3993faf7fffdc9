"""Attachments to other cells: made, given the service, ended, as the core says.

Loaded with the first of them. A cell has one attachment at a time; with one radio the whole node
has, and the next one waits until the last has ended.
"""

import asyncio
import logging
import socket
from collections.abc import Coroutine
from typing import Any, Final, Protocol

from msgspec import structs

from device_agent.core import commands, events
from device_agent.sensing.cells import CellSensor
from protocols.errors import EnvironmentFailure
from protocols.messages.mobility import CellMeasure
from protocols.transport.backoff import Policy
from protocols.transport.session import Session
from protocols.transport.settings import Settings
from protocols.transport.sockets import open_socket

SEEKING: Final = Policy(first_ms=50, cap_ms=400)
"""A cell that is sought has a few seconds; who serves is approached at the usual pace again."""
SWITCH_MS: Final = 10_000
"""What the program that switches the link may take."""
FLUSH_MS: Final = 500
"""For the acknowledgement of a farewell."""

log = logging.getLogger("tona.node")


class Node(Protocol):
    """What the daemon does for its attachments."""

    session: Session
    """The one that serves."""

    @property
    def signal_dbm(self) -> float | None:
        """Of the interface that leads to the serving cell."""

    def open(self, settings: Settings) -> Session:
        """Return a session with the broker of a cell, not running yet."""

    def serve(self, session: Session) -> None:
        """Be served in the cell of a session."""

    def watch_line(self) -> None:
        """Sense the link that leads to the broker of the serving cell."""

    def note(self, coming: Settings | None) -> None:
        """Say beside the node where it is attached, and to which cell it is about to be."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside; a fault in it ends the daemon."""

    def tell(self, event: events.Event) -> None:
        """Hand the core an event."""


class Roaming:
    """Every attachment but the serving one."""

    def __init__(
        self, node: Node, home: Settings, radios: int, switch: str, radio: str, keeps: bool
    ) -> None:
        """`switch` is the program that brings a link up; empty: the link is there.

        `radio` is who tells the signals of cells, as in `CellSensor`; `keeps` whether connections
        outlive the switch, which then comes last.
        """
        self._node = node
        self._home = home
        self._alone = radios == 1
        self._program = switch
        self._radio = radio
        self._keeps = keeps
        self._sensor: CellSensor | None = None
        self.others: dict[str, Session] = {}
        """Running ones, by cell."""
        self._seeking: dict[str, asyncio.Event] = {}
        """Cells whose attachment is being made; set: it is not wanted any more."""
        self._ending: dict[str, tuple[asyncio.Event, asyncio.Event]] = {}
        """Of attachments that end: not to be waited for any longer, and over."""
        self._came_to = ""
        """Where the link was brought before it was known that this cell serves."""
        self._following = asyncio.Event()
        """Set: the link need not follow to the cell that served last."""
        self._left: Session | None = None
        """The last that served and was ended before another did."""

    def settings(self, cell: str, urls: tuple[str, ...]) -> Settings:
        """Return how to reach a cell. Raises EnvironmentFailure."""
        home = self._home
        if not urls:
            return home
        places = [_parse(one, secured=home.tls is not None) for one in urls]
        opener = home.open_socket or open_socket

        async def first_that_answers(settings: Settings) -> socket.socket:
            failure: OSError | None = None
            for host, port in places:
                try:
                    return await opener(structs.replace(settings, host=host, port=port))
                except OSError as error:
                    failure = error
            raise failure or OSError("no address")

        host, port = places[0]
        opens = first_that_answers if len(places) > 1 else home.open_socket
        return structs.replace(home, cell=cell, host=host, port=port, open_socket=opens)

    def way(self, cell: str) -> Session:
        """Return the attachment for a topic of a cell: its own, or the one that serves, or any."""
        serving = self._node.session
        other = self.others.get(cell)
        if other is not None and other.connected:
            return other
        if not serving.connected:
            return next((one for one in self.others.values() if one.connected), serving)
        return serving

    def attach(self, command: commands.Attach) -> None:
        """Begin an attachment to another cell."""
        stop = self._seeking[command.cell] = asyncio.Event()
        self._node.spawn(self._attach(command, stop))

    async def _attach(self, command: commands.Attach, stop: asyncio.Event) -> None:
        cell = command.cell
        try:
            settings = self.settings(cell, command.urls)
            await self._all_over("" if self._alone else cell)
            # While the present link carries, the next cell is reached over it.
            ahead = self._keeps and self._node.session.connected
            if self._program and not ahead and not stop.is_set():
                await self._switch(settings, stop)
                self._came_to = cell
        except EnvironmentFailure as error:
            log.warning("cell %s: %s", cell, error)
            if not stop.is_set():
                self._node.tell(events.AttachFailed(cell, str(error)))
            return
        if stop.is_set():
            return
        del self._seeking[cell]
        session = self._node.open(structs.replace(settings, backoff=SEEKING))
        if cell == self._node.session.settings.cell:
            # The cell that was left last, with one radio: nobody else serves.
            self._settle(session)
            self._node.serve(session)
        else:
            self.others[cell] = session
            self._node.note(settings)
        self._node.tell(events.LinkUp(cell))
        self._node.spawn(session.run())

    async def _all_over(self, cell: str) -> None:
        """Wait until the attachment to a cell, or to any, has ended; hurry it."""
        for one, (hurry, over) in list(self._ending.items()):
            if cell in {"", one}:
                hurry.set()
                await over.wait()

    async def _switch(self, settings: Settings, stop: asyncio.Event) -> None:
        """Have the program bring the link up. Raises EnvironmentFailure."""
        program, place = self._program, (settings.cell, settings.host, str(settings.port))
        try:
            process = await asyncio.create_subprocess_exec(
                program, *place, stdin=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise EnvironmentFailure(f"{program} cannot be run: {error.strerror}") from None
        stopped = asyncio.ensure_future(stop.wait())
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait(
                (ended, stopped), timeout=SWITCH_MS / 1000, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            stopped.cancel()
            if process.returncode is None:
                process.kill()
        if not ended.done():
            await ended
            raise EnvironmentFailure(f"{program} had {SWITCH_MS} ms for the link")
        if process.returncode:
            raise EnvironmentFailure(f"{program} ended with code {process.returncode}")

    def serve(self, command: commands.Serve) -> None:
        """Give an attachment the service; the one before it stays beside."""
        session = self.others.pop(command.cell, None)
        if session is None:
            return
        before = self._node.session
        if before is not self._left and before.settings.cell not in self._ending:
            self.others[before.settings.cell] = before
        self._settle(session)
        self._node.serve(session)
        self._node.watch_line()
        came_to, self._came_to = self._came_to, ""
        if self._program and self._keeps and came_to != command.cell:
            self._following.set()
            stop = self._following = asyncio.Event()
            self._node.spawn(self._follow(session.settings, stop))

    async def _follow(self, settings: Settings, stop: asyncio.Event) -> None:
        """Have the link go where the node is served by now."""
        try:
            await self._switch(settings, stop)
        except EnvironmentFailure as error:
            # Served all the same, as long as the old link carries; then that is a lost link.
            if not stop.is_set():
                log.warning("cell %s: %s", settings.cell, error)

    def _settle(self, session: Session) -> None:
        session.settings = structs.replace(session.settings, backoff=self._home.backoff)

    def watch(self, command: commands.WatchCells) -> None:
        """Measure the cells around; one whose broker has no address we can use has no path."""
        if self._sensor is None:
            self._sensor = CellSensor(
                self._measured,
                self._radio,
                lambda: self._node.signal_dbm,
                reach=not (self._alone and self._radio),
            )
        brokers = {}
        for cell, urls in command.cells.items():
            try:
                settings = self.settings(cell, urls)
            except EnvironmentFailure as error:
                log.warning("cell %s is not measured: %s", cell, error)
            else:
                brokers[cell] = settings.host, settings.port
        self._sensor.watch(command.serving, brokers, command.pace_ms)

    def _measured(
        self, measures: tuple[CellMeasure, ...], bytes_per_s: float, cpu_percent: float
    ) -> None:
        unanswered = self._sensor.unanswered if self._sensor is not None else 0
        saving = self._sensor is not None and self._sensor.saving
        silent_ms = self._node.session.silent_ms
        self._node.tell(
            events.CellsMeasured(measures, bytes_per_s, cpu_percent, unanswered, silent_ms, saving)
        )

    def close(self) -> None:
        """Measure no more."""
        if self._sensor is not None:
            self._sensor.close()

    def renew(self, command: commands.Renew) -> None:
        """Connect anew."""
        session = self.others.get(command.cell, self._node.session)
        if session.settings.cell == command.cell:
            session.abort(command.reason)

    def detach(self, command: commands.Detach) -> None:
        """End an attachment, or what leads to one."""
        cell = command.cell
        stop = self._seeking.pop(cell, None)
        if stop is not None:
            stop.set()
        session = self.others.get(cell)
        if session is None and cell == self._node.session.settings.cell:
            session = self._node.session
        if session is None or cell in self._ending:
            return
        # Of the old one too: what is coming serves by now, or has failed.
        self._node.note(None)
        hurry, over = self._ending[cell] = asyncio.Event(), asyncio.Event()
        self._node.spawn(self._end(session, command, hurry, over))

    async def _end(
        self,
        session: Session,
        command: commands.Detach,
        hurry: asyncio.Event,
        over: asyncio.Event,
    ) -> None:
        cell = command.cell
        try:
            if command.at_once:
                session.abort("it is not wanted any more")
            elif command.after_ms:
                try:
                    async with asyncio.timeout(command.after_ms / 1000):
                        await hurry.wait()
                except TimeoutError:
                    pass
            await session.close(timeout_ms=FLUSH_MS)
        finally:
            if self.others.get(cell) is session:
                del self.others[cell]
            elif session is self._node.session:
                self._left = session
            del self._ending[cell]
            over.set()


def _parse(url: str, *, secured: bool) -> tuple[str, int]:
    """Return host and port of a broker. Raises EnvironmentFailure."""
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme not in {"mqtt", "mqtts"} or not host or not port.isdecimal():
        raise EnvironmentFailure(
            f"its broker {url!r} is no address of the form mqtt[s]://HOST:PORT"
        )
    if (scheme == "mqtts") != secured:
        way = "has a bundle" if secured else "has no bundle"
        raise EnvironmentFailure(f"its broker {url} cannot be met: this node {way}")
    return host.removeprefix("[").removesuffix("]"), int(port)
