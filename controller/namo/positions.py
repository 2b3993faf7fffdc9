"""What an anchor cannot mend: another decomposition, another anchor position, or a refusal.

TONA paper, "Task QoS Assurance": NAMO changes the anchor position or the mapping of a service to
tasks. A change is given `COOLDOWN_MS` to show whether it helps, no candidate is tried twice, and
no more than `MAX_TRIES` before there was calm, so that nothing oscillates. What was tried stands in
the service's record; after a restart both spans begin anew.

A new anchor begins its epochs above all that the old one may have leased, and the old one lets go
only when the new one has reported that the service runs: at no time does nobody own it, and of two
owners the nodes obey the newer.
"""

from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from controller.decider import Received
from controller.namo.approvals import Approvals
from controller.namo.books import Books, alive
from controller.namo.candidates import Position, Weighed, told, weigh
from controller.namo.decompose import FUSED
from controller.namo.submission import memory_of
from controller.namo.usecase import parse
from controller.records import EPOCHS_OF_GENERATION, ApprovalRecord, ServiceRecord
from protocols.errors import UserError
from protocols.messages import Escalation
from protocols.messages.hierarchy import Autonomy, ServiceState

SETTLE: Final = "settle/"
CALM: Final = "calm/"
COOLDOWN_MS: Final = 30_000
SETTLE_CAP_MS: Final = 300_000
"""Longest pause before a service that waits is looked at again."""
MAX_TRIES: Final = 4
CALM_MS: Final = 600_000
"""After this long without a change all candidates may be tried again."""
EPOCH_MARGIN: Final = 1_000_000
"""Epochs that an old anchor may go on leasing while the new one takes over."""
REASON_LENGTH: Final = 2000


class _Tries(Struct):
    """What was tried for a service since there was calm."""

    keys: set[tuple[str, str]] = set()
    changed_ms: int | None = None
    pause_ms: int = COOLDOWN_MS
    due_ms: int = 0
    """When it is looked at again."""


