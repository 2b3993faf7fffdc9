"""What placement is asked and on what it decides: requests, and a frozen snapshot of the fleet."""

from collections.abc import Mapping

from msgspec import Struct

from controller.records import FigureRecord
from protocols.messages.hierarchy import NodeState, TaskSpec
from protocols.messages.presence import Inventory


class NodeFacts(Struct, frozen=True):
    """What placement knows of a node."""

    node: str
    state: NodeState
    inventory: Inventory
    cpu_percent: float = 0.0
    """Of all its cores, as measured."""
    round_trip_ms: float | None = None
    """To its broker and back; None: not measured yet."""
    scheduler: str = ""
    """The TS of its cell; the tasks of one plan all lie under one."""
    bandwidth_mbit_per_s: float | None = None
    """Of its link; None: not known."""
    attached: int = 0
    """Incarnation of its attachment to its cell."""


class Snapshot(Struct, frozen=True):
    """The fleet as the TA sees it, coarsely; `reserved_*` count what the TA has placed.

    They may be the sums that the TA goes on counting in: a snapshot is of its revision.
    """

    revision: int
    nodes: tuple[NodeFacts, ...]
    reserved_bytes: Mapping[str, float] = {}
    reserved_cpu_percent: Mapping[str, float] = {}
    """Of one core, as demands are."""
    instances: Mapping[str, float] = {}
    left_out: Mapping[str, int] = {}
    """How many further nodes are known and not to be weighed, by the clause that says why."""
    figures: Mapping[tuple[str, str], Mapping[str, FigureRecord]] = {}
    """What programs cost, by digest and provider, and by node."""
    headroom_bytes: Mapping[str, float] = {}
    """What any one task may take beyond what is reserved for it (`controller/booking.py`)."""


class Request(Struct, frozen=True):
    """One task to place, with what the plan must consider around it.

    Groups and origins, with the privacy that binds to them, stand in its specification.
    """

    spec: TaskSpec
    spares: int
    current: str = ""
    """Where it runs now; another place costs a start."""
    reserved_on: str = ""
    """Where the snapshot has counted it already: it does not stand in its own way there."""
    failed: Mapping[str, str] = {}
    """Nodes that have just failed it, with the reason."""
    fixed: str = ""
    """It keeps this node, which is not examined: the others are placed around it."""
    reserved_bytes: int | None = None
    """What the snapshot has counted for it there; None: the manifest's limit."""
    headroom_bytes: int = 0
    """What of the headroom there is for it alone."""
    instances: float = 1.0
    """What the snapshot has counted for it there, of instances."""
    confined: Mapping[str, tuple[str, ...]] = {}
    """The only nodes where its raw input is, by the clause that is said of the others."""
    program: tuple[str, str] | None = None
    """Variant and provider that it runs as now: another one has to be worth the change."""
    bound: bool = False
    """Whether it keeps that program."""
    per_s: float = 0.0
    """How often it is asked; 0: that is not known."""
    input_bytes: float = 0.0
    """Of one request; 0: not known, its ports suggest how many."""
