"""What uvicorn alone does not do: name the peer that TLS verified, and let no silent one stay."""

import asyncio
from typing import Any, Final

from msgspec import Struct

from controller.api.intake import Intaking

EXTENSION: Final = "tona.peer"
"""Where the application finds a `Peer`, below the scope's `extensions`."""
HEAD_TIMEOUT_S: Final = 10.0
"""How long line and headers of a request may take; a connection without a request is cut off."""


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


class PeerProtocol(Intaking):
    """HTTP/1.1 whose requests carry the peer of their TLS connection."""

    # As uvicorn's own, which narrows asyncio's.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Learn who has connected; without TLS nobody is named."""
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._watch_head()
        if transport.get_extra_info("ssl_object") is None:
            return
        peer = peer_of(transport.get_extra_info("peercert") or {})
        application = self.app

        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            scope["extensions"] = {**scope.get("extensions", {}), EXTENSION: peer}
            await application(scope, receive, send)

        self.app = with_peer

    def data_received(self, data: bytes) -> None:
        """Take bytes in; many or few, a request's head must be whole in time."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the connection go."""
        self._head_came()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._head_came()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
