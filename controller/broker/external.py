"""A broker that others run: nothing to start, nothing to mend."""

import asyncio
import logging

from controller.broker.address import Address
from controller.broker.door import Broker
from protocols.errors import EnvironmentFailure

_log = logging.getLogger(__name__)


class ExternalBroker(Broker):
    """Names a broker that runs elsewhere. That it is reachable is for each session to find out."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def start(self) -> Address:
        """Return the address."""
        _log.info("broker: external, %s", self._address.url)
        return self._address

    async def stop(self) -> None:
        """Leave it running."""

    async def wait_failed(self) -> EnvironmentFailure:
        """Never return: sessions reconnect by themselves."""
        never: asyncio.Future[EnvironmentFailure] = asyncio.get_running_loop().create_future()
        return await never
