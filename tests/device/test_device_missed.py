"""What others publish while a node with one radio is between two cells reaches it afterwards."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from device_roam import EAGER, Cells, farewells, serve
from device_world import NODE, Store

from protocols import topics
from protocols.manifest import Dtype
from protocols.messages import Feed, Invoke, LinkReport, Result
from protocols.messages.invocation import REQUEST, Edge, Plan, Step, Tensor
from protocols.messages.quality import Sink, SinkKind, Source, SourceKind
from protocols.topics import Channel, Party, Speaker
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

PACE_S: Final = 0.02
WAITING_MAX: Final = 6
"""More of them a feed of an attached node would rather replace than have wait."""
FOLLOWED: Final = ("s", Channel.INPUT)
STEP: Final = Step("echo", NODE, 1, (Edge("x", REQUEST, "x"),), ("y",))
FEED: Final = Feed(
    "s",
    1,
    Plan("s", 1, (STEP,), (Edge("y", "echo", "y"),)),
    (Source("x", SourceKind.TOPIC, "s.x", Dtype.UINT8, (-1,), rate_per_s=1e5),),
    (Sink("y", SinkKind.TOPIC),),
    budget_ms=10_000,
)


@pytest.fixture
async def world(tmp_path: Path, store: Store) -> AsyncIterator[Cells]:
    one = Cells(tmp_path, store)
    await one.start()
    yield one
    await one.close()


class Program:
    """Publishes fifty values a second in one cell, and hears in both what becomes of them.

    While the node is attached it waits for answers where many are missing: on a busy machine.
    """

    def __init__(self, world: Cells, cell: str) -> None:
        self._world = world
        self.said: list[str] = []
        self.answered: Counter[str] = Counter()
        self.missed = 0
        """As the node reports."""
        self._topic = topics.build(cell, Party.SERVICE, *FOLLOWED)
        self._sessions = {one: self._session(one) for one in world.cells}
        self._running = [asyncio.create_task(one.run()) for one in self._sessions.values()]
        self._stop = asyncio.Event()
        self._publishing = asyncio.create_task(self._publish(cell))

    def _session(self, cell: str) -> Session:
        # Outputs that a gateway has brought from elsewhere name another cell.
        filters = [
            str(topics.build(cell, Party.SERVICE, "s", Channel.OUTPUT)),
            str(topics.build(cell, Party.NODE, NODE, Channel.LINK)),
        ]
        return Session(
            Settings(
                host="127.0.0.1",
                port=self._world.cells[cell].broker.port,
                identity=f"program-{cell}",
                speaker=Speaker.CONTROLLER,
                cell=cell,
                backoff=EAGER,
            ),
            subscriptions=filters,
            on_message=self._hear,
            on_connected=lambda _: self._world.news.set(),
            on_disconnected=lambda _: None,
            next_incarnation=lambda: 1,
        )

    async def _publish(self, cell: str) -> None:
        await self._world.wait(lambda: all(one.connected for one in self._sessions.values()))
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while not self._stop.is_set():
            name = f"v{len(self.said)}"
            value = Tensor(Dtype.UINT8, (len(name),), name.encode())
            assert self._sessions[cell].send(
                self._topic, Invoke(name, "s", 1000, {"x": value}), cause=name
            )
            self.said.append(name)
            await self._world.wait(
                lambda: self._away or len(self.wanted) - len(self.answered) <= WAITING_MAX
            )
            due_s = max(due_s + PACE_S, loop.time())
            try:
                async with asyncio.timeout_at(due_s):
                    await self._stop.wait()
            except TimeoutError:
                pass

    @property
    def wanted(self) -> list[str]:
        """What was published from the first on that the node took in."""
        first = min(map(self.said.index, self.answered), default=len(self.said))
        return self.said[first:]

    @property
    def _away(self) -> bool:
        """Whether the node has taken leave of a cell and not come to the other."""
        left = sum(len(farewells(one)) for one in self._world.cells.values())
        return left >= len(self._world.births)

    def _hear(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        if isinstance(body, LinkReport):
            self.missed = max(self.missed, body.missed)
        elif isinstance(body, Result) and isinstance(value := body.outputs.get("y"), Tensor):
            self.answered[value.data.decode()] += 1
        self._world.news.set()

    async def more(self, count: int = 50) -> None:
        """Wait until so many of what is published from now on were answered."""
        first = len(self.said)
        await self._world.wait(
            lambda: sum(one in self.answered for one in self.said[first:]) >= count
        )

    async def end(self) -> list[str]:
        """Publish no more, and wait for the answer to the last; return what was published."""
        self._stop.set()
        await self._publishing
        await self._world.wait(lambda: self.said[-1] in self.answered)
        return self.wanted

    async def close(self) -> None:
        await asyncio.gather(*(one.close() for one in self._sessions.values()))
        await asyncio.gather(*self._running)


def follow(world: Cells) -> None:
    """Have the gateway of the node's cell bring what it takes in, and no other."""
    for name, cell in world.cells.items():
        cell.lines.follow([FOLLOWED] if name == world.where else [])


@pytest.mark.parametrize("published_in", ["a", "b"])
async def test_one_radio_misses_nothing_and_takes_nothing_twice(
    world: Cells, tmp_path: Path, published_in: str
) -> None:
    switch = tmp_path / "switch"
    switch.write_text("#!/bin/sh\nexec sleep 0.4\n", encoding="utf-8")
    switch.chmod(0o755)
    await serve(world, "--radios=1", f"--switch={switch}")
    world.cells["a"].say(FEED)
    follow(world)
    program = Program(world, published_in)
    try:
        await program.more()
        for cell in ("b", "a"):
            await world.hand_over(cell)
            follow(world)
            await program.more()
        wanted = await program.end()
        await world.wait(lambda: len(program.answered) >= len(wanted))
        assert program.answered == Counter(wanted), "each once"
        await world.wait(lambda: program.missed > 0)
        handed = [one.lines.counters()["missed_handed"] for one in world.cells.values()]
        assert all(handed), "each gateway had a node that left it"
    finally:
        await program.close()
