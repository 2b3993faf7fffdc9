"""Quality at run time: what the TS may change about a task, what it changes, what nodes measure.

TONA paper, "Task QoS Assurance": the TS adjusts algorithm, computing, connection and data inside
the envelope of the TA. What needs another instance (variant, threads, provider) comes with an
`Assign` under a new epoch; everything else comes with a `Tune` and restarts nothing.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from protocols.base import Count, Label, Message, Name, Part, Shape
from protocols.manifest import MAX_PORTS, Dtype, Manifest
from protocols.messages.invocation import Plan
from protocols.sla import Zone

MAX_VARIANTS: Final = 16
MAX_SOURCES: Final = 16
MAX_USERS: Final = 64
"""Users told apart in one report; the others are summed under the empty name."""
PRIORITY_DEFAULT: Final = 4

Priority = Annotated[int, Meta(ge=0, le=9)]
"""9 is served first; 4 is everyone's."""
Rate = Annotated[float, Meta(ge=0, le=100_000)]
Decimation = Annotated[int, Meta(ge=1, le=64)]
Positive = Annotated[float, Meta(gt=0)]


class Declared(Part, frozen=True):
    """What whoever offers a model or module says of it, for an indicator that is not measured."""

    indicator: Label
    """Its name in the catalogue."""
    number: float | None = None
    """Of a quantitative one."""
    level: str = ""
    """Of one that has levels."""


class Variant(Part, frozen=True):
    """One of several programs that do a task's work at another cost and accuracy."""

    name: Label
    """Unique in the task."""
    manifest: Manifest
    """Takes and gives the same ports as the task's own."""
    accuracy_percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Declared; null: not known."""
    expected_ms: Positive | None = None
    """Predicted cost of one run."""
    declared: Annotated[tuple[Declared, ...], Meta(max_length=64)] = ()
    """Other indicators that are declared, not measured."""


class Warmth(StrEnum):
    """What stays of a deviceless instance that rests: the more, the sooner it answers again."""

    FORM = "form"
    """The form of its program that was prepared, on disk."""
    PROCESS = "process"
    """The process that has loaded the program."""
    INSTANCE = "instance"
    """All of it, until memory is short."""


class Tuning(Part, frozen=True):
    """How a task runs on its node; empty and 0 are what the task's specification says."""

    variant: str = ""
    """Name of the variant; empty: the task's own manifest."""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """Inside one run of a model."""
    provider: str = ""
    """ONNX execution provider."""
    replicas: Annotated[int, Meta(ge=0, le=64)] = 0
    """Workers side by side: serial is 1."""
    cpu_percent: Annotated[float, Meta(ge=0, le=100 * 4096)] = 0.0
    """Share of the node's cores that its workers may take together, of one core."""
    priority: Priority = PRIORITY_DEFAULT
    """Of the task among those of its node."""
    encoding: str = ""
    """How tensors leave the node: empty for dense, `deflate` for compressed."""
    warmth: Warmth = Warmth.FORM
    """What stays of a deviceless instance while nobody asks."""


class Leeway(Part, frozen=True):
    """What the TS may change about a task without asking; the empty one allows no change."""

    variants: Annotated[tuple[Label, ...], Meta(max_length=MAX_VARIANTS)] = ()
    """Names of variants beside the task's own manifest."""
    moves: bool = True
    """Whether it may move among the envelope's nodes for quality; for a loss it always may."""
    cpu_percent_max: Annotated[float, Meta(ge=0, le=100 * 4096)] = 0.0
    """Largest share, of one core; 0: it may not set one."""
    threads_max: Annotated[int, Meta(ge=0, le=1024)] = 0
    """0: it may not set them."""
    replicas_max: Annotated[int, Meta(ge=0, le=64)] = 0
    """0: it may not set them."""
    providers: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    """It may choose among these."""
    encodings: Annotated[tuple[str, ...], Meta(max_length=4)] = ()
    """It may choose among these."""
    priority_max: Priority = PRIORITY_DEFAULT
    """The highest that it may set."""
    rate_min_per_s: Rate = 0.0
    """Slowest rate of the service's sources; 0: their rate stays."""
    decimations: Annotated[tuple[int, ...], Meta(max_length=8)] = ()
    """Every how manieth row and column a source's picture may be reduced to."""
    functions: Annotated[tuple[str, ...], Meta(max_length=8)] = ()
    """Processing functions that a source may apply."""


class UserZone(Part, frozen=True):
    """The zone of one user, where it differs from the service's."""

    user: Name
    """The client's name."""
    zone: Zone
    """What satisfies this user."""


