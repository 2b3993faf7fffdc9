"""The pure core of the daemon and its one door: `Core.handle(event, now_ms) -> list[Command]`.

The core knows no clock, no randomness, no I/O: `now_ms` is the shell's monotonic clock (fractions
count, for timings in microseconds), identifiers and jitter come with events. After every `handle`
the shell reads `next_due_ms` and says `Tick` then. The parts share one `Turn`; this module alone
knows them all.

Ending. `ShutDown` releases every instance; when the last has stopped, or `SHUTDOWN_MS` has passed,
the node says farewell (`Death`, orderly) and asks for `Exit`. The journal keeps its assignments.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from device_agent.core import events
from device_agent.core.assignments import Assignments
from device_agent.core.attached import Attached, Kept
from device_agent.core.commands import Command, Exit, ReadLog, Say
from device_agent.core.jobs import JobEnds
from device_agent.core.lifecycle import Entry
from device_agent.core.outbox import Outbox
from device_agent.core.presence import Presence, PresenceState
from device_agent.core.quality import Meter
from device_agent.core.replies import Replies
from device_agent.core.reports import Reports
from device_agent.core.requests import Requests
from device_agent.core.tasks import Tasks
from device_agent.core.turn import Turn
from device_agent.core.upkeep import Upkeep
from protocols.errors import TonaBug
from protocols.messages import (
    Accepted,
    Acknowledge,
    Assign,
    AuditQuery,
    Birth,
    Calibrate,
    Cancel,
    Death,
    Deliver,
    Drain,
    Feed,
    HandoverCommand,
    HandoverComplete,
    Invoke,
    LoadReport,
    MemoryRequest,
    MemoryState,
    Missed,
    Neighbours,
    RebirthRequest,
    Release,
    Result,
    SetSensing,
    Tune,
    Welcome,
)
from protocols.messages.presence import Arrival, Inventory, Trust
from protocols.topics import Channel

if TYPE_CHECKING:
    from device_agent.core.calibrations import Calibrations
    from device_agent.core.deviceless import Deviceless
    from device_agent.core.feeder import Feeder
    from device_agent.core.inferences import Inferences
    from device_agent.core.instances import Instance
    from device_agent.core.ledger import Ledger
    from device_agent.core.memories import Memories
    from device_agent.core.trusting import Trusting

SHUTDOWN_MS: Final = 10_000
"""What the whole end of the daemon may take."""
WARNINGS_MAX: Final = 16
_SHUTDOWN: Final = ("shutdown", "")


class Core:
    """Everything that one node decides."""

    def __init__(
        self,
        *,
        node: str,
        agent_version: str,
        boot_id: str,
        inventory: Inventory,
        warnings: tuple[str, ...] = (),
        cell: str = "cell",
        trust: Trust | None = None,
        share_url: str = "",
        radios: int = 2,
    ) -> None:
        """Make one; `trust` is what it trusts of those who sign, None where nobody has to.

        `radios` is to how many cells it can be attached at once.
        """
        self._turn = turn = Turn(node, cell)
        self._agent_version = agent_version
        self._boot_id = boot_id
        self._inventory = inventory
        self._warnings = warnings
        self._log_problem = ""
        self._share_url = share_url
        self._radios = radios
        self._executors_bytes = 0
        self._load: LoadReport | None = None
        """Of the last sample, reported or not."""
        self._ending = ""
        self._ended = False
        self._before = 0
        self._scheduler_epoch: int | None = None
        """Of the last scheduler that spoke of itself."""
        self.reports = Reports(turn)
        self._trusting = self._trust(trust)
        self.outbox = Outbox(turn)
        self.tasks = Tasks(turn, self.outbox)
        self.upkeep = Upkeep(turn, self.tasks, lambda: self.presence.welcomed)
        self.assignments = Assignments(turn, self.outbox, self.tasks, self.upkeep, inventory)
        self.jobs = JobEnds(turn)
        self._ledger: Ledger | None = None
        turn.ledger = self._account
        self.meter = Meter(turn)
        self.replies = Replies(turn, self.meter, self.jobs, self._heard, self._sink)
        self.requests = Requests(turn, self.assignments, self.meter, self.replies, self.upkeep.idle)
        self._kept = Kept(self.outbox, self.jobs, self.replies, self.requests)
        self.attached = Attached(turn, self._kept, self._birth, self._welcomed, radios)
        self.upkeep.abandon = self.requests.abandon
        self.upkeep.may_start = self._may_start
        self._deviceless: Deviceless | None = None
        self._calibrations: Calibrations | None = None
        self.requests.workers.deviceless = self._followers
        self._inferences: Inferences | None = None
        self.requests.inferences = self._models
        self._memories: Memories | None = None
        self._doors = self._table()
        self._clocks = self._timers()
        self._bodies = self._messages()

    def _messages(self) -> dict[tuple[Channel, type], Callable[[events.Received, Any], None]]:
        """Return who takes which message."""
        return {
            (Channel.INVOKE, Invoke): self.requests.take,
            (Channel.INVOKE, Deliver): self.requests.take,
            (Channel.INVOKE, Cancel): lambda _, body: self.requests.cancel(body),
            (Channel.INVOKE, Accepted): lambda _, body: self._heard(body),
            (Channel.INVOKE, Result): lambda _, body: self._heard(body),
            (Channel.COMMAND, Welcome): self.attached.welcome,
            (Channel.COMMAND, RebirthRequest): self._rebirth,
            (Channel.COMMAND, Drain): self._drain,
            (Channel.COMMAND, SetSensing): lambda _, body: self.reports.pace(body),
            (Channel.COMMAND, Assign): self._assign,
            (Channel.COMMAND, Release): self._release,
            (Channel.COMMAND, Tune): self._tune,
            (Channel.COMMAND, Calibrate): lambda event, body: self.calibrations.take(
                body, event.tenant, event.cause, self.assignments.held.values()
            ),
            (Channel.COMMAND, Feed): self._feed,
            (Channel.COMMAND, Acknowledge): self._acknowledge,
            (Channel.COMMAND, MemoryRequest): lambda event, body: self._remembering().asked(
                body, event.cause
            ),
            (Channel.COMMAND, MemoryState): lambda event, body: self._remembering().given(
                body, event.cause
            ),
            (Channel.COMMAND, AuditQuery): self._audit,
            (Channel.COMMAND, Neighbours): self.attached.told,
            (Channel.COMMAND, HandoverCommand): self.attached.told,
            (Channel.COMMAND, HandoverComplete): self.attached.told,
            (Channel.MISSED, Missed): self._missed,
        }

    def handle(self, event: events.Event, now_ms: float) -> list[Command]:
        """Take in one event; return what is to be done, in order. Raises TonaBug."""
        turn = self._turn
        turn.now_ms = now_ms
        out: list[Command] = []
        turn.out = out
        door = self._doors.get(type(event))
        if door is None:
            raise TonaBug(f"the core has no door for {type(event).__name__}")
        door(event)
        if self._deviceless is not None:
            self._deviceless.settle()
        if self._ending and not self._ended and not self.assignments.active and not self._saying():
            self._farewell()
        return out

    def _saying(self) -> bool:
        """Whether the node, which ends, still has to say what its tasks remember."""
        remember = any(one.assign.manifest.remembers for one in self.tasks.held.values())
        return remember and self._remembering().last_words()

    @property
    def next_due_ms(self) -> float | None:
        """When the next `Tick` is wanted; None: not before another event."""
        return self._turn.timers.next_ms()

    @property
    def presence(self) -> Presence:
        """Towards the scheduler that serves this node."""
        return self.attached.presence

    @property
    def counts(self) -> dict[str, int]:
        """What was dropped, refused or late since the start, by name."""
        return self._turn.counts

    def story(self, task: str) -> tuple[Entry, ...]:
        """Return the last steps of a task, oldest first; empty when it is not held."""
        held = self.assignments.held.get(task)
        return tuple(held.story) if held is not None else ()

    def _table(self) -> dict[type, Callable[[Any], None]]:
        """Return who takes which event."""
        assignments, requests, upkeep = self.assignments, self.requests, self.upkeep
        return {
            events.Received: self._received,
            events.ExecutorDone: requests.done,
            events.ExecutorFailed: requests.failed,
            events.Inferring: lambda event: self._models().ask(event),
            events.Tick: self._tick,
            events.Sampled: self._sampled,
            events.LinkSampled: self._link_sampled,
            events.Restored: self._restored,
            events.JournalFailed: assignments.journal_failed,
            events.Connected: self.attached.connected,
            events.Disconnected: self.attached.disconnected,
            events.PublishRefused: self.attached.refused,
            events.LinkUp: self.attached.link_told,
            events.AttachFailed: self.attached.link_told,
            events.CellsMeasured: self.attached.measured,
            events.ArtifactReady: upkeep.artifact_ready,
            events.ArtifactFailed: upkeep.artifact_failed,
            events.TrustChecked: self._trust_checked,
            events.InstanceReady: self._instance_ready,
            events.InstanceFailed: upkeep.failed,
            events.InstanceExited: upkeep.exited,
            events.InstanceStopped: lambda event: upkeep.stopped(event.instance),
            events.InstanceStats: upkeep.stats,
            events.InstanceRested: lambda event: self._followers().rested(event.instance),
            events.CalibrationEnded: lambda event: self.calibrations.ended(
                event.found, self.assignments.held.values()
            ),
            events.ExecutorsSized: self._sized,
            events.BlobReady: lambda event: requests.workers.blob_ready(event.digest),
            events.BlobPushed: self._blob_pushed,
            events.BlobFailed: self._blob_failed,
            events.MemoryRead: lambda event: self._remembering().read(event),
            events.MemoryWritten: lambda event: self._remembering().written(event),
            events.SourceRead: self._fed,
            events.SourceFailed: self._fed,
            events.Published: self._fed,
            events.Stored: self._fed,
            events.StoreFailed: self._fed,
            events.LogWritten: self._logged,
            events.LogRead: lambda event: self._turn.out.append(
                Say(Channel.RESULT, event.page, event.cause)
            ),
            events.ShutDown: self._shut_down,
        }

    def _timers(self) -> dict[str, Callable[[str], None]]:
        """Return who acts when something is due, by its subject."""
        upkeep = self.upkeep
        return {
            "request": self.requests.on_timer,
            "sweep": lambda _: self.requests.admission.sweep(),
            "status": lambda _: self.outbox.on_timer(),
            "job": lambda _: self.jobs.on_timer(),
            "birth": self.attached.birth_due,
            "move": self.attached.move_due,
            "catch up": lambda _: self.attached.missed_due(),
            "shutdown": lambda _: self._farewell(),
            "journal": self.assignments.write_again,
            "trust": self._trust_due,
            "log": lambda _: self._account().flush(),
            **{one: partial(self._feed_due, one) for one in ("feed", "flight", "sink")},
            **{one: partial(self._follow, one) for one in ("rest", "warm")},
            **{one: partial(upkeep.on_timer, one) for one in ("retry", "grace", "drain", "stop")},
        }

    # Peers.

    def _received(self, event: events.Received) -> None:
        door = self._bodies.get((event.channel, type(event.body)))
        if door is None:
            self._turn.counts["foreign message"] += 1
        elif self._ending and event.channel is Channel.COMMAND:
            self._turn.counts["too late"] += 1
        elif event.channel is Channel.COMMAND and event.cell not in {"", self._turn.cell}:
            self.attached.aside(event)
        else:
            door(event, event.body)

    def _welcomed(self, event: events.Received, body: Welcome, another: bool) -> None:
        """Do as the scheduler that serves says."""
        self._fence(body.scheduler_epoch, event.incarnation, another=another)
        self._turn.store_urls = body.store_urls
        if self._trusting is not None:
            self._trusting.welcomed()
        self.reports.welcomed(body)
        self.upkeep.reachable(event.cause)

    def _rebirth(self, event: events.Received, body: RebirthRequest) -> None:
        self.attached.rebirth(body, event.cause)
        self._fence(body.scheduler_epoch, event.incarnation)

    def _fence(self, scheduler_epoch: int, incarnation: int, *, another: bool = False) -> None:
        """Begin to count a scheduler's words anew when it has, or when it is another one."""
        before, self._scheduler_epoch = self._scheduler_epoch, scheduler_epoch
        if another or before not in (None, scheduler_epoch):
            self.assignments.fence(incarnation, another=another)
            if self._kept.feeder is not None:
                self._kept.feeder.fence(incarnation, another=another)

    def _drain(self, _event: events.Received, body: Drain) -> None:
        if not self._ending:
            self._turn.draining = "" if body.over else body.reason or "it is being drained"
            if self._calibrations is not None and not body.over:
                self._calibrations.drained()

    def _assign(self, event: events.Received, body: Assign) -> None:
        self.assignments.assign(body, event.cause)
        if self._calibrations is not None:
            self._calibrations.pressed(self.assignments.held.values())

    def _tune(self, event: events.Received, body: Tune) -> None:
        self.assignments.tune(body, event.incarnation, event.cause)
        held = self.assignments.held.get(body.task)
        shown = held.shown if held is not None else None
        if shown is not None and shown.deviceless is not None:
            self._followers().tuned(shown)

    def _release(self, event: events.Received, body: Release) -> None:
        self.assignments.release(body, event.cause)

    def _acknowledge(self, _event: events.Received, body: Acknowledge) -> None:
        if body.incarnation != self.presence.incarnation:
            self._turn.counts["late acknowledge"] += 1
        elif body.of == "job":
            self.jobs.acknowledge((body.number, *body.also))
        elif body.of == "status":
            for number in (body.number, *body.also):
                self.outbox.acknowledge(number)
        else:
            self._turn.counts["late acknowledge"] += 1

    # The shell.

    def _restored(self, event: events.Restored) -> None:
        self._before = event.incarnation
        self.attached.restore(event.place)
        self.assignments.restore(event)
        if event.feeds:
            self.feeder.restore(event.feeds)

    @property
    def feeder(self) -> "Feeder":
        """Return what feeds services; it is loaded when it is first needed, as few nodes do."""
        if self._kept.feeder is None:
            from device_agent.core.feeder import Feeder  # noqa: PLC0415 - see above

            self._kept.feeder = Feeder(self._turn, self._take, self._life)
            if self.presence.state is not PresenceState.OFFLINE:
                self._kept.feeder.connected()
            if self._load is not None:
                self._kept.feeder.sampled(self._load)
        return self._kept.feeder

    def _followers(self) -> "Deviceless":
        """Return who lets instances follow the requests; loaded when there is one that does."""
        if self._deviceless is None:
            from device_agent.core.deviceless import Deviceless  # noqa: PLC0415 - see `feeder`

            self._deviceless = Deviceless(
                self._turn,
                self._inventory,
                self.upkeep.instances,
                self.upkeep.start,
                self.requests.workers.next,
                lambda: self._calibrations,
            )
            self.upkeep.changed = self._deviceless.changed
            if self._load is not None:
                self._deviceless.sampled(self._load)
        return self._deviceless

    def _may_start(self, instance: "Instance") -> bool:
        """Whether there is memory for an instance; where none follows the requests, there is."""
        if self._deviceless is None and instance.deviceless is None:
            return True
        return self._followers().may_start(instance)

    @property
    def calibrations(self) -> "Calibrations":
        """Return who measures programs; it is loaded with the first one."""
        if self._calibrations is None:
            from device_agent.core.calibrations import Calibrations  # noqa: PLC0415 - see `feeder`

            self._calibrations = Calibrations(self._turn, self._inventory)
        return self._calibrations

    def _models(self) -> "Inferences":
        """Return who runs models for guests; loaded when the first guest asks for one."""
        if self._inferences is None:
            from device_agent.core.inferences import Inferences  # noqa: PLC0415 - see `feeder`

            self._inferences = Inferences(self._turn, self.assignments, self.requests)
        return self._inferences

    def _remembering(self) -> "Memories":
        """Return who moves what tasks remember; loaded when there is one that does."""
        if self._memories is None:
            from device_agent.core.memories import Memories  # noqa: PLC0415 - see `feeder`

            self._memories = Memories(self._turn, self.tasks, self.requests.workers)
        return self._memories

    def _audit(self, event: events.Received, body: AuditQuery) -> None:
        if self._ledger is not None:
            self._ledger.flush()
        self._turn.out.append(ReadLog(body, event.cause))

    def _logged(self, event: events.LogWritten) -> None:
        """Take note of how the log of calls has grown; that it cannot is said with the birth."""
        self._account().written(event.logged, event.head)
        if event.problem != self._log_problem:
            self._log_problem = event.problem
            self.presence.again("log of calls")

    def _account(self) -> "Ledger":
        """Return who keeps account of calls; loaded with the first one."""
        if self._ledger is None:
            from device_agent.core.ledger import Ledger  # noqa: PLC0415 - see `feeder`

            self._ledger = Ledger(self._turn, self._inventory.cpu_count, self._before)
        return self._ledger

    def _follow(self, subject: str, name: str) -> None:
        self._followers().on_timer(subject, name)

    def _instance_ready(self, event: events.InstanceReady) -> None:
        self.upkeep.ready(event.instance)
        instance = self.upkeep.instances.get(event.instance)
        if instance is not None and instance.deviceless is not None and instance.idle:
            self._followers().idle(instance)

    def _feed(self, event: events.Received, body: Feed) -> None:
        if self.attached.left:
            # Its cell may end a feed because the node has left: that is the next cell's to say.
            self._turn.counts["late command"] += 1
            return
        self.feeder.take(body, event.incarnation, event.cause)
        self.attached.fed()

    def _missed(self, _event: events.Received, body: Missed) -> None:
        self.attached.missed(body)
        self.feeder.missed(body)

    def _fed(self, event: Any) -> None:
        self.feeder.handle(event)

    def _feed_due(self, subject: str, name: str) -> None:
        self.feeder.on_timer(subject, name)

    def _heard(self, body: Accepted | Result) -> None:
        """Take the answer to a request of this node's own feeder."""
        if self._kept.feeder is not None:
            self._kept.feeder.heard(body)
        else:
            self._turn.counts["foreign message"] += 1

    def _sink(self, service: str, result: Result, cause: str, tenant: str) -> None:
        """Pass on an answer that ended here, if its service has sinks."""
        if self._kept.feeder is not None:
            self._kept.feeder.sink(service, result, cause, tenant)

    def _take(self, event: events.Received, body: Invoke) -> None:
        """Take a request of this node's own feeder."""
        self.requests.take(event, body)

    def _life(self) -> str:
        """Name this connection, or this process before its first: no other has that name."""
        incarnation = self.presence.incarnation
        return str(incarnation) if incarnation >= 0 else f"b{self._before}"

    def _blob_pushed(self, event: events.BlobPushed) -> None:
        self.requests.blob_pushed(event.digest, event.named)
        if self._kept.feeder is not None:
            self._kept.feeder.flights.blob_pushed(event.digest)

    def _blob_failed(self, event: events.BlobFailed) -> None:
        self.requests.blob_failed(event)
        if self._kept.feeder is not None:
            self._kept.feeder.blob_failed(event)

    def _sized(self, event: events.ExecutorsSized) -> None:
        self._executors_bytes = event.memory_bytes

    def _sampled(self, event: events.Sampled) -> None:
        load = structs.replace(
            event.load,
            instances=len(self.upkeep.instances),
            queue=len(self.requests),
            executors_bytes=self._executors_bytes,
        )
        self._load = load
        if self._kept.feeder is not None:
            self._kept.feeder.sampled(load)
        if self._deviceless is not None:
            self._deviceless.sampled(load)
        if self._ledger is not None:
            self._ledger.sampled(load)
        if self.presence.welcomed:
            quality = self.meter.report(self.upkeep.instances.values())
            if quality is not None:
                self._turn.out.append(Say(Channel.LOAD, quality, "sample"))
            if self._ledger is not None:
                self._ledger.report()
            self.reports.load(load)

    def _link_sampled(self, event: events.LinkSampled) -> None:
        link, turn = event.link, self._turn
        turn.round_trip_ms = link.round_trip_ms or 0.0
        turn.uplink.measured(link.delivery_mbit_per_s, link.send_wait_ms, turn.now_ms)
        if event.broken:
            self.attached.broken(event.broken)
        if self.presence.welcomed:
            self.reports.link(self.attached.priced(link))

    def _tick(self, _event: events.Tick) -> None:
        for subject, name in self._turn.timers.due(self._turn.now_ms):
            self._clocks[subject](name)

    def _shut_down(self, event: events.ShutDown) -> None:
        if not self._ending:
            self._ending = self._turn.draining = event.reason or "the device agent ends"
            self._turn.timers.set(_SHUTDOWN, self._turn.now_ms + SHUTDOWN_MS)
            if self._calibrations is not None:
                self._calibrations.drained()
            self.assignments.stop_all(self._ending)

    def _farewell(self) -> None:
        if not self._ended:
            self._ended = True
            if self._ledger is not None:
                self._ledger.flush()
            self._turn.timers.cancel(_SHUTDOWN)
            self.attached.farewell(self._ending)
            self._turn.out.append(Say(Channel.PRESENCE, Death(self._ending, orderly=True)))
            self._turn.out.append(Exit(self._ending))

    def _trust(self, trust: Trust | None) -> "Trusting | None":
        """Return what looks after that; loaded where it is needed, as on loopback it is not."""
        if trust is None:
            return None
        from device_agent.core.trusting import Trusting  # noqa: PLC0415 - see above

        return Trusting(self._turn, trust, self._again)

    def _again(self, cause: str) -> None:
        self.presence.again(cause)

    def _trust_checked(self, event: events.TrustChecked) -> None:
        if self._trusting is not None:
            self._trusting.checked(event)

    def _trust_due(self, _name: str) -> None:
        if self._trusting is not None:
            self._trusting.on_timer()

    def _warned(self) -> tuple[str, ...]:
        return (self._log_problem, *self._warnings) if self._log_problem else self._warnings

    def _birth(self, arrival: Arrival | None) -> Birth:
        return Birth(
            self._agent_version,
            self._boot_id,
            self._inventory,
            self.tasks.holdings(),
            tuple(one[:1000] for one in self._warned()[:WARNINGS_MAX]),
            self._turn.draining[:1000],
            self._kept.feeder.feedings() if self._kept.feeder is not None else (),
            self._trusting.trust if self._trusting is not None else None,
            self._share_url,
            arrival,
            self._radios,
        )
