"""What is durable, and what people watch: the structs that stand in records and views.

A record holds the whole newest state of one thing under (kind, key); the store keeps the newest
and a bounded log of the changes.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from protocols.errors import Blame
from protocols.messages.hierarchy import (
    Escalation,
    Kept,
    NodeState,
    ServiceOrder,
    ServiceState,
    TaskSpec,
)
from protocols.messages.invocation import Failure, Timings, Values
from protocols.messages.job import JobState, JobSubmit
from protocols.messages.presence import Inventory, Trust
from protocols.messages.quality import Leeway, Source, TaskSample, Tuning, Variant, Warmth
from protocols.messages.sense import LinkReport, LoadReport
from protocols.messages.task import MemoryState
from protocols.qoais import Bound

USE_CASE: Final = "usecase"
SERVICE: Final = "service"
TASK: Final = "task"
NODE: Final = "node"
STORY: Final = "story"
ARTIFACT: Final = "artifact"
FLEET: Final = "fleet"
ANCHORED: Final = "anchored"
QUALITY: Final = "quality"
APPROVAL: Final = "approval"
JOB: Final = "job"
CELL: Final = "cell"
FIGURE: Final = "figure"
HANDOVER: Final = "handover"
CROSSING: Final = "crossing"
POINT: Final = "point"
GIVEN: Final = "given"
REACH: Final = "reach"
CHECKPOINT: Final = "checkpoint"

UNWATCHED: Final = frozenset({CHECKPOINT})
"""Bulk that only who has written it reads: people are not shown it, and the store's log of changes
says nothing of it.
"""

EPOCHS_OF_GENERATION: Final = 1_000_000
"""Epochs of a task that is ordered anew begin above those of its former life on the nodes."""
STORY_LENGTH: Final = 64
"""Entries kept of each task's story; the key of an entry is `TASK/number modulo this`."""


class UseCaseState(StrEnum):
    """What NAMO says of a use case."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    DEGRADED = "degraded"
    WAITING = "waiting"
    DELETED = "deleted"
    DELETING = "deleting"
    DORMANT = "dormant"
    """Its trigger has not been pulled: nothing of it is ordered."""


class UseCaseRecord(Struct, frozen=True):
    """A use case as submitted, and what became of it (kind `usecase`, key its name)."""

    name: str
    tenant: str
    generation: int
    state: UseCaseState
    document: str
    """As the user wrote it, normalised to JSON."""
    services: tuple[str, ...] = ()
    reason: str = ""
    submitted_unix_ms: int = 0
    origin: str = "user"
    """Who asked: `user`, `third-party` or `network`."""
    former: str = ""
    """Document of the version that can be gone back to, until this one has proved itself."""


class Candidate(Struct, frozen=True):
    """One way to do a service that NAMO has weighed."""

    decomposition: str
    """Its name: of the document's alternative, with `+fused` or `+spread`."""
    anchor: str
    feasible: bool
    estimates: dict[str, float] = {}
    """Predicted indicator values, from coarse aggregates."""
    reason: str = ""
    """Why it was chosen, or was not."""


class ServiceRecord(Struct, frozen=True):
    """A service as NAMO ordered it (kind `service`, key its name)."""

    order: ServiceOrder
    tenant: str
    anchor: str
    """The TA that owns its tasks."""
    state: ServiceState
    reason: str = ""
    ending: bool = False
    """Whether its deletion was ordered; it is over when the anchor says so."""
    candidates: tuple[Candidate, ...] = ()
    """The chosen one first."""
    leaving: tuple[str, ...] = ()
    """Anchors that had it before, until they have heard that another one has it."""
    epoch_high: int = 0
    """No epoch above it was given to a task of the service, as its anchor last said."""
    tried: tuple[tuple[str, str], ...] = ()
    """Decompositions and anchors that were ordered since there was calm, sorted."""
    number: int = 0
    """As in AnchorMoved: the highest that was heard."""
    moved: tuple[int, int] = (0, 0)
    """Generation and number of the last one: what is ordered meanwhile may begin to count lower."""


class TaskState(StrEnum):
    """The life of a task at its anchor; the table stands in `controller/anchor/lifecycle.py`."""

    ACCEPTED = "accepted"
    PLACED = "placed"
    RUNNING = "running"
    MOVING = "moving"
    WAITING = "waiting"
    DELETING = "deleting"
    DELETED = "deleted"
    READY = "ready"
    MODIFYING = "modifying"
    DEGRADED = "degraded"
    APPROVAL = "approval"
    TRANSFERRING = "transferring"
    FAILED = "failed"


