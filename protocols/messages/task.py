"""Tasks on nodes: assignment, release and status, each idempotent, numbered and acknowledged."""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from protocols.base import Count, Digest, Id, Message, Name, Part, Text
from protocols.errors import Blame
from protocols.manifest import MAX_STATE_BYTES, ExecutorKind, Manifest
from protocols.messages.quality import Tuning, Warmth

MEMORY_INLINE_BYTES: Final = 48 * 1024
"""Of what a task remembers in one message; more lies in the cell's store."""


RESTING_SHARE: Final = 1 / 32
"""Of an instance that an elastic task counts as, where a node takes so many instances."""


class Reconcile(StrEnum):
    """Which copy survives when a lost node comes back (after Nomad's `disconnect` block)."""

    KEEP_REPLACEMENT = "keep-replacement"
    KEEP_ORIGINAL = "keep-original"


class Quarantine(StrEnum):
    """What is done with a version that its nodes' figures speak against."""

    NEVER = "never"
    """It is told, and nothing else."""
    ASK = "ask"
    """A person is asked whether it shall run no more."""
    AUTO = "auto"
    """It runs no more."""


class LostPolicy(Part, frozen=True):
    """What happens to a task while the link to its node is down."""

    lost_after_ms: Annotated[int, Meta(ge=100, le=86_400_000)] = 3000
    """Silence of the node after which the task counts as lost."""
    replace: bool = True
    """Whether a spare takes over then."""
    reconcile: Reconcile = Reconcile.KEEP_REPLACEMENT
    """Who stays when the node comes back after it was replaced."""
    checkpoint_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 5000
    """How often the scheduler is told what the task remembers, should its node be lost; 0: never.
    """


class Deviceless(Part, frozen=True):
    """Instances follow the requests: none without, one when one comes, more while some wait."""

    keep_alive_ms: Annotated[int, Meta(ge=0, le=86_400_000)] = 0
    """How long an idle instance stays; 0: as its past calls suggest."""
    fresh: bool = False
    """Whether each run of a model loads it for itself, and what it has loaded ends with it."""


def is_elastic(deviceless: Deviceless | None, manifest: Manifest, warmth: Warmth) -> bool:
    """Whether a task needs its memory only while it is asked, and can wait for it.

    A guest that has models run in the midst of its own run never waits for memory: it would hold
    what they wait for.
    """
    return deviceless is not None and warmth is not Warmth.INSTANCE and not manifest.infers


class InstanceState(StrEnum):
    """The life of a task on one node; the table stands in `device_agent/core/lifecycle.py`."""

    FETCHING = "fetching"
    DEPLOYING = "deploying"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Origin(Part, frozen=True):
    """Where what a task remembers is to come from."""

    node: Name
    epoch: Annotated[int, Meta(ge=1, le=2**53)]
    """Under which it ran there."""


class Assign(Message, tag="assign", frozen=True):
    """Hold this task under this epoch. A lower epoch than the one held is refused as stale."""

    task: Name
    """Unique in the cell."""
    service: Name
    epoch: Count
    """Grows with every decision where the task runs; the node keeps the highest."""
    generation: Count
    """Of the specification; a higher one replaces what runs."""
    manifest: Manifest

    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    """Workers of this task on the node that may run side by side."""
    tuning: Tuning = Tuning()
    """How to run it from the start; the manifest is that of the variant it names."""
    grace_ms: Annotated[int, Meta(ge=0, le=60_000)] = 2000
    """How long a node that replaces its own instance still serves requests of the epoch before."""
    tenant: Name = "default"
    """On whose behalf it runs; tenants never share a process that runs their programs."""
    deviceless: Deviceless | None = None
    """How its instance follows the requests; null: it is always there."""
    origin: Origin | None = None
    """Requests wait until what the task remembered there has come, as MemoryState; null: it goes on
    with what this node has kept.
    """


class Release(Message, tag="release", frozen=True):
    """Give the task up: finish what runs, take nothing new. Epochs up to this one are over."""

    task: Name
    epoch: Count
    reason: Text = ""
    """For people."""


class Status(Message, tag="status", frozen=True):
    """What became of an assignment; repeated until acknowledged by its number."""

    number: Count
    """Counts the statuses of this process; the acknowledgement names it."""
    task: Name
    epoch: Count
    """The highest that the node has seen for the task."""
    state: InstanceState
    reason: Text = ""
    """For people: why it failed or restarts."""
    blame: Blame | None = None
    """Whose fault it is, where it is one."""
    restarts: Count = 0
    """Troubles that were mended by trying again."""
    memory_bytes: Count | None = None
    """Proportional set size of the task's process, where it is known."""
    generation: Count = 0
    """The generation that the state speaks of."""
    tuned: Count = 0
    """Number of the last Tune that was taken."""
    serving_epoch: Count = 0
    """The epoch under which an older instance here serves while this one is prepared; 0: none."""
    awaits: Count = 0
    """The epoch whose memory it still waits for; 0: none, it serves."""
    remembers: Annotated[str, Meta(max_length=71)] = ""
    """While it waits: digest of what it has of that memory; empty: nothing."""


class Acknowledge(Message, tag="ack", frozen=True):
    """The receiver has taken in this number of this sender's incarnation, and says no more.

    Not cumulative: what came before it may have been lost or may still be on its way.
    """

    number: Count
    """`Status.number`."""
    incarnation: Count
    """Of the frame that brought it."""
    of: Id = "status"
    """What is acknowledged: `status`, or `job` for the end of a job's run."""
    also: Annotated[tuple[Count, ...], Meta(max_length=512)] = ()
    """Further numbers, acknowledged alike."""


class MemoryRequest(Message, tag="memory-request", frozen=True):
    """Say what a task remembers. Asked again until it is said; while its runs end, nothing is."""

    task: Name
    epoch: Count
    """Under which it runs, or ran, there."""
    kind: ExecutorKind
    """Whose memory it is, should the task be gone."""
    known: Annotated[str, Meta(max_length=71)] = ""
    """Digest of what the asker has; what begins with that is said without it."""
    known_bytes: Annotated[int, Meta(ge=0, le=2 * MAX_STATE_BYTES)] = 0
    node: str = ""
    """Between roles: whose node is asked, in another cell than the asker's."""
    checkpoint: Annotated[str, Meta(max_length=71)] | None = None
    """Between roles: digest of the checkpoint that the asker has, empty: none; the TA is to say
    another one that it has. Null: only if the node is lost."""


class MemoryState(Message, tag="memory-state", frozen=True):
    """What a task remembers under an epoch: said by its node, passed on to where it moves."""

    task: Name
    epoch: Count
    """Under which it was remembered."""
    digest: Digest | None = None
    """Of the whole. Null: it is not to be had; who waits for it goes on with what there is."""
    size_bytes: Count = 0
    """Of the whole."""
    data: Annotated[bytes, Meta(max_length=MEMORY_INLINE_BYTES)] | None = None
    """What follows `after_bytes` of it; null: the whole lies in the cell's store."""
    after_bytes: Count = 0
    """How much of what the receiver has stays in front."""
    final: bool = False
    """Whether nothing can follow: the task is over there under this epoch."""
    reason: Text = ""
    """Why it, or of a checkpoint a newer one, is not to be had; for people."""
    store_urls: Annotated[tuple[Text, ...], Meta(max_length=4)] = ()
    """Between cells: the stores where the whole lies, best first; said by the TS of its node."""
    checkpoint_age_ms: Count | None = None
    """Between roles: so long ago the node has said it, and may have changed it since; with neither
    data nor stores it is as it was told before. Null: it is no checkpoint."""
