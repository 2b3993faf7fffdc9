"""Envelopes that anchors grant, and the room that there is for each beside those of others.

Only the scheduler sees the grants of all anchors. What there is no room for is not taken, and its
anchor hears of that; what runs already goes before somebody's spare.
"""

from controller.decider import Received, ToRole
from controller.desk import Desk
from controller.scheduler import holds
from controller.scheduler.adoption import Adoption
from controller.scheduler.feeds import Feeds
from controller.scheduler.fleet import Fleet
from controller.scheduler.greeting import Greeting
from controller.scheduler.keeper import Keeper
from controller.scheduler.mover import Mover
from controller.scheduler.settings import Settings
from controller.scheduler.table import TaskTable
from protocols.messages import EnvelopeGrant


class Admission:
    """Takes grants in, as far as there is room."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        table: TaskTable,
        fleet: Fleet,
        adoption: Adoption,
        mover: Mover,
        keeper: Keeper,
        feeds: Feeds,
        greeting: Greeting,
    ) -> None:
        self._settings = settings
        self._desk = desk
        self._table = table
        self._fleet = fleet
        self._adoption = adoption
        self._mover = mover
        self._keeper = keeper
        self._feeds = feeds
        self._greeting = greeting
        self._counters = fleet.counters
        self._refusals = 0

    def granted(self, event: Received, grant: EnvelopeGrant) -> None:
        """Take in an envelope: whole, without the nodes that are too full, or not at all."""
        if not grant.nodes:
            self._counters["empty_grant"] += 1
            return
        if self._mover.late(grant, event.sender):
            self._counters["late_grant"] += 1
            return
        if self._adoption.overtaken(grant):
            self._counters["late_grant"] += 1
            self._greeting.granted(event.sender, grant.spec.task)
            return
        if self._adoption.outlived(grant, event.sender):
            # Its anchor grants it again if it has not given it elsewhere.
            self._counters["late_grant"] += 1
            self._greeting.awaits(event.sender, grant.spec.task)
            return
        taken = self._taken(event, grant) if len(self._settings.anchors) > 1 else grant
        if taken is not None:
            self._grant(event, taken)
        else:
            self._greeting.granted(event.sender, grant.spec.task)

    def _taken(self, event: Received, grant: EnvelopeGrant) -> EnvelopeGrant | None:
        """Return what there is room for beside tasks of other anchors; their anchor hears more."""
        entry = self._table.tasks.get(grant.spec.task)
        if entry is not None and grant.generation < entry.grant.generation:
            return grant
        booked = self._table.holds
        booked.settle(self._table.tasks)
        refused = booked.refused(grant, self._fleet.inventory, new=entry is None)
        if entry is None and grant.current_node in refused:
            # We have begun anew, and somebody's spare has come before what runs there.
            self._evict(grant.current_node, event.cause)
            refused = booked.refused(grant, self._fleet.inventory, new=entry is None)
        if not refused:
            return grant
        taken = holds.without(grant, refused)
        current = entry.current if entry is not None else None
        told = holds.refusal(
            grant,
            refused,
            self._refusal_number(),
            broken=entry is None and taken is None,
            held_bytes=booked.held_bytes(grant.spec.task, current.node) if current else 0,
        )
        self._desk.tell(ToRole(event.sender), told, event.cause, event.tenant)
        return taken

    def _refusal_number(self) -> str:
        self._refusals += 1
        return f"{self._settings.name}/refusal/{self._settings.epoch}.{self._refusals}"

    def _evict(self, node: str, cause: str) -> None:
        """Take the spares on a node from their tasks, and tell their anchors."""
        for entry in self._table.holds.spares_on(node, self._table.tasks):
            why = {node: "another task runs there and has no room beside it"}
            current = entry.current.node if entry.current is not None else ""
            held_bytes = self._table.holds.held_bytes(entry.task, current)
            told = holds.refusal(entry.grant, why, self._refusal_number(), held_bytes=held_bytes)
            entry.grant = holds.without(entry.grant, why) or entry.grant
            self._table.holds.touch(entry.task)
            self._table.mark(entry, cause)
            self._desk.tell(ToRole(entry.anchor), told, cause, entry.tenant)
        self._table.holds.settle(self._table.tasks)

    def _grant(self, event: Received, grant: EnvelopeGrant) -> None:
        new = self._mover.grant(grant, event.sender, event.tenant, event.cause)
        if new:
            self._adoption.adopt_orphans(self._table.tasks[grant.spec.task], event.cause)
        self._table.holds.touch(grant.spec.task)
        self._greeting.granted(event.sender, grant.spec.task)
        if self._table.tasks[grant.spec.task].grant is grant:
            self._keeper.granted(grant)
            self._feeds.renew(grant.service)
