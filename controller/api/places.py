"""Where clients find what they ask for, and which nodes take tasks."""

from msgspec import Struct

from controller.records import CellView
from protocols.messages.hierarchy import NodeState


class Draining(Struct, frozen=True):
    """Whether a node is emptied, or takes new tasks again."""

    node: str
    state: NodeState


class ServicePlace(Struct, frozen=True):
    """Where the requests for a service go."""

    service: str
    known: bool
    """Whether there is such a service."""
    cell: CellView | None = None
    """None: its tasks have no place yet."""
