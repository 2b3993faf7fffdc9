"""A cell under test: `tona controller`, its broker, device agents, as a person would start them."""

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from benchmarks.harness.processes import Process, module, running, running_notified
from controller.api import client as api
from controller.broker.lease import PortLease
from controller.trust.authority import Authority
from controller.trust.publishers import TrustState
from protocols.errors import TonaError
from protocols.topics import Speaker
from protocols.transport import tls
from protocols.transport.session import DEFAULT_TENANT
from protocols.transport.settings import Settings
from tona.publishing import TIMEOUT_S, Signing, Wanted, new_key, read_request

NAME: Final = "cell"
AUTHOR: Final = "author"
"""Signs what is put: nodes outside loopback run nothing else."""
BENCH: Final = "bench"
"""Our own identity, of the controller's kind: it calls the API and hears what nodes say."""
CONTROLLER: Final = "controller"
UNTIL_TIMEOUT_S: Final = 90.0
POLL_S: Final = 0.05
IDLE_PERCENT: Final = 10.0
T = TypeVar("T")


class Trust:
    """A local authority and the bundles it has issued, as files.

    They are issued before the broker starts, which would know of a later one after a second only.
    """

    def __init__(self, folder: Path, host: str, broker_port: int, api_port: int) -> None:
        self.folder = folder / "authority"
        self._bundles = folder
        self._host = host
        self._port = broker_port
        self._url = f"https://{host}:{api_port}"
        self._authority = Authority.init(self.folder, "bench")
        self._keys = folder / "keys"
        _, request = new_key(self._keys, AUTHOR)
        self._authority.artifacts().allow(read_request(request), DEFAULT_TENANT)

    def issue(self, name: str, speaker: Speaker) -> None:
        """Issue an identity."""
        addresses = [self._host] if speaker is Speaker.CONTROLLER else []
        bundle = self._authority.issue(
            name,
            speaker,
            NAME,
            broker_host=self._host,
            broker_port=self._port,
            api_url=self._url,
            addresses=addresses,
        )
        tls.save(bundle, self.bundle(name))

    def bundle(self, name: str) -> Path:
        """Return where the bundle of an identity lies."""
        return self._bundles / f"{name}.bundle"

    def context(self, name: str) -> ssl.SSLContext:
        """Return the context of a client with this identity."""
        return tls.client_context(tls.load(self.bundle(name)))

    def sign(self, state: TrustState, artifact: Wanted) -> None:
        """Vouch for an artifact as the author. Blocks; raises as `Signing` does."""
        root = tls.load(self.bundle(BENCH)).root_json.encode()
        with httpx.Client(
            base_url=self._url, verify=self.context(BENCH), timeout=TIMEOUT_S
        ) as http:
            Signing(http, root, state, self._keys).sign(DEFAULT_TENANT, [artifact])


