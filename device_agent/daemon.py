"""The daemon: the core's shell, where session, journal, senses and workshop meet.

Everything that happens is told to the core as an event, and what the core answers is done here, in
order. `Keep` and `Forget` of one turn of the loop are written together, and what follows them waits
for that. A fault of ours anywhere ends the daemon (`run` raises it).
"""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.core import Core
from device_agent.prepared import Prepared
from device_agent.senses import Senses
from device_agent.sensing.delivery import account
from device_agent.systemd import ALIVE, READY, STOPPING, Notifier
from device_agent.workshop import Workshop
from protocols import codec, topics
from protocols.errors import EnvironmentFailure, TonaBug
from protocols.messages import NODE, Death, Probe
from protocols.topics import Channel, Party, Topic
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

if TYPE_CHECKING:
    from device_agent.journal import Journal
    from device_agent.roaming import Roaming
    from protocols.messages import Body

LOOK_AFTER_S: Final = 30.0
TOPICS_MAX: Final = 256
"""Topics of clients and other nodes that are kept taken apart."""
WILL: Final = Death("the connection was lost")
SPOKEN: Final = (
    Channel.PRESENCE,
    Channel.LOAD,
    Channel.LINK,
    Channel.STATUS,
    Channel.RESULT,
    Channel.PROBE,
    Channel.CATCHUP,
)
HEARD: Final = (Channel.COMMAND, Channel.INVOKE, Channel.PROBE, Channel.MISSED)
DECODE: Final = codec.decoder(NODE)

log = logging.getLogger("tona.node")


