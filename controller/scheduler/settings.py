"""What a scheduler is told by its host."""

from typing import Final

from msgspec import Struct

from controller.mobility.settings import MobilitySettings
from protocols.messages.mobility import CellPoint

EPOCH_SHIFT: Final = 32
"""Routes, feeds and tunes are numbered above those of every life before: 2 ** 32 in each."""


class Settings(Struct, frozen=True):
    """What a scheduler is told by its host."""

    name: str = "ts-main"
    epoch: int = 1
    """Grows with every start of this scheduler."""
    anchors: tuple[str, ...] = ("ta-main",)
    heartbeat_ms: int = 1000
    sample_ms: int = 1000
    store_urls: tuple[str, ...] = ()
    cell: str = ""
    """Its own."""
    elsewhere: tuple[str, ...] = ()
    """Those of the anchors that run in other processes."""
    point: CellPoint | None = None
    """Where its cell is reached."""
    mobility: MobilitySettings = MobilitySettings()
    beside: str = ""
    """The anchor that runs in the same process; empty: none does."""
    neighbours: tuple[str, ...] | None = None
    """Cells to which its nodes may be handed over, of those that anchors name; None: all."""
