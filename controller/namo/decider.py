"""NAMO, the management layer: use cases in, orders to the anchors out, their reports back.

It sees services and anchors coarsely and nothing in real time. A use case is accepted when its
records are durable. It chooses how each service is done and where it is anchored
(`controller.namo.candidates`), answers what the anchors cannot mend (`positions`), asks a person
where autonomy wants it (`approvals`) and pulls the triggers of the network itself (`triggers`).
"""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol, cast

from msgspec.structs import replace

from controller.decider import (
    Answer,
    Called,
    Event,
    Fired,
    Linked,
    Output,
    Received,
    Record,
    Role,
)
from controller.namo.approvals import DENY, GRANT, HOLD, Approvals
from controller.namo.books import LEAVE, ORDER, Books, alive, is_open
from controller.namo.candidates import Position
from controller.namo.positions import CALM, SETTLE, Positions
from controller.namo.submission import OVER, SubmitArguments, check_tenant, plan_submission
from controller.namo.triggers import PULL, Triggers
from controller.namo.versions import PROVE, Versions, again
from controller.records import ServiceRecord, UseCaseRecord, UseCaseState
from protocols.errors import Blame, UserError
from protocols.messages import (
    AnchorMoved,
    AnchorSummary,
    AnchorTaken,
    Escalation,
    ServiceDelete,
    ServiceReport,
)
from protocols.messages.hierarchy import ServiceState
from protocols.submission import near

SUBMIT: Final = "usecase.submit"
DELETE: Final = "usecase.delete"


class DeleteArguments(Protocol):
    """What `usecase.delete` is called with."""

    name: str


class RollBackArguments(DeleteArguments, Protocol):
    """What `usecase.rollback` is called with."""

    dry_run: bool