class Positions:
    """Answers escalations and follows up on what was changed."""

    def __init__(
        self, books: Books, approvals: Approvals, position: Callable[[], Position]
    ) -> None:
        self._books = books
        self._approvals = approvals
        self._position = position
        self._tries: dict[str, _Tries] = {}

    def restore(self) -> None:
        """Know what was tried, and look after the services that were being changed."""
        books = self._books
        for name, record in books.services.items():
            if not alive(record):
                continue
            if record.tried:
                self._tries[name] = _Tries(set(record.tried), books.now_ms)
                books.timer(CALM + name, books.now_ms + CALM_MS)
            if (record.leaving or record.tried) and record.state is not ServiceState.RUNNING:
                books.timer(SETTLE + name, books.now_ms + COOLDOWN_MS)

    def forget(self, service: str) -> None:
        """Begin anew: the service was changed or ended by its owner."""
        tries = self._tries.pop(service, None)
        if tries is not None:
            self._books.timer(SETTLE + service, None)
            if tries.changed_ms is not None:
                self._books.timer(CALM + service, None)

    def calmed(self, service: str) -> None:
        """Let all candidates be tried again: for long nothing had to be changed."""
        tries = self._tries.get(service)
        if tries is not None:
            tries.keys, tries.changed_ms = set(), None
        record = self._books.services.get(service)
        if record is not None and record.tried:
            self._books.put_service(replace(record, tried=()), f"{CALM}{service}")

    def escalated(self, escalation: Escalation, event: Received) -> None:
        """Answer an anchor: with a new configuration, a refusal, or a person's word later."""
        service = escalation.task.rpartition(".")[0]
        record = self._books.services.get(service)
        against = _out_of_date(service, record, escalation)
        if record is None or against:
            self._reply(escalation, event, against, granted=False)
            return
        autonomy = record.order.autonomy
        if escalation.proposal:
            if autonomy is Autonomy.MANUAL or escalation.person:
                self._approvals.ask(record, escalation, event, escalation.proposal)
            else:
                reason = f"the autonomy of service {service!r} is {autonomy}: the anchor may act"
                self._reply(escalation, event, reason, granted=True)
            return
        against = self._too_soon(service)
        if against:
            self._reply(escalation, event, against, granted=False)
            return
        ranked = self._weighed(record)
        chosen = self._next(record, ranked, escalation)
        if chosen is None:
            self._reply(escalation, event, self._refusal(record, ranked, escalation), granted=False)
            self._look_later(service)
        elif escalation.indicator and autonomy is not Autonomy.FULL:
            decision = f"order {chosen.name} at {chosen.anchor} instead of {_name(record)}"
            self._approvals.ask(record, escalation, event, decision, chosen.key)
        else:
            reason = self._change(record, ranked, chosen, event.cause)
            self._reply(escalation, event, reason, granted=True)

    def approved(self, approval: ApprovalRecord, cause: str) -> None:
        """Order the candidate that a person has approved, if it still can be."""
        record = self._books.services.get(approval.service)
        escalation = approval.escalation
        if record is None or escalation is None or not alive(record):
            return
        ranked = self._weighed(record)
        wanted = (approval.decomposition, approval.anchor)
        chosen = next((one for one in ranked if one.key == wanted and one.feasible), None)
        granted = chosen is not None
        if chosen is None:
            reason = f"{' at '.join(wanted)} was approved, but is possible no more"
        else:
            reason = self._change(record, ranked, chosen, cause)
        self._approvals.reply(
            escalation, approval.asked_by, reason, cause, approval.tenant, granted=granted
        )

    def settle(self, service: str) -> None:
        """Look whether a change has helped, or whether something fits by now."""
        record = self._books.services.get(service)
        if record is None or not alive(record):
            self._tries.pop(service, None)
            return
        # What is in danger its anchor escalates again; what has no place is a loss to be mended.
        stuck = record.state is ServiceState.DEPLOYING and bool(record.leaving)
        if record.state is not ServiceState.WAITING and not stuck:
            return
        if self._too_soon(service):
            self._look_later(service)
            return
        ranked = self._weighed(record)
        chosen = self._next(record, ranked, None)
        if chosen is None:
            self._look_later(service)
        else:
            self._change(record, ranked, chosen, f"{SETTLE}{service}")

    # Choosing.

    def _too_soon(self, service: str) -> str:
        tries = self._tries.get(service)
        if tries is None or tries.changed_ms is None:
            return ""
        if self._books.now_ms - tries.changed_ms < COOLDOWN_MS:
            return (
                f"service {service!r} was changed a moment ago: "
                f"it has {COOLDOWN_MS // 1000} s to show whether that helps"
            )
        if len(tries.keys) >= MAX_TRIES:
            return (
                f"{len(tries.keys)} ways to do service {service!r} were tried "
                f"within {CALM_MS // 60_000} minutes, and none has helped"
            )
        return ""

    def _weighed(self, record: ServiceRecord) -> list[Weighed]:
        order = record.order
        held = self._books.use_cases.get(order.use_case)
        if held is None:
            return []
        generation = order.generation + 1
        place = (record.anchor, memory_of(record))
        try:
            use_case, _ = parse(held.document, "json")
            service = next((one for one in use_case.services if one.name == order.service), None)
            if service is None:
                return []
            return weigh(service, order.use_case, generation, self._position(), place)
        except UserError:
            return []

    def _next(
        self, record: ServiceRecord, ranked: list[Weighed], escalation: Escalation | None
    ) -> Weighed | None:
        """Return the best candidate that was not tried and promises more; None: there is none."""
        tries = self._tries.get(record.order.service)
        tried = tries.keys if tries is not None else set()
        current = (record.order.decomposition, record.anchor)
        fits = any(one.feasible for one in ranked if one.key == current)
        return next(
            (
                one
                for one in ranked
                if one.feasible
                and one.key != current
                and one.key not in tried
                and _promises(one, record, escalation)
                and not self._same_nodes(one, record, escalation, fits=fits)
            ),
            None,
        )

    def _same_nodes(
        self, one: Weighed, record: ServiceRecord, escalation: Escalation | None, *, fits: bool
    ) -> bool:
        """Whether another anchor would look in vain for a node where this one has.

        One that knows fewer nodes of the same cells has just begun, and will know them all.
        """
        if one.anchor == record.anchor or (escalation is not None and escalation.indicator):
            return False
        present = self._books.present()
        here, there = present.get(record.anchor), present.get(one.anchor)
        same_way = one.key[0] == record.order.decomposition
        if not same_way or here is None or there is None:
            return False
        return {*there.cells} <= {*here.cells} and (fits or here.nodes < there.nodes)

    def _refusal(self, record: ServiceRecord, ranked: list[Weighed], escalation: Escalation) -> str:
        service = record.order.service
        current = (record.order.decomposition, record.anchor)
        others = [one for one in ranked if one.key != current]
        advice = (
            f"add a node that task {escalation.task!r} fits on, "
            "or loosen its nodes, demand or latency bound"
        )
        if not others:
            return (
                f"service {service!r} has no other decomposition than its document, "
                f"and {record.anchor} is its only anchor: {advice}"
            )
        tries = self._tries.get(service)
        tried = tries.keys if tries is not None else set()
        reasons = []
        for one in others:
            said = one.estimate
            why = "tried already" if one.key in tried else said.never or said.unfit or said.short
            reasons.append(f"{one.name} at {one.anchor}: {why or 'promises no more'}")
        return f"no other way to do service {service!r} helps ({'; '.join(reasons)}): {advice}"[
            :REASON_LENGTH
        ]

    # Acting.

    def _change(
        self, record: ServiceRecord, ranked: list[Weighed], chosen: Weighed, cause: str
    ) -> str:
        """Order a candidate instead of what is held; returns what was done."""
        books, service = self._books, record.order.service
        tries = self._tries.setdefault(service, _Tries())
        tries.keys |= {(record.order.decomposition, record.anchor), chosen.key}
        tries.changed_ms, tries.pause_ms = books.now_ms, COOLDOWN_MS
        moves = chosen.anchor != record.anchor
        # Who has begun it has begun there, whether we have heard of it or not.
        begun = (record.order.generation - 1) * EPOCHS_OF_GENERATION
        above = max(record.order.epochs_above, record.epoch_high, begun)
        leaving = dict.fromkeys((*record.leaving, record.anchor) if moves else record.leaving)
        leaving.pop(chosen.anchor, None)
        reason = f"{_name(record)} did not do: {chosen.name} at {chosen.anchor} is ordered"
        changed = replace(
            record,
            order=replace(
                chosen.order,
                generation=record.order.generation + 1,
                epochs_above=above + EPOCH_MARGIN if moves else record.order.epochs_above,
            ),
            anchor=chosen.anchor,
            state=ServiceState.DEPLOYING,
            reason=reason,
            candidates=told(ranked, chosen),
            leaving=tuple(leaving),
            tried=tuple(sorted(tries.keys)),
        )
        self._approvals.withdraw(service, cause)
        books.put_service(changed, cause)
        books.refresh(record.order.use_case, cause)
        books.tell(service, cause)
        tries.due_ms = books.now_ms + COOLDOWN_MS
        books.timer(SETTLE + service, tries.due_ms)
        books.timer(CALM + service, books.now_ms + CALM_MS)
        return f"generation {changed.order.generation}: {reason}"

    def _look_later(self, service: str) -> None:
        """Look again after a pause that grows: an anchor may have room by then."""
        tries = self._tries.setdefault(service, _Tries())
        if tries.due_ms <= self._books.now_ms:
            tries.due_ms = self._books.now_ms + tries.pause_ms
            self._books.timer(SETTLE + service, tries.due_ms)
            tries.pause_ms = min(2 * tries.pause_ms, SETTLE_CAP_MS)

    def _reply(
        self, escalation: Escalation, event: Received, reason: str, *, granted: bool
    ) -> None:
        self._approvals.reply(
            escalation, event.sender, reason, event.cause, event.tenant, granted=granted
        )


def _out_of_date(service: str, record: ServiceRecord | None, escalation: Escalation) -> str:
    if record is None or not alive(record):
        return f"service {service!r} is not ordered: nothing is to be kept up"
    if record.order.generation != escalation.generation:
        return (
            f"generation {escalation.generation} of service {service!r} is over: "
            f"{record.order.generation} was ordered"
        )
    return ""


def _promises(one: Weighed, record: ServiceRecord, escalation: Escalation | None) -> bool:
    """Whether a candidate may do better than what is held."""
    lost = escalation is None or not escalation.indicator
    if lost:
        # Steps that must share a node are no easier to place than those that need not.
        held, _, _ = record.order.decomposition.rpartition("+")
        same_way = one.name == f"{held}+{FUSED}" and one.anchor == record.anchor
        return not same_way
    if escalation is None or escalation.measured is None:
        return True
    predicted = one.estimate.values.get(escalation.indicator)
    if predicted is None or escalation.target is None:
        return True
    higher = escalation.target > escalation.measured
    return predicted > escalation.measured if higher else predicted < escalation.measured


def _name(record: ServiceRecord) -> str:
    return f"{record.order.decomposition} at {record.anchor}"
