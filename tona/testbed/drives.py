"""Every node's way through windows of traces: radios, links, and who asks for handovers."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from protocols.errors import EnvironmentFailure, UserError
from protocols.transport import tls
from tona.cli.api import Api, Target
from tona.testbed.antenna import Antenna
from tona.testbed.bed import Bed, Standing, unless_failed
from tona.testbed.choices import By
from tona.testbed.drive import Anew, Asked, Driver, Mover, by_itself
from tona.testbed.replay import steps, still
from tona.testbed.traces import WINDOW_S, Window
from tona.testbed.where import Where

SEEN_S: Final = 60.0
"""Within which every node has been online once."""


def operator(standing: Standing) -> Api:
    """Return the API of a testbed that stands, for its operator. Raises UserError."""
    if standing.seen is None:
        raise UserError(f"the testbed in {standing.folder} has not started yet")
    context = tls.client_context(tls.load(standing.bundle)) if standing.bundle else None
    return Api(Target(standing.seen.api_url, context))


class Drives:
    """Drives nodes: `start`, `begin` when there are links, `drive`, `stop` in any case."""

    def __init__(self, bed: Bed, timetable: Mapping[str, Sequence[Window]], by: By) -> None:
        self._bed = bed
        self._timetable = timetable
        self._by = by
        self.drivers: dict[str, Driver] = {}
        """Of each node, once they drive."""
        self._where = Where(bed.spec.node_names)
        self._antennas = {
            node: Antenna(bed.ground, node, bed.radio(node)) for node in bed.spec.node_names
        }

    def start(self) -> None:
        """Have the radios. Raises OSError."""
        for antenna in self._antennas.values():
            antenna.radio.start()

    def begin(self) -> None:
        """Put every node into its first cell, under the conditions of its first window.

        Without windows every cell is heard as in its midst.
        """
        cells = self._bed.spec.cell_names
        for node, antenna in self._antennas.items():
            cell, windows = self._bed.processes.nodes[node], self._timetable.get(node)
            first = steps(windows[0], cell, cells)[0] if windows else still(cell, cells)
            antenna.begin(cell, first)

    async def replay(self, standing: Standing) -> None:
        """Drive them through their windows over and over; never ends by itself.

        Raises EnvironmentFailure.
        """
        async with operator(standing) as api:
            await unless_failed(self.drive(api, for_ever=True), self._bed.failed())

    async def drive(
        self, api: Api, advanced: Callable[[], None] = lambda: None, *, for_ever: bool = False
    ) -> None:
        """Drive them all, each through its windows; `advanced` hears of each that has passed.

        Raises EnvironmentFailure.
        """
        following = asyncio.create_task(self._where.run(api), name="follow nodes")
        driving = asyncio.create_task(self._drive(api, advanced, for_ever), name="drive")
        try:
            await asyncio.wait({following, driving}, return_when=asyncio.FIRST_COMPLETED)
            if not driving.done():
                following.result()
            driving.result()
        finally:
            for one in (following, driving):
                one.cancel()
            await asyncio.gather(following, driving, return_exceptions=True)
            for driver in self.drivers.values():
                await driver.stop()

    async def _drive(self, api: Api, advanced: Callable[[], None], for_ever: bool) -> None:
        if not await self._where.all_seen(SEEN_S):
            raise EnvironmentFailure(f"not every node was online within {SEEN_S:g} s")
        mover = self._mover(api)
        self.drivers = {
            node: Driver(antenna, self._where, mover) for node, antenna in self._antennas.items()
        }
        # Spread: changes lie in the middle of windows, and on the road nodes do not move in step.
        apart_s = WINDOW_S / len(self.drivers)
        async with asyncio.TaskGroup() as group:
            for number, (node, driver) in enumerate(self.drivers.items()):
                windows = self._timetable[node]
                one = self._one(driver, windows, advanced, for_ever, number * apart_s)
                group.create_task(one)

    async def _one(
        self,
        driver: Driver,
        windows: Sequence[Window],
        advanced: Callable[[], None],
        for_ever: bool,
        after_s: float,
    ) -> None:
        await asyncio.sleep(after_s)
        await driver.drive(windows, advanced)
        while for_ever:
            driver.forget()
            await driver.drive(windows, advanced)

    async def stop(self) -> None:
        """Have radios no more; safe at any time."""
        for antenna in self._antennas.values():
            await antenna.stop()

    def _mover(self, api: Api) -> Mover:
        match self._by:
            case By.TRACE:
                return Asked(api)
            case By.RESTART:
                return Anew(self._bed, self._antennas)
            case By.SIGNALS:
                return by_itself
