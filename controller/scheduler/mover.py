"""What the scheduler does with granted tasks: assign, move, tune, release, escalate.

One rule, `_settle`, brings an entry closer to its envelope and to how it shall run; everything that
happens only updates what is known and marks the entry. Nothing here leaves the envelope: nodes come
from the grant, epochs from its lease.
"""

from typing import Final

import msgspec

from controller.decider import ToNode, ToRole
from controller.desk import Desk
from controller.scheduler import envelope, upward
from controller.scheduler.copies import Copy, CopyState, TaskEntry, program, rebuilt
from controller.scheduler.further import Further, serving
from controller.scheduler.leases import Leases
from controller.scheduler.memories import Memories
from controller.scheduler.nodes import NodeTable
from controller.scheduler.releases import RESEND_MS
from controller.scheduler.settings import EPOCH_SHIFT
from controller.scheduler.table import Away, TaskTable, serves
from protocols.messages import (
    Assign,
    EnvelopeGrant,
    EnvelopeRevoke,
    EscalationAnswer,
    Relinquished,
    TaskEvent,
    Tune,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.quality import Tuning

ESCALATE_AGAIN_MS: Final = 3000
ESCALATE_MAX_MS: Final = 60_000
"""An escalation that was refused, or not answered, is repeated within these bounds."""
ID_LENGTH: Final = 128
LISTENING: Final = (NodeState.ONLINE, NodeState.SUSPECT, NodeState.DRAINING)
"""Nodes that answer an assignment; one that is emptied prepares what it holds, refuses the rest."""
LET_GO_MAX: Final = 4096
"""Tasks of which it is remembered who has had us let go of them; the oldest is forgotten."""
AWAIT_NODE_MS: Final = 3000
"""After a restart: how long the node that ran a task may take to come with it."""


class Mover:
    """The rule that settles the entries of a task table."""

    def __init__(
        self,
        epoch: int,
        desk: Desk,
        nodes: NodeTable,
        table: TaskTable,
        memories: Memories,
        leases: Leases,
    ) -> None:
        self._leases = leases
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._memories = memories
        self.further = Further(desk, nodes, table)
        self._life = epoch
        self._tunes = epoch << EPOCH_SHIFT
        """Number of the last Tune: they grow over the scheduler's lives, and over a task's."""
        self._let_go: dict[str, tuple[str, int, int]] = {}
        """By task: the anchor that took it from us last, its generation, and the lease that ended.
        What another anchor has granted below may still be on its way.
        """
        self._reported: dict[str, tuple[str, int, str, str, bool, tuple[str, ...]]] = {}
        self._resting: dict[str, str] = {}
        """Tasks that would change if their anchor gave leave, and why."""

    # What the TA says.

    def late(self, grant: EnvelopeGrant, anchor: str) -> bool:
        """Whether a task has gone to another anchor since, which has granted it above."""
        entry = self._table.tasks.get(grant.spec.task)
        if entry is not None:
            return entry.anchor != anchor and grant.epoch_to <= entry.grant.epoch_to
        taker, generation, leased = self._let_go.get(grant.spec.task, (anchor, 0, 0))
        return taker != anchor and grant.generation <= generation and grant.epoch_to <= leased

    def grant(self, grant: EnvelopeGrant, anchor: str, tenant: str, cause: str) -> bool:
        """Take in an envelope: a new task, a newer generation, or other nodes and epochs.

        Returns whether the task is new here.
        """
        task, now_ms = grant.spec.task, self._desk.now_ms
        entry = self._table.tasks.get(task)
        new = entry is None
        if entry is None:
            first = grant.epoch_from
            entry = TaskEntry(grant, anchor, tenant, now_ms, first, first)
            entry.awaiting_node = bool(grant.current_node)
            entry.tuning = envelope.initial(grant)
            self._table.tasks[task] = entry
        elif grant.generation < entry.grant.generation:
            return False
        else:
            unused = entry.next_epoch == entry.first_epoch
            if (unused or entry.anchor != anchor) and not entry.copies():
                # What others have had begun is of a life before this one too.
                entry.first_epoch = max(entry.first_epoch, grant.epoch_from)
                entry.follows_epoch = None
            old, entry.grant, entry.anchor = entry.grant, grant, anchor
            same = old.generation == grant.generation
            wish = envelope.initial(grant)
            if not (
                same and wish == envelope.initial(old) and envelope.allows(grant, entry.tuning)
            ):
                entry.tuning = wish
            entry.granted_ms = now_ms
            entry.next_epoch = max(entry.next_epoch, grant.epoch_from)
            # A grant after a failure is the TA's word that the node may be tried again.
            entry.failures = {}
            if entry.current is not None and entry.current.node in grant.nodes:
                # The TA may have given up waiting for what goes on there now.
                self._reported.pop(entry.task, None)
        entry.escalated, entry.refusals = "", 0
        if not grant.arriving and not self._table.gone_on(grant, anchor):
            self._table.put_away(task, None)
        self._table.withdrawn.pop(task, None)
        self._table.services[grant.service] = grant.plan_tasks
        self._table.mark(entry, cause)
        return new

    def revoke(self, revoke: EnvelopeRevoke, cause: str) -> None:
        """Give a task up: release its copies and forget it."""
        entry = self._table.tasks.get(revoke.task)
        if entry is None:
            self._table.restored(revoke.task)
        elif entry.grant.generation <= revoke.generation:
            if revoke.stays:
                self._table.withdrawn[revoke.task] = f"task {revoke.task}: {revoke.reason}"
            self.forget(entry, revoke.reason, cause)

    def yields(self, revoke: EnvelopeRevoke, anchor: str, cause: str) -> Copy | None:
        """Let another scheduler have a task, and say so; returns the copy that runs on.

        Where it is served on another node than was thought it stays, and its anchor hears of that.
        """
        entry = self._table.tasks.get(revoke.task)
        if entry is None:
            self._relinquish(revoke, anchor, cause)
            return None
        if entry.anchor != anchor and entry.grant.generation < revoke.generation:
            # Its grant has not come: what we have is the generation before, of another one.
            self._relinquish(revoke, anchor, cause)
            return None
        if entry.grant.epoch_to > revoke.leased or entry.anchor != anchor:
            return None
        here = any(one.node != revoke.node for one in entry.served())
        if here and not revoke.given:
            self._reported.pop(entry.task, None)
            self._table.mark(entry, cause)
            return None
        stays = entry.on_node(revoke.node)
        current = entry.current if stays is not None and entry.current is not stays else stays
        if current is not None and current.node == revoke.node:
            # While the next one is prepared beside it there, the older one serves.
            stays = current
        self._reported.pop(entry.task, None)
        self._table.part(entry, stays, cause)
        self._relinquish(revoke, anchor, cause, stays, entry.next_epoch - 1)
        if stays is not None and revoke.cell:
            away = msgspec.structs.replace(stays, cell=revoke.cell)
            self._table.put_away(entry.task, Away(anchor, away))
        return stays

    def _relinquish(
        self,
        revoke: EnvelopeRevoke,
        anchor: str,
        cause: str,
        stays: Copy | None = None,
        epoch_seen: int = 0,
    ) -> None:
        self._let_go.pop(revoke.task, None)
        self._let_go[revoke.task] = anchor, revoke.generation, revoke.leased
        if len(self._let_go) > LET_GO_MAX:
            del self._let_go[next(iter(self._let_go))]
        node, epoch = (stays.node, stays.epoch) if stays is not None else (None, 0)
        body = Relinquished(revoke.task, revoke.generation, node, epoch, epoch_seen, revoke.leased)
        self._desk.tell(ToRole(anchor), body, cause)

    def forget(self, entry: TaskEntry, reason: str, cause: str) -> None:
        """Release a task that nobody grants any more."""
        self._reported.pop(entry.task, None)
        self._table.forget(entry, reason, cause)

    def answered(self, answer: EscalationAnswer, cause: str) -> None:
        """Take in the answer to an escalation."""
        entry = self._table.tasks.get(answer.task)
        if entry is None or entry.escalated != answer.number:
            return
        entry.escalated = ""
        if answer.granted:
            self._table.mark(entry, cause)
        else:
            entry.refused_ms = self._desk.now_ms

    def report_again(self, anchor: str, cause: str) -> None:
        """Report every task of an anchor that may not have heard."""
        for entry in self._table.tasks.values():
            if entry.anchor == anchor:
                self._reported.pop(entry.task, None)
                self._table.mark(entry, cause)

    def node_changed(
        self, node: str, after: NodeState, reason: str, cause: str, *, orderly: bool
    ) -> None:
        """Take in that a node came, went (orderly: it said farewell) or shall be emptied."""
        for task in self._table.on(node):
            entry = self._table.tasks[task]
            for copy in entry.copies():
                if copy.node == node and after is NodeState.LOST:
                    copy.state, copy.reason, copy.cause = CopyState.GONE, reason, cause
                    copy.orderly = orderly
            self._table.mark(entry, cause)

    # Time.

    def sweep(self) -> None:
        """Do what is due: resend what was not answered, replace what was lost for long enough."""
        for entry in self._table.tasks.values():
            if self._due(entry):
                self._table.mark(entry, "sweep")
        for send in self._table.releases.due(self._desk.now_ms):
            self._table.say(send)

    def _due(self, entry: TaskEntry) -> bool:
        if entry.coming is None and not self._fits(entry):
            return True
        for copy in entry.copies():
            silent = copy.state is CopyState.ASSIGNED and copy.reported is None
            if silent and self._desk.now_ms - copy.sent_ms >= RESEND_MS:
                return True
            untold = copy.tuned < copy.number
            if untold and self._desk.now_ms - copy.tune_sent_ms >= RESEND_MS:
                return True
        return False

    def resume(self) -> None:
        """Go on with what has waited for leave."""
        resting, self._resting = self._resting, {}
        for task, cause in resting.items():
            if task in self._table.tasks:
                self._table.mark(self._table.tasks[task], cause)

    # Further nodes.

    def spread(self) -> None:
        """Have tasks served on more nodes, or on fewer, as their calls ask."""
        for entry, step in self.further.sweep():
            if not self._leases.hold(entry.anchor):
                continue
            node = self.further.place(entry) if step > 0 else next(reversed(entry.further), "")
            if not node:
                continue
            if step > 0:
                self._table.releases.supersede(node, entry.task)
                entry.further[node] = self._new_copy(entry, node, "calls wait")
                self._table.join(node, entry.task)
                told = f"calls wait: {node} serves beside {', '.join(serving(entry))}"
            else:
                self._drop_further(entry, node, "fewer will do", "sweep")
                told = f"fewer will do: {', '.join(serving(entry))}"
            self._table.mark(entry, "sweep")
            event = TaskEvent(entry.task, "wider" if step > 0 else "narrower", told[:1000])
            self._desk.tell(ToRole(entry.anchor), event, "sweep", entry.tenant)

    def _drop_further(self, entry: TaskEntry, node: str, reason: str, cause: str) -> None:
        self._table.abandon(entry, entry.further.pop(node), reason, cause)
        self._table.service_changed(entry.grant.service)

    def _tend_further(self, entry: TaskEntry, cause: str) -> None:
        """Give up the further copies that are not what is asked for; one may take the task over."""
        for node, copy in list(entry.further.items()):
            right = (
                copy.state in (CopyState.READY, CopyState.ASSIGNED)
                and copy.generation == entry.grant.generation
                and node in entry.grant.nodes
                and rebuilt(copy.tuning) == rebuilt(self._tuning_on(entry, node))
                and self._nodes.state(node) in (NodeState.ONLINE, NodeState.SUSPECT)
            )
            if not right:
                self._drop_further(entry, node, copy.reason or "it is not wanted any more", cause)
        current = entry.current
        if entry.coming is not None or self._fits(entry) or not entry.grant.spec.policy.replace:
            return
        ready = [one for one in entry.served() if one is not current]
        if ready and entry.wanted in ("", ready[0].node):
            entry.wanted, entry.current = "", entry.further.pop(ready[0].node)
            if current is not None:
                self._table.abandon(entry, current, "another copy serves", cause)

    # The rule.

    def settle(self) -> None:
        """Bring every marked entry closer to its envelope."""
        for task, cause in self._table.take_marked().items():
            entry = self._table.tasks.get(task)
            if entry is not None and not self._leases.hold(entry.anchor):
                # Its anchor may have given it to another scheduler: until we hear, nothing changes.
                self._resting[task] = cause
                self._table.service_changed(entry.grant.service)
            elif entry is not None:
                self._settle(entry, cause)
                self._memories.step(entry, cause)
                self._report(entry, cause)

    def _settle(self, entry: TaskEntry, cause: str) -> None:
        self._table.service_changed(entry.grant.service)
        if entry.coming is not None:
            self._proceed(entry, entry.coming, cause)
        if entry.further:
            self._tend_further(entry, cause)
        for copy in entry.copies():
            if copy.state is CopyState.ASSIGNED and copy.reported is None:
                self._send_assign(entry, copy, cause)
        if entry.coming is not None or self._memories.binds(entry):
            return
        if not self._fits(entry):
            if not self._patient(entry):
                self._place(entry, cause)
        elif entry.current is not None:
            self._tune(entry, entry.current, cause)

    def _proceed(self, entry: TaskEntry, coming: Copy, cause: str) -> None:
        """Have a copy that is prepared take over, or give it up, as it fares."""
        if coming.state is CopyState.READY and self._memories.prepared(entry):
            self._promote(entry, cause)
        elif coming.state in (CopyState.FAILED, CopyState.GONE):
            entry.coming = None
            entry.rebuff = entry.rebuff or coming.reason
            self._table.abandon(entry, coming, "another copy serves", cause)
        elif not self._awaited(entry, coming):
            self._withdraw(entry, coming, cause)

    def _fits(self, entry: TaskEntry) -> bool:
        """Whether the current copy is what is asked for, or on its way there."""
        current = entry.current
        return (
            current is not None
            and current.state in (CopyState.READY, CopyState.ASSIGNED)
            and current.generation == entry.grant.generation
            and current.node in entry.grant.nodes
            and entry.wanted in ("", current.node)
            and rebuilt(current.tuning) == rebuilt(self._tuning_on(entry, current.node))
            and _same_program(current, entry)
            and self._nodes.state(current.node) is not NodeState.DRAINING
        )

    def _awaited(self, entry: TaskEntry, coming: Copy) -> bool:
        """Whether a copy that is prepared is still what is asked for.

        One beside the current copy on its node is waited for where only that node can undo it.
        """
        current = entry.current
        beside = current is not None and current.node == coming.node
        if entry.epochs_left() == 0 or (beside and coming.node not in self._table.usable(entry)):
            return True
        return (
            coming.generation == entry.grant.generation
            and coming.node in entry.grant.nodes
            and entry.wanted in ("", coming.node)
            and rebuilt(coming.tuning) == rebuilt(self._tuning_on(entry, coming.node))
            and _same_program(coming, entry)
        )

    def _withdraw(self, entry: TaskEntry, coming: Copy, cause: str) -> None:
        """Give up a copy that is prepared and asked for no more."""
        entry.coming, current = None, entry.current
        if current is not None and entry.wanted == current.node:
            entry.wanted = ""
        self._table.abandon(entry, coming, "it is not wanted any more", cause)
        if current is not None and current.node == coming.node and self._fits(entry):
            # Its node goes back to what serves under a newer epoch alone.
            self._assign(entry, current.node, cause)

    def _patient(self, entry: TaskEntry) -> bool:
        """Whether to wait for a node rather than to replace its copy."""
        if entry.awaiting_node and entry.current is None:
            waited_ms = self._desk.now_ms - entry.granted_ms
            entry.awaiting_node = waited_ms < AWAIT_NODE_MS
            return entry.awaiting_node
        current = entry.current
        if current is None or current.state is not CopyState.GONE:
            return False
        policy = entry.grant.spec.policy
        if not policy.replace:
            return True
        slot = self._nodes.slots.get(current.node)
        if slot is None or current.orderly:
            return False
        return self._nodes.silent_ms(slot, self._desk.now_ms) < policy.lost_after_ms

    def _place(self, entry: TaskEntry, cause: str) -> None:
        """Assign the task to the best usable node of the envelope, or escalate."""
        usable = self._table.usable(entry)
        wanted, entry.wanted = entry.wanted, ""
        current = entry.current
        if wanted in usable:
            usable = [wanted]
        elif wanted and self._fits(entry):
            return
        elif current is not None and current.state is CopyState.READY and current.node in usable:
            usable = [current.node, *usable]
        # The TA gives up what can run nowhere; until it answers no epoch is spent on it.
        for node in () if entry.at_fault() else usable:
            if self._assign(entry, node, cause):
                return
        first = envelope.initial(entry.grant)
        stuck = entry.at_fault() or not usable
        if stuck and entry.failures and rebuilt(entry.tuning) != rebuilt(first):
            # The variant, not the nodes: the sweep tries them again as the TA wanted it.
            entry.tuning, entry.failures = first, {}
            self._table.mark(entry, cause)
            return
        self._escalate(entry, cause)

    def _tuning_on(self, entry: TaskEntry, node: str) -> Tuning:
        """Return how a task shall run on a node, which may not have the provider."""
        tuning = entry.tuning
        if tuning.provider and tuning.provider not in self._nodes.providers(node):
            return msgspec.structs.replace(tuning, provider="")
        return tuning

    def _assign(self, entry: TaskEntry, node: str, cause: str) -> bool:
        """Make a new copy under the next epoch; beside the current one while that serves."""
        if entry.epochs_left() == 0:
            return False
        copy = self._new_copy(entry, node, cause)
        entry.further.pop(node, None)
        entry.refused_ms, entry.refusals = -ESCALATE_MAX_MS, 0
        self._table.releases.supersede(node, entry.task)
        current = entry.current
        if current is not None and current.state is not CopyState.FAILED:
            entry.coming = copy
        else:
            entry.current = copy
            if current is not None:
                self._table.abandon(entry, current, "it failed here", cause)
        self._table.join(node, entry.task)
        self._send_assign(entry, copy, cause)
        return True

    def _new_copy(self, entry: TaskEntry, node: str, cause: str) -> Copy:
        """Return a copy under the next epoch; nobody has heard of it."""
        copy = Copy(node, entry.next_epoch, entry.grant.generation, entry.grant, cause=cause)
        copy.tuning = self._tuning_on(entry, node)
        copy.origin = self._memories.origin(entry, node)
        if entry.follows_epoch is None:
            before = entry.current
            entry.follows_epoch = entry.grant.current_epoch if before is None else before.epoch
        entry.next_epoch += 1
        return copy

    def _send_assign(self, entry: TaskEntry, copy: Copy, cause: str) -> None:
        now_ms = self._desk.now_ms
        if copy.sent_ms and now_ms - copy.sent_ms < RESEND_MS:
            return
        if self._nodes.state(copy.node) not in LISTENING:
            return
        copy.sent_ms = max(1, now_ms)
        spec = copy.grant.spec
        message = Assign(
            spec.task,
            copy.grant.service,
            copy.epoch,
            copy.generation,
            program(copy.grant, copy.tuning.variant),
            replicas=envelope.replicas_of(copy.grant, copy.tuning),
            tuning=copy.tuning,
            tenant=entry.tenant,
            deviceless=spec.deviceless,
            origin=copy.origin,
        )
        self._desk.tell(ToNode(copy.node), message, cause, entry.tenant)

    def _tune(self, entry: TaskEntry, copy: Copy, cause: str) -> None:
        """Tell a copy how it shall run until it has confirmed; nothing of it restarts."""
        wish = self._tuning_on(entry, copy.node)
        now_ms = self._desk.now_ms
        if copy.tuning != wish:
            self._tunes += 1
            copy.tuning, copy.number, copy.tune_sent_ms = wish, self._tunes, 0
            self._table.service_changed(entry.grant.service)
        online = self._nodes.state(copy.node) in (NodeState.ONLINE, NodeState.SUSPECT)
        if copy.tuned >= copy.number or not online or copy.state is not CopyState.READY:
            return
        if copy.tune_sent_ms and now_ms - copy.tune_sent_ms < RESEND_MS:
            return
        copy.tune_sent_ms = max(1, now_ms)
        tune = Tune(entry.task, copy.epoch, copy.number, copy.tuning)
        self._desk.tell(ToNode(copy.node), tune, cause, entry.tenant)

    def _promote(self, entry: TaskEntry, cause: str) -> None:
        old, entry.current, entry.coming = entry.current, entry.coming, None
        if old is not None:
            self._table.abandon(entry, old, "another copy serves", cause)

    # Upwards.

    def _report(self, entry: TaskEntry, cause: str) -> None:
        copy = entry.current
        if copy is None or (copy.state is CopyState.READY and not self._memories.arrived(entry)):
            return
        awaits = copy.origin is not None
        failed = tuple(entry.failures)
        key = (copy.node, copy.epoch, copy.state.value, copy.tuning.variant, awaits, failed)
        if self._reported.get(entry.task) != key:
            self._reported[entry.task] = key
            self._table.say(upward.report(entry, copy, cause))

    def _escalate(self, entry: TaskEntry, cause: str) -> None:
        now_ms = self._desk.now_ms
        wait_ms = min(ESCALATE_MAX_MS, ESCALATE_AGAIN_MS << max(0, min(entry.refusals, 8) - 1))
        if entry.refusals and now_ms - entry.refused_ms < wait_ms:
            return
        entry.refused_ms = now_ms
        entry.refusals += 1
        entry.escalations += 1
        number = f"{self._desk.name}/{entry.task}/{self._life}-{entry.escalations}"
        entry.escalated = number[-ID_LENGTH:]
        self._table.say(upward.escalation(entry, self._nodes, cause))


def settled(entry: TaskEntry) -> bool:
    """Whether a task serves as it shall: no copy is on its way, nothing is left to be told."""
    current = entry.current
    return (
        current is not None
        and serves(entry)
        and current.origin is None
        and entry.coming is None
        and not entry.wanted
        and current.tuned >= current.number
        and rebuilt(current.tuning)[:2] == rebuilt(entry.tuning)[:2]
    )


def _same_program(copy: Copy, entry: TaskEntry) -> bool:
    """Whether a copy runs the program that is granted now: a quarantine exchanges it."""
    variant = copy.tuning.variant
    then, now = program(copy.grant, variant), program(entry.grant, variant)
    return then is now or then.artifact.digest == now.artifact.digest
