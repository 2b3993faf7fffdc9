"""The controller of a cell, wired: broker, store, roles, registry, API. All wiring stands here."""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from controller.anchor.decider import Anchor
from controller.anchor.decider import Settings as AnchorSettings
from controller.api.app import Doors
from controller.api.metrics import Metric
from controller.api.operations import SystemInfo
from controller.api.server import ApiServer
from controller.broker.address import Address, reachable
from controller.broker.door import Broker
from controller.broker.mosquitto import ServerTrust
from controller.broker.spec import make_broker
from controller.config import Config
from controller.decider import Answer, Decider, Record, Send
from controller.host.host import Host
from controller.host.routing import received, role_of, subscriptions, topic_of
from controller.namo.decider import Namo
from controller.records import ARTIFACT, ArtifactRecord
from controller.registry import LiveRegistry, Registry
from controller.scheduler.decider import Scheduler
from controller.scheduler.decider import Settings as SchedulerSettings
from controller.store import SqliteStore
from controller.trust.authority import Authority
from controller.trust.revocation import Revocation
from protocols.errors import EnvironmentFailure, UserError
from protocols.topics import Speaker
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings as SessionSettings
from protocols.transport.tls import Bundle, client_context, load, server_context

NAMO: Final = "namo-main"
TA: Final = "ta-main"
TS: Final = "ts-main"
QUEUE_MAX: Final = 100_000
QUEUE_MAX_BYTES: Final = 64 << 20

