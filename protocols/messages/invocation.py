"""Invocation: one request through a service's tasks, from node to node, and its answer.

A request carries the plan of the whole service, so that the node of a step knows where the outputs
go without asking anybody. Deadlines travel as the time that is left (`budget_ms`): clocks of nodes
need not agree. The request's id makes everything idempotent: whoever sees it again repeats the
answer it gave.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, field

from protocols.base import Count, Digest, Id, Message, Name, Part, Shape, Text
from protocols.errors import Blame
from protocols.manifest import MAX_PORTS, Dtype

INLINE_MAX_BYTES: Final = 64 * 1024
"""A larger tensor goes by reference over a connection of its own."""
CORRELATION_MAX_BYTES: Final = 2048
MAX_STEPS: Final = 64
REQUEST: Final = "request"
"""The step name that stands for the client's inputs."""

Budget = Annotated[int, Meta(ge=0, le=3_600_000)]

Correlation = Annotated[bytes, Meta(max_length=CORRELATION_MAX_BYTES)]
"""MQTT 5 correlation data of a client; nobody but the client takes it apart."""


class Tensor(Message, tag="tensor", frozen=True):
    """A small value, in the message."""

    dtype: Dtype
    shape: Shape
    data: Annotated[bytes, Meta(max_length=INLINE_MAX_BYTES)]


class Blob(Message, tag="blob", frozen=True):
    """A large value, by digest; fetched from a node or from the cell's store."""

    dtype: Dtype
    shape: Shape
    digest: Digest
    size_bytes: Count


Value = Tensor | Blob
Values = Annotated[dict[Name, Value], Meta(max_length=MAX_PORTS)]


class Edge(Part, frozen=True):
    """The input `port` of a step comes from `source_port` of `source` (a step or `request`)."""

    port: Name
    source: Name
    source_port: Name


class Step(Part, frozen=True):
    """One task of the plan, where it runs and what feeds it."""

    task: Name
    node: Name
    epoch: Count
    inputs: Annotated[tuple[Edge, ...], Meta(max_length=MAX_PORTS)] = ()
    outputs: Annotated[tuple[Name, ...], Meta(max_length=MAX_PORTS)] = ()


class Plan(Part, frozen=True):
    """The steps of a service in topological order, and where its answers come from."""

    service: Name
    generation: Count
    steps: Annotated[tuple[Step, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    outputs: Annotated[tuple[Edge, ...], Meta(min_length=1, max_length=MAX_PORTS)]
    """`port` is the name in the answer."""


class Timing(Part, frozen=True):
    """Where the time of one step went, in microseconds on its node."""

    task: Name
    node: Name
    queue_us: Count
    run_us: Count
    """From the executor taking the call to its outputs."""
    fetch_us: Count = 0


class Invoke(Message, tag="invoke", frozen=True):
    """Run a service: sent to a node with the plan, or to the service without (the TS adds it)."""

    request: Id
    service: Name
    budget_ms: Budget
    inputs: Values
    reply_to: str = ""
    """Topic of the answer; empty: the MQTT 5 response topic."""
    attempt: Count = 1
    plan: Plan | None = None
    correlation: Correlation = b""
    """MQTT 5 correlation data of the client, returned with the answer."""


class Deliver(Message, tag="deliver", frozen=True):
    """Outputs of one step for the steps of this node that wait for them."""

    request: Id
    attempt: Count
    source: Name
    """The step that gave them, or `request`."""
    budget_ms: Budget
    values: Values
    reply_to: str
    plan: Plan
    timings: tuple[Timing, ...] = ()
    correlation: Correlation = b""


class Cancel(Message, tag="cancel", frozen=True):
    """The client no longer waits for this request."""

    request: Id


class Accepted(Message, tag="accepted", frozen=True):
    """An executor has the request: from here it is answered once, or its deadline passes."""

    request: Id
    attempt: Count
    node: Name


class FailureCode(StrEnum):
    """Why a request was not served. `retryable` in the failure says whether again may help."""

    BAD_INPUT = "bad-input"
    NO_SERVICE = "no-service"
    NOT_READY = "not-ready"
    BUSY = "busy"
    STALE = "stale"
    DEADLINE = "deadline"
    EXECUTOR = "executor"
    LIMIT = "limit"
    FETCH = "fetch"
    NODE_LOST = "node-lost"
    CANCELLED = "cancelled"


class Failure(Part, frozen=True):
    """Why a request failed, by whose blame, and whether another try may help."""

    code: FailureCode
    blame: Blame
    text: Text
    retryable: bool
    task: str = ""
    node: str = ""


class Result(Message, tag="result", frozen=True):
    """The one answer to a request: outputs, or a failure."""

    request: Id
    attempt: Count
    outputs: Values = field(default_factory=dict)
    failure: Failure | None = None
    timings: tuple[Timing, ...] = ()
    part: Count = 0
    parts: Count = 1
    """Outputs of several end steps arrive as parts; the answer is whole when all are there."""


class RouteRequest(Message, tag="route-request", frozen=True):
    """A client asks where a service is served."""

    request: Id
    service: Name
    reply_to: str = ""


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
    inputs: tuple[str, ...] = ()
