"""The one MQTT session of daemon, controller and SDK: connects, frames, counts, connects again.

Frames out get sender, incarnation and number; frames in are checked and handed on, bad ones
counted and dropped. When a connection ends, what it had not sent or seen acknowledged is gone:
it carries an incarnation that is over, and every promise is kept by the layers above, which
repeat under the new one.
"""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Struct

from protocols import codec, topics
from protocols.codec import Frame
from protocols.errors import (
    ForeignSender,
    MalformedFrame,
    OversizedFrame,
    PeerError,
    TonaBug,
    UnknownTopic,
    UnknownVersion,
)
from protocols.topics import Topic
from protocols.transport import backoff, packets
from protocols.transport.link import Link, Stage
from protocols.transport.outbox import Parcel
from protocols.transport.reasons import explain
from protocols.transport.settings import CLOSE_TIMEOUT_MS, PACKET_MAX_BYTES, Settings
from protocols.transport.sockets import open_socket

if TYPE_CHECKING:
    from protocols.messages import Body

WILL_NUMBER: Final = 2**53
"""A will stands outside the count: the broker says it after any number of frames, or never."""
WILL_CAUSE: Final = "will"
DEFAULT_TENANT: Final = "default"
REFUSALS_MAX: Final = 16
"""Topics, with the reason, of which the log says that the broker has refused them."""
_TLS_SHUTDOWN_S: Final = 1.0

_DROPS: Final[dict[type[PeerError], str]] = {
    OversizedFrame: "dropped_oversized",
    MalformedFrame: "dropped_malformed",
    UnknownVersion: "dropped_version",
    ForeignSender: "dropped_foreign",
    UnknownTopic: "dropped_topic",
}

_NOT_BROKEN: Final = ssl.SSLError, ConnectionError

_log = logging.getLogger(__name__)


class Inbound(NamedTuple):
    """A frame that passed every check."""

    topic: Topic
    frame: Frame
    response_topic: str
    correlation: bytes


class Counters(Struct):
    """What happened since the session was made; every number only grows."""

    sent: int = 0
    """Accepted by `send`."""
    send_refused: int = 0
    """Not accepted by `send`: no connection, or the queue is full."""
    send_rejected: int = 0
    """Refused by the broker in its PUBACK, as by an ACL."""
    send_abandoned: int = 0
    """Accepted, and not yet acknowledged or not even sent when the connection ended."""
    received: int = 0
    dropped_oversized: int = 0
    dropped_malformed: int = 0
    dropped_version: int = 0
    dropped_foreign: int = 0
    dropped_topic: int = 0
    handler_faults: int = 0
    """`on_message` raised: a bug of ours."""
    connects: int = 0
    connect_failures: int = 0
    disconnects: int = 0


class _Route(NamedTuple):
    """What sending on one topic needs, worked out once."""

    topic: bytes
    qos: int
    max_bytes: int