class SourceKind(StrEnum):
    """Where data comes from when no client sends it."""

    SENSOR = "sensor"
    """One that a node's inventory names."""
    FILE = "file"
    """A file below the node's data folder."""
    TOPIC = "topic"
    """What is published as the output, or sent to the input, of a service."""


class Source(Part, frozen=True):
    """A node's data that feeds an input of a service, as a client would."""

    input: Label
    """Of the service."""
    kind: SourceKind
    name: Annotated[str, Meta(max_length=256)]
    """Of the sensor or file; `SERVICE.OUTPUT` of a topic."""
    dtype: Dtype
    shape: Shape
    nodes: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    """Those that may provide it; empty: any that has it."""
    rate_per_s: Rate = 1.0
    """How often it is read; a topic feeds as it comes, at most so often over a second or more."""


class SinkKind(StrEnum):
    """Where answers go when no client waits for them."""

    TOPIC = "topic"
    STORE = "store"


class Sink(Part, frozen=True):
    """Where an output of a service goes beside the requester, or instead of one."""

    output: Label
    """Of the service."""
    kind: SinkKind


class Feed(Message, tag="feed", frozen=True):
    """TS to a node: be the client of a service with data of your own. Newer numbers replace."""

    service: Name
    number: Count
    """Grows with every change."""
    plan: Plan | None = None
    """Where to send the requests; null: not now."""
    sources: Annotated[tuple[Source, ...], Meta(max_length=MAX_SOURCES)] = ()
    """Of this node; none: the service is fed no longer."""
    sinks: Annotated[tuple[Sink, ...], Meta(max_length=MAX_PORTS)] = ()
    """Where the answers go."""
    budget_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 10_000
    """What each request may take."""
    rate_per_s: Rate = 0.0
    """Above 0: instead of the sources' own."""
    decimation: Decimation = 1
    """Every how manieth row and column of a picture is kept."""
    function: str = ""
    """Processing function: empty for none, `changes` to send only what differs."""
    priority: Priority = PRIORITY_DEFAULT
    cell: Annotated[str, Meta(max_length=64)] = ""
    """Of the service, where that is another one than the node's; its plan is of that cell too."""


class Tune(Message, tag="tune", frozen=True):
    """TS to a node: run a task so. Idempotent by number; the status says the last one taken."""

    task: Name
    epoch: Count
    number: Count
    """Grows with every change of this task."""
    tuning: Tuning
    """The whole of it, not what differs."""


class TaskSample(Part, frozen=True):
    """One task on one node over a window."""

    task: Label
    epoch: Count
    variant: str = ""
    """Which one ran; empty: the manifest of the specification."""
    done: Count = 0
    """Runs that gave outputs."""
    failed: Count = 0
    """Runs that ended without outputs."""
    shed: Count = 0
    """Refused at admission, with a reason."""
    late: Count = 0
    """Given up because their time was over."""
    queue: Count = 0
    """Waiting at the end of the window."""
    queue_ms: float = 0.0
    """Mean wait of those that began."""
    run_ms: float = 0.0
    """Mean run of those done."""
    run_p95_ms: float = 0.0
    fetch_ms: float = 0.0
    """Mean wait for large inputs."""
    input_bytes: Count = 0
    """Of those done, together."""
    output_bytes: Count = 0
    sent_bytes: Count = 0
    """Of them what left the node, as encoded."""
    memory_bytes: Count | None = None
    energy_j: float | None = None
    """Null: no sensor."""
    starved: bool = False
    """Whether what waits at the end of the window waits for memory of the node."""


class UserSample(Part, frozen=True):
    """One user of one service over a window, as the nodes that answered measured it."""

    service: Label
    user: str
    """The client's name; of a feed, the node's; empty: all that are not told apart."""
    answered: Count = 0
    """With outputs."""
    failed: Count = 0
    """With a failure."""
    latency_ms: float = 0.0
    """Mean time from the request's arrival at its first node to the answer, and half a round trip
    for each way between machines.
    """
    latency_p95_ms: float = 0.0


class QualityReport(Message, tag="quality", frozen=True):
    """What a node measured since its last one; sent only where something ran or waits."""

    sampled_ms: Count
    """The node's monotonic clock."""
    window_ms: Count
    """How long it was measured."""
    tasks: Annotated[tuple[TaskSample, ...], Meta(max_length=1024)] = ()
    """Those of which there is something to say."""
    users: Annotated[tuple[UserSample, ...], Meta(max_length=MAX_USERS + 1)] = ()
    """Those that were answered here."""
