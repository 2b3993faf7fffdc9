"""Invocation: one request through a service's tasks, from node to node, and its answer.

A request carries the plan of the whole service, so that the node of a step knows where the outputs
go without asking anybody. Deadlines travel as the time that is left (`budget_ms`): clocks of nodes
need not agree. The request's id makes everything idempotent: whoever sees it again repeats the
answer it gave.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, field

from protocols.base import Count, Digest, Id, Label, Message, Name, Part, Shape, Text
from protocols.errors import Blame
from protocols.manifest import MAX_PORTS, Dtype

INLINE_MAX_BYTES: Final = 64 * 1024
"""A larger tensor goes by reference over a connection of its own."""
PLANS_MAX: Final = 8
"""Of one route."""
CORRELATION_MAX_BYTES: Final = 2048
MAX_STEPS: Final = 64
REQUEST: Final = "request"
"""The step name that stands for the client's inputs."""

Budget = Annotated[int, Meta(ge=0, le=3_600_000)]

Stood = Annotated[int, Meta(ge=0, le=3_600_000)]

Agent = Annotated[str, Meta(max_length=64)]

Correlation = Annotated[bytes, Meta(max_length=CORRELATION_MAX_BYTES)]
"""MQTT 5 correlation data of a client; nobody but the client takes it apart."""


class Tensor(Message, tag="tensor", frozen=True):
    """A small value, in the message."""

    dtype: Dtype
    shape: Shape
    """Without -1 in a value."""
    data: Annotated[bytes, Meta(max_length=INLINE_MAX_BYTES)]
    """Dense, row by row, little-endian; as long as type and shape say, once unpacked."""
    encoding: str = ""
    """Empty: as it is. `deflate`: packed (RFC 1951 in the zlib format of RFC 1950)."""


class Blob(Message, tag="blob", frozen=True):
    """A large value, by digest; fetched from a node or from the cell's store."""

    dtype: Dtype
    shape: Shape
    """Without -1 in a value."""
    digest: Digest
    """Of the same bytes that a tensor would carry."""
    size_bytes: Count


Value = Tensor | Blob
Values = Annotated[dict[Label, Value], Meta(max_length=MAX_PORTS)]


class Edge(Part, frozen=True):
    """The input `port` of a step comes from `source_port` of `source` (a step or `request`)."""

    port: Label
    """The input that is fed."""
    source: Label
    """Which task gives it; `request`: the client."""
    source_port: Label
    """Which of its outputs, or of the client's inputs."""


class Step(Part, frozen=True):
    """One task of the plan, where it runs and what feeds it."""

    task: Label
    """Also the name of the step in edges."""
    node: Name
    epoch: Count
    """The epoch under which the node holds the task; another one there is stale."""
    inputs: Annotated[tuple[Edge, ...], Meta(max_length=MAX_PORTS)] = ()
    """One edge for each input."""
    outputs: Annotated[tuple[Label, ...], Meta(max_length=MAX_PORTS)] = ()
    """The names that the task gives."""
    cell: Annotated[str, Meta(max_length=64)] = ""
    """Where the node is: of each step, or of none where all are in the cell that made the plan."""


