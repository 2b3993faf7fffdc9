"""A run: a testbed stands, clients ask steadily, nodes go through traces, and it is summed up."""

import asyncio
import os
from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct

from protocols.errors import EnvironmentFailure
from protocols.transport import tls
from tona.cli.api import Api, Target
from tona.local.supervisor import Told
from tona.testbed.antenna import Antenna
from tona.testbed.bed import Bed
from tona.testbed.calling import Callers
from tona.testbed.drive import Anew, Asked, Driver, Mover, by_itself
from tona.testbed.figures import Verdict, verdict
from tona.testbed.replay import steps
from tona.testbed.services import deploy
from tona.testbed.traces import Window
from tona.testbed.where import Where

SETTLE_S: Final = 3.0
"""From the first request to the first window."""
RADIOS: Final = {1: "one_radio", 2: "two_radios"}
"""Of whom a verdict is."""
REASONS_MAX: Final = 20


class Stage(Protocol):
    """Where a run is shown."""

    def step(self, text: str) -> None:
        """Say what happens now."""

    def advanced(self) -> None:
        """Hear that a window has passed."""


class Given(Struct, frozen=True):
    """What a run is made of."""

    timetable: dict[str, list[Window]]
    """Of each node."""
    shape: str
    per_s: float
    by: str
    """Who asks for handovers: `trace`, `signals` or `restart`."""


class Phase(Struct, frozen=True):
    """What came of a run."""

    make_before_break: bool
    shape: str
    by: str
    verdicts: dict[str, Verdict]
    """Of nodes with two radios, and with one."""
    elapsed_s: float
    load: float
    """Processes that ran or waited for a processor, on average over the last minute."""
    reasons: tuple[str, ...] = ()
    """Why handovers failed or requests were lost; the first of them."""
    whole: bool = True
    """False: it was interrupted."""


class Run:
    """One run on a testbed of its own: `run`, `stop` in any case, then `phase`."""

    def __init__(self, bed: Bed, given: Given, told: Told, stage: Stage) -> None:
        self._bed = bed
        self._given = given
        self._stage = stage
        self._where = Where(bed.spec.node_names)
        self._callers = Callers(bed, given.shape, given.per_s, told)
        self._antennas = {
            node: Antenna(bed.ground, node, bed.radio(node)) for node in bed.spec.node_names
        }
        self._drivers: dict[str, Driver] = {}
        self._elapsed_s = 0.0
        self._whole = False

    async def run(self) -> None:
        """Do it all but the end. Raises UserError, EnvironmentFailure."""
        stage, given, spec = self._stage, self._given, self._bed.spec
        stage.step(f"{spec.cells} cells and {spec.nodes} nodes begin ({self._bed.ground.mode})")
        for antenna in self._antennas.values():
            antenna.radio.start()
        standing = await self._bed.start(self._begin)
        assert standing.seen is not None  # noqa: S101 - it has started
        operator = tls.load(standing.bundle) if standing.bundle else None
        context = tls.client_context(operator) if operator else None
        async with Api(Target(standing.seen.api_url, context)) as api:
            stage.step("services are placed")
            folder, identities = self._bed.folder, self._bed.ground.identities
            homes = await deploy(api, spec, given.shape, folder, identities)
            following = asyncio.create_task(self._where.run(api))
            try:
                stage.step(f"{spec.nodes} clients ask {given.per_s:g} times a second each")
                await self._callers.start(homes)
                await asyncio.sleep(SETTLE_S)
                stage.step("nodes go through the traces")
                await self._unless_failed(self._drive(api), following)
            finally:
                following.cancel()
                await asyncio.wait({following})

    @property
    def began(self) -> bool:
        """Whether any node was driven."""
        return bool(self._drivers)

    async def stop(self) -> None:
        """End everything, the callers first; safe after a failed start."""
        for driver in self._drivers.values():
            await driver.stop()
        await self._callers.stop()
        for antenna in self._antennas.values():
            await antenna.stop()
        await self._bed.stop()

    def phase(self) -> Phase:
        """Sum up what was done until the end. Raises EnvironmentFailure."""
        spec, reasons = self._bed.spec, list[str]()
        verdicts = {}
        for radios, name in RADIOS.items():
            nodes = [one for one in self._drivers if spec.radios(one) == radios]
            if not nodes:
                continue
            called = {node: self._callers.called(node) for node in nodes}
            driven = {node: self._drivers[node].driven for node in nodes}
            verdicts[name] = verdict(called, driven)
            for node in nodes:
                reasons += [*driven[node].reasons, *called[node].sums.failures]
        return Phase(
            make_before_break=spec.make_before_break,
            shape=self._given.shape,
            by=self._given.by,
            verdicts=verdicts,
            elapsed_s=self._elapsed_s,
            load=os.getloadavg()[0],
            reasons=tuple(reasons[:REASONS_MAX]),
            whole=self._whole,
        )

    def _begin(self) -> None:
        """Put every node into its first cell, under the conditions of its first window."""
        for node, antenna in self._antennas.items():
            cell = self._bed.processes.nodes[node]
            first = self._given.timetable[node][0]
            antenna.begin(cell, steps(first, cell, self._bed.spec.cell_names)[0])

    def _mover(self, api: Api) -> Mover:
        match self._given.by:
            case "trace":
                return Asked(api)
            case "restart":
                return Anew(self._bed, self._antennas)
            case _:
                return by_itself

    async def _drive(self, api: Api) -> None:
        mover = self._mover(api)
        self._drivers = {
            node: Driver(antenna, self._where, mover) for node, antenna in self._antennas.items()
        }
        begin_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as group:
                for node, driver in self._drivers.items():
                    windows = self._given.timetable[node]
                    group.create_task(driver.drive(windows, self._stage.advanced))
            self._whole = True
        finally:
            self._elapsed_s = asyncio.get_running_loop().time() - begin_s

    async def _unless_failed(self, work: object, following: "asyncio.Task[None]") -> None:
        """Do something unless a part is beyond mending: then raise why."""
        driving = asyncio.ensure_future(work)  # type: ignore[call-overload]
        failing = [
            asyncio.ensure_future(one) for one in (self._bed.failed(), self._callers.failed())
        ]
        try:
            await asyncio.wait({driving, following, *failing}, return_when=asyncio.FIRST_COMPLETED)
            if not driving.done():
                following_failed = following.done() and following.result()
                raise EnvironmentFailure(str(following_failed or _first(failing)))
            driving.result()
        finally:
            for one in (driving, *failing):
                one.cancel()
            await asyncio.gather(driving, *failing, return_exceptions=True)


def _first(done: Sequence["asyncio.Future[EnvironmentFailure]"]) -> EnvironmentFailure:
    return next(one.result() for one in done if one.done())
