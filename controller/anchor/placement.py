"""Placement: feasible, rank, select over a frozen snapshot; every rejection says why.

Pure functions. The applier (the decider) holds the plan against the state it then has, because a
plan may be stale. A score is a sum of terms in comparable units (roughly milliseconds that a
request would lose); the lowest wins and the node's name breaks ties, so that equal inputs give
equal plans.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from controller.records import Placement, Rejection
from protocols.messages.hierarchy import NodeState, TaskSpec
from protocols.messages.presence import Inventory

CPU_TERM: Final = 0.5
"""Per percent of CPU load that a node would have with the task."""
MEMORY_TERM: Final = 0.2
"""Per percent of the task memory that would be reserved."""
APART_TERM: Final = 30.0
"""Per edge whose other end would be on another node: a value may travel through the cell."""
STAY_TERM: Final = -40.0
"""For the node that runs the task already: moving costs a start."""
ROUND_TRIP_TERM: Final = 1.0
"""Per millisecond to the cell's broker."""
FAILED_TERM: Final = 200.0
"""For a node that has just failed this task; better than none."""
MAX_REJECTIONS: Final = 64


class NodeFacts(Struct, frozen=True):
    """What placement knows of a node."""

    node: str
    state: NodeState
    inventory: Inventory
    cpu_percent: float = 0.0
    round_trip_ms: float | None = None


class Snapshot(Struct, frozen=True):
    """The fleet as the TA sees it, coarsely; `reserved_*` count what the TA has placed."""

    revision: int
    nodes: tuple[NodeFacts, ...]
    reserved_bytes: Mapping[str, int] = {}
    reserved_cpu_percent: Mapping[str, float] = {}
    instances: Mapping[str, int] = {}


class Request(Struct, frozen=True):
    """One task to place, with what the plan must consider around it."""

    spec: TaskSpec
    spares: int
    current: str = ""
    """Where it runs now."""
    reserved_on: str = ""
    """Where the snapshot has counted it already: it does not stand in its own way there."""
    failed: Mapping[str, str] = {}
    """Nodes that have just failed it, with the reason."""


class Reserved(Struct):
    """What one plan has taken so far, on top of the snapshot."""

    memory_bytes: dict[str, int] = {}
    cpu_percent: dict[str, float] = {}
    instances: dict[str, int] = {}


def infeasible(
    facts: NodeFacts, request: Request, snapshot: Snapshot, taken: Reserved
) -> str | None:
    """Return in one clause why this node cannot run the task; None when it can."""
    reason = _unfit(facts, request.spec)
    if reason is None:
        reason = _full(facts, request, snapshot, taken)
    return reason


def _unfit(facts: NodeFacts, spec: TaskSpec) -> str | None:
    """Whether the node is there and of the right kind."""
    inventory = facts.inventory
    if facts.state is not NodeState.ONLINE:
        return f"is {facts.state}"
    if spec.nodes and facts.node not in spec.nodes:
        return "is not among the nodes that the task names"
    if all(one.kind != spec.manifest.kind for one in inventory.executors):
        return f"has no {spec.manifest.kind} executor"
    wanted = spec.demand.accelerator
    if wanted and all(one.kind != wanted for one in inventory.accelerators):
        return f"has no {wanted}"
    return None


def _full(facts: NodeFacts, request: Request, snapshot: Snapshot, taken: Reserved) -> str | None:
    """Whether what is reserved for others leaves room for the task."""
    node, inventory = facts.node, facts.inventory
    own = node == request.reserved_on
    wanted_bytes = request.spec.manifest.limits.memory_bytes
    reserved = snapshot.reserved_bytes.get(node, 0) + taken.memory_bytes.get(node, 0)
    free_bytes = inventory.task_memory_bytes - reserved + own * wanted_bytes
    if wanted_bytes > free_bytes:
        return (
            f"has {max(0, free_bytes) >> 20} MB of task memory left, "
            f"the task asks for {wanted_bytes >> 20} MB"
        )
    instances = snapshot.instances.get(node, 0) + taken.instances.get(node, 0) - own
    if instances >= inventory.max_instances:
        return f"holds {instances} instances already, its limit"
    return None


