"""What nodes say of tasks: statuses and holdings, believed only where they can be true.

A healthy copy that a node holds is adopted where it runs, never restarted. Until every anchor has
granted what it holds, a copy without an envelope is an orphan that may still find one. Where nodes
go from cell to cell it is one until an anchor has granted or refused it: only anchors know whether
a task has come along.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from controller.decider import ToRole
from controller.desk import Desk
from controller.scheduler import envelope
from controller.scheduler.copies import Copy, CopyState, Stamp, TaskEntry
from controller.scheduler.nodes import NodeTable
from controller.scheduler.orphans import Orphans
from controller.scheduler.table import TaskTable
from protocols.base import EPOCH_LIMIT
from protocols.errors import Blame
from protocols.messages import AnchorMoved, EnvelopeGrant, EnvelopeRevoke, Status, TaskEvent
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Holding
from protocols.messages.quality import Tuning
from protocols.messages.task import InstanceState, Reconcile

OVERTAKEN_MS: Final = 30_000
"""So long the grant of a newer generation, which a node holds already, may take to come."""
OVERTAKEN_MAX: Final = 4096
FORGOTTEN: Final = "a newer copy serves, which goes on with an older memory"
"""Why a copy is released whose memory is lost thereby."""
_THERE: Final = (NodeState.ONLINE, NodeState.SUSPECT, NodeState.DRAINING)
_DEAD_STATES: Final = {InstanceState.FAILED, InstanceState.STOPPED}


class Adoption:
    """Brings the task table up to what nodes say."""

    def __init__(self, desk: Desk, nodes: NodeTable, table: TaskTable) -> None:
        self.welcomed = False
        self.roaming = False
        """Whether nodes may bring tasks along from other cells."""
        self.several = False
        """Whether there are several anchors: one may grant what another one has ordered anew."""
        self.forget: Callable[[TaskEntry, str, str], None] = lambda *_: None
        """Drops a task that was granted."""
        self.unsure: Callable[[TaskEntry], bool] = lambda _: False
        """Whether its anchor may have given a task to another scheduler, and we not have heard."""
        self.leave: Callable[[str], bool] = lambda _: True
        """Whether we have an anchor's leave to act."""
        self._overtaken_ms: dict[str, int] = {}
        """By task: since when nodes are known to hold a newer generation than is granted."""
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._orphans = Orphans()
        self._born: dict[str, tuple[frozenset[str], str]] = {}
        """Nodes that have come in this turn, with the tasks that they hold, and the cause."""

    # What nodes say.

    def status(self, node: str, stamp: Stamp, status: Status, cause: str) -> bool:
        """Take in what became of an assignment; a word older than the last one is ignored.

        Returns whether the node is to tell of itself: it runs what a scheduler before this one
        has assigned, and only a birth says how.
        """
        over = status.state is InstanceState.STOPPED
        self._table.releases.confirm(node, status.task, status.epoch, over=over)
        entry = self._table.tasks.get(status.task)
        mine = [one for one in (entry.copies() if entry else []) if one.node == node]
        for one in mine:
            if one.tuned < status.tuned <= one.number:
                one.tuned = status.tuned
            if entry is not None and one.epoch == status.serving_epoch:
                # It serves beside what is prepared there, whatever a birth has left out.
                self._learn(entry, one, stamp, InstanceState.READY, cause)
        copy = next((one for one in mine if one.epoch == status.epoch), None)
        if entry is not None and copy is not None:
            if stamp >= copy.heard:
                if status.state is not InstanceState.FAILED:
                    # One that was refused has never asked for it.
                    copy.origin = copy.origin if status.awaits else None
                copy.remembers = status.remembers
            self._learn(entry, copy, stamp, status.state, cause, status.reason, status.blame)
            return False
        newest = entry.on_node(node) if entry is not None else None
        if entry is not None and newest is not None and newest.epoch < status.epoch:
            self._overtaken(entry, newest, status.epoch, cause)
            return not over and status.epoch < entry.first_epoch
        if over or status.state is InstanceState.DRAINING:
            return False
        known = self._orphan_of(node, status)
        tuning = entry.tuning if entry is not None else Tuning()
        holding = Holding(status.task, status.epoch, status.state, status.generation, tuning)
        self._holding(node, stamp, known or holding, cause)
        if entry is None:
            return known is None and (self.roaming or not self.welcomed)
        return status.epoch < entry.first_epoch

    def _orphan_of(self, node: str, status: Status) -> Holding | None:
        """Return what a birth has told of a copy without an envelope, and its state now."""
        found = self._orphans.get(node, status.task)
        if found is None or found[1].epoch != status.epoch:
            return None
        orphan = found[1]
        beside = orphan.serving_epoch if orphan.serving_epoch == status.serving_epoch else 0
        return msgspec.structs.replace(orphan, state=status.state, serving_epoch=beside)

    def _learn(
        self,
        entry: TaskEntry,
        copy: Copy,
        stamp: Stamp,
        state: InstanceState,
        cause: str,
        reason: str = "",
        blame: Blame | None = None,
    ) -> None:
        """Take in the state of a copy; a word older than the last one is ignored."""
        if stamp < copy.heard:
            return
        copy.heard, copy.reported, copy.reason, copy.blame = stamp, state, reason, blame
        if state is InstanceState.READY:
            copy.state = CopyState.READY
        elif state in _DEAD_STATES:
            copy.state = CopyState.FAILED
            self._failed(entry, copy, reason or f"ended as {state}")
        else:
            copy.state = CopyState.ASSIGNED
        self._table.mark(entry, cause)

    def _failed(self, entry: TaskEntry, copy: Copy, reason: str) -> None:
        """Blame the node for a copy that failed, or the change, where another copy serves there."""
        current = entry.current
        if copy is entry.coming:
            entry.rebuff = reason
        if (
            copy is entry.coming
            and current is not None
            and current.state is CopyState.READY
            and current.node == copy.node
            and current.generation == copy.generation
        ):
            entry.tuning = current.tuning
        else:
            entry.failed_on(copy.node, reason, copy.blame)

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
            entry.failed_on(copy.node, copy.reason, None)
        self._table.mark(entry, cause)

    def node_born(self, node: str, stamp: Stamp, holdings: Iterable[Holding], cause: str) -> None:
        """Reconcile what a node holds with what it should hold; healthy copies stay untouched."""
        held = {holding.task: holding for holding in holdings}
        for task in self._table.on(node):
            entry = self._table.tasks[task]
            entry.failures.pop(node, None)
            for copy in entry.copies():
                missing = task not in held or copy.epoch not in _epochs(held[task])
                if copy.node == node and missing and stamp >= copy.heard:
                    copy.state, copy.reported, copy.sent_ms = CopyState.ASSIGNED, None, 0
                if copy.node == node:
                    # A process that began anew may have forgotten what it was told.
                    copy.tuned = copy.tune_sent_ms = 0
            self._table.mark(entry, cause)
        self._orphans.born(node, stamp, held)
        for holding in held.values():
            self._holding(node, stamp, holding, cause)
        self._born[node] = frozenset(held), cause

    def settle(self) -> None:
        """Look once at every task that the nodes which have come in this turn may serve."""
        born, self._born = self._born, {}
        if not born:
            return
        first = next(iter(born.values()))
        for entry in self._table.tasks.values():
            awaited = born.get(entry.grant.current_node) if entry.awaiting_node else None
            held, cause = awaited or first
            if awaited is not None:
                entry.awaiting_node = entry.task in held
                self._table.mark(entry, cause)
            elif entry.current is None or entry.current.state is not CopyState.READY:
                self._table.mark(entry, cause)

    def node_gone(self, node: str) -> None:
        """Forget what a node that is lost, or in another cell, held beyond the grants.

        Its next birth tells of it again.
        """
        self._table.releases.forget(node)
        self._orphans.drop(node)

    def may_run(self, node: str, task: str) -> bool:
        """Whether a task may be on a node: it has been granted for it, or the node holds it."""
        entry = self._table.tasks.get(task)
        if entry is None:
            return self._orphans.get(node, task) is not None
        return entry.may_be_on(node)

    # Orphans.

    def orphans_of(self, node: str) -> tuple[str, ...]:
        """Return the tasks that a node holds and nobody has granted."""
        return self._orphans.tasks_on(node)

    def with_orphans(self) -> list[str]:
        """Return the nodes that hold what nobody has granted."""
        return self._orphans.nodes()

    def refused(
        self, revoke: EnvelopeRevoke, anchor: str, anchors: tuple[str, ...], cause: str
    ) -> None:
        """Release what a node holds of a task, once no anchor wants it there."""
        task = revoke.task
        for one in self._orphans.nodes_of(task):
            if revoke.node not in ("", one):
                continue
            if self._orphans.refuse(one, task, anchor, revoke.attached).issuperset(anchors):
                self._end(one, task, cause)

    def given(
        self, moved: AnchorMoved, anchor: str, anchors: tuple[str, ...], cause: str
    ) -> list[str]:
        """Take in that an anchor has given a service away: it does not want what nodes hold of it.

        Returns the tasks for which the other one is to be asked anew.
        """
        asked = []
        age = moved.generation, moved.number
        for task in self._orphans.tasks_of(moved.service):
            for one in self._orphans.nodes_of(task):
                if self._orphans.given(one, task, anchor, moved.anchor, age):
                    asked.append(task)
                if self._orphans.refuse(one, task, anchor).issuperset(anchors):
                    self._end(one, task, cause)
        return asked

    def _end(self, node: str, task: str, cause: str) -> None:
        _, holding = self._orphans.pop(node, task)
        self._table.release(node, task, holding.epoch, "no envelope for this task", cause)

    def yielded(self, copy: Copy, task: str) -> None:
        """Keep a copy that another scheduler gets, should its anchor give it back to us."""
        if self._nodes.state(copy.node) in _THERE:
            state = copy.reported or InstanceState.DEPLOYING
            holding = Holding(task, copy.epoch, state, copy.generation, copy.tuning)
            self._orphans.put(copy.node, task, (copy.heard, holding))

    def anchors_welcomed(self, cause: str) -> None:
        """Release what nodes hold beyond the grants: all anchors have granted all they hold."""
        self.welcomed = True
        if self.roaming:
            return
        for node, task in self._orphans:
            self._end(node, task, cause)

    def adopt_orphans(self, entry: TaskEntry, cause: str) -> None:
        """Give a task that has just been granted the copies that nodes hold of it."""
        self._overtaken_ms.pop(entry.task, None)
        for node in self._orphans.nodes_of(entry.task):
            stamp, holding = self._orphans.pop(node, entry.task)
            self._adopt(entry, node, stamp, holding, cause)

    def overtaken(self, grant: EnvelopeGrant) -> bool:
        """Whether a node holds a newer generation than is granted: an anchor has it that is next.

        Only for a while: stores that were lost begin anew, and nodes remember.
        """
        task = grant.spec.task
        held = (self._orphans.get(node, task) for node in self._orphans.nodes_of(task))
        return any(self._newer(grant, one[1]) for one in held if one is not None)

    def outlived(self, grant: EnvelopeGrant, anchor: str) -> bool:
        """Whether a node holds what was granted elsewhere since: a grant was long on its way."""
        if not self.roaming or self.leave(anchor):
            return False
        task = grant.spec.task
        held = (self._orphans.get(node, task) for node in self._orphans.nodes_of(task))
        return any(one[1].epoch > grant.epoch_to for one in held if one is not None)

    def _newer(self, grant: EnvelopeGrant, holding: Holding) -> bool:
        if not self.several or holding.generation <= grant.generation:
            return False
        now_ms = self._desk.now_ms
        since_ms = self._overtaken_ms.setdefault(holding.task, now_ms)
        if len(self._overtaken_ms) > OVERTAKEN_MAX:
            del self._overtaken_ms[next(iter(self._overtaken_ms))]
        return now_ms < since_ms + OVERTAKEN_MS

    def _over(self, entry: TaskEntry, holding: Holding) -> bool:
        """Whether a node holds what was granted to another scheduler after this one."""
        if self._newer(entry.grant, holding):
            return True
        return self.roaming and holding.epoch > entry.grant.epoch_to and self.unsure(entry)

    def _holding(self, node: str, stamp: Stamp, holding: Holding, cause: str) -> None:
        entry = self._table.tasks.get(holding.task)
        if entry is not None and _nowhere(entry, node, holding) and self._over(entry, holding):
            self.forget(entry, "what was granted elsewhere since is held", cause)
            entry = None
        if entry is None:
            if self.welcomed and not self.roaming:
                reason = "no envelope for this task"
                self._table.release(node, holding.task, holding.epoch, reason, cause)
            else:
                self._orphans.put(node, holding.task, (stamp, holding))
            return
        self._adopt(entry, node, stamp, holding, cause)

    def _adopt(
        self, entry: TaskEntry, node: str, stamp: Stamp, holding: Holding, cause: str
    ) -> None:
        """Keep a healthy copy that a node holds, or release it: one copy serves, the newest."""
        found = self._found(entry, node, stamp, holding)
        newest = entry.on_node(node)
        if newest is None:
            serving = self._serving(entry, found, holding)
            self._choose(entry, serving or found, cause)
            newest = entry.on_node(node)
        else:
            for copy in entry.copies():
                # Another epoch there: the assignment that is on its way replaces it.
                if copy.node == node and copy.epoch in _epochs(holding):
                    beside = copy.epoch != holding.epoch
                    state = InstanceState.READY if beside else holding.state
                    if not beside and stamp >= copy.heard:
                        copy.origin, copy.remembers = holding.origin, ""
                    self._learn(entry, copy, stamp, state, cause)
            self._relearn(entry, found, cause)
        if newest is not None and newest.epoch < found.epoch and _known(entry, found):
            self._succeed(entry, newest, found, holding, cause)

    def _choose(self, entry: TaskEntry, found: Copy, cause: str) -> None:
        """Keep a copy on a node where none is known, or release it."""
        current, node = entry.current, found.node
        ready = found.state is CopyState.READY
        if self._original(entry, found):
            entry.wanted = node
            self._table.mark(entry, cause)
        elif found.reported in _DEAD_STATES or not _known(entry, found):
            reason = "no copy is wanted there"
            self._table.release(node, entry.task, found.highest, reason, cause)
        elif current is None or (found.epoch > current.epoch and not _serves(current, found)):
            self._keep(entry, found, None, cause)
        elif entry.coming is None and found.epoch > current.epoch:
            self._keep(entry, current, found, cause)
        elif entry.coming is None and ready and current.state is CopyState.ASSIGNED:
            self._keep(entry, found, current, cause)
        elif self._forgets(entry, current, found):
            self._table.release(node, entry.task, found.highest, FORGOTTEN, cause)
            detail = f"{node} has come back with what it remembered under epoch {found.epoch}, "
            detail += f"which {current.node} has not: {FORGOTTEN}"
            told = TaskEvent(entry.task, "memory-lost", detail)
            self._desk.tell(ToRole(entry.anchor), told, cause, entry.tenant)
        else:
            self._table.release(node, entry.task, found.highest, "a newer copy serves", cause)

    def _forgets(self, entry: TaskEntry, current: Copy, found: Copy) -> bool:
        """Whether a copy has a memory that the current one does not go on with; said once.

        A move of an earlier life was over, and its anchor had no room to note it.
        """
        follows = entry.follows_epoch
        if follows is None or not follows < found.epoch < entry.first_epoch:
            return False
        if not entry.grant.spec.manifest.remembers or found.origin is not None:
            return False
        if current.origin is not None and current.origin.node == found.node:
            return False
        entry.follows_epoch = found.epoch
        return True

    def _succeed(
        self, entry: TaskEntry, old: Copy, found: Copy, holding: Holding, cause: str
    ) -> None:
        """Take in what an earlier life has assigned to a node above the copy that is known there.

        While the node serves the known one, the other is prepared beside it; else it has gone over.
        """
        old.highest = max(old.highest, found.epoch)
        current, coming = entry.current, entry.coming
        if found.reported in _DEAD_STATES or current is None:
            return
        if holding.serving_epoch == old.epoch:
            if old is current and coming is None:
                self._keep(entry, old, found, cause)
        elif old is coming:
            self._keep(entry, current, found, cause)
        elif found.state is CopyState.READY:
            self._keep(entry, found, coming, cause)

    def _relearn(self, entry: TaskEntry, found: Copy, cause: str) -> None:
        """Believe a birth how a copy runs that a status alone has told of."""
        current = entry.current
        if current is None or (current.node, current.epoch) != (found.node, found.epoch):
            return
        untold = current.number == 0 and current.epoch < entry.first_epoch
        if untold and entry.coming is None and entry.tuning == current.tuning != found.tuning:
            current.tuning = found.tuning
            if envelope.allows(entry.grant, found.tuning):
                entry.tuning = found.tuning
            self._table.mark(entry, cause)

    def _serving(self, entry: TaskEntry, newest: Copy, holding: Holding) -> Copy | None:
        """Return the copy that serves where another is prepared beside it; None: there is none."""
        epoch = holding.serving_epoch
        if not 0 < epoch < newest.epoch:
            return None
        return Copy(
            newest.node,
            epoch,
            holding.serving_generation,
            entry.grant,
            CopyState.READY,
            InstanceState.READY,
            self._desk.now_ms,
            heard=newest.heard,
            highest=newest.epoch,
            tuning=holding.serving_tuning or Tuning(),
        )

    def _found(self, entry: TaskEntry, node: str, stamp: Stamp, holding: Holding) -> Copy:
        return Copy(
            node,
            holding.epoch,
            holding.generation,
            entry.grant,
            CopyState.READY if holding.state == InstanceState.READY else CopyState.ASSIGNED,
            holding.state,
            self._desk.now_ms,
            heard=stamp,
            tuning=holding.tuning,
            origin=holding.origin,
        )

    def _original(self, entry: TaskEntry, found: Copy) -> bool:
        """Whether a copy that was replaced shall have its task back."""
        return (
            entry.grant.spec.policy.reconcile is Reconcile.KEEP_ORIGINAL
            and entry.current is not None
            and entry.current.epoch >= found.epoch
            and found.state is CopyState.READY
            and found.generation == entry.grant.generation
            and found.node in entry.grant.nodes
            and self._nodes.state(found.node) is NodeState.ONLINE
            and entry.coming is None
            and entry.epochs_left() > 0
        )

    def _keep(self, entry: TaskEntry, current: Copy, coming: Copy | None, cause: str) -> None:
        """Make these the copies of a task, and release the one that is neither."""
        before = entry.copies()
        entry.current, entry.coming, entry.awaiting_node = current, coming, False
        entry.further = {}
        newest = coming or current
        if newest not in before and envelope.allows(entry.grant, newest.tuning):
            # It runs as a scheduler before this one had tuned it, and goes on so.
            entry.tuning = newest.tuning
        for copy in before:
            if copy not in (current, coming):
                self._table.abandon(entry, copy, "a newer copy is held", cause)
        for copy in entry.copies():
            self._table.join(copy.node, entry.task)
        self._table.mark(entry, cause)


def _nowhere(entry: TaskEntry, node: str, holding: Holding) -> bool:
    """Whether a task has no copy, or only such as a node had and does not hold any more."""
    return all(copy.node == node and copy.epoch not in _epochs(holding) for copy in entry.copies())


def _epochs(holding: Holding) -> tuple[int, ...]:
    """Return the epochs that a node serves or prepares."""
    return (holding.epoch, holding.serving_epoch) if holding.serving_epoch else (holding.epoch,)


def _known(entry: TaskEntry, found: Copy) -> bool:
    """Whether an earlier life of the scheduler may have given this; all else is not believed."""
    grant = entry.grant
    given = found.node in grant.nodes or found.node == grant.current_node
    # Left over from before another cell had the task: its anchor does not count it any more.
    over = not grant.current_node and found.epoch < grant.current_epoch
    return given and not over and found.epoch < entry.first_epoch


def _serves(current: Copy, found: Copy) -> bool:
    """Whether the current copy is to serve until a newer one that was found is ready."""
    return current.state is CopyState.READY and found.state is not CopyState.READY
