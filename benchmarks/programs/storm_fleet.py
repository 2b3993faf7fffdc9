"""Many nodes that lose their cell at once and find another one, each as a device agent does.

    python -m benchmarks.programs.storm_fleet COUNT STAYING CELL=HOST:PORT...

Answers `[cells]` by having the nodes attach to these in turn, at once, and says when each of them
was welcomed, in seconds since the order, and how many births it took. A node that is attached
elsewhere drops that without a word; one that gets no welcome or no connection tries again in the
times of the device agent. All of them report once a second, and so do STAYING more, which are
attached to all cells but the first from the beginning.
"""

import asyncio
import os
import resource
import sys
import time
from typing import Any, Final

from benchmarks.harness.lines import say, serve
from benchmarks.programs.generator import INVENTORY
from device_agent.core.presence import WELCOME_FIRST_MS, WELCOME_MAX_MS
from protocols import topics
from protocols.messages import Birth, LoadReport, Welcome
from protocols.messages.presence import Arrival
from protocols.topics import Channel, Party, Speaker
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

MARGIN_FILES: Final = 100
REPORT_S: Final = 1.0
BURST: Final = 100
"""Reports that are said together."""
PATIENCE_S: Final = 120.0


class Node:
    """One node."""

    def __init__(self, name: str, places: dict[str, tuple[str, int]]) -> None:
        self.name = name
        self._places = places
        self._cell = ""
        self._before = ""
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._birth: asyncio.TimerHandle | None = None
        self._wait_ms = WELCOME_FIRST_MS
        self._incarnation = 0
        self.births = 0
        self.welcomed_at = 0.0
        self.welcomed = asyncio.Event()

    async def attach(self, cell: str) -> None:
        """Drop what is there, and attach to a cell."""
        if self._session is not None:
            self._session.abort("the cell is lost")
        if self._task is not None:
            self._task.cancel()
        self._before, self._cell = self._cell, cell
        self.welcomed.clear()
        host, port = self._places[cell]
        inbox = str(topics.build(cell, Party.NODE, self.name, Channel.COMMAND))
        self._session = Session(
            Settings(host=host, port=port, identity=self.name, speaker=Speaker.NODE, cell=cell),
            subscriptions=[inbox],
            on_message=self._heard,
            on_connected=self._connected,
            on_disconnected=lambda _: self._hush(),
            next_incarnation=self._next,
        )
        self._task = asyncio.create_task(self._session.run())
        await self.welcomed.wait()

    def report(self) -> None:
        """Say how busy the node is."""
        if self._session is not None and self.welcomed.is_set():
            topic = topics.build(self._cell, Party.NODE, self.name, Channel.LOAD)
            sampled_ms = time.monotonic_ns() // 1_000_000
            self._session.send(topic, LoadReport(sampled_ms, 20.0), cause="storm")

    def _next(self) -> int:
        self._incarnation += 1
        return self._incarnation

    def _connected(self, _incarnation: int) -> None:
        self._wait_ms = WELCOME_FIRST_MS
        self._say_birth()

    def _say_birth(self) -> None:
        assert self._session is not None
        self.births += 1
        arrival = Arrival(self._before, self._incarnation - 1) if self._before else None
        birth = Birth("0", f"boot-{self.name}", INVENTORY, arrival=arrival)
        topic = topics.build(self._cell, Party.NODE, self.name, Channel.PRESENCE)
        self._session.send(topic, birth, cause="storm")
        jitter = 0.5 + os.urandom(1)[0] / 512
        loop = asyncio.get_running_loop()
        self._birth = loop.call_later(self._wait_ms * jitter / 1000, self._say_birth)
        self._wait_ms = min(2 * self._wait_ms, WELCOME_MAX_MS)

    def _hush(self) -> None:
        if self._birth is not None:
            self._birth.cancel()
            self._birth = None

    def _heard(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        if isinstance(body, Welcome) and body.incarnation == self._incarnation:
            self._hush()
            if not self.welcomed.is_set():
                self.welcomed_at = time.monotonic()
                self.welcomed.set()


async def main() -> None:
    """Make the nodes, then attach them as told."""
    count, staying = int(sys.argv[1]), int(sys.argv[2])
    places: dict[str, tuple[str, int]] = {}
    for word in sys.argv[3:]:
        cell, _, address = word.partition("=")
        host, _, port = address.rpartition(":")
        places[cell] = host, int(port)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = 2 * (count + staying) + MARGIN_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted), hard))
    nodes = [Node(f"storm-{number}", places) for number in range(count)]
    others = [Node(f"stays-{number}", places) for number in range(staying)]

    async def beat() -> None:
        everyone = nodes + others
        while True:
            for number, node in enumerate(everyone):
                node.report()
                if number % BURST == BURST - 1:
                    await asyncio.sleep(REPORT_S * BURST / len(everyone))
            await asyncio.sleep(REPORT_S * (len(everyone) % BURST) / len(everyone))

    async def attach(moving: list[Node], cells: list[str]) -> None:
        attaching = [
            asyncio.create_task(node.attach(cells[number % len(cells)]))
            for number, node in enumerate(moving)
        ]
        await asyncio.wait(attaching, timeout=PATIENCE_S)

    async def storm(cells: Any) -> dict[str, Any]:
        began, before = time.monotonic(), sum(node.births for node in nodes)
        await attach(nodes, cells)
        times = (
            round(node.welcomed_at - began, 4) if node.welcomed.is_set() else -1.0 for node in nodes
        )
        births = sum(node.births for node in nodes) - before
        return {"welcomed_s": list(times), "births": births}

    if others:
        await attach(others, list(places)[1:])
    beating = asyncio.create_task(beat())
    say({})
    await serve(storm)
    beating.cancel()


if __name__ == "__main__":
    asyncio.run(main())
