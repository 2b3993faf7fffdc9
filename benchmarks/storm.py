"""A cell is lost and all its nodes come to two neighbours at once: how long the others wait."""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from benchmarks.harness.cell import Cell
from benchmarks.harness.node import Spare
from benchmarks.harness.processes import Process, module, running
from benchmarks.harness.report import Report, options, percentile, progress
from benchmarks.harness.services import submit
from benchmarks.harness.steady import action
from controller.decider import Role
from controller.twin.svg import Chart, Line, Panel
from tona.local.deployed import Deployed, Plan
from tona.local.deployments import Deployment
from tona.local.deployments import Process as Roles

NODES: Final = 2000
ROUNDS: Final = 3
QUICK_ROUNDS: Final = 1
LOST, NEIGHBOURS = "du-1", ("du-2", "du-3")
HOME: Final = "home"
SPARE: Final = "spare"
HOME_CPU_PERCENT: Final = 5.0
PAUSE_S: Final = 0.05
"""Between two actions."""
CALM_S: Final = 10.0
"""Of normal reports, before each storm."""
AFTER_S: Final = 5.0
"""How long actions go on when the last node has been welcomed."""
RATIO_BOUND: Final = 10.0
CELLS: Final = Deployment(
    "storm",
    "a TA, and three cells with a TS each",
    (
        Roles("cu", (Role.NAMO, Role.TA)),
        *(Roles(name, (Role.TS,)) for name in (LOST, *NEIGHBOURS)),
    ),
    "ue",
)


class Seen(NamedTuple):
    """One storm."""

    normal_ms: list[float]
    """Control actions before."""
    storm: list[tuple[float, float]]
    """Control actions: when, in seconds after the loss, and how long, in ms."""
    welcomed_s: list[float]
    """When each node was served again; negative: not at all."""


class Stage(NamedTuple):
    """What stands."""

    fleet: Process
    home: Spare
    spare: Spare


@asynccontextmanager
async def _standing(folder: Path, nodes: int, actions: int) -> AsyncIterator[Stage]:
    deployed = Deployed(
        Plan(folder=folder / "cells", deployment=CELLS, nodes=0),
        lambda name, text: progress(f"{name}: {text}"),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(deployed.stop)
        seen = await deployed.start()
        brokers = {one.cell: one.broker.removeprefix("mqtt://") for one in seen.processes}
        where = [f"{cell}={brokers[cell]}" for cell in (LOST, *NEIGHBOURS)]
        program = module("benchmarks.programs.storm_fleet", str(nodes), *where)
        fleet = await stack.enter_async_context(running(program, folder / "fleet.log"))
        await fleet.line()
        broker = {"api_url": seen.api_url, "broker": f"mqtt://{brokers[NEIGHBOURS[0]]}"}
        assert urlsplit(broker["broker"]).port
        one = Cell(folder, fleet, broker, None, NEIGHBOURS[0])
        stack.push_async_callback(one.close)
        home, spare = Spare(HOME, HOME_CPU_PERCENT), Spare(SPARE)
        await stack.enter_async_context(home.running(one))
        await stack.enter_async_context(spare.running(one))
        progress(f"{actions} services in {NEIGHBOURS[0]}")
        await submit(one, actions, HOME, SPARE)
        yield Stage(fleet, home, spare)


async def _acting(stage: Stage, began: float, until: asyncio.Event) -> list[tuple[float, float]]:
    """Do one control action after the other; return when each began, and how long it took."""
    found: list[tuple[float, float]] = []
    while not until.is_set():
        at_s = time.monotonic() - began
        found.append((at_s, await action(stage.home, stage.spare)))
        await asyncio.sleep(PAUSE_S)
    return found


async def _for(seconds: float) -> asyncio.Event:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    return over


async def _round(stage: Stage) -> Seen:
    """Have all nodes at the one cell, then at its neighbours."""
    await stage.fleet.ask([LOST])
    normal = await _acting(stage, time.monotonic(), await _for(CALM_S))
    over, began = asyncio.Event(), time.monotonic()
    acting = asyncio.create_task(_acting(stage, began, over))
    welcomed = await stage.fleet.ask(list(NEIGHBOURS))
    await asyncio.sleep(AFTER_S)
    over.set()
    return Seen([ms for _, ms in normal], await acting, welcomed)


def _draw(seen: Seen, normal_p99_ms: float, path: Path) -> None:
    """Draw a storm: how many nodes are served again, and how long the others wait meanwhile."""
    served = sorted(one for one in seen.welcomed_s if one >= 0)
    span = max(at for at, _ in seen.storm)
    curve = [(0.0, 0.0), *((at, float(number + 1)) for number, at in enumerate(served))]
    chart = Chart(
        f"{len(seen.welcomed_s)} nodes lose their cell at once",
        "seconds since the loss",
        (
            Panel("nodes served again", [Line("nodes", [*curve, (span, float(len(served)))])]),
            Panel(
                "control actions for others, ms (dashed: ten times the normal p99)",
                [Line("action", list(seen.storm))],
                target=RATIO_BOUND * normal_p99_ms,
            ),
        ),
        (0.0, span),
    )
    path.write_text(chart.svg(), encoding="utf-8")


async def main() -> None:
    """Run the benchmark."""
    parser = options("storm", __doc__ or "")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--plot", type=Path, help="draw the worst storm to this file")
    asked = parser.parse_args()
    rounds = QUICK_ROUNDS if asked.quick else ROUNDS
    report = Report("storm")
    storms: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        # Each action moves one task, and brings it back.
        actions = int(rounds * (CALM_S + AFTER_S + CALM_S) / PAUSE_S)
        async with _standing(Path(name), asked.nodes, min(actions, 400)) as stage:
            for number in range(rounds):
                progress(f"storm {number + 1} of {rounds}")
                storms.append(await _round(stage))
    normal = [one for seen in storms for one in seen.normal_ms]
    # What counts is the time in which nodes come; the calm after it would hide them.
    during = [ms for seen in storms for at, ms in seen.storm if at <= max(seen.welcomed_s)]
    waits = [one for seen in storms for one in seen.welcomed_s]
    served = [one for one in waits if one >= 0]
    for share in (50, 99):
        report.figure(f"normal_p{share}_ms", percentile(normal, share))
        report.figure(f"storm_p{share}_ms", percentile(during, share))
    ratio = percentile(during, 99) / percentile(normal, 99)
    report.figure("storm_p99_ratio", ratio, RATIO_BOUND)
    report.figure("storm_max_ms", max(during))
    report.figure("served_again_p50_s", percentile(served, 50))
    report.figure("served_again_p99_s", percentile(served, 99))
    report.figure("served_again_max_s", max(served))
    report.figure("not_served_count", len(waits) - len(served), 0)
    report.figure("actions_normal_count", len(normal))
    report.figure("actions_storm_count", len(during))
    report.figure("nodes_count", asked.nodes)
    report.note(
        f"{asked.nodes} nodes of the protocol alone, each with a session, the waits and the births "
        f"of the device agent, drop {LOST} at once and attach to {' and '.join(NEIGHBOURS)}, half "
        f"to each; {rounds} times. An action is that of `ingest`: from the report of a lost "
        f"carrier in {NEIGHBOURS[0]} to the Assign at the spare. Fleet, brokers and controllers "
        "share the machine's cores."
    )
    if asked.plot:
        worst = max(storms, key=lambda one: max(ms for _, ms in one.storm))
        _draw(worst, percentile(normal, 99), asked.plot)
    report.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
