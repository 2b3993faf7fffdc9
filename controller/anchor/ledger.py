"""What is set aside on each node, summed over the records of the tasks.

Every task record says what it reserves and where (`TaskRecord.reserved`); the ledger is nothing but
the sum, so that a reservation is durable with its task and gone with it. Beside the sum a node has
headroom: what the one of its elastic tasks that grows most may take beyond its own reservation.
What tasks of other anchors have on the nodes is said by the nodes' schedulers, and stands beside
the sums.
"""

from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct

from controller.anchor.placement.sums import Sums
from controller.booking import may_grow_to
from controller.records import TaskRecord
from protocols.messages.hierarchy import Reserved
from protocols.messages.presence import Inventory
from protocols.messages.task import RESTING_SHARE


class Hold(Struct, frozen=True):
    """What one task takes."""

    memory_bytes: Mapping[str, int] = {}
    """By node."""
    cpu_node: str = ""
    """Where it runs or is to run."""
    cpu_percent: float = 0.0
    """Of one core, there."""
    grows_to: int = 0
    """What it may take on a node while it is asked; 0: nothing beyond its memory."""

    @property
    def instances(self) -> float:
        """What it counts as, of the instances that a node takes."""
        return RESTING_SHARE if self.grows_to else 1.0

    def growth_bytes(self, node: str) -> int:
        """Return what it may take on a node beyond what is set aside for it."""
        return max(0, self.grows_to - self.memory_bytes[node])


_NOTHING = Hold()


class Ledger:
    """Sums over all tasks, kept as they change."""

    def __init__(self) -> None:
        self.memory_bytes = Sums()
        self.cpu_percent = Sums()
        self.instances = Sums()
        self.headroom_bytes = Sums()
        self._growths: dict[str, dict[str, int]] = {}
        """By node and task, of those that may grow."""
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

    def instances_of(self, task: str) -> float:
        """Return what a task counts as on each of its nodes."""
        return self._holds.get(task, _NOTHING).instances

    def others(self, node: str) -> tuple[Reserved, ...]:
        """Return what they have on a node; a task that is taken over from one counts here alone."""
        return tuple(one for one in self._others.get(node, ()) if one.task not in self._holds)

    def is_other(self, task: str) -> bool:
        """Whether a scheduler has said that a task is of another anchor."""
        return any(one.task == task for held in self._others.values() for one in held)

    def taken_bytes(self, node: str) -> int:
        """Return what is set aside on a node, by whomever, with the headroom."""
        return self.booked_bytes(node) + self.headroom(node)

    def booked_bytes(self, node: str) -> int:
        """Return what is set aside on a node, by whomever, without the headroom."""
        beside = sum(one.memory_bytes for one in self.others(node))
        return int(self.memory_bytes.get(node, 0)) + beside

    def headroom(self, node: str, without: Collection[str] = ()) -> int:
        """Return what any one task may take on a node beyond what is set aside for it."""
        most = max((one.growth_bytes for one in self.others(node)), default=0)
        if not without:
            return max(most, int(self.headroom_bytes.get(node, 0)))
        growths = self._growths.get(node, {})
        own = (size for task, size in growths.items() if task not in without)
        return max(most, max(own, default=0))

    def taken_cpu_percent(self, node: str) -> float:
        """Return the share of a node's cores that is set aside, of one core, by whomever."""
        beside = sum(one.cpu_percent for one in self.others(node))
        return self.cpu_percent.get(node, 0.0) + beside

    def taken_instances(self, node: str) -> float:
        """Return how many instances tasks have room for on a node, whosever they are."""
        beside = (RESTING_SHARE if one.growth_bytes else 1.0 for one in self.others(node))
        return self.instances.get(node, 0.0) + sum(beside)

    def put(self, task: TaskRecord) -> None:
        """Replace what a task takes."""
        name = task.spec.task
        self._take(name, -1)
        on = task.home
        cpu_percent = task.spec.demand.cpu_percent
        self._holds[name] = Hold(task.reserved, on, cpu_percent, may_grow_to(task))
        self._take(name, 1)

    def drop(self, task: str) -> None:
        """Give back what a task takes."""
        self._take(task, -1)
        self._holds.pop(task, None)

    def tasks_on(self, node: str) -> tuple[str, ...]:
        """Return the tasks that take room on a node."""
        return tuple(sorted(self._tasks.get(node, ())))

    def overbooked(
        self, changes: Iterable[TaskRecord], inventories: Mapping[str, Inventory]
    ) -> set[str]:
        """Return the nodes that would hold more than they have, if tasks were as these records say.

        A node that gets nothing more by the changes is not the changes' fault and is left out.
        """
        extra: dict[str, int] = {}
        more: dict[str, float] = {}
        growths: dict[str, int] = {}
        names = set()
        for task in changes:
            names.add(task.spec.task)
            grows_to = may_grow_to(task)
            now = self._holds.get(task.spec.task, _NOTHING)
            one = RESTING_SHARE if grows_to else 1.0
            for node, held in now.memory_bytes.items():
                extra[node] = extra.get(node, 0) - held
                more[node] = more.get(node, 0.0) - now.instances
            for node, wanted in task.reserved.items():
                extra[node] = extra.get(node, 0) + wanted
                more[node] = more.get(node, 0.0) + one
                growths[node] = max(growths.get(node, 0), grows_to - wanted)
        for node in extra:
            after = max(self.headroom(node, names), growths.get(node, 0))
            extra[node] += after - self.headroom(node)
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
            _add(self.instances, node, sign * hold.instances)
            self._grow(node, task, hold.growth_bytes(node) if sign > 0 else 0)
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

    def _grow(self, node: str, task: str, size: int) -> None:
        growths = self._growths.get(node)
        if growths is None:
            if not size:
                return
            growths = self._growths[node] = {}
        growths.pop(task, None)
        if size:
            growths[task] = size
        if growths:
            self.headroom_bytes[node] = max(growths.values())
        else:
            del self._growths[node]
            self.headroom_bytes.pop(node, None)


def _add(sums: Sums, node: str, change: float) -> None:
    after = sums.get(node, 0) + change
    if after:
        sums[node] = after
    else:
        sums.pop(node, None)
