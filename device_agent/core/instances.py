"""Instances of tasks as the core holds them, and the task around them."""

from collections import deque
from typing import Any, Final

from msgspec import Struct, field

from device_agent.core.lifecycle import Entry, LifecycleEvent, step
from protocols.errors import Blame
from protocols.manifest import Manifest, Port
from protocols.messages.task import Assign, InstanceState

STORY_LENGTH: Final = 32
"""Entries of a task's story; older ones are forgotten."""


class Instance(Struct, eq=False):
    """One try to run one generation of a task."""

    name: str
    """What the executor knows it by; every start has a new one."""
    task: str
    epoch: int
    generation: int
    manifest: Manifest
    replicas: int
    ports: dict[str, Port]
    required: frozenset[str]
    """Ports that every invocation has to bring."""
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
    memory_bytes: int | None = None
    stopping: bool = False
    """The executor was told to end it."""
    running: int = 0
    """Calls that the executor has and has not answered."""
    fetching: int = 0
    """Jobs whose large inputs are on their way."""
    queue: deque[Any] = field(default_factory=deque)
    """Jobs of `requests` that wait for a worker."""

    @property
    def idle(self) -> bool:
        """Whether it runs nothing and nothing waits for it."""
        return self.running == 0 and self.fetching == 0 and not self.queue


class Held(Struct, eq=False):
    """A task that this node holds: what serves, what is prepared beside it, what drains."""

    assign: Assign
    """The newest that was accepted."""
    current: Instance | None = None
    """Serves, or is on its way to."""
    coming: Instance | None = None
    """A newer generation, until it is ready to take over."""
    retiring: list[Instance] = field(default_factory=list)
    released: bool = False
    story: deque[Entry] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))

    @property
    def shown(self) -> Instance | None:
        """The instance whose state is the task's status: the newest one."""
        return self.coming or self.current


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
        replicas=assign.replicas,
        ports={port.name: port for port in manifest.inputs if port.name not in constants},
        required=frozenset(port.name for port in manifest.inputs) - constants,
    )


def move(held: Held, instance: Instance, event: LifecycleEvent, cause: str) -> None:
    """Take a step of the lifecycle and note it in the task's story. Raises TonaBug."""
    instance.state = step(instance.state, event, instance.task, held.story)
    told = f"{event.value} of epoch {instance.epoch}"
    held.story.append(Entry(instance.state, told, cause))


def digests(manifest: Manifest) -> dict[str, int]:
    """Return the size in bytes of every artifact that a task needs, by digest."""
    needed = {manifest.artifact.digest: manifest.artifact.size_bytes}
    for constant in manifest.constants:
        needed[constant.artifact.digest] = constant.artifact.size_bytes
    return needed
