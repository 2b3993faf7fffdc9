"""Between the layers: NAMO orders services, the TA grants envelopes, the TS reports and escalates.

Two roles in one process exchange these very structs without a wire.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from protocols.base import Count, Id, Message, Name, Part, Percent, Text
from protocols.errors import Blame
from protocols.manifest import Manifest
from protocols.messages.invocation import MAX_STEPS, Edge
from protocols.messages.presence import Inventory
from protocols.messages.task import InstanceState, LostPolicy
from protocols.qoais import Bound, ServiceKind, Sla


class TaskQos(Part, frozen=True):
    """A task's share of its service's QoAIS."""

    latency_ms: Annotated[float, Meta(gt=0)] | None = None
    bounds: tuple[Bound, ...] = ()


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
    """Sources are steps of the same service, or `request`."""
    qos: TaskQos = TaskQos()
    """Its share of the service's quality."""
    demand: Demand = Demand()
    """What it asks of its node."""
    policy: LostPolicy = LostPolicy()
    """What happens when its node is lost."""
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    nodes: tuple[Name, ...] = ()
    """Only these nodes, if any are named."""


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


class ServiceDelete(Message, tag="service-delete", frozen=True):
    """NAMO to TA: end a service and its tasks."""

    service: Name
    generation: Count


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


class SchedulerHello(Message, tag="scheduler-hello", frozen=True):
    """TS to TA: a scheduler has started without memory; the TA grants again what it holds."""

    scheduler: Name
    scheduler_epoch: Count


class AnchorWelcome(Message, tag="anchor-welcome", frozen=True):
    """TA to TS: the answer to a hello, after the grants."""

    anchor: Name
    """Name of the TA."""
    scheduler_epoch: Count
    grants: Count
    """How many it gave."""


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
    """Under which it ran there."""


class EnvelopeRevoke(Message, tag="envelope-revoke", frozen=True):
    """TA to TS: the task is over, or belongs to another TS."""

    task: Name
    generation: Count
    reason: Text = ""


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


class NodeState(StrEnum):
    """What the scheduler believes of a node; the table stands in `controller/scheduler`."""

    ONLINE = "online"
    SUSPECT = "suspect"
    DRAINING = "draining"
    LOST = "lost"


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


class Attempt(Part, frozen=True):
    """One thing that a layer tried before it escalated."""

    action: Text
    """What was done."""
    outcome: Text
    """What came of it."""


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


class EscalationAnswer(Message, tag="escalation-answer", frozen=True):
    """The layer above answers: a new configuration follows, or a refusal a person can read."""

    number: Id
    """Of the escalation."""
    task: Name
    granted: bool
    """Whether a new configuration follows."""
    reason: Text