class Namo:
    """The decider of the management layer; see `controller.decider` for its door."""

    role = Role.NAMO

    def __init__(
        self,
        name: str = "namo-main",
        anchor: str = "ta-main",
        anchors: tuple[str, ...] | None = None,
        *,
        secured: bool = False,
        unix_offset_ms: int | None = None,
    ) -> None:
        """Make one that orders at `anchor` until anchors have spoken.

        Nobody's word counts but that of `anchors`; None: whoever speaks is one.
        `secured`: whether every connection of the controller has TLS with verified certificates.
        `unix_offset_ms` makes the wall clock's time of that of a turn, for people; None: not known.
        """
        self.name = name
        self._anchor = anchor
        self._anchors = anchors
        self.counters = {"forged_message": 0}
        self._secured = secured
        self.books = Books(unix_offset_ms)
        self._approvals = Approvals(self.books)
        self._positions = Positions(self.books, self._approvals, self._position)
        self._triggers = Triggers(self.books, self._position, self._end)
        self._versions = Versions(self.books)

    def _position(self) -> Position:
        return Position(self.books.present(), self._anchor, self._secured)

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        """Take in the durable state; orders that no anchor has confirmed are sent again."""
        books = self.books
        books.out, books.now_ms = Output(), now_ms
        books.restore(records)
        cause = f"restore/{self.name}"
        for name, service in books.services.items():
            if is_open(service):
                books.tell(name, cause)
            if service.leaving and (service.ending or service.state is ServiceState.RUNNING):
                books.leave(name, cause)
        self._approvals.restore()
        self._positions.restore()
        self._triggers.restore()
        self._versions.restore()
        return books.out

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        """Decide on calls, reports and escalations; everything else is not for this layer."""
        books = self.books
        books.out, books.now_ms = Output(), now_ms
        for event in events:
            match event:
                case Called():
                    self._call(event)
                case Received():
                    self._hear(event)
                case Linked(role=role):
                    self._linked(role)
                case Fired(key=key):
                    self._fired(key)
        for record in books.out.records:
            if isinstance(record.value, UseCaseRecord):
                self._versions.changed(record.value)
        return books.out

    def _call(self, call: Called) -> None:
        if call.unix_ms:
            # The wall clock may have been set since our start.
            self.books.unix_offset_ms = call.unix_ms - self.books.now_ms
        try:
            match call.operation:
                case "usecase.submit":
                    self._submit(call)
                case "usecase.rollback":
                    self._roll_back(call)
                case "usecase.delete":
                    self._delete(call)
                case "approve.grant" | "approve.deny":
                    self._decide(call)
                case _:
                    error = f"{call.operation!r} is no operation of {self.role}"
                    answer = Answer(call.call, error=error, blame=Blame.OURS)
                    self.books.out.answers.append(answer)
        except UserError as error:
            self.books.refuse(call, error)

    def _hear(self, event: Received) -> None:
        if self._anchors is not None and event.sender not in self._anchors:
            self.counters["forged_message"] += 1
            return
        match event.body:
            case ServiceReport() as report:
                self._report(report, event)
            case Escalation() as escalation:
                self._positions.escalated(escalation, event)
            case AnchorMoved() as moved:
                self._moved(moved, event)
            case AnchorSummary() as summary:
                self.books.heard(event.sender, summary)
                self._triggers.look(event.cause)
            case _:
                pass

    def _fired(self, key: str) -> None:
        if key.startswith((ORDER, LEAVE)):
            self.books.again(key)
        elif key.startswith(SETTLE):
            self._positions.settle(key.removeprefix(SETTLE))
        elif key.startswith(CALM):
            self._positions.calmed(key.removeprefix(CALM))
        elif key.startswith(HOLD):
            self._approvals.fired(key.removeprefix(HOLD))
        elif key.startswith(PROVE):
            self._versions.fired(key.removeprefix(PROVE), key)
        elif key.startswith(PULL):
            self._triggers.look(key)

    def _linked(self, role: str) -> None:
        """Say again what an anchor is to hold: either side may have forgotten or missed it."""
        for name, record in list(self.books.services.items()):
            over = record.state is ServiceState.DELETED
            if record.anchor == role and not over:
                self.books.tell(name, f"linked/{role}")
            if role in record.leaving and (record.ending or record.state is ServiceState.RUNNING):
                self.books.leave(name, f"linked/{role}")

    # Operations.

    def _roll_back(self, call: Called) -> None:
        """Submit the version before once more; what it goes back from is not kept."""
        arguments = cast("RollBackArguments", call.arguments)
        record = self._find(arguments.name, call.tenant)
        self._submit(replace(call, arguments=again(record, dry_run=arguments.dry_run)))

    def _submit(self, call: Called) -> None:
        books = self.books
        arguments = cast("SubmitArguments", call.arguments)
        plan = plan_submission(arguments, call, books.use_cases, books.services, self._position())
        books.answer(call, plan.answer)
        if arguments.dry_run or plan.answer.change == "unchanged":
            return
        # Services first: a use case takes the worst of their states.
        self._order(plan.services, call.cause)
        for name in plan.answer.removed:
            self._end(name, plan.record.name, call.cause)
        books.put_use_case(plan.record, call.cause)
        books.refresh(plan.record.name, call.cause)
        self._triggers.changed(plan.record, call.cause)

    def _order(self, services: Sequence[ServiceRecord], cause: str) -> None:
        for made in services:
            name = made.order.service
            self._approvals.withdraw(name, cause)
            self._positions.forget(name)
            self.books.put_service(made, cause)
            self.books.tell(name, cause)

    def _delete(self, call: Called) -> None:
        name = cast("DeleteArguments", call.arguments).name
        record = self._find(name, call.tenant)
        if record.state not in OVER:
            for service in record.services:
                self._end(service, name, call.cause)
            record = replace(record, state=UseCaseState.DELETING, reason="", former="")
            self.books.put_use_case(record, call.cause)
            self.books.refresh(name, call.cause)
        self.books.answer(call, record)

    def _find(self, name: str, caller: str) -> UseCaseRecord:
        record = self.books.use_cases.get(name)
        if record is None:
            alive = [one.name for one in self.books.use_cases.values() if one.state not in OVER]
            raise UserError(f"there is no use case {name!r}{near(name, alive)}")
        check_tenant(record.tenant, caller, f"use case {name!r}")
        return record

    def _decide(self, call: Called) -> None:
        granted = call.operation == GRANT
        assert granted or call.operation == DENY  # noqa: S101 - the caller has matched it
        record = self._approvals.decide(call, granted=granted)
        if granted and record.decomposition:
            self._positions.approved(record, call.cause)

    def _end(self, service: str, use_case: str, cause: str) -> None:
        """End a service, unless it is over, or its name was taken by another use case."""
        record = self.books.services.get(service)
        if record is None or not alive(record) or record.order.use_case != use_case:
            return
        self._approvals.withdraw(service, cause)
        self._positions.forget(service)
        self.books.put_service(replace(record, ending=True, reason=""), cause)
        self.books.tell(service, cause)

    # What anchors say.

    def _report(self, report: ServiceReport, event: Received) -> None:
        books, name = self.books, report.service
        record = books.services.get(name)
        if record is None:
            return
        ended = report.state is ServiceState.DELETED
        if event.sender in record.leaving and event.sender != record.anchor:
            if ended and report.generation >= record.order.generation:
                self._left(record, event)
            return
        if event.sender != record.anchor or report.generation != record.order.generation:
            return
        if record.state is ServiceState.DELETED or (record.ending and not ended):
            return
        if ended and not record.ending:
            books.retry_later(name, event.cause)
            return
        books.confirmed(ORDER + name)
        changed = replace(
            record,
            state=report.state,
            reason=report.reason,
            epoch_high=max(record.epoch_high, report.epoch_high),
        )
        if changed != record:
            books.put_service(changed, event.cause)
            books.refresh(record.order.use_case, event.cause)
        if report.state is ServiceState.RUNNING and record.leaving:
            books.leave(name, event.cause)
        if ended:
            self._triggers.look(event.cause)

    def _moved(self, moved: AnchorMoved, event: Received) -> None:
        """Note who owns a service that anchors have handed on themselves."""
        books, name = self.books, moved.service
        record = books.services.get(name)
        if record is None or record.state is ServiceState.DELETED:
            gone = ServiceDelete(name, moved.generation)
            books.send(moved.anchor, gone, event.cause, event.tenant)
        elif moved.number > record.number or (moved.generation, moved.number) > record.moved:
            self._handed(record, moved, event.cause)
        elif moved.generation < record.order.generation:
            self._outlived(record, moved, event)
        elif event.sender == moved.before and event.sender in record.leaving:
            # It had both generations, and has given the newer one away before anybody said so.
            self._left(record, event)
        if event.sender == moved.anchor:
            taken = AnchorTaken(name, moved.number)
            books.send(event.sender, taken, event.cause, event.tenant)

    def _handed(self, record: ServiceRecord, moved: AnchorMoved, cause: str) -> None:
        books, name = self.books, moved.service
        known = (moved.anchor, moved.before)
        newer = record.order.generation > moved.generation
        rest = tuple(one for one in record.leaving if one not in known)
        after = replace(
            record,
            number=max(record.number, moved.number),
            moved=max(record.moved, (moved.generation, moved.number)),
            epoch_high=max(record.epoch_high, moved.epoch_high),
        )
        if newer and (record.anchor not in known or moved.generation < record.moved[0]):
            # Ordered elsewhere meanwhile, or the next one has come to where this one was: what has
            # moved is the generation that ends.
            ends = () if moved.anchor == record.anchor else (moved.anchor,)
            books.put_service(replace(after, leaving=(*rest, *ends)), cause)
            if record.ending or record.state is ServiceState.RUNNING:
                books.leave(name, cause)
            return
        books.put_service(replace(after, anchor=moved.anchor, leaving=rest), cause)
        if not rest:
            books.confirmed(LEAVE + name)
        if newer or record.ending:
            books.tell(name, cause)

    def _outlived(self, record: ServiceRecord, moved: AnchorMoved, event: Received) -> None:
        """Have an anchor leave a generation that it was handed after others were told to leave."""
        if event.sender == moved.before and event.sender in record.leaving:
            # It has given away what it was told to leave.
            self._left(record, event)
            record = self.books.services[moved.service]
        elif event.sender != moved.anchor:
            return
        if moved.anchor in (record.anchor, *record.leaving):
            return
        self.books.put_service(
            replace(record, leaving=(*record.leaving, moved.anchor)), event.cause
        )
        if record.ending or record.state is ServiceState.RUNNING:
            self.books.leave(moved.service, event.cause)

    def _left(self, record: ServiceRecord, event: Received) -> None:
        """Note that an anchor has let go of a service."""
        rest = tuple(one for one in record.leaving if one != event.sender)
        self.books.put_service(replace(record, leaving=rest), event.cause)
        if not rest:
            self.books.confirmed(LEAVE + record.order.service)
