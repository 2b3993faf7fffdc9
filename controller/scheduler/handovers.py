"""Nodes that come from other cells and go to them: the scheduler's part of docs/decisions/0027.

As *source* it tells its nodes which cells there are, hands its anchor's command on, and lets go of
tasks when it is told. As *target* it says whether it has room, keeps what an arriving node has
brought until an anchor has granted or refused it, and then tells the node that all is done.
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct, structs

from controller.decider import Carry, Received, Record, ToNode, ToRole
from controller.desk import Desk
from controller.handover_records import ReachRecord
from controller.records import REACH
from controller.scheduler.adoption import Adoption
from controller.scheduler.copies import Copy, CopyState
from controller.scheduler.fleet import MAX_NODES, Fleet
from controller.scheduler.nodes import AWAY, NodeTable
from controller.scheduler.settings import EPOCH_SHIFT, Settings
from controller.scheduler.table import Away, TaskTable
from protocols.messages import (
    Birth,
    Elsewhere,
    EnvelopeGrant,
    HandoverAnswer,
    HandoverCommand,
    HandoverComplete,
    HandoverFailed,
    HandoverRequest,
    HandoverTimes,
    Neighbours,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.mobility import MAX_NEIGHBOURS, CellPoint

FORWARD_MS: Final = 30_000
"""What comes for a node that has left is carried after it for so long."""
COMPLETE_AGAIN_MS: Final = 1000
COMPLETE_REPEATS: Final = 3
"""A node is told that its handover is complete so often: it has no reason to acknowledge it."""
AGAIN_MAX: Final = 64
"""Nodes of which something is said again at once; the others a sweep later."""
KEPT_AGAIN_MS: Final = 1000
"""What a node has brought along is said again to the anchors after this, until they answer."""
MAX_ARRIVALS: Final = 100_000
"""Nodes whose arrival is not complete; beyond it the oldest is not told."""


class _Arrival(Struct):
    source: str
    handover: str
    incarnation: int
    told: int = 0
    due_ms: int = 0


class Handovers:
    """What a scheduler says and hears of nodes that change their cell."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        nodes: NodeTable,
        table: TaskTable,
        fleet: Fleet,
        adoption: Adoption,
    ) -> None:
        self._settings = settings
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._fleet = fleet
        self._adoption = adoption
        self._said: dict[str, tuple[CellPoint, ...]] = {}
        """By anchor: the cells that it has named."""
        self._number = settings.epoch << EPOCH_SHIFT
        self.neighbours: tuple[CellPoint, ...] = ()
        self.loads: dict[str, float] = {}
        """By cell, as anchors say."""
        self.round_trips_ms: dict[str, float] = {}
        """By cell: what is usual for its nodes, as anchors say."""
        self._arrivals: dict[str, _Arrival] = {}
        self._untold: dict[str, None] = {}
        """Those of them that were not told yet that all is done."""
        self._kept_ms: dict[str, int] = {}
        """Nodes with tasks that nobody has granted: when that was said last."""
        self._carried: dict[str, str] = {}
        """Nodes after which something is carried, and to which cell."""
        self._going: dict[str, tuple[str, int]] = {}
        """Nodes that were told to go: where to, and until when that holds."""
        fleet.kept = adoption.orphans_of
        fleet.handover = self._shown

    # Neighbours.

    def restore(self, records: Iterable[Record]) -> None:
        """Go on carrying to the cells that were known: clients here have plans that lead there.

        To be called within a turn. Anchors may be out of reach, and nobody else names cells.
        """
        for one in records:
            if isinstance(one.value, ReachRecord):
                if one.key in self._settings.anchors:
                    self._said[one.key] = one.value.cells
                else:
                    self._desk.keep(REACH, one.key, None, "start")
        if self._said:
            self._named("start")

    def named(self, event: Received, body: Neighbours) -> None:
        """Take in an anchor's cells, and tell the nodes when they are others."""
        if event.sender not in self._settings.anchors:
            return
        if self._said.get(event.sender) != body.cells:
            self._said[event.sender] = body.cells
            self._desk.keep(REACH, event.sender, ReachRecord(body.cells), event.cause)
        self.loads |= {one.cell: load for one, load in zip(body.cells, body.loads, strict=False)}
        ways = zip(body.cells, body.round_trips_ms, strict=False)
        self.round_trips_ms |= {one.cell: way_ms for one, way_ms in ways}
        self._named(event.cause)

    def _named(self, cause: str) -> None:
        wanted = self._settings.neighbours
        cells = {
            one.cell: one
            for said in self._said.values()
            for one in said
            if one.scheduler != self._settings.name and (wanted is None or one.cell in wanted)
        }
        offsets = self._settings.mobility.offsets_db
        found = tuple(
            structs.replace(cells[name], offset_db=offsets.get(name, 0.0)) for name in sorted(cells)
        )[:MAX_NEIGHBOURS]
        reach = {one.cell: one for said in self._said.values() for one in said}
        # A service may be served in a cell that no node of ours is to go to.
        self._desk.output.reach = tuple(reach[name] for name in sorted(reach))
        if found == self.neighbours:
            return
        self.neighbours = found
        self._number += 1
        for node in self._nodes:
            if self._nodes.state(node) not in AWAY:
                self._tell(node, cause)

    def _tell(self, node: str, cause: str) -> None:
        told = Neighbours(self._number, self.neighbours, self._settings.mobility.measuring)
        self._desk.tell(ToNode(node), told, cause)

    # Nodes.

    def born(self, node: str, incarnation: int, birth: Birth, cause: str) -> None:
        """Take in a birth that counts."""
        if self.neighbours:
            self._tell(node, cause)
        self._going.pop(node, None)
        if self._carried.pop(node, None) is not None:
            self._desk.output.carries.append(Carry(node, "", 0))
        arrival = birth.arrival
        self._arrived(node)
        if arrival is None:
            return
        if len(self._arrivals) >= MAX_ARRIVALS:
            self._arrived(next(iter(self._arrivals)))
        self._arrivals[node] = _Arrival(arrival.source, arrival.handover, incarnation)
        self._untold[node] = None

    def _arrived(self, node: str) -> None:
        """Wait for nothing more of a node's arrival."""
        self._arrivals.pop(node, None)
        self._untold.pop(node, None)

    def _shown(self, node: str) -> str:
        if node in self._going:
            return f"to {self._going[node][0]}"
        arrival = self._arrivals.get(node)
        return f"from {arrival.source}" if arrival is not None and not arrival.told else ""

    def gone(self, node: str) -> None:
        """Forget the handover of a node that is lost, or has gone on."""
        self._going.pop(node, None)
        self._arrived(node)
        self._kept_ms.pop(node, None)

    def carry(self, node: str, cell: str) -> None:
        """Have what still comes for a node that is in another cell carried after it."""
        self._carried.pop(node, None)
        if len(self._carried) >= MAX_ARRIVALS:
            del self._carried[next(iter(self._carried))]
        self._carried[node] = cell
        self._desk.output.carries.append(Carry(node, cell, FORWARD_MS))

    def failed(self, event: Received, body: HandoverFailed) -> None:
        """Hand a node's word on that it could not be handed over."""
        self._going.pop(body.node, None)
        self._fleet.touch(body.node)
        self._upward(body, event.cause)

    def took(self, event: Received, body: HandoverTimes) -> None:
        """Hand on what a node says of how it came here."""
        self._upward(structs.replace(body, node=event.sender), event.cause)

    def _upward(self, body: HandoverFailed | HandoverTimes, cause: str) -> None:
        # Of several anchors the first one keeps the handovers of the cell.
        for anchor in self._settings.anchors[:1]:
            self._desk.tell(ToRole(anchor), body, cause)

    # The anchor.

    def request(self, event: Received, body: HandoverRequest) -> None:
        """Say whether there is room for a node."""
        if event.sender not in self._settings.anchors:
            return
        reason = ""
        known = body.node in self._fleet.recorded
        if not known and len(self._fleet.recorded) >= MAX_NODES:
            reason = f"{MAX_NODES} nodes are known here already"
        elif body.memory_bytes > self._free_bytes():
            reason = "there is no room for the tasks that follow it"
        cell = self._settings.cell
        answer = HandoverAnswer(body.handover, body.node, not reason, cell, reason)
        self._desk.tell(ToRole(event.sender), answer, event.cause)

    def _free_bytes(self) -> int:
        """Return the task memory that nobody has reserved in the cell."""
        booked = self._table.holds
        booked.settle(self._table.tasks)
        return sum(
            max(0, self._nodes.inventory(node).task_memory_bytes - booked.reserved_bytes(node))
            for node in self._nodes
            if self._nodes.state(node) is NodeState.ONLINE
        )

    def command(self, event: Received, body: HandoverCommand) -> None:
        """Hand a command on to its node, or say that it is not here any more."""
        if event.sender not in self._settings.anchors:
            return
        slot = self._nodes.slots.get(body.node)
        here = slot is not None and self._nodes.states[slot] not in AWAY
        if slot is not None and here and self._nodes.incarnations[slot] == body.incarnation:
            self._desk.tell(ToNode(body.node), body, event.cause)
            self._going.pop(body.node, None)
            if not body.cancelled and not body.conditional:
                until_ms = self._desk.now_ms + body.expires_ms
                self._going[body.node] = body.target.cell, until_ms
            self._fleet.touch(body.node)
        elif not body.cancelled:
            failed = HandoverFailed(body.handover, body.node, "it is not attached here any more")
            self._desk.tell(ToRole(event.sender), failed, event.cause)

    def elsewhere(self, event: Received, body: Elsewhere) -> None:
        """Take in where a task of another scheduler is served."""
        if event.sender not in self._settings.anchors:
            return
        task = body.spec.task
        if self._outdated(event.sender, body):
            return
        if body.over:
            self._table.put_away(task, None)
            return
        grant = EnvelopeGrant(
            body.service,
            body.generation,
            body.spec,
            (body.node or "nowhere",),
            0,
            0,
            body.plan_tasks,
            body.outputs,
            sources=body.sources,
            sinks=body.sinks,
            sla=body.sla,
        )
        state = CopyState.READY if body.node else CopyState.GONE
        copy = Copy(body.node, body.epoch, body.generation, grant, state, cell=body.cell)
        self._table.put_away(task, Away(event.sender, copy))

    def _outdated(self, anchor: str, body: Elsewhere) -> bool:
        """Whether another anchor has said since where a task is: it was ordered there anew."""
        known = self._table.away.get(body.spec.task)
        if known is None or known.anchor == anchor:
            return False
        said = known.copy.generation, known.copy.epoch
        return body.over or (body.generation, body.epoch) < said

    # At the end of a turn, and with time.

    def settle(self) -> None:
        """Tell the nodes whose tasks have all found their owner."""
        for node in [one for one in self._untold if not self._adoption.orphans_of(one)]:
            del self._untold[node]
            self._complete(node, self._arrivals[node])
            self._fleet.touch(node)

    def _complete(self, node: str, arrival: _Arrival) -> None:
        arrival.told += 1
        arrival.due_ms = self._desk.now_ms + COMPLETE_AGAIN_MS
        done = HandoverComplete(arrival.handover, arrival.incarnation)
        self._desk.tell(ToNode(node), done, arrival.handover or "arrival")

    def sweep(self) -> None:
        """Say again what may not have been heard."""
        now_ms = self._desk.now_ms
        for node in [one for one, (_, until_ms) in self._going.items() if now_ms >= until_ms]:
            del self._going[node]
            self._fleet.touch(node)
        due = [one for one, two in self._arrivals.items() if two.told and now_ms >= two.due_ms]
        for node in due[:AGAIN_MAX]:
            arrival = self._arrivals.pop(node)
            if arrival.told < COMPLETE_REPEATS:
                # Behind those that were not told again for longer.
                self._arrivals[node] = arrival
                self._complete(node, arrival)
        kept = self._adoption.with_orphans()
        again = [one for one in kept if now_ms - self._kept_ms.get(one, 0) >= KEPT_AGAIN_MS]
        for node in again[:AGAIN_MAX]:
            self._kept_ms[node] = now_ms
            if node in self._nodes:
                self._fleet.summarise(self._nodes.slots[node], "kept")
