"""A client that shows a certificate, to a broker that asks for one."""

from pathlib import Path

import pytest
from real_brokers import MOSQUITTO, Broker
from sdk_cell import CELL, PATIENCE_S, Cell

import tona
from controller.broker.lease import PortLease
from controller.trust.authority import Authority
from protocols.errors import UserError
from protocols.topics import Speaker
from protocols.transport import tls

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def issue(authority: Authority, name: str, speaker: Speaker, port: int, path: Path) -> Path:
    bundle = authority.issue(
        name,
        speaker,
        CELL,
        broker_host="127.0.0.1",
        broker_port=port,
        # Nobody answers there: a client needs its broker alone.
        api_url="https://127.0.0.1:1",
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


async def test_a_bundle_is_all_that_a_client_needs(tmp_path: Path) -> None:
    authority = Authority.init(tmp_path / "ca", "fleet")
    lease = PortLease("127.0.0.1", 0)
    port = lease.port
    broker = Broker("mosquitto", tmp_path)
    with broker._config.open("a", encoding="utf-8") as config:
        config.write("user root\n" + listener(authority, port, tmp_path))
    await broker.start()
    try:
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
    finally:
        await broker.close()
        lease.close()


async def test_the_bundle_of_a_node_is_none_of_a_client(tmp_path: Path) -> None:
    authority = Authority.init(tmp_path / "ca", "fleet")
    bundle = issue(authority, "n1", Speaker.NODE, 1, tmp_path / "n1.json")
    with pytest.raises(UserError, match="is the bundle of a node: make a client's"):
        async with tona.connect(bundle):
            pass