class Rejection(Struct, frozen=True):
    """Why a node was not chosen."""

    node: str
    stage: str
    """`feasible` or `rank`."""
    reason: str


class Line(Struct, frozen=True):
    """What a run takes by the bytes of its inputs: a line through runs, the newer counting more."""

    weight: float = 0.0
    """Runs that it rests on; 0: none."""
    mean_bytes: float = 0.0
    mean_ms: float = 0.0
    xx: float = 0.0
    """Variance of the bytes."""
    xy: float = 0.0
    """Covariance of bytes and ms."""
    slope: float = 0.0
    """Ms for each byte."""
    spread: float = 0.0
    """Mean distance of runs from it, as a share of what it says."""


class FigureRecord(Struct, frozen=True):
    """What a program costs on a node (kind `figure`, key `DIGEST/PROVIDER/NODE`)."""

    digest: str
    provider: str
    """As it was asked for; empty: the node's choice."""
    node: str
    board: str
    """The node's profile: what was not measured on a node is taken from others of its board."""
    line: Line = Line()
    start_ms: float | None = None
    """From the form on disk to an answer, beyond a run."""
    wake_ms: float | None = None
    """From the process that holds the program."""
    memory_bytes: int | None = None
    held_bytes: int | None = None
    """By that process."""
    runs: int = 0
    """In service; 0: all that is known is of a calibration."""
    tried: bool = False
    """Whether a calibration has ended, with figures or without."""
    refused: str = ""
    """Why a calibration could not run it."""


class CheckpointRecord(Struct, frozen=True):
    """What a task was heard to remember (kind `checkpoint`, key the task)."""

    state: MemoryState
    heard_unix_ms: int = 0
    """When its node has said it; 0: that is not known."""


class Option(Struct, frozen=True):
    """One way to run a task on a node, and what it was taken to cost."""

    node: str
    variant: str
    """Empty: the task's own program."""
    executor: str
    provider: str = ""
    run_ms: float = 0.0
    source: str = ""
    """How the run is known: `declared`, `of its board` or `measured`."""
    runs: int = 0
    """In service; with 0 it was measured in a calibration."""
    cold_ms: float = 0.0
    """What a request waits that finds no instance, by `warmth`."""
    warmth: str = ""
    """What stays while nobody asks; empty: all of it always."""
    memory_bytes: int = 0
    waiting_ms: float = 0.0
    """For the processor, at the node's load."""
    total_ms: float | None = None
    """All that a request loses there; None: it cannot run there."""
    chosen: bool = False
    why: str = ""
    """Why it was not chosen."""


class Placement(Struct, frozen=True):
    """The last decision of the TA about a task's place, kept for `tona task explain`."""

    revision: int
    """Of the node snapshot it was made on."""
    chosen: tuple[str, ...] = ()
    scores: dict[str, dict[str, float]] = {}
    """For each feasible node the terms of its score; the lowest sum won."""
    rejected: tuple[Rejection, ...] = ()
    reason: str = ""
    variant: str = ""
    """Which program the nodes were chosen for; empty: the manifest of the specification."""
    provider: str = ""
    """ONNX execution provider that was chosen; empty: the node's choice."""
    warmth: Warmth = Warmth.FORM
    """What stays of a deviceless instance while nobody asks."""
    options: tuple[Option, ...] = ()
    """What was weighed of a task that has a choice."""


class Leaving(Struct, frozen=True):
    """The copy that serves while another scheduler prepares the next one."""

    scheduler: str
    node: str
    epoch: int
    nodes: tuple[str, ...] = ()
    """Its envelope there."""
    spec: TaskSpec | None = None
    """What the envelope there is for, where it is not the newest."""
    granted: int = 0
    """The generation of that."""
    follows: str = ""
    """The device that it follows there; empty: its service goes to another cell."""


class Home(Struct, frozen=True):
    """Where what a task remembers still is, in the cell that it has left."""

    scheduler: str
    node: str
    epoch: int
    """Under which it ran there."""


class Asked(Struct, frozen=True):
    """What NAMO was asked, and has not answered yet."""

    number: str
    """Of the escalation."""
    problem: str
    proposal: str = ""
    """What the anchor does when it is granted; empty: it knows nothing more."""
    person: bool = False
    """Whether a person has to agree, whatever the autonomy."""


