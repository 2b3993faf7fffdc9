"""In which cell each node is, followed by the fleet that the controller shows."""

import asyncio
from contextlib import aclosing

from controller.records import NodeView
from protocols.messages.hierarchy import NodeState
from tona.cli.api import Api
from tona.cli.follow import NODES, Things, follow


class Where:
    """Follows nodes; `run` never ends by itself."""

    def __init__(self, nodes: tuple[str, ...]) -> None:
        self._nodes = nodes
        self.cells: dict[str, str] = {}
        """Of every node that was ever online, the one in which it was online last."""
        self.moves = dict.fromkeys(nodes, 0)
        """How often a node came to another cell."""
        self._news = asyncio.Event()

    async def until(self, node: str, cell: str, within_s: float) -> bool:
        """Wait until a node is in a cell; whether it came to that."""
        try:
            async with asyncio.timeout(within_s):
                while self.cells.get(node) != cell:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def all_seen(self, within_s: float) -> bool:
        """Wait until every node was online; whether it came to that."""
        try:
            async with asyncio.timeout(within_s):
                while len(self.cells) < len(self._nodes):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def run(self, api: Api) -> None:
        """Follow the fleet. Raises EnvironmentFailure."""
        async with aclosing(follow(api, NODES)) as states:
            async for things in states:
                self.seen(things)

    def seen(self, things: Things) -> None:
        """Take in the fleet as it is now."""
        for node in self._nodes:
            view: NodeView | None = things.get(node)
            if view is None or view.state is not NodeState.ONLINE:
                continue
            cell = view.scheduler.removeprefix("ts-")
            before = self.cells.get(node)
            self.cells[node] = cell
            self.moves[node] += before is not None and before != cell
        self._news.set()
