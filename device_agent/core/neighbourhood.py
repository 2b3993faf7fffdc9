"""Which cells a node knows, and in which order it would try them."""

from collections.abc import Iterable
from typing import Final

from device_agent.core.commands import KeepPlace, Place
from device_agent.core.turn import Turn
from protocols.messages.mobility import MAX_NEIGHBOURS, CellPoint, Neighbours

POINTS_MAX: Final = MAX_NEIGHBOURS + 2
"""Cells that are known: neighbours, the one that serves, the one before it."""


class Neighbourhood:
    """The cell that serves, the one before it, the one at home, and those around."""

    def __init__(self, turn: Turn, home: str, place: Place, *, alone: bool) -> None:
        """Begin as served by the present cell; `alone`: the node has one radio."""
        self._turn = turn
        self._home = home
        self._alone = alone
        self.here = place.serving or CellPoint(turn.cell, turn.cell, ())
        """Of the cell that serves; without addresses it is where the configuration says."""
        self._before: CellPoint | None = None
        self._number = -1
        self._cells = place.neighbours
        self._kept = place
        self._best: tuple[str, ...] = ()
        """Neighbours by the last measurement."""
        self._know_stores()

    def told(self, body: Neighbours) -> bool:
        """Take the cells around; an older word changes nothing. Return whether it was news."""
        if body.number <= self._number:
            self._turn.counts["stale neighbours"] += body.number < self._number
            return False
        self._number = body.number
        self._cells = body.cells
        self._know_stores()
        return True

    def measured(self, levels: dict[str, float]) -> None:
        """Take the levels of cells, higher is better."""
        self._best = tuple(sorted(levels, key=lambda cell: -levels[cell]))

    def entered(self, point: CellPoint) -> None:
        """Be served by another cell: what the one before said of those around is over."""
        self._before, self.here = self.here, point
        self._number = -1
        self._best = ()
        self._know_stores()

    def addresses(self, point: CellPoint) -> tuple[str, ...]:
        """Return where a cell's broker is; empty: where the configuration says."""
        return () if point.cell == self._home else point.broker_urls

    def rank(self, cell: str) -> int:
        """Return a cell's place in the last measurement, 0 the best; one not measured is last."""
        return self._best.index(cell) if cell in self._best else len(self._best)

    def others(self) -> list[CellPoint]:
        """Return the cells around, best first; home is always one of them, and the last."""
        known = {one.cell: one for one in self._cells}
        if self._before is not None:
            known.setdefault(self._before.cell, self._before)
        known.setdefault(self._home, CellPoint(self._home, self._home, ()))
        known.pop(self._turn.cell, None)
        return sorted(known.values(), key=lambda one: (one.cell == self._home, self.rank(one.cell)))

    def round(self) -> list[CellPoint]:
        """Return whom to try without a link; with one radio the lost cell comes second."""
        others = self.others()
        return [*others[:1], self.here, *others[1:]] if self._alone and others else others

    def fallbacks(self) -> list[CellPoint]:
        """Return whom to try after a cell in vain; with one radio its own has been left as well."""
        return [self.here, *self.others()] if self._alone else self.others()

    def keep(self) -> None:
        """Journal who serves and who is around, when that has changed."""
        serving = None if self.here.cell == self._home else self.here
        place = Place(self._home, serving, self._cells)
        if place != self._kept:
            self._kept = place
            self._turn.out.append(KeepPlace(place, "mobility"))

    def _know_stores(self) -> None:
        """Know the stores of the cells around, for values that lie there."""
        points: Iterable[CellPoint] = (*self._cells, self.here)
        if self._before is not None:
            points = (*points, self._before)
        self._turn.stores.update({one.cell: one.store_urls for one in points if one.store_urls})
        while len(self._turn.stores) > POINTS_MAX:
            del self._turn.stores[next(iter(self._turn.stores))]
