"""What the core is told. The shell learns things and says them here; nothing else changes the core.

Times come with `Core.handle`; values of tensors are the wire's (`Tensor`, `Blob`).
"""

from typing import TYPE_CHECKING

from msgspec import Struct

from device_agent.core.commands import Place
from protocols.errors import Blame
from protocols.messages import Calibrated
from protocols.messages.invocation import Blob, FailureCode, Value
from protocols.messages.mobility import CellMeasure
from protocols.messages.presence import Trust
from protocols.messages.profile import AuditPage
from protocols.messages.quality import Feed
from protocols.messages.sense import LinkReport, LoadReport
from protocols.messages.task import Assign, MemoryState
from protocols.topics import Channel

if TYPE_CHECKING:
    from protocols.messages import Body


class Restored(Struct, frozen=True):
    """What the journal kept; the first event of a daemon's life."""

    assigns: tuple[Assign, ...] = ()
    tombstones: tuple[tuple[str, int], ...] = ()
    """(task, epoch): released up to this epoch, oldest first."""
    feeds: tuple[Feed, ...] = ()
    incarnation: int = 0
    """Below every incarnation of this process, above those of the ones before."""
    place: Place | None = None
    """Where the node was; None: at home, alone."""
    older: tuple[Assign, ...] = ()
    """What served while the newest assignment of its task was prepared."""


class JournalFailed(Struct, frozen=True):
    """A `Keep` or `Forget` could not be made durable: the disk is full, or worse."""

    task: str
    epoch: int
    text: str


class Connected(Struct, frozen=True):
    """The broker has taken the connection; the subscriptions stand."""

    incarnation: int
    jitter: float = 0.0
    """Uniform in [0, 1), drawn by the shell: the core has no randomness."""
    cell: str = ""
    """Whose broker it is; empty: that of the cell that serves."""


class Disconnected(Struct, frozen=True):
    """The connection is gone."""

    reason: str = ""
    cell: str = ""
    """As in `Connected`."""
    broken: bool = False
    """Whether the network has ended it, and not the broker, silence or we."""


class PublishRefused(Struct, frozen=True):
    """The broker has not taken what was published, as its rules of access want it."""

    text: str
    """The topic, and why."""


class LinkUp(Struct, frozen=True):
    """The link that leads to a cell is up; its broker comes next."""

    cell: str


class AttachFailed(Struct, frozen=True):
    """A cell cannot be reached at all: there is no link to it."""

    cell: str
    text: str


class CellsMeasured(Struct, frozen=True):
    """What was measured of the serving cell, and of neighbours when it is their turn."""

    measures: tuple[CellMeasure, ...]
    bytes_per_s: float = 0.0
    """What measuring has taken from the network lately."""
    cpu_percent: float = 0.0
    """Of one core."""
    unanswered: int = 0
    """The serving broker's door: tries in a row in vain, while a neighbour was heard."""
    silent_ms: float = 0.0
    """For how long nothing has come on the serving connection."""
    saving: bool = False
    """Whether it is measured seldom, for a battery is discharged."""


class Received(Struct, frozen=True):
    """A valid frame of a peer, from the own topic of that channel."""

    channel: Channel
    sender: str
    incarnation: int
    number: int
    tenant: str
    cause: str
    body: "Body"
    reply_to: str = ""
    """MQTT 5 response topic, when the message named one."""
    correlation: bytes = b""
    cell: str = ""
    """Where it was said; empty: in the cell that serves."""


class Tick(Struct, frozen=True):
    """`Core.next_due_ms` has come."""


class ArtifactReady(Struct, frozen=True):
    """The artifact lies in the node's cache, found good for a tenant."""

    digest: str
    tenant: str = "default"


class ArtifactFailed(Struct, frozen=True):
    """The artifact could not be had, or may not run for this tenant."""

    digest: str
    text: str
    blame: Blame = Blame.ENVIRONMENT
    retryable: bool = True
    tenant: str = "default"


class TrustChecked(Struct, frozen=True):
    """What the node trusts now; with a problem, nothing but that."""

    trust: Trust


class InstanceReady(Struct, frozen=True):
    """The executor has deployed and started this instance."""

    instance: str


class InstanceFailed(Struct, frozen=True):
    """The executor could not deploy or start this instance."""

    instance: str
    text: str
    blame: Blame
    retryable: bool


class InstanceExited(Struct, frozen=True):
    """A started instance is gone without having been stopped; its calls are lost."""

    instance: str
    text: str
    blame: Blame = Blame.ENVIRONMENT


class InstanceStopped(Struct, frozen=True):
    """The executor has freed what this instance held."""

    instance: str


class InstanceStats(Struct, frozen=True):
    """What an instance takes."""

    instance: str
    memory_bytes: int
    remark: str = ""
    """What of its assignment or tuning cannot be given here, for people."""


