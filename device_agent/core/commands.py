"""What the core wants done, in this order.

`Keep`, `Forget` and their like for feeds and the node's place are durable before anything after
them in the same answer is done, so nothing is promised that a crash can take back.
"""

from typing import TYPE_CHECKING

from msgspec import Struct

from device_agent.core.queue import LEAST, Urgency
from protocols.manifest import Dtype, Manifest
from protocols.messages import Calibrate
from protocols.messages.invocation import INLINE_MAX_BYTES, Failure, Result, Tensor, Value
from protocols.messages.mobility import CellPoint
from protocols.messages.profile import AuditQuery
from protocols.messages.quality import PRIORITY_DEFAULT, Feed, SourceKind
from protocols.messages.task import Assign, MemoryRequest, MemoryState
from protocols.topics import Channel

if TYPE_CHECKING:
    from protocols.messages import Body


class Say(Struct, frozen=True):
    """Publish on a topic of this node."""

    channel: Channel
    body: "Body"
    cause: str = ""
    tenant: str = "default"
    cell: str = ""
    """At the attachment of this cell; empty: of the one that serves."""


class Forward(Struct, frozen=True):
    """Publish to the invocation inbox of another node."""

    node: str
    body: "Body"
    cause: str
    tenant: str
    cell: str = ""
    """Of that node; empty: the one that serves this node."""


class Reply(Struct, frozen=True):
    """Publish to the topic that a client named for its answer."""

    topic: str
    body: "Body"
    cause: str
    tenant: str
    correlation: bytes = b""


class Keep(Struct, frozen=True):
    """Journal an assignment: the newest of its task."""

    assign: Assign
    cause: str
    older: Assign | None = None
    """What serves while that is prepared; None: nothing else does."""


class Forget(Struct, frozen=True):
    """Journal that a task was released up to an epoch; its assignment is over."""

    task: str
    epoch: int
    cause: str


class KeepFeed(Struct, frozen=True):
    """Journal a feed: the newest of its service."""

    feed: Feed
    cause: str


class ForgetFeed(Struct, frozen=True):
    """Journal that a service is fed no longer."""

    service: str
    cause: str


class Place(Struct, frozen=True):
    """Where a node is, and where it could go."""

    home: str = ""
    """The cell of its configuration."""
    serving: CellPoint | None = None
    """None: home."""
    neighbours: tuple[CellPoint, ...] = ()


class KeepPlace(Struct, frozen=True):
    """Journal where the node is."""

    place: Place
    cause: str


Change = Keep | Forget | KeepFeed | ForgetFeed | KeepPlace
"""What is journalled."""


class Attach(Struct, frozen=True):
    """Connect to another cell, beside what there is; told as `LinkUp`, `Connected`."""

    cell: str
    urls: tuple[str, ...]
    """Of its broker, best first; empty: as configured."""


class Serve(Struct, frozen=True):
    """Be served by this cell, where there is an attachment: whatever names no cell goes there."""

    cell: str


class Renew(Struct, frozen=True):
    """Connect to this cell anew, under a higher incarnation."""

    cell: str
    reason: str = "to be attached under a higher incarnation"


class Detach(Struct, frozen=True):
    """End the attachment to this cell; nothing more is told of it."""

    cell: str
    after_ms: int = 0
    """So long it still brings requests."""
    at_once: bool = False
    """Whether nothing has to be flushed."""


class WatchCells(Struct, frozen=True):
    """Measure these cells, so often; told as `CellsMeasured`."""

    serving: str
    cells: dict[str, tuple[str, ...]]
    """URLs of the broker of each, the serving one too; empty: as configured."""
    pace_ms: int


class FetchArtifact(Struct, frozen=True):
    """Have an artifact in the cache; answered by `ArtifactReady` or `ArtifactFailed`."""

    digest: str
    size_bytes: int
    urls: tuple[str, ...]
    """Base URLs of the cell's store, best first; empty while none is known."""
    cause: str
    tenant: str = "default"
    """On whose behalf it is to run."""


