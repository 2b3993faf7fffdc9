import datetime as dt
import hashlib
import ipaddress
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controller.api.server import ApiServer
from protocols.errors import UserError


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    what = {NameOID.COMMON_NAME: "test", NameOID.ORGANIZATIONAL_UNIT_NAME: "client"}
    name = x509.Name([x509.NameAttribute(*one) for one in what.items()])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "cert.pem", folder / "key.pem"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path


def server(cell: Any, host: str, port: int, context: ssl.SSLContext | None = None) -> ApiServer:
    return ApiServer(
        host, port, cell.registry, cell.server.api._doors, cell.folder / "second", context
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "controller.lan"])  # noqa: S104 - refused or secured
async def test_without_tls_nothing_but_loopback_is_served(cell: Any, host: str) -> None:
    with pytest.raises(UserError, match="without TLS: make certificates with 'tona ca init'"):
        server(cell, host, 0)


async def test_tls_is_served_and_verified(cell: Any, tmp_path: Path) -> None:
    certificate_path, key_path = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate_path, key_path)
    one = server(cell, "0.0.0.0", 0, context)  # noqa: S104 - refused or secured
    _, port = one.bind()
    await one.start()
    trusting = ssl.create_default_context(cafile=str(certificate_path))
    url = f"https://127.0.0.1:{port}/healthz"
    async with httpx.AsyncClient(verify=trusting, trust_env=False, timeout=60) as client:
        assert (await client.get(url)).json() == {"status": "ok"}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as stranger:
        with pytest.raises(httpx.ConnectError):
            await stranger.get(url)
    await one.stop()


async def test_large_bodies_come_over_tls(cell: Any, tmp_path: Path) -> None:
    certificate_path, key_path = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate_path))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate_path, key_path)
    one = server(cell, "0.0.0.0", 0, context)  # noqa: S104 - secured
    _, port = one.bind()
    await one.start()
    trusting = ssl.create_default_context(cafile=str(certificate_path))
    trusting.load_cert_chain(certificate_path, key_path)
    base = f"https://127.0.0.1:{port}/v1/blobs/"
    async with httpx.AsyncClient(
        base_url=base, verify=trusting, trust_env=False, timeout=30
    ) as client:
        for size in (5_000_000, 100_000, 10, 3_000_000):
            data = bytes(range(250)) * (size // 250)
            address = hashlib.sha256(data).hexdigest()
            assert (await client.put(address, content=data)).status_code == 201
            assert (await client.get(address)).content == data
    await one.stop()


async def test_a_taken_port_and_a_strange_address_are_one_sentence(cell: Any) -> None:
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1:.*choose another port"):
        server(cell, "127.0.0.1", cell.address[1]).bind()
    certificate_less = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.7:0"):
        server(cell, "192.0.2.7", 0, certificate_less).bind()


async def test_a_folder_that_cannot_be_made_is_one_sentence(cell: Any) -> None:
    (cell.folder / "second").write_text("a file")
    one = server(cell, "127.0.0.1", 0)
    one.bind()
    with pytest.raises(UserError, match=r"cannot be used .*: name one that this user may write"):
        await one.start()
    await one.stop()


async def test_signals_stay_with_the_host_and_a_stop_is_final(cell: Any) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    await cell.server.stop()
    await cell.server.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(cell.address) != 0


async def test_ipv6_loopback(cell: Any) -> None:
    one = server(cell, "::1", 0)
    try:
        host, port = one.bind()
    except UserError:
        pytest.skip("this machine has no IPv6 loopback")
    await one.start()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        assert (await client.get(f"http://[{host}]:{port}/v1/fleet")).json() == []
    await one.stop()
