"""Somebody at real brokers who speaks as a role that he is not, or says again what was said."""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from controller.host.links import Dispatch, Due, Event, Hear, Links, Open, Say
from protocols import codec, topics
from protocols.codec import Frame
from protocols.topics import INVOCATION_MAX_BYTES, Channel, Party, Speaker, Topic
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

WAIT_S = 60


def _inbox(cell: str, role: str) -> Topic:
    return topics.build(cell, Party.ROLE, role, Channel.INBOX)


async def say(broker: str, cell: str, own: str, peer: str, *bodies: Any) -> None:
    """Say something to a role over a link, and wait until it is taken."""
    url, connected, taken = urlsplit(broker), asyncio.Event(), asyncio.Event()
    links = Links(1 << 20)

    def do(event: Event) -> None:
        for command in links.handle(event, time.monotonic_ns() // 1_000_000):
            if isinstance(command, Dispatch):
                session.send(_inbox(cell, peer), command.frame, cause="link", sender=own)

    def hear(inbound: Inbound) -> None:
        do(Hear(own, peer, inbound.frame.body))  # type: ignore[arg-type]
        if not links.waiting(own, peer)[0]:
            taken.set()

    session = Session(
        Settings(
            host=str(url.hostname),
            port=int(url.port or 0),
            identity=own,
            speaker=Speaker.CONTROLLER,
            cell=cell,
        ),
        subscriptions=[str(_inbox(cell, own))],
        on_message=hear,
        on_connected=lambda _: connected.set(),
        on_disconnected=lambda _: None,
        next_incarnation=lambda: time.time_ns() // 1_000_000,
    )
    running = asyncio.create_task(session.run())
    try:
        async with asyncio.timeout(60):
            await connected.wait()
            do(Open(own, peer))
            for body in bodies:
                do(Say(own, peer, "default", "forged", body))
            do(Due())
            taken.clear()
            await taken.wait()
    finally:
        await session.close()
        await running


class Word(NamedTuple):
    """What was said at the broker of a cell."""

    cell: str
    topic: str
    payload: bytes
    frame: Frame


class Tape:
    """Records what nodes and roles say at brokers, and says it again."""

    def __init__(
        self, brokers: Iterable[tuple[str, str]], tls: ssl.SSLContext | None = None
    ) -> None:
        """`brokers` are names of cells, each with the URL of its broker."""
        self.words: list[Word] = []
        self._tls = tls
        self._brokers = [(cell, urlsplit(url)) for cell, url in brokers]
        self._clients: dict[str, aiomqtt.Client] = {}
        self._running: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for cell, url in self._brokers:
            version = aiomqtt.ProtocolVersion.V5
            client = aiomqtt.Client(
                str(url.hostname), int(url.port or 0), protocol=version, tls_context=self._tls
            )
            self._clients[cell] = await self._stack.enter_async_context(client)
            for party, channel in (
                (Party.NODE, Channel.PRESENCE),
                (Party.NODE, Channel.COMMAND),
                (Party.ROLE, Channel.INBOX),
            ):
                await client.subscribe(topics.wildcard(cell, party, channel), 1)
            self._running.append(asyncio.create_task(self._record(cell, client)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        await asyncio.wait(self._running)
        await self._stack.aclose()

    def end(self) -> None:
        """Record no more."""
        for one in self._running:
            one.cancel()

    async def _record(self, cell: str, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            payload = bytes(message.payload)
            frame = codec.decode(payload, INVOCATION_MAX_BYTES)
            self.words.append(Word(cell, str(message.topic), payload, frame))

    async def again(self, chosen: Callable[[Word], bool]) -> list[Word]:
        """Say again, in order, what was chosen; return it once the brokers have it."""
        said = [one for one in self.words if chosen(one)]
        for one in said:
            await self._clients[one.cell].publish(one.topic, one.payload, 1)
        return said


class Forger:
    """Somebody with one certificate at the brokers of all cells, who says what he has recorded."""

    def __init__(self, brokers: Iterable[tuple[str, str]], tls: ssl.SSLContext) -> None:
        """`brokers` are names of cells, each with the URL of its broker."""
        self._brokers = [(cell, urlsplit(url)) for cell, url in brokers]
        self._tls = tls
        self._clients: dict[str, paho.Client] = {}
        self._codes: dict[tuple[str, int], int] = {}

    def __enter__(self) -> Self:
        for cell, url in self._brokers:
            client = paho.Client(
                CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False
            )
            client.tls_set_context(self._tls)
            joined = threading.Event()
            client.on_connect = lambda *_, joined=joined: joined.set()
            client.on_publish = lambda _client, _data, mid, code, _properties, cell=cell: (
                self._codes.update({(cell, mid): code.value})
            )
            client.connect(str(url.hostname), int(url.port or 0))
            client.loop_start()
            self._clients[cell] = client
            assert joined.wait(WAIT_S), f"not let in at {cell}"
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._clients.values():
            one.disconnect()
            one.loop_stop()

    async def says(self, cell: str, topic: str, payload: bytes) -> int:
        """Publish something as it is; return the code with which the broker answers."""
        said = self._clients[cell].publish(topic, payload, 1)
        await asyncio.to_thread(said.wait_for_publish, WAIT_S)
        return self._codes[cell, said.mid]