class CheckTrust(Struct, frozen=True):
    """Ask anew who may sign what runs here; answered by `TrustChecked`."""

    urls: tuple[str, ...]
    """As in `FetchArtifact`."""
    cause: str


class StartInstance(Struct, frozen=True):
    """Deploy and start; answered by `InstanceReady` or `InstanceFailed`, whatever happens."""

    instance: str
    """Unique in this process: the task, `~`, a number."""
    task: str
    manifest: Manifest
    replicas: int
    cause: str
    threads: int = 0
    """Inside one run of a model; 0: the executor's choice."""
    provider: str = ""
    """ONNX execution provider; empty: as the manifest or the node says."""
    cpu_percent: float = 0.0
    """Share of the node's cores for its workers together, of one core; 0: no bound."""
    priority: int = PRIORITY_DEFAULT
    """Among the tasks of the node."""
    tenant: str = "default"
    """On whose behalf it runs."""
    fresh: bool = False
    """Whether its model is loaded for each run."""


class TuneInstance(Struct, frozen=True):
    """Let a starting or started instance run so; what cannot be done comes with its stats."""

    instance: str
    replicas: int
    cpu_percent: float
    priority: int
    cause: str


class RestInstance(Struct, frozen=True):
    """Let an idle instance hold nothing, and say so (`InstanceRested`); its next call wakes it."""

    instance: str
    cause: str
    keep: bool = False
    """Whether the process that has loaded its program stays."""


class WakeInstance(Struct, frozen=True):
    """Have a resting instance ready before its next call."""

    instance: str
    cause: str


class StopInstance(Struct, frozen=True):
    """End an instance, started or just starting; answered by `InstanceStopped`."""

    instance: str
    cause: str


class RunCalibration(Struct, frozen=True):
    """Measure a program in an instance that serves nobody; answered by `CalibrationEnded`."""

    asked: Calibrate
    urls: tuple[str, ...]
    tenant: str
    cause: str


class EndCalibration(Struct, frozen=True):
    """End the calibration that runs; it is still answered, with the reason."""

    reason: str


class Execute(Struct, frozen=True):
    """Run one call; answered by `ExecutorDone` or `ExecutorFailed`, whatever happens."""

    instance: str
    call: str
    inputs: dict[str, Value]
    budget_ms: int
    cause: str
    priority: int = 2 * PRIORITY_DEFAULT
    """That of the task and of the request together: which call goes first where both could."""


class ExecuteTogether(Struct, frozen=True):
    """Run calls of one instance, best in one run; each is answered as if it ran alone."""

    calls: tuple[Execute, ...]


class ExpectCall(Struct, frozen=True):
    """Have memory for a call there, if it is wanted: one of this instance comes in a moment."""

    instance: str


class CancelCall(Struct, frozen=True):
    """Stop a call that nobody waits for; it is still answered, as failed."""

    instance: str
    call: str


class Inferred(Struct, frozen=True):
    """Give a guest that waits what a model gave, or why it gave nothing."""

    instance: str
    """The guest's."""
    call: str
    """The guest's."""
    outputs: dict[str, Value]
    failure: Failure | None = None


class FetchBlob(Struct, frozen=True):
    """Have a value in the blob folder; answered by `BlobReady` or `BlobFailed`."""

    digest: str
    size_bytes: int
    urls: tuple[str, ...]
    cause: str
    urgency: Urgency = LEAST
    """Of the request that waits for it: where several values wait, the lowest moves first."""


class DropValues(Struct, frozen=True):
    """Delete values that were made here: nobody takes them any more."""

    names: tuple[str, ...]
    """`made:...`."""


class PushBlob(Struct, frozen=True):
    """Bring a value to the cell's store; answered by `BlobPushed` or `BlobFailed`."""

    digest: str
    size_bytes: int
    urls: tuple[str, ...]
    cause: str
    urgency: Urgency = LEAST
    """As in `FetchBlob`."""


