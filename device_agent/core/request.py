"""A request as this node knows it, and its steps on the way through: what `requests` keeps."""

from enum import StrEnum

from msgspec import Struct, field

from device_agent.core.instances import Batch, Instance
from device_agent.core.queue import Rank, Urgency
from protocols.messages.invocation import Failure, Plan, Step, Tensor, Timing, Value
from protocols.messages.quality import PRIORITY_DEFAULT


class Phase(StrEnum):
    """Where a step of a request stands."""

    FETCHING = "fetching its inputs"
    QUEUED = "queued"
    RUNNING = "running"
    DEAD = "dead"


class Given(Struct, frozen=True):
    """What a source gives to the steps that it feeds."""

    source: str
    values: dict[str, Value]
    timings: tuple[Timing, ...]
    born_ms: float
    """When the request reached its first node, on this node's clock."""


class Answer(Struct, eq=False):
    """The outputs of a step that has run."""

    outputs: dict[str, Value]
    timings: tuple[Timing, ...]
    born_ms: float
    """Of the input that was longest on its way."""
    instance: Instance
    packed: dict[str, Tensor] = field(default_factory=dict)
    """Those of the outputs that are worth packing, once it was tried."""
    tried: bool = False
    pushed: set[str] = field(default_factory=set)
    """Digests of the large ones that lie in the cell's store."""


class Waiting(Struct, eq=False):
    """A step of which some inputs are there."""

    inputs: dict[str, Value] = field(default_factory=dict)
    timings: tuple[Timing, ...] = ()
    born_ms: float = float("inf")


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
    user: str = ""
    """The client's name; empty for a job."""
    priority: int = PRIORITY_DEFAULT
    answer_encoding: str = ""
    """What the client can unpack."""
    job: bool = False
    """Whether it runs a job: its end goes to the scheduler instead of a client."""
    agent: str = ""
    """The AI agent for which it is asked."""
    cell: str = ""
    """Where its present attempt was said."""
    size_bytes: int = 0
    """Inline tensors that it holds."""
    ran: bool = False
    """Whether a step was executed, so that remembering it spares work."""
    waiting: dict[str, Waiting] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    """Sizes in bytes of the large values that were made for it here and are still there."""
    runs: dict[str, "Run"] = field(default_factory=dict)
    pushing: dict[str, set[str]] = field(default_factory=dict)
    """Digests, or names, that each answered step still waits to have pushed."""
    done: dict[str, Answer] = field(default_factory=dict)
    failure: Failure | None = None
    guest: "Run | None" = None
    """The run whose guest asked for this one step and waits for it; None: a client asked."""
    repeated: set[str] = field(default_factory=set)
    """Steps whose answer the delivery in hand has already repeated; `""`: it was accepted again."""

    @property
    def urgency(self) -> Urgency:
        """Its place among others, in all that is done for it."""
        return -self.priority, self.deadline_ms

    @property
    def live(self) -> bool:
        """Whether anything of it is under way here."""
        return bool(self.runs or self.waiting or self.pushing)

    @property
    def untouched(self) -> bool:
        """Whether it only waits for workers: to let go of it costs no work that was done."""
        return not (self.ran or self.done or self.waiting or self.pushing) and all(
            run.phase is Phase.QUEUED for run in self.runs.values()
        )


class Run(Struct, eq=False):
    """One step of a request with all its inputs."""

    request: Request
    step: Step
    instance: Instance
    inputs: dict[str, Value]
    timings: tuple[Timing, ...]
    born_ms: float
    since_ms: float
    phase: Phase = Phase.QUEUED
    call: str = ""
    rank: Rank = (0, 0.0, 0)
    """Its place in the queue of its instance."""
    wanted: set[str] = field(default_factory=set)
    """Large inputs that are not in the blob folder yet, by digest."""
    batch: Batch | None = None
    """The run of a worker that answers it, once it has begun."""
    fetch_us: int = 0
    queue_us: int = 0
    inferring: Request | None = None
    """What its guest waits for."""
