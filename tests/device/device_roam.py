"""Cells around a real daemon: brokers, gateways that carry, schedulers that hand over, a client."""

import asyncio
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from device_world import ECHO, LONG_S, NODE, Agent, Store, until
from real_brokers import Broker

from controller.broker.address import Address
from controller.decider import Carry, Event, Role
from controller.host.host import Host
from controller.lines import Lines, Place, Plan
from protocols import topics
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port
from protocols.messages import (
    Assign,
    Birth,
    Death,
    HandoverCommand,
    HandoverComplete,
    HandoverTimes,
    Invoke,
    Neighbours,
    Result,
    Status,
    Welcome,
)
from protocols.messages import invocation as words
from protocols.messages.mobility import CellPoint
from protocols.messages.task import InstanceState
from protocols.topics import Channel, Party, Speaker
from protocols.transport.backoff import Policy
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

FORWARD_MS: Final = 10_000
AGAIN_S: Final = 1.0
"""Silence after which a client asks again; twice as much each time."""
EAGER: Final = Policy(first_ms=20, cap_ms=100)
T = TypeVar("T")


class _Roles:
    """The part of a host that lines speak to."""

    def __init__(self, role: str) -> None:
        self.roles = {role: Role.TS}

    def post(self, _role: str, _event: Event) -> None:
        """What controls is heard by the scheduler of the test."""


class _Links:
    def wired(self) -> None:
        """Nothing waits."""


class Cell:
    """A broker, the gateway that carries, and a scheduler."""

    def __init__(self, name: str, world: "Cells", folder: Path) -> None:
        folder.mkdir()
        self.name = name
        self.world = world
        self.broker = Broker("mosquitto", folder)
        self.heard: list[Inbound] = []
        self.silent = False
        """Whether the scheduler welcomes nobody."""
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def point(self) -> CellPoint:
        url = f"mqtt://127.0.0.1:{self.broker.port}"
        return CellPoint(self.name, f"ts-{self.name}", (url,), (self.world.store.url,))

    async def start(self) -> None:
        await self.broker.start()
        plan = Plan(
            identity=f"gateway-{self.name}",
            home=Place(Address("127.0.0.1", self.broker.port, tls=False), self.name),
            uplink=None,
            direct=(),
            epoch=1,
            meet=lambda url, cell: Place(
                Address("127.0.0.1", int(url.rpartition(":")[2]), tls=False), cell
            ),
        )
        host: Host = _Roles(f"ts-{self.name}")  # type: ignore[assignment] - all that lines need
        self.lines = Lines(plan, host, _Links())  # type: ignore[arg-type] - the same
        filters = [
            topics.wildcard(self.name, Party.NODE, one)
            for one in (Channel.PRESENCE, Channel.STATUS)
        ]
        self.session = Session(
            Settings(
                host="127.0.0.1",
                port=self.broker.port,
                identity=f"ts-{self.name}",
                speaker=Speaker.CONTROLLER,
                cell=self.name,
                backoff=EAGER,
            ),
            subscriptions=filters,
            on_message=self._hear,
            on_connected=lambda _: None,
            on_disconnected=lambda _: None,
            next_incarnation=lambda: ord(self.name),
        )
        self._tasks = [*self.lines.run(), asyncio.create_task(self.session.run())]

    async def connected(self) -> None:
        await until(lambda: self.session.connected and not self.lines.failure())

    def _hear(self, inbound: Inbound) -> None:
        self.heard.append(inbound)
        frame = inbound.frame
        if isinstance(frame.body, Birth) and not self.silent:
            self.world.came(self, frame.incarnation, frame.body)
        self.world.news.set()

    def say(self, body: Any) -> None:
        topic = topics.build(self.name, Party.NODE, NODE, Channel.COMMAND)
        self.session.send(topic, body, cause="test")

    def said(self, kind: type[T]) -> list[T]:
        return [one.frame.body for one in self.heard if isinstance(one.frame.body, kind)]

    async def close(self) -> None:
        await asyncio.gather(self.session.close(), self.lines.close())
        await asyncio.gather(*self._tasks)
        await self.broker.close()


class Cells:
    """All of it; the anchor's part is a word between friends."""

    def __init__(self, folder: Path, store: Store, names: str = "ab") -> None:
        self.store = store
        self.folder = folder
        self.news = asyncio.Event()
        self.where, self.incarnation = "", 0
        """Of the newest attachment."""
        self.births: list[tuple[str, int, Birth]] = []
        self.cells = {one: Cell(one, self, folder / one) for one in names}
        self.agent = Agent(folder / "data", self.cells["a"].broker.port)
        self._number = 0

    async def start(self) -> None:
        for one in self.cells.values():
            await one.start()
        points = [one.point for one in self.cells.values()]
        for one in self.cells.values():
            await one.connected()
            one.lines.reach([point for point in points if point.cell != one.name])

    def came(self, cell: Cell, incarnation: int, birth: Birth) -> None:
        """Welcome a node; a new attachment is where it is, and the others carry after it."""
        urls = (self.store.url,)
        cell.say(Welcome(f"ts-{cell.name}", ord(cell.name), incarnation, store_urls=urls))
        self.births.append((cell.name, incarnation, birth))
        if incarnation <= self.incarnation:
            return
        self.where, self.incarnation = cell.name, incarnation
        others = [one for one in self.cells.values() if one is not cell]
        cell.lines.carry(Carry(NODE, "", 0))
        for one in others:
            one.lines.carry(Carry(NODE, cell.name, FORWARD_MS))
        cell.say(Neighbours(incarnation, tuple(one.point for one in others)))
        if birth.arrival is not None:
            cell.say(HandoverComplete(birth.arrival.handover, incarnation))

    async def wait(self, ready: Any) -> Any:
        """Wait until something that was heard makes it true; return what."""
        async with asyncio.timeout(LONG_S):
            while not (found := ready()):
                self.news.clear()
                await self.news.wait()
            return found

    def command(self, target: str) -> HandoverCommand:
        self._number += 1
        point = self.cells[target].point
        body = HandoverCommand(f"h{self._number}", NODE, point, self.incarnation)
        self.cells[self.where].say(body)
        return body

    async def hand_over(self, target: str) -> str:
        """Have the node go, and wait until it has left; return the name of the handover."""
        source = self.cells[self.where]
        before = len(farewells(source))
        told = self.command(target)
        await self.wait(lambda: self.where == target and len(farewells(source)) > before)
        return told.handover

    async def times(self, handover: str) -> HandoverTimes:
        """Wait until the node has told how a handover went."""
        found = await self.wait(
            lambda: [
                one
                for cell in self.cells.values()
                for one in cell.said(HandoverTimes)
                if one.handover == handover
            ]
        )
        times: HandoverTimes = found[0]
        return times

    async def close(self) -> None:
        await self.agent.close()
        for one in self.cells.values():
            await one.close()


