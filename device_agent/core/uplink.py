"""The way from this node: when what is handed to it now will have left."""

from typing import Final

MOST_WAIT_MS: Final = 60_000.0
"""Whatever is handed in: nothing waits so long for its request."""


class Uplink:
    """One server with the rate that was measured; without one everything leaves at once.

    The wait is counted on with everything that is handed in, and set right by each sample.
    """

    __slots__ = ("_bytes_per_ms", "_free_ms")

    def __init__(self) -> None:
        self._bytes_per_ms = 0.0
        self._free_ms = 0.0

    def measured(self, mbit_per_s: float | None, wait_ms: float | None, now_ms: float) -> None:
        """Take in what the link carries, and how long what is handed in now waits there."""
        self._bytes_per_ms = mbit_per_s * 125.0 if mbit_per_s else 0.0
        self._free_ms = now_ms + min(MOST_WAIT_MS, wait_ms or 0.0)

    def takes_ms(self, size_bytes: int, now_ms: float) -> float:
        """Hand bytes in; return after how long their last one will have left."""
        if not self._bytes_per_ms:
            return 0.0
        self._free_ms = max(self._free_ms, now_ms) + size_bytes / self._bytes_per_ms
        self._free_ms = min(self._free_ms, now_ms + MOST_WAIT_MS)
        return self._free_ms - now_ms
