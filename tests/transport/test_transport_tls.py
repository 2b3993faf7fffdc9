"""Bundles, and a session whose broker asks for certificates.

That broker is Mosquitto: the embedded one knows no identity.
"""

import asyncio
import contextlib
import errno
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from real_brokers import MOSQUITTO, Broker
from transport_authority import DAY, Authority, now
from transport_peers import WAIT_S, Peer, topic

from protocols.errors import EnvironmentFailure, UserError
from protocols.messages import Death, Probe
from protocols.topics import Channel, Party, Speaker
from protocols.transport.reasons import explain
from protocols.transport.session import _checked_name
from protocols.transport.settings import Settings
from protocols.transport.tls import Bundle, client_context, load, save, server_context

Make = Callable[..., Peer]

PROBE = topic(Party.NODE, "node-1", Channel.PROBE)
PRESENCE = topic(Party.NODE, "node-1", Channel.PRESENCE)
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@asynccontextmanager
async def secured(folder: Path, authority: Authority, bundle: Bundle) -> AsyncIterator[Broker]:
    """Run Mosquitto with this bundle; it takes clients of this authority alone."""
    files = {"ca": authority.pem, "cert": bundle.certificate_pem, "key": bundle.key_pem}
    for name, text in files.items():
        # It gives its privileges up and would not be let in otherwise.
        (folder / f"{name}.pem").write_text(text, encoding="utf-8")
    more = (
        f"cafile {folder}/ca.pem\ncertfile {folder}/cert.pem\nkeyfile {folder}/key.pem\n"
        "require_certificate true\nuse_identity_as_username true\nuser root\n"
        f"acl_file {folder}/acl\n"
    )
    acl = "pattern readwrite tona/1/+/node/%u/probe\npattern write tona/1/+/node/%u/presence\n"
    (folder / "acl").write_text(acl, encoding="utf-8")
    broker = Broker("mosquitto", folder, more)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.close()


def node(peer: Make, port: int, bundle: Bundle, **more: object) -> Peer:
    tls = client_context(bundle)
    return peer(port, bundle.name, Speaker.NODE, [str(PROBE)], tls=tls, **more)


@needs_mosquitto
async def test_both_sides_verify_and_frames_flow(
    tmp_path: Path, authority: Authority, peer: Make
) -> None:
    async with secured(tmp_path, authority, authority.issue("broker")) as broker:
        one = node(peer, broker.port, authority.issue("node-1"))
        await one.up()
        assert one.session.send(PROBE, Probe(1), cause="c")
        assert (await one.hear()).frame.body == Probe(1)
        # Larger than a TLS record and than the buffers between.
        for number in range(50):
            assert one.session.send(PRESENCE, Death("x" * 2000), cause=str(number))
        assert await one.session.close((PRESENCE, Death("farewell")))
        await one.run
        assert one.session.counters.send_rejected == 0


@needs_mosquitto
async def test_the_brokers_acl_is_told_by_its_refusals(
    tmp_path: Path, authority: Authority, peer: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async with secured(tmp_path, authority, authority.issue("broker")) as broker:
        one = node(peer, broker.port, authority.issue("node-1"))
        await one.up()
        status = topic(Party.NODE, "node-1", Channel.STATUS)
        assert one.session.send(status, Death("x"), cause="c")
        assert await one.session.drained(30_000)
        assert one.session.counters.send_rejected == 1
        assert (
            caplog.messages.count(
                "the broker refuses what we publish on tona/1/cell-1/node/node-1/status: "
                "not authorized (code 0x87)"
            )
            == 1
        )


async def refused(peer: Make, port: int, bundle: Bundle) -> str:
    """Return why this bundle gets no connection, twice over."""
    one = node(peer, port, bundle)
    await one.reaches(lambda: one.session.counters.connect_failures > 1)
    assert one.session.counters.connects == 0
    await one.stop()
    return one.session.last_failure


@needs_mosquitto
async def test_a_stranger_of_a_broker_is_refused(
    tmp_path: Path, authority: Authority, peer: Make
) -> None:
    async with secured(tmp_path, authority, authority.issue("broker")) as broker:
        for other in (Authority(), Authority("another")):
            bundle = authority.issue("node-1", ca_pem=other.pem)
            assert "not of our authority" in await refused(peer, broker.port, bundle)


@needs_mosquitto
async def test_a_stranger_of_a_node_is_refused(
    tmp_path: Path, authority: Authority, peer: Make
) -> None:
    other = Authority()
    async with secured(tmp_path, authority, authority.issue("broker")) as broker:
        bundle = other.issue("node-1", ca_pem=authority.pem)
        assert "our certificate" in await refused(peer, broker.port, bundle)


@needs_mosquitto
async def test_a_revoked_broker_is_refused(
    tmp_path: Path, authority: Authority, peer: Make
) -> None:
    server = authority.issue("broker")
    async with secured(tmp_path, authority, server) as broker:
        bundle = authority.issue("node-1", crl_pem=authority.revoke(server))
        assert "certificate is revoked" in await refused(peer, broker.port, bundle)
        stale = authority.revoke(authority.issue("x"), end=now() - DAY / 2)
        bundle = authority.issue("node-1", crl_pem=stale)
        assert "revocation list has expired" in await refused(peer, broker.port, bundle)
        bundle = authority.issue("node-1", crl_pem=authority.revoke(authority.issue("x")))
        one = node(peer, broker.port, bundle)
        await one.up()


@needs_mosquitto
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"host": "elsewhere.example"}, "not for 127.0.0.1"),
        ({"host": "10.0.0.1"}, "not for 127.0.0.1"),
        ({"start": now() + DAY / 2}, "not valid yet, this machine's date is 20"),
        ({"end": now() - DAY / 2}, "has expired, this machine's date is 20"),
    ],
)
async def test_a_broker_with_a_wrong_certificate_is_refused(
    tmp_path: Path, authority: Authority, peer: Make, more: dict[str, object], reason: str
) -> None:
    async with secured(tmp_path, authority, authority.issue("broker", **more)) as broker:
        assert reason in await refused(peer, broker.port, authority.issue("node-1"))


