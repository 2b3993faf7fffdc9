"""A controller process, wired: broker, store, roles, links, registry, API."""

import asyncio
import os
import secrets
import ssl
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from controller.accounts import OPERATION, OperationRecord
from controller.api.app import Doors
from controller.api.bulk import Collect
from controller.api.metrics import Metric
from controller.api.noting import Noting
from controller.api.operations import BY_NAME, SystemInfo
from controller.api.server import ApiServer
from controller.broker.address import Address, reachable
from controller.broker.door import Broker
from controller.broker.lease import PortLease
from controller.broker.mosquitto import ServerTrust
from controller.broker.spec import make_broker
from controller.config import Config, meeting_point
from controller.decider import Answer, Record, Role, Send, View
from controller.host.host import Host, monotonic_ms
from controller.host.link import STEP_BITS
from controller.host.linker import Linker
from controller.host.links import Hand, Links, Up
from controller.host.neighbours import Neighbours
from controller.lines import Lines, Place, Plan
from controller.records import ARTIFACT, CELL, ArtifactRecord, CellView
from controller.registry import LiveRegistry, Registry
from controller.roles import deciders, elsewhere, holding_roles, serving_role
from controller.store import SqliteStore
from controller.trust.authority import Authority
from controller.trust.revocation import Revocation
from protocols.errors import Blame, EnvironmentFailure, UserError
from protocols.folder import DataFolder
from protocols.messages import Linking
from protocols.transport.tls import Bundle, client_context, load, server_context

FORGET: Final = "node.forget"
"""The one operation that goes to every process that knows its node."""


class Running(Struct, frozen=True):
    """Where a started controller is reached."""

    api_url: str
    broker: Address
    authority_pem: str = ""


