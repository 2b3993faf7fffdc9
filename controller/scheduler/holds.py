"""What every anchor's tasks have reserved on the nodes of the cell: the scheduler sees all grants.

An anchor reserves on what it knows; of tasks of other anchors it hears by node summaries, later.
Where two reserve the same room at once, the grant that comes first has it, and of the other one the
nodes that are too full are not taken: its anchor is told, and replaces them.
"""

from collections.abc import Callable, Container, Mapping
from typing import Final

from msgspec import Struct, structs

from controller.booking import may_grow_to_by
from controller.scheduler.copies import TaskEntry
from protocols.messages import EnvelopeGrant, Escalation
from protocols.messages.hierarchy import MAX_RESERVED, Attempt, Reserved
from protocols.messages.presence import Inventory
from protocols.messages.task import RESTING_SHARE

ATTEMPTS_MAX: Final = 64
_MB: Final = 20


class Hold(Struct, frozen=True):
    """What one task has on one node."""

    anchor: str
    memory_bytes: int
    cpu_percent: float
    growth_bytes: int = 0
    """What it may take beyond its memory while it is asked (`controller/booking.py`)."""


class Holds:
    """Reservations by node and task, as the taken grants and the copies of tasks make them."""

    def __init__(self) -> None:
        self._on: dict[str, dict[str, Hold]] = {}
        self._nodes_of: dict[str, tuple[str, ...]] = {}
        self._touched: set[str] = set()
        self._changed: set[str] = set()

    def touch(self, task: str) -> None:
        """Have a task looked at: its grant or its copies have changed."""
        self._touched.add(task)

    def settle(self, tasks: Mapping[str, TaskEntry]) -> None:
        """Bring the sums up to the tasks that have changed."""
        for task in self._touched:
            entry = tasks.get(task)
            after = _holds(entry) if entry is not None else {}
            for node in {*self._nodes_of.get(task, ()), *after}:
                before = self._on.get(node, {}).get(task)
                if before != after.get(node):
                    self._changed.add(node)
                    self._put(node, task, after.get(node))
            if after:
                self._nodes_of[task] = tuple(after)
            else:
                self._nodes_of.pop(task, None)
        self._touched.clear()

    def take_changed(self) -> set[str]:
        """Return the nodes on which somebody has more or less, once."""
        changed, self._changed = self._changed, set()
        return changed

    def _put(self, node: str, task: str, hold: Hold | None) -> None:
        held = self._on.setdefault(node, {})
        if hold is None:
            held.pop(task, None)
        else:
            held[task] = hold
        if not held:
            del self._on[node]

    def reserved_bytes(self, node: str) -> int:
        """Return what all tasks have reserved on a node."""
        return sum(one.memory_bytes for one in self._on.get(node, {}).values())

    def promised_bytes(self, node: str) -> int:
        """Return what all tasks may take on a node, if all are asked at once."""
        return sum(one.memory_bytes + one.growth_bytes for one in self._on.get(node, {}).values())

    def held_bytes(self, task: str, node: str) -> int:
        """Return what a task has on a node."""
        hold = self._on.get(node, {}).get(task)
        return hold.memory_bytes if hold is not None else 0

    def others(self, node: str, anchor: str) -> tuple[Reserved, ...]:
        """Return what tasks of other anchors have there; the last one stands for all beyond."""
        found = [
            Reserved(task, hold.memory_bytes, hold.cpu_percent, hold.growth_bytes)
            for task, hold in sorted(self._on.get(node, {}).items())
            if hold.anchor != anchor
        ]
        if len(found) > MAX_RESERVED:
            beyond = found[MAX_RESERVED - 1 :]
            memory_bytes = sum(one.memory_bytes for one in beyond)
            cpu_percent = sum(one.cpu_percent for one in beyond)
            most = max(one.growth_bytes for one in beyond)
            found[MAX_RESERVED - 1 :] = [Reserved(beyond[0].task, memory_bytes, cpu_percent, most)]
        return tuple(found)

    def spares_on(self, node: str, tasks: Mapping[str, TaskEntry]) -> list[TaskEntry]:
        """Return the tasks that have reserved room on a node and can do without it."""
        found = [tasks[name] for name in sorted(self._on.get(node, ())) if name in tasks]
        return [
            one
            for one in found
            if one.on_node(node) is None and not one.awaiting_node and len(one.grant.nodes) > 1
        ]

    def refused(
        self,
        grant: EnvelopeGrant,
        inventory: Callable[[str], Inventory | None],
        *,
        new: bool,
    ) -> dict[str, str]:
        """Return the nodes of a grant that cannot be taken, with the reason.

        Where the task takes no more than it has already, nothing is refused; nor is it where
        nobody knows what the node has. Of a `new` task a copy may run on its current node.
        """
        found: dict[str, str] = {}
        task = grant.spec.task
        wanted, grows_to = _asked(grant), may_grow_to_by(grant)
        one = RESTING_SHARE if grows_to else 1.0
        if new and grant.current_node:
            wanted.setdefault(grant.current_node, grant.spec.manifest.limits.memory_bytes)
        for node, asked in wanted.items():
            held, has = self._on.get(node, {}), inventory(node)
            own = held.get(task)
            if has is None or (own is not None and asked <= own.memory_bytes):
                continue
            others = [one for name, one in held.items() if name != task]
            taken = sum(one.memory_bytes for one in others)
            most = max((one.growth_bytes for one in others), default=0)
            if taken + asked + max(most, grows_to - asked) > has.task_memory_bytes:
                found[node] = (
                    f"tasks have reserved {taken >> _MB} of {has.task_memory_bytes >> _MB} MB there"
                )
            elif own is None and sum(map(_counts, held.values())) + one > has.max_instances:
                found[node] = f"it holds {len(held)} tasks already, its limit"
        return found


