"""Where clients find what they ask for, where tasks are, and which nodes take them."""

from msgspec import Struct

from controller.records import CellView, Placement, TaskState
from protocols.messages.hierarchy import NodeState


class Draining(Struct, frozen=True):
    """Whether a node is emptied, or takes new tasks again."""

    node: str
    state: NodeState


class Forgotten(Struct, frozen=True):
    """A node that is known no more."""

    node: str


class Explanation(Struct, frozen=True):
    """Why a task is where it is."""

    task: str
    state: TaskState
    node: str
    reason: str
    placement: Placement | None
    """The last decision; None: there was none yet."""
    following: str = ""
    """Whether it follows the devices that it serves to their cell, and why; empty: none has moved.
    """
    failures: dict[str, str] = {}
    """Nodes that were tried for its newest generation and could not run it, with the reason."""


class ServicePlace(Struct, frozen=True):
    """Where the requests for a service go."""

    service: str
    known: bool
    """Whether there is such a service."""
    cell: CellView | None = None
    """None: its tasks have no place yet."""
