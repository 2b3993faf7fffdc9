"""In which cell a service takes its requests, as the controller says."""

import asyncio
import ssl

import msgspec
from msgspec import Struct

from tona.errors import CannotConnect
from tona.store import Store


class CellFound(Struct, frozen=True):
    """A cell, and the URL of its broker."""

    cell: str
    broker: str


class Found(Struct, frozen=True):
    """What `service.where` says; only what a client needs."""

    known: bool
    cell: CellFound | None = None


class Where:
    """Asks the controller at a URL; lives on one event loop."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        self._url = url
        self._api = Store(context)
        self._looks: dict[str, asyncio.Task[Found]] = {}

    def close(self) -> None:
        """Ask no more."""
        for look in self._looks.values():
            look.cancel()
        self._api.close()

    async def look(self, service: str) -> Found:
        """Ask where a service is, once for all who want to know. Raises EnvironmentFailure."""
        look = self._looks.get(service)
        if look is None:
            look = asyncio.get_running_loop().create_task(self._ask(service))
            self._looks[service] = look
            look.add_done_callback(lambda _: self._looks.pop(service, None))
        return await asyncio.shield(look)

    async def _ask(self, service: str) -> Found:
        answer = await self._api.text(self._url, f"/v1/services/{service}/where")
        try:
            return msgspec.json.decode(answer, type=Found)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CannotConnect(f"{self._url} is no controller of ours: {error}") from None