class TaskRecord(Struct, frozen=True):
    """A task and where it stands (kind `task`, key its name)."""

    spec: TaskSpec
    service: str
    tenant: str
    generation: int
    state: TaskState
    nodes: tuple[str, ...] = ()
    """The envelope: best first, spares after."""
    node: str = ""
    """Where it runs now, as the TS last reported."""
    epoch: int = 0
    """The epoch that runs now."""
    epoch_high: int = 0
    """No epoch above this one was ever leased to a TS."""
    placement: Placement | None = None
    reason: str = ""
    granted: int = 0
    """The generation of the newest envelope; below `generation` no node has been found for it."""
    scheduler: str = ""
    """The TS that holds the envelope."""
    leeway: Leeway = Leeway()
    """As granted."""
    tuning: Tuning = Tuning()
    """How the TA last wanted it to run."""
    resources: tuple[Bound, ...] = ()
    """Resource QoS, from the task's quality."""
    variant: str = ""
    """Which variant runs, as the TS last reported."""
    reserved: dict[str, int] = {}
    """Bytes of task memory that are set aside for it, by node: spares and both copies of a move."""
    leaving: Leaving | None = None
    """While it is transferred to another scheduler."""
    asked: Asked | None = None
    served: int = 0
    """The generation that runs, as the TS last reported."""
    given_up: int = 0
    """The newest generation whose artifact no node can run: not tried again; 0: none."""
    held: TaskSpec | None = None
    """What the TS holds an envelope for, of generation `granted`; None: that is `spec`."""
    quarantined: dict[str, str] = {}
    """Versions that are not to run, by digest: why."""
    ordered: TaskSpec | None = None
    """As NAMO ordered it, where a quarantine has it run otherwise; None: that is `spec`."""
    before: Variant | None = None
    """The version that served before the newest one, to go back to."""
    heir: str = ""
    """The TS that gets it when the present one has let go; empty: it is on no such way."""
    former: tuple[str, ...] = ()
    """Schedulers that have not said that they have let go: their leases were over."""
    attached: int = 0
    """Incarnation of its node's attachment after which it goes or went to another scheduler; 0: it
    was placed.
    """
    memory: Home | None = None
    """Until all that it remembers has come to the cell of its scheduler."""
    following: str = ""
    """Why it follows the devices that it serves to their cell, or stays; empty: none has moved."""
    failures: dict[str, str] = {}
    """Nodes that could not run its newest generation, with the reason."""

    @property
    def home(self) -> str:
        """The node that it is on, or is to begin on; empty: none."""
        return self.node or (self.nodes[0] if self.nodes else "")


class StoryRecord(Struct, frozen=True):
    """One entry of a task's story (kind `story`, key `TASK/slot`)."""

    task: str
    number: int
    layer: str
    """`namo`, `ta`, `ts` or `node`."""
    event: str
    detail: str = ""
    """For people; what was told several times in a row ends with their number."""
    cause: str = ""
    blame: Blame | None = None
    unix_ms: int = 0
    """When its host made it durable, for people; deciders have no clock and leave 0."""


class NodeRecord(Struct, frozen=True):
    """A node that was ever seen (kind `node`, key its name)."""

    node: str
    agent_version: str
    boot_id: str
    inventory: Inventory
    draining: str = ""
    """Why an operator has it emptied, until the operator ends that; empty: it is not."""


class ArtifactRecord(Struct, frozen=True):
    """An artifact of the cell's store (kind `artifact`, key its digest)."""

    digest: str
    size_bytes: int
    name: str = ""
    media: str = ""
    """`wasm`, `onnx` or `data`."""


class NodeView(Struct, frozen=True):
    """A node as the scheduler sees it now (view `fleet`, key its name)."""

    node: str
    state: NodeState
    scheduler: str
    inventory: Inventory
    agent_version: str = ""
    load: LoadReport | None = None
    link: LinkReport | None = None
    tasks: Annotated[tuple[str, ...], Meta(max_length=4096)] = ()
    reason: str = ""
    warnings: tuple[str, ...] = ()
    silent_ms: int = 0
    """Since the last message, when this view was made."""
    trust: Trust | None = None
    """What it trusts of those who sign artifacts; None: nobody has to sign there."""
    share_url: str = ""
    """Base URL at which its neighbours may fetch its artifacts; empty: nowhere."""
    cell: str = ""
    """Of its scheduler."""
    handover: str = ""
    """Where it is to go, or comes from, while a handover is under way; empty: none is."""
    reserved_bytes: int = 0
    """Task memory that is set aside there."""
    promised_bytes: int = 0
    """What its tasks may take if all are asked at once: above its task memory, those that follow
    the requests take turns.
    """
    incarnation: int = 0
    """Of its connection to that cell: it grows with every one, to whatever cell."""