class Cell:
    """A running controller; agents are added to it."""

    def __init__(
        self,
        folder: Path,
        controller: Process,
        said: Any,
        trust: Trust | None,
        name: str = NAME,
    ) -> None:
        self.folder = folder
        self.name = name
        self.controller = controller
        self.trust = trust
        self.api_url: str = said["api_url"]
        broker = urlsplit(said["broker"])
        assert broker.hostname is not None
        assert broker.port is not None
        self.host, self.port = broker.hostname, broker.port
        self._http = httpx.AsyncClient(timeout=UNTIL_TIMEOUT_S)
        if trust is not None:
            context = trust.context(BENCH)
            self._http = httpx.AsyncClient(timeout=UNTIL_TIMEOUT_S, verify=context)

    async def close(self) -> None:
        """Close the connection to the API."""
        await self._http.aclose()

    async def call(self, operation: str, **arguments: Any) -> Any:
        """Call an operation of the controller."""
        request = api.call(operation, **arguments)
        kind = {} if request.body is None else {"Content-Type": "application/json"}
        url = self.api_url + request.path
        answer = await self._http.request(request.method, url, content=request.body, headers=kind)
        return api.answer(operation, answer.status_code, answer.content)

    async def put(self, content: bytes, name: str) -> str:
        """Push an artifact, signed where the cell has trust, and return its digest."""
        digest = hashlib.sha256(content).hexdigest()
        url = f"{self.api_url}/v1/artifacts/{digest}"
        answer = await self._http.put(url, params={"name": name}, content=content)
        answer.raise_for_status()
        if self.trust is not None:
            artifact = Wanted(f"sha256:{digest}", len(content))
            await asyncio.to_thread(self.trust.sign, await self.call("trust.show"), artifact)
        return f"sha256:{digest}"

    async def until(self, what: str, ready: Callable[[], Awaitable[T]]) -> T:
        """Ask until the answer is a true one. Raises RuntimeError after UNTIL_TIMEOUT_S."""
        try:
            async with asyncio.timeout(UNTIL_TIMEOUT_S):
                while not (found := await ready()):  # noqa: ASYNC110 - another process's event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            words = f"{await self._tasks()}; the controller says: {self.controller.last_words()}"
            raise RuntimeError(f"still not so: {what}; {words}") from None
        return found

    async def _tasks(self) -> str:
        """Say of each task that does not run in which state it is, and why."""
        try:
            tasks = await self.call("task.list")
        except (httpx.HTTPError, TonaError) as error:
            return f"no task is known: {error}"
        waiting = [one for one in tasks if one.state != "running"]
        return "; ".join(f"{one.spec.task} is {one.state}: {one.reason}" for one in waiting)

    async def online(self, *nodes: str) -> None:
        """Wait until these nodes are online."""

        async def ready() -> bool:
            views = await self.call("fleet.status")
            return set(nodes) <= {one.node for one in views if one.state == "online"}

        await self.until(f"{', '.join(nodes)} online", ready)

    async def idle(self, node: str) -> None:
        """Wait until the controller has heard that the node is idle."""

        async def ready() -> bool:
            loads = [one.load for one in await self.call("fleet.status") if one.node == node]
            return any(one is not None and one.cpu_percent <= IDLE_PERCENT for one in loads)

        await self.until(f"the load of {node} at most {IDLE_PERCENT:g} %", ready)

    async def serving(self, count: int) -> None:
        """Wait until so many services run."""

        async def ready() -> bool:
            return len(await self.call("service.list", state="running")) >= count

        await self.until(f"{count} services running", ready)

    @asynccontextmanager
    async def agent(
        self, node: str, around: Callable[[list[str]], list[str]] = list, flags: Sequence[str] = ()
    ) -> AsyncIterator[Process]:
        """Run a device agent as long as the context, and yield it when it is online.

        `around` makes of its command one that runs it elsewhere, such as in a namespace.
        """
        command = module("device_agent", f"--data={self.folder / node}", *self.way(node), *flags)
        async with running_notified(around(command), self.folder, node) as one:
            await self.online(node)
            yield one

    def way(self, node: str) -> tuple[str, ...]:
        """Return the flags with which a node finds this cell."""
        if self.trust is not None:
            return (f"--bundle={self.trust.bundle(node)}",)
        return f"--node={node}", f"--broker={self.host}:{self.port}"

    def settings(self, identity: str, speaker: Speaker) -> Settings:
        """Return how a session of our own reaches this cell."""
        context = self.trust.context(identity) if self.trust is not None else None
        return Settings(
            host=self.host,
            port=self.port,
            identity=identity,
            speaker=speaker,
            cell=self.name,
            tls=context,
        )


@asynccontextmanager
async def cell(
    folder: Path,
    *,
    broker: str = "embedded",
    trusted_host: str = "",
    identities: Mapping[str, Speaker] = MappingProxyType({}),
    **settings: int,
) -> AsyncIterator[Cell]:
    """Run a controller with its broker; with `trusted_host`, Mosquitto and TLS on that address.

    `identities` are who else may join a cell with TLS. `settings` are further options of the
    controller, such as `heartbeat_ms`.
    """
    said: dict[str, str | int] = {"data": str(folder / "controller"), "cell": NAME, **settings}
    async with AsyncExitStack() as stack:
        trust = None
        if trusted_host:
            # The bundles name the ports before anybody listens there.
            broker_port, api_port = (
                stack.enter_context(closing(PortLease(trusted_host, 0, whom))).port
                for whom in ("the broker", "the API")
            )
            trust = Trust(folder, trusted_host, broker_port, api_port)
            said |= {"broker_host": trusted_host, "broker_port": broker_port}
            said |= {"api_host": trusted_host, "api_port": api_port}
            said |= {"broker": "mosquitto", "authority": str(trust.folder)}
            own = {CONTROLLER: Speaker.CONTROLLER, BENCH: Speaker.CONTROLLER}
            for name, speaker in {**own, **identities}.items():
                trust.issue(name, speaker)
            said |= {"bundle": str(trust.bundle(CONTROLLER))}
        else:
            said |= {"broker": broker, "broker_port": 0, "api_port": 0}
        config = folder / "controller.toml"
        # A string of JSON is one of TOML.
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in said.items()]
        config.write_text("".join(lines), encoding="utf-8")
        command = module("tona", "controller", "--json", f"--config={config}")
        process = await stack.enter_async_context(running(command, folder / "controller.log"))
        one = Cell(folder, process, await process.line(), trust)
        stack.push_async_callback(one.close)
        yield one
