"""MQTT 5 packets, pure: a stream cut into packets, and the packets that a client says and hears.

gmqtt builds and names everything that is rare (CONNECT, SUBSCRIBE, properties, refusals). Its
read loop is not used: it joins `bytes` without bound, which is quadratic in the packet's size,
and wakes a task for every read. PUBLISH and PUBACK are the warm path and are built here.
"""

import logging
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from gmqtt.client import Message
from gmqtt.mqtt.constants import MQTTCommands, MQTTv50
from gmqtt.mqtt.handler import MQTTConnectError
from gmqtt.mqtt.package import (
    DisconnectPacket,
    LoginPackageFactor,
    SubscribePacket,
    UnsubscribePacket,
)
from gmqtt.mqtt.property import Property
from gmqtt.subscription import Subscription

from protocols.errors import MalformedFrame, PeerError

CONNACK: Final = int(MQTTCommands.CONNACK)
PUBLISH: Final = int(MQTTCommands.PUBLISH)
PUBACK: Final = int(MQTTCommands.PUBACK)
SUBACK: Final = int(MQTTCommands.SUBACK)
UNSUBACK: Final = int(MQTTCommands.UNSUBACK)
PINGRESP: Final = int(MQTTCommands.PINGRESP)
DISCONNECT: Final = int(MQTTCommands.DISCONNECT)
PING: Final = bytes((MQTTCommands.PINGREQ, 0))
REFUSED: Final = 0x80
"""A reason code from here on is a refusal."""

OVERHEAD_BYTES: Final = 7
"""Of a PUBLISH beside its topic, properties and payload: first byte, length, packet id."""
READ_BYTES: Final = 64 * 1024
"""The receive buffer at rest."""
HEAD_BYTES: Final = 4096
"""What is kept of an oversized packet: enough for its topic and packet id."""
PROPERTIES_MAX_BYTES: Final = 2048
"""Of one packet: taking them apart costs the square of their number."""

_LENGTH_SHIFT_MAX: Final = 21
_NO_PROPERTIES: Final = b"\x00"
_BAD_BYTES: Final = (struct.error, IndexError, ValueError)
_DISCONNECT_REASONS: Final = {
    0x8B: "server shutting down",
    0x8D: "keep alive timeout",
    0x8E: "session taken over",
    0x93: "receive maximum exceeded",
    0x95: "packet too large",
    0x97: "quota exceeded",
    0x98: "administrative action",
}

_PUBLISH_REFUSALS: Final = {
    0x80: "unspecified error",
    0x83: "implementation specific error",
    0x87: "not authorized",
    0x90: "topic name invalid",
    0x97: "quota exceeded",
    0x99: "payload format invalid",
}
"""MQTT 5, table 3-4."""

# It reports every SUBSCRIBE as news.
logging.getLogger("gmqtt").setLevel(logging.WARNING)


class MalformedPacket(PeerError):
    """The broker's bytes are no MQTT 5: the connection cannot go on."""


class PacketReader:
    """Cuts a stream into packets within one reused buffer; never holds more than one packet.

    Read into `writable()`, say how much with `feed()`, then `take()` until it gives None.
    """

    def __init__(self, max_packet_bytes: int) -> None:
        self._max = max_packet_bytes
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._start = 0
        self._end = 0
        self._skip = 0

    def writable(self) -> memoryview:
        """Return the free part of the buffer, never empty."""
        return self._buffer[self._end :]

    def feed(self, count: int) -> None:
        """Take note of `count` bytes that were written."""
        self._end += count

    def take(self) -> tuple[int, bytes, int] | None:
        """Return `(first byte, body, bytes left out)` of the next packet, None without a whole one.

        Of a packet above the bound only the head is given and the rest is skipped on arrival.
        Raises MalformedPacket.
        """
        if self._skip:
            skipped = min(self._skip, self._end - self._start)
            self._skip -= skipped
            self._start += skipped
        buffer, start, end = self._buffer, self._start, self._end
        at, length, shift = start + 1, 0, 0
        while True:
            if at >= end:
                self._make_room(READ_BYTES)
                return None
            byte = buffer[at]
            at += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004 - MQTT 5 - the continuation bit
                break
            if shift == _LENGTH_SHIFT_MAX:
                raise MalformedPacket("the broker sent a packet length of more than four bytes")
            shift += 7
        kept = length if length <= self._max else min(length, HEAD_BYTES)
        stop = at + kept
        if stop > end:
            self._make_room(stop - start)
            return None
        self._start = stop
        self._skip = length - kept
        return buffer[start], bytes(buffer[at:stop]), length - kept

    def _make_room(self, needed: int) -> None:
        """Move the rest to the front; let `needed` bytes have room from there."""
        rest = self._buffer[self._start : self._end]
        if needed > len(self._buffer):
            grown = memoryview(bytearray(needed))
            grown[: len(rest)] = rest
            self._buffer = grown
        elif self._start:
            self._buffer[: len(rest)] = rest
        self._start, self._end = 0, len(rest)


