"""Other cells as the gateway sees them, for anchors to weigh: the ways there, and who asks there.

A client in this cell may ask for a service that is served in another one. Its requests are carried
by the gateway, or were planned here. What its own nodes are asked comes from everywhere.
"""

from collections import deque
from math import exp
from statistics import median
from typing import Final

from controller.decider import Abroad, ToRole
from controller.desk import Desk
from controller.scheduler.table import TaskTable
from protocols.messages import CellReport, QualityReport
from protocols.messages.hierarchy import MAX_ASKED, MAX_CELLS, Asked, CellWay

SAMPLES: Final = 5
"""Of these the median is told: a gateway that is busy for a moment makes no way longer."""
STEP: Final = 0.2
STEP_MS: Final = 0.5
"""So much, as a share and beyond it, a way has to change to be told."""
COUNTED_MAX: Final = 10_000
"""Services that are counted between two looks."""
RATED_MS: Final = 2500
"""Rates are looked at so often."""
RECENT_MS: Final = 5000.0
"""Requests of so long ago count for a third."""
ASKED_STEP: Final = 0.5
LEAST_PER_S: Final = 0.2
"""So much, as a share and beyond it, a rate has to change; what is less is not told."""


class _Rates:
    """How often something is asked, by service."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._rates: dict[str, float] = {}

    def count(self, service: str, count: int = 1) -> None:
        if service in self._counts or len(self._counts) < COUNTED_MAX:
            self._counts[service] = self._counts.get(service, 0) + count

    def after(self, ms: int) -> dict[str, float]:
        """Return the highest rates, per second; `ms` have passed since the last time."""
        counts, self._counts = self._counts, {}
        kept = exp(-ms / RECENT_MS)
        rates = {one: kept * per_s for one, per_s in self._rates.items()}
        for service, count in counts.items():
            rates[service] = rates.get(service, 0.0) + (1 - kept) * count * 1000 / ms
        told = {one: per_s for one, per_s in rates.items() if per_s > LEAST_PER_S / 2}
        most = sorted(told, key=lambda one: (-told[one], one))[:MAX_ASKED]
        self._rates = {one: told[one] for one in most}
        return {one: per_s for one, per_s in self._rates.items() if per_s >= LEAST_PER_S}


class Ways:
    """Tells anchors how far other cells are, and what is asked here and there."""

    def __init__(self, desk: Desk, anchors: tuple[str, ...], table: TaskTable) -> None:
        self._desk = desk
        self._anchors = anchors
        self._table = table
        self._samples: dict[str, deque[float]] = {}
        self._ways: dict[str, float] = {}
        """As told, like what follows."""
        self._abroad, self._asked = _Rates(), dict[str, float]()
        self._here, self._served = _Rates(), dict[str, float]()
        self._rated_ms: int | None = None

    def planned(self, service: str) -> None:
        """Count a request that was planned here and begins in another cell."""
        self._abroad.count(service)

    def ran(self, node: str, report: QualityReport) -> None:
        """Take in how often a node was asked."""
        for sample in report.tasks:
            entry = self._table.tasks.get(sample.task)
            came = sample.done + sample.failed + sample.shed + sample.late
            # Who asks for a service asks for its first task.
            first = entry is not None and entry.grant.plan_tasks[:1] == (sample.task,)
            if entry is not None and came and first and entry.may_be_on(node):
                self._here.count(entry.grant.service, came)

    def seen(self, event: Abroad) -> None:
        """Take in what the gateway has seen; a cell that is not named is out of reach."""
        ways = self._timed(event)
        for service, count in event.asked.items():
            self._abroad.count(service, count)
        asked, served = self._asked, self._served
        over_ms = self._desk.now_ms - (self._rated_ms or 0)
        if self._rated_ms is None or over_ms >= RATED_MS:
            asked, served = self._abroad.after(over_ms), self._here.after(over_ms)
            self._rated_ms = self._desk.now_ms
        if (
            _others(ways, self._ways, STEP, STEP_MS)
            or _others(asked, self._asked, ASKED_STEP, LEAST_PER_S)
            or _others(served, self._served, ASKED_STEP, LEAST_PER_S)
        ):
            self._ways, self._asked, self._served = ways, asked, served
            for anchor in self._anchors:
                self._tell(anchor, "ways")

    def again(self, anchor: str, cause: str) -> None:
        """Tell an anchor that may have forgotten."""
        if self._ways or self._asked or self._served:
            self._tell(anchor, cause)

    def _timed(self, event: Abroad) -> dict[str, float]:
        cells = sorted(event.answers_ms)[:MAX_CELLS]
        self._samples = {one: self._samples.get(one, deque(maxlen=SAMPLES)) for one in cells}
        for cell in cells:
            answer_ms = event.answers_ms[cell]
            if answer_ms is not None:
                self._samples[cell].append(answer_ms)
        return {one: median(all_) for one, all_ in self._samples.items() if all_}

    def _tell(self, anchor: str, cause: str) -> None:
        ways = tuple(CellWay(cell, round(ms, 3)) for cell, ms in self._ways.items())
        report = CellReport(ways, _asked(self._asked), _asked(self._served))
        self._desk.tell(ToRole(anchor), report, cause)


def _asked(rates: dict[str, float]) -> tuple[Asked, ...]:
    return tuple(Asked(service, round(per_s, 3)) for service, per_s in rates.items())


def _others(now: dict[str, float], told: dict[str, float], step: float, least: float) -> bool:
    """Whether figures are worth telling anew."""
    return now.keys() != told.keys() or any(
        abs(value - told[one]) > step * told[one] + least for one, value in now.items()
    )
