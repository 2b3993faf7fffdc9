"""What a node's moves say of its next one: returns are counted, made dearer and bounded."""

from collections import deque
from typing import Final

from msgspec import Struct

from controller.mobility.settings import MobilitySettings

KEPT: Final = 32
"""Moves of one node that are remembered."""


class Move(Struct, frozen=True):
    """A node has gone from one cell to another."""

    at_ms: float
    source: str
    target: str
    back: bool
    """Whether that was a ping-pong: a return to the cell it had left just before."""


class Moves:
    """The moves of one node."""

    def __init__(self) -> None:
        self._moves: deque[Move] = deque(maxlen=KEPT)
        self.ping_pongs = 0
        """Since the beginning."""
        self.count = 0

    @property
    def last_ms(self) -> float | None:
        """When the node has moved last."""
        return self._moves[-1].at_ms if self._moves else None

    def moved(self, source: str, target: str, now_ms: float, settings: MobilitySettings) -> Move:
        """Take note of a move."""
        back = self._returns(target, now_ms, settings)
        move = Move(now_ms, source, target, back)
        self._moves.append(move)
        self.count += 1
        self.ping_pongs += back
        return move

    def recent(self, now_ms: float, settings: MobilitySettings) -> int:
        """Return how many ping-pongs still count."""
        since = now_ms - settings.window_ms
        return sum(one.back for one in self._moves if one.at_ms > since)

    def margin_db(self, target: str, now_ms: float, settings: MobilitySettings) -> float | None:
        """Return what a move there has to gain beyond others; None: it is not to be made."""
        recent = self.recent(now_ms, settings)
        if not self._returns(target, now_ms, settings):
            return 0.0
        if recent >= min(settings.ping_pongs_max, KEPT):
            return None
        return settings.back_db * (1 + recent)

    def _returns(self, target: str, now_ms: float, settings: MobilitySettings) -> bool:
        """Whether a move there would be a return to the cell that was left just before."""
        if not self._moves:
            return False
        last = self._moves[-1]
        return target == last.source and now_ms - last.at_ms < settings.back_ms
