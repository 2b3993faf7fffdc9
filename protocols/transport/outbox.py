"""What waits to be sent: one order, a window of unacknowledged packets, a bounded queue; pure.

A frame goes out at once while the line is open, nothing waits before it and, for QoS 1, the
window has room. Otherwise it queues, whatever its QoS, so frames keep their order. A full queue
refuses. A PUBACK or an open line lets the queue move.
"""

from collections import deque
from typing import Final, NamedTuple

QUEUED: Final = -1
REFUSED: Final = -2
PACKET_IDS: Final = 0xFFFE
"""The highest packet id of a PUBLISH; the one above is kept for SUBSCRIBE."""


class Parcel(NamedTuple):
    """One PUBLISH without its packet id; `topic` and `properties` carry their lengths."""

    topic: bytes
    payload: bytes
    qos: int
    properties: bytes


class Outbox:
    """The order of one connection's frames; `open` is the line's own back-pressure."""

    def __init__(self, queue_max: int, queue_max_bytes: int) -> None:
        self.window = 1
        """How many packets may be unacknowledged; set before the first offer."""
        self.open = True
        """False while the line's own buffer is full."""
        self._queue: deque[Parcel] = deque()
        self._queue_max = queue_max
        self._queue_max_bytes = queue_max_bytes
        self._queued_bytes = 0
        self._inflight: dict[int, bytes] = {}
        """Topics by packet id."""
        self._last_id = 0

    @property
    def queued(self) -> int:
        """Frames that wait."""
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        """Their payloads."""
        return self._queued_bytes

    @property
    def inflight(self) -> int:
        """Frames sent and not acknowledged."""
        return len(self._inflight)

    @property
    def empty(self) -> bool:
        """Whether every frame has left and is acknowledged."""
        return not self._queue and not self._inflight

    def offer(self, parcel: Parcel) -> int:
        """Return the packet id to send it with now (0 for QoS 0), or QUEUED, or REFUSED."""
        if not self._queue and self._may_go(parcel):
            return self._take_id(parcel)
        size = len(parcel.payload)
        if len(self._queue) >= self._queue_max or self._queued_bytes + size > self._queue_max_bytes:
            return REFUSED
        self._queue.append(parcel)
        self._queued_bytes += size
        return QUEUED

    def next(self) -> tuple[Parcel, int] | None:
        """Return the next queued frame that may go now, with its packet id."""
        if not self._queue or not self._may_go(self._queue[0]):
            return None
        parcel = self._queue.popleft()
        self._queued_bytes -= len(parcel.payload)
        return parcel, self._take_id(parcel)

    def acknowledge(self, packet_id: int) -> bytes:
        """Free a place in the window; return the topic, of an id that is not in flight none."""
        return self._inflight.pop(packet_id, b"")

    def _may_go(self, parcel: Parcel) -> bool:
        return self.open and (not parcel.qos or len(self._inflight) < self.window)

    def _take_id(self, parcel: Parcel) -> int:
        if not parcel.qos:
            return 0
        packet_id = self._last_id
        while True:
            packet_id = packet_id % PACKET_IDS + 1
            if packet_id not in self._inflight:
                break
        self._last_id = packet_id
        self._inflight[packet_id] = parcel.topic
        return packet_id
