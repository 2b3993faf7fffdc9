"""Use cases that the network itself asks for: submitted and withdrawn by coarse fleet state.

TONA paper, "Network AI": network intelligence spans many network elements, network-element
intelligence lives in one. A trigger is pulled when its conditions have held for a while, let go
when they have cleared (beyond `until`) for as long, and switches no faster than its cooldown.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec.structs import replace

from controller.namo.books import Books
from controller.namo.candidates import Position
from controller.namo.model import Reach, Threshold, Trigger
from controller.namo.submission import next_generation, plan_services
from controller.namo.usecase import parse
from controller.records import UseCaseRecord, UseCaseState
from protocols.errors import UserError
from protocols.messages import AnchorSummary
from protocols.messages.hierarchy import ServiceState

PULL: Final = "pull/"
_OVER: Final = (UseCaseState.DELETED, UseCaseState.DELETING)
_MARK: Final = '"trigger"'


class Triggers:
    """Watches the aggregates for the use cases that have a trigger."""

    def __init__(
        self,
        books: Books,
        position: Callable[[], Position],
        end: Callable[[str, str, str], None],
    ) -> None:
        self._books = books
        self._position = position
        self._end = end
        self._triggers: dict[str, Trigger] = {}
        self._since: dict[str, int] = {}
        """When the conditions began to ask for the other state."""
        self._switched: dict[str, int] = {}

    def restore(self) -> None:
        """Find the triggers among the use cases that there are."""
        for record in list(self._books.use_cases.values()):
            if _MARK in record.document:
                self._know(record)

    def changed(self, record: UseCaseRecord, cause: str) -> None:
        """Take in a submitted use case, and hold its trigger against what is known."""
        self._know(record)
        self._since.pop(record.name, None)
        if record.name in self._triggers:
            self.look(cause)

    def _know(self, record: UseCaseRecord) -> None:
        self._triggers.pop(record.name, None)
        if _MARK not in record.document or record.state in _OVER:
            return
        try:
            use_case, _ = parse(record.document, "json")
        except UserError:
            # Another version has taken it in: what runs of it goes on, it is not switched.
            return
        if use_case.trigger is not None:
            self._triggers[record.name] = use_case.trigger

    def look(self, cause: str) -> None:
        """Hold every trigger against the newest aggregates."""
        for name, trigger in list(self._triggers.items()):
            record = self._books.use_cases.get(name)
            if record is None or record.state in _OVER:
                del self._triggers[name]
                self._since.pop(name, None)
                self._switched.pop(name, None)
            elif self._books.summaries:
                self._look(record, trigger, cause)

    def _look(self, record: UseCaseRecord, trigger: Trigger, cause: str) -> None:
        name, now_ms = record.name, self._books.now_ms
        active = record.state is not UseCaseState.DORMANT
        met = pulled(trigger, self._books.present(), active=active)
        if met == active:
            if self._since.pop(name, None) is not None:
                self._books.timer(PULL + name, None)
            return
        since_ms = self._since.setdefault(name, now_ms)
        due_ms = since_ms + trigger.for_ms
        if name in self._switched:
            due_ms = max(due_ms, self._switched[name] + trigger.cooldown_ms)
        if now_ms < due_ms or (met and self._ending(record)):
            self._books.timer(PULL + name, due_ms if now_ms < due_ms else None)
            return
        self._since.pop(name)
        self._switched[name] = now_ms
        if met:
            self._submit(record, trigger, cause)
        else:
            self._withdraw(record, trigger, cause)

    def _ending(self, record: UseCaseRecord) -> bool:
        """Whether services of its last time are not over yet; their end makes us look again."""
        held = [self._books.services.get(one) for one in record.services]
        return any(one is not None and one.ending and not _gone(one.state) for one in held)

    def _submit(self, record: UseCaseRecord, trigger: Trigger, cause: str) -> None:
        books = self._books
        use_case, _ = parse(record.document, "json")
        generation = next_generation(use_case, books.use_cases, books.services, same=False)
        try:
            planned = plan_services(
                use_case, record.tenant, generation, books.services, self._position()
            )
        except UserError as error:
            books.put_use_case(replace(record, reason=str(error)[:500]), cause)
            return
        for made in planned:
            books.put_service(made, cause)
            books.tell(made.order.service, cause)
        pulled_by = f"pulled: {_told(trigger, books.present())}"
        books.put_use_case(
            replace(record, state=UseCaseState.ACCEPTED, generation=generation, reason=pulled_by),
            cause,
        )

    def _withdraw(self, record: UseCaseRecord, trigger: Trigger, cause: str) -> None:
        for service in record.services:
            self._end(service, record.name, cause)
        reason = f"let go: {_told(trigger, self._books.present())}"
        self._books.put_use_case(replace(record, state=UseCaseState.DORMANT, reason=reason), cause)


def pulled(trigger: Trigger, summaries: dict[str, AnchorSummary], *, active: bool) -> bool:
    """Whether the conditions hold; an active trigger holds until they have cleared."""
    if trigger.network is Reach.NETWORK:
        return _met(trigger, _together(summaries.values()), active=active)
    return any(
        _met(trigger, _together([one]), active=active)
        for one in summaries.values()
        if trigger.element in (None, one.anchor)
    )


def _met(trigger: Trigger, values: dict[str, float], *, active: bool) -> bool:
    return all(
        name in values and _beyond(one, values[name], active=active)
        for name, one in trigger.when.items()
    )


def _beyond(one: Threshold, value: float, *, active: bool) -> bool:
    least, most = one.at_least, one.at_most
    if active and one.until is not None:
        least, most = (one.until, None) if least is not None else (None, one.until)
    return (least is None or value >= least) and (most is None or value <= most)


def _together(summaries: Iterable[AnchorSummary]) -> dict[str, float]:
    """Return the aggregates over some anchors; what none of them knows is left out."""
    every: Sequence[AnchorSummary] = list(summaries)
    nodes = sum(one.nodes for one in every)
    trips = [one.round_trip_ms for one in every if one.round_trip_ms is not None]
    values = {
        "nodes": float(nodes),
        "lost": float(sum(one.lost for one in every)),
        "cpu_count": float(sum(one.cpu_count for one in every)),
        "task_memory_free_bytes": float(sum(one.task_memory_free_bytes for one in every)),
        "largest_free_bytes": float(max((one.largest_free_bytes for one in every), default=0)),
    }
    if nodes:
        values["cpu_percent"] = sum(one.cpu_percent * one.nodes for one in every) / nodes
    if trips:
        values["round_trip_ms"] = max(trips)
    return values


def _told(trigger: Trigger, summaries: dict[str, AnchorSummary]) -> str:
    """Say in a clause how the aggregates of a trigger stand."""
    chosen = [
        one
        for one in summaries.values()
        if trigger.network is Reach.NETWORK or trigger.element in (None, one.anchor)
    ]
    values = _together(chosen)
    return ", ".join(
        f"{name} {values[name]:.4g}" if name in values else f"{name} unknown"
        for name in trigger.when
    )


def _gone(state: ServiceState) -> bool:
    return state is ServiceState.DELETED
