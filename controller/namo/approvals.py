"""Decisions that wait for a person: asked once, answered once, durable.

TONA paper, autonomy: fully autonomous, partially autonomous, manually controllable. What a loss
demands is never asked.
"""

from typing import Final, Protocol, cast

from msgspec.structs import replace

from controller.decider import Called, Received
from controller.namo.books import Books
from controller.namo.reader import near
from controller.namo.submission import check_tenant
from controller.records import ApprovalRecord, ApprovalState, ServiceRecord
from protocols.errors import UserError
from protocols.messages import Escalation, EscalationAnswer

GRANT: Final = "approve.grant"
DENY: Final = "approve.deny"
DENIED_MS: Final = 600_000
"""What a person has denied is not asked again for this long."""
MAX_PENDING: Final = 1024
REASON_LENGTH: Final = 1500
ATTEMPTS_TOLD: Final = 4


class DecideArguments(Protocol):
    """What `approve.grant` and `approve.deny` are called with."""

    name: str


class Approvals:
    """Asks, and hands answers to whoever waits for them."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._denied: dict[tuple[str, str], int] = {}
        """Service and decision, and until when it is not asked again."""

    def ask(
        self,
        record: ServiceRecord,
        escalation: Escalation,
        event: Received,
        decision: str,
        candidate: tuple[str, str] = ("", ""),
    ) -> None:
        """Ask a person, or refuse what one has just denied; the anchor hears the answer then."""
        service = record.order.service
        now_ms = self._books.now_ms
        self._denied = {key: until for key, until in self._denied.items() if now_ms < until}
        denied = (service, decision) in self._denied
        pending = [one for one in self._pending() if one.service == service]
        same = next((one for one in pending if one.decision == decision), None)
        if denied or (same is None and len(self._pending()) >= MAX_PENDING):
            why = "a person has denied this" if denied else "too many decisions wait already"
            self.reply(escalation, event.sender, why, event.cause, record.tenant, granted=False)
            return
        asked = ApprovalRecord(
            number=same.number if same is not None else self._number(),
            service=service,
            tenant=record.tenant,
            decision=decision,
            reason=_reason(escalation),
            asked_by=event.sender,
            escalation=escalation,
            decomposition=candidate[0],
            anchor=candidate[1],
        )
        self._books.put_approval(asked, event.cause)

    def decide(self, call: Called, *, granted: bool) -> ApprovalRecord:
        """Take a person's answer and answer the call. Raises UserError."""
        name = cast("DecideArguments", call.arguments).name
        record = self._books.approvals.get(name)
        if record is None:
            known = [one.number for one in self._pending()]
            raise UserError(f"there is no approval {name!r}{near(name, known)}")
        check_tenant(record.tenant, call.tenant, f"approval {name}")
        wanted = ApprovalState.GRANTED if granted else ApprovalState.DENIED
        if record.state not in (ApprovalState.PENDING, wanted):
            raise UserError(f"approval {name} is {record.state} already")
        first = record.state is ApprovalState.PENDING
        if first:
            record = replace(record, state=wanted, answered_by=call.tenant)
            self._books.put_approval(record, call.cause)
            if not granted:
                self._denied[record.service, record.decision] = self._books.now_ms + DENIED_MS
            if not (granted and record.decomposition):
                self._tell(record, call.cause, granted=granted)
        self._books.answer(call, record)
        return record if first else replace(record, decomposition="")

    def withdraw(self, service: str, cause: str) -> None:
        """Take back what was asked about a service that has changed or ended."""
        for record in self._pending():
            if record.service == service:
                gone = replace(record, state=ApprovalState.WITHDRAWN)
                self._books.put_approval(gone, cause)
        for key in [one for one in self._denied if one[0] == service]:
            del self._denied[key]

    def reply(
        self,
        escalation: Escalation,
        anchor: str,
        reason: str,
        cause: str,
        tenant: str,
        *,
        granted: bool,
    ) -> None:
        """Answer an escalation."""
        answer = EscalationAnswer(escalation.number, escalation.task, granted, reason)
        self._books.send(anchor, answer, cause, tenant)

    def _tell(self, record: ApprovalRecord, cause: str, *, granted: bool) -> None:
        if record.escalation is not None:
            reason = f"approval {record.number} was {record.state} by {record.answered_by}"
            self.reply(
                record.escalation, record.asked_by, reason, cause, record.tenant, granted=granted
            )

    def _pending(self) -> list[ApprovalRecord]:
        records = self._books.approvals.values()
        return [one for one in records if one.state is ApprovalState.PENDING]

    def _number(self) -> str:
        """Return a number above every one that is kept: short enough to type."""
        return str(1 + max((int(one) for one in self._books.approvals), default=0))


def _reason(escalation: Escalation) -> str:
    tried = "; ".join(f"{one.action}: {one.outcome}" for one in escalation.attempts[:ATTEMPTS_TOLD])
    told = f"{escalation.task}: {escalation.problem}"
    return (f"{told} (tried: {tried})" if tried else told)[:REASON_LENGTH]
