"""Instances of tasks as the core holds them, and the task around them."""

from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from device_agent.core.lifecycle import Entry, LifecycleEvent, step
from device_agent.core.queue import Queue
from protocols.errors import Blame
from protocols.manifest import Manifest, Port
from protocols.messages.quality import Tuning
from protocols.messages.task import Assign, Deviceless, InstanceState, Origin

if TYPE_CHECKING:
    from device_agent.core.batches import Pace

STORY_LENGTH: Final = 32
"""Entries of a task's story; older ones are forgotten."""
NO_EPOCH: Final = -1
LEARNING: Final = 0.25
"""Weight of the newest run in the mean of an instance's runs."""


class Batch(Struct, eq=False):
    """One run of a worker, and the calls that it answers."""

    began_ms: float
    calls: int = 1
    rows: int = 1
    expected_ms: float = 0.0
    """0: as the mean of its instance."""
    left: int = 1
    """Calls that are not answered."""


class Instance(Struct, eq=False):
    """One try to run one generation and variant of a task."""

    name: str
    """What the executor knows it by; every start has a new one."""
    task: str
    epoch: int
    generation: int
    manifest: Manifest
    wanted: int
    """Workers side by side that were asked for."""
    tuning: Tuning
    ports: dict[str, Port]
    required: frozenset[str]
    """Ports that every invocation has to bring."""
    tenant: str = "default"
    deviceless: Deviceless | None = None
    """How it follows the requests; None: it is always there, or fresh for each run."""
    fresh: bool = False
    """Whether the executor loads it for each run, so that nothing of it rests or wakes."""
    resting: bool = False
    parked: bool = False
    """Whether it waits for memory (`room`)."""
    awaits: Origin | None = None
    """Whose memory it waits for before it runs anything; None: it has its own."""
    remembers: str = ""
    """Digest of what it has of that; empty: nothing."""
    grown: int = 1
    """Workers that a deviceless instance has for now."""
    idle_since_ms: float = 0.0
    replicas: int = 1
    """Workers that there is room for."""
    former: int = NO_EPOCH
    """The epoch before this one, whose requests are served until `former_until_ms`."""
    former_until_ms: float = 0.0
    state: InstanceState = InstanceState.FETCHING
    wanting: set[str] = field(default_factory=set)
    """Digests that are still being fetched."""
    troubles: list[float] = field(default_factory=list)
    """When trouble came, within the window."""
    offline_fetches: int = 0
    """Failed fetches while no scheduler was in reach; they cost no try."""
    restarts: int = 0
    reason: str = ""
    blame: Blame | None = None
    remark: str = ""
    """What the executor says of how it runs: a share or a provider that it cannot give."""
    memory_bytes: int | None = None
    stopping: bool = False
    """The executor was told to end it."""
    running: "dict[str, Batch]" = field(default_factory=dict)
    """Calls that the executor has and has not answered: the run of each."""
    busy: int = 0
    """Workers that run something."""
    fetching: int = 0
    """Runs whose large inputs are on their way."""
    queue: Queue = field(default_factory=Queue)
    """Runs of `requests` that wait for a worker."""
    mean_run_ms: float = 0.0
    """Of the last runs of one call each; 0: none has ended."""
    pace: "Pace | None" = None
    """What runs take that several calls share; None: none do."""

    @property
    def idle(self) -> bool:
        """Whether it runs nothing and nothing waits for it."""
        return not self.running and self.fetching == 0 and not self.queue

    @property
    def workers(self) -> int:
        """How many calls may run side by side now."""
        return self.replicas if self.deviceless is None else min(self.grown, self.replicas)

    @property
    def free(self) -> bool:
        """Whether one more call may run now."""
        return self.awaits is None and self.busy < self.workers

    def serves(self, epoch: int, now_ms: float) -> bool:
        """Whether requests of an epoch may run here now."""
        if self.state is not InstanceState.READY:
            return False
        return epoch == self.epoch or (epoch == self.former and now_ms < self.former_until_ms)

    def learn(self, run_ms: float) -> None:
        """Take the length of one more run into the mean."""
        mean = self.mean_run_ms
        self.mean_run_ms = run_ms if mean == 0.0 else mean + LEARNING * (run_ms - mean)

    def wait_ms(self, ahead: int, now_ms: float) -> float:
        """Estimate how long a run waits that has so many before it in the queue."""
        mean = self.mean_run_ms
        left_ms = sum(
            max(0.0, (one.expected_ms or mean) - (now_ms - one.began_ms)) / one.calls
            for one in self.running.values()
        )
        share_ms = (self.pace.share_ms if self.pace is not None else 0.0) or mean
        # Those that may be added count: they are, as soon as calls wait.
        return (left_ms + ahead * share_ms) / self.replicas


