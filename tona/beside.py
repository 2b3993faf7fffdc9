"""The client of a program beside a node: attached where that is, it goes with it to other cells.

Services stay where they are. In which cell one is its controller is asked first; from then on its
scheduler says, with the route, when it has gone to another one. One that knows of it no more, or
says nothing, has the controller asked again.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from protocols import topics
from protocols.errors import EnvironmentFailure
from protocols.messages import Route
from protocols.messages.invocation import Value
from protocols.transport.session import DEFAULT_TENANT
from tona import following, values
from tona.attachment import Attachment
from tona.client import AsyncClient
from tona.events import AskRoute
from tona.target import Target
from tona.where import Where

ASKED_IN_VAIN: Final = 3
"""Questions for a route, without one that leads anywhere; then the controller is asked."""
LOOK_AGAIN_S: Final = 2.0
"""Between two questions to the controller where the same service is."""


class BesideClient(AsyncClient):
    """Made by `connect(..., follow=FILE)`, for one event loop."""

    def __init__(self, target: Target, file: Path, *, tenant: str = DEFAULT_TENANT) -> None:
        """Make one; raises UserError when the file does not say where a node is attached."""
        super().__init__(target, tenant=tenant)
        there = following.read(file).wanted
        host, port = there.address
        first = replace(target.settings, cell=there.cell, host=host, port=port)
        self._attachment = Attachment(first, self, self._abandon)
        self.moved(self._attachment.reply_to)
        self._where = Where(target.api_url, target.context) if target.api_url else None
        self._vain: dict[str, int] = {}
        """By service: questions since the last route that led anywhere."""
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._following = self._loop.create_task(following.watch(file, self._told))

    async def close(self) -> None:
        """End every open request with ClientClosed, and the connection; idempotent."""
        ending = [self._following, *self._looking.values()]
        for one in ending:
            one.cancel()
        await asyncio.wait(ending)
        if self._where is not None:
            self._where.close()
        await super().close()

    async def _pack(
        self, service: str, inputs: Mapping[str, Any], priority: int
    ) -> tuple[dict[str, Value], dict[str, values.Content]]:
        if self._where is not None and service not in self._homes and topics.valid_name(service):
            # A controller that is away, or does not know it yet, is asked again with the next one.
            with suppress(EnvironmentFailure):
                found = await self._where.look(service)
                if found.cell is not None:
                    self._homes[service] = found.cell.cell
        return await super()._pack(service, inputs, priority)

    def _ask_route(self, command: AskRoute) -> None:
        super()._ask_route(command)
        service = command.service
        self._vain[service] = asked = self._vain.get(service, 0) + 1
        if asked >= ASKED_IN_VAIN and self._where is not None and service not in self._looking:
            look = self._look_again(service, self._where)
            self._looking[service] = self._loop.create_task(look)

    def _routed_to(self, route: Route) -> None:
        if route.plan is not None:
            self._vain.pop(route.service, None)
        super()._routed_to(route)

    async def _look_again(self, service: str, where: Where) -> None:
        """Ask the controller where a service is that its scheduler does not lead to."""
        try:
            with suppress(EnvironmentFailure):
                found = await where.look(service)
                if found.cell is not None:
                    self.served_in(service, found.cell.cell)
            await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            del self._looking[service]

    def _told(self, there: following.Whereabouts) -> None:
        self.move(there.wanted.cell, *there.wanted.address, alone=there.alone)
        self._attachment.retry_now()
