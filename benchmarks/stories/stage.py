"""The stage of a story: a cell of real processes, users with a zone of their own, a clock."""

import asyncio
import json
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import tona
from benchmarks.harness.cell import Cell, cell
from benchmarks.harness.machines import Island
from benchmarks.harness.processes import running
from protocols.topics import Speaker

DEADLINE_S: Final = 5.0
LOOK_S: Final = 0.25
BURN: Final = "import os\nos.sched_setaffinity(0, {core})\nwhile True:\n pass"
"""A stranger's program that takes what it can get of some cores."""


class Met(NamedTuple):
    """What one user met with one request."""

    at_s: float
    """When it was sent, from the beginning of the story."""
    user: str
    latency_ms: float | None
    """None: it was refused or failed."""
    why: str = ""


class Seen(NamedTuple):
    """What `service.qos` said at a moment."""

    at_s: float
    satisfaction_ratio: float | None
    latency_ms: float | None


class Event(NamedTuple):
    """An entry of a task's story."""

    at_s: float
    task: str
    layer: str
    event: str
    detail: str


class Run(NamedTuple):
    """Everything that one telling brought."""

    met: list[Met]
    seen: list[Seen]
    events: list[Event]
    answered: int
    refused: int


class Stage:
    """A running cell with one service; `at_s` is the story's clock."""

    def __init__(self, one: Cell, folder: Path, island: Island | None = None) -> None:
        self.cell = one
        self.island = island
        """Where the nodes are, if they are apart from the rest."""
        self.folder = folder
        self.met: list[Met] = []
        self.seen: list[Seen] = []
        self.events: list[Event] = []
        self._told: set[tuple[str, int]] = set()
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._open: set[asyncio.Task[None]] = set()

    @property
    def at_s(self) -> float:
        """Seconds since the story began."""
        return self._loop.time() - self._began_s

    def begin(self) -> None:
        """Start the clock, and forget what stood before."""
        self._began_s = self._loop.time()
        self.met.clear()
        self.seen.clear()
        self.events.clear()

    async def until(self, second: float) -> None:
        """Let the story go on to this second."""
        await asyncio.sleep(max(0.0, second - self.at_s))

    async def submit(self, document: dict[str, Any]) -> None:
        """Submit a use case and wait until it runs."""
        await self.cell.call("usecase.submit", document=json.dumps(document), format="json")
        await self.cell.serving(1)

    @asynccontextmanager
    async def users(
        self, service: str, value: bytes, rate_per_s: Callable[[], float], count: int
    ) -> AsyncIterator[None]:
        """Have so many users ask at this rate each, whatever becomes of what they asked before."""
        async with AsyncExitStack() as stack:
            trust = self.cell.trust
            clients = {
                name: await stack.enter_async_context(
                    tona.connect(self.cell.api_url if trust is None else trust.bundle(name))
                )
                for name in _names(count)
            }
            loops = [
                asyncio.create_task(self._user(name, one, service, value, rate_per_s))
                for name, one in clients.items()
            ]
            try:
                yield
            finally:
                for one in loops:
                    one.cancel()
                await asyncio.gather(*loops, return_exceptions=True)
                await asyncio.gather(*self._open, return_exceptions=True)

    async def _user(
        self,
        user: str,
        client: tona.AsyncClient,
        service: str,
        value: bytes,
        rate_per_s: Callable[[], float],
    ) -> None:
        due_s = self._loop.time()
        while True:
            due_s += random.expovariate(1) / rate_per_s()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            task = asyncio.create_task(self._ask(user, client, service, value))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _ask(self, user: str, client: tona.AsyncClient, service: str, value: bytes) -> None:
        at_s = self.at_s
        try:
            await client.invoke(service, {"x": value}, deadline_s=DEADLINE_S)
        except tona.InvocationError as error:
            self.met.append(Met(at_s, user, None, str(error)))
        else:
            self.met.append(Met(at_s, user, (self.at_s - at_s) * 1000))

    @asynccontextmanager
    async def watched(self, service: str) -> AsyncIterator[None]:
        """Look at the service's quality and its tasks' stories all the while."""
        watching = asyncio.create_task(self._watch(service))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await self._look(service)

    async def _watch(self, service: str) -> None:
        while True:
            await self._look(service)
            await asyncio.sleep(LOOK_S)

    async def _look(self, service: str) -> None:
        quality = await self.cell.call("service.qos", name=service)
        rows = [one for one in quality.rows if one.indicator == "latency_ms"]
        measured = next((one.value for one in rows if isinstance(one.value, float)), None)
        self.seen.append(Seen(self.at_s, quality.satisfaction_ratio, measured))
        for task in await self.cell.call("task.list"):
            for entry in await self.cell.call("task.events", name=task.spec.task):
                key = task.spec.task, entry.number
                if key not in self._told:
                    self._told.add(key)
                    self.events.append(
                        Event(self.at_s, task.spec.task, entry.layer, entry.event, entry.detail)
                    )

    async def core_of_task(self) -> int:
        """Return the core of the node that runs the service's first task now."""
        tasks = await self.cell.call("task.list")
        last = tasks[0].node.endswith("2")
        return cores()[-1 if last else 0]

    @asynccontextmanager
    async def burning(self, cores: Sequence[int], count: int = 1) -> AsyncIterator[None]:
        """Have a stranger's programs take these cores as long as the context."""
        async with AsyncExitStack() as stack:
            for at in range(count):
                program = BURN.format(core=set(cores))
                command = [sys.executable, "-c", program]
                log = self.folder / f"burn-{at}.log"
                await stack.enter_async_context(running(command, log))
            yield

    def run(self) -> Run:
        """Return what the story has brought."""
        answered = sum(one.latency_ms is not None for one in self.met)
        return Run(self.met, self.seen, self.events, answered, len(self.met) - answered)


def on_core(core: int) -> Callable[[list[str]], list[str]]:
    """Return what makes a command one that keeps to a core."""

    def around(command: list[str]) -> list[str]:
        return [shutil.which("taskset") or "taskset", "--cpu-list", str(core), *command]

    return around


@asynccontextmanager
async def stage(
    folder: Path,
    nodes: dict[str, Callable[[list[str]], list[str]]],
    flags: Sequence[str] = (),
    users_apart: int = 0,
) -> AsyncIterator[Stage]:
    """Run a controller and these agents, each with the way its command is run.

    With `users_apart`, the nodes are on an island, and there may be so many users.
    """
    async with AsyncExitStack() as stack:
        island = None
        if users_apart:
            island = Island()
            stack.enter_context(island.standing())
            who = dict.fromkeys(nodes, Speaker.NODE)
            who |= dict.fromkeys(_names(users_apart), Speaker.CLIENT)
            made = cell(folder, trusted_host=island.host, identities=who, sample_ms=250)
        else:
            made = cell(folder, sample_ms=250)
        one = await stack.enter_async_context(made)
        for name, around in nodes.items():
            way = (lambda command, on=around: island.around(on(command))) if island else around
            await stack.enter_async_context(one.agent(name, way, flags))
        yield Stage(one, folder, island)


def _names(count: int) -> list[str]:
    return [f"user-{at}" for at in range(count)]


async def told(
    one: Stage,
    service: str,
    span_s: float,
    acts: Callable[[Stage], Awaitable[None]],
) -> Run:
    """Tell a story: its acts by the clock, to the end of its time."""
    one.begin()
    async with one.watched(service):
        await acts(one)
        await one.until(span_s)
    return one.run()


def cores() -> list[int]:
    """Return the cores that stories may use."""
    return sorted(os.sched_getaffinity(0))
