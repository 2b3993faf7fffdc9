"""What the scheduler does with granted tasks: assign, adopt, move, release, escalate.

One rule, `_settle`, brings an entry closer to its envelope; everything that happens only updates
what is known and marks the entry. Nothing here leaves the envelope: nodes come from the grant,
epochs from its lease.
"""

from collections.abc import Callable, Iterable
from typing import Final

from controller.decider import Send, ToNode
from controller.scheduler import danger, upward
from controller.scheduler.copies import Copy, CopyState, Stamp, TaskEntry
from controller.scheduler.nodes import NodeTable
from controller.scheduler.releases import RESEND_MS, Releases
from protocols.base import EPOCH_LIMIT
from protocols.messages import (
    Assign,
    EnvelopeGrant,
    EnvelopeRevoke,
    EscalationAnswer,
    LinkReport,
    LoadReport,
    Status,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Holding
from protocols.messages.task import InstanceState, Reconcile

ESCALATE_AGAIN_MS: Final = 3000
ESCALATE_MAX_MS: Final = 60_000
"""An escalation that was refused, or not answered, is repeated within these bounds."""
AWAIT_NODE_MS: Final = 3000
"""After a restart: how long the node that ran a task may take to come with it."""
MAX_ORPHANS: Final = 10_000

_DEAD_STATES: Final = {InstanceState.FAILED, InstanceState.STOPPED}


class Mover:
    """The task table of a scheduler and the rule that settles it."""

    def __init__(
        self,
        name: str,
        nodes: NodeTable,
        tell: Callable[[Send], None],
    ) -> None:
        self.name = name
        self.nodes = nodes
        self.tasks: dict[str, TaskEntry] = {}
        self.now_ms = 0
        self.welcomed = False
        self._tell = tell
        self._services: dict[str, tuple[str, ...]] = {}
        self._dirty: dict[str, str] = {}
        self._changed_services: set[str] = set()
        self._changed_nodes: set[str] = set()
        self._by_node: dict[str, set[str]] = {}
        self._orphans: dict[tuple[str, str], tuple[Stamp, Holding]] = {}
        self._releases = Releases()
        self._reported: dict[str, tuple[str, int, str]] = {}

    # What others read.

    def service_tasks(self, service: str) -> tuple[str, ...]:
        """Return the tasks of a service in topological order; empty when it has none here."""
        return self._services.get(service, ())

    def tasks_on(self, node: str) -> tuple[str, ...]:
        """Return the tasks that have a copy on a node."""
        return tuple(sorted(self._by_node.get(node, ())))

    def take_changed_nodes(self) -> set[str]:
        """Return the nodes that have won or lost a copy, once."""
        changed, self._changed_nodes = self._changed_nodes, set()
        return changed

    def take_changed_services(self) -> set[str]:
        """Return the services whose route may have changed, once."""
        changed, self._changed_services = self._changed_services, set()
        return changed

    # What the TA says.

    def grant(self, grant: EnvelopeGrant, anchor: str, tenant: str, cause: str) -> None:
        """Take in an envelope: a new task, a newer generation, or other nodes and epochs."""
        task = grant.spec.task
        entry = self.tasks.get(task)
        if entry is None:
            first = grant.epoch_from
            entry = TaskEntry(grant, anchor, tenant, self.now_ms, first, first)
            entry.awaiting_node = bool(grant.current_node)
            self.tasks[task] = entry
            self._adopt_orphans(entry, cause)
        elif grant.generation < entry.grant.generation:
            return
        else:
            entry.grant = grant
            entry.anchor = anchor
            entry.next_epoch = max(entry.next_epoch, grant.epoch_from)
            # A grant after a failure is the TA's word that the node may be tried again.
            entry.failures = {}
        entry.escalated, entry.refusals = "", 0
        self._services[grant.service] = grant.plan_tasks
        self._mark(entry, cause)

    def revoke(self, revoke: EnvelopeRevoke, cause: str) -> None:
        """Give a task up: release its copies and forget it."""
        entry = self.tasks.get(revoke.task)
        if entry is None or entry.grant.generation > revoke.generation:
            return
        del self.tasks[revoke.task]
        self._reported.pop(revoke.task, None)
        for copy in entry.copies():
            self._release(copy.node, entry.task, copy.highest, revoke.reason, cause)
            self._leave(copy.node, entry.task)
        service = entry.grant.service
        self._changed_services.add(service)
        if not any(one.grant.service == service for one in self.tasks.values()):
            self._services.pop(service, None)

    def answered(self, answer: EscalationAnswer, cause: str) -> None:
        """Take in the answer to an escalation."""
        entry = self.tasks.get(answer.task)
        if entry is None or entry.escalated != answer.number:
            return
        entry.escalated = ""
        if answer.granted:
            self._mark(entry, cause)
        else:
            entry.refused_ms = self.now_ms

    def anchor_welcomed(self, cause: str) -> None:
        """Release what nodes hold beyond the grants: the TA has now granted all it holds."""
        self.welcomed = True
        for (node, task), (_, holding) in self._orphans.items():
            self._release(node, task, holding.epoch, "no envelope for this task", cause)
        self._orphans.clear()

    # What nodes say.

    def status(self, node: str, stamp: Stamp, status: Status, cause: str) -> None:
        """Take in what became of an assignment; a word older than the last one is ignored."""
        over = status.state is InstanceState.STOPPED
        self._releases.confirm(node, status.task, status.epoch, over=over)
        entry = self.tasks.get(status.task)
        copy = next(
            (
                one
                for one in (entry.copies() if entry else [])
                if one.node == node and one.epoch == status.epoch
            ),
            None,
        )
        if entry is not None and copy is not None:
            self._learn(entry, copy, stamp, status.state, cause, status.reason)
            return
        mine = entry.on_node(node) if entry is not None else None
        if entry is not None and mine is not None and mine.epoch < status.epoch:
            self._overtaken(entry, mine, status.epoch, cause)
        elif not over and status.state is not InstanceState.DRAINING:
            holding = Holding(status.task, status.epoch, status.state, status.generation)
            self._holding(node, stamp, holding, cause)

    def _learn(
        self,
        entry: TaskEntry,
        copy: Copy,
        stamp: Stamp,
        state: InstanceState,
        cause: str,
        reason: str = "",
    ) -> None:
        """Take in the state of a copy; a word older than the last one is ignored."""
        if stamp < copy.heard:
            return
        copy.heard, copy.reported, copy.reason = stamp, state, reason
        if state is InstanceState.READY:
            copy.state = CopyState.READY
        elif state in _DEAD_STATES:
            copy.state = CopyState.FAILED
            entry.failures[copy.node] = reason or f"ended as {state}"
        else:
            copy.state = CopyState.ASSIGNED
        self._mark(entry, cause)

    def _overtaken(self, entry: TaskEntry, copy: Copy, epoch: int, cause: str) -> None:
        """Go above an epoch that the node of a copy has seen, from a lease that is forgotten.

        A TA that has lost its store begins anew, the nodes remember.
        """
        if copy.state is not CopyState.ASSIGNED:
            return
        copy.state, copy.reason = CopyState.FAILED, f"{copy.node} has seen epoch {epoch}"
        if epoch < EPOCH_LIMIT:
            entry.next_epoch = max(entry.next_epoch, epoch + 1)
        else:
            entry.failures[copy.node] = copy.reason
        self._mark(entry, cause)

    def node_born(self, node: str, stamp: Stamp, holdings: Iterable[Holding], cause: str) -> None:
        """Reconcile what a node holds with what it should hold; healthy copies stay untouched."""
        held = {holding.task: holding for holding in holdings}
        for task in self.tasks_on(node):
            entry = self.tasks[task]
            entry.failures.pop(node, None)
            for copy in entry.copies():
                missing = task not in held or held[task].epoch != copy.epoch
                if copy.node == node and missing and stamp >= copy.heard:
                    copy.state, copy.reported, copy.sent_ms = CopyState.ASSIGNED, None, 0
            self._mark(entry, cause)
        for holding in held.values():
            self._holding(node, stamp, holding, cause)
        for entry in self.tasks.values():
            if entry.awaiting_node and entry.grant.current_node == node:
                entry.awaiting_node = entry.task in held
                self._mark(entry, cause)
            elif entry.current is None or entry.current.state is not CopyState.READY:
                self._mark(entry, cause)

    def _holding(self, node: str, stamp: Stamp, holding: Holding, cause: str) -> None:
        entry = self.tasks.get(holding.task)
        if entry is None:
            if self.welcomed:
                reason = "no envelope for this task"
                self._release(node, holding.task, holding.epoch, reason, cause)
            elif len(self._orphans) < MAX_ORPHANS:
                self._orphans[node, holding.task] = (stamp, holding)
            return
        self._adopt(entry, node, stamp, holding, cause)

    def _adopt_orphans(self, entry: TaskEntry, cause: str) -> None:
        found = [key for key in self._orphans if key[1] == entry.task]
        for key in sorted(found, key=lambda key: -self._orphans[key][1].epoch):
            stamp, holding = self._orphans.pop(key)
            self._adopt(entry, key[0], stamp, holding, cause)

    def _adopt(
        self, entry: TaskEntry, node: str, stamp: Stamp, holding: Holding, cause: str
    ) -> None:
        """Keep a healthy copy that a node holds, or release it: one copy serves, the newest."""
        for copy in entry.copies():
            if copy.node == node:
                # Another epoch there: the assignment that is on its way replaces it.
                if copy.epoch == holding.epoch:
                    self._learn(entry, copy, stamp, holding.state, cause)
                return
        current, ready = entry.current, holding.state == InstanceState.READY
        found = Copy(
            node,
            holding.epoch,
            holding.generation,
            entry.grant,
            CopyState.READY if ready else CopyState.ASSIGNED,
            holding.state,
            self.now_ms,
            heard=stamp,
        )
        if self._original(entry, found):
            self._assign(entry, node, cause)
        elif holding.state in _DEAD_STATES or not _known(entry, found):
            self._release(node, entry.task, found.epoch, "no copy is wanted there", cause)
        elif current is None or (found.epoch > current.epoch and not _serves(current, found)):
            self._keep(entry, found, None, cause)
        elif entry.coming is None and found.epoch > current.epoch:
            self._keep(entry, current, found, cause)
        elif entry.coming is None and ready and current.state is CopyState.ASSIGNED:
            self._keep(entry, found, current, cause)
        else:
            self._release(node, entry.task, found.epoch, "a newer copy serves", cause)

    def _original(self, entry: TaskEntry, found: Copy) -> bool:
        """Whether a copy that was replaced shall have its task back."""
        return (
            entry.grant.spec.policy.reconcile is Reconcile.KEEP_ORIGINAL
            and entry.current is not None
            and entry.current.epoch >= found.epoch
            and found.state is CopyState.READY
            and found.generation == entry.grant.generation
            and found.node in entry.grant.nodes
            and entry.coming is None
        )

    def _keep(self, entry: TaskEntry, current: Copy, coming: Copy | None, cause: str) -> None:
        """Make these the copies of a task, and release the one that is neither."""
        before = entry.copies()
        entry.current, entry.coming, entry.awaiting_node = current, coming, False
        for copy in before:
            if copy not in (current, coming):
                self._abandon(entry, copy, "a newer copy is held", cause)
        for copy in entry.copies():
            self._join(copy.node, entry.task)
        self._mark(entry, cause)

    def node_changed(
        self, node: str, after: NodeState, reason: str, cause: str, *, orderly: bool
    ) -> None:
        """Take in that a node came, went (orderly: it said farewell) or shall be emptied."""
        for task in self.tasks_on(node):
            entry = self.tasks[task]
            for copy in entry.copies():
                if copy.node == node and after is NodeState.LOST:
                    copy.state, copy.reason, copy.cause = CopyState.GONE, reason, cause
                    copy.orderly = orderly
            self._mark(entry, cause)
        if after is NodeState.LOST:
            self._releases.forget(node)
            for key in [key for key in self._orphans if key[0] == node]:
                del self._orphans[key]

    def load_changed(self, node: str, load: LoadReport, cause: str) -> None:
        """Move one task away when the node's load endangers what runs there."""
        problem = danger.of_load(load)
        if problem:
            self._relieve(node, f"{node}: {problem}", cause)

    def link_changed(self, node: str, link: LinkReport, cause: str) -> None:
        """Move one task away when the node's link endangers what runs there."""
        problem = danger.of_link(link)
        if problem:
            self._relieve(node, f"{node}: {problem}", cause)

    def _relieve(self, node: str, problem: str, cause: str) -> None:
        here = self.nodes.loads[self.nodes.slots[node]]
        for task in self.tasks_on(node):
            entry = self.tasks[task]
            current = entry.current
            if (
                current is None
                or current.node != node
                or current.state is not CopyState.READY
                or entry.coming is not None
                or self.now_ms - entry.moved_ms < danger.MOVE_QUIET_MS
            ):
                continue
            for other in self._usable(entry):
                slot = self.nodes.slots[other]
                there, link = self.nodes.loads[slot], self.nodes.links[slot]
                if other != node and danger.better(here, there, link):
                    entry.moved_ms = self.now_ms
                    if self._assign(entry, other, cause, problem):
                        return
                    self._escalate(entry, cause)
                    break

    # Time.

    def sweep(self) -> None:
        """Do what is due: resend what was not answered, replace what was lost for long enough."""
        for entry in self.tasks.values():
            if self._due(entry):
                self._mark(entry, "sweep")
        for send in self._releases.due(self.now_ms):
            self._tell(send)

    def _due(self, entry: TaskEntry) -> bool:
        if entry.coming is None and not self._fits(entry):
            return True
        return any(
            copy.state is CopyState.ASSIGNED
            and copy.reported is None
            and self.now_ms - copy.sent_ms >= RESEND_MS
            for copy in entry.copies()
        )

    # The rule.

    def _mark(self, entry: TaskEntry, cause: str) -> None:
        self._dirty.setdefault(entry.task, cause)

    def settle(self) -> None:
        """Bring every marked entry closer to its envelope."""
        dirty, self._dirty = self._dirty, {}
        for task, cause in dirty.items():
            entry = self.tasks.get(task)
            if entry is not None:
                self._settle(entry, cause)
                self._report(entry, cause)

    def _settle(self, entry: TaskEntry, cause: str) -> None:
        self._changed_services.add(entry.grant.service)
        coming = entry.coming
        if coming is not None and coming.state is CopyState.READY:
            self._promote(entry, cause)
        elif coming is not None and coming.state in (CopyState.FAILED, CopyState.GONE):
            entry.coming = None
            self._abandon(entry, coming, "another copy serves", cause)
        for copy in entry.copies():
            if copy.state is CopyState.ASSIGNED and copy.reported is None:
                self._send_assign(entry, copy, cause)
        if entry.coming is not None or self._fits(entry) or self._patient(entry):
            return
        self._place(entry, cause)

    def _fits(self, entry: TaskEntry) -> bool:
        """Whether the current copy is what the envelope asks for, or on its way there."""
        current = entry.current
        return (
            current is not None
            and current.state in (CopyState.READY, CopyState.ASSIGNED)
            and current.generation == entry.grant.generation
            and current.node in entry.grant.nodes
            and self.nodes.state(current.node) is not NodeState.DRAINING
        )

    def _patient(self, entry: TaskEntry) -> bool:
        """Whether to wait for a node rather than to replace its copy."""
        if entry.awaiting_node and entry.current is None:
            waited_ms = self.now_ms - entry.granted_ms
            entry.awaiting_node = waited_ms < AWAIT_NODE_MS
            return entry.awaiting_node
        current = entry.current
        if current is None or current.state is not CopyState.GONE:
            return False
        policy = entry.grant.spec.policy
        if not policy.replace:
            return True
        slot = self.nodes.slots.get(current.node)
        if slot is None or current.orderly:
            return False
        return self.nodes.silent_ms(slot, self.now_ms) < policy.lost_after_ms

    def _place(self, entry: TaskEntry, cause: str) -> None:
        """Assign the task to the best usable node of the envelope, or escalate."""
        usable = self._usable(entry)
        current = entry.current
        if current is not None and current.state is CopyState.READY and current.node in usable:
            usable = [current.node, *usable]
        for node in usable:
            if self._assign(entry, node, cause):
                return
        self._escalate(entry, cause)

    def _usable(self, entry: TaskEntry) -> list[str]:
        return [
            node
            for node in entry.grant.nodes
            if self.nodes.state(node) is NodeState.ONLINE and node not in entry.failures
        ]

    def _assign(self, entry: TaskEntry, node: str, cause: str, reason: str = "") -> bool:
        """Make a new copy under the next epoch; beside the current one while that serves."""
        if entry.epochs_left() == 0:
            return False
        copy = Copy(
            node,
            entry.next_epoch,
            entry.grant.generation,
            entry.grant,
            cause=cause,
            reason=reason,
        )
        entry.next_epoch += 1
        entry.refused_ms, entry.refusals = -ESCALATE_MAX_MS, 0
        self._releases.supersede(node, entry.task)
        current = entry.current
        if current is not None and current.state is not CopyState.FAILED:
            entry.coming = copy
        else:
            entry.current = copy
            if current is not None:
                self._abandon(entry, current, "it failed here", cause)
        self._join(node, entry.task)
        self._send_assign(entry, copy, cause)
        return True

    def _send_assign(self, entry: TaskEntry, copy: Copy, cause: str) -> None:
        online = self.nodes.state(copy.node) in (NodeState.ONLINE, NodeState.SUSPECT)
        if not online or (copy.sent_ms and self.now_ms - copy.sent_ms < RESEND_MS):
            return
        copy.sent_ms = max(1, self.now_ms)
        spec = copy.grant.spec
        message = Assign(
            spec.task,
            copy.grant.service,
            copy.epoch,
            copy.generation,
            spec.manifest,
            replicas=spec.replicas,
        )
        self._tell(Send(ToNode(copy.node), message, cause, entry.tenant))

    def _promote(self, entry: TaskEntry, cause: str) -> None:
        old, entry.current, entry.coming = entry.current, entry.coming, None
        if old is not None:
            self._abandon(entry, old, "another copy serves", cause)

    def _abandon(self, entry: TaskEntry, copy: Copy, reason: str, cause: str) -> None:
        """Let go of a copy; its node is told, unless it has another one."""
        other = entry.on_node(copy.node)
        if other is None:
            self._leave(copy.node, entry.task)
            self._release(copy.node, entry.task, copy.highest, reason, cause)
        else:
            other.highest = max(other.highest, copy.highest)

    def _join(self, node: str, task: str) -> None:
        self._by_node.setdefault(node, set()).add(task)
        self._changed_nodes.add(node)

    def _leave(self, node: str, task: str) -> None:
        self._by_node.get(node, set()).discard(task)
        self._changed_nodes.add(node)

    def _release(self, node: str, task: str, epoch: int, reason: str, cause: str) -> None:
        if self.nodes.state(node) is NodeState.LOST:
            return
        self._tell(self._releases.begin(node, task, epoch, reason, cause, self.now_ms))

    # Upwards.

    def _report(self, entry: TaskEntry, cause: str) -> None:
        copy = entry.current
        if copy is None:
            return
        key = (copy.node, copy.epoch, copy.state.value)
        if self._reported.get(entry.task) != key:
            self._reported[entry.task] = key
            self._tell(upward.report(entry, copy, cause))

    def _escalate(self, entry: TaskEntry, cause: str) -> None:
        wait_ms = min(ESCALATE_MAX_MS, ESCALATE_AGAIN_MS << max(0, min(entry.refusals, 8) - 1))
        if entry.refusals and self.now_ms - entry.refused_ms < wait_ms:
            return
        entry.refused_ms = self.now_ms
        entry.refusals += 1
        entry.escalations += 1
        entry.escalated = f"{self.name}/{entry.task}/{entry.escalations}"
        self._tell(upward.escalation(entry, self.nodes, cause))


def _known(entry: TaskEntry, found: Copy) -> bool:
    """Whether an earlier life of the scheduler may have given this; all else is not believed."""
    grant = entry.grant
    given = found.node in grant.nodes or found.node == grant.current_node
    return given and found.epoch < entry.first_epoch


def _serves(current: Copy, found: Copy) -> bool:
    """Whether the current copy is to serve until a newer one that was found is ready."""
    return current.state is CopyState.READY and found.state is not CopyState.READY
