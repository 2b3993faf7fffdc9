"""Which cell is to serve a node: what its nodes measure, decided here or handed on to the TA.

The handover itself is the anchor's (`handovers.py`, docs/decisions/0027).
"""

from typing import Final

import numpy as np
from msgspec import structs

from controller.decider import Received, ToRole
from controller.desk import Desk
from controller.mobility.asking import Asking
from controller.mobility.control import Known
from controller.mobility.latency import use
from controller.scheduler.fleet import Fleet
from controller.scheduler.gauges import LATENCY, Gauges
from controller.scheduler.handovers import Handovers
from controller.scheduler.nodes import NodeTable
from controller.scheduler.settings import Settings
from controller.scheduler.table import TaskTable
from protocols.messages import Birth, HandoverAnswer, HandoverFailed, Measurement
from protocols.messages.hierarchy import NodeState
from protocols.messages.mobility import MAX_TASKS, TaskLatency

SWEEP_MS: Final = 10_000


class Mobility:
    """Takes in what nodes measure of cells."""

    def __init__(
        self,
        settings: Settings,
        desk: Desk,
        nodes: NodeTable,
        table: TaskTable,
        fleet: Fleet,
        gauges: Gauges,
        handovers: Handovers,
    ) -> None:
        self._settings = settings
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._fleet = fleet
        self._gauges = gauges
        self._handovers = handovers
        self.asking = Asking(settings.mobility, settings.name, settings.epoch)
        self._swept_ms = 0
        self._counters = fleet.counters
        self._counters |= dict.fromkeys(("measurements", "handovers_required", "ping_pongs"), 0)

    def measured(self, event: Received, body: Measurement) -> None:
        """Decide on a node's report, or hand it on."""
        slot = self._fleet.heard(event)
        anchors = self._settings.anchors[:1]
        if slot is None or not anchors or body.serving.cell != self._settings.cell:
            return
        self._counters["measurements"] += 1
        if self._settings.mobility.decides == "nobody":
            # It was told to report nothing.
            return
        if self._settings.mobility.decides == "ta":
            handed = structs.replace(body, node=event.sender, tasks=self._latencies(event.sender))
            self._desk.tell(ToRole(anchors[0]), handed, event.cause)
            return
        if self._nodes.states[slot] not in (NodeState.ONLINE, NodeState.DRAINING):
            return
        known = self._known(event.sender, body)
        required = self.asking.measured(
            event.sender, self._nodes.incarnations[slot], body, known, self._desk.now_ms
        )
        if required is not None:
            self._counters["handovers_required"] += 1
            self._desk.tell(ToRole(anchors[0]), required, event.cause)

    def _known(self, node: str, body: Measurement) -> dict[str, Known]:
        """Return what is known of each cell for a node: its load, and what its tasks would take."""
        loads, nodes = self._handovers.loads, self._nodes
        busy = float(nodes.cpu_percent[: len(nodes)].mean()) / 100.0
        tasks, here = self._latencies(node), body.serving
        known = {self._settings.cell: Known(busy, use(tasks, here, here))}
        measures = {one.cell: one for one in body.neighbours}
        usual = self._handovers.round_trips_ms
        ways_ms = nodes.round_trip_ms[: len(nodes)]
        ways_ms = ways_ms[ways_ms > 0]
        own_ms = float(np.median(ways_ms)) if len(ways_ms) else 0.0
        for point in self._handovers.neighbours:
            there = measures.get(point.cell)
            ways = own_ms, usual.get(point.cell, 0.0)
            through = use(tasks, here, there, ways) if there is not None else None
            known[point.cell] = Known(loads.get(point.cell, 0.0), through)
        return known

    def _latencies(self, node: str) -> tuple[TaskLatency, ...]:
        """Return what the tasks of a node with an agreed latency take, the worst first."""
        found = []
        for task in self._table.on(node):
            entry = self._table.tasks.get(task)
            uses = self._gauges.uses(entry) if entry is not None else ()
            found += [
                TaskLatency(max(0.0, one.measured), one.target)
                for one in uses
                if one.indicator == LATENCY and one.target > 0
            ]
        found.sort(key=lambda one: -one.measured_ms / one.bound_ms)
        return tuple(found[:MAX_TASKS])

    # What becomes of it.

    def answered(self, event: Received, body: HandoverAnswer) -> None:
        """Learn what the anchor says of a handover that was required."""
        if event.sender in self._settings.anchors:
            self.asking.answered(body, self._desk.now_ms)

    def failed(self, body: HandoverFailed) -> None:
        """Learn that a node could not be handed over."""
        self.asking.answered(body, self._desk.now_ms)

    def born(self, node: str, birth: Birth) -> None:
        """Learn that a node has come from another cell."""
        if birth.arrival is not None:
            self._moved(node, birth.arrival.source, self._settings.cell)

    def left(self, node: str, cell: str) -> None:
        """Learn that a node has gone to another cell."""
        self._moved(node, self._settings.cell, cell)

    def _moved(self, node: str, source: str, target: str) -> None:
        self._counters["ping_pongs"] += self.asking.moved(node, source, target, self._desk.now_ms)

    def sweep(self) -> None:
        """Forget what counts no more."""
        if self._desk.now_ms - self._swept_ms >= SWEEP_MS:
            self._swept_ms = self._desk.now_ms
            self.asking.control.sweep(self._desk.now_ms)
