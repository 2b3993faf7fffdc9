"""Nodes in danger: a lasting load, heat or bad link has tasks leave, one at a time."""

from collections.abc import Callable

from controller.desk import Desk
from controller.scheduler import danger
from controller.scheduler.complaints import Complaints
from controller.scheduler.copies import CopyState, TaskEntry
from controller.scheduler.danger import Danger, NodeWatch
from controller.scheduler.envelope import may_move
from controller.scheduler.gauges import LATENCY, Gauges
from controller.scheduler.nodes import NodeTable
from controller.scheduler.table import TaskTable
from protocols.messages import LinkReport, LoadReport


class Relief:
    """Watches load and link of every node on which something is the matter."""

    def __init__(
        self,
        desk: Desk,
        nodes: NodeTable,
        table: TaskTable,
        gauges: Gauges,
        complaints: Complaints,
        moving: Callable[[TaskEntry, str, str], None],
    ) -> None:
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._gauges = gauges
        self._complaints = complaints
        self._moving = moving
        """Told of each move, with what is done and its cause."""
        self._watches: dict[str, NodeWatch] = {}

    def load(self, node: str, load: LoadReport, cause: str) -> None:
        """Take in a load report; a lasting danger has one task leave the node."""
        problem = danger.of_load(load)
        watch = self._watch(node, problem)
        if watch is None:
            return
        lasting = danger.watch_load(watch.load, load, self._desk.now_ms)
        if lasting and problem and self._relieve(node, f"{node}: {problem}", cause):
            watch.load.again()
        self._rest(node, watch)

    def link(self, node: str, link: LinkReport, cause: str) -> None:
        """Take in a link report; a lasting danger, or no carrier, has one task leave the node."""
        problem = danger.of_link(link)
        watch = self._watch(node, problem)
        if watch is None:
            return
        lasting = danger.watch_link(watch.link, link, self._desk.now_ms)
        if lasting and problem and self._relieve(node, f"{node}: {problem}", cause):
            watch.link.again()
        self._rest(node, watch)

    def troubles(self, entry: TaskEntry) -> bool:
        """Whether something is the matter with the node that a task runs on."""
        return entry.current is not None and entry.current.node in self._watches

    def node_lost(self, node: str) -> None:
        """Forget what was the matter with a node."""
        self._watches.pop(node, None)

    def _watch(self, node: str, problem: str) -> NodeWatch | None:
        watch = self._watches.get(node)
        if watch is None and problem:
            watch = self._watches[node] = NodeWatch.new()
        return watch

    def _rest(self, node: str, watch: NodeWatch) -> None:
        if watch.quiet():
            self._watches.pop(node, None)

    def _relieve(self, node: str, problem: str, cause: str) -> bool:
        """Move the task that suffers most to a better node of its envelope, if there is one."""
        here = self._nodes.loads[self._nodes.slots[node]]
        for entry in self._suffering(node):
            for other in self._table.usable(entry):
                slot = self._nodes.slots[other]
                there, link = self._nodes.loads[slot], self._nodes.links[slot]
                if other == node or not danger.better(here, there, link):
                    continue
                if not may_move(entry.grant):
                    one = Danger(entry.task, LATENCY, 0.0, 0.0, 0.0)
                    why = [(f"move to {other}", "the envelope does not allow it")]
                    self._complaints.say(entry, one, why, cause, problem)
                    break
                entry.wanted, entry.moved_ms = other, self._desk.now_ms
                self._moving(entry, f"{problem}: move to {other}", cause)
                self._table.mark(entry, cause)
                return True
        return False

    def _suffering(self, node: str) -> list[TaskEntry]:
        """Return the tasks that a node in danger may lose, the one in most danger first."""
        found = []
        for task in self._table.on(node):
            entry = self._table.tasks[task]
            current = entry.current
            if (
                current is not None
                and current.node == node
                and current.state is CopyState.READY
                and entry.coming is None
                and self._desk.now_ms - entry.moved_ms >= danger.MOVE_QUIET_MS
            ):
                use = max((one.use for one in self._gauges.uses(entry)), default=0.0)
                found.append((-use, task, entry))
        return [entry for *_, entry in sorted(found, key=lambda one: one[:2])]