class Head(NamedTuple):
    """The head of a PUBLISH; `packet_id` is 0 for QoS 0, the properties begin `at`."""

    topic: bytes
    packet_id: int
    at: int


class Content(NamedTuple):
    """The rest of a PUBLISH: what we use of its properties, and the payload."""

    response_topic: str
    correlation: bytes
    payload: bytes


class Accepted(NamedTuple):
    """A CONNACK that accepts: the server's own bounds."""

    receive_maximum: int
    max_packet_bytes: int
    keepalive_s: int
    """0: as asked for."""


class _PacketId:
    """Hands gmqtt's builders the id that the outbox chose."""

    def __init__(self, packet_id: int) -> None:
        self._id = packet_id

    def next_id(self) -> int:
        return self._id


class _Dialect:
    """What gmqtt's builders ask of their protocol object."""

    proto_name = b"MQTT"
    proto_ver = MQTTv50

    def __init__(self, packet_id: int = 0) -> None:
        self.id_generator = _PacketId(packet_id)


def connect(
    client_id: str, keepalive_s: int, max_packet_bytes: int, will: tuple[str, bytes, int] | None
) -> bytes:
    """Build CONNECT with a clean start; `will` is topic, payload and QoS."""
    message = None if will is None else Message(will[0], will[1], qos=will[2])
    packet = LoginPackageFactor.build_package(
        client_id,
        None,
        None,
        True,  # a clean start
        keepalive_s,
        _Dialect(),
        will_message=message,
        maximum_packet_size=max_packet_bytes,
    )
    return bytes(packet)


def subscribe(filters: Sequence[tuple[str, int]], packet_id: int) -> bytes:
    """Build SUBSCRIBE of filters, each with its QoS."""
    wanted = [Subscription(one, qos=qos) for one, qos in filters]
    _, packet = SubscribePacket.build_package(wanted, _Dialect(packet_id))
    return bytes(packet)


def unsubscribe(filters: Sequence[str], packet_id: int) -> bytes:
    """Build UNSUBSCRIBE of filters."""
    _, packet = UnsubscribePacket.build_package(list(filters), _Dialect(packet_id))
    return bytes(packet)


def disconnect() -> bytes:
    """Build the orderly DISCONNECT, after which the broker keeps the will to itself."""
    return bytes(DisconnectPacket.build_package(_Dialect()))


def puback(packet_id: int) -> bytes:
    """Build PUBACK; without a reason code it means success."""
    return struct.pack("!BBH", PUBACK, 2, packet_id)


def text(value: bytes) -> bytes:
    """Put a string's or a binary property's length before it."""
    return struct.pack("!H", len(value)) + value


def request_properties(response_topic: str, correlation: bytes) -> bytes:
    """Build the property block of a PUBLISH; empty arguments are left out."""
    if not response_topic and not correlation:
        return _NO_PROPERTIES
    block = b""
    if response_topic:
        block = b"\x08" + text(response_topic.encode())
    if correlation:
        block += b"\x09" + text(correlation)
    return _length(len(block)) + block


def publish(topic: bytes, payload: bytes, packet_id: int, properties: bytes) -> bytes:
    """Build PUBLISH from `text(topic)` and a property block; a packet id of 0 means QoS 0."""
    size = len(topic) + len(properties) + len(payload)
    if not packet_id:
        return b"".join((b"\x30", _length(size), topic, properties, payload))
    number = struct.pack("!H", packet_id)
    return b"".join((b"\x32", _length(size + 2), topic, number, properties, payload))