def score(
    facts: NodeFacts,
    request: Request,
    snapshot: Snapshot,
    taken: Reserved,
    placed: Mapping[str, str],
) -> dict[str, float]:
    """Return the terms of a feasible node's score; `placed` maps steps to their nodes so far."""
    node, spec = facts.node, request.spec
    cpu = (
        facts.cpu_percent
        + (
            snapshot.reserved_cpu_percent.get(node, 0.0)
            + taken.cpu_percent.get(node, 0.0)
            + spec.demand.cpu_percent
        )
        / facts.inventory.cpu_count
    )
    memory = (
        snapshot.reserved_bytes.get(node, 0)
        + taken.memory_bytes.get(node, 0)
        + spec.manifest.limits.memory_bytes
    )
    neighbours = [placed[edge.source] for edge in spec.inputs if edge.source in placed]
    terms = {
        "cpu": CPU_TERM * cpu,
        "memory": MEMORY_TERM * 100 * memory / max(1, facts.inventory.task_memory_bytes),
        "apart": APART_TERM * sum(one != node for one in neighbours),
    }
    if facts.round_trip_ms:
        terms["round_trip"] = ROUND_TRIP_TERM * facts.round_trip_ms
    if node == request.current:
        terms["stay"] = STAY_TERM
    if node in request.failed:
        terms["failed"] = FAILED_TERM
    return {name: round(value, 3) for name, value in terms.items()}


def place(requests: Sequence[Request], snapshot: Snapshot) -> dict[str, Placement]:
    """Place the tasks of one service, in topological order; nothing chosen: see the reasons.

    Returns the placement of each task: chosen nodes best first, spares after, the terms of every
    feasible node's score, and why the others were rejected (the first `MAX_REJECTIONS`).
    """
    taken = Reserved()
    placed: dict[str, str] = {}
    plan: dict[str, Placement] = {}
    for request in requests:
        placement = _place_one(request, snapshot, taken, placed)
        plan[request.spec.task] = placement
        if placement.chosen:
            node = placement.chosen[0]
            placed[request.spec.step] = node
            if node != request.reserved_on:
                spec = request.spec
                wanted_bytes = spec.manifest.limits.memory_bytes
                cpu_percent = spec.demand.cpu_percent
                taken.memory_bytes[node] = taken.memory_bytes.get(node, 0) + wanted_bytes
                taken.cpu_percent[node] = taken.cpu_percent.get(node, 0.0) + cpu_percent
                taken.instances[node] = taken.instances.get(node, 0) + 1
    return plan


def _place_one(
    request: Request, snapshot: Snapshot, taken: Reserved, placed: Mapping[str, str]
) -> Placement:
    rejected: list[Rejection] = []
    scores: dict[str, dict[str, float]] = {}
    for facts in snapshot.nodes:
        reason = infeasible(facts, request, snapshot, taken)
        if reason is None:
            scores[facts.node] = score(facts, request, snapshot, taken, placed)
        elif len(rejected) < MAX_REJECTIONS:
            rejected.append(Rejection(facts.node, "feasible", reason))
    ranked = sorted(scores, key=lambda node: (sum(scores[node].values()), node))
    chosen = tuple(ranked[: 1 + request.spares])
    if chosen:
        rejected += [
            Rejection(node, "rank", f"{chosen[0]} scores better")
            for node in ranked[1 + request.spares :][: MAX_REJECTIONS - len(rejected)]
        ]
        reason = f"{chosen[0]} has the lowest score of {len(scores)} feasible nodes"
    elif snapshot.nodes:
        reason = f"none of {len(snapshot.nodes)} nodes can run it"
    else:
        reason = "no node has joined yet"
    return Placement(
        snapshot.revision,
        chosen,
        {node: scores[node] for node in ranked[:MAX_REJECTIONS]},
        tuple(rejected),
        reason,
    )
