"""The structs of a use case: what a document may say, and nothing else.

The reader walks these definitions, so they are the one description of the format.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from controller.namo.reader import STEP_PATTERN
from protocols.base import Count, Name, Shape, Text
from protocols.manifest import (
    MAX_ARGUMENTS,
    MAX_BATCH,
    MAX_CONSTANTS,
    MAX_INFERS,
    MAX_MODULES,
    MAX_PORTS,
    MAX_THREADS,
    MAX_VALUES,
    ArtifactRef,
    Dtype,
    ExecutorKind,
    Form,
    HostFunction,
    Interface,
    Limits,
)
from protocols.messages.hierarchy import Demand
from protocols.messages.invocation import MAX_STEPS
from protocols.messages.quality import (
    MAX_SOURCES,
    MAX_VARIANTS,
    PRIORITY_DEFAULT,
    Priority,
    Rate,
    SinkKind,
    SourceKind,
)
from protocols.messages.task import LostPolicy, Quarantine
from protocols.qoais import Bound, ServiceKind

MAX_SERVICES: Final = 16
MAX_ALTERNATIVES: Final = 8
MAX_ZONES: Final = 1024
"""Users with a zone of their own."""
MAIN: Final = "main"
"""The decomposition that stands in the service itself."""

Step = Annotated[str, Meta(pattern=STEP_PATTERN)]
Grade = Annotated[float, Meta(ge=0, le=100)]
Milliseconds = Annotated[float, Meta(gt=0, le=3_600_000)]
Bits = Annotated[int, Meta(ge=1, le=256)]
Declarations = Annotated[dict[str, float | str], Meta(max_length=64)]
Rows = Annotated[int, Meta(ge=0, le=MAX_BATCH)]
Span = Annotated[int, Meta(ge=0, le=86_400_000)]


class Input(Struct, frozen=True):
    """What feeds a port: `request.NAME`, `TASK.PORT`, whose type then is known, or `infer`."""

    source: str = field(name="from")
    dtype: Dtype | None = None
    shape: Shape | None = None


class Output(Struct, frozen=True):
    """A tensor that a task gives; -1 is any length."""

    dtype: Dtype
    shape: Shape


class Constant(Struct, frozen=True):
    """A port that an artifact feeds, the same for every invocation."""

    artifact: ArtifactRef
    dtype: Dtype
    shape: Shape


class OnBreak(StrEnum):
    """What becomes of a call whose output breaks a check."""

    REFUSE = "refuse"
    FLAG = "flag"


class Deviceless(Struct, frozen=True):
    """Instances follow the requests."""

    keep_alive_ms: Span | None = None
    """How long an idle instance stays; None: as its past calls suggest."""
    fresh: bool = False


class OutputCheck(Struct, frozen=True):
    """What an output must keep."""

    at_least: float | None = None
    at_most: float | None = None
    values: Annotated[tuple[float, ...], Meta(max_length=MAX_VALUES)] = ()
    finite: bool = False
    items_at_least: Count = 0
    items_at_most: Count | None = None
    form: Form | None = None
    on_break: OnBreak = OnBreak.REFUSE


class Expected(Struct, frozen=True):
    """What an output is to be."""

    artifact: ArtifactRef
    shape: Shape


class Reference(Struct, frozen=True):
    """What the samples of a task are to give."""

    outputs: Annotated[dict[Name, Expected], Meta(min_length=1, max_length=MAX_PORTS)]
    tolerance: Annotated[float, Meta(ge=0)] = 0.0
    every_s: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 3600


class Module(Struct, frozen=True):
    """A Wasm module that a program is linked with."""

    artifact: ArtifactRef


class Variant(Struct, frozen=True):
    """Another program for the ports of its task, at another cost and accuracy.

    What it does not say is as the task says, or, with an executor of its own, as by default there.
    """

    name: Step
    artifact: ArtifactRef
    accuracy_percent: Grade | None = None
    expected_ms: Milliseconds | None = None
    precision_bits: Bits | None = None
    providers: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    constants: Annotated[dict[Name, Constant], Meta(max_length=MAX_CONSTANTS)] | None = None
    """None: those of the task."""
    limits: Limits | None = None
    """None: those of the task."""
    declared: Declarations = {}
    executor: ExecutorKind | None = None
    """None: that of the task."""
    interface: Interface | None = None
    functions: Annotated[tuple[HostFunction, ...], Meta(max_length=8)] | None = None
    modules: Annotated[dict[Name, Module], Meta(max_length=MAX_MODULES)] | None = None
    arguments: Annotated[tuple[Text, ...], Meta(max_length=MAX_ARGUMENTS)] | None = None
    carries: Annotated[dict[Name, Name], Meta(max_length=MAX_PORTS)] | None = None
    batch: Rows | None = None


class Leeway(Struct, frozen=True):
    """What the scheduler may change about a task by itself; None stands for the default."""

    variants: Annotated[tuple[Step, ...], Meta(max_length=MAX_VARIANTS)] | None = None
    moves: bool = True
    cpu_percent_max: Annotated[float, Meta(ge=0, le=100 * 4096)] | None = None
    threads_max: Annotated[int, Meta(ge=0, le=1024)] | None = None
    replicas_max: Annotated[int, Meta(ge=0, le=64)] | None = None
    providers: Annotated[tuple[str, ...], Meta(max_length=16)] | None = None
    encodings: Annotated[tuple[str, ...], Meta(max_length=4)] = ("deflate",)
    priority_max: Priority | None = None
    rate_min_per_s: Rate = 0.0
    decimations: Annotated[tuple[int, ...], Meta(max_length=8)] = ()
    functions: Annotated[tuple[str, ...], Meta(max_length=8)] = ()


class Task(Struct, frozen=True):
    """One step of a service."""

    name: Step
    executor: ExecutorKind
    artifact: ArtifactRef
    inputs: Annotated[dict[Name, Input], Meta(min_length=1, max_length=MAX_PORTS)]
    outputs: Annotated[dict[Name, Output], Meta(min_length=1, max_length=MAX_PORTS)]
    constants: Annotated[dict[Name, Constant], Meta(max_length=MAX_CONSTANTS)] = {}
    limits: Limits = Limits()
    expected_ms: Milliseconds | None = None
    """The author's prediction of one run; without it, one by kind stands in."""
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    nodes: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    demand: Demand = Demand()
    policy: LostPolicy = LostPolicy()
    providers: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    accuracy_percent: Grade | None = None
    precision_bits: Bits | None = None
    declared: Declarations = {}
    """What the author says of the program: indicator to number or level."""
    variants: Annotated[tuple[Variant, ...], Meta(max_length=MAX_VARIANTS)] = ()
    priority: Priority = PRIORITY_DEFAULT
    leeway: Leeway = Leeway()
    interface: Interface | None = None
    functions: Annotated[tuple[HostFunction, ...], Meta(max_length=8)] = ()
    modules: Annotated[dict[Name, Module], Meta(max_length=MAX_MODULES)] = {}
    arguments: Annotated[tuple[Text, ...], Meta(max_length=MAX_ARGUMENTS)] = ()
    carries: Annotated[dict[Name, Name], Meta(max_length=MAX_PORTS)] = {}
    """What a model remembers: its output to its input."""
    samples: Annotated[dict[Name, Constant], Meta(max_length=MAX_PORTS)] = {}
    """Inputs that its programs are tried with."""
    deviceless: Deviceless | None = None
    batch: Rows = 0
    infers: Annotated[tuple[Step, ...], Meta(max_length=MAX_INFERS)] = ()
    """ONNX tasks of the service whose models its module may run."""
    quarantine: Quarantine = Quarantine.NEVER
    threads: Annotated[int, Meta(ge=0, le=MAX_THREADS)] = 0
    checks: Annotated[dict[Name, OutputCheck], Meta(max_length=MAX_PORTS)] = {}
    reference: Reference | None = None


