"""The Task Scheduler as a decider: what it hears, and which of its parts acts on it.

Soft state, but for which nodes and cells there are: after a restart a hello makes the TA grant
again, rebirths bring the nodes and what they hold, and a healthy task is adopted where it runs.
Inside an envelope the scheduler acts at once; what the envelope cannot hold it escalates, once,
with its attempts.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct

from controller.accounts import AuditTask
from controller.decider import (
    Abroad,
    Answer,
    Called,
    Event,
    Fired,
    Linked,
    Output,
    Received,
    Record,
    Role,
    ToNode,
    ToRole,
)
from controller.desk import Desk
from controller.records import NODE, NodeRecord
from controller.scheduler import greeting, inquiries
from controller.scheduler.accounts import Accounts
from controller.scheduler.admission import Admission
from controller.scheduler.adoption import Adoption
from controller.scheduler.anchors import OF_ANCHORS, Anchors
from controller.scheduler.anomalies import Flag
from controller.scheduler.copies import TaskEntry
from controller.scheduler.feeds import Feeds
from controller.scheduler.figures import Figures
from controller.scheduler.fleet import Fleet
from controller.scheduler.greeting import Greeting
from controller.scheduler.handovers import Handovers
from controller.scheduler.inquiries import Inquiries
from controller.scheduler.jobs import Jobs
from controller.scheduler.joins import Joins
from controller.scheduler.keeper import Keeper
from controller.scheduler.leases import Leases
from controller.scheduler.memories import Memories
from controller.scheduler.mobility import Mobility
from controller.scheduler.mover import LISTENING, Mover
from controller.scheduler.nodes import NodeTable
from controller.scheduler.quality import sane_report
from controller.scheduler.serving import Serving
from controller.scheduler.settings import Settings
from controller.scheduler.table import TaskTable
from controller.scheduler.ways import Ways
from protocols.errors import Blame, TonaBug
from protocols.messages import (
    Acknowledge,
    AnchorMoved,
    AnchorWelcome,
    AuditPage,
    Birth,
    Calibrate,
    Calibrated,
    Cancel,
    Death,
    Elsewhere,
    EnvelopeGrant,
    EnvelopeRevoke,
    EscalationAnswer,
    Flagged,
    HandoverAnswer,
    HandoverCommand,
    HandoverFailed,
    HandoverRequest,
    HandoverTimes,
    Invoke,
    JobAccepted,
    JobEnded,
    JobHandover,
    JobKept,
    JobOwned,
    JobQuery,
    JobRun,
    JobsMoved,
    JobStatus,
    JobSubmit,
    Lease,
    LinkReport,
    LoadReport,
    Measurement,
    MemoryRequest,
    MemoryState,
    Neighbours,
    ProfileReport,
    QualityReport,
    RouteRequest,
    Status,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.task import InstanceState

SWEEP_MS: Final = 200
LOSSES_PAUSE_MS: Final = 5
"""Between two turns that give up nodes."""
__all__ = ["Scheduler", "Settings"]
_SWEEP: Final = "sweep"
_JOINS: Final = "joins"
_LOSSES: Final = "losses"
_JOB: Final = "job/"


class Scheduler:
    """A TS; see `controller.decider.Decider`."""

    role = Role.TS

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        self.settings = settings
        self.nodes = NodeTable()
        self.desk = Desk(settings.name)
        self.table = TaskTable(self.desk, self.nodes)
        self.adoption = Adoption(self.desk, self.nodes, self.table)
        self.memories = Memories(self.desk, self.nodes, self.table, settings.store_urls)
        self.leases = Leases(self.desk, settings.elsewhere)
        self.mover = Mover(
            settings.epoch, self.desk, self.nodes, self.table, self.memories, self.leases
        )
        self.fleet = Fleet(settings, self.desk, self.nodes, self.table, self._node_changed)
        self.feeds = Feeds(settings.epoch, self.desk, self.nodes, self.table)
        self.keeper = Keeper(self.desk, self.nodes, self.table, self.feeds)
        self.ways = Ways(self.desk, settings.anchors, self.table)
        self.serving = Serving(
            self.desk, self.table, settings, self.keeper.credit, self.ways.planned
        )
        self.jobs = Jobs(
            self.desk,
            self.serving.route,
            self.table.anchor_of,
            settings.anchors,
            lambda event: self.fleet.known(event) is not None,
            self.table.may_answer,
        )
        self.figures = Figures(
            *(self.desk, self.nodes, self.table, self.keeper.cost),
            settings.anchors,
            self.fleet.heard,
        )
        parts = self.desk, self.nodes, self.table, self.fleet, self.adoption
        self.handovers = Handovers(settings, *parts)
        self.mobility = Mobility(
            settings,
            *(self.desk, self.nodes, self.table, self.fleet),
            self.keeper.gauges,
            self.handovers,
        )
        self.counters = self.fleet.counters
        self.accounts = Accounts(self.desk, self.counters)
        self.inquiries = Inquiries(
            self.desk,
            settings.epoch,
            lambda node: self.nodes.state(node) in LISTENING,
            self.accounts.heads.get,
        )
        self.joins = Joins(self.fleet.counts, self.counters)
        self.adoption.several = len(settings.anchors) > 1
        self.adoption.forget = self._forget
        self.greeting = Greeting(settings, self.desk)
        self.adoption.unsure = self._unsure
        self.adoption.leave = self.leases.hold
        self.admission, self.anchors = self._with_anchors(settings)
        self._on = self._table()

    def _with_anchors(self, settings: Settings) -> tuple[Admission, Anchors]:
        """Return what takes in what anchors say, of the parts that there are."""
        parts = self.desk, self.nodes, self.table, self.fleet, self.adoption
        owned = self.mover, self.keeper, self.feeds, self.greeting
        admission = Admission(settings, self.desk, self.table, self.fleet, self.adoption, *owned)
        anchors = Anchors(
            settings,
            *parts,
            *owned,
            leases=self.leases,
            memories=self.memories,
            handovers=self.handovers,
            jobs=self.jobs,
            ways=self.ways,
        )
        return admission, anchors

    def _table(self) -> dict[type[Struct], Callable[[Received, Any], None]]:
        """Return who takes which message."""
        return {
            LoadReport: self._on_load,
            LinkReport: self._on_link,
            QualityReport: self._on_quality,
            ProfileReport: self._on_profile,
            AuditPage: self._on_page,
            Birth: self._on_birth,
            Death: self.fleet.death,
            Status: self._on_status,
            MemoryState: self._on_memory,
            MemoryRequest: self._on_memory_asked,
            Invoke: self.serving.invoke,
            RouteRequest: self.serving.requested,
            EnvelopeGrant: self.admission.granted,
            EnvelopeRevoke: self.anchors.revoked,
            EscalationAnswer: self.anchors.answered,
            AnchorWelcome: self.anchors.welcomed,
            AnchorMoved: self.anchors.moved,
            JobSubmit: self.jobs.submit,
            JobRun: self.jobs.run,
            JobEnded: self.jobs.ended,
            JobKept: self.jobs.kept,
            JobQuery: self.jobs.query,
            JobAccepted: self.jobs.answered,
            JobStatus: self.jobs.answered,
            JobHandover: self.jobs.between,
            JobOwned: self.jobs.between,
            JobsMoved: self.jobs.between,
            Cancel: self.jobs.cancel,
            Calibrate: self.figures.calibrate,
            Calibrated: self.figures.calibrated,
            Lease: self.anchors.leased,
            Neighbours: self.handovers.named,
            HandoverRequest: self.handovers.request,
            HandoverCommand: self.handovers.command,
            HandoverFailed: self._on_failed,
            HandoverAnswer: self.mobility.answered,
            Measurement: self.mobility.measured,
            HandoverTimes: self._on_times,
            Elsewhere: self.handovers.elsewhere,
        }

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        """Take in nodes and cells that are known; all else comes from the nodes and the TA."""
        records = tuple(records)
        for record in records:
            if record.kind == NODE and isinstance(record.value, NodeRecord):
                self.fleet.recorded[record.key] = record.value
            else:
                self.accounts.restore(record)
        self.desk.begin(now_ms)
        self.handovers.restore(records)
        self.greeting.say()
        self.leases.begin()
        self.desk.wake(_SWEEP, now_ms + SWEEP_MS)
        return self._end()

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        """Decide on a batch of events."""
        self.desk.begin(now_ms)
        for event in events:
            match event:
                case Received():
                    self._received(event)
                case Fired(key=key):
                    self._on_timer(key)
                case Called():
                    self._on_call(event)
                case Linked(role=role):
                    self.anchors.linked(role)
                case Abroad():
                    self.ways.seen(event)
        for waited in self.joins.next(now_ms):
            self._hear(waited)
        if self.joins:
            self.desk.wake(_JOINS, self.joins.due_ms)
        return self._end()

    def _received(self, event: Received) -> None:
        if self.joins.admits(event, self.desk.now_ms):
            self._hear(event)
        elif self.fleet.counts(event):
            # It waits with a birth, but it lives.
            self.fleet.heard(event)

    def _hear(self, event: Received) -> None:
        kind = type(event.body)
        handler = self._on.get(kind)
        if handler is None:
            self.counters["unexpected_message"] += 1
        elif kind in OF_ANCHORS and event.sender not in self.settings.anchors:
            self.counters["forged_message"] += 1
        else:
            handler(event, event.body)

    def _end(self) -> Output:
        self.adoption.settle()
        self.mover.settle()
        for service in self.table.take_changed_services():
            routed = self.serving.renew(service)
            if routed:
                self.jobs.route_changed(service)
            if routed or self.feeds.ends_changed(service):
                self.feeds.renew(service)
        self.feeds.settle(self.serving.route)
        self.jobs.settle()
        self.handovers.settle()
        self.fleet.show()
        return self.desk.output

    def _forget(self, entry: TaskEntry, reason: str, cause: str) -> None:
        if self._unsure(entry):
            # Its anchor grants it again if it has not given it elsewhere.
            self.greeting.awaits(entry.anchor, entry.task)
        self.mover.forget(entry, reason, cause)
        self.keeper.revoked(entry.task)

    def _unsure(self, entry: TaskEntry) -> bool:
        anchor = entry.anchor
        return not self.leases.hold(anchor) or self.greeting.asks(anchor, entry.task)

    # What nodes say.

    def _on_birth(self, event: Received, birth: Birth) -> None:
        if self.fleet.birth(event, birth):
            stamp = (event.incarnation, event.number)
            self.handovers.born(event.sender, event.incarnation, birth, event.cause)
            self.mobility.born(event.sender, birth)
            self.adoption.node_born(event.sender, stamp, birth.holdings, event.cause)
            arrived = birth.arrival is not None
            self.feeds.node_born(event.sender, birth.feeds, arrived=arrived)
            self.jobs.node_born(event.sender)

    def _on_load(self, event: Received, load: LoadReport) -> None:
        if self.fleet.load(event, load):
            self.keeper.relief.load(event.sender, load, event.cause)

    def _on_link(self, event: Received, link: LinkReport) -> None:
        if self.fleet.link(event, link):
            self.keeper.relief.link(event.sender, link, event.cause)

    def _on_quality(self, event: Received, quality: QualityReport) -> None:
        if self.fleet.heard(event) is None:
            return
        if sane_report(quality):
            self.keeper.quality(event.sender, quality, event.cause)
            self.mover.further.take(event.sender, quality)
            self.figures.quality(event.sender, quality)
            self.ways.ran(event.sender, quality)
        else:
            self.counters["absurd_report"] += 1

    def _on_profile(self, event: Received, report: ProfileReport) -> None:
        if self.fleet.heard(event) is not None:
            runs = partial(self.adoption.may_run, event.sender)
            for flag, task, digest in self.accounts.take(event.sender, report, event.cause, runs):
                self._flag(flag, task, digest, event)

    def _flag(self, flag: Flag, task: str, digest: str, event: Received) -> None:
        entry = self.table.tasks.get(task)
        if entry is not None:
            told = Flagged(task, digest, flag.what, flag.detail, flag.over, flag.grave)
            self.desk.tell(ToRole(entry.anchor), told, event.cause, entry.tenant)

    def _on_page(self, event: Received, page: AuditPage) -> None:
        if self.fleet.heard(event) is not None:
            self.inquiries.answered(event, page)

    def _on_status(self, event: Received, status: Status) -> None:
        if self.fleet.heard(event) is None:
            return
        acknowledge = Acknowledge(status.number, event.incarnation, "status")
        self.desk.tell(ToNode(event.sender), acknowledge, event.cause)
        stamp = (event.incarnation, event.number)
        if self.adoption.status(event.sender, stamp, status, event.cause):
            self.fleet.ask_birth(event.sender, "what you run is not known here", event.cause)

        if status.state is InstanceState.STOPPED:
            self.memories.ended(event.sender, status.task, event.cause)

    def _on_failed(self, event: Received, failed: HandoverFailed) -> None:
        if self.fleet.heard(event) is None:
            return
        if failed.node != event.sender:
            self.counters["forged_message"] += 1
            return
        self.handovers.failed(event, failed)
        self.mobility.failed(failed)

    def _on_times(self, event: Received, times: HandoverTimes) -> None:
        if self.fleet.heard(event) is not None:
            self.handovers.took(event, times)

    def _on_memory(self, event: Received, state: MemoryState) -> None:
        if event.sender in self.settings.anchors:
            self.memories.came(state, event.cause)
        elif self.fleet.heard(event) is not None:
            self.memories.told(event.sender, state, event.cause)

    def _on_memory_asked(self, event: Received, request: MemoryRequest) -> None:
        if event.sender in self.settings.anchors:
            self.memories.lend(event.sender, request, event.cause)

    def _node_changed(
        self, node: str, after: NodeState, reason: str, cause: str, *, orderly: bool
    ) -> None:
        self.mover.node_changed(node, after, reason, cause, orderly=orderly)
        self.feeds.node_changed(node)
        if after is NodeState.MOVED:
            self.adoption.node_gone(node)
            self.handovers.gone(node)
            self.handovers.carry(node, self.fleet.moved_to[node])
            self.mobility.left(node, self.fleet.moved_to[node])
        if after is NodeState.LOST:
            self.adoption.node_gone(node)
            self.handovers.gone(node)
            self.jobs.node_lost(node)
            self.keeper.relief.node_lost(node)

    # Time, and people.

    def _on_timer(self, key: str) -> None:
        if key == greeting.TIMER:
            self.greeting.say()
        elif key == _SWEEP:
            self.leases.sweep()
            self.greeting.sweep()
            self._losses()
            self.handovers.sweep()
            self.mobility.sweep()
            self.mover.sweep()
            self.mover.spread()
            self.memories.sweep()
            self.feeds.sweep()
            self.keeper.sweep()
            self.figures.sweep()
            self.desk.wake(_SWEEP, self.desk.now_ms + SWEEP_MS)
        elif key == _LOSSES:
            self._losses()
        elif key.startswith(_JOB):
            self.jobs.fired(key)
        elif key.startswith(inquiries.TIMER):
            self.inquiries.fired(key.removeprefix(inquiries.TIMER))
        elif key != _JOINS:
            raise TonaBug(f"the scheduler set no timer {key!r}")

    def _losses(self) -> None:
        """Give up who is silent; of many at once the rest in another turn, soon."""
        if self.fleet.sweep():
            self.desk.wake(_LOSSES, self.desk.now_ms + LOSSES_PAUSE_MS)

    def _on_call(self, event: Called) -> None:
        if isinstance(event.arguments, AuditTask):
            asked = event.arguments
            entry = self.table.tasks.get(asked.name)
            here = [copy.node for copy in entry.copies()] if entry is not None else []
            nodes = dict.fromkeys([*here, *self.accounts.nodes(asked.name)])
            wanted = [one for one in nodes if asked.node in ("", one)]
            self.inquiries.ask(event, asked, wanted)
            return
        node = str(getattr(event.arguments, "name", ""))
        if event.operation == "node.forget":
            error = self.fleet.forget(node, event.cause)
            answer = Answer(event.call, error=error, blame=Blame.USER)
            self.desk.answer(answer if error else Answer(event.call, value={"node": node}))
            return
        served = {"node.drain": self.fleet.drain, "node.resume": self.fleet.resume}
        if event.operation not in served:
            raise TonaBug(f"the scheduler has no operation {event.operation!r}")
        state = served[event.operation](node, event.cause, event.tenant)
        if state is not None:
            self.desk.answer(Answer(event.call, value={"node": node, "state": state.value}))
        else:
            error = f"there is no node {node!r} here"
            self.desk.answer(Answer(event.call, error=error, blame=Blame.USER))
