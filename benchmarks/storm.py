"""A cell is lost and all its nodes come to two neighbours at once: how long the others wait.

Beside the control actions, bare MQTT requests go through the same broker from the same process, to
an answerer that does nothing else: what they wait for is the machine, the broker and the measurer,
and none of it the controller.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from benchmarks.harness.bare import Requester, requester
from benchmarks.harness.cell import Cell
from benchmarks.harness.node import Spare
from benchmarks.harness.processes import Process, module, running
from benchmarks.harness.report import Report, options, percentile, progress
from benchmarks.harness.services import submit
from benchmarks.harness.steady import action
from controller.broker.spec import EMBEDDED, MOSQUITTO
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
"""Between two actions, and between two bare requests."""
ANSWER_BYTES: Final = 420
CALM_S: Final = 10.0
"""Of normal reports, before each storm."""
AFTER_S: Final = 5.0
"""How long actions go on when the last node has been welcomed."""
SERVICES: Final = 400
"""Of one task each, that stand by for them."""
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


Times = list[tuple[float, float]]
"""When something began, in seconds after the loss, and how long it took, in ms."""


class Seen(NamedTuple):
    """One storm."""

    normal: Times
    """Control actions before."""
    storm: Times
    """Control actions during and after."""
    bare_normal: Times
    bare_storm: Times
    welcomed_s: list[float]
    """When each node was served again; negative: not at all."""
    births: int
    """Said by them until then."""

    @property
    def over_s(self) -> float:
        """When the last node was served again: the calm after it would hide what counts."""
        return max(self.welcomed_s)


class Tasks:
    """Those that stand by, all at the first of two nodes in the beginning.

    Half of them go to the other one and come back, again and again: each has rested when it moves.
    """

    def __init__(self, nodes: tuple[Spare, Spare], count: int) -> None:
        self._nodes = nodes
        self._count = count
        self._moved = 0

    async def move(self) -> float:
        """Have one task move, by the loss of a carrier; return how long it took, in ms."""
        away = self._moved // (self._count // 2) % 2
        self._moved += 1
        return await action(self._nodes[away], self._nodes[1 - away])


class Stage(NamedTuple):
    """What stands."""

    fleet: Process
    tasks: Tasks
    bare: Requester


@asynccontextmanager
async def _standing(folder: Path, broker: str, nodes: int, staying: int) -> AsyncIterator[Stage]:
    deployed = Deployed(
        Plan(folder=folder / "cells", deployment=CELLS, nodes=0, broker=broker),
        lambda name, text: progress(f"{name}: {text}"),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(deployed.stop)
        seen = await deployed.start()
        brokers = {one.cell: one.broker.removeprefix("mqtt://") for one in seen.processes}
        where = [f"{cell}={brokers[cell]}" for cell in (LOST, *NEIGHBOURS)]
        program = module("benchmarks.programs.storm_fleet", str(nodes), str(staying), *where)
        fleet = await stack.enter_async_context(running(program, folder / "fleet.log"))
        await fleet.line()
        said = {"api_url": seen.api_url, "broker": f"mqtt://{brokers[NEIGHBOURS[0]]}"}
        assert urlsplit(said["broker"]).port
        one = Cell(folder, fleet, said, None, NEIGHBOURS[0])
        stack.push_async_callback(one.close)
        home, spare = Spare(HOME, HOME_CPU_PERCENT), Spare(SPARE)
        await stack.enter_async_context(home.running(one))
        await stack.enter_async_context(spare.running(one))
        progress(f"{SERVICES} services in {NEIGHBOURS[0]}")
        await submit(one, SERVICES, HOME, SPARE)
        bare = await stack.enter_async_context(
            requester(one, "bare", ANSWER_BYTES, qos=0, answer_qos=1)
        )
        yield Stage(fleet, Tasks((home, spare), SERVICES), bare)


async def _timed(act: Callable[[], Awaitable[float]], began: float, until: asyncio.Event) -> Times:
    """Do something over and over; return when each began, and how long it took."""
    found: Times = []
    while not until.is_set():
        at_s = time.monotonic() - began
        found.append((at_s, await act()))
        await asyncio.sleep(PAUSE_S)
    return found


async def _both(stage: Stage, until: asyncio.Event) -> tuple[Times, Times]:
    """Do control actions, and bare requests beside them."""

    async def ask() -> float:
        return await stage.bare.ask(bytes(ANSWER_BYTES)) / 1000

    began = time.monotonic()
    actions, asked = await asyncio.gather(
        _timed(stage.tasks.move, began, until), _timed(ask, began, until)
    )
    return actions, asked


async def _round(stage: Stage, calm_s: float) -> Seen:
    """Have all nodes at the one cell, then at its neighbours."""
    loop = asyncio.get_running_loop()
    await stage.fleet.ask([LOST])
    calm = asyncio.Event()
    loop.call_later(calm_s, calm.set)
    normal, bare_normal = await _both(stage, calm)
    over = asyncio.Event()
    doing = asyncio.create_task(_both(stage, over))
    said = await stage.fleet.ask(list(NEIGHBOURS))
    await asyncio.sleep(AFTER_S)
    over.set()
    storm, bare_storm = await doing
    return Seen(normal, storm, bare_normal, bare_storm, said["welcomed_s"], said["births"])


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
                "control actions for others, and bare requests, ms (dashed: ten times the normal "
                "p99)",
                [Line("action", list(seen.storm)), Line("bare", list(seen.bare_storm))],
                target=RATIO_BOUND * normal_p99_ms,
            ),
        ),
        (0.0, span),
    )
    path.write_text(chart.svg(), encoding="utf-8")


def _figures(report: Report, storms: list[Seen]) -> float:
    """Report what was seen, and return the p99 of normal actions."""
    normal = [ms for seen in storms for _, ms in seen.normal]
    during = [ms for seen in storms for at, ms in seen.storm if at <= seen.over_s]
    bare = [ms for seen in storms for _, ms in seen.bare_normal]
    bare_during = [ms for seen in storms for at, ms in seen.bare_storm if at <= seen.over_s]
    waits = [one for seen in storms for one in seen.welcomed_s]
    served = [one for one in waits if one >= 0]
    for share in (50, 99):
        report.figure(f"normal_p{share}_ms", percentile(normal, share))
        report.figure(f"storm_p{share}_ms", percentile(during, share))
    normal_p99_ms = percentile(normal, 99)
    report.figure("storm_p99_ratio", percentile(during, 99) / normal_p99_ms, RATIO_BOUND)
    report.figure("storm_max_ms", max(during))
    for share in (50, 99):
        report.figure(f"bare_normal_p{share}_ms", percentile(bare, share))
        report.figure(f"bare_storm_p{share}_ms", percentile(bare_during, share))
    report.figure("served_again_p50_s", percentile(served, 50))
    report.figure("served_again_p99_s", percentile(served, 99))
    report.figure("served_again_max_s", max(served))
    report.figure("not_served_count", len(waits) - len(served), 0)
    report.figure("births_per_node", sum(seen.births for seen in storms) / len(waits))
    report.figure("actions_normal_count", len(normal))
    report.figure("actions_storm_count", len(during))
    return normal_p99_ms


async def main() -> None:
    """Run the benchmark."""
    parser = options("storm", __doc__ or "")
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--rounds", type=int, help=f"storms in a row (else {ROUNDS})")
    parser.add_argument("--calm", type=float, default=CALM_S, help="seconds before each storm")
    parser.add_argument("--staying", type=int, default=0, help="nodes that the neighbours have")
    parser.add_argument("--broker", choices=(MOSQUITTO, EMBEDDED), default=MOSQUITTO)
    parser.add_argument("--plot", type=Path, help="draw the worst storm to this file")
    asked = parser.parse_args()
    rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)
    report = Report("storm")
    storms: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        setting = Path(name), asked.broker, asked.nodes, asked.staying
        async with _standing(*setting) as stage:
            for number in range(rounds):
                progress(f"storm {number + 1} of {rounds}")
                storms.append(await _round(stage, asked.calm))
    normal_p99_ms = _figures(report, storms)
    report.figure("nodes_count", asked.nodes)
    report.figure("staying_count", asked.staying)
    report.note(
        f"{asked.nodes} nodes of the protocol alone, each with a session, the waits and the births "
        f"of the device agent, drop {LOST} at once and attach to {' and '.join(NEIGHBOURS)}, half "
        f"to each, {rounds} times; {asked.staying} more stay there and report once a second. An "
        f"action is that of `ingest`: from the report of a lost carrier in {NEIGHBOURS[0]} to the "
        f"Assign at the spare. Fleet, {asked.broker} brokers and controllers share the machine's "
        "cores; a bare request meets all of them but the controller."
    )
    if asked.plot:
        worst = max(storms, key=lambda one: max(ms for _, ms in one.storm))
        _draw(worst, normal_p99_ms, asked.plot)
    report.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
