"""Mosquitto with certificates: who is kept out, shown by what does not arrive."""

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from controller.broker import mosquitto as mosquitto_module
from controller.broker.mosquitto import MosquittoBroker, ServerTrust
from controller.broker.mosquitto_conf import Change
from controller.trust.authority import Authority
from protocols import topics
from protocols.errors import UserError
from protocols.topics import Channel, Party, Speaker
from protocols.transport.tls import Bundle, client_context

Issue = Callable[[str, Speaker], Bundle]

pytestmark = pytest.mark.usefixtures("mosquitto")


def node(name: str, channel: Channel) -> str:
    return str(topics.build("cell-1", Party.NODE, name, channel))


def inbox(cell: str, role: str) -> str:
    return str(topics.build(cell, Party.ROLE, role, Channel.INBOX))


HANDOVER_CHANNELS = (
    Channel.PRESENCE,
    Channel.STATUS,
    Channel.LINK,
    Channel.COMMAND,
    Channel.CATCHUP,
)
ROLES = ("ta-cu", "ts-du-1", "namo-cu")
LOADS = topics.wildcard("cell-1", Party.NODE, Channel.LOAD)


@pytest.fixture
def broker(tmp_path: Path, trust: ServerTrust) -> MosquittoBroker:
    return MosquittoBroker("127.0.0.1", 0, tmp_path / "m", trust)


async def observer(peer: Any, address: Any, trust: ServerTrust) -> Any:
    one = peer(address, trust.identity)
    assert await one.join()
    await one.subscribe(LOADS)
    return one


async def test_a_stranger_is_kept_out(
    broker: MosquittoBroker, tmp_path: Path, peer: Any, issue: Issue
) -> None:
    others = Authority.init(tmp_path / "other", "other-fleet")
    stranger = others.issue("n1", Speaker.NODE, "cell-1", broker_host="127.0.0.1")
    known = issue("n1", Speaker.NODE)
    async with broker as address:
        # It trusts the broker, but shows a certificate of its own authority.
        posing = Bundle(
            **{name: getattr(stranger, name) for name in Bundle.__struct_fields__}
            | {"ca_pem": known.ca_pem, "crl_pem": ""}
        )
        assert not await peer(address, posing).join()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(address.host, address.port, ssl=client_context(stranger))
        assert not await peer(address).join()
        assert await peer(address, known).join()


async def test_a_broker_by_another_name_is_refused(
    broker: MosquittoBroker, peer: Any, issue: Issue
) -> None:
    bundle = issue("n1", Speaker.NODE)
    async with broker as address:
        context = client_context(bundle)
        _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
        writer.close()
        await writer.wait_closed()
        with pytest.raises(OSError, match="certificate verify failed: Hostname mismatch"):
            await asyncio.open_connection(
                address.host, address.port, ssl=context, server_hostname="elsewhere.example"
            )
        assert await peer(address, bundle).join()


async def test_a_nodes_certificate_cannot_serve(
    tmp_path: Path, authority: Authority, issue: Issue
) -> None:
    posing = ServerTrust(authority, issue("n1", Speaker.NODE))
    server = MosquittoBroker("127.0.0.1", 0, tmp_path / "m", posing)
    with pytest.raises(UserError, match="certificate does not fit"):
        await server.start()
    await server.stop()


async def test_a_node_speaks_only_for_itself(
    broker: MosquittoBroker, trust: ServerTrust, peer: Any, issue: Issue
) -> None:
    bundles = [issue(name, Speaker.NODE) for name in ("n1", "n2")]
    async with broker as address:
        controller = await observer(peer, address, trust)
        one = peer(address, bundles[0])
        assert await one.join()
        await one.publish(node("n2", Channel.LOAD), b"forged")
        await one.publish(node("n1", Channel.COMMAND), b"forged")
        await one.publish(node("n1", Channel.LOAD), b"own")
        # The broker keeps a sender's order: had the forgeries been let through, they came first.
        message = await controller.receive()
        assert (message.topic, message.payload) == (node("n1", Channel.LOAD), b"own")
        assert controller.inbox.empty()


async def test_a_node_forges_no_word_of_a_handover(
    broker: MosquittoBroker, trust: ServerTrust, peer: Any, issue: Issue
) -> None:
    bundle = issue("n1", Speaker.NODE)
    everything = (
        *(topics.wildcard("cell-1", Party.NODE, one) for one in HANDOVER_CHANNELS),
        *(inbox("cell-1", role) for role in ROLES),
        inbox("cell-2", "ta-cu"),
    )
    async with broker as address:
        observers = peer(address, trust.identity)
        assert await observers.join()
        for wanted in everything:
            await observers.subscribe(wanted)
        one = peer(address, bundle)
        assert await one.join()
        # A birth or farewell of another node, commands to it and to itself, words of roles.
        for topic in (
            *(node("n2", channel) for channel in HANDOVER_CHANNELS),
            node("n1", Channel.COMMAND),
            *(inbox("cell-1", role) for role in ROLES),
            inbox("cell-2", "ta-cu"),
        ):
            await one.publish(topic, b"forged")
        await one.publish(node("n1", Channel.PRESENCE), b"own")
        message = await observers.receive()
        assert (message.topic, message.payload) == (node("n1", Channel.PRESENCE), b"own")
        assert observers.inbox.empty()


