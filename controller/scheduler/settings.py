"""What a scheduler is told by its host."""

from typing import Final

from msgspec import Struct

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
