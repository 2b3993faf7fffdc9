"""The peer of placement: task after task, each on the feasible node with the lowest score."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from controller.anchor.placement import NodeFacts, Request, Snapshot
from controller.anchor.placement.model import Model
from protocols.messages.hierarchy import NodeState

CPU_TERM: Final = 0.5
"""Per percent of CPU load that a node would have with the task."""
MEMORY_TERM: Final = 0.2
"""Per percent of the task memory that would be reserved."""
APART_TERM: Final = 30.0
"""Per edge whose other end would be on another node."""
STAY_TERM: Final = -40.0
"""For the node that runs the task already."""


class Greedy:
    """Looks neither ahead nor back; groups and cells bind it as they bind everyone."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._memory = Counter(snapshot.reserved_bytes)
        self._instances = Counter(snapshot.instances)
        self._cpu = Counter(snapshot.reserved_cpu_percent)
        self._placed: dict[str, str] = {}
        self._groups: dict[str, str] = {}
        self._cell: str | None = None

    def place(self, requests: Sequence[Request]) -> dict[str, str] | None:
        """Return the node of each step; None when one of them finds none."""
        for request in requests:
            spec = request.spec
            found = [
                (self._score(facts, request), facts.node, facts)
                for facts in self._snapshot.nodes
                if self._feasible(facts, request)
            ]
            if not found:
                return None
            _, node, facts = min(found, key=lambda one: one[:2])
            self._placed[spec.step] = node
            self._cell = facts.scheduler
            if spec.group:
                self._groups[spec.group] = node
            self._memory[node] += spec.manifest.limits.memory_bytes
            self._cpu[node] += spec.demand.cpu_percent
            self._instances[node] += 1
        return self._placed

    def _feasible(self, facts: NodeFacts, request: Request) -> bool:
        spec, inventory, node = request.spec, facts.inventory, facts.node
        wanted = spec.demand.accelerator
        wanted_bytes = spec.manifest.limits.memory_bytes
        return (
            facts.state is NodeState.ONLINE
            and self._cell in (None, facts.scheduler)
            and self._groups.get(spec.group, node) == node
            and (not spec.nodes or node in spec.nodes)
            and any(one.kind == spec.manifest.kind for one in inventory.executors)
            and (not wanted or any(one.kind == wanted for one in inventory.accelerators))
            and self._memory[node] + wanted_bytes <= inventory.task_memory_bytes
            and self._instances[node] < inventory.max_instances
        )

    def _score(self, facts: NodeFacts, request: Request) -> float:
        node, spec, inventory = facts.node, request.spec, facts.inventory
        load = self._cpu[node] + spec.demand.cpu_percent
        memory = self._memory[node] + spec.manifest.limits.memory_bytes
        neighbours = [self._placed[one.source] for one in spec.inputs if one.source in self._placed]
        return (
            CPU_TERM * (facts.cpu_percent + load / inventory.cpu_count)
            + MEMORY_TERM * 100 * memory / max(1, inventory.task_memory_bytes)
            + APART_TERM * sum(one != node for one in neighbours)
            + (facts.round_trip_ms or 0.0)
            + STAY_TERM * (node == request.current)
        )


def cost(model: Model, placed: dict[str, str]) -> float:
    """Return what a greedy plan costs by the objective of placement."""
    steps = [model.requests[unit.members[0]].spec.step for unit in model.units]
    nodes = [model.columns.index[placed[step]] for step in steps]
    return model.cost([0] * len(nodes), nodes)
