"""The client of a program beside a node: attached where that is, it goes with it to other cells.

Services stay where they are. In which cell one is its controller is asked once; from then on its
scheduler says, with the route, when it has gone to another one.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from protocols import topics
from protocols.errors import EnvironmentFailure
from protocols.messages.invocation import Value
from protocols.transport.session import DEFAULT_TENANT
from tona import following, values
from tona.attachment import Attachment
from tona.client import AsyncClient
from tona.target import Target
from tona.where import Where


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
        self._following = self._loop.create_task(following.watch(file, self._told))

    async def close(self) -> None:
        """End every open request with ClientClosed, and the connection; idempotent."""
        self._following.cancel()
        await asyncio.wait([self._following])
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

    def _told(self, there: following.Whereabouts) -> None:
        self.move(there.wanted.cell, *there.wanted.address, alone=there.alone)
        self._attachment.retry_now()