class Client:
    """Asks through the broker of one cell, 25 times a second, and again when nothing comes."""

    def __init__(self, world: Cells, cell: str, pace_s: float = 0.04) -> None:
        self._world = world
        self._cell = cell
        self._pace_s = pace_s
        self.name = f"app-{cell}"
        self.reply = topics.build(cell, Party.CLIENT, self.name, Channel.REPLY)
        self.answers: dict[str, list[int]] = {}
        """Attempts that were answered, by request."""
        self.failures: list[words.Failure] = []
        self.repeated = 0
        self._attempts: dict[str, int] = {}
        self._pending: dict[str, asyncio.TimerHandle] = {}
        self._stop = asyncio.Event()
        self._done = asyncio.Event()
        self.session = Session(
            Settings(
                host="127.0.0.1",
                port=world.cells[cell].broker.port,
                identity=self.name,
                speaker=Speaker.CLIENT,
                cell=cell,
                backoff=EAGER,
            ),
            subscriptions=[str(self.reply)],
            on_message=self._hear,
            on_connected=lambda _: None,
            on_disconnected=lambda _: None,
            next_incarnation=lambda: 1,
        )
        self._running = asyncio.create_task(self.session.run())
        self._asking = asyncio.create_task(self._ask())

    async def more(self, count: int = 4) -> None:
        """Wait until so many more requests were answered."""
        enough = len(self.answers) + count
        await self._world.wait(lambda: len(self.answers) >= enough)

    async def _ask(self) -> None:
        await until(lambda: self.session.connected)
        number = 0
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stop.is_set():
            number += 1
            self._send(f"{self.name}-{number}")
            due = max(due + self._pace_s, loop.time())
            try:
                async with asyncio.timeout_at(due):
                    await self._stop.wait()
            except TimeoutError:
                pass

    def _send(self, request: str) -> None:
        """Ask where the node is, as far as is known."""
        attempt = self._attempts[request] = self._attempts.get(request, 0) + 1
        self.repeated += attempt > 1
        there = self._world.where
        edge = words.Edge("x", words.REQUEST, "x")
        step = words.Step("echo", NODE, 1, (edge,), ("y",), there)
        plan = words.Plan("s", 1, (step,), (words.Edge("y", "echo", "y"),))
        value = words.Tensor(words.Dtype.UINT8, (len(request),), request.encode())
        body = Invoke(request, "s", 60_000, {"x": value}, str(self.reply), attempt, plan)
        topic = topics.build(there, Party.NODE, NODE, Channel.INVOKE)
        self.session.send(topic, body, cause=request)
        loop = asyncio.get_running_loop()
        patience_s = AGAIN_S * 2 ** min(attempt - 1, 3)
        self._pending[request] = loop.call_later(patience_s, self._send, request)

    def _hear(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        if not isinstance(body, Result):
            return
        if body.failure is not None:
            self.failures.append(body.failure)
            return
        waits = self._pending.pop(body.request, None)
        if waits is not None:
            waits.cancel()
        self.answers.setdefault(body.request, []).append(body.attempt)
        self._world.news.set()
        if not self._pending:
            self._done.set()

    @property
    def doubled(self) -> list[str]:
        """Requests with more answers than they were asked."""
        return [name for name, found in self.answers.items() if len(found) > self._attempts[name]]

    async def end(self) -> int:
        """Ask no more, wait for every answer; return how many there were."""
        self._stop.set()
        await self._asking
        async with asyncio.timeout(LONG_S):
            while self._pending:
                self._done.clear()
                await self._done.wait()
        await self.session.close()
        await self._running
        assert self.answers.keys() == self._attempts.keys()
        return len(self.answers)


def farewells(cell: Cell) -> list[Death]:
    return [one for one in cell.said(Death) if one.orderly]


def statuses(world: Cells) -> list[Status]:
    return [one for cell in world.cells.values() for one in cell.said(Status)]


async def serve(world: Cells, *flags: str) -> None:
    """Start the daemon at home, with a task that runs."""
    wasmtime = pytest.importorskip("wasmtime")
    code = bytes(wasmtime.wat2wasm(ECHO))
    await world.agent.start("--cell=a", *flags)
    await world.wait(lambda: world.where == "a")
    manifest = Manifest(
        ExecutorKind.WASM,
        ArtifactRef(world.store.put(code), len(code)),
        (Port("x", Dtype.UINT8, (-1,)),),
        (Port("y", Dtype.UINT8, (-1,)),),
    )
    world.cells["a"].say(Assign("echo", "s", 1, 1, manifest))
    await world.wait(lambda: any(one.state is InstanceState.READY for one in statuses(world)))
