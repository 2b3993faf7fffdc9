"""How far the cells of an anchor are from each other, as their gateways have timed it."""

from controller.anchor.elsewhere import Elsewheres
from controller.decider import Received
from protocols.messages import CellReport


class Ways:
    """What schedulers have told; they tell it again to an anchor that has begun anew."""

    def __init__(self, elsewheres: Elsewheres) -> None:
        self._elsewheres = elsewheres
        self._told: dict[str, dict[str, float]] = {}

    def told(self, event: Received, report: CellReport) -> None:
        """Take in what a scheduler's gateway has timed."""
        self._told[event.sender] = {one.cell: one.round_trip_ms for one in report.ways}

    def between(self, one: str, other: str) -> float | None:
        """Return the round trip in ms between the gateways of two cells; None: it is not known."""
        cell_of = self._elsewheres.cell_of
        ends = (one, other), (other, one)
        found = [
            ways[there]
            for scheduler, ways in self._told.items()
            for here, there in ends
            if cell_of(scheduler) == here and there in ways
        ]
        return sum(found) / len(found) if found else None
