"""A client's attachment to a cell: one MQTT session, and two while it moves to another cell.

The new session is up before the old one is left. Answers come through both meanwhile; what the old
one still owes when it ends is asked for again, by the same id, through the new one.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from protocols import topics
from protocols.messages import Body
from protocols.topics import Channel, Party, Topic
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings
from tona.errors import CannotConnect

LINGER_S: Final = 3.0
"""How long the old session stays for what it still owes."""


class Client(Protocol):
    """Who is attached."""

    def hear(self, inbound: Inbound) -> None:
        """Take in a message."""
        ...

    def online(self, *, connected: bool) -> None:
        """Take in that the connection stands, or has ended; what was under way may be lost."""
        ...

    def moved(self, reply_to: str) -> None:
        """Take in where answers go from now on."""
        ...


class _Way:
    """One session, and what it subscribes to."""

    def __init__(self, owner: "Attachment", settings: Settings) -> None:
        name = topics.build(settings.cell, Party.CLIENT, settings.identity, Channel.REPLY)
        self.reply_to = str(name)
        self.settings = settings
        self.filters = [self.reply_to]
        self.session = Session(
            settings,
            subscriptions=lambda: self.filters,
            on_message=owner.client.hear,
            on_connected=lambda _: owner.up(self),
            on_disconnected=lambda _: owner.down(self),
            next_incarnation=owner.next_incarnation,
        )
        self.running = asyncio.get_running_loop().create_task(self.session.run())
        self.running.add_done_callback(owner.ended)

    async def close(self) -> None:
        await self.session.close()
        await asyncio.wait([self.running])


class Attachment:
    """Lives in one event loop, from `open` to `close`."""

    def __init__(
        self, settings: Settings, client: Client, failed: Callable[[BaseException], None]
    ) -> None:
        self.client = client
        self._settings = settings
        self._failed = failed
        self._now: _Way | None = None
        self._next: _Way | None = None
        self._before: _Way | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()
        self._incarnation = 0
        self._alone = False
        self.moves = 0
        """Since it was opened."""
        name = topics.build(settings.cell, Party.CLIENT, settings.identity, Channel.REPLY)
        self.reply_to = str(name)
        """Topic of the answers to what is asked now."""

    @property
    def running(self) -> bool:
        """Whether it is open."""
        return self._now is not None

    @property
    def cell(self) -> str:
        """Whose broker it speaks to."""
        return self._settings.cell

    async def open(self, timeout_s: float) -> None:
        """Connect to the broker. Raises CannotConnect."""
        self._now = _Way(self, self._settings)
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            now: _Way | None = self._now
            reason = (now.session.last_failure if now else "") or "no connection to the broker"
            raise CannotConnect(f"{reason} (tried for {timeout_s:g} s)") from None

    async def close(self) -> None:
        """End every session; idempotent."""
        if self._linger is not None:
            self._linger.cancel()
        ways = [one for one in (self._now, self._next, self._before) if one is not None]
        self._now = self._next = self._before = None
        await asyncio.gather(*(one.close() for one in ways), *self._closing)

    def move(self, settings: Settings, *, alone: bool = False) -> None:
        """Begin to move to a cell, or to another broker of it; what was begun before is given up.

        The present session stays until the new one is up; `alone` says that it is dead then,
        whether that has been noticed or not.
        """
        if self._now is None:
            return
        self._alone = alone
        if self._next is not None:
            if _same(self._next.settings, settings):
                return
            self._end(self._next)
            self._next = None
        if not _same(self._now.settings, settings):
            self._next = _Way(self, settings)

    def retry_now(self) -> None:
        """Try every broker that is wanted at once: the link is said to be up."""
        for one in (self._now, self._next):
            if one is not None and not one.session.connected:
                one.session.retry_now()

    def send(
        self, topic: Topic, body: Body, *, cause: str, tenant: str, correlation: bytes = b""
    ) -> bool:
        """Send a message; False when there is no connection, or it takes no more."""
        return self._now is not None and self._now.session.send(
            topic, body, cause=cause, tenant=tenant, correlation=correlation
        )

    def follow(self, topic: Topic) -> None:
        """Subscribe to a topic of the cell; of another cell nothing is heard here."""
        now = self._now
        if now is not None and topic.cell == now.settings.cell and str(topic) not in now.filters:
            now.filters.append(str(topic))
            now.session.resubscribe()

    def leave(self, topic: Topic) -> None:
        """Hear no more of a topic."""
        now = self._now
        if now is not None and str(topic) in now.filters:
            now.filters.remove(str(topic))
            now.session.resubscribe()

    # What sessions report.

    def next_incarnation(self) -> int:
        """Return one above those of every earlier connection, of this client and before it."""
        self._incarnation = max(self._incarnation + 1, time.time_ns() // 1_000_000)
        return self._incarnation

    def up(self, way: _Way) -> None:
        """Take in that a session stands."""
        if way is self._now:
            self._ready.set()
            self.client.online(connected=True)
        elif way is self._next:
            self._switch(way)

    def _switch(self, way: _Way) -> None:
        if self._before is not None:
            self._end(self._before)
        before, self._now, self._next = self._now, way, None
        self._settings, self.reply_to = way.settings, way.reply_to
        self.moves += 1
        self.client.moved(self.reply_to)
        if before is not None and before.session.connected and not self._alone:
            self._before = before
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self._leave)
        elif before is not None:
            self._end(before)
            self.client.online(connected=True)

    def down(self, way: _Way) -> None:
        """Take in that a session has ended."""
        if way is self._now:
            self.client.online(connected=False)
        elif way is self._before:
            self._leave()

    def _leave(self) -> None:
        """Let the old session go, and ask anew for what it owes."""
        before, self._before = self._before, None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if before is not None:
            self._end(before)
        if self._now is not None and self._now.session.connected:
            self.client.online(connected=True)

    def _end(self, way: _Way) -> None:
        ending = asyncio.get_running_loop().create_task(way.close())
        self._closing.add(ending)
        ending.add_done_callback(self._closing.discard)

    def ended(self, running: "asyncio.Task[None]") -> None:
        """Take in that a session runs no more: unless we closed it, that is a fault of ours."""
        if not running.cancelled() and (fault := running.exception()) is not None:
            self._failed(fault)


def _same(one: Settings, other: Settings) -> bool:
    return (one.cell, one.host, one.port) == (other.cell, other.host, other.port)
