"""Who connects: the client id in the first packet of MQTT 5. Pure."""

from typing import Final

from protocols.transport.packets import PacketReader

CONNECT: Final = 0x10
CONNECT_MAX_BYTES: Final = 16_384
_FIXED: Final = 2 + len(b"MQTT") + 1 + 1 + 2
"""Protocol name, level, flags, keepalive."""


class NoConnect(Exception):
    """What came is no CONNECT of MQTT 5."""


def client_id(data: bytes) -> str | None:
    """Return the client id of the CONNECT with which a stream begins; None: more is needed.

    Raises NoConnect.
    """
    reader = PacketReader(CONNECT_MAX_BYTES)
    head = data[: len(reader.writable())]
    reader.writable()[: len(head)] = head
    reader.feed(len(head))
    if head and head[0] != CONNECT:
        raise NoConnect
    packet = reader.take()
    if packet is None:
        if len(data) >= CONNECT_MAX_BYTES:
            raise NoConnect
        return None
    _, body, left_out = packet
    at = _FIXED
    properties, shift = 0, 0
    if left_out or body[:7] != b"\x00\x04MQTT\x05":
        raise NoConnect
    try:
        while True:
            byte = body[at]
            at += 1
            properties |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:  # noqa: PLR2004 - MQTT 5 - the continuation bit
                break
        at += properties
        end = at + 2 + int.from_bytes(body[at : at + 2])
        if len(body) < end:
            raise NoConnect
        return body[at + 2 : end].decode()
    except (IndexError, UnicodeDecodeError):
        raise NoConnect from None
