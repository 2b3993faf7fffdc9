"""Other cells as the gateways of an anchor see them: how far they are, and who asks there."""

from collections.abc import Iterable

from controller.anchor.elsewhere import Elsewheres
from controller.decider import Received
from protocols.messages import CellReport
from protocols.messages.hierarchy import Asked


class Ways:
    """What schedulers have told; they tell it again to an anchor that has begun anew."""

    def __init__(self, elsewheres: Elsewheres) -> None:
        self._elsewheres = elsewheres
        self._told: dict[str, dict[str, float]] = {}
        self._asked: dict[str, dict[str, float]] = {}
        """By service and scheduler: requests per second of the clients in its cell, from afar."""
        self._served: dict[str, dict[str, float]] = {}
        """The same of all that is asked of the nodes in its cell."""

    def told(self, event: Received, report: CellReport) -> list[str]:
        """Take in what a scheduler's gateway has seen; return the services that it names."""
        sender = event.sender
        self._told[sender] = {one.cell: one.round_trip_ms for one in report.ways}
        _put(self._asked, sender, report.asked)
        _put(self._served, sender, report.served)
        return [one.service for one in report.asked]

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

    def abroad(self, service: str) -> dict[str, float]:
        """Return the requests per second for a service from cells where it is not served."""
        return dict(self._asked.get(service, {}))

    def per_s(self, service: str) -> float:
        """Return the requests per second for a service, from everywhere; 0: that is not known."""
        return max(self._served.get(service, {}).values(), default=0.0)


def _put(rates: dict[str, dict[str, float]], sender: str, told: Iterable[Asked]) -> None:
    for service in [one for one, by in rates.items() if sender in by]:
        del rates[service][sender]
        if not rates[service]:
            del rates[service]
    for one in told:
        rates.setdefault(one.service, {})[sender] = one.per_s
