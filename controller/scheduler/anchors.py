"""What anchors say of what they hold: revoked, handed on, ours by their leave; and their links."""

from typing import Final

from controller.decider import Received
from controller.desk import Desk
from controller.scheduler.adoption import Adoption
from controller.scheduler.feeds import Feeds
from controller.scheduler.fleet import Fleet
from controller.scheduler.greeting import Greeting
from controller.scheduler.handovers import Handovers
from controller.scheduler.jobs import Jobs
from controller.scheduler.keeper import Keeper
from controller.scheduler.leases import Leases
from controller.scheduler.memories import Memories
from controller.scheduler.mover import LISTENING, Mover
from controller.scheduler.nodes import NodeTable
from controller.scheduler.settings import Settings
from controller.scheduler.table import TaskTable
from controller.scheduler.ways import Ways
from protocols.messages import (
    AnchorMoved,
    AnchorWelcome,
    Calibrate,
    Elsewhere,
    EnvelopeGrant,
    EnvelopeRevoke,
    EscalationAnswer,
    HandoverAnswer,
    HandoverCommand,
    HandoverRequest,
    Lease,
    Neighbours,
)

OF_ANCHORS: Final = frozenset(
    {
        AnchorMoved,
        AnchorWelcome,
        Calibrate,
        Elsewhere,
        EnvelopeGrant,
        EnvelopeRevoke,
        EscalationAnswer,
        HandoverAnswer,
        HandoverCommand,
        HandoverRequest,
        Lease,
        Neighbours,
    }
)
"""What nobody but an anchor of this cell may say."""


class Anchors:
    """Keeps what is ours of each anchor."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        nodes: NodeTable,
        table: TaskTable,
        fleet: Fleet,
        adoption: Adoption,
        mover: Mover,
        keeper: Keeper,
        feeds: Feeds,
        greeting: Greeting,
        *,
        leases: Leases,
        memories: Memories,
        handovers: Handovers,
        jobs: Jobs,
        ways: Ways,
    ) -> None:
        self._settings = settings
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._fleet = fleet
        self._adoption = adoption
        self._mover = mover
        self._keeper = keeper
        self._feeds = feeds
        self._greeting = greeting
        self._leases = leases
        self._memories = memories
        self._handovers = handovers
        self._jobs = jobs
        self._ways = ways

    def revoked(self, event: Received, revoke: EnvelopeRevoke) -> None:
        """Give a task up, or let another scheduler have it."""
        if revoke.transferred:
            self._yield(event, revoke)
            return
        if not self._greeting.asks(event.sender, revoke.task):
            anchors = self._settings.anchors
            self._adoption.refused(revoke, event.sender, anchors, event.cause)
        self._mover.revoke(revoke, event.cause)
        self._keeper.revoked(revoke.task)

    def _yield(self, event: Received, revoke: EnvelopeRevoke) -> None:
        entry = self._table.tasks.get(revoke.task)
        copy = self._mover.yields(revoke, event.sender, event.cause)
        if copy is not None and entry is not None:
            self._adoption.yielded(copy, revoke.task)
            self._feeds.let_go(entry.grant.service, copy.node)
            if revoke.cell and self._nodes.state(copy.node) not in LISTENING:
                self._handovers.carry(copy.node, revoke.cell)
        if revoke.task not in self._table.tasks:
            self._keeper.revoked(revoke.task)

    def leased(self, event: Received, lease: Lease) -> None:
        """Go on with what has waited for the leave of an anchor."""
        if self._leases.granted(event.sender, lease):
            self._mover.resume()

    def answered(self, event: Received, answer: EscalationAnswer) -> None:
        """Take in what an anchor says to what we could not keep."""
        self._mover.answered(answer, event.cause)
        self._keeper.answered(answer)

    def welcomed(self, event: Received, welcome: AnchorWelcome) -> None:
        """Take in that an anchor has granted all that it holds here."""
        if welcome.scheduler_epoch != self._settings.epoch:
            return
        self._adoption.roaming |= welcome.roaming
        self._memories.welcomed(event.sender, roaming=welcome.roaming)
        held = self._greeting.welcomed(event.sender, welcome)
        if held is not None:
            self._drop(event.sender, held, event.cause)
        if not self._greeting:
            self._adoption.anchors_welcomed(event.cause)
            self._feeds.anchors_welcomed()
        self._ways.again(event.sender, event.cause)
        for slot in range(len(self._nodes)):
            self._fleet.tell(slot, event.cause, (event.sender,))

    def _drop(self, anchor: str, held: frozenset[str], cause: str) -> None:
        """Release what an anchor does not hold any more."""
        for entry in list(self._table.tasks.values()):
            if entry.anchor == anchor and entry.task not in held:
                self._mover.forget(entry, "its anchor holds it no more", cause)
                self._keeper.revoked(entry.task)

    def moved(self, event: Received, moved: AnchorMoved) -> None:
        """Take in that a service of an anchor is another one's, or will be."""
        for task in self._table.of_service(moved.service):
            entry = self._table.tasks.get(task)
            if entry is None or entry.anchor != event.sender:
                continue
            if moved.going:
                self._greeting.going(event.sender, task)
            elif moved.anchor in self._settings.anchors:
                entry.anchor = moved.anchor
                self._table.holds.touch(task)
                self._table.mark(entry, event.cause)
                self._greeting.awaits(moved.anchor, task)
        anchors, to = self._settings.anchors, moved.anchor
        if not moved.going:
            for task in self._adoption.given(moved, event.sender, anchors, event.cause):
                if to in anchors:
                    self._greeting.awaits(to, task)

    def linked(self, role: str) -> None:
        """Bring an anchor up to date: what was said between us may be lost on either side."""
        if role not in self._settings.anchors:
            return
        self._greeting.begin(role)
        self._greeting.say()
        self._mover.report_again(role, "linked")
        self._keeper.escalate_again(role)
        self._leases.begin()
        self._jobs.linked(role)
