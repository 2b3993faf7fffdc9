"""A client that shows a certificate, to a broker that asks for one."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from real_brokers import MOSQUITTO, Broker
from sdk_cell import CELL, PATIENCE_S, Cell

import tona
from controller.broker.lease import PortLease
from controller.trust.authority import Authority
from protocols.errors import UserError
from protocols.topics import Speaker
from protocols.transport import tls
from tona.where import CellFound, Found, Where

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


NOBODY: Final = "https://127.0.0.1:1"
"""Nobody answers there: a client needs its broker alone."""


def issue(
    authority: Authority, name: str, speaker: Speaker, port: int, path: Path, url: str = NOBODY
) -> Path:
    bundle = authority.issue(
        name,
        speaker,
        CELL,
        broker_host="127.0.0.1",
        broker_port=port,
        api_url=url,
        addresses=["127.0.0.1"] if speaker is Speaker.CONTROLLER else [],
    )
    tls.save(bundle, path)
    return path


def listener(authority: Authority, port: int, folder: Path) -> str:
    server = tls.load(issue(authority, "controller", Speaker.CONTROLLER, port, folder / "b.json"))
    for name, pem in (
        ("ca.pem", server.ca_pem),
        ("cert.pem", server.certificate_pem),
        ("key.pem", server.key_pem),
    ):
        (folder / name).write_text(pem, encoding="utf-8")
        (folder / name).chmod(0o600)
    return f"""
listener {port} 127.0.0.1
cafile {folder / "ca.pem"}
certfile {folder / "cert.pem"}
keyfile {folder / "key.pem"}
require_certificate true
use_identity_as_username true
"""


@asynccontextmanager
async def guarded(folder: Path, authority: Authority) -> AsyncIterator[tuple[Broker, int]]:
    """Run a broker that asks for certificates at a port beside its plain one."""
    lease = PortLease("127.0.0.1", 0)
    broker = Broker("mosquitto", folder)
    with broker._config.open("a", encoding="utf-8") as config:
        config.write("user root\n" + listener(authority, lease.port, folder))
    await broker.start()
    try:
        yield broker, lease.port
    finally:
        await broker.close()
        lease.close()


async def test_a_bundle_is_all_that_a_client_needs(tmp_path: Path) -> None:
    authority = Authority.init(tmp_path / "ca", "fleet")
    async with guarded(tmp_path, authority) as (broker, port):
        bundle = issue(authority, "alice", Speaker.CLIENT, port, tmp_path / "alice.json")
        async with Cell(broker.port) as cell, tona.connect(bundle) as client:
            result = await client.invoke("s", {"x": b"secret"}, deadline_s=PATIENCE_S)
            assert result.data("y") == b"secret"
            assert cell.n1.heard[0].reply_to == f"tona/1/{CELL}/client/alice/reply"
        stranger = Authority.init(tmp_path / "other", "others")
        bundle = issue(stranger, "mallory", Speaker.CLIENT, port, tmp_path / "mallory.json")
        with pytest.raises(tona.CannotConnect, match="authority"):
            async with tona.connect(bundle, timeout_s=4):
                pass


async def test_a_controller_that_never_answers_is_named_and_keeps_no_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority.init(tmp_path / "ca", "fleet")
    # Clients of other tests may still wait for their store.
    others = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        async with guarded(tmp_path, authority) as (broker, port):
            bundle = issue(authority, "alice", Speaker.CLIENT, port, tmp_path / "alice.json", url)
            async with Cell(broker.port), tona.connect(bundle) as client:
                mine = [one for one in threading.enumerate() if one.name.startswith("tona")]
                assert others.issuperset(mine), "a process would wait for it at its end"
                result = await client.invoke("s", {"x": b"secret"}, deadline_s=PATIENCE_S)
                assert result.data("y") == b"secret"
    [said] = [one.getMessage() for one in caplog.records if one.name == "tona"]
    assert said == (
        f"the controller at {url} does not answer (it says nothing): "
        f"services of cell {CELL} alone are reached"
    )


async def test_a_controller_is_asked_for_other_cells_while_the_broker_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.init(tmp_path / "ca", "fleet")
    cells = [CELL]

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        known = json.dumps(
            {"cell": CELL, "broker": "", "cells": [{"cell": one} for one in cells]}
        ).encode()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + known)
        writer.close()

    bundle = issue(authority, "api", Speaker.CONTROLLER, 1, tmp_path / "api.json")
    context = tls.server_context(tls.load(bundle))
    server = await asyncio.start_server(say, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, guarded(tmp_path, authority) as (broker, port):
        bundle = issue(authority, "alice", Speaker.CLIENT, port, tmp_path / "alice.json", url)
        async with Cell(broker.port), tona.connect(bundle) as client:
            result = await client.invoke("s", {"x": b"secret"}, deadline_s=PATIENCE_S)
            assert result.data("y") == b"secret", "it is the only cell"
        cells.append("c2")
        found = Found(known=True, cell=CellFound("c2", "mqtts://127.0.0.1:1"))
        monkeypatch.setattr(Where, "look", lambda *_: asyncio.sleep(0, found))
        async with tona.connect(bundle) as client:
            with pytest.raises(tona.ServiceUnavailable, match=r"127\.0\.0\.1:1"):
                await client.invoke("s", {"x": b"secret"}, deadline_s=0.3)


async def test_the_bundle_of_a_node_is_none_of_a_client(tmp_path: Path) -> None:
    authority = Authority.init(tmp_path / "ca", "fleet")
    bundle = issue(authority, "n1", Speaker.NODE, 1, tmp_path / "n1.json")
    with pytest.raises(UserError, match="is the bundle of a node: make a client's"):
        async with tona.connect(bundle):
            pass
