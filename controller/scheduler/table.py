"""The task table: entries and their copies, by task, service and node; what has changed."""

from msgspec import Struct

from controller.decider import Send
from controller.desk import Desk
from controller.scheduler.copies import Copy, CopyState, TaskEntry
from controller.scheduler.holds import Holds
from controller.scheduler.nodes import AWAY, NodeTable
from controller.scheduler.releases import Releases
from protocols.messages.hierarchy import EnvelopeGrant, NodeState


class Away(Struct, frozen=True):
    """A task of another scheduler, and where it is served."""

    anchor: str
    copy: Copy


class TaskTable:
    """What the scheduler holds of tasks; whoever changes an entry marks it to be settled."""

    def __init__(self, desk: Desk, nodes: NodeTable) -> None:
        self.desk = desk
        self.nodes = nodes
        self.tasks: dict[str, TaskEntry] = {}
        self.services: dict[str, tuple[str, ...]] = {}
        self.releases = Releases()
        self.holds = Holds()
        self.away: dict[str, Away] = {}
        """Tasks of other schedulers, of services whose clients may be here."""
        self.withdrawn: dict[str, str] = {}
        """Tasks that their anchor has taken back while their service stays: why."""
        self._dirty: dict[str, str] = {}
        self._changed_services: dict[str, None] = {}
        self._changed_nodes: set[str] = set()
        self._by_node: dict[str, set[str]] = {}

    def of_service(self, service: str) -> tuple[str, ...]:
        """Return the tasks of a service in topological order; empty when it has none here."""
        return self.services.get(service, ())

    def may_answer(self, node: str, service: str) -> bool:
        """Whether a task of a service may be on a node."""
        found = (self.tasks.get(task) for task in self.of_service(service))
        return any(entry is not None and entry.may_be_on(node) for entry in found)

    def anchor_of(self, service: str) -> str:
        """Return the anchor that owns the tasks of a service here; empty when there is none."""
        for task in self.of_service(service):
            held = self.tasks.get(task) or self.away.get(task)
            if held is not None:
                return held.anchor
        return ""

    def on(self, node: str) -> tuple[str, ...]:
        """Return the tasks that have a copy on a node."""
        return tuple(sorted(self._by_node.get(node, ())))

    # What has changed.

    def mark(self, entry: TaskEntry, cause: str) -> None:
        """Have an entry settled at the end of this turn."""
        self._dirty.setdefault(entry.task, cause)

    def take_marked(self) -> dict[str, str]:
        """Return the tasks to settle and their causes, once."""
        marked, self._dirty = self._dirty, {}
        return marked

    def service_changed(self, service: str) -> None:
        """Have the route of a service looked at."""
        self._changed_services[service] = None

    def take_changed_nodes(self) -> set[str]:
        """Return the nodes that have won or lost a copy, once."""
        changed, self._changed_nodes = self._changed_nodes, set()
        return changed

    def take_changed_services(self) -> dict[str, None]:
        """Return the services whose route may have changed, once."""
        changed, self._changed_services = self._changed_services, {}
        return changed

    def restored(self, task: str) -> None:
        """Forget why a task runs nowhere: it is over."""
        if self.withdrawn.pop(task, None) is not None:
            self.service_changed(task.rpartition(".")[0])

    def why_withdrawn(self, service: str) -> str:
        """Return why a task of a service runs nowhere; empty when none was taken back."""
        found = (why for task, why in self.withdrawn.items() if task.rpartition(".")[0] == service)
        return next(found, "")

    # Copies.

    def forget(self, entry: TaskEntry, reason: str, cause: str) -> None:
        """Release every copy of a task and drop it."""
        del self.tasks[entry.task]
        self.holds.touch(entry.task)
        for copy in entry.copies():
            self.release(copy.node, entry.task, copy.highest, reason, cause)
            self.leave(copy.node, entry.task)
        self._left(entry.grant.service)

    def part(self, entry: TaskEntry, stays: Copy | None, cause: str) -> None:
        """Drop a task that another scheduler gets; all its copies are released but one."""
        del self.tasks[entry.task]
        self.holds.touch(entry.task)
        for copy in entry.copies():
            if stays is None or copy.node != stays.node:
                self.release(copy.node, entry.task, copy.highest, "it has moved", cause)
            self.leave(copy.node, entry.task)
        self._left(entry.grant.service)

    def put_away(self, task: str, away: Away | None) -> None:
        """Note where a task of another scheduler is served; None: that is no more of interest."""
        old = self.away.pop(task, None)
        if away is not None:
            # While we have it ourselves, ours counts; it may be taken from us at any time.
            self.away[task] = away
            self.services[away.copy.grant.service] = away.copy.grant.plan_tasks
            self.service_changed(away.copy.grant.service)
        if old is not None:
            self._left(old.copy.grant.service)

    def gone_on(self, grant: EnvelopeGrant, anchor: str) -> bool:
        """Whether another anchor has said since that it has a task served elsewhere."""
        away = self.away.get(grant.spec.task)
        if away is None or away.anchor == anchor:
            return False
        return (away.copy.generation, away.copy.epoch) > (grant.generation, grant.epoch_to)

    def copies_of(self, task: str) -> list[Copy]:
        """Return the copies that serve a task, wherever; the one that routes point to first."""
        entry, away = self.tasks.get(task), self.away.get(task)
        if entry is not None and (away is None or not entry.grant.arriving):
            found = entry.served() if serves(entry) else []
            there = [one for one in found if self.nodes.state(one.node) not in AWAY]
            # What another anchor has granted since counts where its first one takes nothing back.
            if there or not self.gone_on(entry.grant, entry.anchor):
                return found
        return [away.copy] if away is not None and away.copy.state is CopyState.READY else []

    def _left(self, service: str) -> None:
        self.service_changed(service)
        grants = [one.grant for one in self.tasks.values()]
        grants += [one.copy.grant for one in self.away.values()]
        if not any(one.service == service for one in grants):
            self.services.pop(service, None)

    def abandon(self, entry: TaskEntry, copy: Copy, reason: str, cause: str) -> None:
        """Let go of a copy; its node is told, unless it has another one."""
        other = entry.on_node(copy.node)
        if other is None:
            self.leave(copy.node, entry.task)
            self.release(copy.node, entry.task, copy.highest, reason, cause)
        else:
            other.highest = max(other.highest, copy.highest)

    def join(self, node: str, task: str) -> None:
        """Note that a node has a copy of a task."""
        self._by_node.setdefault(node, set()).add(task)
        self.holds.touch(task)
        self._counted(node)

    def leave(self, node: str, task: str) -> None:
        """Note that a node has no copy of a task any more."""
        held = self._by_node.get(node, set())
        held.discard(task)
        self.holds.touch(task)
        if not held:
            self._by_node.pop(node, None)
        self._counted(node)

    def _counted(self, node: str) -> None:
        self._changed_nodes.add(node)
        slot = self.nodes.slots.get(node)
        if slot is not None:
            self.nodes.copies[slot] = len(self._by_node.get(node, ()))

    def release(self, node: str, task: str, epoch: int, reason: str, cause: str) -> None:
        """Have a node give a task up, unless the node is lost."""
        if self.nodes.state(node) in AWAY:
            return
        send = self.releases.begin(node, task, epoch, reason, cause, self.desk.now_ms)
        self.say(send)

    def say(self, send: Send) -> None:
        """Send a message that is made already."""
        self.desk.output.sends.append(send)

    def usable(self, entry: TaskEntry) -> list[str]:
        """Return the nodes of an envelope that can run its task now, best first."""
        return [
            node
            for node in entry.grant.nodes
            if self.nodes.state(node) is NodeState.ONLINE and node not in entry.failures
        ]


def serves(entry: TaskEntry) -> bool:
    """Whether a task is served now."""
    return entry.current is not None and entry.current.state is CopyState.READY
