"""Whether a broker answers: the shortest MQTT 5 session there is."""

import asyncio
import os
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from protocols.errors import EnvironmentFailure, UserError

PROBE_TIMEOUT_S: Final = 10.0
_KEEPALIVE_S: Final = 60
_CONNACK: Final = 0x20
_DISCONNECT: Final = b"\xe0\x00"


def connect_packet(client_id: str) -> bytes:
    """Return a CONNECT of MQTT 5: clean start, no will, no properties."""
    name = client_id.encode()
    body = (
        b"\x00\x04MQTT\x05\x02"
        + _KEEPALIVE_S.to_bytes(2, "big")
        + b"\x00"
        + len(name).to_bytes(2, "big")
        + name
    )
    # One length byte: the client id below keeps the packet under 128 bytes.
    return bytes((0x10, len(body))) + body


@asynccontextmanager
async def session(
    host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[asyncio.StreamWriter]:
    """Hold a session of the broker at `host`: CONNECT sent, CONNACK with success received.

    Raises EnvironmentFailure when there is none within PROBE_TIMEOUT_S, UserError when the broker
    shows a certificate for another address.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(host, port, ssl=tls)
                writer.write(connect_packet(f"probe-{os.getpid()}-{secrets.token_hex(4)}"))
                head = await reader.readexactly(4)
        except ssl.SSLCertVerificationError as error:
            raise UserError(
                f"the broker's certificate does not fit {host} ({error.verify_message}): issue the "
                "controller's bundle with that address"
            ) from None
        except (OSError, EOFError) as error:
            reason = str(error) or type(error).__name__
            raise EnvironmentFailure(f"no broker at {host} port {port}: {reason}") from None
        if head[0] != _CONNACK or head[3] != 0:
            raise EnvironmentFailure(f"the broker at {host} port {port} answered {head.hex()}")
        yield writer
        writer.write(_DISCONNECT)
    finally:
        if writer is not None:
            writer.close()
            # How the peer takes the end of a session that has served its purpose is its own affair.
            with suppress(OSError):
                await writer.wait_closed()
