"""The ground for who may not make networks: everything on 127.0.0.1, the air a proxy per cell."""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from controller.broker.door import Broker
from controller.broker.spec import EMBEDDED, make_broker
from protocols.errors import EnvironmentFailure
from tona.local.place import Place
from tona.testbed.lane import Conditions
from tona.testbed.plan import Spec
from tona.testbed.proxy import LOOPBACK, CellProxy


class LoopbackGround:
    """Embedded brokers, each behind its cell's proxy, which lives in this process."""

    mode: Final = "loopback"
    broker: Final = EMBEDDED
    operator: Final = ""
    identities: Final = None
    paths: Final[Mapping[str, str]] = {}

    def __init__(self, spec: Spec, folder: Path) -> None:
        """Take a port for each cell. Raises EnvironmentFailure."""
        # Who connects says to which cell: a link to it has to be there.
        self.spec = spec = msgspec.structs.replace(spec, keep_address=False)
        chance = random.Random(spec.seed).random  # noqa: S311 - losses are no secret
        try:
            proxies = [CellProxy(one, spec.node_names, chance) for one in spec.cell_names]
        except OSError as error:
            raise EnvironmentFailure(f"no port of loopback is to be had: {error}") from None
        self._proxies = {one.cell: one for one in proxies}
        self._brokers: dict[str, Broker] = {
            cell: make_broker(EMBEDDED, folder=folder / f"broker-{cell}") for cell in self._proxies
        }

    def bundle(self, _name: str) -> str:
        """Return nothing: nobody needs a bundle on loopback."""
        return ""

    def broker_at(self, cell: str) -> tuple[str, int]:
        """Return where nodes and clients find a cell's broker: behind its proxy."""
        return LOOPBACK, self._proxies[cell].port

    def places(self) -> dict[str, Place]:
        """Return where each process stands."""
        return {
            cell: Place(broker=f"mqtt://{LOOPBACK}:{proxy.port}")
            for cell, proxy in self._proxies.items()
        }

    async def start(self) -> None:
        """Serve every cell, with the nodes' links down. Raises EnvironmentFailure."""
        for cell, proxy in self._proxies.items():
            address = await self._brokers[cell].start()
            await proxy.start(address.host, address.port)

    def become(self, node: str, cell: str, conditions: Conditions) -> None:
        """Change a link."""
        self._proxies[cell].become(node, conditions)

    def arrive(self, node: str, cell: str, conditions: Conditions, after_ms: float) -> None:
        """Do nothing: nobody keeps an address here."""

    def prefer(self, node: str, cell: str) -> None:
        """Do nothing: on loopback everything else is reached without a link."""

    async def failed(self) -> EnvironmentFailure:
        """Wait until a broker is beyond mending, and return why; may never return."""
        waits = [asyncio.ensure_future(one.wait_failed()) for one in self._brokers.values()]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for one in waits:
                one.cancel()

    async def stop(self) -> None:
        """Take it all away; safe after a failed start."""
        await asyncio.gather(*(one.stop() for one in self._proxies.values()))
        await asyncio.gather(*(one.stop() for one in self._brokers.values()))
