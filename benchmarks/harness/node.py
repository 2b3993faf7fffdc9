"""Nodes of the protocol alone: one that takes every task at once, and one that only listens."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from benchmarks.harness.cell import BENCH, Cell
from protocols import topics
from protocols.messages import Assign, Birth, Body, LinkReport, LoadReport, Release, Status
from protocols.messages.presence import ExecutorInfo, Inventory
from protocols.messages.task import InstanceState
from protocols.topics import Channel, Party, Speaker
from protocols.transport.session import Inbound, Session

CONNECT_TIMEOUT_S: Final = 30.0
HEARTBEAT_S: Final = 0.5
SPARE_CPU_PERCENT: Final = 50.0
"""Busier than an idle node, so that tasks begin elsewhere; idle enough to take them."""
INVENTORY: Final = Inventory(
    "generic-x86-64",
    "x86_64",
    "linux",
    4,
    64 << 30,
    1 << 40,
    executors=(ExecutorInfo("wasm", "1"),),
    task_memory_bytes=60 << 30,
    max_instances=4096,
)


@asynccontextmanager
async def session(
    cell: Cell, name: str, speaker: Speaker, filters: list[str], heard: Callable[[Inbound], None]
) -> AsyncIterator[Session]:
    """Hold a session of the cell while the context lasts."""
    ready = asyncio.Event()
    one = Session(
        cell.settings(name, speaker),
        subscriptions=filters,
        on_message=heard,
        on_connected=lambda _: ready.set(),
        on_disconnected=lambda _: ready.clear(),
        next_incarnation=lambda: time.time_ns() // 1_000_000,
    )
    task = asyncio.create_task(one.run())
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await ready.wait()
        yield one
    finally:
        await one.close()
        await task


class Spare:
    """A node that has every task ready the moment it is assigned, and says when that was."""

    def __init__(self, name: str, cpu_percent: float = SPARE_CPU_PERCENT) -> None:
        self.name = name
        self.said = 0
        """Messages that it has sent."""
        self._cpu_percent = cpu_percent
        self.assigned: asyncio.Queue[tuple[int, Assign]] = asyncio.Queue()
        """When an assignment was there, on the monotonic clock in nanoseconds, and which."""
        self._session: Session | None = None
        self._cell = ""
        self._numbers = 0

    @asynccontextmanager
    async def running(self, cell: Cell) -> AsyncIterator[None]:
        """Be part of the cell."""
        self._cell = cell.name
        inbox = str(topics.build(cell.name, Party.NODE, self.name, Channel.COMMAND))
        async with session(cell, self.name, Speaker.NODE, [inbox], self._heard) as self._session:
            self._say(Channel.PRESENCE, Birth("0", f"boot-{self.name}", INVENTORY))
            self._report()
            beating = asyncio.create_task(self._beat())
            try:
                await cell.online(self.name)
                yield
            finally:
                beating.cancel()
                await asyncio.wait({beating})

    def link(self, *, carrier: bool) -> int:
        """Report the link with or without a carrier; return when, on the monotonic clock in ns."""
        now_ns = time.monotonic_ns()
        self._say(Channel.LINK, LinkReport(now_ns // 1_000_000, "bench0", "other", carrier))
        return now_ns

    def _heard(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        if isinstance(body, Assign):
            self.assigned.put_nowait((time.monotonic_ns(), body))
            self._status(body.task, body.epoch, InstanceState.READY, body.generation)
        elif isinstance(body, Release):
            self._status(body.task, body.epoch, InstanceState.STOPPED, 0)

    def _status(self, task: str, epoch: int, state: InstanceState, generation: int) -> None:
        self._numbers += 1
        self._say(Channel.STATUS, Status(self._numbers, task, epoch, state, generation=generation))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._report()

    def _report(self) -> None:
        now_ms = time.monotonic_ns() // 1_000_000
        self._say(Channel.LOAD, LoadReport(now_ms, self._cpu_percent))

    def _say(self, channel: Channel, body: Body) -> None:
        assert self._session is not None
        topic = topics.build(self._cell, Party.NODE, self.name, channel)
        assert self._session.send(topic, body, cause="bench")
        self.said += 1


class Observer:
    """Hears what a node reports and where services are served, with the time of hearing."""

    def __init__(self, node: str) -> None:
        self.loads: list[LoadReport] = []
        self.links: list[tuple[int, LinkReport]] = []
        self.routes: dict[str, int] = {}
        """By service, when its last route came, on the monotonic clock in nanoseconds."""
        self._node = node
        self._news = asyncio.Event()

    @asynccontextmanager
    async def running(self, cell: Cell) -> AsyncIterator[None]:
        """Listen."""
        filters = [
            str(topics.build(cell.name, Party.NODE, self._node, Channel.LOAD)),
            str(topics.build(cell.name, Party.NODE, self._node, Channel.LINK)),
            topics.wildcard(cell.name, Party.SERVICE, Channel.ROUTE),
        ]
        # On a cell with trust, only the controller's own kind may hear a node's reports; routes
        # are for clients, and stay unheard there.
        async with session(cell, BENCH, Speaker.CONTROLLER, filters, self._heard):
            yield

    def _heard(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        if isinstance(body, LoadReport):
            self.loads.append(body)
        elif isinstance(body, LinkReport):
            self.links.append((time.monotonic_ns(), body))
        elif inbound.topic.channel is Channel.ROUTE:
            self.routes[inbound.topic.name] = time.monotonic_ns()
        self._news.set()

    async def until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something heard makes it true; False when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while not true():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True
