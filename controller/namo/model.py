"""The structs of a use case: what a document may say, and nothing else.

The reader walks these definitions, so they are the one description of the format.
"""

from typing import Annotated, Final

from msgspec import Meta, Struct, field

from controller.namo.reader import STEP_PATTERN
from protocols.base import Name, Shape
from protocols.manifest import MAX_CONSTANTS, MAX_PORTS, ArtifactRef, Dtype, ExecutorKind, Limits
from protocols.messages.hierarchy import Demand
from protocols.messages.invocation import MAX_STEPS
from protocols.messages.task import LostPolicy
from protocols.qoais import Bound, ServiceKind

MAX_SERVICES: Final = 16

Step = Annotated[str, Meta(pattern=STEP_PATTERN)]


class Input(Struct, frozen=True):
    """What feeds a port: `request.NAME`, or `TASK.PORT`, whose type then is known."""

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


class Task(Struct, frozen=True):
    """One step of a service."""

    name: Step
    executor: ExecutorKind
    artifact: ArtifactRef
    inputs: Annotated[dict[Name, Input], Meta(min_length=1, max_length=MAX_PORTS)]
    outputs: Annotated[dict[Name, Output], Meta(min_length=1, max_length=MAX_PORTS)]
    constants: Annotated[dict[Name, Constant], Meta(max_length=MAX_CONSTANTS)] = {}
    limits: Limits = Limits()
    expected_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    """The author's prediction of one run; without it, one by kind stands in."""
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    nodes: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()
    demand: Demand = Demand()
    policy: LostPolicy = LostPolicy()
    providers: Annotated[tuple[str, ...], Meta(max_length=16)] = ()


class Range(Struct, frozen=True):
    """One side of a zone, by the name of its indicator."""

    at_most: float | None = None
    at_least: float | None = None
    level: str | None = None


class Agreement(Struct, frozen=True):
    """SLA: the zone (`bounds`, or the same as a table `zone`) and the share it must hold for."""

    satisfaction_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0
    bounds: Annotated[tuple[Bound, ...], Meta(max_length=64)] = ()
    zone: Annotated[dict[str, Range], Meta(max_length=64)] = {}

    def all_bounds(self) -> list[Bound]:
        """Return the bounds of both notations."""
        named = [
            Bound(name, at_most=one.at_most, at_least=one.at_least, level=one.level)
            for name, one in self.zone.items()
        ]
        return [*self.bounds, *named]


class Service(Struct, frozen=True):
    """A DAG of tasks, and which of their ports are the answer (`NAME = "TASK.PORT"`)."""

    name: Name
    kind: ServiceKind
    outputs: Annotated[dict[Name, str], Meta(min_length=1, max_length=MAX_PORTS)]
    tasks: Annotated[tuple[Task, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    sla: Agreement = Agreement()
    spares: Annotated[int, Meta(ge=0, le=64)] = 1


class UseCase(Struct, frozen=True):
    """What a user, another system or the network itself asks for."""

    name: Name
    services: Annotated[tuple[Service, ...], Meta(min_length=1, max_length=MAX_SERVICES)]
    tenant: Name | None = None
    description: Annotated[str, Meta(max_length=2048)] = ""
