"""The ground that a testbed stands on: a network for each gateway and node, and the air between."""

import asyncio
import socket
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from controller.broker.spec import MOSQUITTO
from controller.child import module_command
from protocols.errors import EnvironmentFailure
from tona.local.place import Place
from tona.local.supervisor import Supervisor, Told
from tona.testbed.air import Air, Become, Link
from tona.testbed.identities import OPERATOR, Identities
from tona.testbed.lane import DOWN, Conditions
from tona.testbed.plan import API_PORT, BROKER_PORT, Spec
from tona.testbed.space import Spaces

SHIM: Final = "air"
SAID_AGAIN_S: Final = 1.0
"""A shim that was started anew hears everything within so long."""


class NetworkGround:
    """Namespaces, TLS, Mosquitto at every gateway; everything that is traffic stays inside."""

    mode: Final = "netns"
    broker: Final = MOSQUITTO

    def __init__(self, spec: Spec, folder: Path, told: Told) -> None:
        """Make the networks and enter the backhaul. Raises UserError, EnvironmentFailure."""
        self.spec = spec
        self.spaces = Spaces(spec)
        self.spaces.operate()
        self.identities = Identities(folder, spec)
        self._folder = folder
        self._supervisor = Supervisor(folder / "logs", told)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._now: dict[tuple[str, str], Conditions] = {}
        self._loop = asyncio.get_running_loop()
        self._hands = ThreadPoolExecutor(1)
        """One: of two routes for a node the later one stays."""
        self._broken: asyncio.Future[EnvironmentFailure] = self._loop.create_future()
        self._again: asyncio.Task[None] | None = None

    @property
    def operator(self) -> str:
        """The bundle of whoever looks at the testbed."""
        return str(self.identities.bundle(OPERATOR))

    @property
    def paths(self) -> Mapping[str, str]:
        """The network namespaces by name."""
        return self.spaces.paths

    def bundle(self, name: str) -> str:
        """Return the file of somebody's bundle."""
        return str(self.identities.bundle(name))

    def broker_at(self, cell: str) -> tuple[str, int]:
        """Return where nodes and clients find a cell's broker."""
        return self.spec.host(cell), BROKER_PORT

    def places(self) -> dict[str, Place]:
        """Return where each process stands."""
        spec, paths, bundle = self.spec, self.spaces.paths, self.identities.bundle
        made = {
            one: Place(
                host=spec.host(one),
                broker_port=BROKER_PORT,
                api_port=API_PORT,
                broker=self.broker,
                space=paths[one],
                bundle=str(bundle(one)),
                authority=str(self.identities.authority.folder),
            )
            for one in spec.gateways
        }
        for node in spec.node_names:
            made[node] = Place(space=paths[node], bundle=str(bundle(node)))
        for node, cell in spec.edge_nodes.items():
            made[node] = Place(space=paths[cell], bundle=str(bundle(node)))
        return made

    async def start(self) -> None:
        """Let packets through the air, with every link down. Raises EnvironmentFailure."""
        paths = self.spaces.paths
        spec = self.spec
        links = tuple(
            Link(node, cell, paths[node], paths[cell], spec.host(cell) if spec.keeps(node) else "")
            for node in spec.node_names
            for cell in spec.cell_names
        )
        self._now = {(one.node, one.cell): DOWN for one in links}
        file = self._folder / "air.json"
        file.write_bytes(msgspec.json.encode(Air(links, str(self._at), self.spec.seed)))
        command = module_command("tona.testbed.shim", str(file))
        await self._supervisor.start(SHIM, lambda: command, announces=True)
        self._again = asyncio.create_task(self._repeat(), name="say conditions again")

    @property
    def _at(self) -> Path:
        return self._folder / "air.sock"

    def become(self, node: str, cell: str, conditions: Conditions) -> None:
        """Change a link."""
        if self._now.get((node, cell)) != conditions:
            self._now[node, cell] = conditions
            self._say(node, cell)

    def arrive(self, node: str, cell: str, conditions: Conditions, after_ms: float) -> None:
        """Bring a radio that keeps its address to a cell after so long."""
        if self.spec.keeps(node):
            self._tell(Become(node, cell, conditions, after_ms))

    def prefer(self, node: str, cell: str) -> None:
        """Have a node reach what is beyond its cells over this one, soon."""
        if words := self.spec.preferred(node, cell):
            # A process takes longer than the loop can do without: switches are timed there.
            self._hands.submit(self.spaces.ip, node, words).add_done_callback(self._handled)

    def _handled(self, done: Future[None]) -> None:
        failure = done.exception()
        if failure is not None:
            self._loop.call_soon_threadsafe(self._broke, failure)

    def _broke(self, failure: BaseException) -> None:
        if not self._broken.done():
            self._broken.set_exception(failure)

    async def failed(self) -> EnvironmentFailure:
        """Wait until the air is beyond mending, and return why; may never return.

        Raises what kept a route from being changed.
        """
        air = asyncio.ensure_future(self._supervisor.failed())
        try:
            done, _ = await asyncio.wait({air, self._broken}, return_when=asyncio.FIRST_COMPLETED)
            return next(one.result() for one in done)
        finally:
            air.cancel()

    async def stop(self) -> None:
        """Take it all away; safe after a failed start."""
        if self._again is not None:
            self._again.cancel()
            await asyncio.wait({self._again})
        await self._supervisor.stop(SHIM)
        self._hands.shutdown()
        self._broken.cancel()
        self._socket.close()
        self.spaces.close()

    def _say(self, node: str, cell: str) -> None:
        # A shim that is away, or full, hears it again.
        self._tell(Become(node, cell, self._now[node, cell]))

    def _tell(self, said: Become) -> None:
        with suppress(OSError):
            self._socket.sendto(msgspec.json.encode(said), str(self._at))

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(SAID_AGAIN_S)
            for node, cell in self._now:
                self._say(node, cell)
