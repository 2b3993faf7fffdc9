"""Somebody at a real broker who speaks as a role that he is not."""

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

from controller.host.links import Dispatch, Due, Event, Hear, Links, Open, Say
from protocols import topics
from protocols.topics import Channel, Party, Speaker, Topic
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings


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
