"""What an anchor is told by its host."""

from msgspec import Struct

from controller.mobility.settings import MobilitySettings


class Settings(Struct, frozen=True):
    """Who this anchor is and to whom it speaks."""

    name: str = "ta-main"
    schedulers: tuple[str, ...] = ("ts-main",)
    """The TS of its cells; nobody else's word about nodes and tasks counts."""
    peers: tuple[str, ...] = ()
    """The other anchors, from which services come and to which they go."""
    namo: str = "namo-main"
    side: str = "core"
    """`core` or `radio`."""
    cells: tuple[str, ...] = ("cell",)
    """Of its schedulers, for people and NAMO."""
    unix_offset_ms: int | None = None
    """Added to the time of a turn it is the wall clock's, for people; None: that is not known."""
    mobility: MobilitySettings = MobilitySettings()
    """How it decides which cell serves a node, where it does."""
    direct: bool = False
    """Whether it hears nodes and speaks to them itself, beside their schedulers."""