def refusal(
    grant: EnvelopeGrant,
    refused: Mapping[str, str],
    number: str,
    *,
    broken: bool = False,
    held_bytes: int = 0,
) -> Escalation:
    """Return what an anchor is told, once by each number, of the nodes that were not taken.

    `broken`: none was, nor is there an earlier grant; of that the task has `held_bytes` where it
    runs.
    """
    return Escalation(
        number[-128:],
        grant.spec.task,
        grant.generation,
        f"there is no room beside other tasks on {', '.join(refused)}"[:2000],
        tuple(Attempt(f"run on {node}", why) for node, why in refused.items())[:ATTEMPTS_MAX],
        grant.epoch_to,
        broken=broken,
        refused=tuple(refused),
        held_bytes=held_bytes,
    )


def without(grant: EnvelopeGrant, refused: Container[str]) -> EnvelopeGrant | None:
    """Return a grant without some of its nodes; None: nothing is left of it."""
    asked = {node: size for node, size in _asked(grant).items() if node not in refused}
    if not asked:
        return None
    # A copy on a node that was not taken is not waited for, nor adopted.
    current = "" if grant.current_node in refused else grant.current_node
    return structs.replace(
        grant, nodes=tuple(asked), reserved=tuple(asked.values()), current_node=current
    )


def _counts(hold: Hold) -> float:
    """Return what a task counts as, of the instances that a node takes."""
    return RESTING_SHARE if hold.growth_bytes else 1.0


def _asked(grant: EnvelopeGrant) -> dict[str, int]:
    """Return what a grant reserves, by node."""
    if len(grant.reserved) == len(grant.nodes):
        return dict(zip(grant.nodes, grant.reserved, strict=True))
    return dict.fromkeys(grant.nodes, grant.spec.manifest.limits.memory_bytes)


def _holds(entry: TaskEntry) -> dict[str, Hold]:
    """Return what a task has: its envelope, and what its copies were assigned with."""
    found = _asked(entry.grant)
    if entry.awaiting_node and entry.grant.current_node:
        least = entry.grant.spec.manifest.limits.memory_bytes
        found.setdefault(entry.grant.current_node, least)
    for copy in entry.copies():
        least = copy.grant.spec.manifest.limits.memory_bytes
        size = _asked(copy.grant).get(copy.node, least)
        found[copy.node] = max(found.get(copy.node, 0), size)
    runs = entry.current.node if entry.current is not None else entry.grant.nodes[0]
    share = entry.grant.spec.demand.cpu_percent
    grows_to = may_grow_to_by(entry.grant)
    return {
        node: Hold(entry.anchor, size, share if node == runs else 0.0, max(0, grows_to - size))
        for node, size in found.items()
    }