class Range(Struct, frozen=True):
    """One side of a zone, by the name of its indicator."""

    at_most: float | None = None
    at_least: float | None = None
    level: str | None = None


class Zoned(Struct, frozen=True):
    """One user, and what satisfies it where that differs from the service's zone."""

    user: Name
    zone: Annotated[dict[str, Range], Meta(min_length=1, max_length=64)]


class Agreement(Struct, frozen=True):
    """SLA: the zone (`bounds`, or the same as a table `zone`) and the share it must hold for."""

    satisfaction_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0
    bounds: Annotated[tuple[Bound, ...], Meta(max_length=64)] = ()
    zone: Annotated[dict[str, Range], Meta(max_length=64)] = {}
    users: Annotated[tuple[Zoned, ...], Meta(max_length=MAX_ZONES)] = ()

    def all_bounds(self) -> list[Bound]:
        """Return the bounds of both notations."""
        return [*self.bounds, *bounds_of(self.zone)]


def bounds_of(zone: dict[str, Range]) -> list[Bound]:
    """Return a zone that was written as a table."""
    return [
        Bound(name, at_most=one.at_most, at_least=one.at_least, level=one.level)
        for name, one in zone.items()
    ]


class Source(Struct, frozen=True):
    """A node's data, or a topic, that feeds `request.NAME` as a client would."""

    kind: SourceKind
    name: Annotated[str, Meta(max_length=256)] = ""
    """Of the sensor, file or topic (`SERVICE.OUTPUT`); empty: as the input."""
    nodes: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    rate_per_s: Rate = 1.0
    dtype: Dtype | None = None
    shape: Shape | None = None


