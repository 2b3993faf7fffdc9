"""The run: a cell starts, a chain is placed, images are read, a node dies, its tasks go on."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from controller.records import NodeView, Placement, TaskState
from protocols.errors import EnvironmentFailure
from protocols.messages.hierarchy import NodeState, ServiceState
from tona.bundle import File, bundle
from tona.cli.api import Api, Target
from tona.cli.follow import NODES, SERVICES, TASKS, Things, until
from tona.cli.signals import unless
from tona.client import AsyncClient, connect
from tona.demo import material
from tona.demo.summary import (
    Failover,
    Latency,
    Placed,
    Reading,
    Summary,
    first_answer_ms,
    latency,
)
from tona.demo.traffic import Traffic
from tona.errors import InvocationError
from tona.local.cell import Cell, Plan
from tona.values import Result

SERVICE: Final = "reading"
WARM_REQUESTS: Final = 8
IN_FLIGHT: Final = 2
ANSWERS_BEFORE_KILL: Final = 3
ANSWERS_AFTER_KILL: Final = 3
NODES_WITHIN_S: Final = 60.0
RUNNING_WITHIN_S: Final = 90.0
TRAFFIC_WITHIN_S: Final = 90.0
DEADLINE_S: Final = 60.0
FEASIBLE: Final = "feasible"
"""The stage at which a node is refused rather than ranked lower."""


class Stage(Protocol):
    """Where the run is shown."""

    def step(self, text: str) -> None:
        """Say what happens now."""

    def said(self, text: str) -> None:
        """Say what came of it."""

    def reading(self, one: Reading) -> None:
        """Show what was read in an image, or why it was not."""

    def pushing(self, files: Sequence[File]) -> None:
        """Announce what is to be pushed."""

    def pushed(self, count: int) -> None:
        """Hear of so many bytes more that were pushed."""

    def fleet(self, nodes: Sequence[NodeView]) -> None:
        """Show every node with load and link."""

    def placed(self, tasks: Sequence[Placed]) -> None:
        """Show where each task runs and why."""


class Given(Struct, frozen=True):
    """What a run is made of."""

    use_case: Path
    page: Path
    images: tuple[Path, ...]
    plan: Plan


class _Kill(Struct, frozen=True):
    failover: Failover
    placed_after: tuple[Placed, ...]


async def run(given: Given, stage: Stage) -> Summary:
    """Run the demonstration. Raises UserError, EnvironmentFailure when it cannot even be shown."""
    cell = Cell(given.plan, lambda name, what: stage.said(f"{name} {what}"))
    try:
        stage.step(f"starting a controller with its broker and {given.plan.nodes} device agents")
        running = await cell.start()
        async with Api(Target(running.api_url)) as api:
            wait = until(api, NODES, _online(given.plan.names), NODES_WITHIN_S, "no fleet online")
            await _unless_failed(cell, wait)
            stage.said(f"API {running.api_url}, broker {running.broker}, logs {cell.logs}")
            await _submit(given, api, stage)
            async with connect(running.api_url) as client:
                return await _Run(given, stage, cell, api, client).run()
    finally:
        await cell.stop()
        stage.said("every process has ended")


async def _submit(given: Given, api: Api, stage: Stage) -> None:
    made = bundle(given.use_case)
    stage.step(f"submitting the use case {SERVICE} with {len(made.files)} artifacts")
    stage.pushing(made.files)
    for file in made.files:
        await api.push(file, stage.pushed)
    await api.call("usecase.submit", document=made.document, format=made.notation)
    stage.step("waiting until every task of the service runs")
    hope = f"service {SERVICE} does not run"
    await until(api, SERVICES, _served, RUNNING_WITHIN_S, hope)
    stage.said("the service runs")


class _Run:
    """The part of a run that has a service to invoke."""

    def __init__(
        self, given: Given, stage: Stage, cell: Cell, api: Api, client: AsyncClient
    ) -> None:
        self._given = given
        self._stage = stage
        self._cell = cell
        self._api = api
        self._client = client
        self._clock = asyncio.get_running_loop().time
        self._page = given.page.read_bytes()
        self._started_s = self._clock()
        self._sent = 0
        self._answered = 0
        self._failures: list[str] = []
        self._words: list[int] = []
        """Known words found in each answer to the page."""

    async def run(self) -> Summary:
        """Read, kill, sum up."""
        stage, images = self._stage, self._given.images
        stage.step(f"reading {len(images)} images" if len(images) != 1 else "reading one image")
        cold_ms = [(await self._read_page()).elapsed_ms]
        readings = await self._read_all()
        stage.step(f"the same page {WARM_REQUESTS} times, now warm")
        warm_ms = [(await self._read_page()).elapsed_ms for _ in range(WARM_REQUESTS)]
        stage.fleet(await self._api.call("fleet.status"))
        placed = await self._placed()
        stage.placed(placed)
        kill = await self._kill()
        stage.fleet(await self._api.call("fleet.status"))
        stage.placed(kill.placed_after)
        return self._sum_up(readings, latency(cold_ms), latency(warm_ms), placed, kill)

    async def _read_all(self) -> list[Reading]:
        """Read the images in order, IN_FLIGHT of them at a time."""
        readings: list[Reading] = []
        under_way: deque[asyncio.Task[Reading]] = deque()

        async def next_done() -> None:
            reading = await under_way[0]
            under_way.popleft()
            self._stage.reading(reading)
            readings.append(reading)

        try:
            for image in self._given.images:
                under_way.append(asyncio.create_task(self._read(image)))
                if len(under_way) >= IN_FLIGHT:
                    await next_done()
            while under_way:
                await next_done()
        finally:
            for task in under_way:
                task.cancel()
        return readings

    async def _read(self, image: Path) -> Reading:
        try:
            data = material.read(image)
        except OSError as error:
            return Reading(str(image), error=error.strerror or str(error))
        return await self._invoke_on(image, data)

    async def _invoke_on(self, image: Path, data: bytes) -> Reading:
        self._sent += 1
        try:
            result = await self._client.invoke(SERVICE, {"file": data}, deadline_s=DEADLINE_S)
            text = " ".join(result.text("text").split("\n"))
        except InvocationError as error:
            # An answer too: what it says is of this file.
            self._answered += 1
            return Reading(str(image), error=str(error))
        self._answered += 1
        return Reading(str(image), text, latency_ms=result.elapsed_ms)

    async def _read_page(self) -> Result:
        self._sent += 1
        try:
            result = await self._client.invoke(SERVICE, {"file": self._page}, deadline_s=DEADLINE_S)
        except InvocationError as error:
            self._failures.append(str(error))
            raise
        self._answered += 1
        self._words.append(material.words_found(result.text("text")))
        return result

    async def _placed(self) -> tuple[Placed, ...]:
        tasks = await self._api.call("task.list", service=SERVICE)
        return tuple(Placed(one.spec.task, one.node, why(one.placement, one.node)) for one in tasks)

    async def _kill(self) -> _Kill:
        stage, tasks = self._stage, await self._api.call("task.list", service=SERVICE)
        held = [one.node for one in tasks]
        victim = max(sorted(set(held)), key=held.count)
        moved = tuple(one.spec.task for one in tasks if one.node == victim)
        traffic = Traffic(self._read_page, IN_FLIGHT)
        traffic.start()
        try:
            stage.step(f"{IN_FLIGHT} requests at a time keep flowing")
            await traffic.until(lambda all_: len(all_) >= ANSWERS_BEFORE_KILL, TRAFFIC_WITHIN_S)
            killed_s = self._clock()
            pid = self._cell.kill(victim)
            stage.step(f"killed (SIGKILL) the device agent of {victim}, process {pid}, "
                       f"which ran {len(moved)} of {len(tasks)} tasks")  # fmt: skip
            again_ms = await self._tasks_again(victim, killed_s)
            await traffic.until(
                lambda all_: (
                    sum(not one.error and victim not in one.nodes for one in all_)
                    >= ANSWERS_AFTER_KILL
                ),
                TRAFFIC_WITHIN_S,
            )
            await traffic.stop()
        finally:
            traffic.abandon()
        gap_ms = first_answer_ms(traffic.answers, killed_s, victim)
        if gap_ms is not None:
            stage.said(f"the first answer without {victim} came {gap_ms / 1000:.1f} s later")
        return _Kill(Failover(victim, moved, gap_ms, again_ms), await self._placed())

    async def _tasks_again(self, victim: str, killed_s: float) -> float | None:
        try:
            await until(self._api, TASKS, _without(victim), RUNNING_WITHIN_S, "tasks do not go on")
        except EnvironmentFailure as error:
            self._failures.append(str(error))
            return None
        return (self._clock() - killed_s) * 1000

    def _sum_up(
        self,
        readings: list[Reading],
        cold: Latency,
        warm: Latency,
        placed: tuple[Placed, ...],
        kill: _Kill,
    ) -> Summary:
        words = min(self._words, default=0)
        whole = words == material.WORDS_KNOWN and kill.failover.first_answer_ms is not None
        if self._given.page in self._given.images:
            # These images are ours and good: only a user's own may be unreadable.
            whole = whole and not any(one.error for one in readings)
        return Summary(
            ok=whole and not self._failures and self._sent == self._answered,
            images=tuple(readings),
            images_read=sum(not one.error for one in readings),
            words_found=words,
            words_known=material.WORDS_KNOWN,
            cold=cold,
            warm=warm,
            sent=self._sent,
            answered=self._answered,
            failed=len(self._failures),
            failures=tuple(self._failures),
            placed=placed,
            placed_after=kill.placed_after,
            failover=kill.failover,
            elapsed_s=self._clock() - self._started_s,
        )


def why(placement: Placement | None, node: str) -> str:
    """Say in one line why a task is where it is. Pure."""
    if placement is None:
        return "no decision is known"
    totals = {name: sum(terms.values()) for name, terms in placement.scores.items()}
    if node not in totals:
        return placement.reason or "it was placed before"
    terms = ", ".join(
        f"{name.removesuffix('_ms')} {value:.0f}"
        for name, value in placement.scores[node].items()
        if round(value)
    )
    others = [f"{name} {total:.0f}" for name, total in sorted(totals.items()) if name != node]
    rest = f"; {', '.join(others)}" if others else "; no other node was feasible"
    refused = [f"{one.node}: {one.reason}" for one in placement.rejected if one.stage == FEASIBLE]
    return "; ".join(
        (f"score {totals[node]:.0f} ({terms or 'nothing against it'}){rest}", *refused)
    )


async def _unless_failed(cell: Cell, wait: Awaitable[Things]) -> None:
    """Wait, unless a process of the cell is beyond mending: then raise why."""
    failing = asyncio.ensure_future(cell.failed())
    try:
        if await unless(failing, wait) is None:
            raise failing.result()
    finally:
        failing.cancel()


def _online(names: Sequence[str]) -> Callable[[Things], bool]:
    def done(nodes: Things) -> bool:
        return all(one in nodes and nodes[one].state is NodeState.ONLINE for one in names)

    return done


def _served(services: Things) -> bool:
    one = services.get(SERVICE)
    return one is not None and one.state is ServiceState.RUNNING


def _without(node: str) -> Callable[[Things], bool]:
    def done(tasks: Things) -> bool:
        return all(one.node != node and one.state is TaskState.RUNNING for one in tasks.values())

    return done
