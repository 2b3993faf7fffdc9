"""Between the layers: NAMO orders services, the TA grants envelopes, the TS reports and escalates.

Two roles in one process exchange these very structs without a wire.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, field

from protocols.base import Count, Id, Label, Message, Name, Part, Percent, Text
from protocols.errors import Blame
from protocols.manifest import MAX_PORTS, Manifest
from protocols.messages.calibration import CalibrationInput
from protocols.messages.invocation import MAX_STEPS, Edge
from protocols.messages.mobility import CellPoint, Span
from protocols.messages.presence import Arrival, Inventory
from protocols.messages.quality import (
    MAX_SOURCES,
    MAX_VARIANTS,
    PRIORITY_DEFAULT,
    Declared,
    Leeway,
    Priority,
    Sink,
    Source,
    Tuning,
    UserZone,
    Variant,
)
from protocols.messages.task import Deviceless, InstanceState, LostPolicy, Origin, Quarantine
from protocols.sla import Bound, ServiceKind, Sla

MAX_RESERVED: Final = 256
"""Tasks of other anchors that are told apart on one node."""
MAX_FAILURES: Final = 16
"""Nodes that could not run a task, of which one report tells."""
MAX_CELLS: Final = 64
"""Other cells that one gateway tells of..."""
MAX_ASKED: Final = 256
"""...and services."""


class TaskQos(Part, frozen=True):
    """A task's share of its service's QoAIS."""

    latency_ms: Annotated[float, Meta(gt=0)] | None = None
    bounds: tuple[Bound, ...] = ()
    """Its share of every other indicator, split over the DAG as the indicator asks."""


class Demand(Part, frozen=True):
    """What a task asks of the computing dimension of its node (resource QoS).

    Memory is not asked for twice: the manifest's limit is what a node sets aside.
    """

    cpu_percent: Annotated[float, Meta(ge=0, le=100 * 4096)] = 5.0
    """Of one core, on the mean."""
    accelerator: str = ""
    """`gpu`, `npu`, or empty for none."""


class TaskSpec(Part, frozen=True):
    """One task of a service: what runs, what feeds it, what it must keep."""

    task: Name
    step: Name
    manifest: Manifest
    inputs: tuple[Edge, ...] = ()
    """Sources are steps of the same service, or `request`; none: modules feed it as they run."""
    qos: TaskQos = TaskQos()
    """Its share of the service's quality."""
    demand: Demand = Demand()
    """What it asks of its node."""
    policy: LostPolicy = LostPolicy()
    """What happens when its node is lost."""
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    nodes: tuple[Name, ...] = ()
    """Only these nodes, if any are named."""
    variants: Annotated[tuple[Variant, ...], Meta(max_length=MAX_VARIANTS)] = ()
    """Other programs that do the same; the manifest is the first choice."""
    declared: Annotated[tuple[Declared, ...], Meta(max_length=64)] = ()
    """What its author says of the manifest: accuracy, precision, robustness..."""
    expected_ms: Annotated[float, Meta(gt=0)] | None = None
    """Predicted cost of one run of the manifest."""
    group: str = ""
    """Tasks of one group run on one node: a hop between them would cost more than it gives."""
    priority: Priority = PRIORITY_DEFAULT
    origins: tuple[Name, ...] = ()
    """Where its raw input comes to be; with a privacy of `node` it runs on one of these alone."""
    leeway: Leeway = Leeway()
    """The most that its document and autonomy allow the layers below to change by themselves."""
    deviceless: Deviceless | None = None
    """As in Assign."""
    samples: Annotated[tuple[CalibrationInput, ...], Meta(max_length=MAX_PORTS)] = ()
    """What its programs are tried with; where a port has none, zeros."""
    quarantine: Quarantine = Quarantine.NEVER
    """What is done with a version that behaves unlike the task's history."""

    @property
    def inferred(self) -> bool:
        """Whether no plan has it: it runs only when a module of its service infers."""
        return not self.inputs


class Reserved(Part, frozen=True):
    """What one task has set aside on a node."""

    task: Label
    memory_bytes: Count
    """Of task memory."""
    cpu_percent: Annotated[float, Meta(ge=0)] = 0.0
    """Of one core, where it runs."""
    growth_bytes: Count = 0
    """What it may take beyond that while it is asked: room for one such task is kept."""


