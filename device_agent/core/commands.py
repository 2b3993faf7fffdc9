"""What the core wants done, in this order.

`Keep` and `Forget` are durable before anything after them in the same answer is done, so nothing is
promised that a crash can take back.
"""

from msgspec import Struct

from protocols.manifest import Manifest
from protocols.messages import Body
from protocols.messages.invocation import Value
from protocols.messages.task import Assign
from protocols.topics import Channel


class Say(Struct, frozen=True):
    """Publish on a topic of this node."""

    channel: Channel
    body: Body
    cause: str = ""
    tenant: str = "default"


class Forward(Struct, frozen=True):
    """Publish to the invocation inbox of another node."""

    node: str
    body: Body
    cause: str
    tenant: str


class Reply(Struct, frozen=True):
    """Publish to the topic that a client named for its answer."""

    topic: str
    body: Body
    cause: str
    tenant: str
    correlation: bytes = b""


class Keep(Struct, frozen=True):
    """Journal an assignment: the newest of its task."""

    assign: Assign
    cause: str


class Forget(Struct, frozen=True):
    """Journal that a task was released up to an epoch; its assignment is over."""

    task: str
    epoch: int
    cause: str


class FetchArtifact(Struct, frozen=True):
    """Have an artifact in the cache; answered by `ArtifactReady` or `ArtifactFailed`."""

    digest: str
    size_bytes: int
    urls: tuple[str, ...]
    """Base URLs of the cell's store, best first; empty while none is known."""
    cause: str


class StartInstance(Struct, frozen=True):
    """Deploy and start; answered by `InstanceReady` or `InstanceFailed`, whatever happens."""

    instance: str
    """Unique in this process: the task, `~`, a number."""
    task: str
    manifest: Manifest
    replicas: int
    cause: str


class StopInstance(Struct, frozen=True):
    """End an instance, started or just starting; answered by `InstanceStopped`."""

    instance: str
    cause: str


class Execute(Struct, frozen=True):
    """Run one call; answered by `ExecutorDone` or `ExecutorFailed`, whatever happens."""

    instance: str
    call: str
    inputs: dict[str, Value]
    budget_ms: int
    cause: str


class CancelCall(Struct, frozen=True):
    """Stop a call that nobody waits for; it is still answered, as failed."""

    instance: str
    call: str


class FetchBlob(Struct, frozen=True):
    """Have a value in the blob folder; answered by `BlobReady` or `BlobFailed`."""

    digest: str
    size_bytes: int
    urls: tuple[str, ...]
    cause: str


class PushBlob(Struct, frozen=True):
    """Bring a value to the cell's store; answered by `BlobPushed` or `BlobFailed`."""

    digest: str
    size_bytes: int
    urls: tuple[str, ...]
    cause: str


class SetPace(Struct, frozen=True):
    """How often to sample and to probe the path from now on."""

    sample_ms: int
    probe_ms: int


class Exit(Struct, frozen=True):
    """Everything is said and stopped: flush the session and end the process."""

    reason: str


Command = (
    Say
    | Forward
    | Reply
    | Keep
    | Forget
    | FetchArtifact
    | StartInstance
    | StopInstance
    | Execute
    | CancelCall
    | FetchBlob
    | PushBlob
    | SetPace
    | Exit
)
