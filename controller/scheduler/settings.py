"""What a scheduler is told by its host."""

from msgspec import Struct


class Settings(Struct, frozen=True):
    """What a scheduler is told by its host."""

    name: str = "ts-main"
    epoch: int = 1
    """Grows with every start of this scheduler."""
    anchors: tuple[str, ...] = ("ta-main",)
    heartbeat_ms: int = 1000
    sample_ms: int = 1000
    store_urls: tuple[str, ...] = ()
