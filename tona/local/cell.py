"""A cell on loopback: one controller and N device agents, each a real process."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from controller.broker.lease import PortLease
from controller.broker.spec import EMBEDDED
from controller.child import module_command
from device_agent.artifacts.blobs import sweep
from protocols.errors import EnvironmentFailure, UserError
from protocols.folder import DataFolder
from tona.local.place import LOOPBACK
from tona.local.supervisor import Supervisor, Told

CONTROLLER: Final = "controller"
UP: Final = "`tona up`"
"""Who holds the folder of a plan."""
NODES_MAX: Final = 32
"""Device agents that one machine is asked to run."""


class Running(Struct, frozen=True):
    """Where a started controller is reached; the line that `tona controller --json` prints."""

    cell: str
    api_url: str
    broker: str
    """As `mqtt[s]://HOST:PORT`."""


class Plan(Struct, frozen=True, kw_only=True):
    """What to run. A port of 0 means any free one; it stays the same over restarts."""

    folder: Path
    nodes: int
    cell: str = "cell"
    broker: str = EMBEDDED
    api_port: int = 0
    broker_port: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return tuple(f"node-{number}" for number in range(1, self.nodes + 1))


class Cell:
    """Starts and keeps the processes of a plan; lives on the main thread's event loop."""

    def __init__(self, plan: Plan, told: Told) -> None:
        self.plan = plan
        self._supervisor = Supervisor(plan.folder / "logs", told)
        self._running: Running | None = None
        self._held: list[DataFolder | PortLease] = []
        self._api_port = self._broker_port = 0

    @property
    def logs(self) -> Path:
        """Where each process writes its log."""
        return self.plan.folder / "logs"

    async def start(self) -> Running:
        """Start the controller, then the device agents. Raises UserError, EnvironmentFailure."""
        self._held.append(DataFolder(self.plan.folder, UP))
        self._api_port = self._keep(self.plan.api_port, "the API")
        if "://" not in self.plan.broker:
            self._broker_port = self._keep(self.plan.broker_port, "the broker")
        line = await self._supervisor.start(CONTROLLER, self._controller, announces=True)
        try:
            self._running = running = msgspec.json.decode(line, type=Running)
        except msgspec.DecodeError:
            raise EnvironmentFailure(f"the controller announced {line[:80]!r}") from None
        await asyncio.gather(*(self._start_node(name) for name in self.plan.names))
        return running

    def _keep(self, wanted: int, whom: str) -> int:
        """Keep a port for all lives of the controller, and return it."""
        try:
            lease = PortLease(LOOPBACK, wanted, whom)
        except UserError as error:
            # One code for all that is taken, whoever finds it.
            raise EnvironmentFailure(str(error)) from None
        self._held.append(lease)
        return lease.port

    async def _start_node(self, name: str) -> None:
        await self._supervisor.start(name, lambda: self._node(name))

    def pid(self, name: str) -> int:
        """Return the process id of `controller` or of a node's device agent."""
        return self._supervisor.pid(name)

    def kill(self, node: str) -> int:
        """Kill a device agent at once (SIGKILL) and leave it down; returns its process id."""
        return self._supervisor.kill(node)

    async def failed(self) -> EnvironmentFailure:
        """Wait until a process is beyond mending, and return why; may never return."""
        return await self._supervisor.failed()

    async def stop(self) -> None:
        """Stop the device agents, then the controller; safe after a failed start."""
        await self._supervisor.stop(*self.plan.names)
        await self._supervisor.stop(CONTROLLER)
        sweep()
        while self._held:
            self._held.pop().close()

    def _controller(self) -> Sequence[str]:
        plan = self.plan
        command = [
            "controller",
            "--json",
            f"--cell={plan.cell}",
            f"--data={plan.folder / CONTROLLER}",
            f"--api-port={self._api_port}",
            f"--broker={plan.broker}",
        ]
        if "://" not in plan.broker:
            command.append(f"--broker-port={self._broker_port}")
        return module_command("tona", *command)

    def _node(self, name: str) -> Sequence[str]:
        if self._running is None:
            raise EnvironmentFailure("the controller has not started")
        return node_command(name, self.plan.cell, self._running.broker, self.plan.folder / name)


def node_command(name: str, cell: str, broker: str, data: Path, *more: str) -> list[str]:
    """Return the command of a device agent at a broker, given as `mqtt[s]://HOST:PORT`."""
    return module_command(
        "device_agent",
        f"--node={name}",
        f"--cell={cell}",
        f"--broker={urlsplit(broker).netloc}",
        f"--data={data}",
        *more,
    )
