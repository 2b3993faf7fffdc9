"""What is durable of handovers; kinds and keys as in `controller.records`."""

from enum import StrEnum

from msgspec import Struct

from protocols.messages.mobility import CellPoint


class HandoverState(StrEnum):
    """How far a handover is."""

    PREPARING = "preparing"
    """The target is asked whether it has room."""
    COMMANDED = "commanded"
    """The node was told, and has not come."""
    SWITCHING = "switching"
    """It has come; its tasks are on their way to the new scheduler."""
    COMPLETED = "completed"
    REFUSED = "refused"
    """No target has room, or the node cannot be told."""
    FAILED = "failed"
    """The node has not come."""
    VOID = "void"
    """A conditional one whose condition never held, or whose place another one has taken."""


class HandoverRecord(Struct, frozen=True):
    """A node's change of cell (kind `handover`, key `NODE/slot`)."""

    handover: str
    node: str
    number: int
    """Of the node's handovers, growing."""
    source: str
    """The cell that it leaves."""
    target: str
    """The cell that it comes to, or is to come to."""
    state: HandoverState
    cause: str = ""
    """Why, for people."""
    reason: str = ""
    """Why it was refused or has failed."""
    conditional: bool = False
    by_hand: bool = False
    offset_db: float = 0.0
    """Of the condition."""
    time_to_trigger_ms: int = 0
    others: tuple[str, ...] = ()
    """Cells that are tried when the target has no room, in order."""
    incarnation: int = 0
    """Of the attachment that ends."""
    arrived: int = 0
    """Of the new one; 0: it has not come."""
    attached: bool = False
    """Whether it was still attached to the source when it came."""
    tasks: tuple[str, ...] = ()
    """That have gone with it."""
    phases: dict[str, int] = {}
    """When each state began, in ms since the first; `ownerless` is how long the task that waited
    longest had no scheduler, at most.
    """
    started_unix_ms: int = 0
    times: dict[str, float] = {}
    """As the node has measured them, named as in HandoverTimes."""


class PointRecord(Struct, frozen=True):
    """Where a cell is reached, as its scheduler has said (kind `point`, key the scheduler)."""

    point: CellPoint


class CrossingRecord(Struct, frozen=True):
    """Handovers from one cell to another (kind `crossing`, key `SOURCE>TARGET`)."""

    source: str
    target: str
    completed: int = 0
    failed: int = 0
    refused: int = 0
    ping_pongs: int = 0
    """Those that went back to where the node had just come from."""
    total_ms: float = 0.0
    """Of all that were completed, from the first step to the last."""
    longest_ms: float = 0.0
    ownerless_longest_ms: float = 0.0
