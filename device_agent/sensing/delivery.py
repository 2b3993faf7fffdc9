"""What the connection to the broker really carries, from the kernel's account of it (TCP_INFO).

The speed of an interface says nothing of a narrow way behind it. While bytes of ours wait to be
acknowledged the way is busy: what is acknowledged between two looks then is what it carries. What
is gone before the second look was not held up. The kernel's own rate is only taken for that case:
it is a burst's while a way has room.
"""

import socket
from collections.abc import Callable
from struct import unpack_from
from typing import Final, NamedTuple

from protocols.messages.sense import (
    DELIVERY_MAX_MBIT_PER_S,
    DELIVERY_MIN_MBIT_PER_S,
    SEND_WAIT_MAX_MS,
)

INFO_BYTES: Final = 256
LOOK_MS: Final = 10
"""How long after something is written, and how often while it waits, the account is looked at."""
STANDING_BYTES: Final = 8 * 1024
"""So much waiting keeps a way busy until the next look."""
LEAST_BYTES: Final = 16 * 1024
LEAST_MS: Final = 20.0
"""A rate stands on so much at least."""
MOST_MS: Final = 250.0
"""After so long a rate is told and the next one begun."""
FREE_BYTES: Final = 32 * 1024
FREE_MS: Final = 40.0
"""So many bytes that are through so soon have met no narrow way."""
KEPT_MS: Final = 60_000
"""Without new evidence a rate holds for so long."""
_MEGA: Final = 1e6

# Offsets in struct tcp_info of include/uapi/linux/tcp.h; it only ever grows at its end.
_SND_MSS: Final = 16
_UNACKED: Final = 24
_BYTES_ACKED: Final = 120
_NOTSENT_BYTES: Final = 144
_DELIVERY_RATE: Final = 160
_END: Final = 168


class TcpInfo(NamedTuple):
    """The part of the kernel's account that is used."""

    acked_bytes: int
    waiting_bytes: int
    """Written and not acknowledged."""
    rate_mbit_per_s: float
    """The kernel's own estimate; a burst's where the way has room."""


class Delivery(NamedTuple):
    """What a connection carries."""

    mbit_per_s: float | None = None
    wait_ms: float | None = None
    """What is written now has left after so long."""


def parse(raw: bytes) -> TcpInfo | None:
    """Return the account; None where the kernel is too old to give all of it."""
    if len(raw) < _END:
        return None
    (mss,), (unacked,) = unpack_from("=I", raw, _SND_MSS), unpack_from("=I", raw, _UNACKED)
    (notsent,) = unpack_from("=I", raw, _NOTSENT_BYTES)
    (acked,), (rate,) = unpack_from("=Q", raw, _BYTES_ACKED), unpack_from("=Q", raw, _DELIVERY_RATE)
    return TcpInfo(acked, unacked * mss + notsent, rate * 8 / _MEGA)


def account(line: socket.socket) -> TcpInfo | None:
    """Ask the kernel; None where it has none, or the socket is closed."""
    try:
        return parse(line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES))
    except OSError:
        return None


class DeliveryMonitor:
    """Follows one connection: `writing` before something is written, then `look` while it says so.

    Between those it does nothing: the account of an idle connection tells nothing.
    """

    def __init__(self) -> None:
        self._account: Callable[[], TcpInfo | None] = lambda: None
        self._buffered: Callable[[], int] = lambda: 0
        self._written: tuple[float, TcpInfo] | None = None
        self._first: tuple[float, TcpInfo] | None = None
        """The first look at which bytes stood."""
        self._mbit_per_s: float | None = None
        self._known_ms = 0.0

    def attach(self, look: Callable[[], TcpInfo | None], buffered: Callable[[], int]) -> None:
        """Follow a new connection: its account, and its bytes not yet written."""
        self._account, self._buffered = look, buffered
        self._written = self._first = self._mbit_per_s = None

    def writing(self, now_ms: float) -> bool:
        """Note that something is about to be written; whether `look` is wanted after LOOK_MS."""
        info = self._account()
        self._written = None if info is None else (now_ms, info)
        return info is not None

    def look(self, now_ms: float) -> bool:
        """Look at the account; whether to look again after LOOK_MS."""
        info = self._account()
        if info is None or self._written is None:
            self._written = self._first = None
            return False
        first, standing = self._first, info.waiting_bytes >= STANDING_BYTES
        if not standing:
            self._through(self._written, (now_ms, info), free=first is None)
        if first is None:
            self._first = (now_ms, info) if standing else None
            return standing
        took_ms, moved = now_ms - first[0], info.acked_bytes - first[1].acked_bytes
        # When nothing waits any more, it is not known since when.
        if info.waiting_bytes and took_ms >= LEAST_MS and moved >= LEAST_BYTES:
            self._tell(moved * 8 / 1000 / took_ms, now_ms)
        if not standing:
            self._first = None
        elif took_ms >= MOST_MS and moved >= LEAST_BYTES:
            self._first = now_ms, info
        return self._first is not None

    def _through(
        self, written: tuple[float, TcpInfo], last: tuple[float, TcpInfo], *, free: bool
    ) -> None:
        """Learn from what is through: a way carries that much at least."""
        took_ms, moved = last[0] - written[0], last[1].acked_bytes - written[1].acked_bytes
        if moved < FREE_BYTES or took_ms <= 0:
            return
        if free and took_ms <= FREE_MS:
            self._tell(last[1].rate_mbit_per_s, last[0])
        elif self._mbit_per_s is not None and moved * 8 / 1000 / took_ms > self._mbit_per_s:
            self._tell(moved * 8 / 1000 / took_ms, last[0])

    def sample(self, now_ms: float) -> Delivery:
        """Return what the connection carries, as far as it is known."""
        rate = self._mbit_per_s
        if rate is None or now_ms - self._known_ms > KEPT_MS:
            return Delivery()
        info = self._account()
        if info is None:
            return Delivery()
        wait_ms = (info.waiting_bytes + self._buffered()) * 8 / (rate * 1000)
        return Delivery(rate, min(wait_ms, SEND_WAIT_MAX_MS))

    def _tell(self, mbit_per_s: float, now_ms: float) -> None:
        if mbit_per_s >= DELIVERY_MIN_MBIT_PER_S:
            self._mbit_per_s = min(mbit_per_s, DELIVERY_MAX_MBIT_PER_S)
            self._known_ms = now_ms
