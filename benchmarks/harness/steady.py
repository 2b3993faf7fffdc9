"""A whole cell at its normal pace, and how long a control action takes meanwhile."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.harness import kernel
from benchmarks.harness.bare import Requester, requester
from benchmarks.harness.cell import NAME, Cell, cell
from benchmarks.harness.node import Spare
from benchmarks.harness.processes import Process, module, running
from benchmarks.harness.report import progress
from benchmarks.harness.services import submit
from protocols import topics
from protocols.topics import Channel, Party

BARE: Final = "bare"
HOME: Final = "home"
SPARE: Final = "spare"
HOME_CPU_PERCENT: Final = 5.0
RATE_HZ: Final = 1.0
TURN_S: Final = 10.0
"""One turn of the whole fleet's reports; the controller and the bare receiver take turns."""
PAUSE_S: Final = 0.2
"""Between two actions."""
LEAD_S: Final = 0.5
"""From the first report to the first action."""
WAIT_S: Final = 10.0
ARRIVE_S: Final = 10.0
HEARTBEAT_MS: Final = 600_000
"""Between two turns the fleet is silent, and nobody shall miss it."""
ANSWER_BYTES: Final = 420


class Steady(NamedTuple):
    """What was seen over all turns."""

    actions_ms: list[float]
    """From a report that a carrier is lost to the Assign at the spare."""
    bare_ms: list[float]
    """Bare round trips under as many reports, to a receiver that only counts."""
    cpu_percent: float
    """Of the controller, of one core, while the fleet reports."""
    sent: int
    lost: int
    """Of those sent to the controller."""
    late_s: float
    """How far behind its pace the fleet fell, at most."""


async def steady(folder: Path, broker: str, nodes: int, turns: int) -> Steady:
    """Have so many nodes report once a second, through one controller that is held to one core."""
    each = int((TURN_S - 2 * LEAD_S) / PAUSE_S)
    async with _standing(folder, broker, nodes, turns * each) as stage:
        kernel.pin(stage.cell.controller.pid, max(os.sched_getaffinity(0)))
        seen = Steady([], [], 0.0, 0, 0, 0.0)
        for turn in range(turns):
            progress(f"{nodes} nodes at {RATE_HZ:g} Hz, turn {turn + 1} of {turns}")
            seen = await _turn(stage, nodes, each, seen)
        return seen._replace(cpu_percent=seen.cpu_percent / turns)


class _Stage(NamedTuple):
    cell: Cell
    fleet: Process
    bare: Process
    home: Spare
    spare: Spare
    asking: Requester


@asynccontextmanager
async def _standing(folder: Path, broker: str, nodes: int, services: int) -> AsyncIterator[_Stage]:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(
            cell(folder, broker=broker, heartbeat_ms=HEARTBEAT_MS)
        )
        where = (one.host, str(one.port))
        heard = topics.wildcard(BARE, Party.NODE, Channel.LOAD)
        receiver = module("benchmarks.programs.receiver", *where, heard)
        bare = await stack.enter_async_context(running(receiver, folder / "receiver.log"))
        generator = module("benchmarks.programs.generator", *where, str(nodes - 2))
        progress(f"connecting {nodes} nodes")
        fleet = await stack.enter_async_context(running(generator, folder / "generator.log"))
        await bare.line()
        await fleet.line()
        home, spare = Spare(HOME, HOME_CPU_PERCENT), Spare(SPARE)
        await stack.enter_async_context(home.running(one))
        await stack.enter_async_context(spare.running(one))
        asking = await stack.enter_async_context(
            requester(one, "bare", ANSWER_BYTES, qos=0, answer_qos=1)
        )

        async def all_there() -> bool:
            return len(await one.call("fleet.status")) >= nodes

        await one.until(f"{nodes} nodes born", all_there)
        progress(f"{services} services on one of them")
        await submit(one, services, HOME, SPARE)
        yield _Stage(one, fleet, bare, home, spare, asking)


async def _turn(stage: _Stage, nodes: int, each: int, seen: Steady) -> Steady:
    """Let the fleet report to the controller while it acts, then to the bare receiver."""

    async def taken() -> int:
        counters = (await stage.cell.call("system.info")).counters
        assert counters["events_dropped"] == 0
        return int(counters["mqtt_received"]) - stage.home.said - stage.spare.said

    async def act() -> float:
        return await action(stage.home, stage.spare)

    async def ask() -> float:
        return await stage.asking.ask(bytes(ANSWER_BYTES)) / 1000

    pid = stage.cell.controller.pid
    before, cpu_s = await taken(), kernel.cpu_s(pid)
    said, actions = await _meanwhile(stage.fleet, NAME, nodes, act, each)
    used = 100 * (kernel.cpu_s(pid) - cpu_s) / said["took_s"]
    lost = await _missing(taken, before + int(said["sent"]))
    _, bare = await _meanwhile(stage.fleet, BARE, nodes, ask, each)
    return Steady(
        seen.actions_ms + actions,
        seen.bare_ms + bare,
        seen.cpu_percent + used,
        seen.sent + int(said["sent"]),
        seen.lost + lost,
        max(seen.late_s, said["late_s"]),
    )


async def _meanwhile(
    fleet: Process, to: str, nodes: int, act: Callable[[], Awaitable[float]], most: int
) -> tuple[dict[str, float], list[float]]:
    """Do something over and over while the fleet reports, until shortly before it ends."""
    await fleet.ask([to, nodes * RATE_HZ, TURN_S])
    end_s = time.monotonic() + TURN_S - LEAD_S
    sending = asyncio.create_task(fleet.ask(None))
    await asyncio.sleep(LEAD_S)
    found: list[float] = []
    while len(found) < most and time.monotonic() < end_s:
        took_ms = await act()
        if not sending.done():
            found.append(took_ms)
        await asyncio.sleep(PAUSE_S)
    return await sending, found


async def action(home: Spare, spare: Spare) -> float:
    """Take the carrier from the node's link; return when a task of it was assigned anew, in ms."""
    while not spare.assigned.empty():
        spare.assigned.get_nowait()
    began_ns = home.link(carrier=False)
    try:
        async with asyncio.timeout(WAIT_S):
            at_ns, _ = await spare.assigned.get()
    finally:
        home.link(carrier=True)
    return (at_ns - began_ns) / 1e6


async def _missing(taken: Callable[[], Awaitable[int]], wanted: int) -> int:
    """Return how many of the reports do not come, however long one waits."""
    end_s = time.monotonic() + ARRIVE_S
    missing = wanted - await taken()
    while missing > 0 and time.monotonic() < end_s:
        await asyncio.sleep(PAUSE_S)
        missing = wanted - await taken()
    return max(0, missing)