class Held(Struct, eq=False):
    """A task that this node holds: what serves, what is prepared beside it, what drains."""

    assign: Assign
    """The newest that was accepted, as it is tuned now."""
    current: Instance | None = None
    """Serves, or is on its way to."""
    coming: Instance | None = None
    """Another generation or variant, until it is ready to take over."""
    older: Assign | None = None
    """What the present one runs, while another is coming: a reboot must not end it."""
    leaving: Instance | None = None
    """What served before the present one, for requests of its epoch that are on their way."""
    retiring: list[Instance] = field(default_factory=list)
    released: bool = False
    fresh: bool = False
    """Whether it was never ready since it was assigned, so that its journal entry may be the first.
    """
    tuned: tuple[int, int] = (0, 0)
    """Incarnation of its sender and number of the last Tune that was taken."""
    story: deque[Entry] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))

    @property
    def shown(self) -> Instance | None:
        """The instance whose state is the task's status: the newest one."""
        return self.coming or self.current

    @property
    def serving_epoch(self) -> int:
        """The epoch that an older instance serves while another is prepared; 0: none."""
        old = self.current
        if self.coming is None or old is None or old.state is not InstanceState.READY:
            return 0
        return old.epoch

    def serving(self, epoch: int, now_ms: float) -> Instance | None:
        """Return the instance that may run requests of an epoch now."""
        for one in (self.current, self.leaving):
            if one is not None and one.serves(epoch, now_ms):
                return one
        return None


def instance_of(assign: Assign, name: str) -> Instance:
    """Return the first try at an assignment."""
    manifest = assign.manifest
    constants = {one.port for one in manifest.constants}
    return Instance(
        name=name,
        task=assign.task,
        epoch=assign.epoch,
        generation=assign.generation,
        manifest=manifest,
        wanted=replicas_of(assign),
        tuning=assign.tuning,
        ports={port.name: port for port in manifest.inputs if port.name not in constants},
        required=frozenset(port.name for port in manifest.inputs) - constants,
        tenant=assign.tenant,
        deviceless=_follows(assign),
        fresh=_is_fresh(assign),
        pace=_pace(manifest),
        awaits=assign.origin,
    )


def _follows(assign: Assign) -> Deviceless | None:
    return None if _is_fresh(assign) else assign.deviceless


def _is_fresh(assign: Assign) -> bool:
    return assign.deviceless is not None and assign.deviceless.fresh


def _pace(manifest: Manifest) -> "Pace | None":
    # What a model carries belongs to one call after the other.
    if manifest.batch <= 1 or manifest.carries:
        return None
    # Only nodes with such a model carry the code for it.
    from device_agent.core.batches import Pace  # noqa: PLC0415 - as said

    return Pace()


def replicas_of(assign: Assign) -> int:
    """Return how many workers side by side an assignment asks for."""
    return assign.tuning.replicas or assign.replicas


def runs_as(instance: Instance, assign: Assign) -> bool:
    """Whether an instance is what an assignment asks for, but for what can be tuned."""
    have, want = instance.tuning, assign.tuning
    return (
        instance.generation == assign.generation
        and instance.manifest == assign.manifest
        and instance.tenant == assign.tenant
        and (instance.deviceless, instance.fresh) == (_follows(assign), _is_fresh(assign))
        and (have.variant, have.threads, have.provider)
        == (want.variant, want.threads, want.provider)
    )


def move(held: Held, instance: Instance, event: LifecycleEvent, cause: str) -> None:
    """Take a step of the lifecycle and note it in the task's story. Raises TonaBug."""
    instance.state = step(instance.state, event, instance.task, held.story)
    told = f"{event.value} of epoch {instance.epoch}"
    held.story.append(Entry(instance.state, told, cause))


def digests(manifest: Manifest) -> dict[str, int]:
    """Return the size in bytes of every artifact that a task needs, by digest."""
    needed = {manifest.artifact.digest: manifest.artifact.size_bytes}
    for artifact in manifest.beside:
        needed[artifact.digest] = artifact.size_bytes
    return needed
