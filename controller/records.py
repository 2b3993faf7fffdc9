"""What is durable, and what people watch: the structs that stand in records and views.

A record holds the whole newest state of one thing under (kind, key); the store keeps the newest
and a bounded log of the changes.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from protocols.errors import Blame
from protocols.messages.hierarchy import NodeState, ServiceOrder, ServiceState, TaskSpec
from protocols.messages.presence import Inventory
from protocols.messages.sense import LinkReport, LoadReport

USE_CASE: Final = "usecase"
SERVICE: Final = "service"
TASK: Final = "task"
NODE: Final = "node"
STORY: Final = "story"
ARTIFACT: Final = "artifact"
FLEET: Final = "fleet"
ANCHORED: Final = "anchored"

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


class TaskState(StrEnum):
    """The life of a task at its anchor; the table stands in `controller/anchor/lifecycle.py`."""

    ACCEPTED = "accepted"
    PLACED = "placed"
    RUNNING = "running"
    MOVING = "moving"
    WAITING = "waiting"
    DELETING = "deleting"
    DELETED = "deleted"


class Rejection(Struct, frozen=True):
    """Why a node was not chosen."""

    node: str
    stage: str
    """`feasible` or `rank`."""
    reason: str


class Placement(Struct, frozen=True):
    """The last decision of the TA about a task's place, kept for `tona task explain`."""

    revision: int
    """Of the node snapshot it was made on."""
    chosen: tuple[str, ...] = ()
    scores: dict[str, dict[str, float]] = {}
    """For each feasible node the terms of its score; the lowest sum won."""
    rejected: tuple[Rejection, ...] = ()
    reason: str = ""


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


class StoryRecord(Struct, frozen=True):
    """One entry of a task's story (kind `story`, key `TASK/slot`)."""

    task: str
    number: int
    layer: str
    """`namo`, `ta`, `ts` or `node`."""
    event: str
    detail: str = ""
    cause: str = ""
    blame: Blame | None = None


class NodeRecord(Struct, frozen=True):
    """A node that was ever seen (kind `node`, key its name)."""

    node: str
    agent_version: str
    boot_id: str
    inventory: Inventory


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


class AnchoredRecord(Struct, frozen=True):
    """A service that a TA has accepted (kind `anchored`, key its name)."""

    order: ServiceOrder
    tenant: str
    namo: str
    """Whom the TA reports to."""