class Session:
    """One identity's session; every callback runs in the event loop and must not block.

    `subscriptions` are filters, or give them anew for each connection. `on_connected` gets the
    incarnation once every filter is granted; `on_disconnected` the reason, once for each
    connected. `next_incarnation` is asked when a broker has taken the line, so an unreachable one
    uses none up. `will` gives the message that the broker says for us if we die; `decode`
    (`codec.decoder`) knows what is heard. `on_refused` gets the topic on which the broker has not
    taken what was published, and why.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        subscriptions: Sequence[str] | Callable[[], Sequence[str]],
        on_message: Callable[[Inbound], None],
        on_connected: Callable[[int], None],
        on_disconnected: Callable[[str], None],
        next_incarnation: Callable[[], int],
        will: Callable[[int], "tuple[Topic, Body] | None"] | None = None,
        decode: Callable[[bytes, int], Frame] = codec.decode,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self.incarnation = 0
        """Of the present connection, or of the last one."""
        self.last_failure = ""
        """Why there is no connection, or why the last one ended; one sentence."""
        self.broken = False
        """Whether the network ended the last connection; a reset is the other host's word."""
        self._subscriptions = subscriptions
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._next_incarnation = next_incarnation
        self._will = will
        self._decode = decode
        self._on_refused = on_refused
        self._refusals: set[str] = set()
        """Those that were logged."""
        self._number = 0
        self._link: Link | None = None
        self._attempt: asyncio.Timeout | None = None
        self._news = True
        self._closing = False
        self._wake = asyncio.Event()
        self._over = asyncio.Event()
        self._over.set()
        self._route = lru_cache(settings.topics_max)(self._work_out)
        self._parse = lru_cache(settings.topics_max)(_parse)

    @property
    def connected(self) -> bool:
        """Whether frames can be sent now."""
        return self._link is not None and self._link.stage is Stage.READY

    async def run(self) -> None:
        """Connect, and connect again, until closed or cancelled; a cancelled session leaves a will.

        Raises only what one of our own callbacks raises.
        """
        if not self._over.is_set():
            raise TonaBug("this session already runs")
        self._over.clear()
        failures = 0
        try:
            while not self._closing:
                up_ms, reason = await self._connection()
                failures = await self._retreat(failures, up_ms, reason)
        finally:
            self._over.set()

    def send(
        self,
        topic: Topic,
        body: "Body",
        *,
        cause: str,
        tenant: str = DEFAULT_TENANT,
        response_topic: str = "",
        correlation: bytes = b"",
        sender: str = "",
    ) -> bool:
        """Send or queue a message; False when there is no connection or the queue is full.

        `sender` is a role that speaks through this identity. Never blocks. Raises TonaBug when the
        message exceeds its topic's bound or this identity may not publish there.
        """
        link = self._link
        if link is None or link.stage is not Stage.READY:
            self.counters.send_refused += 1
            return False
        name, qos, max_bytes = self._route(topic)
        frame = self._frame(self._number, tenant, cause, body, sender)
        payload = codec.encode(frame, max_bytes)
        properties = packets.request_properties(response_topic, correlation)
        if not link.publish(Parcel(name, payload, qos, properties)):
            self.counters.send_refused += 1
            return False
        self._number += 1
        self.counters.sent += 1
        return True

    @property
    def buffered_bytes(self) -> int:
        """Bytes that the operating system has not taken yet."""
        return self._link.buffered_bytes if self._link is not None else 0

    @property
    def silent_ms(self) -> float:
        """For how long nothing has come on the present connection; 0 without one."""
        return self._link.silent_ms if self._link is not None else 0.0

    def ping(self) -> float | None:
        """Have the broker answer; return how long it took last time, in ms; None: not known."""
        link = self._link
        if link is None or link.stage is not Stage.READY:
            return None
        link.ping()
        return link.answer_ms

    def resubscribe(self) -> None:
        """Subscribe to the present list, and to nothing else."""
        if self._link is not None:
            self._link.subscribe(self._filters())

    def retry_now(self) -> None:
        """End the present wait between two attempts: the way to the broker is said to be back."""
        self._wake.set()

    def abort(self, reason: str) -> None:
        """Drop the connection at once, as when its interface is gone; the session connects anew."""
        if self._link is not None:
            self._link.abort(reason)

    async def drained(self, timeout_ms: int) -> bool:
        """Wait until every frame is acknowledged; False when the time or the link ends first."""
        if self._link is None:
            return False
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self._link.drained()
        except TimeoutError:
            return False

    async def close(
        self, farewell: "tuple[Topic, Body] | None" = None, *, timeout_ms: int = CLOSE_TIMEOUT_MS
    ) -> bool:
        """Say farewell, wait for the acknowledgements, disconnect, end `run()`.

        Returns whether everything was acknowledged; takes `timeout_ms` twice at most.
        """
        said = farewell is None or self.send(*farewell, cause="farewell")
        done = said and (self._link is None or await self.drained(timeout_ms))
        self._closing = True
        self._wake.set()
        if self._attempt is not None and not self._attempt.expired():
            self._attempt.reschedule(0)
        if self._link is not None:
            self._link.close("closed by us")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._over.wait()
        except TimeoutError:
            self.abort("closed by us")
            await self._over.wait()
        return done

    # One connection.

    async def _connection(self) -> tuple[int, str]:
        """Live through one connection; return how long it was ready, in ms, and why it ended."""
        try:
            async with asyncio.timeout(self.settings.connect_timeout_ms / 1000) as self._attempt:
                self._link = await self._open()
        except OSError as error:
            self.counters.connect_failures += 1
            return 0, self._explain(error)
        finally:
            self._attempt = None
        reason = "cancelled"
        try:
            self._number = 0
            self.incarnation = self._next_incarnation()
            self._link.begin(self._hello(), self._filters())
            end = await self._link.ended
            self.broken = isinstance(end, OSError) and not isinstance(end, _NOT_BROKEN)
            reason = self._explain(end)
        finally:
            up_ms = self._settle(reason)
        return up_ms, reason

    async def _open(self) -> Link:
        settings = self.settings
        opener = settings.open_socket or open_socket
        line = await opener(settings)
        tls = settings.tls
        _, link = await asyncio.get_running_loop().create_connection(
            lambda: Link(settings, self),
            sock=line,
            ssl=tls,
            server_hostname=_checked_name(settings.host) if tls else None,
            ssl_shutdown_timeout=_TLS_SHUTDOWN_S if tls else None,
        )
        return link

    def _hello(self) -> bytes:
        settings = self.settings
        will = None
        said = self._will(self.incarnation) if self._will else None
        if said is not None:
            _, qos, max_bytes = self._route(said[0])
            frame = self._frame(WILL_NUMBER, DEFAULT_TENANT, WILL_CAUSE, said[1])
            will = str(said[0]), codec.encode(frame, max_bytes), qos
        # The broker forgives half as much again. A fresh id each time: a takeover would make some
        # brokers say the new connection's will at once.
        keepalive_s = max(1, round(settings.heartbeat_ms * settings.silent_heartbeats / 1000))
        client_id = f"{settings.identity}-{os.urandom(6).hex()}"
        return packets.connect(client_id, keepalive_s, PACKET_MAX_BYTES, will)

    def _settle(self, reason: str) -> int:
        """Take leave of the present link; return how long it was ready, in ms."""
        link, self._link = self._link, None
        if link is None:
            return 0
        link.abort(reason)
        if link.ready_at is None:
            self.counters.connect_failures += 1
            return 0
        self.counters.disconnects += 1
        self.counters.send_abandoned += link.outbox.queued + link.outbox.inflight
        self._on_disconnected(reason)
        if link.fault is not None:
            raise link.fault
        return round((asyncio.get_running_loop().time() - link.ready_at) * 1000)

    def _note(self, reason: str, failures: int, delay_ms: int) -> None:
        """Log a failure when it is another one than the last, or the first after a stable time."""
        if reason != self.last_failure or failures == 1:
            cell, identity = self.settings.cell, self.settings.identity
            _log.warning("%s in %s: %s; next try in %d ms", identity, cell, reason, delay_ms)
            self._news = True
        self.last_failure = reason

    async def _retreat(self, failures: int, up_ms: int, reason: str) -> int:
        """Wait as the backoff says, unless closed or woken; return the failures in a row."""
        if self._closing:
            return failures
        draw = int.from_bytes(os.urandom(4)) / 2**32
        failures, delay_ms = backoff.step(self.settings.backoff, failures, up_ms, draw)
        self._note(reason, failures, delay_ms)
        self._wake.clear()
        try:
            async with asyncio.timeout(delay_ms / 1000):
                await self._wake.wait()
        except TimeoutError:
            pass
        return failures

    def _explain(self, end: Exception | str) -> str:
        if isinstance(end, str):
            return f"{self.settings.host}:{self.settings.port}: {end}"
        return explain(end, self.settings, time.strftime("%Y-%m-%d"))

    # What the link reports.

    def link_ready(self) -> None:
        """Begin to send: the connection stands and listens."""
        self.counters.connects += 1
        if self._news:
            settings = self.settings
            where = f"{settings.host}:{settings.port}"
            _log.info("%s in %s: connected to %s", settings.identity, settings.cell, where)
            self._news = False
        self._on_connected(self.incarnation)

    def link_heard(self, head: packets.Head, body: bytes, left_out: int) -> None:
        """Check a frame and hand it on, or count it by what is wrong with it."""
        try:
            if left_out:
                raise OversizedFrame(f"packet of {len(body) + left_out} bytes")
            topic = self._parse(head.topic)
            response_topic, correlation, payload = packets.content(body, head.at)
            frame = self._decode(payload, topic.rule.max_bytes)
            codec.check_sender(frame, topic)
        except PeerError as error:
            self._drop(error, head.topic)
            return
        self.counters.received += 1
        try:
            self._on_message(Inbound(topic, frame, response_topic, correlation))
        except Exception:  # noqa: BLE001 - one peer's message must not cut off all the others
            self.counters.handler_faults += 1
            _log.exception("a message on %s tripped a bug", topic)

    def link_refused(self, topic: str, reason_code: int) -> None:
        """Count a frame that the broker did not take, and tell of it."""
        self.counters.send_rejected += 1
        told = packets.publish_refused(topic, reason_code)
        if told not in self._refusals and len(self._refusals) < REFUSALS_MAX:
            self._refusals.add(told)
            _log.warning("the broker refuses what we publish on %s", told)
        if self._on_refused is not None:
            self._on_refused(told)

    # Frames.

    def _frame(self, number: int, tenant: str, cause: str, body: "Body", sender: str = "") -> Frame:
        sender = sender or self.settings.identity
        return Frame(codec.VERSION, sender, self.incarnation, number, tenant, cause, body)

    def _filters(self) -> Sequence[str]:
        wanted = self._subscriptions
        return wanted() if callable(wanted) else wanted

    def _work_out(self, topic: Topic) -> _Route:
        rule, settings = topic.rule, self.settings
        owner = topic.party.value == settings.speaker.value and topic.name == settings.identity
        if settings.speaker not in rule.publishers and not (rule.owner_publishes and owner):
            raise TonaBug(f"{settings.speaker} {settings.identity} may not publish on {topic}")
        return _Route(packets.text(str(topic).encode()), rule.qos, rule.max_bytes)

    def _drop(self, error: PeerError, topic: bytes) -> None:
        name = _DROPS[type(error)]
        count = getattr(self.counters, name) + 1
        setattr(self.counters, name, count)
        if count == 1:
            _log.warning("%s: %s on %r; more are only counted", name, error, topic[:120])


def _checked_name(host: str) -> Any:
    """Return the name that a certificate has to have.

    A text would be taken for an international name, which loads tables for those.
    """
    return host.encode() if host.isascii() else host


def _parse(topic: bytes) -> Topic:
    try:
        return topics.parse(topic.decode())
    except UnicodeDecodeError:
        raise UnknownTopic("a topic that is no UTF-8") from None