def head(first: int, body: bytes) -> Head:
    """Read the head of a PUBLISH, whole or cut. Raises MalformedPacket."""
    try:
        (size,) = struct.unpack_from("!H", body)
        at = 2 + size
        if not first & 0x06:
            packet_id = 0
        else:
            (packet_id,) = struct.unpack_from("!H", body, at)
            at += 2
    except struct.error as error:
        raise MalformedPacket(f"the broker sent a PUBLISH that is none: {error}") from None
    return Head(body[2 : 2 + size], packet_id, at)


def content(body: bytes, at: int) -> Content:
    """Read what follows the head of a PUBLISH. Raises MalformedFrame: a peer wrote it."""
    try:
        if not body[at]:
            return Content("", b"", body[at + 1 :])
        found, at = _properties(body, at)
    except _BAD_BYTES as error:
        raise MalformedFrame(f"properties that are none: {error}") from None
    response = found.get("response_topic", "")
    return Content(response, bytes(found.get("correlation_data", b"")), body[at:])


def connack(body: bytes, max_packet_bytes: int) -> Accepted | str:
    """Take a CONNACK apart: the server's bounds, or why it refuses. Raises MalformedPacket."""
    try:
        code = body[1]
        found = _properties(body, 2)[0] if len(body) > 2 else {}  # noqa: PLR2004 - flags and code
    except _BAD_BYTES as error:
        raise MalformedPacket(f"the broker sent a CONNACK that is none: {error}") from None
    if code:
        said = found.get("reason_string", "")
        return f"the broker refuses us: {MQTTConnectError(code)}{said and ', ' + said}"
    return Accepted(
        int(found.get("receive_maximum", 0xFFFF)),
        int(found.get("maximum_packet_size", max_packet_bytes)),
        int(found.get("server_keep_alive", 0)),
    )


def acknowledged(body: bytes) -> tuple[int, int]:
    """Take a PUBACK apart: packet id and reason code. Raises MalformedPacket."""
    if len(body) < 2:  # noqa: PLR2004 - the packet id
        raise MalformedPacket("the broker sent a PUBACK without a packet id")
    return (body[0] << 8) | body[1], body[2] if len(body) > 2 else 0  # noqa: PLR2004 - a reason code


def suback(body: bytes) -> tuple[int, bytes]:
    """Take a SUBACK apart: packet id and one reason code per filter. Raises MalformedPacket."""
    try:
        _, at = _properties(body, 2)
        return (body[0] << 8) | body[1], body[at:]
    except _BAD_BYTES as error:
        raise MalformedPacket(f"the broker sent a SUBACK that is none: {error}") from None


def disconnected(body: bytes) -> str:
    """Say why the broker ends the connection."""
    code = body[0] if body else 0
    said = _DISCONNECT_REASONS.get(code, "no reason we know")
    return f"the broker ends the connection: {said} (code 0x{code:02x})"


def publish_refused(topic: str, code: int) -> str:
    """Say that and why the broker does not take what is published on a topic."""
    return f"{topic}: {_PUBLISH_REFUSALS.get(code, 'no reason we know')} (code 0x{code:02x})"


def _properties(body: bytes, at: int) -> tuple[dict[str, Any], int]:
    """Return the property block at `at` by name, and where it ends; of repeated ones the last."""
    size, shift = 0, 0
    while True:
        byte = body[at]
        at += 1
        size |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            break
        if shift == _LENGTH_SHIFT_MAX:
            raise ValueError("property block of more than four length bytes")
        shift += 7
    end = at + size
    if end > len(body) or size > PROPERTIES_MAX_BYTES:
        raise ValueError(f"property block of {size} bytes")
    rest = body[at:end]
    found: dict[str, Any] = {}
    while rest:
        known = Property.factory(id_=rest[0])
        if known is None:
            raise ValueError(f"unknown property {rest[0]}")
        value, rest = known.loads(rest[1:])
        found |= value
    return found, end


def _length(size: int) -> bytes:
    if size < 0x80:  # noqa: PLR2004 - one byte is enough
        return bytes((size,))
    coded = bytearray()
    while size >= 0x80:  # noqa: PLR2004 - the continuation bit
        coded.append(size & 0x7F | 0x80)
        size >>= 7
    coded.append(size)
    return bytes(coded)