class Plan(Part, frozen=True):
    """The steps of a service in topological order, and where its answers come from."""

    service: Label
    generation: Count
    """Of the service's specification."""
    steps: Annotated[tuple[Step, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    """Each after those that feed it."""
    outputs: Annotated[tuple[Edge, ...], Meta(min_length=1, max_length=MAX_PORTS)]
    """`port` is the name in the answer."""


class Timing(Part, frozen=True):
    """Where the time of one step went, in microseconds on its node."""

    task: Label
    node: Label
    queue_us: Count
    """From all inputs being there to the executor taking the call."""
    run_us: Count
    """From the executor taking the call to its outputs."""
    fetch_us: Count = 0
    """Waiting for large inputs."""


Timings = Annotated[tuple[Timing, ...], Meta(max_length=MAX_STEPS)]


class Invoke(Message, tag="invoke", frozen=True):
    """Run a service: sent to a node with the plan, or to the service without (the TS adds it)."""

    request: Id
    """Chosen by the client, never used twice, such as a UUID."""
    service: Name
    budget_ms: Budget
    """How long the client still waits."""
    inputs: Values
    """By the names that the service takes."""
    reply_to: str = ""
    """Topic of the answer; empty: the MQTT 5 response topic."""
    attempt: Count = 1
    """From 1; one more each time the client repeats the request."""
    plan: Plan | None = None
    """From the route. Null only on a service's topic."""
    correlation: Correlation = b""
    """MQTT 5 correlation data of the client, returned with the answer."""
    priority: Annotated[int, Meta(ge=0, le=9)] = 4
    """Under overload the lower ones are shed first; 9 is the highest."""
    job: bool = False
    """Whether this runs a job: its end goes to the TS as JobEnded."""
    answer_encoding: Annotated[str, Meta(max_length=16)] = ""
    """How tensors of the answer may be packed: empty for not at all, or `deflate`."""
    agent: Agent = ""
    """The AI agent for which it is asked, for the log; empty: none."""
    stood_ms: Stood = 0
    """How long the request to this service stood, from asking to its end, that stood longest of
    those that have ended since the client asked last; 0: none has.
    """


class Deliver(Message, tag="deliver", frozen=True):
    """Outputs of one step for the steps of this node that wait for them."""

    request: Id
    """As in Invoke, like attempt, reply_to, plan and correlation."""
    attempt: Count
    source: Label
    """The step that gave them, or `request`."""
    budget_ms: Budget
    """What is left of the client's time."""
    values: Values
    """By the names of the step's outputs."""
    reply_to: str
    """Never empty here."""
    plan: Plan
    timings: Timings = ()
    """Of the steps so far."""
    correlation: Correlation = b""
    """As in Invoke."""
    priority: Annotated[int, Meta(ge=0, le=9)] = 4
    """As in Invoke."""
    job: bool = False
    """As in Invoke."""
    elapsed_us: Count = 0
    """Since the request reached its first node, along this path; ways between machines counted as
    half of the sender's round trip each, and the time that the bytes need.
    """
    user: str = ""
    """Name of the client that asked."""
    answer_encoding: Annotated[str, Meta(max_length=16)] = ""
    """As in Invoke."""
    agent: Agent = ""
    """As in Invoke."""


class Cancel(Message, tag="cancel", frozen=True):
    """The client no longer waits for this request."""

    request: Id


class Accepted(Message, tag="accepted", frozen=True):
    """An executor has the request: from here it is answered once, or its deadline passes."""

    request: Id
    attempt: Count
    """The highest that the node has seen."""
    node: Name
    """Who has it."""


class FailureCode(StrEnum):
    """Why a request was not served. `retryable` in the failure says whether again may help."""

    BAD_INPUT = "bad-input"
    NO_SERVICE = "no-service"
    NOT_READY = "not-ready"
    BUSY = "busy"
    SHED = "shed"
    STALE = "stale"
    DEADLINE = "deadline"
    EXECUTOR = "executor"
    LIMIT = "limit"
    FETCH = "fetch"
    NODE_LOST = "node-lost"
    CANCELLED = "cancelled"
    CHECK = "check-failed"
    """The outputs broke a check that the service declares."""


class Failure(Part, frozen=True):
    """Why a request failed, by whose blame, and whether another try may help."""

    code: FailureCode
    """What went wrong."""
    blame: Blame
    """Who has to act."""
    text: Text
    """One sentence for a person."""
    retryable: bool
    """Whether the same request may succeed with another attempt."""
    task: str = ""
    """Where it failed, if in a task."""
    node: str = ""
    """Who says so; empty: the scheduler."""


class Result(Message, tag="result", frozen=True):
    """The one answer to a request: outputs, or a failure."""

    request: Id
    attempt: Count
    """The attempt that is answered."""
    outputs: Values = field(default_factory=dict)
    """By the names that the service gives."""
    failure: Failure | None = None
    """Null: it succeeded."""
    timings: Timings = ()
    """Of the steps on the way to these outputs."""
    part: Count = 0
    """Which one, from 0."""
    parts: Count = 1
    """Outputs of several end steps arrive as parts; the answer is whole when all are there."""


class RouteRequest(Message, tag="route-request", frozen=True):
    """A client asks where a service is served."""

    request: Id
    """Any text; the answer does not name it."""
    service: Name
    reply_to: str = ""
    """As in Invoke."""


class Route(Message, tag="route", frozen=True):
    """Where a service is served now. Sent on request and whenever it changes."""

    service: Name
    epoch: Count
    """Grows with every change; a client forgets a route with a lower one."""
    plan: Plan | None
    """None: the service is not served now."""
    valid_ms: Count
    """How long the client may use it without hearing from the scheduler."""
    credit: Count = 0
    """Requests that the client may have under way."""
    blob_urls: tuple[str, ...] = ()
    """Base URLs of the cell's store for large values."""
    reason: Text = ""
    """Why there is no plan, for people."""
    inputs: tuple[str, ...] = ()
    """The names that the service takes."""
    encoding: str = ""
    """How clients shall pack tensors: empty for not at all, or `deflate`."""
    others: Annotated[tuple[Plan, ...], Meta(max_length=PLANS_MAX - 1)] = ()
    """Further plans that do the same elsewhere: a client shares its requests among all of them. A
    request that is repeated goes where it was, unless that has refused it.
    """
    drains: bool = False
    """Whether a node that the route before led to is there and ends what it has begun: that is not
    asked for elsewhere at once.
    """
