"""A session with its callbacks turned into queues that a test can wait on."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from protocols import topics
from protocols.messages import Body
from protocols.topics import Channel, Party, Speaker, Topic
from protocols.transport.backoff import Policy
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

WAIT_S: Final = 60
CELL: Final = "cell-1"
QUICK: Final = Policy(first_ms=5, cap_ms=50, stable_ms=60_000)


def topic(party: Party, name: str, channel: Channel) -> Topic:
    return topics.build(CELL, party, name, channel)


class Peer:
    """One identity; `run` is its session's task."""

    def __init__(
        self,
        port: int,
        identity: str,
        speaker: Speaker,
        subscriptions: Sequence[str] | Callable[[], Sequence[str]] = (),
        *,
        will: Callable[[int], tuple[Topic, Body] | None] | None = None,
        on_message: Callable[[Inbound], None] | None = None,
        on_connected: Callable[[int], None] | None = None,
        **settings: Any,
    ) -> None:
        self.inbox: asyncio.Queue[Inbound] = asyncio.Queue()
        self.ups: asyncio.Queue[int] = asyncio.Queue()
        self.downs: asyncio.Queue[str] = asyncio.Queue()
        self._incarnation = 0
        settings = {"host": "127.0.0.1", "backoff": QUICK, "heartbeat_ms": 10_000} | settings
        self.session = Session(
            Settings(port=port, identity=identity, speaker=speaker, cell=CELL, **settings),
            subscriptions=subscriptions,
            on_message=on_message or self.inbox.put_nowait,
            on_connected=on_connected or self.ups.put_nowait,
            on_disconnected=self.downs.put_nowait,
            next_incarnation=self._next,
            will=will,
        )
        self.run = asyncio.create_task(self.session.run())

    def _next(self) -> int:
        self._incarnation += 1
        return self._incarnation

    async def up(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.ups.get()

    async def down(self) -> str:
        async with asyncio.timeout(WAIT_S):
            return await self.downs.get()

    async def hear(self) -> Inbound:
        async with asyncio.timeout(WAIT_S):
            return await self.inbox.get()

    async def reaches(self, condition: Callable[[], bool]) -> None:
        """Wait for what no callback tells, such as a counter."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110 - what no callback tells
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.run
