"""NAMO, the management layer: use cases in, orders to the anchors out, their reports back.

It sees services coarsely and nothing in real time. A use case is accepted when its records are
durable; an order is sent again, at a falling pace, until its anchor has reported on it, for a
message may be lost and a crash may come between record and message. Orders are idempotent by
generation. Ended use cases and services stay as tombstones, so that a late report about an older
generation can never be taken for one about a newer thing of the same name.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, cast

from msgspec import Struct
from msgspec.structs import replace

from controller.decider import (
    Answer,
    Called,
    Event,
    Fired,
    Output,
    Received,
    Record,
    Role,
    Send,
    Timer,
    ToRole,
)
from controller.namo.reader import near
from controller.namo.submission import OVER, SubmitArguments, check_tenant, plan_submission
from controller.records import SERVICE, USE_CASE, ServiceRecord, UseCaseRecord, UseCaseState
from protocols.errors import Blame, UserError
from protocols.messages import (
    Escalation,
    EscalationAnswer,
    ServiceDelete,
    ServiceOrder,
    ServiceReport,
)
from protocols.messages.hierarchy import ServiceState

SUBMIT: Final = "usecase.submit"
DELETE: Final = "usecase.delete"
RETRY_FIRST_MS: Final = 1000
RETRY_CAP_MS: Final = 30_000
MAX_TOMBSTONES: Final = 1024

_STATE: Final = {
    ServiceState.WAITING: UseCaseState.WAITING,
    ServiceState.DEGRADED: UseCaseState.DEGRADED,
    ServiceState.DEPLOYING: UseCaseState.ACCEPTED,
    ServiceState.RUNNING: UseCaseState.RUNNING,
}
"""What a use case is when this is the worst state of its services; worst first."""


class DeleteArguments(Protocol):
    """What `usecase.delete` is called with."""

    name: str


class _Pending(Struct):
    """An order that its anchor has not reported on yet."""

    cause: str
    wait_ms: int = RETRY_FIRST_MS


class Namo:
    """The decider of the management layer; see `controller.decider` for its door."""

    role = Role.NAMO

    def __init__(self, name: str = "namo-main", anchor: str = "ta-main") -> None:
        self.name = name
        self._anchor = anchor
        self._use_cases: dict[str, UseCaseRecord] = {}
        self._services: dict[str, ServiceRecord] = {}
        self._pending: dict[str, _Pending] = {}

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        """Take in the durable state; orders that no anchor has confirmed are sent again."""
        for record in records:
            if record.kind == USE_CASE and isinstance(record.value, UseCaseRecord):
                self._use_cases[record.key] = record.value
            elif record.kind == SERVICE and isinstance(record.value, ServiceRecord):
                self._services[record.key] = record.value
        out = Output()
        for name, service in self._services.items():
            if _open(service):
                self._tell(name, f"restore/{self.name}", out, now_ms)
        return out

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        """Decide on calls, reports and escalations; everything else is not for this layer."""
        out = Output()
        for event in events:
            match event:
                case Called(operation=operation) if operation == SUBMIT:
                    self._submit(event, out, now_ms)
                case Called(operation=operation) if operation == DELETE:
                    self._delete(event, out, now_ms)
                case Received(body=ServiceReport() as report):
                    self._report(report, event.cause, out, now_ms)
                case Received(body=Escalation() as escalation):
                    self._escalated(escalation, event, out)
                case Called():
                    error = f"{event.operation!r} is no operation of {self.role}"
                    out.answers.append(Answer(event.call, error=error, blame=Blame.OURS))
                case Fired(key=key):
                    self._again(key.removeprefix("order/"), out, now_ms)
                case _:
                    pass
        return out

    def _submit(self, call: Called, out: Output, now_ms: int) -> None:
        arguments = cast("SubmitArguments", call.arguments)
        try:
            plan = plan_submission(arguments, call, self._use_cases, self._services)
        except UserError as error:
            out.answers.append(Answer(call.call, error=str(error), blame=error.blame))
            return
        out.answers.append(Answer(call.call, value=plan.answer))
        if arguments.dry_run or plan.answer.change == "unchanged":
            return
        # Services first: a use case takes the worst of their states.
        for order in plan.orders:
            made = ServiceRecord(order, plan.record.tenant, self._anchor, ServiceState.DEPLOYING)
            self._put_service(made, call.cause, out)
            self._tell(order.service, call.cause, out, now_ms)
        for name in plan.answer.removed:
            self._end(name, call.cause, out, now_ms)
        self._put_use_case(plan.record, call.cause, out)
        self._refresh(plan.record.name, call.cause, out)

    def _delete(self, call: Called, out: Output, now_ms: int) -> None:
        name = cast("DeleteArguments", call.arguments).name
        try:
            record = self._find(name, call.tenant)
        except UserError as error:
            out.answers.append(Answer(call.call, error=str(error), blame=error.blame))
            return
        if record.state not in OVER:
            for service in record.services:
                self._end(service, call.cause, out, now_ms)
            record = replace(record, state=UseCaseState.DELETING, reason="")
            self._put_use_case(record, call.cause, out)
            self._refresh(name, call.cause, out)
        out.answers.append(Answer(call.call, value=record))

    def _find(self, name: str, caller: str) -> UseCaseRecord:
        record = self._use_cases.get(name)
        if record is None:
            alive = [one.name for one in self._use_cases.values() if one.state not in OVER]
            raise UserError(f"there is no use case {name!r}{near(name, alive)}")
        check_tenant(record.tenant, caller, f"use case {name!r}")
        return record

    def _end(self, service: str, cause: str, out: Output, now_ms: int) -> None:
        record = self._services[service]
        if _open(record) and record.ending:
            return
        self._put_service(replace(record, ending=True, reason=""), cause, out)
        self._tell(service, cause, out, now_ms)

    def _report(self, report: ServiceReport, cause: str, out: Output, now_ms: int) -> None:
        record = self._services.get(report.service)
        if record is None or report.generation != record.order.generation:
            return
        ended = report.state is ServiceState.DELETED
        if record.state is ServiceState.DELETED or (record.ending and not ended):
            return
        if ended and not record.ending:
            # The anchor lost what it was to keep: order it again, but not at the pace of reports.
            if report.service not in self._pending:
                self._wait(report.service, _Pending(cause), out, now_ms)
            return
        if self._pending.pop(report.service, None) is not None:
            out.timers.append(Timer(f"order/{report.service}", None))
        changed = replace(record, state=report.state, reason=report.reason)
        if changed != record:
            self._put_service(changed, cause, out)
            self._refresh(record.order.use_case, cause, out)

    def _refresh(self, name: str, cause: str, out: Output) -> None:
        """Bring a use case's state up to that of its services."""
        record = self._use_cases.get(name)
        if record is None or record.state is UseCaseState.DELETED:
            return
        # An ended service may be forgotten, or its name taken by another use case.
        named = [self._services.get(one) for one in record.services]
        services = [one for one in named if one is not None and one.order.use_case == name]
        if record.state is UseCaseState.DELETING:
            if all(one.state is ServiceState.DELETED for one in services):
                self._put_use_case(replace(record, state=UseCaseState.DELETED), cause, out)
            return
        rank = list(_STATE)
        worst = min(services, key=lambda one: rank.index(one.state))
        changed = replace(record, state=_STATE[worst.state], reason=worst.reason)
        if changed != record:
            self._put_use_case(changed, cause, out)

    def _escalated(self, escalation: Escalation, event: Received, out: Output) -> None:
        """Answer with a refusal: each service has the one decomposition of its document."""
        service = escalation.task.rpartition(".")[0]
        record = self._services.get(service)
        if record is None or record.ending:
            reason = f"service {service!r} is not ordered: nothing is to be kept up"
        elif record.order.generation != escalation.generation:
            reason = (
                f"generation {escalation.generation} of service {service!r} is over: "
                f"{record.order.generation} was ordered"
            )
        else:
            reason = (
                f"service {service!r} has no other decomposition than its document, "
                f"and {self._anchor} is its only anchor: add a node that task "
                f"{escalation.task!r} fits on, or loosen its nodes, demand or latency bound"
            )
        to = ToRole(record.anchor if record is not None else self._anchor)
        answer = EscalationAnswer(escalation.number, escalation.task, granted=False, reason=reason)
        out.sends.append(Send(to, answer, event.cause, event.tenant))

    def _again(self, service: str, out: Output, now_ms: int) -> None:
        pending = self._pending.get(service)
        if pending is not None:
            pending.wait_ms = min(2 * pending.wait_ms, RETRY_CAP_MS)
            self._send(service, pending.cause, out)
            self._wait(service, pending, out, now_ms)

    def _tell(self, service: str, cause: str, out: Output, now_ms: int) -> None:
        self._send(service, cause, out)
        self._wait(service, _Pending(cause), out, now_ms)

    def _send(self, service: str, cause: str, out: Output) -> None:
        record = self._services[service]
        body: ServiceOrder | ServiceDelete = record.order
        if record.ending:
            body = ServiceDelete(service, record.order.generation)
        out.sends.append(Send(ToRole(record.anchor), body, cause, record.tenant))

    def _wait(self, service: str, pending: _Pending, out: Output, now_ms: int) -> None:
        self._pending[service] = pending
        out.timers.append(Timer(f"order/{service}", now_ms + pending.wait_ms))

    def _put_use_case(self, record: UseCaseRecord, cause: str, out: Output) -> None:
        # Put last: the first tombstones of the dictionary are the oldest.
        self._use_cases.pop(record.name, None)
        self._use_cases[record.name] = record
        out.records.append(Record(USE_CASE, record.name, record, cause))
        over = [k for k, one in self._use_cases.items() if one.state is UseCaseState.DELETED]
        for key in over[:-MAX_TOMBSTONES]:
            del self._use_cases[key]
            out.records.append(Record(USE_CASE, key, None, cause))

    def _put_service(self, record: ServiceRecord, cause: str, out: Output) -> None:
        name = record.order.service
        self._services.pop(name, None)
        self._services[name] = record
        out.records.append(Record(SERVICE, name, record, cause))
        over = [k for k, one in self._services.items() if one.state is ServiceState.DELETED]
        for key in over[:-MAX_TOMBSTONES]:
            del self._services[key]
            out.records.append(Record(SERVICE, key, None, cause))


def _open(record: ServiceRecord) -> bool:
    """Whether the anchor still owes a report on the newest order."""
    if record.ending:
        return record.state is not ServiceState.DELETED
    return record.state is ServiceState.DEPLOYING
