"""What NAMO holds and owes: use cases, services, approvals, and orders that nobody confirmed yet.

Every change goes through here, so that the record leaves with it. An order is sent again, at a
falling pace, until its anchor has reported on it; so is the word to an anchor that has lost a
service to another one. Ended use cases and services stay as tombstones, so that a late report about
an older generation can never be taken for one about a newer thing of the same name.
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from controller.decider import Answer, Called, Output, Record, Send, Timer, ToRole
from controller.records import (
    APPROVAL,
    SERVICE,
    USE_CASE,
    ApprovalRecord,
    ApprovalState,
    ServiceRecord,
    UseCaseRecord,
    UseCaseState,
)
from protocols.errors import UserError
from protocols.messages import AnchorSummary, Body, ServiceDelete, ServiceOrder
from protocols.messages.hierarchy import ServiceState

RETRY_FIRST_MS: Final = 1000
RETRY_CAP_MS: Final = 30_000
MAX_TOMBSTONES: Final = 1024
ANCHOR_SILENT_MS: Final = 120_000
"""After this long without a word an anchor is no candidate."""
MAX_ANSWERED: Final = 256
"""Approvals kept that neither wait nor hold any more."""
MAX_BEFORE: Final = 64
"""Anchors of before that an order names."""
ORDER: Final = "order/"
LEAVE: Final = "leave/"

_STATE: Final = {
    ServiceState.WAITING: UseCaseState.WAITING,
    ServiceState.DEGRADED: UseCaseState.DEGRADED,
    ServiceState.DEPLOYING: UseCaseState.ACCEPTED,
    ServiceState.RUNNING: UseCaseState.RUNNING,
}
"""What a use case is when this is the worst state of its services; worst first."""


class _Pending(Struct):
    """Something said to an anchor that it has not reported on yet."""

    cause: str
    wait_ms: int = RETRY_FIRST_MS


class Books:
    """The state of NAMO; `out` and `now_ms` are those of the batch that is being handled."""

    def __init__(self, unix_offset_ms: int | None = None) -> None:
        self.unix_offset_ms = unix_offset_ms
        """Makes the wall clock's time of `now_ms`; None: it is not known."""
        self.use_cases: dict[str, UseCaseRecord] = {}
        self.services: dict[str, ServiceRecord] = {}
        self.approvals: dict[str, ApprovalRecord] = {}
        self.summaries: dict[str, AnchorSummary] = {}
        """The newest word of each anchor, by its name as a role."""
        self._heard_ms: dict[str, int] = {}
        self.out = Output()
        self.now_ms = 0
        self._pending: dict[str, _Pending] = {}
        """By the key of the timer that says it again."""

    @property
    def unix_ms(self) -> int:
        """The wall clock's time of this batch, for people; 0: it is not known."""
        return 0 if self.unix_offset_ms is None else self.now_ms + self.unix_offset_ms

    def restore(self, records: Iterable[Record]) -> None:
        """Take in the durable state."""
        for record in records:
            match record.value:
                case UseCaseRecord() as value if record.kind == USE_CASE:
                    self.use_cases[record.key] = value
                case ServiceRecord() as value if record.kind == SERVICE:
                    self.services[record.key] = value
                case ApprovalRecord() as value if record.kind == APPROVAL:
                    self.approvals[record.key] = value

    # From anchors.

    def heard(self, anchor: str, summary: AnchorSummary) -> None:
        """Take in what an anchor says of its fleet."""
        self.summaries[anchor] = summary
        self._heard_ms[anchor] = self.now_ms

    def present(self) -> dict[str, AnchorSummary]:
        """Return the anchors that have spoken lately; if none has, what they said last."""
        since_ms = self.now_ms - ANCHOR_SILENT_MS
        lately = {k: one for k, one in self.summaries.items() if self._heard_ms[k] >= since_ms}
        return lately or self.summaries

    # To anchors.

    def tell(self, service: str, cause: str) -> None:
        """Order a service, or its end, and go on until its anchor has reported."""
        self._say(ORDER + service, service, cause)
        self._wait(ORDER + service, _Pending(cause))
        record = self.services[service]
        if is_open(record):
            # Those who had it are told when it runs as it is ordered now, no sooner.
            self.confirmed(LEAVE + service)
        if record.leaving and record.ending:
            self.leave(service, cause)

    def leave(self, service: str, cause: str) -> None:
        """Tell the anchors that had a service that it is another's, or over, until they have."""
        self._say(LEAVE + service, service, cause)
        self._wait(LEAVE + service, _Pending(cause))

    def retry_later(self, service: str, cause: str) -> None:
        """Order again what an anchor has lost, not at the pace of its reports."""
        if ORDER + service not in self._pending:
            self._wait(ORDER + service, _Pending(cause))

    def confirmed(self, key: str) -> None:
        """Stop saying something: it was heard."""
        if self._pending.pop(key, None) is not None:
            self.out.timers.append(Timer(key, None))

    def again(self, key: str) -> None:
        """Say something again whose timer is due."""
        pending = self._pending.get(key)
        if pending is not None:
            pending.wait_ms = min(2 * pending.wait_ms, RETRY_CAP_MS)
            self._say(key, key.partition("/")[2], pending.cause)
            self._wait(key, pending)

    def _say(self, key: str, service: str, cause: str) -> None:
        record = self.services.get(service)
        if record is None:
            return
        if key.startswith(LEAVE):
            for anchor in record.leaving:
                shared = not record.ending and self._share_cells(anchor, record.anchor)
                heir = "" if record.ending else record.anchor
                gone = ServiceDelete(service, record.order.generation, shared, heir)
                self.send(anchor, gone, cause, record.tenant)
            return
        before = record.leaving[-MAX_BEFORE:]
        generation, number = record.moved
        body: ServiceOrder | ServiceDelete = replace(
            record.order,
            taken_from=before,
            handed=record.number,
            moved_generation=generation,
            moved_number=number,
        )
        if record.ending:
            body = ServiceDelete(service, record.order.generation)
        self.send(record.anchor, body, cause, record.tenant)

    def _share_cells(self, one: str, other: str) -> bool:
        """Whether two anchors speak to a scheduler of one cell: then its tasks run on there.

        Where the cells are apart, what runs in the old one would have no owner left.
        """
        known = (self.summaries.get(one), self.summaries.get(other))
        if known[0] is None or known[1] is None:
            return True
        return bool(set(known[0].cells) & set(known[1].cells))

    def send(self, role: str, body: Body, cause: str, tenant: str) -> None:
        """Send a message to another role."""
        self.out.sends.append(Send(ToRole(role), body, cause, tenant))

    def _wait(self, key: str, pending: _Pending) -> None:
        self._pending[key] = pending
        self.timer(key, self.now_ms + pending.wait_ms)

    def timer(self, key: str, at_ms: int | None) -> None:
        """Set or cancel a timer."""
        self.out.timers.append(Timer(key, at_ms))

    # Answers to callers.

    def answer(self, call: Called, value: Struct) -> None:
        """Answer an operation."""
        self.out.answers.append(Answer(call.call, value=value))

    def refuse(self, call: Called, error: UserError) -> None:
        """Answer an operation with why not."""
        self.out.answers.append(Answer(call.call, error=str(error), blame=error.blame))

    # Records.

    def put_use_case(self, record: UseCaseRecord, cause: str) -> None:
        """Keep the newest state of a use case."""
        # Put last: the first tombstones of the dictionary are the oldest.
        self.use_cases.pop(record.name, None)
        self.use_cases[record.name] = record
        self._record(USE_CASE, record.name, record, cause)
        over = [k for k, one in self.use_cases.items() if one.state is UseCaseState.DELETED]
        for key in over[:-MAX_TOMBSTONES]:
            del self.use_cases[key]
            self._record(USE_CASE, key, None, cause)

    def put_service(self, record: ServiceRecord, cause: str) -> None:
        """Keep the newest state of a service."""
        name = record.order.service
        self.services.pop(name, None)
        self.services[name] = record
        self._record(SERVICE, name, record, cause)
        over = [k for k, one in self.services.items() if one.state is ServiceState.DELETED]
        for key in over[:-MAX_TOMBSTONES]:
            del self.services[key]
            self._record(SERVICE, key, None, cause)

    def put_approval(self, record: ApprovalRecord, cause: str) -> None:
        """Keep the newest state of an approval."""
        self.approvals.pop(record.number, None)
        self.approvals[record.number] = record
        self._record(APPROVAL, record.number, record, cause)
        over = [
            key
            for key, one in self.approvals.items()
            if one.state is not ApprovalState.PENDING and not one.left_ms
        ]
        for key in over[:-MAX_ANSWERED]:
            del self.approvals[key]
            self._record(APPROVAL, key, None, cause)

    def _record(self, kind: str, key: str, value: Struct | None, cause: str) -> None:
        self.out.records.append(Record(kind, key, value, cause))

    def refresh(self, name: str, cause: str) -> None:
        """Bring a use case's state up to that of its services."""
        record = self.use_cases.get(name)
        if record is None or record.state in (UseCaseState.DELETED, UseCaseState.DORMANT):
            return
        # An ended service may be forgotten, or its name taken by another use case.
        named = [self.services.get(one) for one in record.services]
        services = [one for one in named if one is not None and one.order.use_case == name]
        if record.state is UseCaseState.DELETING:
            if all(one.state is ServiceState.DELETED for one in services):
                self.put_use_case(replace(record, state=UseCaseState.DELETED), cause)
            return
        rank = list(_STATE)
        worst = min(services, key=lambda one: rank.index(one.state))
        changed = replace(record, state=_STATE[worst.state], reason=worst.reason)
        if changed != record:
            self.put_use_case(changed, cause)


def is_open(record: ServiceRecord) -> bool:
    """Whether the anchor still owes a report on the newest order."""
    if record.ending:
        return record.state is not ServiceState.DELETED
    return record.state is ServiceState.DEPLOYING


def alive(record: ServiceRecord | None) -> bool:
    """Whether a service is ordered and not being ended."""
    return record is not None and not record.ending and record.state is not ServiceState.DELETED