class LeaveBlob(Struct, frozen=True):
    """Take back one `FetchBlob` or `PushBlob`: nobody waits for it any more. Not answered.

    Whoever else asked for the same value has it; what moves already may come to its end.
    """

    digest: str
    pushing: bool = False


class HurryBlob(Struct, frozen=True):
    """Have a value move that soon, for another request that waits for it. Not answered."""

    digest: str
    urgency: Urgency
    pushing: bool = False


class ReadMemory(Struct, frozen=True):
    """Say what a task remembers; answered by `MemoryRead`, whatever happens."""

    request: MemoryRequest
    instance: str
    """Empty: the task has none here any more, and nothing can follow."""
    urls: tuple[str, ...]
    cause: str


class WriteMemory(Struct, frozen=True):
    """Have an instance remember this; answered by `MemoryWritten`, or a newer one is."""

    instance: str
    state: MemoryState
    urls: tuple[str, ...]
    cause: str


class ReadSource(Struct, frozen=True):
    """Read a sensor or a file; answered by `SourceRead` or `SourceFailed`, whatever happens."""

    service: str
    input: str
    kind: SourceKind
    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    """-1 is as long as what is read."""
    decimation: int
    """Every how manieth row and column of a picture is kept."""
    cursor: str
    """Of a folder: the file that was read last; the next one is wanted. Empty: the first."""
    cause: str
    inline_bytes: int = INLINE_MAX_BYTES
    """A larger value goes by reference."""


class Follow(Struct, frozen=True):
    """Subscribe to a channel of a service; what comes there is told as `Published`."""

    service: str
    channel: Channel


class Unfollow(Struct, frozen=True):
    """Nothing of this channel is wanted any more."""

    service: str
    channel: Channel


class Publish(Struct, frozen=True):
    """Publish on the output topic of a service."""

    service: str
    body: Result
    cause: str
    tenant: str


class StoreValue(Struct, frozen=True):
    """Bring a small value to the cell's store; answered by `Stored` or `StoreFailed`."""

    key: str
    value: Tensor
    urls: tuple[str, ...]
    cause: str


class WriteLog(Struct, frozen=True):
    """Append records to the log of calls; answered by `LogWritten` when they could be."""

    records: bytes
    """MessagePack: the subjects, and the records of them."""
    count: int


class ReadLog(Struct, frozen=True):
    """Read the log of calls; answered by `LogRead`, whatever happens."""

    query: AuditQuery
    cause: str


class SetPace(Struct, frozen=True):
    """How often to sample and to probe the path from now on."""

    sample_ms: int
    probe_ms: int
    whole_every: int = 1
    """Of so many samples one reads all, links too; the others only what moves fast."""


class Warn(Struct, frozen=True):
    """Write a warning to the node's own log."""

    text: str


class Exit(Struct, frozen=True):
    """Everything is said and stopped: flush the session and end the process."""

    reason: str


Command = (
    Say
    | Forward
    | Reply
    | Keep
    | Forget
    | KeepFeed
    | ForgetFeed
    | KeepPlace
    | Attach
    | Serve
    | Renew
    | Detach
    | WatchCells
    | FetchArtifact
    | CheckTrust
    | StartInstance
    | TuneInstance
    | RestInstance
    | WakeInstance
    | StopInstance
    | RunCalibration
    | EndCalibration
    | Execute
    | ExecuteTogether
    | ExpectCall
    | CancelCall
    | Inferred
    | DropValues
    | FetchBlob
    | PushBlob
    | LeaveBlob
    | HurryBlob
    | ReadMemory
    | WriteMemory
    | ReadSource
    | Follow
    | Unfollow
    | Publish
    | StoreValue
    | WriteLog
    | ReadLog
    | SetPace
    | Warn
    | Exit
)