class Alternative(Struct, frozen=True):
    """Another DAG that does the same as the service's own."""

    name: Step
    outputs: Annotated[dict[Name, str], Meta(min_length=1, max_length=MAX_PORTS)]
    tasks: Annotated[tuple[Task, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    accuracy_percent: Grade | None = None
    """Of the whole; None: the product of its tasks'."""


class Service(Struct, frozen=True):
    """A DAG of tasks, and which of their ports are the answer (`NAME = "TASK.PORT"`)."""

    name: Name
    kind: ServiceKind
    outputs: Annotated[dict[Name, str], Meta(min_length=1, max_length=MAX_PORTS)]
    tasks: Annotated[tuple[Task, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    sla: Agreement = Agreement()
    spares: Annotated[int, Meta(ge=0, le=64)] = 1
    accuracy_percent: Grade | None = None
    """Of the whole; None: the product of its tasks'."""
    alternatives: Annotated[tuple[Alternative, ...], Meta(max_length=MAX_ALTERNATIVES)] = ()
    sources: Annotated[dict[Name, Source], Meta(max_length=MAX_SOURCES)] = {}
    sinks: Annotated[dict[Name, SinkKind], Meta(max_length=MAX_PORTS)] = {}

    def ways(self) -> tuple[Alternative, ...]:
        """Return every decomposition, the service's own first."""
        return (
            Alternative(MAIN, self.outputs, self.tasks, self.accuracy_percent),
            *self.alternatives,
        )


class Origin(StrEnum):
    """Who asks: service intelligence is for users and third parties, the rest for the network."""

    USER = "user"
    THIRD_PARTY = "third-party"
    NETWORK = "network"


class Reach(StrEnum):
    """The paper's two kinds of intelligence for the network itself."""

    NETWORK = "network"
    """Over all anchors together."""
    ELEMENT = "element"
    """Over what one anchor speaks for."""


class Threshold(Struct, frozen=True):
    """One side of an aggregate, and where the other side of the hysteresis lies."""

    at_least: float | None = None
    at_most: float | None = None
    until: float | None = None
    """The trigger clears beyond it; None: beyond the threshold itself."""


class Trigger(Struct, frozen=True):
    """When the network itself has a use case run: all conditions hold for a while."""

    when: Annotated[dict[str, Threshold], Meta(min_length=1, max_length=8)]
    """Aggregate of the fleet to its threshold."""
    network: Reach = Reach.NETWORK
    element: Name | None = None
    """Name of the anchor; None: any."""
    for_ms: Span = 5000
    """How long the conditions must hold, or have cleared."""
    cooldown_ms: Span = 60_000
    """Least time between two switches."""


class UseCase(Struct, frozen=True):
    """What a user, another system or the network itself asks for."""

    name: Name
    services: Annotated[tuple[Service, ...], Meta(min_length=1, max_length=MAX_SERVICES)]
    tenant: Name | None = None
    description: Annotated[str, Meta(max_length=2048)] = ""
    origin: Origin | None = None
    """None: the network when there is a trigger, else a user."""
    trigger: Trigger | None = None