class Gateway:
    """One controller process: `start`, then `wait` until it must end, then `stop`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._started_unix_ms = 0
        self._held: list[DataFolder | PortLease] = []
        self._noting = Noting(self._keep_operation)
        self._store: SqliteStore | None = None
        self._broker: Broker | None = None
        self._api: ApiServer | None = None
        self._host: Host | None = None
        self._linker: Linker | None = None
        self._lines: Lines | None = None
        self._neighbours: Neighbours | None = None
        self._registry: LiveRegistry | None = None
        self._owner_epoch = 0
        self._address = Address("", 0, tls=False)
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> Running:
        """Start everything, in the order of need. Raises UserError, EnvironmentFailure."""
        config = self.config
        folder = config.folder()
        bundle = _bundle(config)
        trust = _trust(config, bundle)
        # Whoever runs in this folder or on these ports already is left alone: the store comes last,
        # because to open it is to take it from its owner.
        self._held.append(DataFolder(folder, "controller"))
        api = PortLease(config.api_host, config.api_port, "the API")
        self._held.append(api)
        self._broker = make_broker(
            config.broker,
            folder=_private(folder / "broker"),
            host=config.broker_host,
            port=config.listening_port(),
            trust=trust,
        )
        self._address = await self._broker.start()
        self._store = await SqliteStore.open(folder / "store.sqlite")
        self._owner_epoch = await self._store.acquire(f"{config.name}/{os.getpid()}")
        self._registry = LiveRegistry(Registry(f"{self._owner_epoch:x}"))
        self._api = ApiServer(
            config.api_host,
            api.port,
            self._registry,
            Doors(
                self._call,
                self._record_artifact,
                self._info,
                self._metrics,
                self._health,
                Revocation(trust.authority) if trust else _nobody,
                self._starting,
                self._noting.note,
                Collect(self._knows_all, self._forget_artifact),
                trust.authority.artifacts if trust else None,
            ),
            folder,
            server_context(bundle) if bundle else None,
        )
        # Whoever calls meanwhile waits at the door: before the roles know what is durable, all that
        # there is would be unknown here.
        host, port = self._api.bind()
        shown = config.advertise or reachable(host)
        shown = f"[{shown}]" if ":" in shown else shown
        api_url = f"{'https' if bundle else 'http'}://{shown}:{port}"
        await self._run_roles(api_url, bundle)
        await self._api.start()
        self._started_unix_ms = time.time_ns() // 1_000_000
        return Running(api_url, self._address, bundle.ca_pem if bundle else "")

    async def wait(self) -> None:
        """Wait until something that cannot be mended ends the controller, and raise it."""
        assert self._broker is not None  # noqa: S101 - wait comes after start
        failed = asyncio.create_task(self._broker.wait_failed(), name="broker")
        self._tasks.append(failed)
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            failure = task.result()
            if isinstance(failure, EnvironmentFailure):
                raise failure
        raise EnvironmentFailure("a part of the controller has ended by itself")

    async def stop(self) -> None:
        """End everything in the reverse order; safe after a failed start."""
        if self._neighbours is not None:
            self._neighbours.close()
        if self._linker is not None:
            self._linker.close()
        if self._lines is not None:
            await self._lines.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._api is not None:
            await self._api.stop()
        if self._broker is not None:
            await self._broker.stop()
        if self._store is not None:
            await self._store.close()
        while self._held:
            self._held.pop().close()

    # Wiring.

    async def _run_roles(self, api_url: str, bundle: Bundle | None) -> None:
        config, store, registry = self.config, self._store, self._registry
        assert store is not None  # noqa: S101 - start made both
        assert registry is not None  # noqa: S101 - the same
        opening = self._owner_epoch << STEP_BITS | secrets.randbelow(1 << (STEP_BITS - 1))
        linker = Linker(Links(opening), self._speak, monotonic_ms)
        host = Host(
            deciders(
                config,
                self._owner_epoch,
                (api_url, *config.stores),
                time.time_ns() // 1_000_000 - monotonic_ms(),
                self._address.url,
            ),
            store,
            self._owner_epoch,
            registry,
            self._send,
            linker=linker,
        )
        self._host, self._linker = host, linker
        self._lines = host.carrier = Lines(self._plan(bundle), host, linker)
        self._neighbours = neighbours = self._meet(host, linker, registry)
        if Role.TS in config.roles:
            cell = CellView(config.ts, config.cell, self._address.url, api_url)
            registry.apply(views=[View(CELL, config.ts, cell)])
        records = await store.load()
        self._noting.restore(one.value for one in records if one.kind == OPERATION)
        self._tasks += self._lines.run()
        for own, peer in elsewhere(config):
            linker.open(own, peer)
        if Role.NAMO not in config.roles:
            neighbours.show_to(config.namo, everything=True)
        else:
            neighbours.wait_for(peer for _, peer in elsewhere(config))
        host.restore(records)
        self._tasks.append(asyncio.create_task(host.run(), name="roles"))

    def _meet(self, host: Host, linker: Linker, registry: LiveRegistry) -> Neighbours:
        """Join links, roles and the desk of this process."""
        neighbours = Neighbours(next(iter(host.roles)), linker, registry, host.call, _types)

        def hand(said: Hand) -> None:
            (host.handed if said.own in host.roles else neighbours.hand)(said)

        def up(anew: Up) -> None:
            (host.linked if anew.own in host.roles else neighbours.up)(anew)

        linker.hand, linker.up = hand, up
        return neighbours

    def _plan(self, bundle: Bundle | None) -> Plan:
        config = self.config
        uplink = self._place(config.uplink, bundle) if config.uplink else None
        home = Place(self._address, config.cell, _client_tls(self._address, bundle))
        return Plan(
            identity=bundle.name if bundle else config.name,
            home=home,
            uplink=None if uplink is None or uplink[:2] == home[:2] else uplink,
            direct=tuple(self._place(one, bundle) for one in config.direct),
            epoch=self._owner_epoch,
            meet=lambda url, cell: self._place(f"{url}/{cell}", bundle),
        )

    def _place(self, url: str, bundle: Bundle | None) -> Place:
        address, cell = meeting_point(url)
        return Place(address, cell, _client_tls(address, bundle))

    def _send(self, send: Send, sender: str) -> bool:
        return self._lines is not None and self._lines.send(send, sender)

    def _speak(self, own: str, frame: Linking) -> bool:
        return self._lines is not None and self._lines.speak(own, frame)

    # What the API asks for.

    async def _call(self, operation: str, arguments: Struct, tenant: str, cause: str) -> Answer:
        assert self._host is not None  # noqa: S101 - the API answers nobody until then
        assert self._neighbours is not None  # noqa: S101 - the same
        assert self._registry is not None  # noqa: S101 - the same
        if operation == FORGET:
            return await self._forget(arguments, tenant, cause)
        role = serving_role(self.config, self._registry.model, operation, arguments)
        return await self._call_at(role, operation, arguments, tenant, cause)

    async def _call_at(
        self, role: str, operation: str, arguments: Struct, tenant: str, cause: str
    ) -> Answer:
        assert self._host is not None  # noqa: S101 - whoever calls this has checked it
        assert self._neighbours is not None  # noqa: S101 - the same
        if role in self._host.roles:
            return await self._host.call(operation, arguments, tenant, cause)
        if not role:
            raise EnvironmentFailure(
                f"nobody who serves {operation} has spoken yet; try again in a moment"
            )
        return await self._neighbours.call(role, operation, arguments, tenant, cause)

    async def _forget(self, arguments: Struct, tenant: str, cause: str) -> Answer:
        """Have a node forgotten wherever it was ever seen; the first refusal ends it."""
        assert self._registry is not None  # noqa: S101 - the same
        node = str(getattr(arguments, "name", ""))
        answer = Answer("", error=f"there is no node {node!r}", blame=Blame.USER)
        for role in holding_roles(self.config, self._registry.merger, node):
            answer = await self._call_at(role, FORGET, arguments, tenant, cause)
            if answer.error:
                break
        return answer

    async def _record_artifact(self, artifact: ArtifactRecord, tenant: str, cause: str) -> None:
        del tenant
        assert self._store is not None  # noqa: S101 - start made both
        assert self._registry is not None  # noqa: S101 - the same
        records = [Record(ARTIFACT, artifact.digest, artifact, cause)]
        await self._store.append(self._owner_epoch, None, records)
        self._registry.apply(records)

    async def _keep_operation(self, key: str, record: OperationRecord) -> None:
        assert self._store is not None  # noqa: S101 - start made both
        assert self._registry is not None  # noqa: S101 - the same
        records = [Record(OPERATION, key, record, record.cause)]
        try:
            await self._store.append(self._owner_epoch, None, records)
        except EnvironmentFailure:
            # What was done is done, and its answer says so.
            return
        self._registry.apply(records)

    async def _forget_artifact(self, digest: str, cause: str) -> None:
        assert self._store is not None  # noqa: S101 - start made both
        assert self._registry is not None  # noqa: S101 - the same
        records = [Record(ARTIFACT, digest, None, cause)]
        await self._store.append(self._owner_epoch, None, records)
        self._registry.apply(records)

    def _knows_all(self) -> bool:
        """Whether every use case, service and task of the network is known here now."""
        return Role.NAMO in self.config.roles and not self._health()

    def _info(self) -> SystemInfo:
        host = self._host
        return SystemInfo(
            cell=self.config.cell,
            version=version("tona-edge"),
            roles=tuple(host.deciders) if host else (),
            broker=self._address.url,
            started_unix_ms=self._started_unix_ms,
            counters={name: float(value) for name, value in self._counters().items()},
            cells=tuple(self._registry.model.list(CELL)) if self._registry else (),
        )

    def _counters(self) -> dict[str, int]:
        counters: dict[str, int] = {}
        if self._host is not None:
            counters.update(self._host.counters)
            for name, decider in self._host.deciders.items():
                own: dict[str, int] = getattr(decider, "counters", {})
                counters.update({f"{name}_{key}".replace("-", "_"): n for key, n in own.items()})
        if self._linker is not None:
            counters.update(self._linker.links.counters)
        if self._neighbours is not None:
            counters.update(self._neighbours.counters)
        if self._lines is not None:
            counters.update(self._lines.counters())
        return counters

    def _metrics(self) -> Iterable[Metric]:
        for name, value in self._counters().items():
            yield Metric(
                f"tona_{name}_total", f"{name.replace('_', ' ')}.", {(): float(value)}, "counter"
            )

    def _starting(self) -> str:
        return self._neighbours.starting() if self._neighbours is not None else ""

    def _health(self) -> str:
        failure = self._lines.failure() if self._lines is not None else "not started yet"
        if failure:
            return failure
        if self._host is not None and self._host.last_failure:
            return self._host.last_failure
        return self._starting()


def _types(operation: str) -> tuple[type[Struct], Any] | None:
    known = BY_NAME.get(operation)
    return None if known is None else (known.arguments, known.result)


def _nobody(_serial: str) -> bool:
    return False


def _private(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFailure(f"{folder}: cannot be made: {error.strerror}") from None
    return folder


def _bundle(config: Config) -> Bundle | None:
    return load(Path(config.bundle).expanduser()) if config.bundle else None


def _trust(config: Config, bundle: Bundle | None) -> ServerTrust | None:
    if not config.authority:
        return None
    if bundle is None:
        raise UserError(
            "an authority without a bundle: issue one for this controller with "
            "'tona ca issue NAME --kind controller' and name it with --bundle"
        )
    authority = Authority.open(Path(config.authority).expanduser())
    if bundle.ca_pem != authority.ca_pem():
        raise UserError(
            f"{config.bundle} is not of the authority in {config.authority}, which could revoke "
            "nobody: name the authority that issued it"
        )
    return ServerTrust(authority, bundle)


def _client_tls(address: Address, bundle: Bundle | None) -> ssl.SSLContext | None:
    if not address.tls:
        return None
    if bundle is None:
        raise UserError(
            f"{address.url} asks for a certificate: name this controller's with --bundle"
        )
    return client_context(bundle)
