"""Decisions that wait for a person: asked once, answered once, durable.

TONA paper, autonomy: fully autonomous, partially autonomous, manually controllable. What a loss
demands is never asked. A question expires, and a denial holds, for a span of NAMO's own life: what
is left of it is written in steps, so that each restart lengthens it by one step at most.
"""

from typing import Final, Protocol, cast

from msgspec.structs import replace

from controller.decider import Called, Received
from controller.namo.books import Books
from controller.namo.submission import check_tenant
from controller.records import ApprovalRecord, ApprovalState, ServiceRecord
from protocols.errors import UserError
from protocols.messages import Escalation, EscalationAnswer
from protocols.submission import near

GRANT: Final = "approve.grant"
DENY: Final = "approve.deny"
HOLD: Final = "hold/"
PENDING_MS: Final = 24 * 3_600_000
"""A question that nobody answers expires after this long."""
DENIED_MS: Final = 600_000
"""What a person has denied is not asked again for this long."""
STEPS: Final = 10
"""In which either span is written down."""
MAX_HELD: Final = 1024
"""Questions that wait and denials that hold."""
REASON_LENGTH: Final = 1500
ATTEMPTS_TOLD: Final = 4


class DecideArguments(Protocol):
    """What `approve.grant` and `approve.deny` are called with."""

    name: str


class Approvals:
    """Asks, and hands answers to whoever waits for them."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def restore(self) -> None:
        """Go on counting down what waits and what was denied."""
        for record in list(self._held()):
            if not record.left_ms:
                # Asked by a version whose questions waited for ever.
                record = replace(record, left_ms=PENDING_MS)  # noqa: PLW2901 - the same question
                self._books.put_approval(record, f"{HOLD}{record.number}")
            self._wait(record)

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
        held = self._held()
        same = next(
            (one for one in held if (one.service, one.decision) == (service, decision)), None
        )
        denied = same is not None and same.state is ApprovalState.DENIED
        if denied or (same is None and len(held) >= MAX_HELD):
            why = "a person has denied this" if denied else "too many decisions wait already"
            self.reply(escalation, event.sender, why, event.cause, record.tenant, granted=False)
            return
        asked = ApprovalRecord(
            number=same.number if same is not None else self._number(),
            service=service,
            tenant=record.tenant,
            decision=decision,
            reason=_reason(escalation),
            asked_unix_ms=same.asked_unix_ms if same is not None else self._books.unix_ms,
            asked_by=event.sender,
            escalation=escalation,
            decomposition=candidate[0],
            anchor=candidate[1],
            left_ms=same.left_ms if same is not None else PENDING_MS,
        )
        self._books.put_approval(asked, event.cause)
        if same is None:
            self._wait(asked)

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
            record = replace(
                record,
                state=wanted,
                answered_by=call.tenant,
                left_ms=0 if granted else DENIED_MS,
                outcome=f"{wanted} by user {call.tenant!r}",
            )
            self._books.put_approval(record, call.cause)
            self._wait(record)
            if not (granted and record.decomposition):
                self._tell(record, call.cause, granted=granted)
        self._books.answer(call, record)
        return record if first else replace(record, decomposition="")

    def withdraw(self, service: str, cause: str) -> None:
        """Take back what was asked or denied about a service that has changed or ended."""
        for record in self._held():
            if record.service != service:
                continue
            gone = replace(record, left_ms=0)
            if record.state is ApprovalState.PENDING:
                outcome = "the service was changed or ended meanwhile"
                gone = replace(gone, state=ApprovalState.WITHDRAWN, outcome=outcome)
            self._books.put_approval(gone, cause)
            self._wait(gone)

    def fired(self, number: str) -> None:
        """Count down by a step; a question whose time is over is refused to whoever asked."""
        record = self._books.approvals.get(number)
        if record is None or not record.left_ms:
            return
        cause = f"{HOLD}{number}"
        record = replace(record, left_ms=record.left_ms - _step_ms(record))
        expired = record.state is ApprovalState.PENDING and not record.left_ms
        if expired:
            outcome = f"nobody answered within {PENDING_MS // 3_600_000} hours"
            record = replace(record, state=ApprovalState.EXPIRED, outcome=outcome)
        self._books.put_approval(record, cause)
        self._wait(record)
        if expired:
            self._tell(record, cause, granted=False)

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
            link = " has expired: " if record.state is ApprovalState.EXPIRED else " was "
            reason = f"approval {record.number}{link}{record.outcome}"
            self.reply(
                record.escalation, record.asked_by, reason, cause, record.tenant, granted=granted
            )

    def _pending(self) -> list[ApprovalRecord]:
        records = self._books.approvals.values()
        return [one for one in records if one.state is ApprovalState.PENDING]

    def _held(self) -> list[ApprovalRecord]:
        """Return the questions that wait, and the denials that hold."""
        records = self._books.approvals.values()
        return [one for one in records if one.state is ApprovalState.PENDING or one.left_ms]

    def _wait(self, record: ApprovalRecord) -> None:
        due_ms = self._books.now_ms + _step_ms(record) if record.left_ms else None
        self._books.timer(HOLD + record.number, due_ms)

    def _number(self) -> str:
        """Return a number above every one that is kept: short enough to type."""
        return str(1 + max((int(one) for one in self._books.approvals), default=0))


def _step_ms(record: ApprovalRecord) -> int:
    span_ms = DENIED_MS if record.state is ApprovalState.DENIED else PENDING_MS
    return min(record.left_ms, span_ms // STEPS)


def _reason(escalation: Escalation) -> str:
    tried = "; ".join(f"{one.action}: {one.outcome}" for one in escalation.attempts[:ATTEMPTS_TOLD])
    told = f"{escalation.task}: {escalation.problem}"
    return (f"{told} (tried: {tried})" if tried else told)[:REASON_LENGTH]
