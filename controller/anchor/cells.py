"""The cells of an anchor: where each is, how loaded, and who serves a node where it decides.

Whoever controls mobility in a deployment decides (`mobility.decides`): the TS of a cell by itself,
or the TA, which its schedulers hand their nodes' reports on to.
"""

from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.handovers import Handovers
from controller.decider import Received
from controller.handover_records import HandoverRecord, HandoverState
from controller.mobility.asking import Asking
from controller.mobility.control import Known
from controller.mobility.latency import use
from protocols.messages import Measurement, Neighbours
from protocols.messages.hierarchy import NodeState
from protocols.messages.mobility import MAX_NEIGHBOURS, CellPoint

LOADS_MS: Final = 5000
"""Loads are looked at so often."""
LOAD_STEP: Final = 0.1
"""A change that schedulers are told of."""
WAY_STEP: Final = 0.5
WAY_MS: Final = 2.0
"""So much, as a share and beyond it, a usual round trip has to change to be told."""
_ENDED_BADLY: Final = (HandoverState.FAILED, HandoverState.REFUSED)


class Cells:
    """Tells schedulers of each other's cells, and decides for them where it is to."""

    def __init__(self, book: Book, elsewheres: Elsewheres, handovers: Handovers) -> None:
        self._book = book
        self._elsewheres = elsewheres
        self._handovers = handovers
        settings = book.settings
        self._asking = Asking(settings.mobility, settings.name, 0)
        self._decides = settings.mobility.decides == "ta"
        self._number = 0
        self._loads: dict[str, float] = {}
        self._ways_ms: dict[str, float] = {}
        """By scheduler, as was told last."""
        self._looked_ms = 0
        if self._decides:
            handovers.watch = self._turned

    # Where cells are.

    def placed(self, scheduler: str, point: CellPoint | None, cause: str) -> None:
        """Note where a cell is reached; every scheduler is told which others there are."""
        known = self._elsewheres.points
        if scheduler not in self._book.settings.schedulers or point is None:
            return
        fresh = self._elsewheres.put(scheduler, point, cause)
        self._number += fresh
        for to in list(known) if fresh else (scheduler,):
            self._tell(to, cause)

    def _tell(self, to: str, cause: str) -> None:
        points = [one for one in self._elsewheres.points.values() if one.scheduler != to]
        cells = tuple(points[:MAX_NEIGHBOURS])
        loads = tuple(self._loads.get(one.scheduler, 0.0) for one in cells) if self._loads else ()
        ways = (
            tuple(self._ways_ms.get(one.scheduler, 0.0) for one in cells) if self._ways_ms else ()
        )
        told = Neighbours(self._number, cells, loads=loads, round_trips_ms=ways)
        self._book.desk.tell_role(to, told, cause)

    def settle(self) -> None:
        """Tell schedulers of loads that have changed."""
        now_ms = self._book.desk.now_ms
        if now_ms - self._looked_ms < LOADS_MS or len(self._elsewheres.points) <= 1:
            return
        self._looked_ms = now_ms
        loads = self._loads_now()
        steps = [abs(load - self._loads.get(one, 0.0)) for one, load in loads.items()]
        ways_ms = self._ways_now()
        longer = any(
            abs(now - self._ways_ms.get(one, 0.0)) > WAY_STEP * self._ways_ms.get(one, 0.0) + WAY_MS
            for one, now in ways_ms.items()
        )
        if longer or max(steps, default=0.0) >= LOAD_STEP:
            self._loads, self._ways_ms = loads, ways_ms
            for to in self._elsewheres.points:
                self._tell(to, "load")

    def _loads_now(self) -> dict[str, float]:
        """Return how busy the nodes of each cell are: the mean of their processors, 1 is all."""
        found: dict[str, list[float]] = {one: [] for one in self._elsewheres.points}
        for facts in self._book.nodes.values():
            if facts.state is NodeState.ONLINE and facts.scheduler in found:
                found[facts.scheduler].append(facts.cpu_percent / 100.0)
        return {
            one: min(1.0, sum(all_) / len(all_)) if all_ else 0.0 for one, all_ in found.items()
        }

    def _ways_now(self) -> dict[str, float]:
        """Return the median round trip of the nodes of each cell."""
        found: dict[str, list[float]] = {}
        for facts in self._book.nodes.values():
            if facts.state is NodeState.ONLINE and facts.round_trip_ms:
                found.setdefault(facts.scheduler, []).append(facts.round_trip_ms)
        return {one: sorted(all_)[len(all_) // 2] for one, all_ in found.items()}

    # Where the anchor decides.

    def measured(self, event: Received, body: Measurement) -> None:
        """Decide on a node's report that its scheduler has handed on."""
        book = self._book
        facts = book.nodes.get(body.node)
        here = self._elsewheres.cell_of(event.sender)
        if not self._decides or facts is None or facts.scheduler != event.sender:
            book.counters["unexpected_message"] += 1
            return
        if body.serving.cell != here or self._handovers.busy(body.node):
            return
        measures = {one.cell: one for one in (body.serving, *body.neighbours)}
        own_ms = self._ways_ms.get(event.sender, 0.0)
        known = {}
        for scheduler, point in self._elsewheres.points.items():
            there = measures.get(point.cell)
            ways = own_ms, self._ways_ms.get(scheduler, 0.0)
            through = use(body.tasks, body.serving, there, ways) if there is not None else None
            known[point.cell] = Known(self._loads.get(scheduler, 0.0), through)
        now_ms = book.desk.now_ms
        asked = self._asking.measured(body.node, facts.attached, body, known, now_ms)
        if asked is not None:
            self._handovers.required(event, structs.replace(asked, handover=""))

    def _turned(self, record: HandoverRecord) -> None:
        """Learn what has become of a handover."""
        now_ms = self._book.desk.now_ms
        if record.state in _ENDED_BADLY:
            self._asking.control.failed(record.node, record.target, now_ms)
        elif record.state is HandoverState.SWITCHING:
            self._asking.moved(record.node, record.source, record.target, now_ms)
            self._asking.control.sweep(now_ms)
