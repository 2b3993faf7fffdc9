"""What the shims are told of the links: one message per change, from the testbed. Pure."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocols.base import Name
from tona.testbed.lane import Conditions, Milliseconds

LINKS_MAX: Final = 512
MESSAGE_MAX_BYTES: Final = 65_536


class Link(Struct, frozen=True):
    """One radio link, and where its two ends are."""

    node: Name
    cell: Name
    node_space: str = ""
    """Path of the node's network namespace; empty where there are none."""
    cell_space: str = ""
    host: str = ""
    """Address of the cell's gateway, where the node keeps its own: all its links are one then."""


class Air(Struct, frozen=True):
    """Every link of a testbed; what a shim reads at its start."""

    links: Annotated[tuple[Link, ...], Meta(max_length=LINKS_MAX)]
    socket: str
    """Path of the datagram socket at which it hears of changes."""
    seed: int = 0


class Become(Struct, frozen=True):
    """A link has these conditions from now on."""

    node: Name
    cell: Name
    conditions: Conditions
    after_ms: Milliseconds = 0.0
    """Of a node with one radio and one address: when it comes there; until then it is nowhere."""
