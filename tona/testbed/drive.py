"""Nodes driven through windows of traces: links change, handovers are asked for, time is noted."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from msgspec import Struct

from controller.api.errors import Busy
from protocols.errors import TonaError
from tona.cli.api import Api
from tona.testbed.antenna import Antenna
from tona.testbed.bed import Bed
from tona.testbed.figures import Driven, Kind, Passed
from tona.testbed.likeness import traced
from tona.testbed.replay import steps
from tona.testbed.traces import Window
from tona.testbed.where import Where

HANDOVER: Final = "node.handover"
REASONS_MAX: Final = 5
SETTLE_S: Final = 10.0
"""After the end of its window, for a node that is on its way."""
AGAIN_S: Final = 0.1
"""Between two questions for a node whose last handover is not over."""
LEAVE_S: Final = 1.0
"""A single radio that its node does not tune by then goes where the trace went."""


class Mover(Protocol):
    """Who brings a node to another cell where the trace came to one."""

    async def __call__(self, node: str, cell: str, /) -> None:
        """Ask for it. Raises TonaError when that is refused or fails."""


class Asked(Struct, frozen=True):
    """Moves its node by `node.handover`, as an operator does."""

    api: Api

    async def __call__(self, node: str, cell: str) -> None:
        """Ask for it, again while another one is under way. Raises TonaError."""
        end_s = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            try:
                await self.api.call(HANDOVER, name=node, cell=cell)
            except Busy:
                if asyncio.get_running_loop().time() > end_s:
                    raise
                await asyncio.sleep(AGAIN_S)
            else:
                return


class Anew(Struct, frozen=True):
    """Starts the node's agent anew at the other cell: what there is without any handover."""

    bed: Bed
    antennas: Mapping[str, Antenna]

    async def __call__(self, node: str, cell: str) -> None:
        """Do it. Raises EnvironmentFailure."""
        self.antennas[node].tune(cell)
        await self.bed.processes.move(node, cell)


async def by_itself(_node: str, _cell: str) -> None:
    """Leave it to those who control mobility, by what nodes measure."""


class Driver:
    """Drives one node."""

    def __init__(self, antenna: Antenna, where: Where, move: Mover) -> None:
        self._antenna = antenna
        self._node = antenna.node
        self._where = where
        self._move = move
        self._wanted = ""
        """Where the node is to go; empty: nowhere else."""
        self._order: asyncio.Task[None] | None = None
        self.driven = Driven()

    async def drive(self, windows: Sequence[Window], advanced: Callable[[], None]) -> None:
        """Pass through windows. Raises EnvironmentFailure."""
        for window in windows:
            await self._pass(window)
            advanced()

    def forget(self) -> None:
        """Begin the account anew."""
        self.driven = Driven()

    async def stop(self) -> None:
        """Give up what was asked for."""
        if self._order is not None:
            self._order.cancel()
            await asyncio.wait({self._order})

    async def _pass(self, window: Window) -> None:
        node, where, driven = self._node, self._where, self.driven
        cells = self._antenna.cells
        moves, failed = where.moves[node], driven.failed
        begin_s, begin_ns = asyncio.get_running_loop().time(), time.monotonic_ns()
        here = serving = self._antenna.at if self._antenna.single else where.cells[node]
        for step in steps(window, here, cells):
            await _at(begin_s + step.at_s)
            self._antenna.show(step)
            if step.serving != serving:
                serving = step.serving
                self._want(serving)
        await _at(begin_s + window.length_s)
        if serving != here:
            await self._settle(serving)
        moved = where.moves[node] - moves
        driven.handovers += moved
        if window.moves and not moved and driven.failed == failed:
            driven.failed += 1
        end_ns = time.monotonic_ns()
        kind = Kind.CONTROL if window.control else Kind.STEADY
        if window.moves or moved:
            kind = Kind.HANDOVER
        driven.passed.append(Passed(node, begin_ns, end_ns, kind, traced(window)))

    async def _settle(self, cell: str) -> None:
        """Wait until the node is where it was asked to be, but not for ever.

        The next window would take the link away over which it is just coming.
        """
        if self._move is not by_itself:
            await self._where.until(self._node, cell, SETTLE_S)

    def _want(self, cell: str) -> None:
        """Have the node moved; one that is being moved goes on from where it comes to."""
        self._wanted = cell
        if self._order is None or self._order.done():
            self._order = asyncio.create_task(self._orders(), name=f"move {self._node}")

    async def _orders(self) -> None:
        while self._wanted:
            cell, self._wanted = self._wanted, ""
            await self._ordered(cell)

    async def _ordered(self, cell: str) -> None:
        """Ask for one move; a single radio goes there in the end, whatever its node does."""
        leaving = asyncio.create_task(self._leave(cell))
        try:
            await self._move(self._node, cell)
        except TonaError as error:
            if await self._where.until(self._node, cell, LEAVE_S):
                return  # it is there: whoever controls mobility was faster
            self.driven.failed += 1
            if len(self.driven.reasons) < REASONS_MAX:
                self.driven.reasons.append(f"{self._node} to {cell}: {error}")
        finally:
            await leaving

    async def _leave(self, cell: str) -> None:
        await asyncio.sleep(LEAVE_S)
        self._antenna.tune(cell)


async def _at(time_s: float) -> None:
    await asyncio.sleep(max(0.0, time_s - asyncio.get_running_loop().time()))
