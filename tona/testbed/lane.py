"""One direction of a link: rate, delay, jitter and loss of what goes through it. Pure.

A token bucket with a bounded queue before it, then a delay that varies, in order, as a radio bearer
delivers. No clock and no chance of its own: both come in.
"""

from collections.abc import Callable
from typing import Annotated, Final

from msgspec import Meta, Struct

BURST_BYTES: Final = 16_384
"""What passes at once after a pause."""
QUEUE_MS: Final = 300.0
"""What would wait longer than so before the token bucket is dropped, as a full buffer does."""
RETRANSMIT_MS: Final = 200.0
"""Where bytes flow that cannot be lost, each loss costs this and twice as much each further time:
the least time after which TCP repeats (Linux)."""
RETRANSMITS_MAX: Final = 6
SEGMENT_BYTES: Final = 1448

Rate = Annotated[float, Meta(gt=0, le=100_000)]
Milliseconds = Annotated[float, Meta(ge=0, le=60_000)]


class Conditions(Struct, frozen=True, kw_only=True):
    """A link now; one that is not up carries nothing, and both ends see that."""

    up: bool = True
    down_mbit_per_s: Rate = 1000.0
    """Towards the node."""
    up_mbit_per_s: Rate = 1000.0
    """From the node."""
    delay_ms: Milliseconds = 0.0
    """One way."""
    jitter_ms: Milliseconds = 0.0
    """Up to so much is added to the delay, evenly distributed."""
    loss_percent: Annotated[float, Meta(ge=0, le=100)] = 0.0


DOWN: Final = Conditions(up=False)


class Lane:
    """Says when a packet comes out. Times are in milliseconds of any monotonic clock."""

    def __init__(self, chance: Callable[[], float]) -> None:
        """`chance` draws from [0, 1)."""
        self._chance = chance
        self._now = DOWN
        self._rate_bytes_per_ms = 1.0
        self._free_ms = 0.0
        """When the bucket has let everything through that it has taken."""
        self._last_ms = 0.0
        """When the last packet comes out."""

    def become(self, conditions: Conditions, mbit_per_s: float) -> None:
        """Change; what is under way stays as it was admitted."""
        self._now = conditions
        self._rate_bytes_per_ms = mbit_per_s * 125.0

    def packet(self, size_bytes: int, now_ms: float) -> float | None:
        """Return when a packet comes out; None: it is lost."""
        now = self._now
        if not now.up or self._lost():
            return None
        if self._free_ms - now_ms > QUEUE_MS:
            return None
        return self._out(size_bytes, now_ms, 0.0)

    def bytes(self, size_bytes: int, now_ms: float) -> float | None:
        """Return when bytes that are repeated until they arrive come out; None: not until it is up.

        What would be lost stalls what comes after it, as on a TCP connection.
        """
        if not self._now.up:
            return None
        stall_ms = 0.0
        for _ in range(-(-size_bytes // SEGMENT_BYTES)):
            times = 0
            while times < RETRANSMITS_MAX and self._lost():
                stall_ms += RETRANSMIT_MS * 2**times
                times += 1
        return self._out(size_bytes, now_ms, stall_ms)

    def _lost(self) -> bool:
        share = self._now.loss_percent
        return share > 0 and self._chance() * 100 < share

    def _out(self, size_bytes: int, now_ms: float, more_ms: float) -> float:
        burst_ms = BURST_BYTES / self._rate_bytes_per_ms
        self._free_ms = max(self._free_ms, now_ms - burst_ms)
        self._free_ms += size_bytes / self._rate_bytes_per_ms
        jitter_ms = self._now.jitter_ms * self._chance() if self._now.jitter_ms else 0.0
        out_ms = max(now_ms, self._free_ms) + self._now.delay_ms + jitter_ms + more_ms
        self._last_ms = max(self._last_ms, out_ms)
        return self._last_ms