class CellView(Struct, frozen=True):
    """A cell and who schedules it (view `cell`, key the scheduler)."""

    scheduler: str
    cell: str
    broker: str
    """Where its nodes and clients connect, as `mqtt[s]://HOST:PORT`."""
    api_url: str = ""
    """Of the process that runs the scheduler."""


class AnchoredRecord(Struct, frozen=True):
    """A service that a TA has accepted (kind `anchored`, key its name)."""

    order: ServiceOrder
    tenant: str
    namo: str
    """Whom the TA reports to."""
    sources: tuple[Source, ...] = ()
    """Those of the order, each with the nodes that the TA chose to provide it, best first."""
    expects: tuple[str, ...] = ()
    """Anchors of before whose jobs may not all be here; an empty name: one that is not known."""
    followers: tuple[str, ...] = ()
    """Schedulers that have none of its tasks any more, and whose clients may go on with it."""
    number: int = 0
    """How often anchors have handed it on."""
    giver: str = ""
    """Who has given it; empty: NAMO does not have to be told, or knows."""


class GivenRecord(Struct, frozen=True):
    """A service that a TA has given to another one (kind `given`, key its name)."""

    service: str
    to: str
    number: int
    generation: int
    namo: str
    tenant: str
    epoch_high: int
    records: tuple[Kept, ...] = ()
    """What is to be taken; empty: it was."""
    schedulers: tuple[str, ...] = ()
    """That had its tasks."""


class TaskQuality(Struct, frozen=True):
    """How one task keeps its share of the quality, as its TS measures it."""

    task: str
    node: str
    tuning: Tuning
    sample: TaskSample | None = None
    """Smoothed over the last windows."""
    predicted_ms: float | None = None
    """Wait and run that the cost model expects now."""
    danger: str = ""
    """Why its quality is in danger; empty: it is not."""
    values: dict[str, float] = {}
    """Measured indicator values."""


class ServiceQuality(Struct, frozen=True):
    """What was agreed and what is measured (view `quality`, key the service)."""

    service: str
    scheduler: str
    users: int = 0
    """Users with measurements in the window."""
    satisfied: int = 0
    """Of them inside their own zone."""
    satisfaction_ratio: float | None = None
    target_ratio: float = 1.0
    values: dict[str, float] = {}
    """Measured indicator values of the whole service, over all users."""
    tasks: tuple[TaskQuality, ...] = ()
    shed_per_s: float = 0.0
    window_ms: int = 0


class ApprovalState(StrEnum):
    """What a person said."""

    PENDING = "pending"
    GRANTED = "granted"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"
    """Nobody has said anything in time."""


class ApprovalRecord(Struct, frozen=True):
    """A decision that waits for a person (kind `approval`, key its number)."""

    number: str
    service: str
    tenant: str
    decision: str
    """What would be done."""
    reason: str
    """Why: the problem and the attempts so far."""
    state: ApprovalState = ApprovalState.PENDING
    asked_unix_ms: int = 0
    answered_by: str = ""
    asked_by: str = ""
    """The anchor that waits for the answer."""
    escalation: Escalation | None = None
    """What it asked with."""
    decomposition: str = ""
    """Of the candidate that would be ordered; empty: the anchor itself would act."""
    anchor: str = ""
    """Where that would be ordered."""
    left_ms: int = 0
    """Until it expires, or, denied, may be asked again, when this was written; time without NAMO
    does not count. 0: it is over.
    """
    outcome: str = ""
    """How it ended, for people."""


class JobRecord(Struct, frozen=True):
    """A job at its TA (kind `job`, key its id)."""

    submit: JobSubmit
    client: str
    tenant: str
    state: JobState
    attempts: int = 0
    parts: dict[int, Values] = {}
    """Outputs that have come, by part."""
    failure: Failure | None = None
    accepted_unix_ms: int = 0
    ended_unix_ms: int = 0
    parts_of: int = 0
    """The attempt that the parts belong to."""
    timings: Timings = ()
    left_ms: int = 0
    """Of the deadline, when this was written; time without a TA does not count."""
    content: str = ""
    """Fingerprint of what was submitted, kept when the inputs are dropped at the end."""
    started_unix_ms: int = 0
    """When it was first sent to run."""