class Autonomy(StrEnum):
    """Which decisions the network takes by itself; the others wait for a person."""

    MANUAL = "manual"
    """Only what a loss demands."""
    PARTIAL = "partial"
    """What TS and TA decide; another decomposition or anchor waits."""
    FULL = "full"


class ServiceOrder(Message, tag="service-order", frozen=True):
    """NAMO to TA: have these tasks run. A higher generation replaces a lower one."""

    service: Name
    use_case: Name
    """To which the service belongs."""
    kind: ServiceKind
    """What the service does."""
    generation: Count
    tasks: Annotated[tuple[TaskSpec, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    """In topological order."""
    outputs: tuple[Edge, ...]
    """Where the answers come from."""
    sla: Sla = Sla()
    """What was agreed with the user."""
    spares: Annotated[int, Meta(ge=0, le=64)] = 1
    """Nodes to hold ready beside the first."""
    decomposition: str = ""
    """Which of the candidates this is."""
    users: Annotated[tuple[UserZone, ...], Meta(max_length=1024)] = ()
    """Users whose zone differs from the agreement's."""
    sources: Annotated[tuple[Source, ...], Meta(max_length=MAX_SOURCES)] = ()
    """What feeds it beside clients."""
    sinks: Annotated[tuple[Sink, ...], Meta(max_length=16)] = ()
    """Where its answers go beside clients."""
    autonomy: Autonomy = Autonomy.FULL
    """Which changes need an approval."""
    epochs_above: Count = 0
    """Epochs of its tasks begin above this: another anchor has given those below."""
    taken_from: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    """Anchors that have had it, and may have jobs of it."""
    handed: Count = 0
    """How often anchors have handed it on, as NAMO knows: the next time is numbered above."""
    moved_generation: Count = 0
    """Of the last AnchorMoved that NAMO has heard; 0: of none."""
    moved_number: Count = 0
    """The same: what was ordered elsewhere meanwhile may count from a lower number."""


class ServiceDelete(Message, tag="service-delete", frozen=True):
    """NAMO to TA: end a service and its tasks."""

    service: Name
    generation: Count
    transferred: bool = False
    """Whether another anchor has it now: forget it, the tasks run on."""
    anchor: str = ""
    """Who has it now; empty: nobody, or not known. With `transferred` its jobs go there."""


class ServiceState(StrEnum):
    """What the TA says of a whole service."""

    DEPLOYING = "deploying"
    RUNNING = "running"
    DEGRADED = "degraded"
    WAITING = "waiting"
    DELETED = "deleted"


class ServiceReport(Message, tag="service-report", frozen=True):
    """TA to NAMO: how a service fares, coarsely."""

    service: Name
    generation: Count
    state: ServiceState
    reason: Text = ""
    epoch_high: Count = 0
    """No epoch above it was ever given to a task of the service."""


class SchedulerHello(Message, tag="scheduler-hello", frozen=True):
    """TS to TA: a scheduler has started without memory; the TA grants again what it holds."""

    scheduler: Name
    scheduler_epoch: Count
    point: CellPoint | None = None
    """Where its cell is reached; null: that is not known, and no node is handed over to it."""
    beside: Annotated[str, Meta(max_length=64)] = ""
    """The TA in its process, which is nearest to its cell; empty: there is none."""
    number: Count = 0
    """Grows with every hello; one that is repeated keeps it."""


class CellWay(Part, frozen=True):
    """How far another cell is."""

    cell: Name
    round_trip_ms: Span
    """From the gateway that tells to the broker of that cell and back."""


class Asked(Part, frozen=True):
    """How often a service is asked for."""

    service: Name
    per_s: Annotated[float, Meta(ge=0, le=1e9)]
    """Requests, without those that are repeated."""


class CellReport(Message, tag="cell-report", frozen=True):
    """TS to TA: what its gateway sees of other cells; all of it each time."""

    ways: Annotated[tuple[CellWay, ...], Meta(max_length=MAX_CELLS)] = ()
    """The ways that are known."""
    asked: Annotated[tuple[Asked, ...], Meta(max_length=MAX_ASKED)] = ()
    """Services that are served elsewhere, those asked for most."""
    served: Annotated[tuple[Asked, ...], Meta(max_length=MAX_ASKED)] = ()
    """Services that are served here, with what clients of other cells ask for."""


class LeaseRequest(Message, tag="lease-request", frozen=True):
    """TS to TA: may I act on? Asked again and again."""

    number: Count
    """Grows with every question."""


class Lease(Message, tag="lease", frozen=True):
    """TA to TS: it may, until a lease after it *asked*: so no clock needs to agree with another."""

    number: Count
    """Of the question."""


class AnchorWelcome(Message, tag="anchor-welcome", frozen=True):
    """TA to TS: the answer to a hello, after the grants."""

    anchor: Name
    """Name of the TA."""
    scheduler_epoch: Count
    grants: Count
    """How many it gave."""
    roaming: bool = False
    """Whether nodes may bring tasks along from other cells: none of those is released unasked."""
    number: Count = 0
    """Of the hello; 0: of any."""


class EnvelopeGrant(Message, tag="envelope-grant", frozen=True):
    """TA to TS: what a task may use. The TS acts freely inside it and nowhere else."""

    service: Name
    generation: Count
    spec: TaskSpec
    """The task."""
    nodes: Annotated[tuple[Name, ...], Meta(min_length=1)]
    """Best first: the first is where the TA wants it, the others are spares."""
    epoch_from: Count
    """The first of the block."""
    epoch_to: Count
    """The block of epochs leased to the TS for this task, both included."""
    plan_tasks: tuple[Name, ...] = ()
    """All tasks of the service in topological order, to build routes."""
    outputs: tuple[Edge, ...] = ()
    """Where the answers of the service come from."""
    current_node: str = ""
    """Where the task last ran, as the TA knows: a scheduler without memory waits for that node."""
    current_epoch: Count = 0
    """Under which it ran there; without a node: copies under lower epochs are left over."""
    leeway: Leeway = Leeway()
    """What the TS may change beside the place."""
    tuning: Tuning = Tuning()
    """How the TA wants it to run at first."""
    resources: tuple[Bound, ...] = ()
    """Resource QoS: what its quality asks of connection, computing, algorithm and data."""
    sla: Sla = Sla()
    """Of the service."""
    users: Annotated[tuple[UserZone, ...], Meta(max_length=1024)] = ()
    """Of the service."""
    sources: Annotated[tuple[Source, ...], Meta(max_length=MAX_SOURCES)] = ()
    """Of the service, each with the nodes that the TA chose to provide it, best first."""
    sinks: Annotated[tuple[Sink, ...], Meta(max_length=16)] = ()
    """Of the service."""
    reserved: tuple[Count, ...] = ()
    """Bytes of task memory set aside on each of the nodes, in their order; without them it is the
    manifest's limit on each.
    """
    arriving: bool = False
    """Whether another TS serves it still: a copy is prepared here, and routes stay as they are."""
    origin: Origin | None = None
    """Where what the task remembers is to come from, in another cell; null: it is in this one."""


class EnvelopeRevoke(Message, tag="envelope-revoke", frozen=True):
    """TA to TS: the task is over, or belongs to another TS."""

    task: Name
    generation: Count
    reason: Text = ""
    stays: bool = False
    """Whether its service stays although it runs nowhere: who asks for that is told the reason."""
    transferred: bool = False
    """Whether another TS gets it: the copy runs on, and the answer is `Relinquished`."""
    node: str = ""
    """Of a transferred one: whose copy runs on; who serves it on another one keeps it, and says so.
    """
    cell: Annotated[str, Meta(max_length=64)] = ""
    """Of a transferred one: that of the other TS, for the routes of the clients here."""
    leased: Count = 0
    """Of a transferred one: the last epoch of the lease that ends."""
    given: bool = False
    """Whether the other TS has it already, for the lease of this one was over: it keeps nothing."""
    attached: Count = 0
    """Of what is not to run on `node`: the attachment that the TA has heard of; one that came after
    it may bring the task along again. 0: any.
    """


class Elsewhere(Message, tag="elsewhere", frozen=True):
    """TA to TS: where a task is served that another TS has, for the routes of the clients here."""

    spec: TaskSpec
    """The task."""
    service: Name
    generation: Count
    plan_tasks: tuple[Name, ...]
    """As in EnvelopeGrant, like `outputs`."""
    outputs: tuple[Edge, ...]
    """Of the service."""
    node: str = ""
    """Where it is served; empty: nowhere now."""
    epoch: Count = 0
    """Under which it is served there."""
    cell: Annotated[str, Meta(max_length=64)] = ""
    """Of the node."""
    over: bool = False
    """Whether it is to be forgotten."""
    sources: Annotated[tuple[Source, ...], Meta(max_length=MAX_SOURCES)] = ()
    """Of the service that nodes in the cell of this TS provide; each names its node alone."""
    sinks: Annotated[tuple[Sink, ...], Meta(max_length=MAX_PORTS)] = ()
    """Where the service's answers go, for these nodes."""
    sla: Sla = Sla()
    """As in EnvelopeGrant."""


class Attempt(Part, frozen=True):
    """One thing that a layer tried before it escalated."""

    action: Text
    """What was done."""
    outcome: Text
    """What came of it."""
    blame: Blame | None = None
    """Whose fault that is, where it is one."""


class TaskReport(Message, tag="task-report", frozen=True):
    """TS to TA: what became of a task inside its envelope."""

    task: Name
    generation: Count
    node: Name
    epoch: Count
    state: InstanceState
    reason: Text = ""
    blame: Blame | None = None
    """Whose fault it is, where it is one."""
    restarts: Count = 0
    """As in Status."""
    variant: str = ""
    """Which one runs; empty: the manifest of the specification."""
    awaits: bool = False
    """Whether the copy waits for what it is to remember, and answers nothing before."""
    attempts: Annotated[tuple[Attempt, ...], Meta(max_length=MAX_FAILURES)] = ()
    """On nodes of its envelope that could not run it."""


class TaskEvent(Message, tag="task-event", frozen=True):
    """TS to TA: what the TS did about a task's quality and what came of it, for its story."""

    task: Name
    event: Id
    """`danger`, `acted`, `helped`, `reverted`, `kept`, `relaxing`, `relaxed` or `calm`."""
    detail: Text = ""
    """What exactly, with its figures."""
    blame: Blame | None = None
    """Whose fault it is, where it is one."""


class NodeState(StrEnum):
    """What the scheduler believes of a node; the table stands in `controller/scheduler`."""

    ONLINE = "online"
    SUSPECT = "suspect"
    DRAINING = "draining"
    LOST = "lost"
    MOVED = "moved"
    """It has said that another cell serves it, or is about to."""


class NodeSummary(Message, tag="node-summary", frozen=True):
    """TS to TA: a node came, changed its coarse load, or went."""

    node: Name
    state: NodeState
    """What the TS believes of the node."""
    incarnation: Count
    """Of its last birth."""
    inventory: Inventory
    """As in its birth."""
    cpu_percent: Percent = 0.0
    memory_available_bytes: Count = 0
    round_trip_ms: float | None = None
    reason: Text = ""
    tasks: Annotated[tuple[Name, ...], Meta(max_length=256)] = ()
    """Of which it has a copy, whichever anchor they are of: an anchor that takes a service over
    leaves them where they are.
    """
    others: Annotated[tuple[Reserved, ...], Meta(max_length=MAX_RESERVED)] = ()
    """What tasks of other anchors than the receiver have reserved there; the last one stands for
    all beyond.
    """
    forgotten: bool = False
    """Whether an operator has had it forgotten: it counts no more until it is born again."""
    arrival: Arrival | None = None
    """As in its birth."""
    kept: Annotated[tuple[Name, ...], Meta(max_length=256)] = ()
    """Tasks that it holds and nobody has granted here: each is granted, or revoked."""


class Kept(Part, frozen=True):
    """A durable thing, as it goes from store to store."""

    kind: Id
    key: Text
    value: Annotated[bytes, Meta(max_length=4 << 20)]
    """In the form of the store."""


class AnchorOffer(Message, tag="anchor-offer", frozen=True):
    """TA to TA: will you take this service? Its tasks run in cells that you are nearer to."""

    service: Name
    number: Count
    """Grows with every change of the service's anchor."""
    schedulers: Annotated[tuple[Name, ...], Meta(max_length=64)]
    """That hold its tasks."""


class AnchorTransfer(Message, tag="anchor-transfer", frozen=True):
    """TA to TA, said until it is taken: this service is yours. The sender owns it no more."""

    service: Name
    number: Count
    """As in the offer."""
    records: Annotated[tuple[Kept, ...], Meta(max_length=8192)]
    """All that is durable of it: service, tasks, their stories."""


class AnchorTaken(Message, tag="anchor-taken", frozen=True):
    """TA to TA, the answer to an offer and to a transfer; NAMO to TA, to `AnchorMoved`."""

    service: Name
    number: Count
    """As in what it answers."""
    offer: bool = False
    """Whether it answers the offer: then nothing is taken yet."""
    refused: Text = ""
    """Why not; empty: yes."""


class AnchorMoved(Message, tag="anchor-moved", frozen=True):
    """TA to NAMO, said until it is answered, and TA to TS: who owns a service now."""

    service: Name
    generation: Count
    """That it owns."""
    number: Count
    """As in the offer."""
    anchor: Name
    """The TA that owns it."""
    before: Name
    """The TA that has given it."""
    epoch_high: Count = 0
    """No epoch above it was given to a task of the service."""
    going: bool = False
    """Whether `anchor` has not taken it yet: so long its TS keeps what it has of it."""


class AnchorSummary(Message, tag="anchor-summary", frozen=True):
    """TA to NAMO, at a slow pace: an anchor position and the fleet behind it, coarsely."""

    anchor: Name
    side: str
    """`core` or `radio`."""
    cells: Annotated[tuple[Name, ...], Meta(max_length=1024)]
    """Whose schedulers it speaks to."""
    nodes: Count
    """Online."""
    cpu_count: Count = 0
    """Cores of those, together."""
    cpu_percent: Percent = 0.0
    """Mean over the nodes."""
    task_memory_free_bytes: Count = 0
    largest_free_bytes: Count = 0
    """On the node with most task memory free."""
    round_trip_ms: float | None = None
    """Median over the nodes."""
    executors: dict[Label, Count] = field(default_factory=dict)
    """How many nodes have which executor."""
    accelerators: dict[Label, Count] = field(default_factory=dict)
    lost: Count = 0
    """Nodes known and not online."""


class Escalation(Message, tag="escalation", frozen=True):
    """A layer cannot keep a task's quality with what it was given."""

    number: Id
    """Named by the answer."""
    task: Name
    generation: Count
    problem: Text
    """In one sentence."""
    attempts: Annotated[tuple[Attempt, ...], Meta(max_length=64)] = ()
    """What the layer below has tried."""
    epoch_seen: Count = 0
    """The highest epoch in use for the task; a fresh lease begins above it."""
    indicator: str = ""
    """Which one is in danger; empty: the task has no node or no epochs."""
    target: float | None = None
    """What the indicator must keep."""
    measured: float | None = None
    """What it is, or is predicted to be."""
    proposal: Text = ""
    """What the sender would do with an approval; empty: it knows nothing more."""
    broken: bool = False
    """Whether the task's quality is broken already, not only in danger."""
    refused: tuple[Name, ...] = ()
    """Nodes of the grant whose lease ends at `epoch_seen` that the scheduler has not taken: there
    is no room beside tasks of other anchors.
    """
    held_bytes: Count = 0
    """What the task has on its node all the same, under an earlier grant."""
    person: bool = False
    """Whether a person has to agree to the proposal, whatever the autonomy."""


class EscalationAnswer(Message, tag="escalation-answer", frozen=True):
    """The layer above answers: a new configuration follows, or a refusal a person can read."""

    number: Id
    """Of the escalation."""
    task: Name
    granted: bool
    """Whether a new configuration follows."""
    reason: Text
