"""The ways to other cells, as the gateway has timed them, for anchors to weigh."""

from collections import deque
from statistics import median
from typing import Final

from controller.decider import Timed, ToRole
from controller.desk import Desk
from protocols.messages import CellReport
from protocols.messages.hierarchy import MAX_CELLS, CellWay

SAMPLES: Final = 5
"""Of these the median is told: a gateway that is busy for a moment makes no way longer."""
STEP: Final = 0.2
STEP_MS: Final = 0.5
"""So much, as a share and beyond it, a way has to change to be told."""


class Ways:
    """Tells anchors how far other cells are."""

    def __init__(self, desk: Desk, anchors: tuple[str, ...]) -> None:
        self._desk = desk
        self._anchors = anchors
        self._samples: dict[str, deque[float]] = {}
        self._told: dict[str, float] = {}

    def timed(self, event: Timed) -> None:
        """Take in what a round of questions has shown; a cell that is not named is out of reach."""
        cells = sorted(event.answers_ms)[:MAX_CELLS]
        self._samples = {one: self._samples.get(one, deque(maxlen=SAMPLES)) for one in cells}
        for cell in cells:
            answer_ms = event.answers_ms[cell]
            if answer_ms is not None:
                self._samples[cell].append(answer_ms)
        now = {one: median(all_) for one, all_ in self._samples.items() if all_}
        if now.keys() != self._told.keys() or any(
            abs(way_ms - self._told[one]) > STEP * self._told[one] + STEP_MS
            for one, way_ms in now.items()
        ):
            self._told = now
            for anchor in self._anchors:
                self._tell(anchor, "ways")

    def again(self, anchor: str, cause: str) -> None:
        """Tell an anchor that may have forgotten."""
        if self._told:
            self._tell(anchor, cause)

    def _tell(self, anchor: str, cause: str) -> None:
        ways = tuple(CellWay(cell, round(ms, 3)) for cell, ms in self._told.items())
        self._desk.tell(ToRole(anchor), CellReport(ways), cause)
