"""Real clients (paho) around real brokers."""

import asyncio
import ctypes
import os
import queue
import secrets
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from controller.broker.address import Address
from controller.broker.mosquitto import ServerTrust
from controller.broker.probe import session
from controller.trust.authority import Authority
from protocols.errors import EnvironmentFailure
from protocols.topics import Speaker
from protocols.transport.tls import Bundle, client_context

WAIT_S = 60
CELL = "cell-1"


class Peer:
    """A client with a thread of its own; what it receives waits in `inbox`."""

    def __init__(self, address: Address, bundle: Bundle | None) -> None:
        self.inbox: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.answered = threading.Event()
        self.joined = False
        self.left = threading.Event()
        self._subscribed = threading.Event()
        self._published = threading.Event()
        self._address = address
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"peer-{secrets.token_hex(4)}",
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        if bundle is not None:
            self.client.tls_set_context(client_context(bundle))
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_message = lambda _client, _data, message: self.inbox.put(message)
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_publish = lambda *_: self._published.set()

    def _on_connect(self, *event: object) -> None:
        self.joined = not event[3].is_failure  # type: ignore[attr-defined]
        self.answered.set()

    def _on_disconnect(self, *_: object) -> None:
        self.answered.set()
        self.left.set()

    def _join(self) -> bool:
        try:
            self.client.connect(self._address.host, self._address.port, keepalive=60)
        except (OSError, ssl.SSLError):
            return False
        self.client.loop_start()
        assert self.answered.wait(WAIT_S), "neither let in nor kept out"
        return self.joined

    async def join(self) -> bool:
        """Whether the broker let us in."""
        return await asyncio.to_thread(self._join)

    async def subscribe(self, topic: str) -> None:
        self._subscribed.clear()
        self.client.subscribe(topic, qos=1)
        assert await asyncio.to_thread(self._subscribed.wait, WAIT_S)

    async def publish(
        self, topic: str, payload: bytes, reply_to: str = "", correlation: bytes = b""
    ) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        if reply_to:
            properties.ResponseTopic = reply_to
            properties.CorrelationData = correlation
        self._published.clear()
        self.client.publish(topic, payload, qos=1, properties=properties)
        assert await asyncio.to_thread(self._published.wait, WAIT_S)

    async def receive(self) -> paho.MQTTMessage:
        return await asyncio.to_thread(self.inbox.get, timeout=WAIT_S)

    @property
    def own_address(self) -> tuple[str, int]:
        return self.client.socket().getsockname()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        with suppress(OSError, AttributeError):
            self.client.socket().close()


PeerOf = Callable[..., Peer]


@pytest.fixture
def peer() -> Iterator[PeerOf]:
    made: list[Peer] = []

    def make(address: Address, bundle: Bundle | None = None) -> Peer:
        made.append(Peer(address, bundle))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def mosquitto() -> str:
    found = shutil.which("mosquitto", path="/usr/local/sbin:/usr/sbin:/usr/bin")
    if found is None:
        pytest.skip("mosquitto is not installed")
    return found


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "ca", "test-fleet")


@pytest.fixture
def issue(authority: Authority) -> Callable[[str, Speaker], Bundle]:
    def make(name: str, speaker: Speaker) -> Bundle:
        return authority.issue(name, speaker, CELL, broker_host="127.0.0.1")

    return make


@pytest.fixture
def trust(authority: Authority, issue: Callable[[str, Speaker], Bundle]) -> ServerTrust:
    return ServerTrust(authority, issue("gateway", Speaker.CONTROLLER))


async def answers_again(address: Address, tls: ssl.SSLContext | None = None) -> None:
    """Wait until the broker at `address` gives a session."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                async with session(address.host, address.port, tls):
                    return
            except EnvironmentFailure:
                await asyncio.sleep(0.02)


@pytest.fixture
def answering() -> Callable[..., object]:
    return answers_again


def accepted_nodelay(pid: int, peer_address: tuple[str, int]) -> bool | None:
    """TCP_NODELAY of the socket of `pid` that serves `peer_address`; None: not allowed to look."""
    pidfd_getfd = 438
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if not str(entry.readlink()).startswith("socket:"):
                    continue
            except OSError:
                continue
            fd = libc.syscall(pidfd_getfd, pidfd, int(entry.name), 0)
            if fd < 0:
                return None
            with socket.socket(fileno=fd) as one:
                try:
                    if one.family == socket.AF_INET and one.getpeername() == peer_address:
                        return bool(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                except OSError:
                    continue
    finally:
        os.close(pidfd)
    raise AssertionError(f"process {pid} has no socket to {peer_address}")


@pytest.fixture
def witness() -> Callable[[int, tuple[str, int]], bool | None]:
    return accepted_nodelay
