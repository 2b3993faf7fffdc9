"""One MQTT connection, from CONNECT to its end, driven by the event loop's callbacks alone.

connecting -> subscribing -> ready -> closing -> ended: forward only, from everywhere to the end.
No task and no coroutine stands between the socket and the session: a packet is handled in the
callback that read it, and what its handling writes (acknowledgements, answers) leaves together,
in one system call.
"""

import asyncio
import ssl
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol, cast

from protocols.topics import filter_qos
from protocols.transport import packets
from protocols.transport.outbox import PACKET_IDS, REFUSED, Outbox, Parcel
from protocols.transport.settings import PACKET_MAX_BYTES, Settings

SUBSCRIBE_ID: Final = PACKET_IDS + 1
FLUSH_PACKETS: Final = 16
"""So many packets read or written in one callback leave without waiting for the rest."""


class Stage(StrEnum):
    """How far a connection has come."""

    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    READY = "ready"
    CLOSING = "closing"
    ENDED = "ended"


class Owner(Protocol):
    """What the link tells its session."""

    def link_ready(self) -> None:
        """Begin: every subscription is granted, frames may be sent."""

    def link_heard(self, head: packets.Head, body: bytes, left_out: int) -> None:
        """Take a PUBLISH, acknowledged already; `left_out` bytes of it were above the bound."""

    def link_refused(self, topic: str, reason_code: int) -> None:
        """Take note of a frame that the broker does not take."""


