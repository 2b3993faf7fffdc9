"""What is set aside on each node, summed over the records of the tasks.

Every task record says what it reserves and where (`TaskRecord.reserved`); the ledger is nothing but
the sum, so that a reservation is durable with its task and gone with it. What tasks of other
anchors have on the nodes is said by the nodes' schedulers, and stands beside the sums.
"""

from collections.abc import Mapping

from msgspec import Struct

from controller.anchor.placement.sums import Sums
from controller.records import TaskRecord
from protocols.messages.hierarchy import Reserved
from protocols.messages.presence import Inventory


class Hold(Struct, frozen=True):
    """What one task takes."""

    memory_bytes: Mapping[str, int] = {}
    """By node."""
    cpu_node: str = ""
    """Where it runs or is to run."""
    cpu_percent: float = 0.0
    """Of one core, there."""


_NOTHING = Hold()


class Ledger:
    """Sums over all tasks, kept as they change."""

    def __init__(self) -> None:
        self.memory_bytes = Sums()
        self.cpu_percent = Sums()
        self.instances = Sums()
        self._holds: dict[str, Hold] = {}
        self._tasks: dict[str, set[str]] = {}
        self._others: dict[str, tuple[Reserved, ...]] = {}

    def put_others(self, node: str, others: tuple[Reserved, ...]) -> None:
        """Take in what tasks of other anchors have reserved on a node, as its scheduler says."""
        if others:
            self._others[node] = others
        else:
            self._others.pop(node, None)

    def shared(self) -> tuple[str, ...]:
        """Return the nodes where tasks of other anchors have something."""
        return tuple(self._others)

    def others(self, node: str) -> tuple[Reserved, ...]:
        """Return what they have on a node; a task that is taken over from one counts here alone."""
        return tuple(one for one in self._others.get(node, ()) if one.task not in self._holds)

    def is_other(self, task: str) -> bool:
        """Whether a scheduler has said that a task is of another anchor."""
        return any(one.task == task for held in self._others.values() for one in held)

    def taken_bytes(self, node: str) -> int:
        """Return what is set aside on a node, by whomever."""
        beside = sum(one.memory_bytes for one in self.others(node))
        return int(self.memory_bytes.get(node, 0)) + beside

    def taken_cpu_percent(self, node: str) -> float:
        """Return the share of a node's cores that is set aside, of one core, by whomever."""
        beside = sum(one.cpu_percent for one in self.others(node))
        return self.cpu_percent.get(node, 0.0) + beside

    def taken_instances(self, node: str) -> int:
        """Return how many tasks have room on a node, whosever they are."""
        return int(self.instances.get(node, 0)) + len(self.others(node))

    def put(self, task: TaskRecord) -> None:
        """Replace what a task takes."""
        name = task.spec.task
        self._take(name, -1)
        on = task.node or (task.nodes[0] if task.nodes else "")
        self._holds[name] = Hold(task.reserved, on, task.spec.demand.cpu_percent)
        self._take(name, 1)

    def drop(self, task: str) -> None:
        """Give back what a task takes."""
        self._take(task, -1)
        self._holds.pop(task, None)

    def tasks_on(self, node: str) -> tuple[str, ...]:
        """Return the tasks that take room on a node."""
        return tuple(sorted(self._tasks.get(node, ())))

    def overbooked(
        self, changes: Mapping[str, Mapping[str, int]], inventories: Mapping[str, Inventory]
    ) -> set[str]:
        """Return the nodes that would hold more than they have, if tasks took these bytes instead.

        A node that gets nothing more by the changes is not the changes' fault and is left out.
        """
        extra: dict[str, int] = {}
        more: dict[str, int] = {}
        for task, reserved in changes.items():
            for node, held in self._holds.get(task, _NOTHING).memory_bytes.items():
                extra[node] = extra.get(node, 0) - held
                more[node] = more.get(node, 0) - 1
            for node, wanted in reserved.items():
                extra[node] = extra.get(node, 0) + wanted
                more[node] = more.get(node, 0) + 1
        found: set[str] = set()
        for node, change in extra.items():
            has = inventories.get(node)
            room = has.task_memory_bytes if has else 0
            slots = has.max_instances if has else 0
            full = change > 0 and self.taken_bytes(node) + change > room
            crowded = more[node] > 0 and self.taken_instances(node) + more[node] > slots
            if full or crowded:
                found.add(node)
        return found

    def _take(self, task: str, sign: int) -> None:
        hold = self._holds.get(task)
        if hold is None:
            return
        for node, held in hold.memory_bytes.items():
            _add(self.memory_bytes, node, sign * held)
            _add(self.instances, node, sign)
            tasks = self._tasks.setdefault(node, set())
            if sign > 0:
                tasks.add(task)
            else:
                tasks.discard(task)
                if not tasks:
                    del self._tasks[node]
                    self.memory_bytes.pop(node, None)
        if hold.cpu_node:
            cpu = self.cpu_percent.get(hold.cpu_node, 0.0) + sign * hold.cpu_percent
            self.cpu_percent[hold.cpu_node] = max(0.0, cpu)


def _add(sums: Sums, node: str, change: int) -> None:
    after = sums.get(node, 0) + change
    if after:
        sums[node] = after
    else:
        sums.pop(node, None)
