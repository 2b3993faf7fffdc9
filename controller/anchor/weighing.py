"""What is known of a task and of those whom it serves, for `nearness.py` to weigh."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Final

from controller.anchor.book import Book
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.handovers import Handovers
from controller.anchor.nearness import STAY_S, Asker, Device, Place, Question, running_ms
from controller.anchor.placement import NodeFacts
from controller.anchor.placement.figures import START_MS
from controller.anchor.ways import Ways
from controller.records import TaskRecord

LATENCY: Final = "latency_ms"


class Weighing:
    """Puts the questions."""

    def __init__(
        self,
        book: Book,
        elsewheres: Elsewheres,
        handovers: Handovers,
        ways: Ways,
        bound_for: Callable[[str, NodeFacts], str],
    ) -> None:
        self._book = book
        self._elsewheres = elsewheres
        self._handovers = handovers
        self._ways = ways
        self._bound_for = bound_for

    def of_task(
        self, task: TaskRecord, devices: Iterable[str], chosen: str, refused: str
    ) -> Question:
        """Return what is to be weighed of one task that serves devices."""
        book, spec = self._book, task.spec
        here = self._place(task, task.node)
        there = self._place(task, chosen) if chosen in book.nodes else None
        who = tuple(self._device(one) for one in sorted(devices))
        bounds = [one.at_most for one in spec.qos.bounds if one.indicator == LATENCY]
        # Requests begin at the devices, so those that nobody has carried come from their cell.
        askers = self._askers(task.service, who[0].cell if who else here.cell)
        return Question(
            spec.task,
            here,
            there,
            refused,
            who,
            next((one for one in bounds if one is not None), None),
            max(book.figures.demand(spec.task).per_s, self._ways.per_s(task.service)),
            _memory_bytes(task),
            START_MS[spec.manifest.kind],
            self._measured((here, there, *who, *askers)),
            askers,
        )

    def of_service(self, tasks: Sequence[TaskRecord], chosen: dict[str, str]) -> Question:
        """Return what is to be weighed of a whole service that serves clients alone."""
        first = tasks[0]
        here = self._sum(tasks, {one.spec.task: one.node for one in tasks})
        there = self._sum(tasks, chosen) if chosen else None
        askers = self._askers(first.service, here.cell)
        return Question(
            first.service,
            here,
            there,
            "its tasks find no nodes there",
            (),
            None,
            sum(one.per_s for one in askers),
            sum(_memory_bytes(one) for one in tasks),
            sum(START_MS[one.spec.manifest.kind] for one in tasks),
            self._measured((here, there, *askers)),
            askers,
        )

    def _sum(self, tasks: Sequence[TaskRecord], nodes: dict[str, str]) -> Place:
        """Return the places of tasks, that a request takes one after the other, as one."""
        places = [self._place(one, nodes[one.spec.task]) for one in tasks]
        run_ms = sum(running_ms(one) for one in places)
        trips_ms = sum(one.round_trip_ms for one in places)
        names = ", ".join(dict.fromkeys(one.node for one in places))
        return Place(names, places[0].cell, trips_ms, run_ms, 0.0)

    def _askers(self, service: str, home: str) -> tuple[Asker, ...]:
        """Return from where a service is asked; empty: nobody asks from another cell.

        What gateways have counted is no more than what the nodes were really asked.
        """
        cell_of, abroad = self._elsewheres.cell_of, self._ways.abroad(service)
        found = {cell_of(one): per_s for one, per_s in abroad.items()}
        found = {cell: per_s for cell, per_s in found.items() if cell not in ("", home)}
        told_per_s = sum(found.values())
        total_per_s = self._ways.per_s(service)
        if not told_per_s or not total_per_s:
            return ()
        share = min(1.0, total_per_s / told_per_s)
        askers = [Asker(cell, share * per_s) for cell, per_s in sorted(found.items())]
        rest_per_s = total_per_s - share * told_per_s
        return (*askers, Asker(home, rest_per_s)) if rest_per_s > 0 else tuple(askers)

    def _place(self, task: TaskRecord, node: str) -> Place:
        digest = task.spec.manifest.artifact.digest
        known = self._book.figures.known.get((digest, task.tuning.provider), {})
        lines = known.values()
        # Where it never ran it is taken to run as elsewhere.
        mean_ms = sum(one.line.mean_ms for one in lines) / len(known) if known else 0.0
        run_ms = known[node].line.mean_ms if node in known else mean_ms
        facts = self._book.nodes.get(node)
        if facts is None:
            return Place(node, "", 0.0, run_ms, 0.0)
        cell = self._elsewheres.cell_of(facts.scheduler)
        busy = facts.cpu_percent / 100.0
        return Place(node, cell, facts.round_trip_ms or 0.0, run_ms, busy)

    def _device(self, node: str) -> Device:
        facts = self._book.nodes.get(node)
        if facts is None:
            return Device(node, "", 0.0, STAY_S)
        cell = self._elsewheres.cell_of(self._bound_for(node, facts))
        return Device(node, cell, facts.round_trip_ms or 0.0, self._handovers.stays_s(node))

    def _measured(
        self, places: Iterable[Place | Device | Asker | None]
    ) -> dict[tuple[str, str], float]:
        """Return the ways that are known between the cells of these."""
        cells = sorted({one.cell for one in places if one is not None})
        ways = {two: self._ways.between(*two) for two in combinations(cells, 2)}
        return {two: way_ms for two, way_ms in ways.items() if way_ms is not None}


def _memory_bytes(task: TaskRecord) -> int:
    manifest = task.spec.manifest
    return manifest.limits.state_bytes if manifest.remembers else 0