@needs_mosquitto
async def test_a_port_without_tls_is_told(tmp_path: Path, authority: Authority, peer: Make) -> None:
    broker = Broker("mosquitto", tmp_path)
    await broker.start()
    try:
        said = await refused(peer, broker.port, authority.issue("node-1"))
    finally:
        await broker.close()
    assert "127.0.0.1" in said


async def test_a_port_that_speaks_something_else_is_told(authority: Authority, peer: Make) -> None:
    async def shout(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        said = await refused(peer, port, authority.issue("node-1"))
    assert "does not speak TLS" in said or "broke" in said


async def test_the_server_context_asks_for_a_certificate(authority: Authority) -> None:
    revoked = authority.issue("revoked")
    server = authority.issue("api", crl_pem=authority.revoke(revoked))
    names: asyncio.Queue[object] = asyncio.Queue()

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names.put_nowait(writer.get_extra_info("peercert")["subject"])
        writer.write(b"hello")
        await writer.drain()
        writer.transport.abort()

    async def visit(context: ssl.SSLContext) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            return await reader.read()
        finally:
            writer.transport.abort()

    tls = server_context(server)
    async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=tls) as listener:
        port = listener.sockets[0].getsockname()[1]
        async with asyncio.timeout(WAIT_S):
            assert (await visit(client_context(authority.issue("node-1")))) == b"hello"
            assert await names.get() == ((("commonName", "node-1"),),)
            anonymous = ssl.create_default_context(cadata=authority.pem)
            for stranger in (anonymous, client_context(revoked)):
                # With TLS 1.3 a client learns of its refusal when it reads: alert, reset or end.
                with contextlib.suppress(OSError):
                    assert await visit(stranger) == b""
        assert names.empty()


def test_the_contexts_have_no_weak_side(authority: Authority) -> None:
    bundle = authority.issue("node-1")
    for context in (client_context(bundle), server_context(bundle)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert client_context(bundle).check_hostname


def test_a_plain_name_needs_no_table_of_international_ones() -> None:
    assert _checked_name("192.0.2.1") == b"192.0.2.1"
    assert _checked_name("bücher.example") == "bücher.example"


def test_a_bundle_is_one_file_for_its_owner(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "node-1.json"
    bundle = authority.issue("node-1")
    save(bundle, path)
    save(bundle, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load(path) == bundle
    assert list(tmp_path.iterdir()) == [path]
    path.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        load(path)


def test_what_is_no_bundle_is_told_in_one_sentence(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="cannot read the bundle: No such file"):
        load(path)
    whole = msgspec.to_builtins(authority.issue("node-1"))
    bad: tuple[bytes, ...] = (
        b"",
        b"\xff",
        b"[]",
        msgspec.json.encode(whole | {"name": "no/name"}),
        msgspec.json.encode(whole | {"broker_port": 0}),
        msgspec.json.encode(whole | {"key_pem": "none"}),
        b" " * (1024 * 1024 + 1),
    )
    for data in bad:
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(UserError, match="tona ca issue"):
            load(path)
    with pytest.raises(EnvironmentFailure, match="cannot write the bundle"):
        save(authority.issue("node-1"), tmp_path / "absent" / "x.json")


def test_a_bundle_that_does_not_fit_together_is_told(authority: Authority) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    pem = "-----BEGIN NOTHING-----\n"
    for change, what in (
        ({"key_pem": other.key_pem}, "key and certificate cannot be used: key values mismatch"),
        ({"certificate_pem": pem}, "key and certificate"),
        ({"ca_pem": pem}, "authority"),
        ({"crl_pem": pem}, "revocation list"),
    ):
        with pytest.raises(UserError, match=f"bundle of one: its {what}"):
            client_context(msgspec.structs.replace(one, **change))


def test_what_the_kernel_says_is_told_in_its_words() -> None:
    settings = Settings(host="gw", port=1, identity="n", speaker=Speaker.NODE, cell="c")
    error = OSError(errno.EHOSTUNREACH, "Connect call failed ('10.0.0.9', 8883)")
    assert explain(error, settings, "") == "gw:1: no route to host"


def test_a_clock_at_1970_is_named_with_what_to_do() -> None:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_code, error.verify_message = 9, "certificate is not yet valid"
    settings = Settings(host="gw", port=1, identity="n", speaker=Speaker.NODE, cell="c")
    assert explain(error, settings, "1970-01-01") == (
        "gw:1: the broker's certificate is not valid yet, this machine's date is 1970-01-01: "
        "set the clock (NTP or timedatectl), the session goes on by itself"
    )
