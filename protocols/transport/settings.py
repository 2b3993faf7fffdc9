"""What a session needs to know, and its bounds."""

import ssl
from collections.abc import Awaitable, Callable
from socket import socket
from typing import Final

from msgspec import Struct

from protocols.topics import TABLE, Speaker
from protocols.transport.backoff import Policy

ENVELOPE_MAX_BYTES: Final = 4096
"""Room in a packet for topic, response topic, correlation data and other properties."""
PACKET_MAX_BYTES: Final = max(rule.max_bytes for rule in TABLE.values()) + ENVELOPE_MAX_BYTES
"""No packet of this protocol is larger; announced to the broker and held on arrival."""
CONNECT_TIMEOUT_MS: Final = 10_000
"""For name, TCP, TLS, CONNACK and SUBACK together."""
CLOSE_TIMEOUT_MS: Final = 2_000
"""For the last acknowledgements of an orderly close."""


class Settings(Struct, frozen=True, kw_only=True):
    """One connection's parameters; a handover is a second session with other settings."""

    host: str
    """Name or address of the broker; with `tls`, its certificate must carry it."""
    port: int
    identity: str
    """Who speaks: the name in topics, frames and, with `tls`, in the certificate."""
    speaker: Speaker
    cell: str
    tls: ssl.SSLContext | None = None
    """From `protocols.transport.tls`; None only on loopback."""
    heartbeat_ms: int = 2_000
    """A line that was idle for so long is pinged."""
    silent_heartbeats: int = 3
    """A broker silent for so many heartbeats in a row has gone: the connection is closed."""
    backoff: Policy = Policy()
    inflight_max: int = 128
    """QoS 1 frames that wait for a PUBACK; the server's Receive Maximum may lower it."""
    queue_max: int = 1024
    """Frames that wait for the window or the line; one more is refused."""
    queue_max_bytes: int = 4 * 1024 * 1024
    topics_max: int = 1024
    """Topics whose taken-apart form is remembered, each way; more are parsed again."""
    interface: str = ""
    """Bind to this network interface (SO_BINDTODEVICE)."""
    source_address: str = ""
    """Bind to this local address."""
    open_socket: Callable[["Settings"], Awaitable[socket]] | None = None
    """Gives the connected, non-blocking socket, in place of `sockets.open_socket`."""
    connect_timeout_ms: int = CONNECT_TIMEOUT_MS