class Daemon:
    """One node's daemon; made and run inside the event loop."""

    def __init__(
        self,
        core: Core,
        prepared: Prepared,
        settings: Settings,
        notify: Notifier,
        open_journal: Callable[[], "Journal"],
    ) -> None:
        """Make one; `settings` are those of the cell where the node is at home."""
        self._loop = asyncio.get_running_loop()
        self._core = core
        self._restored = prepared.restored
        self._incarnation, self._reserved = prepared.incarnation, prepared.reserved
        self._open_journal = open_journal
        self._journal: Journal | None = None
        self._notify = notify
        self._node = settings.identity
        self._own: dict[Channel, Topic] = {}
        self._parse: Callable[[str], Topic] = lru_cache(TOPICS_MAX)(topics.parse)
        self._inbox: Callable[[str], Topic] = self._invoke_topic
        self._followed: set[tuple[str, Channel]] = set()
        self._home = settings
        self._links = prepared.radios, prepared.switch, prepared.radio, prepared.keeps_address
        self._attachment = prepared.attachment
        self._roaming: Roaming | None = None
        self.serve(self.open(self._first(settings)))
        self._senses: Senses | None = None
        self._workshop: Workshop | None = None
        self._queue: deque[events.Event] = deque()
        self._telling = False
        self._stopping = False
        self._unwritten: list[commands.Command] = []
        self._over: asyncio.Future[str] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._due_ms: float | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.lines: dict[str, socket.socket] = {}
        """Of the last connection to each cell's broker."""
        self._doors: dict[type, Callable[[Any], Any]] = {
            commands.Say: self._say,
            commands.Forward: self._forward,
            commands.Reply: self._reply,
            commands.Publish: self._publish,
            commands.Follow: self._follow,
            commands.Unfollow: self._unfollow,
            commands.SetPace: self._set_pace,
            commands.Warn: lambda command: log.warning(command.text),
            commands.Exit: self._exit,
            commands.Attach: lambda command: self._roam().attach(command),
            commands.Serve: lambda command: self._roam().serve(command),
            commands.Renew: lambda command: self._roam().renew(command),
            commands.Detach: lambda command: self._roam().detach(command),
            commands.WatchCells: lambda command: self._roam().watch(command),
        }

    def open(self, settings: Settings) -> Session:
        """Return a session with the broker of a cell, not running yet."""
        cell = settings.cell
        session = Session(
            settings,
            subscriptions=lambda: self._filters(cell),
            on_message=lambda inbound: self._heard(inbound, cell),
            on_connected=lambda incarnation: self._connected(cell, incarnation),
            on_disconnected=lambda reason: self.tell(
                events.Disconnected(reason, cell, session.broken)
            ),
            next_incarnation=self._next_incarnation,
            will=lambda _: (self._topic(cell, Channel.PRESENCE), WILL),
            decode=DECODE,
            on_refused=lambda text: self.tell(events.PublishRefused(text)),
        )
        return session

    def serve(self, session: Session) -> None:
        """Be served in the cell of a session."""
        self.session = session
        self._cell = cell = session.settings.cell
        self._inbox = lru_cache(TOPICS_MAX)(self._invoke_topic)
        self._own = {one: self._topic(cell, one) for one in (*SPOKEN, *HEARD)}
        self.note(None)

    def note(self, coming: Settings | None) -> None:
        """Say beside the node where it is attached, and to which cell it is about to be."""
        if self._attachment:
            from device_agent.whereabouts import note  # noqa: PLC0415 - few nodes have clients

            note(self._attachment, self.session.settings, coming, alone=self._links[0] == 1)

    def _first(self, home: Settings) -> Settings:
        """Return how to reach the cell that served this node last."""
        place = self._restored.place
        if place is None or place.serving is None or place.home != home.cell:
            return home
        try:
            return self._roam().settings(place.serving.cell, place.serving.broker_urls)
        except EnvironmentFailure as error:
            log.warning("cell %s: %s; back home", place.serving.cell, error)
            self._restored = structs.replace(self._restored, place=None)
            return home

    @property
    def signal_dbm(self) -> float | None:
        """Of the interface that leads to the serving cell."""
        return None if self._senses is None else self._senses.signal_dbm

    def _topic(self, cell: str, channel: Channel) -> Topic:
        return topics.build(cell, Party.NODE, self._node, channel)

    def _roam(self) -> "Roaming":
        """Return who holds other attachments; loaded with the first of them."""
        if self._roaming is None:
            from device_agent.roaming import Roaming  # noqa: PLC0415 - few nodes move

            self._roaming = Roaming(self, self._home, *self._links)
        return self._roaming

    def attach(self, senses: Senses, workshop: Workshop) -> None:
        """Give the daemon its senses and its hands."""
        self._senses, self._workshop = senses, workshop
        self._doors.update(workshop.doors)

    async def run(self) -> str:
        """Run until told to end; return why. Raises what was a fault of ours."""
        if self._senses is None or self._workshop is None:
            raise TonaBug("the daemon runs before it is attached")
        self._loop.set_exception_handler(self._callback_failed)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled, number)
        self.tell(self._restored)
        self._senses.start()
        self.spawn(self.session.run())
        self.spawn(self._look_after(self._workshop))
        self._alive()
        self._notify.say(READY)
        # What stands now stays: later collections need not look at it again.
        gc.collect()
        gc.freeze()
        try:
            return await self._over
        finally:
            await self._close(self._senses, self._workshop)

    def tell(self, event: events.Event) -> None:
        """Hand the core an event and do what it answers; never raises."""
        self._queue.append(event)
        if self._telling:
            return
        self._telling = True
        try:
            while self._queue:
                now_ms = self._loop.time() * 1000
                for command in self._core.handle(self._queue.popleft(), now_ms):
                    self._do(command)
        except Exception as error:  # noqa: BLE001 - the process's edge: any fault here is ours
            self.crash(error)
        finally:
            self._telling = False
        self._rearm()

    def crash(self, error: BaseException) -> None:
        """End the daemon with a fault of ours."""
        if not self._over.done():
            self._over.set_exception(error)

    def _callback_failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Answer for a callback that raised, unless it is the operating system's failure."""
        error = context.get("exception")
        if error is None or isinstance(error, OSError):
            log.warning("%s: %s", context["message"], error)
        else:
            self.crash(error)

    # Commands.

    def _do(self, command: commands.Command) -> None:
        if self._unwritten or isinstance(command, commands.Change):
            if not self._unwritten:
                self._loop.call_soon(self._write)
            self._unwritten.append(command)
        else:
            self._doors[type(command)](command)

    def _write(self) -> None:
        """Make the changes of this turn durable, then do what waited for that."""
        waited, self._unwritten = self._unwritten, []
        changes = [one for one in waited if isinstance(one, commands.Change)]
        failure = ""
        try:
            try:
                self._opened().write(changes)
            except EnvironmentFailure as error:
                log.error("%s", error)  # noqa: TRY400 - the environment's failure has no traceback
                failure = str(error)
            for command in waited:
                if not isinstance(command, commands.Change):
                    self._doors[type(command)](command)
            # Last: what the core says of a failure must not be overtaken by what it said before.
            # A feed that is not kept is only said again by its scheduler after a reboot.
            for one in changes if failure else ():
                if isinstance(one, commands.Keep | commands.Forget):
                    kept = one.assign if isinstance(one, commands.Keep) else one
                    self.tell(events.JournalFailed(kept.task, kept.epoch, failure))
        except Exception as error:  # noqa: BLE001 - the process's edge: any fault here is ours
            self.crash(error)

    def _say(self, command: commands.Say) -> None:
        topic = self._own[command.channel]
        if command.cell not in {"", self._cell}:
            topic = self._topic(command.cell, command.channel)
        self._send(topic, command.body, command.cause, command.tenant)

    def _forward(self, command: commands.Forward) -> None:
        self._writing()
        topic = self._inbox(command.node)
        if command.cell not in {"", self._cell}:
            topic = topics.build(command.cell, Party.NODE, command.node, Channel.INVOKE)
        self._send(topic, command.body, command.cause, command.tenant)

    def _reply(self, command: commands.Reply) -> None:
        topic = self._parse(command.topic)
        self._writing()
        self._send(topic, command.body, command.cause, command.tenant, command.correlation)

    def _writing(self) -> None:
        if self._senses is not None:
            self._senses.writing()

    def _publish(self, command: commands.Publish) -> None:
        # The cell of whose broker it is said: gateways bring on nothing that names another one.
        cell = self._cell if self._roaming is None else self._roaming.way(self._cell).settings.cell
        topic = topics.build(cell, Party.SERVICE, command.service, Channel.OUTPUT)
        self._send(topic, command.body, command.cause, command.tenant)

    def _follow(self, command: commands.Follow) -> None:
        self._followed.add((command.service, command.channel))
        self._resubscribe()

    def _unfollow(self, command: commands.Unfollow) -> None:
        self._followed.discard((command.service, command.channel))
        self._resubscribe()

    def _resubscribe(self) -> None:
        for session in self.sessions:
            session.resubscribe()

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Every attachment; the one that serves comes first."""
        others = () if self._roaming is None else self._roaming.others.values()
        return (self.session, *others)

    def _filters(self, cell: str) -> list[str]:
        followed = {topics.anywhere(Party.SERVICE, *one) for one in self._followed}
        return sorted({str(self._topic(cell, one)) for one in HEARD} | followed)

    def _send(
        self, topic: Topic, body: "Body", cause: str, tenant: str, correlation: bytes = b""
    ) -> None:
        """Send; what the session does not take is repeated by the core or asked for again."""
        roaming = self._roaming
        session = self.session if roaming is None else roaming.way(topic.cell)
        session.send(topic, body, cause=cause, tenant=tenant, correlation=correlation)

    def _set_pace(self, command: commands.SetPace) -> None:
        if self._senses is not None:
            self._senses.pace(command.sample_ms, command.probe_ms, command.whole_every)

    def _exit(self, command: commands.Exit) -> None:
        if not self._over.done():
            self._over.set_result(command.reason)

    def _opened(self) -> "Journal":
        if self._journal is None:
            self._journal = self._open_journal()
        return self._journal

    # The session.

    def _next_incarnation(self) -> int:
        if self._incarnation >= self._reserved:
            self._incarnation, self._reserved = self._opened().reserve()
        self._incarnation += 1
        return self._incarnation

    def _connected(self, cell: str, incarnation: int) -> None:
        if cell == self._cell:
            self.watch_line()
        jitter = int.from_bytes(os.urandom(4)) / 2**32
        self.tell(events.Connected(incarnation, jitter, cell))

    def watch_line(self) -> None:
        """Sense the link that leads to the broker of the serving cell."""
        line, session = self.lines.get(self._cell), self.session
        if self._senses is not None and line is not None:
            # A line that has just broken has no other side: its end is about to be told.
            with suppress(OSError):
                self._senses.attach(
                    line.getpeername()[0],
                    lambda: account(line),
                    lambda: session.buffered_bytes,
                )

    def _heard(self, inbound: Inbound, via: str) -> None:
        channel, frame = inbound.topic.channel, inbound.frame
        if inbound.topic.party is Party.SERVICE:
            if (inbound.topic.name, channel) in self._followed:
                self.tell(
                    events.Published(inbound.topic.name, channel, frame.body, via, frame.sender)
                )
            return
        if channel is Channel.PROBE:
            if isinstance(frame.body, Probe) and self._senses is not None:
                self._senses.probed(frame.body.number)
            return
        self.tell(
            events.Received(
                channel,
                frame.sender,
                frame.incarnation,
                frame.number,
                frame.tenant,
                frame.cause,
                frame.body,
                inbound.response_topic,
                inbound.correlation,
                inbound.topic.cell,
            )
        )

    def probe(self, number: int) -> bool:
        """Send a probe to ourselves; return whether it has left."""
        return self.session.send(self._own[Channel.PROBE], Probe(number), cause="probe")

    def link_is_back(self) -> None:
        """Try the broker at once: the link has a carrier again."""
        for session in self.sessions:
            if not session.connected:
                session.retry_now()

    def _invoke_topic(self, node: str) -> Topic:
        return topics.build(self._cell, Party.NODE, node, Channel.INVOKE)

    # Time and the end.

    def _rearm(self) -> None:
        due_ms = self._core.next_due_ms
        # A timer that comes too early does no harm; to move it for every request would.
        if due_ms is None or (self._due_ms is not None and self._due_ms <= due_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_ms = due_ms
        self._timer = self._loop.call_at(due_ms / 1000, self._tick)

    def _tick(self) -> None:
        self._timer, self._due_ms = None, None
        self.tell(events.Tick())

    def _alive(self) -> None:
        if self._notify.interval_s is not None:
            self._notify.say(ALIVE)
            self._loop.call_later(self._notify.interval_s, self._alive)

    async def _look_after(self, workshop: Workshop) -> None:
        while True:
            await asyncio.sleep(LOOK_AFTER_S)
            await workshop.look_after()

    def _signalled(self, number: signal.Signals) -> None:
        reason = f"stopped by {number.name}"
        self._notify.say(STOPPING)
        if self._stopping:
            log.warning("%s again: ending at once", reason)
            self._exit(commands.Exit(reason))
            return
        log.info("%s: finishing what runs", reason)
        self._stopping = True
        self.tell(events.ShutDown(reason))

    def spawn(self, work: Any) -> None:
        """Run something beside; a fault in it ends the daemon."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crash(error)

    async def _close(self, senses: Senses, workshop: Workshop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        senses.close()
        if self._roaming is not None:
            self._roaming.close()
        await asyncio.gather(*(one.close() for one in self.sessions))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await workshop.close()
        if self._journal is not None:
            self._journal.close()