_log = logging.getLogger(__name__)


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
        self._store: SqliteStore | None = None
        self._broker: Broker | None = None
        self._api: ApiServer | None = None
        self._host: Host | None = None
        self._session: Session | None = None
        self._registry: LiveRegistry | None = None
        self._owner_epoch = 0
        self._address = Address("", 0, tls=False)
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> Running:
        """Start everything, in the order of need. Raises UserError, EnvironmentFailure."""
        config = self.config
        folder = _private(config.folder())
        bundle = _bundle(config)
        trust = _trust(config, bundle)
        self._store = await SqliteStore.open(folder / "store.sqlite")
        self._owner_epoch = await self._store.acquire(f"{config.name}/{os.getpid()}")
        self._broker = make_broker(
            config.broker,
            folder=_private(folder / "broker"),
            host=config.broker_host,
            port=config.listening_port(),
            trust=trust,
        )
        self._address = await self._broker.start()
        self._registry = LiveRegistry(Registry(f"{self._owner_epoch:x}"))
        self._api = ApiServer(
            config.api_host,
            config.api_port,
            self._registry,
            Doors(
                self._call,
                self._record_artifact,
                self._info,
                self._metrics,
                self._health,
                Revocation(trust.authority) if trust else _nobody,
            ),
            folder,
            server_context(bundle) if bundle else None,
        )
        host, port = await self._api.start()
        shown = config.advertise or reachable(host)
        shown = f"[{shown}]" if ":" in shown else shown
        api_url = f"{'https' if bundle else 'http'}://{shown}:{port}"
        await self._run_roles(api_url, bundle)
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
        if self._session is not None:
            await self._session.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._api is not None:
            await self._api.stop()
        if self._broker is not None:
            await self._broker.stop()
        if self._store is not None:
            await self._store.close()

    # Wiring.

    async def _run_roles(self, api_url: str, bundle: Bundle | None) -> None:
        config, store, registry = self.config, self._store, self._registry
        assert store is not None  # noqa: S101 - start made both
        assert registry is not None  # noqa: S101 - the same
        scheduler = SchedulerSettings(
            name=TS,
            epoch=self._owner_epoch,
            anchors=(TA,),
            heartbeat_ms=config.heartbeat_ms,
            sample_ms=config.sample_ms,
            store_urls=(api_url,),
        )
        deciders: list[Decider] = [
            Namo(NAMO, TA),
            Anchor(AnchorSettings(TA, TS, NAMO)),
            Scheduler(scheduler),
        ]
        host = Host(deciders, store, self._owner_epoch, registry, self._send)
        self._host = host
        self._session = Session(
            SessionSettings(
                host=self._address.host,
                port=self._address.port,
                identity=bundle.name if bundle else config.name,
                speaker=Speaker.CONTROLLER,
                cell=config.cell,
                tls=_client_tls(self._address, bundle),
                queue_max=QUEUE_MAX,
                queue_max_bytes=QUEUE_MAX_BYTES,
            ),
            subscriptions=subscriptions(config.cell, host.roles),
            on_message=self._hear,
            on_connected=lambda _: _log.info("connected to %s", self._address.url),
            on_disconnected=lambda _: None,
            # Frames of a controller are fenced by the store's owner, not by their connection.
            next_incarnation=lambda: self._owner_epoch,
        )
        records = await store.load()
        self._tasks.append(asyncio.create_task(host.run(records), name="roles"))
        self._tasks.append(asyncio.create_task(self._session.run(), name="session"))

    def _hear(self, inbound: Inbound) -> None:
        assert self._host is not None  # noqa: S101 - the session starts after the host
        role = role_of(inbound.topic, self._host.roles)
        if role is not None:
            event = received(inbound.frame, inbound.response_topic, inbound.correlation)
            self._host.post(role, event)

    def _send(self, send: Send, sender: str) -> bool:
        del sender
        topic = topic_of(self.config.cell, send.to)
        if topic is None or self._session is None:
            return False
        return self._session.send(
            topic,
            send.body,
            cause=send.cause,
            tenant=send.tenant,
            correlation=getattr(send.to, "correlation", b""),
        )

    # What the API asks for.

    async def _call(self, operation: str, arguments: Struct, tenant: str, cause: str) -> Answer:
        assert self._host is not None  # noqa: S101 - the API answers 503 until then
        return await self._host.call(operation, arguments, tenant, cause)

    async def _record_artifact(self, artifact: ArtifactRecord, tenant: str, cause: str) -> None:
        del tenant
        assert self._store is not None  # noqa: S101 - start made both
        assert self._registry is not None  # noqa: S101 - the same
        records = [Record(ARTIFACT, artifact.digest, artifact, cause)]
        await self._store.append(self._owner_epoch, None, records)
        self._registry.apply(records)

    def _info(self) -> SystemInfo:
        host = self._host
        return SystemInfo(
            cell=self.config.cell,
            version=version("tona-edge"),
            roles=tuple(host.deciders) if host else (),
            broker=self._address.url,
            started_unix_ms=self._started_unix_ms,
            counters={name: float(value) for name, value in self._counters().items()},
        )

    def _counters(self) -> dict[str, int]:
        counters: dict[str, int] = {}
        if self._host is not None:
            counters.update(self._host.counters)
            for name, decider in self._host.deciders.items():
                own: dict[str, int] = getattr(decider, "counters", {})
                counters.update({f"{name}_{key}".replace("-", "_"): n for key, n in own.items()})
        if self._session is not None:
            fields = self._session.counters
            counters.update(
                {f"mqtt_{name}": getattr(fields, name) for name in fields.__struct_fields__}
            )
        return counters

    def _metrics(self) -> Iterable[Metric]:
        for name, value in self._counters().items():
            yield Metric(
                f"tona_{name}_total", f"{name.replace('_', ' ')}.", {(): float(value)}, "counter"
            )

    def _health(self) -> str:
        if self._session is None or not self._session.connected:
            reason = self._session.last_failure if self._session else ""
            return f"no connection to the broker {self._address.url} {reason}".strip()
        if self._host is not None and self._host.last_failure:
            return self._host.last_failure
        return ""


def _nobody(_serial: str) -> bool:
    return False


def _private(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the data folder: {error.strerror}") from None
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
    return ServerTrust(Authority.open(Path(config.authority).expanduser()), bundle)


def _client_tls(address: Address, bundle: Bundle | None) -> ssl.SSLContext | None:
    if not address.tls:
        return None
    if bundle is None:
        raise UserError(
            f"{address.url} asks for a certificate: name this controller's with --bundle"
        )
    return client_context(bundle)
