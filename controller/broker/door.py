"""The one small door of every broker."""

from abc import ABC, abstractmethod
from types import TracebackType

from controller.broker.address import Address
from protocols.errors import EnvironmentFailure


class Broker(ABC):
    """Serves MQTT to a cell between `start` and `stop`; `async with` does both."""

    @abstractmethod
    async def start(self) -> Address:
        """Serve, and return where. Raises UserError, EnvironmentFailure."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop serving. Safe to call twice, and before `start`."""

    @abstractmethod
    async def wait_failed(self) -> EnvironmentFailure:
        """Wait until the broker is beyond mending from here, and return why; may never return."""

    async def __aenter__(self) -> Address:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
