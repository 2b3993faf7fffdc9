"""The handovers of a run, asked for now and then: anchors keep the last ones of each node."""

import asyncio
import time
from typing import Final

from controller.anchor.handovers import HISTORY
from controller.handover_records import HandoverRecord
from protocols.errors import TonaError
from tona.cli.api import Api
from tona.testbed.stages import Move, move_of
from tona.testbed.traces import WINDOW_S

LIST: Final = "handover.list"
LIST_MAX: Final = 10_000
ASK_S: Final = HISTORY / 2 * WINDOW_S
"""A node has a handover in a window, seldom more, and every other window has none."""


class Moves:
    """Collects them; `follow` never ends by itself."""

    def __init__(self) -> None:
        self._records: dict[str, HandoverRecord] = {}
        self._unix_ns = time.time_ns() - time.monotonic_ns()

    @property
    def found(self) -> list[Move]:
        """When each stage of each began."""
        made = (move_of(one, self._unix_ns) for one in self._records.values())
        return [one for one in made if one is not None]

    async def follow(self, api: Api) -> None:
        """Ask for them over and over."""
        while True:
            await asyncio.sleep(ASK_S)
            await self.ask(api)

    async def ask(self, api: Api) -> None:
        """Take in those that are known now; where nobody answers the next time does."""
        try:
            found: list[HandoverRecord] = await api.call(LIST, limit=LIST_MAX)
        except TonaError:
            return
        self._records |= {one.handover: one for one in found}