class Link(asyncio.BufferedProtocol):
    """A connection; `ended` gives the reason once it is over, in one sentence."""

    def __init__(self, settings: Settings, owner: Owner) -> None:
        self.ended: asyncio.Future[Exception | str] = asyncio.get_running_loop().create_future()
        self.stage = Stage.CONNECTING
        self.ready_at: float | None = None
        """The loop's clock when it became ready."""
        self.fault: Exception | None = None
        """What `link_ready` raised."""
        self.outbox = Outbox(settings.queue_max, settings.queue_max_bytes)
        self._settings = settings
        self._owner = owner
        self._filters: Sequence[str] = ()
        """Of the SUBSCRIBE that is under way."""
        self._granted: frozenset[str] = frozenset()
        self._leaving = False
        """Whether an UNSUBSCRIBE is under way."""
        self._resubscribe: Sequence[str] | None = None
        self._reader = packets.PacketReader(PACKET_MAX_BYTES)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat_s = settings.heartbeat_ms / 1000
        self._heard = self._spoke = False
        self._heard_s = time.monotonic()
        self._silent = 0
        self._pinged_s = 0.0
        """When the broker was asked for an answer that has not come; 0: it was not."""
        self.answer_ms: float | None = None
        """How long the broker took to answer last."""
        self._corked: list[bytes] | None = None
        self._reason = ""
        self._max_packet_bytes = PACKET_MAX_BYTES
        self._drained: list[asyncio.Future[bool]] = []

    # What the session asks for.

    def begin(self, hello: bytes, filters: Sequence[str]) -> None:
        """Say CONNECT, later SUBSCRIBE; the broker has a bounded time to let us become ready."""
        self._filters = filters
        timeout_ms = self._settings.connect_timeout_ms
        self._timer = asyncio.get_running_loop().call_later(
            timeout_ms / 1000, self.abort, f"no answer to CONNECT within {timeout_ms} ms"
        )
        self._write(hello)

    def publish(self, parcel: Parcel) -> bool:
        """Send or queue; False when the queue is full or the server takes no such size."""
        size = len(parcel.topic) + len(parcel.payload) + len(parcel.properties)
        if size + packets.OVERHEAD_BYTES > self._max_packet_bytes:
            return False
        packet_id = self.outbox.offer(parcel)
        if packet_id >= 0:
            self._publish(parcel, packet_id)
        return packet_id != REFUSED

    def subscribe(self, filters: Sequence[str]) -> None:
        """Hear these and nothing else, now or as soon as the last list is answered."""
        if self._filters or self._leaving or self.stage is not Stage.READY:
            self._resubscribe = filters
        elif filters:
            self._subscribe(filters)

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait for the window or the line."""
        written = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return written + self.outbox.queued_bytes

    @property
    def silent_ms(self) -> float:
        """For how long nothing has come."""
        return (time.monotonic() - self._heard_s) * 1000

    def ping(self) -> None:
        """Have the broker answer."""
        self._pinged_s = self._pinged_s or time.monotonic()
        self._write(packets.PING)

    def drained(self) -> asyncio.Future[bool]:
        """Return a future: True once every frame is acknowledged, False if the link ends first."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.stage is Stage.ENDED or self.outbox.empty:
            waiter.set_result(self.outbox.empty)
        else:
            self._drained.append(waiter)
        return waiter

    def close(self, reason: str) -> None:
        """End in good order: the broker keeps the will to itself."""
        if self._transport is not None and self.stage not in {Stage.CLOSING, Stage.ENDED}:
            self._reason = reason
            self.stage = Stage.CLOSING
            self._write(packets.disconnect())
            self._flush()
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End at once, what is buffered is lost; the broker will publish the will."""
        if self._transport is not None and self.stage is not Stage.ENDED:
            self._reason = self._reason or reason
            self.stage = Stage.CLOSING
            self._transport.abort()

    # What the event loop reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; the session begins when it is prepared."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the loop's own signature
        """Lend the reader's buffer to the loop."""
        return self._reader.writable()

    def buffer_updated(self, nbytes: int) -> None:
        """Handle every whole packet that has come."""
        self._heard = True
        self._heard_s = time.monotonic()
        self._reader.feed(nbytes)
        self._corked = []
        try:
            count = 0
            while not self._reason and (packet := self._reader.take()) is not None:
                self._handle(*packet)
                count += 1
                if not count % FLUSH_PACKETS:
                    self._flush()
        except packets.MalformedPacket as error:
            self.abort(str(error))
        finally:
            self._flush()
            self._corked = None

    def pause_writing(self) -> None:
        """Queue from now on: the line's buffer is full."""
        self.outbox.open = False

    def resume_writing(self) -> None:
        """Let the queue move again."""
        self.outbox.open = True
        self._move()

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle everything that waits, and say why it is over."""
        end: Exception | str = self._reason or exc or "the broker closed the connection"
        if self.stage is Stage.CONNECTING and not isinstance(exc, ssl.SSLError):
            # A server that refuses a certificate may do no more than that: with TLS 1.3 its alert
            # races with our CONNECT and can be lost to a reset.
            hint = ": does it accept our certificate?" if self._settings.tls else ""
            end = f"the broker closed the connection without an answer to CONNECT{hint}"
        self.stage = Stage.ENDED
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._drained:
            if not waiter.done():
                waiter.set_result(False)
        if not self.ended.done():
            self.ended.set_result(end)

    # One packet.

    def _handle(self, first: int, body: bytes, left_out: int) -> None:
        kind = first & 0xF0
        if kind == packets.PUBLISH:
            head = packets.head(first, body)
            if head.packet_id:
                # Before the handler, whatever it does: no promise of ours leans on PUBACK, and a
                # message that trips a bug must not come back with every connection.
                self._write(packets.puback(head.packet_id))
            self._owner.link_heard(head, body, left_out)
        elif left_out:
            raise packets.MalformedPacket("the broker sent an endless packet")
        elif kind == packets.PUBACK:
            self._acknowledged(body)
        elif kind == packets.CONNACK:
            self._connected(body)
        elif kind == packets.SUBACK:
            self._subscribed(body)
        elif kind == packets.UNSUBACK:
            # Whatever it says: what comes nevertheless finds nobody who wants it.
            self._leaving = False
            self._subscribe_next()
        elif kind == packets.DISCONNECT:
            self.abort(packets.disconnected(body))
        elif kind == packets.PINGRESP:
            self._answered()
        else:
            raise packets.MalformedPacket(f"the broker sent an unexpected packet 0x{first:02x}")

    def _answered(self) -> None:
        if self._pinged_s:
            self.answer_ms = (time.monotonic() - self._pinged_s) * 1000
        self._pinged_s = 0.0

    def _acknowledged(self, body: bytes) -> None:
        packet_id, code = packets.acknowledged(body)
        topic = self.outbox.acknowledge(packet_id)
        if code >= packets.REFUSED:
            # It begins with its length.
            self._owner.link_refused(topic[2:].decode(), code)
        self._move()

    def _connected(self, body: bytes) -> None:
        if self.stage is not Stage.CONNECTING:
            raise packets.MalformedPacket("the broker sent a second CONNACK")
        answer = packets.connack(body, PACKET_MAX_BYTES)
        if isinstance(answer, str):
            self.abort(answer)
            return
        self.outbox.window = max(1, min(self._settings.inflight_max, answer.receive_maximum))
        self._max_packet_bytes = min(PACKET_MAX_BYTES, answer.max_packet_bytes)
        if answer.keepalive_s:
            self._heartbeat_s = min(self._heartbeat_s, answer.keepalive_s / 2)
        if self._filters:
            self.stage = Stage.SUBSCRIBING
            self._subscribe(self._filters)
        else:
            self._ready()

    def _subscribe(self, filters: Sequence[str]) -> None:
        self._filters = tuple(filters)
        wanted = [(one, filter_qos(one)) for one in filters]
        self._write(packets.subscribe(wanted, SUBSCRIBE_ID))

    def _subscribed(self, body: bytes) -> None:
        _, codes = packets.suback(body)
        filters, self._filters = self._filters, ()
        for wanted, code in zip(filters, codes, strict=False):
            if code >= packets.REFUSED:
                self.abort(f"the broker refuses the subscription to {wanted} (code 0x{code:02x})")
                return
        gone = sorted(self._granted.difference(filters))
        self._granted = frozenset(filters)
        if gone:
            self._leaving = True
            self._write(packets.unsubscribe(gone, SUBSCRIBE_ID))
        if self.stage is Stage.SUBSCRIBING:
            self._ready()
        self._subscribe_next()

    def _subscribe_next(self) -> None:
        if self._resubscribe and not self._leaving:
            again, self._resubscribe = self._resubscribe, None
            self._subscribe(again)

    def _ready(self) -> None:
        loop = asyncio.get_running_loop()
        self.stage = Stage.READY
        self.ready_at = loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(self._heartbeat_s, self._tick)
        try:
            self._owner.link_ready()
        except Exception as error:  # noqa: BLE001 - the loop would only log it; run() raises it
            self.fault = error
            self.abort("a fault of ours")

    # Time and space.

    def _tick(self) -> None:
        """Count silence in heartbeats, not by the clock: a process that stood still is not deaf."""
        self._silent = 0 if self._heard else self._silent + 1
        if self._silent >= self._settings.silent_heartbeats:
            silent_ms = round(self._silent * self._heartbeat_s * 1000)
            self.abort(f"the broker has been silent for {silent_ms} ms")
            return
        if not (self._heard and self._spoke):
            self.ping()
        self._heard = self._spoke = False
        self._timer = asyncio.get_running_loop().call_later(self._heartbeat_s, self._tick)

    def _move(self) -> None:
        while (ready := self.outbox.next()) is not None:
            self._publish(*ready)
        if self._drained and self.outbox.empty:
            for waiter in self._drained:
                if not waiter.done():
                    waiter.set_result(True)
            self._drained.clear()

    def _publish(self, parcel: Parcel, packet_id: int) -> None:
        topic, payload, _, properties = parcel
        self._write(packets.publish(topic, payload, packet_id, properties))

    def _write(self, packet: bytes) -> None:
        self._spoke = True
        if self._corked is not None:
            self._corked.append(packet)
            if len(self._corked) >= FLUSH_PACKETS:
                self._flush()
        elif self._transport is not None:
            self._transport.write(packet)

    def _flush(self) -> None:
        if self._corked and self._transport is not None:
            self._transport.write(b"".join(self._corked))
            self._corked.clear()
