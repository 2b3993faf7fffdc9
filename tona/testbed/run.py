"""A run: a testbed stands, clients ask steadily, nodes go through traces, and it is summed up."""

import asyncio
import os
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from tona.cli.api import Api
from tona.local.supervisor import Told
from tona.testbed.bed import Bed, unless_failed
from tona.testbed.calling import Callers
from tona.testbed.choices import Ask, By
from tona.testbed.drives import Drives, operator
from tona.testbed.figures import Passed, Verdict, verdict
from tona.testbed.moves import Moves
from tona.testbed.owning import OwnCalls
from tona.testbed.services import deploy
from tona.testbed.stages import Move
from tona.testbed.traces import WINDOW_S, Window

SETTLE_S: Final = 3.0
"""From the first request to the first window."""
RADIOS: Final = {1: "one_radio", 2: "two_radios"}
"""Of whom a verdict is."""
REASONS_MAX: Final = 20
ACCOUNT: Final = "account.json"


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
    ask: Ask
    per_s: float
    by: By
    within_s: float | None = None
    """So long nodes are driven at most; None: until all windows have passed."""

    @property
    def expected_s(self) -> float:
        """How long nodes are driven."""
        whole_s = max(map(len, self.timetable.values())) * WINDOW_S
        return whole_s if self.within_s is None else min(whole_s, self.within_s)


class Phase(Struct, frozen=True):
    """What came of a run."""

    make_before_break: bool
    ask: Ask
    by: By
    verdicts: dict[str, Verdict]
    """Of nodes with two radios, and with one."""
    elapsed_s: float
    load: float
    """Processes that ran or waited for a processor, on average over the last minute."""
    reasons: tuple[str, ...] = ()
    """Why handovers failed or requests were lost; the first of them."""
    whole: bool = True
    """False: it was interrupted, or its time was over."""


class Account(Struct, frozen=True):
    """What stays in the folder of a run that is kept, beside the records of the callers."""

    windows: tuple[Passed, ...]
    moves: tuple[Move, ...]


class Run:
    """One run on a testbed of its own: `run`, `stop` in any case, then `phase`."""

    def __init__(self, bed: Bed, given: Given, told: Told, stage: Stage) -> None:
        self._bed = bed
        self._given = given
        self._stage = stage
        self._callers = (
            OwnCalls(bed) if given.ask is Ask.OWN else Callers(bed, given.ask, given.per_s, told)
        )
        self._drives = Drives(bed, given.timetable, given.by)
        self._moves = Moves()
        self._elapsed_s = 0.0
        self._whole = False

    async def run(self) -> None:
        """Do it all but the end. Raises UserError, EnvironmentFailure."""
        stage, given, spec = self._stage, self._given, self._bed.spec
        stage.step(f"{spec.cells} cells and {spec.nodes} nodes begin ({self._bed.ground.mode})")
        self._drives.start()
        standing = await self._bed.start(self._drives.begin)
        async with operator(standing) as api:
            stage.step("services are placed")
            folder, identities = self._bed.folder, self._bed.ground.identities
            homes = await deploy(api, spec, given.ask, given.per_s, folder, identities)
            who = "nodes" if given.ask is Ask.OWN else "clients"
            stage.step(f"{spec.nodes} {who} ask {given.per_s:g} times a second each")
            await self._callers.start(homes)
            await asyncio.sleep(SETTLE_S)
            minutes = given.expected_s / 60
            stage.step(f"nodes go through the traces, for about {minutes:.0f} min")
            await unless_failed(self._drive(api), self._bed.failed(), self._callers.failed())

    @property
    def began(self) -> bool:
        """Whether any node was driven."""
        return bool(self._drives.drivers)

    async def stop(self) -> None:
        """End everything, the callers first; safe after a failed start."""
        await self._callers.stop()
        await self._drives.stop()
        await self._bed.stop()

    def phase(self) -> Phase:
        """Sum up what was done until the end. Raises EnvironmentFailure."""
        spec, reasons, drivers = self._bed.spec, list[str](), self._drives.drivers
        verdicts = {}
        for radios, name in RADIOS.items():
            nodes = [one for one in drivers if spec.radios(one) == radios]
            if not nodes:
                continue
            called = {node: self._callers.called(node) for node in nodes}
            driven = {node: drivers[node].driven for node in nodes}
            verdicts[name] = verdict(called, driven, self._moves.found)
            for node in nodes:
                reasons += [*driven[node].reasons, *called[node].sums.failures]
        windows = tuple(one for driver in drivers.values() for one in driver.driven.passed)
        account = Account(windows, tuple(self._moves.found))
        (self._bed.folder / ACCOUNT).write_bytes(msgspec.json.encode(account))
        return Phase(
            make_before_break=spec.make_before_break,
            ask=self._given.ask,
            by=self._given.by,
            verdicts=verdicts,
            elapsed_s=self._elapsed_s,
            load=os.getloadavg()[0],
            reasons=tuple(reasons[:REASONS_MAX]),
            whole=self._whole,
        )

    async def _drive(self, api: Api) -> None:
        begin_s = asyncio.get_running_loop().time()
        asking = asyncio.create_task(self._moves.follow(api), name="ask for handovers")
        try:
            async with asyncio.timeout(self._given.within_s):
                await self._drives.drive(api, self._stage.advanced)
            self._whole = True
        except TimeoutError:
            self._stage.step("the time is over")
        finally:
            self._elapsed_s = asyncio.get_running_loop().time() - begin_s
            asking.cancel()
            await asyncio.wait({asking})
        await self._moves.ask(api)