async def test_a_node_hears_only_what_is_its_own(
    broker: MosquittoBroker, trust: ServerTrust, peer: Any, issue: Issue
) -> None:
    bundle = issue("n1", Speaker.NODE)
    async with broker as address:
        spy, controller = peer(address, bundle), peer(address, trust.identity)
        assert await spy.join()
        assert await controller.join()
        for wanted in ("#", LOADS, topics.wildcard("cell-1", Party.NODE, Channel.COMMAND)):
            await spy.subscribe(wanted)
        await controller.publish(node("n2", Channel.COMMAND), b"for n2")
        await controller.publish(node("n1", Channel.COMMAND), b"for n1")
        message = await spy.receive()
        assert message.payload == b"for n1"


async def test_values_that_a_node_has_missed_come_from_gateways_alone(
    broker: MosquittoBroker, trust: ServerTrust, peer: Any, issue: Issue
) -> None:
    bundle = issue("n1", Speaker.NODE)
    async with broker as address:
        one, controller = peer(address, bundle), peer(address, trust.identity)
        assert await one.join()
        assert await controller.join()
        await one.subscribe(topics.wildcard("cell-1", Party.NODE, Channel.MISSED))
        await one.publish(node("n1", Channel.MISSED), b"forged")
        await controller.publish(node("n2", Channel.MISSED), b"for n2")
        await controller.publish(node("n1", Channel.MISSED), b"for n1")
        assert (await one.receive()).payload == b"for n1"


async def test_one_more_node_disturbs_nobody(
    broker: MosquittoBroker, trust: ServerTrust, peer: Any, issue: Issue
) -> None:
    first = issue("n1", Speaker.NODE)
    async with broker as address:
        before = broker.pid
        controller = await observer(peer, address, trust)
        one = peer(address, first)
        assert await one.join()
        second = issue("n2", Speaker.NODE)
        assert await broker.refresh() is Change.RELOAD
        assert await broker.refresh() is Change.NOTHING
        two = peer(address, second)
        assert await two.join()
        async with asyncio.timeout(60):
            while controller.inbox.empty():  # until the signal has been obeyed
                await two.publish(node("n2", Channel.LOAD), b"new")
        await one.publish(node("n1", Channel.LOAD), b"old")
        async with asyncio.timeout(60):
            while (await controller.receive()).payload != b"old":
                pass
        assert not one.left.is_set()
        assert broker.pid == before


async def test_a_revoked_node_is_cut_off_and_stays_out(
    broker: MosquittoBroker, authority: Authority, peer: Any, issue: Issue
) -> None:
    lost, kept = issue("n1", Speaker.NODE), issue("n2", Speaker.NODE)
    async with broker as address:
        before = peer(address, lost)
        assert await before.join()
        authority.revoke("n1")
        # Nobody calls `refresh`: another process revoked, the broker notices.
        assert await asyncio.to_thread(before.left.wait, 60)
        assert await broker.wait_up()
        assert not await peer(address, lost).join()
        assert await peer(address, kept).join()


async def test_a_new_bundle_replaces_the_old_one(
    broker: MosquittoBroker, peer: Any, issue: Issue
) -> None:
    old = issue("n1", Speaker.NODE)
    async with broker as address:
        assert await peer(address, old).join()
        new = issue("n1", Speaker.NODE)
        assert await broker.refresh() is Change.RESTART
        assert not await peer(address, old).join()
        assert await peer(address, new).join()


async def test_a_crash_does_not_bring_a_revoked_node_back(
    broker: MosquittoBroker,
    authority: Authority,
    peer: Any,
    issue: Issue,
    answering: Any,
    trust: ServerTrust,
) -> None:
    lost = issue("n1", Speaker.NODE)
    async with broker as address:
        authority.revoke("n1")
        assert await broker.refresh() is Change.RESTART
        os.kill(await broker.wait_up(), 9)
        await answering(address, client_context(trust.identity))
        assert not await peer(address, lost).join()


async def test_a_damaged_index_changes_nothing_and_is_said(
    broker: MosquittoBroker, authority: Authority, peer: Any, issue: Issue, caplog: Any
) -> None:
    bundle = issue("n1", Speaker.NODE)
    async with broker as address:
        (authority.folder / "index.json").write_bytes(b"\x00garbage")
        with pytest.raises(UserError, match=r"index.json is damaged"):
            await broker.refresh()
        assert await peer(address, bundle).join()
    assert not [one for one in caplog.records if one.exc_info]


async def test_our_own_certificate_revoked_ends_the_service(
    broker: MosquittoBroker, authority: Authority, trust: ServerTrust, tmp_path: Path
) -> None:
    async with broker:
        authority.revoke(trust.identity.name)
        async with asyncio.timeout(60):
            failure = await broker.wait_failed()
        assert "start the controller with its new bundle" in str(failure)
    again = MosquittoBroker("127.0.0.1", 0, tmp_path / "m", trust)
    with pytest.raises(UserError, match="was revoked or replaced"):
        await again.start()
    await again.stop()


def test_the_authority_is_watched_closely() -> None:
    assert mosquitto_module.TRUST_POLL_S <= 1.0
