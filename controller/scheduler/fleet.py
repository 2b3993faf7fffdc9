"""The nodes of the cell: births and deaths, reports, silence; what anchors and people see of them.

Whose word counts is decided here, once, for every message of a node.
"""

from collections.abc import Callable
from typing import Final, Protocol

from msgspec.structs import replace

from controller.decider import Received, ToNode, ToRole
from controller.desk import Desk
from controller.records import FLEET, NODE, NodeRecord, NodeView
from controller.scheduler.nodes import AWAY, NodeTable
from controller.scheduler.pace import Pace
from controller.scheduler.presence import NodeEvent, advance
from controller.scheduler.quality import sane
from controller.scheduler.settings import Settings
from controller.scheduler.table import TaskTable
from protocols.messages import (
    Birth,
    Death,
    Drain,
    LinkReport,
    LoadReport,
    NodeSummary,
    RebirthRequest,
    Welcome,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Inventory

REBIRTH_QUIET_MS: Final = 1000
"""An unknown node is asked for its birth at most this often."""
MAX_UNKNOWN: Final = 100_000
MAX_NODES: Final = 100_000
"""Names of nodes that were ever seen; beyond it a new one is counted and not taken in."""
SUMMARY_STEP_PERCENT: Final = 20.0
"""A change of load of this much is worth telling the TA, who sees coarsely..."""
SUMMARY_STEP: Final = 0.5
SUMMARY_STEP_MS: Final = 2.0
"""...and so is one of the way to the node, as a share and beyond it."""
DRAINED: Final = "drained by an operator"
MOVED_MS: Final = 30_000
"""A node that has moved and turned up nowhere is lost after this."""
LOSSES_MAX: Final = 64
"""Nodes that are suspected, and given up, in one turn."""


class Watcher(Protocol):
    """Who acts on a node's change of state."""

    def __call__(
        self, node: str, after: NodeState, reason: str, cause: str, *, orderly: bool
    ) -> None:
        """Take it in."""
        ...


class Fleet:
    """Keeps the node table, and tells anchors and people of it."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        nodes: NodeTable,
        table: TaskTable,
        watcher: Watcher,
    ) -> None:
        self.counters = {
            "late_incarnation": 0,
            "too_many_nodes": 0,
            "unexpected_message": 0,
            "absurd_report": 0,
            "empty_grant": 0,
            "late_grant": 0,
            "forged_message": 0,
        }
        self.recorded: dict[str, NodeRecord] = {}
        self.pace = Pace(settings.sample_ms, settings.heartbeat_ms, desk, table)
        self._settings = settings
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._watcher = watcher
        self._asked_ms: dict[str, int] = {}
        self._dirty: set[int] = set()
        self._untold: dict[int, str] = {}
        """Nodes that anchors are told of at the end of this turn, and the cause."""
        self.moved_to: dict[str, str] = {}
        """The cell that each node which has moved has named."""
        self._moved_ms: dict[str, int] = {}
        self.kept: Callable[[str], tuple[str, ...]] = lambda _: ()
        """Tasks that a node holds and nobody has granted here."""
        self.handover: Callable[[str], str] = lambda _: ""
        """Say which handover of a node is under way."""

    # What nodes say.

    def birth(self, event: Received, birth: Birth) -> bool:
        """Take in a birth and welcome the node; returns whether its word counts."""
        node = event.sender
        known = self._nodes.slots.get(node)
        if known is not None and self._over(known, event.incarnation):
            self.counters["late_incarnation"] += 1
            return False
        if node not in self.recorded and len(self.recorded) >= MAX_NODES:
            self.counters["too_many_nodes"] += 1
            return False
        heartbeat_ms = self._settings.heartbeat_ms
        now_ms = self._desk.now_ms
        slot = self._nodes.born(node, event.incarnation, birth, heartbeat_ms, now_ms)
        self._advance(slot, NodeEvent.BIRTH, birth.draining, event.cause)
        wanted = self._wanted(node, birth)
        if birth.draining == DRAINED and not wanted:
            self._desk.tell(ToNode(node), Drain(over=True), event.cause)
        elif wanted or birth.draining:
            self._advance(slot, NodeEvent.DRAIN, wanted or birth.draining, event.cause)
            if not birth.draining:
                self._desk.tell(ToNode(node), Drain(wanted), event.cause)
        elif self._nodes.states[slot] is NodeState.DRAINING:
            self._advance(slot, NodeEvent.RESUME, "", event.cause)
        self._asked_ms.pop(node, None)
        self.moved_to.pop(node, None)
        self._moved_ms.pop(node, None)
        welcome = Welcome(
            scheduler=self._settings.name,
            scheduler_epoch=self._settings.epoch,
            incarnation=event.incarnation,
            heartbeat_ms=heartbeat_ms,
            sample_ms=self.pace.born(node),
            store_urls=self._settings.store_urls,
        )
        self._desk.tell(ToNode(node), welcome, event.cause)
        record = NodeRecord(node, birth.agent_version, birth.boot_id, birth.inventory, wanted)
        if self.recorded.get(node) != record:
            self.recorded[node] = record
            # It says so with every birth: nobody waits until this is durable.
            self._desk.learn(NODE, node, record, event.cause)
        self.summarise(slot, event.cause)
        return True

    def _over(self, slot: int, incarnation: int) -> bool:
        """Whether a connection has ended: a later one has begun, or its node has moved away."""
        last = self._nodes.incarnations[slot]
        moved = self._nodes.states[slot] is NodeState.MOVED
        return incarnation < last or (incarnation == last and moved)

    def _wanted(self, node: str, birth: Birth) -> str:
        """Return why an operator has a node emptied; where no record says, as the node says."""
        known = self.recorded.get(node)
        if known is not None:
            return known.draining
        return birth.draining if birth.draining == DRAINED else ""

    def _keep(self, record: NodeRecord, cause: str) -> None:
        if self.recorded.get(record.node) != record:
            self.recorded[record.node] = record
            self._desk.keep(NODE, record.node, record, cause)

    def death(self, event: Received, death: Death) -> None:
        """Take in a farewell, or a will, which is only a hint."""
        slot = self.known(event, ask=False)
        if slot is None:
            return
        what = NodeEvent.FAREWELL if death.orderly else NodeEvent.WILL
        reason = death.reason
        if death.orderly and death.moved_to:
            what, reason = NodeEvent.MOVE, f"it has moved to {death.moved_to}"
            self.moved_to[event.sender] = death.moved_to
            self._moved_ms[event.sender] = self._desk.now_ms
        self._advance(slot, what, reason, event.cause)
        if self._nodes.states[slot] is NodeState.SUSPECT:
            self.ask_birth(event.sender, "a will was published for you", event.cause)

    def load(self, event: Received, load: LoadReport) -> bool:
        """Take in a load report; returns whether it counts."""
        slot = self.heard(event)
        if slot is None:
            return False
        self._nodes.loaded(slot, load)
        step = abs(float(self._nodes.summarised_cpu_percent[slot]) - load.cpu_percent)
        if step >= SUMMARY_STEP_PERCENT:
            self.summarise(slot, event.cause)
        return True

    def link(self, event: Received, link: LinkReport) -> bool:
        """Take in a link report; returns whether it counts."""
        slot = self.heard(event)
        if slot is None:
            return False
        if not sane(link.round_trip_ms, link.jitter_ms, link.speed_mbit_per_s):
            self.counters["absurd_report"] += 1
            return False
        self._nodes.linked(slot, link)
        told_ms = float(self._nodes.summarised_round_trip_ms[slot])
        step_ms = abs((link.round_trip_ms or told_ms) - told_ms)
        if step_ms > SUMMARY_STEP * told_ms + SUMMARY_STEP_MS:
            self.summarise(slot, event.cause)
        return True

    def heard(self, event: Received) -> int | None:
        """Take in that a node has spoken; returns its slot when its word counts."""
        slot = self.known(event)
        if slot is not None:
            self._nodes.heard(slot, self._desk.now_ms)
            self._dirty.add(slot)
            if self._nodes.states[slot] is NodeState.SUSPECT:
                self._advance(slot, NodeEvent.HEARD, "", event.cause)
        return slot

    def known(self, event: Received, *, ask: bool = True) -> int | None:
        """Return the slot of a node whose word counts, else ask it for its birth."""
        slot = self._nodes.slots.get(event.sender)
        if slot is not None and event.incarnation < self._nodes.incarnations[slot]:
            self.counters["late_incarnation"] += 1
            return None
        if (
            slot is not None
            and self._nodes.states[slot] is NodeState.MOVED
            and event.incarnation == self._nodes.incarnations[slot]
        ):
            # What comes late of a connection that is over; nobody is there to be asked.
            return slot if isinstance(event.body, Death) else None
        unborn = (
            slot is None
            or event.incarnation > self._nodes.incarnations[slot]
            or self._nodes.states[slot] is NodeState.LOST
        )
        if unborn:
            if ask:
                self.ask_birth(event.sender, "your birth is not known here", event.cause)
            return None
        return slot

    def counts(self, event: Received) -> bool:
        """Whether the word of a node counts without another birth."""
        slot = self._nodes.slots.get(event.sender)
        if slot is None or self._nodes.states[slot] in AWAY:
            return False
        return event.incarnation == self._nodes.incarnations[slot]

    def ask_birth(self, node: str, reason: str, cause: str) -> None:
        """Have a node introduce itself again, at most now and then."""
        asked_ms = self._asked_ms.get(node)
        if asked_ms is not None and self._desk.now_ms - asked_ms < REBIRTH_QUIET_MS:
            return
        if len(self._asked_ms) >= MAX_UNKNOWN:
            self._asked_ms.clear()
        self._asked_ms[node] = self._desk.now_ms
        request = RebirthRequest(self._settings.name, self._settings.epoch, reason)
        self._desk.tell(ToNode(node), request, cause)

    def _advance(self, slot: int, event: NodeEvent, reason: str, cause: str) -> None:
        before = self._nodes.states[slot]
        after = advance(before, event)
        if after is before and event is not NodeEvent.BIRTH:
            return
        self._nodes.set_state(slot, after, self._desk.now_ms, reason)
        self._dirty.add(slot)
        if after is not before:
            self.summarise(slot, cause)
            node = self._nodes.names[slot]
            self._watcher(node, after, reason, cause, orderly=event is NodeEvent.FAREWELL)

    # Time, and people.

    def sweep(self) -> bool:
        """Suspect who is silent, give up who stays so; returns whether more are due now."""
        now_ms = self._desk.now_ms
        moved = [one for one, since in self._moved_ms.items() if now_ms - since >= MOVED_MS]
        for node in moved[:LOSSES_MAX]:
            del self._moved_ms[node]
            slot = self._nodes.slots.get(node)
            if slot is not None and self._nodes.states[slot] is NodeState.MOVED:
                self._advance(slot, NodeEvent.TIMEOUT, self._nodes.reasons[slot], "sweep")
        unconfirmed, silent = self._nodes.unconfirmed(now_ms), self._nodes.silent(now_ms)
        for slot in unconfirmed[:LOSSES_MAX]:
            silent_ms = self._nodes.silent_ms(slot, now_ms)
            self._advance(slot, NodeEvent.TIMEOUT, f"silent for {silent_ms} ms", "sweep")
        for slot in silent[:LOSSES_MAX]:
            reason = f"silent for {self._nodes.silent_ms(slot, now_ms)} ms"
            if self._nodes.states[slot] is NodeState.DRAINING:
                self._advance(slot, NodeEvent.TIMEOUT, reason, "sweep")
                continue
            self._advance(slot, NodeEvent.SILENCE, reason, "sweep")
            self.ask_birth(self._nodes.names[slot], "you have been silent", "sweep")
        self.pace.sweep()
        return max(len(moved), len(unconfirmed), len(silent)) > LOSSES_MAX

    def drain(self, node: str, cause: str, tenant: str) -> NodeState | None:
        """Have a node emptied, also one that is away; returns its state, None: nobody knows it."""
        known = self.recorded.get(node)
        if known is None:
            return None
        self._keep(replace(known, draining=DRAINED), cause)
        slot = self._nodes.slots.get(node)
        if slot is None or self._nodes.states[slot] in AWAY:
            return NodeState.LOST
        self._advance(slot, NodeEvent.DRAIN, DRAINED, cause)
        self._desk.tell(ToNode(node), Drain(DRAINED), cause, tenant)
        return NodeState.DRAINING

    def resume(self, node: str, cause: str, tenant: str) -> NodeState | None:
        """Let a node take tasks again; returns its state, None: nobody knows it."""
        known = self.recorded.get(node)
        if known is None:
            return None
        self._keep(replace(known, draining=""), cause)
        slot = self._nodes.slots.get(node)
        if slot is None or self._nodes.states[slot] in AWAY:
            return NodeState.LOST
        if self._nodes.states[slot] is NodeState.DRAINING:
            self._advance(slot, NodeEvent.RESUME, "", cause)
        self._desk.tell(ToNode(node), Drain(over=True), cause, tenant)
        return self._nodes.states[slot]

    def forget(self, node: str, cause: str) -> str:
        """Forget a node that is gone for good; returns why it cannot be, empty: it is forgotten."""
        known = self.recorded.get(node)
        if known is None:
            return f"there is no node {node!r} here"
        state = self._nodes.state(node)
        if state not in AWAY:
            return (
                f"node {node!r} is {state}: end its agent first, "
                f"it can be forgotten when it is {NodeState.LOST}"
            )
        held = self._table.on(node)
        if held:
            more = f" and {len(held) - 1} more" if len(held) > 1 else ""
            return (
                f"node {node!r} still has the place of task {held[0]!r}{more}: "
                "let it move to another node, or delete its use case, first"
            )
        # What this turn has to say of slots is said before they change.
        self.show()
        if node in self._nodes:
            self._nodes.forget(node)
        del self.recorded[node]
        self.moved_to.pop(node, None)
        self._moved_ms.pop(node, None)
        self.pace.forget(node)
        self._asked_ms.pop(node, None)
        self._desk.keep(NODE, node, None, cause)
        self._desk.show(FLEET, node, None)
        gone = NodeSummary(node, NodeState.LOST, 0, known.inventory, forgotten=True)
        for anchor in self._settings.anchors:
            self._desk.tell(ToRole(anchor), gone, cause)
        return ""

    def inventory(self, node: str) -> Inventory | None:
        """Return what a node was when it last introduced itself; None: it never did."""
        known = self.recorded.get(node)
        return known.inventory if known is not None else None

    def touch(self, node: str) -> None:
        """Have people shown a node anew."""
        slot = self._nodes.slots.get(node)
        if slot is not None:
            self._dirty.add(slot)

    def show(self) -> None:
        """Tell people, and nodes their pace, at the end of a turn."""
        self._table.holds.settle(self._table.tasks)
        booked = self._table.holds.take_changed()
        for node in self._table.take_changed_nodes():
            if node in self._nodes:
                self._dirty.add(self._nodes.slots[node])
                self.pace.changed(node)
                # Another anchor may take over what runs there.
                booked.add(node)
        if len(self._settings.anchors) > 1:
            for node in sorted(booked & self._nodes.slots.keys()):
                self.summarise(self._nodes.slots[node], "tasks")
        self._dirty.update(self._nodes.slots[node] for node in booked & self._nodes.slots.keys())
        if self._untold:
            self._tell()
        for slot in self._dirty:
            self._view(slot)
        self._dirty.clear()

    def summarise(self, slot: int, cause: str) -> None:
        """Tell all anchors how a node fares at the end of this turn, before all else of it."""
        self._nodes.summarised_cpu_percent[slot] = self._nodes.cpu_percent[slot]
        link = self._nodes.links[slot]
        self._nodes.summarised_round_trip_ms[slot] = (link.round_trip_ms or 0.0) if link else 0.0
        self._untold[slot] = cause

    def _tell(self) -> None:
        untold, self._untold = self._untold, {}
        said, self._desk.output.sends = self._desk.output.sends, []
        for slot, cause in untold.items():
            self.tell(slot, cause, self._settings.anchors)
        self._desk.output.sends += said

    def tell(self, slot: int, cause: str, anchors: tuple[str, ...]) -> None:
        """Tell anchors how a node fares now, coarsely."""
        load, link = self._nodes.loads[slot], self._nodes.links[slot]
        summary = NodeSummary(
            node=self._nodes.names[slot],
            state=self._nodes.states[slot],
            incarnation=self._nodes.incarnations[slot],
            inventory=self._nodes.births[slot].inventory,
            cpu_percent=load.cpu_percent if load else 0.0,
            memory_available_bytes=load.memory_available_bytes if load else 0,
            round_trip_ms=link.round_trip_ms if link else None,
            reason=self._nodes.reasons[slot],
            tasks=self._table.on(self._nodes.names[slot])[:256],
            arrival=self._nodes.births[slot].arrival,
            kept=self.kept(self._nodes.names[slot])[:256],
        )
        for anchor in anchors:
            others = self._table.holds.others(summary.node, anchor)
            told = replace(summary, others=others) if others else summary
            self._desk.tell(ToRole(anchor), told, cause)

    def _view(self, slot: int) -> None:
        birth = self._nodes.births[slot]
        node = self._nodes.names[slot]
        view = NodeView(
            node=node,
            state=self._nodes.states[slot],
            scheduler=self._settings.name,
            inventory=birth.inventory,
            agent_version=birth.agent_version,
            load=self._nodes.loads[slot],
            link=self._nodes.links[slot],
            tasks=self._table.on(node),
            reason=self._nodes.reasons[slot],
            warnings=birth.warnings,
            silent_ms=self._nodes.silent_ms(slot, self._desk.now_ms),
            trust=birth.trust,
            share_url=birth.share_url,
            cell=self._settings.cell,
            handover=self.handover(node),
            reserved_bytes=self._table.holds.reserved_bytes(node),
            promised_bytes=self._table.holds.promised_bytes(node),
            incarnation=self._nodes.incarnations[slot],
        )
        self._desk.show(FLEET, node, view)
