"""A request as this node knows it, and its steps on the way through: what `requests` keeps."""

from enum import StrEnum

from msgspec import Struct, field

from device_agent.core.instances import Instance
from protocols.messages.invocation import Failure, Plan, Step, Timing, Value


class Phase(StrEnum):
    """Where a step of a request stands."""

    FETCHING = "fetching its inputs"
    QUEUED = "queued"
    RUNNING = "running"
    DEAD = "dead"


class Answer(Struct, eq=False):
    """The outputs of a step that has run."""

    outputs: dict[str, Value]
    timings: tuple[Timing, ...]
    pushed: set[str] = field(default_factory=set)
    """Digests of the large ones that lie in the cell's store."""


class Waiting(Struct, eq=False):
    """A step of which some inputs are there."""

    inputs: dict[str, Value] = field(default_factory=dict)
    timings: tuple[Timing, ...] = ()


class Request(Struct, eq=False):
    """One request: live while a step of it is under way here, then finished and remembered."""

    id: str
    attempt: int
    plan: Plan
    reply_to: str
    correlation: bytes
    deadline_ms: float
    cause: str
    tenant: str
    size_bytes: int = 0
    """Inline tensors that it holds."""
    ran: bool = False
    """Whether a step was executed, so that remembering it spares work."""
    waiting: dict[str, Waiting] = field(default_factory=dict)
    jobs: dict[str, "Job"] = field(default_factory=dict)
    pushing: dict[str, set[str]] = field(default_factory=dict)
    """Digests that each answered step still waits to have pushed."""
    done: dict[str, Answer] = field(default_factory=dict)
    failure: Failure | None = None
    repeated: set[str] = field(default_factory=set)
    """Steps whose answer the delivery in hand has already repeated; `""`: it was accepted again."""

    @property
    def live(self) -> bool:
        """Whether anything of it is under way here."""
        return bool(self.jobs or self.waiting or self.pushing)


class Job(Struct, eq=False):
    """One step of a request with all its inputs."""

    request: Request
    step: Step
    instance: Instance
    inputs: dict[str, Value]
    timings: tuple[Timing, ...]
    since_ms: float
    phase: Phase = Phase.QUEUED
    call: str = ""
    wanted: set[str] = field(default_factory=set)
    """Large inputs that are not in the blob folder yet, by digest."""
    fetch_us: int = 0
    queue_us: int = 0
