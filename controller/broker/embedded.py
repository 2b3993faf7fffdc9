"""The embedded broker: iotcore in a child process of ours, for this machine only."""

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from controller.broker import embedded_conf
from controller.broker.address import Address, is_loopback
from controller.broker.door import Broker
from controller.broker.lease import PortLease
from controller.broker.probe import session
from controller.broker.supervisor import Supervisor
from controller.child import READY_PREFIX, Child, module_command
from protocols.errors import EnvironmentFailure, UserError

_CHILD: Final = "controller.broker.embedded_child"

_log = logging.getLogger(__name__)


class Report(msgspec.Struct, frozen=True):
    """What the child saw on its own sockets when it became ready."""

    listener_nodelay: bool
    accepted_nodelay: bool
    """Whether a socket accepted from then on has TCP_NODELAY by itself."""


class EmbeddedBroker(Broker):
    """Serves MQTT 5 on loopback; nothing survives it but its port.

    `folder` takes its configuration. Raises UserError when `host` is not loopback.
    """

    def __init__(self, host: str, port: int, folder: Path) -> None:
        if not is_loopback(host):
            raise UserError(
                f"the embedded broker serves this machine only, not {host}: it knows no identities;"
                " for others run `tona ca init` and use --broker mosquitto"
            )
        # rumqttd takes addresses only.
        self._host = "127.0.0.1" if host == "localhost" else host
        self._wanted_port = port
        self._config = folder / "rumqttd.toml"
        self._lease: PortLease | None = None
        self._supervisor = Supervisor("embedded", self._launch, self._probe)
        self.report: Report | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the broker; None while there is none."""
        return self._supervisor.pid

    async def start(self) -> Address:
        """Start the child and wait until it answers. Raises UserError, EnvironmentFailure."""
        self._lease = PortLease(self._host, self._wanted_port)
        try:
            self._config.parent.mkdir(parents=True, exist_ok=True)
            self._config.write_text(embedded_conf.render(self._host, self._lease.port))
            await self._supervisor.start()
        except OSError as error:
            self._lease.close()
            raise UserError(
                f"the broker cannot write {self._config}: {error.strerror}; "
                "name a folder that this user may write to"
            ) from None
        except EnvironmentFailure:
            self._lease.close()
            raise
        address = Address(self._host, self._lease.port, tls=False)
        _log.info("broker: embedded (iotcore) on %s, process %s", address.url, self.pid)
        return address

    async def stop(self) -> None:
        """End the child and give the port back."""
        await self._supervisor.stop()
        if self._lease is not None:
            self._lease.close()

    async def wait_failed(self) -> EnvironmentFailure:
        """Wait until restarts no longer help, and return why."""
        return await self._supervisor.wait_failed()

    async def wait_up(self) -> int:
        """Wait until the broker runs and is ready, and return its process id."""
        return await self._supervisor.wait_up()

    @property
    def _port(self) -> int:
        return self._lease.port if self._lease is not None else self._wanted_port

    async def _launch(self) -> Child:
        child = await Child.spawn(
            module_command(_CHILD, str(os.getpid()), str(self._config), self._host, str(self._port))
        )
        ready = False
        try:
            self.report = msgspec.json.decode(await child.said(READY_PREFIX), type=Report)
            ready = True
        finally:
            if not ready:
                await child.stop()
        return child

    async def _probe(self) -> None:
        async with session(self._host, self._port):
            pass
