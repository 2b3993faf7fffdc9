"""The Task Anchor as a decider: orders become durable tasks, tasks get envelopes.

Everything it promises stands in a record of the same output, so the host makes it durable before
anybody hears of it. It sees nodes coarsely, through summaries; the scheduler acts inside the
envelope without asking, and escalates what it cannot hold. This is the door; each part of the work
has a module of its own.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct

from controller.anchor import (
    book,
    calibrations,
    direct,
    escalations,
    fleet,
    following,
    handing,
    handovers,
    placing,
    switching,
)
from controller.anchor.book import Book
from controller.anchor.calibrations import Calibrations
from controller.anchor.cells import Cells
from controller.anchor.direct import Direct
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.escalations import Escalations
from controller.anchor.fleet import Fleet
from controller.anchor.following import Following
from controller.anchor.granting import Granting
from controller.anchor.handing import Handing
from controller.anchor.handovers import Handovers
from controller.anchor.job_arrivals import Arrivals
from controller.anchor.jobs import Jobs
from controller.anchor.orders import Orders
from controller.anchor.placing import Placing
from controller.anchor.quarantine import Quarantines
from controller.anchor.reports import Reports
from controller.anchor.settings import Settings
from controller.anchor.switching import Switching
from controller.anchor.transfers import Transfers
from controller.anchor.upward import Upward
from controller.anchor.ways import Ways
from controller.decider import Called, Event, Fired, Linked, Output, Received, Record, Role
from controller.desk import Desk
from protocols.errors import TonaBug
from protocols.messages import (
    AnchorOffer,
    AnchorTaken,
    AnchorTransfer,
    AnchorWelcome,
    Birth,
    Calibrated,
    CellReport,
    Death,
    Escalation,
    EscalationAnswer,
    Flagged,
    HandoverAnswer,
    HandoverFailed,
    HandoverRequired,
    HandoverTimes,
    JobEnded,
    JobHandover,
    JobOwned,
    JobQuery,
    JobsMoved,
    JobSubmit,
    LeaseRequest,
    Measurement,
    MemoryRequest,
    MemoryState,
    NodeSummary,
    Relinquished,
    RunFigures,
    SchedulerHello,
    ServiceDelete,
    ServiceOrder,
    Status,
    TaskEvent,
    TaskReport,
)

__all__ = ["Anchor", "Settings"]
_OF_PEERS: Final = frozenset({AnchorOffer, AnchorTransfer})
"""What nobody but another anchor may say."""
_OF_SCHEDULERS: Final = frozenset(
    {
        CellReport,
        HandoverAnswer,
        HandoverFailed,
        HandoverRequired,
        HandoverTimes,
        LeaseRequest,
        Measurement,
        Relinquished,
        SchedulerHello,
    }
)
"""What nobody but a scheduler of this anchor may say."""


class Anchor:
    """A TA; see `controller.decider.Decider`."""

    role = Role.TA

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        self.settings = settings
        self.desk = Desk(settings.name, settings.unix_offset_ms)
        self.book = Book(self.desk, settings)
        self.upward = Upward(self.book)
        self.granting = Granting(self.book)
        self.jobs = Jobs(
            self.desk,
            self.book.scheduler_of,
            self.book.services,
            settings.schedulers,
            Arrivals(self.book),
        )
        self.placing = Placing(self.book, self.granting, self.upward, self.jobs.placed)
        self.calibrations = Calibrations(self.book, self.placing)
        self.elsewheres = Elsewheres(self.book)
        self.transfers = Transfers(self.book, self.granting, self.placing, self.elsewheres)
        self.direct = Direct(self.book)
        self.handovers = Handovers(self.book, self.elsewheres)
        self.switching = Switching(self.book, self.granting, self.placing, self.elsewheres)
        parts = self.book, self.granting, self.placing
        self.handing = Handing(*parts, self.jobs, self.upward, self.elsewheres.forget)
        self.switching.begun = self.handovers.task_begun
        self.placing.take_back = self.switching.take_back
        self.switching.done = self._followed
        self.switching.given = self.handing.gave
        self.handing.look = self.switching.look
        self.placing.sourced = self.elsewheres.tell
        self.fleet = Fleet(self.book, self.placing, self.switching, self.handovers, self.elsewheres)
        self.cells = Cells(self.book, self.elsewheres, self.handovers)
        self.ways = Ways(self.elsewheres)
        moves = self.transfers, self.elsewheres, self.handovers, self.ways
        self.following = Following(self.book, self.placing, *moves)
        self.orders = Orders(*parts, self.upward, self.direct, self.jobs, self.elsewheres)
        self.handing.apply = self.orders.apply
        self.reports = Reports(*parts, self.transfers, self.upward, self.switching, self.elsewheres)
        self.quarantines = Quarantines(*parts, self.upward)
        self.escalations = Escalations(*parts, self.transfers, self.upward, self.quarantines)
        self.counters = self.book.counters
        self._on = self._table()
        self._fired: dict[str, Callable[[str], None]] = {
            placing.RETRY: self.placing.fired,
            placing.TRANSFER: self.transfers.fired,
            f"{book.PATIENCE}/": self.fleet.patience_over,
            escalations.TIMER: self.escalations.fired,
            calibrations.TIMER: self.calibrations.fired,
            direct.TIMER: self.direct.fired,
            switching.TIMER: self.switching.fired,
            handovers.TIMER: self.handovers.fired,
            handing.TIMER: self.handing.fired,
            following.TIMER: self.following.fired,
        }

    def _table(self) -> dict[type[Struct], Callable[[Received, Any], None]]:
        """Return who takes which message."""
        found: dict[type[Struct], Callable[[Received, Any], None]] = {
            ServiceOrder: self._on_order,
            ServiceDelete: self._on_order,
            EscalationAnswer: self.escalations.answered,
            NodeSummary: self.fleet.summary,
            TaskReport: self._on_report,
            MemoryRequest: self.following.asked,
            MemoryState: self.following.said,
            TaskEvent: self.escalations.told,
            Escalation: self.escalations.escalation,
            Flagged: self.quarantines.flagged,
            SchedulerHello: self._on_hello,
            CellReport: self.following.told,
            Calibrated: self.calibrations.calibrated,
            RunFigures: self.calibrations.ran,
            JobSubmit: self.jobs.submit,
            JobEnded: self.jobs.ended,
            JobQuery: self.jobs.query,
            JobHandover: self.jobs.handed,
            JobOwned: self.jobs.owned,
            JobsMoved: self.jobs.moved,
            LeaseRequest: self.switching.asked,
            Relinquished: self.switching.relinquished,
            HandoverRequired: self.handovers.required,
            HandoverAnswer: self.handovers.answered,
            HandoverFailed: self.handovers.failed,
            Measurement: self.cells.measured,
            HandoverTimes: self.handovers.took,
            AnchorOffer: self.handing.offered,
            AnchorTransfer: self.handing.transferred,
            AnchorTaken: self.handing.answered,
        }
        if self.settings.direct:
            found |= {
                Birth: self.direct.born,
                Death: self.direct.died,
                Status: self.direct.status,
            }
        return found

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        """Take in services, tasks and stories; nodes are lost until their scheduler speaks."""
        self.desk.begin(now_ms)
        records = list(records)
        self.book.restore(records)
        self.jobs.restore(records)
        self.placing.restored()
        self.transfers.restored()
        self.escalations.restored()
        self.direct.restored()
        self.elsewheres.restore(records)
        self.switching.restored()
        self.handovers.restore(records)
        self.handovers.restored()
        self.handing.restore(records)
        self.handing.restored()
        self.following.restored()
        self.fleet.begin()
        return self.desk.output

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        """Decide on a batch of events."""
        self.desk.begin(now_ms)
        for event in events:
            match event:
                case Received():
                    self._on_message(event)
                case Fired(key=key):
                    self._on_timer(key)
                case Linked(role=role):
                    self._on_linked(role)
                case Called(operation=operation) if operation.startswith("job."):
                    self.jobs.called(event)
                case Called(operation="task.quarantine"):
                    self.quarantines.called(event)
                case Called(operation="node.handover"):
                    self.handovers.called(event)
                case Called():
                    raise TonaBug(f"the anchor has no operation {event.operation!r}")
        self.switching.settle()
        self.handovers.settle()
        self.following.settle()
        self.fleet.settle()
        self.cells.settle()
        self.placing.settle()
        self.calibrations.settle()
        self.jobs.settle()
        return self.desk.output

    def _on_message(self, event: Received) -> None:
        kind = type(event.body)
        handler = self._on.get(kind)
        if handler is None:
            self.counters["unexpected_message"] += 1
        elif (kind in _OF_PEERS and event.sender not in self.settings.peers) or (
            kind in _OF_SCHEDULERS and event.sender not in self.settings.schedulers
        ):
            self.counters["forged_message"] += 1
        else:
            handler(event, event.body)

    def _on_order(self, event: Received, body: ServiceOrder | ServiceDelete) -> None:
        match self.handing.admit(event, body):
            case ServiceOrder() as order:
                self.orders.order(event, order)
            case ServiceDelete() as delete:
                self.orders.delete(event, delete)

    def _on_report(self, event: Received, report: TaskReport) -> None:
        self.reports.report(event, report)
        self.following.reported(event, report)

    def _followed(self, node: str, task: str) -> None:
        self.handovers.task_done(node, task)
        self.handing.touch(task.rpartition(".")[0])

    def _on_timer(self, key: str) -> None:
        if key == fleet.TIMER:
            self.fleet.fired()
            return
        kind, slash, name = key.partition("/")
        if kind == "job":
            self.jobs.fired(key)
        elif kind + slash in self._fired:
            self._fired[kind + slash](name)
        else:
            raise TonaBug(f"the anchor set no timer {key!r}")

    def _on_hello(self, event: Received, hello: SchedulerHello) -> None:
        """Grant again what a scheduler without memory should hold, under fresh epochs."""
        self.book.wait_for(event.sender, book.SPEAK_MS)
        grants = self.granting.again(event.sender, event.cause)
        grants += self.granting.leaving(event.sender, event.cause)
        self.switching.again(event.sender, event.cause)
        self.cells.placed(event.sender, hello.point, event.cause)
        if event.sender in self.settings.schedulers:
            self.handing.beside[event.sender] = hello.beside
        self.elsewheres.again(event.sender, event.cause)
        self.handing.again(event.sender, event.cause)
        roaming = len(self.settings.schedulers) > 1
        epoch, number = hello.scheduler_epoch, hello.number
        welcome = AnchorWelcome(self.name, epoch, grants, roaming, number)
        self.desk.tell_role(event.sender, welcome, event.cause)
        self.jobs.linked(event.sender)

    def _on_linked(self, role: str) -> None:
        """Bring a role up to date; a scheduler says hello by itself when it is linked."""
        if role == self.settings.namo:
            self.handing.linked()
            self.upward.report_all(role, "linked")
            self.fleet.again()
        else:
            self.handing.linked()
            self.jobs.relinked(role)
