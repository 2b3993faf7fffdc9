"""Tells the application whose certificate TLS has verified, which uvicorn alone does not."""

import asyncio
from typing import Any, Final

from msgspec import Struct
from uvicorn.protocols.http.h11_impl import H11Protocol

EXTENSION: Final = "tona.peer"
"""Where the application finds a `Peer`, below the scope's `extensions`."""


class Peer(Struct, frozen=True):
    """Whom a verified certificate names, and as what; empty where it says nothing."""

    name: str
    kind: str
    serial: str = "0"
    """Of the certificate, in hexadecimal."""


def peer_of(certificate: dict[str, Any]) -> Peer:
    """Take the subject of a certificate apart, as `ssl.SSLSocket.getpeercert` gives it."""
    subject = {key: value for names in certificate.get("subject", ()) for key, value in names}
    return Peer(
        subject.get("commonName", ""),
        subject.get("organizationalUnitName", ""),
        certificate.get("serialNumber", "0"),
    )


class PeerProtocol(H11Protocol):
    """HTTP/1.1 whose requests carry the peer of their TLS connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Learn who has connected; without TLS nobody is named."""
        super().connection_made(transport)
        if transport.get_extra_info("ssl_object") is None:
            return
        peer = peer_of(transport.get_extra_info("peercert") or {})
        application = self.app

        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), EXTENSION: peer}
            await application(scope, receive, send)

        self.app = with_peer