class InstanceRested(Struct, frozen=True):
    """What an instance has held it holds no more (answers `RestInstance`)."""

    instance: str


class CalibrationEnded(Struct, frozen=True):
    """What a calibration has measured, or why it has not."""

    found: Calibrated


class ExecutorsSized(Struct, frozen=True):
    """What the processes take that belong to no one task."""

    memory_bytes: int


class ExecutorDone(Struct, frozen=True):
    """A call gave its outputs."""

    call: str
    outputs: dict[str, Value]
    run_us: int
    calls: int = 1
    """That the run has answered."""
    cpu_us: int | None = None
    """Processor time of the call; None: not measured."""
    peak_bytes: int = 0
    """Most memory of its process during the call; 0: not measured."""
    flags: str = ""
    """Which check its outputs have broken, where that only flags them."""


class ExecutorFailed(Struct, frozen=True):
    """A call gave no outputs."""

    call: str
    code: FailureCode
    blame: Blame
    text: str
    retryable: bool


class Inferring(Struct, frozen=True):
    """A Wasm guest wants the model of another task run, and waits for it in its own call."""

    call: str
    """Its own."""
    name: str
    """Of the task, as the guest's manifest calls it."""
    values: tuple[Value, ...]
    """Of that task's inputs but for constants, in the order of its manifest."""


class BlobReady(Struct, frozen=True):
    """The value lies verified in the node's blob folder."""

    digest: str


class BlobPushed(Struct, frozen=True):
    """The cell's store has the value."""

    digest: str
    """As it was called."""
    named: str = ""
    """What a value that was made here is called from now on; empty: as it was."""


class BlobFailed(Struct, frozen=True):
    """A value could not be fetched, or (`pushing`) not be brought to the cell's store."""

    digest: str
    text: str
    pushing: bool = False


class MemoryRead(Struct, frozen=True):
    """What a task remembers, or why it cannot be had."""

    state: MemoryState


class MemoryWritten(Struct, frozen=True):
    """An instance remembers what it was given, or not."""

    instance: str
    state: MemoryState
    text: str = ""
    """Why it does not; empty: it does."""


class SourceRead(Struct, frozen=True):
    """A source was read."""

    service: str
    input: str
    value: Value | None = None
    """None: there is nothing new."""
    cursor: str = ""
    """Of a folder: which file this was."""


class SourceFailed(Struct, frozen=True):
    """A source could not be read."""

    service: str
    input: str
    text: str
    cursor: str = ""
    """Of a folder: which file cannot be used; the one after it is next."""


class Published(Struct, frozen=True):
    """A valid frame on a channel of a service that is followed."""

    service: str
    channel: Channel
    body: "Body"
    via: str = ""
    """The cell of the broker by which it came."""
    sender: str = ""
    """Who has said it first."""


class Stored(Struct, frozen=True):
    """The cell's store has the value."""

    key: str
    blob: Blob


class StoreFailed(Struct, frozen=True):
    """The value could not be brought to the cell's store."""

    key: str
    text: str


class LogWritten(Struct, frozen=True):
    """The log of calls has grown, or could not."""

    logged: int
    """Records that it has had, over all lives."""
    head: bytes
    """Of its chain."""
    problem: str = ""
    """Why the records were not taken, one sentence for people; empty: they were."""


class LogRead(Struct, frozen=True):
    """What was asked for of the log of calls."""

    page: AuditPage
    cause: str


class Sampled(Struct, frozen=True):
    """The load was sampled; `instances` and `queue` are filled in by the core."""

    load: LoadReport


class LinkSampled(Struct, frozen=True):
    """The link was sampled, or the kernel told of a change."""

    link: LinkReport
    broken: str = ""
    """Why the serving connection cannot go on, as the kernel says; empty: nothing says so."""


class ShutDown(Struct, frozen=True):
    """The daemon is to end in order."""

    reason: str


Event = (
    Restored
    | JournalFailed
    | Connected
    | Disconnected
    | PublishRefused
    | LinkUp
    | AttachFailed
    | CellsMeasured
    | Received
    | Tick
    | ArtifactReady
    | ArtifactFailed
    | TrustChecked
    | InstanceReady
    | InstanceFailed
    | InstanceExited
    | InstanceStopped
    | InstanceStats
    | InstanceRested
    | CalibrationEnded
    | ExecutorsSized
    | ExecutorDone
    | ExecutorFailed
    | Inferring
    | BlobReady
    | BlobPushed
    | BlobFailed
    | MemoryRead
    | MemoryWritten
    | SourceRead
    | SourceFailed
    | Published
    | Stored
    | StoreFailed
    | LogWritten
    | LogRead
    | Sampled
    | LinkSampled
    | ShutDown
)
