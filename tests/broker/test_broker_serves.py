"""Every kind of broker, real processes: it serves, it comes back, it goes with its parent."""

import asyncio
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.broker import probe, supervisor
from controller.broker.address import Address
from controller.broker.embedded import EmbeddedBroker
from controller.broker.mosquitto import MosquittoBroker, ServerTrust
from controller.broker.spec import make_broker
from protocols import topics
from protocols.errors import UserError
from protocols.topics import Channel, Party, Speaker
from protocols.transport.tls import Bundle

REQUEST = str(topics.build("cell-1", Party.NODE, "n1", Channel.INVOKE))
REPLY = str(topics.build("cell-1", Party.CLIENT, "c1", Channel.REPLY))


async def round_trip(node: Any, client: Any, payload: bytes) -> None:
    assert await node.join()
    assert await client.join()
    await node.subscribe(REQUEST)
    await client.subscribe(REPLY)
    await client.publish(REQUEST, payload, reply_to=REPLY, correlation=b"\x00id\xff")
    request = await node.receive()
    assert request.payload == payload
    assert request.properties.ResponseTopic == REPLY
    assert request.properties.CorrelationData == b"\x00id\xff"
    await node.publish(REPLY, payload[::-1], reply_to=REPLY, correlation=b"\x00id\xff")
    reply = await client.receive()
    assert reply.payload == payload[::-1]
    assert reply.properties.CorrelationData == b"\x00id\xff"


@pytest.fixture(params=["embedded", "mosquitto"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto")
    return request.param


async def test_serves_requests_and_replies_up_to_the_largest(
    kind: Any, tmp_path: Any, peer: Any
) -> None:
    async with make_broker(kind, folder=tmp_path) as address:
        assert address.host == "127.0.0.1"
        assert not address.tls
        payload = os.urandom(topics.INVOCATION_MAX_BYTES)
        await round_trip(peer(address), peer(address), payload)


@pytest.mark.usefixtures("mosquitto")
async def test_serves_with_certificates(
    tmp_path: Path, trust: ServerTrust, issue: Callable[..., Bundle], peer: Any
) -> None:
    node, client = issue("n1", Speaker.NODE), issue("c1", Speaker.CLIENT)
    async with make_broker("mosquitto", folder=tmp_path / "m", trust=trust) as address:
        assert address.url.startswith("mqtts://127.0.0.1:")
        await round_trip(peer(address, node), peer(address, client), b"x" * 65536)


async def test_no_nagle_on_accepted_connections(
    kind: Any, tmp_path: Any, peer: Any, witness: Any
) -> None:
    broker = make_broker(kind, folder=tmp_path)
    async with broker as address:
        assert isinstance(broker, EmbeddedBroker | MosquittoBroker)
        if isinstance(broker, EmbeddedBroker):
            assert broker.report is not None
            assert broker.report.listener_nodelay
            assert broker.report.accepted_nodelay
        one = peer(address)
        assert await one.join()
        assert broker.pid is not None
        assert witness(broker.pid, one.own_address) is not False


async def test_says_what_was_started(kind: Any, tmp_path: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    async with make_broker(kind, folder=tmp_path) as address:
        lines = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert len(lines) == 1
    assert kind in lines[0]
    assert address.url in lines[0]


async def test_a_killed_broker_comes_back_on_its_port(
    kind: Any, tmp_path: Any, peer: Any, answering: Any
) -> None:
    broker = make_broker(kind, folder=tmp_path)
    async with broker as address:
        assert isinstance(broker, EmbeddedBroker | MosquittoBroker)
        for _ in range(3):
            before = await broker.wait_up()
            # A client that is connected leaves the port in use behind.
            one = peer(address)
            assert await one.join()
            os.kill(before, signal.SIGKILL)
            assert await asyncio.to_thread(one.left.wait, 60)
            await answering(address)
            assert await broker.wait_up() != before
        await round_trip(peer(address), peer(address), b"after")


async def test_a_broker_that_hangs_is_replaced(
    kind: Any, tmp_path: Any, monkeypatch: Any, answering: Any
) -> None:
    monkeypatch.setattr(supervisor, "LIVENESS_EVERY_S", 0.05)
    monkeypatch.setattr(probe, "PROBE_TIMEOUT_S", 2.0)
    broker = make_broker(kind, folder=tmp_path)
    async with broker as address:
        assert isinstance(broker, EmbeddedBroker | MosquittoBroker)
        before = await broker.wait_up()
        handle = os.pidfd_open(before)
        try:
            os.kill(before, signal.SIGSTOP)
            ready, _, _ = await asyncio.to_thread(select.select, [handle], [], [], 60)
            assert ready
        finally:
            os.close(handle)
        await answering(address)


async def test_a_stopped_broker_leaves_nothing(kind: Any, tmp_path: Any) -> None:
    broker = make_broker(kind, folder=tmp_path)
    address = await broker.start()
    assert isinstance(broker, EmbeddedBroker | MosquittoBroker)
    handle = os.pidfd_open(await broker.wait_up())
    try:
        await broker.stop()
        await broker.stop()
        assert select.select([handle], [], [], 60)[0]
    finally:
        os.close(handle)
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((address.host, address.port))


PARENT = """
import asyncio, json, pathlib, sys
from controller.broker.spec import make_broker

async def main():
    broker = make_broker(sys.argv[1], folder=pathlib.Path(sys.argv[2]))
    async with broker:
        print(json.dumps(broker.pid), flush=True)
        await broker.wait_failed()

asyncio.run(main())
"""


def test_the_broker_goes_with_a_parent_that_is_killed(kind: Any, tmp_path: Any) -> None:
    command = [sys.executable, "-c", PARENT, kind, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = json.loads(parent.stdout.readline())
        handle = os.pidfd_open(pid)
        try:
            parent.kill()
            assert select.select([handle], [], [], 60)[0], "the broker outlived its parent"
        finally:
            os.close(handle)


async def test_a_taken_port_is_one_clear_sentence(kind: Any, tmp_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {port}.*free port"):
            await make_broker(kind, folder=tmp_path, port=port).start()


async def test_a_folder_that_cannot_be_is_one_clear_sentence(kind: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot"):
        await make_broker(kind, folder=tmp_path / "file" / "m").start()


async def test_an_external_broker_is_left_alone(tmp_path: Any, peer: Any) -> None:
    async with make_broker("embedded", folder=tmp_path) as served:
        external = make_broker(served.url, folder=tmp_path)
        async with external as address:
            assert address == served
            failed = asyncio.create_task(external.wait_failed())
        assert not failed.done()
        failed.cancel()
        assert await peer(Address(*served)).join()


@pytest.mark.usefixtures("mosquitto")
async def test_a_name_that_the_certificate_lacks_is_said_at_the_start(
    tmp_path: Path, trust: ServerTrust
) -> None:
    broker = make_broker("mosquitto", folder=tmp_path / "m", host="127.0.0.2", trust=trust)
    with pytest.raises(UserError, match=r"does not fit 127\.0\.0\.2"):
        await broker.start()
    await broker.stop()
