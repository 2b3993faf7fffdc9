"""The machine under a simulated node: executors, downloads and sensors that are made up.

Executors take the time they are told and echo their inputs. What a job's input asks for (its bytes
begin with `MARK`) is echoed with a number of its own for each execution, so that two executions of
one job can be told apart by their answers.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from controller.twin.calibrations import Calibrations
from device_agent.core import commands, events
from device_agent.core.memories import digest_of, tell_of, whole_of
from protocols.errors import Blame
from protocols.manifest import Manifest, Port, tensor_bytes
from protocols.messages import (
    LinkReport,
    LoadReport,
    MemoryRequest,
    MemoryState,
)
from protocols.messages.invocation import INLINE_MAX_BYTES, Blob, FailureCode, Tensor, Value
from protocols.messages.presence import ExecutorInfo, Inventory

if TYPE_CHECKING:
    from controller.twin.node import SimNode

MARK: Final = b"job"
STOP_MS: Final = 1
BLOB_MS: Final = 5
FIRST_PACE: Final = commands.SetPace(1000, 1000)
MAX_INSTANCES: Final = 64


class Shape(Struct, frozen=True):
    """What a simulated machine is and how fast it works."""

    cpu_count: int = 4
    memory_bytes: int = 4 << 30
    fetch_ms: int = 40
    start_ms: int = 30
    run_ms: tuple[int, int] = (1, 20)
    cpu_percent: tuple[float, float] = (5.0, 40.0)


class Cost(Struct, frozen=True):
    """What one run of a task takes: a floor, and an exponential tail up to the mean."""

    floor_ms: float
    mean_ms: float


UNKNOWN: Final = Cost(5.0, 5.0)
"""Of a task that nobody has measured and no author has described."""


def blank(port: Port) -> Value:
    """Return a value that fits a port, of zeros; an axis of any length has one element."""
    shape = tuple(max(1, axis) for axis in port.shape)
    size_bytes = tensor_bytes(port.dtype, shape)
    if size_bytes > INLINE_MAX_BYTES:
        return Blob(port.dtype, shape, f"sha256:{size_bytes:064x}", size_bytes)
    return Tensor(port.dtype, shape, bytes(size_bytes))


class Hands:
    """What a node's commands do."""

    def __init__(self, node: "SimNode", shape: Shape) -> None:
        self.shape = shape
        self.load_percent: float | None = None
        """The CPU load to show; None draws one."""
        self.loss_percent = 0.0
        """The loss of probes to show."""
        self.broken = False
        """Whether executors start nothing."""
        self.stumbling = False
        """Whether every third call fails."""
        self._node = node
        self._inventory = _made_up(shape)
        self._costs: Mapping[str, Cost] | None = None
        """Of each task, where the fleet is a real one."""
        self._cached: set[str] = set()
        self._instances: dict[str, tuple[str, Manifest]] = {}
        self._resting: set[str] = set()
        """Instances that hold no memory."""
        self.memories: dict[str, bytes] = {}
        """By task, on the disk."""
        self._bases: dict[str, bytes] = {}
        self.programs: dict[str, Cost] = {}
        """What runs of a program take here, by its digest, where programs differ."""
        self._calibrations = Calibrations(node, shape.start_ms, self.run_ms)
        self._pace = 0
        self._until_whole = 0
        self._executions = 0

    def is_like(self, inventory: Inventory, costs: Mapping[str, Cost]) -> None:
        """Be a real machine, on which runs of tasks take what they cost."""
        self._inventory, self._costs = inventory, costs

    @property
    def inventory(self) -> Inventory:
        """What the machine is."""
        return self._inventory

    @property
    def task_bytes(self) -> int:
        """How much memory tasks may take together."""
        return self._inventory.task_memory_bytes

    def held_bytes(self) -> int:
        """Return the memory that the tasks held here may take, but for what those give up who rest.

        What leaves does not count: a released task that finishes what runs, and an old generation
        beside its new one.
        """
        held = self._node.core.tasks.held
        newest = {
            task: 0 if instance in self._resting else manifest.limits.memory_bytes
            for instance, (task, manifest) in self._instances.items()
            if task in held and not held[task].released
        }
        return sum(newest.values())

    def begin(self) -> None:
        """Begin a life of the node: nothing runs, the cache is still there."""
        self._instances.clear()
        self._resting.clear()
        self._bases.clear()
        self._calibrations.begin()
        self._pace += 1
        self._until_whole = 0
        self._node.later(FIRST_PACE.sample_ms, partial(self._sample, self._pace, FIRST_PACE))

    def act(self, command: commands.Command) -> None:
        """Do what a command asks of the machine. Raises RuntimeError for one it does not know."""
        node = self._node
        match command:
            case commands.FetchArtifact(digest=digest, tenant=tenant):
                delay_ms = 1 if digest in self._cached else self.shape.fetch_ms
                self._cached.add(digest)
                node.later(delay_ms, partial(node.tell, events.ArtifactReady(digest, tenant)))
            case commands.StartInstance(instance=instance, task=task, manifest=manifest):
                self._instances[instance] = (task, manifest)
                self._wake(instance)
                node.later(self.shape.start_ms, partial(self._started, instance))
            case commands.StopInstance(instance=instance):
                self._instances.pop(instance, None)
                self._resting.discard(instance)
                node.later(STOP_MS, partial(node.tell, events.InstanceStopped(instance)))
            case commands.Execute() | commands.ExecuteTogether():
                self._execute(command)
            case commands.RunCalibration() | commands.EndCalibration():
                self._calibrations.act(command, broken=self.broken)
            case commands.SetPace():
                self._pace += 1
                self._until_whole = 0
                node.later(command.sample_ms, partial(self._sample, self._pace, command))
            case commands.RestInstance(instance=instance):
                node.later(STOP_MS, partial(self._rest, instance))
            case commands.WakeInstance(instance=instance):
                self._wake(instance)
            case (
                commands.CancelCall()
                | commands.ExpectCall()
                | commands.DropValues()
                | commands.HurryBlob()
                | commands.TuneInstance()
                | commands.WriteLog()
                | commands.ReadLog()
                | commands.WatchCells()
                | commands.Warn()
            ):
                pass
            case _:
                self._move(command)

    def _move(self, command: commands.Command) -> None:
        """Bring a value or a memory somewhere, or read one."""
        node = self._node
        match command:
            case commands.ReadMemory(request=request, instance=instance):
                node.later(BLOB_MS, partial(self._read_memory, request, instance))
                return
            case commands.WriteMemory(instance=instance, state=state):
                node.later(BLOB_MS, partial(self._write_memory, instance, state))
                return
            case commands.FetchBlob(digest=digest):
                done: events.Event = events.BlobReady(digest)
            case commands.PushBlob(digest=digest):
                done = events.BlobPushed(digest)
            case commands.ReadSource(service=service, input=name, dtype=dtype, shape=shape):
                done = events.SourceRead(service, name, blank(Port(name, dtype, shape)))
            case commands.StoreValue(key=key, value=value):
                blob = Blob(value.dtype, value.shape, f"sha256:{len(key):064x}", len(value.data))
                done = events.Stored(key, blob)
            case _:
                raise RuntimeError(f"the twin does not know how to {type(command).__name__}")
        node.later(BLOB_MS, partial(node.tell, done))

    def break_down(self) -> None:
        """Have every executor die by itself."""
        for instance in list(self._instances):
            del self._instances[instance]
            self._node.tell(events.InstanceExited(instance, "killed by the kernel"))

    def _wake(self, instance: str) -> None:
        self._resting.discard(instance)
        node = self._node
        node.checkers.capacity(node.name, self.held_bytes(), self.task_bytes)

    def _rest(self, instance: str) -> None:
        """Give up the memory of an instance, unless it has been called meanwhile."""
        known = self._node.core.upkeep.instances.get(instance)
        if known is not None and known.resting:
            self._resting.add(instance)
        self._node.tell(events.InstanceRested(instance))

    def _started(self, instance: str) -> None:
        if instance not in self._instances:
            return
        if self.broken:
            text = "the runtime does not start"
            self._node.tell(
                events.InstanceFailed(instance, text, Blame.ENVIRONMENT, retryable=False)
            )
        else:
            self._node.tell(events.InstanceReady(instance))

    def _execute(self, command: commands.Execute | commands.ExecuteTogether) -> None:
        node = self._node
        if isinstance(command, commands.ExecuteTogether):
            for one in command.calls:
                self._execute(one)
            return
        self._executions += 1
        held = self._instances.get(command.instance)
        if held is None:
            return
        task, manifest = held
        if command.instance in self._resting:
            self._wake(command.instance)
        run_ms = self.run_ms(task, manifest)
        node.checkers.ran(node.name, task)
        if self.stumbling and not self._executions % 3:
            failed = events.ExecutorFailed(
                command.call, FailureCode.EXECUTOR, Blame.ENVIRONMENT, "stumbled", retryable=True
            )
            node.later(run_ms, partial(node.tell, failed))
            return
        if self._costs is None:
            value = self._echo(next(iter(command.inputs.values())))
            outputs = {port.name: value for port in manifest.outputs}
        else:
            outputs = {port.name: blank(port) for port in manifest.outputs}
        done = events.ExecutorDone(command.call, outputs, int(run_ms * 1000))
        node.later(run_ms, partial(self._done, command.instance, done))

    def _done(self, name: str, done: events.ExecutorDone) -> None:
        """End a run; what it remembers is there before anybody hears of it."""
        held = self._instances.get(name)
        if held is not None and held[1].remembers:
            instance = self._node.core.upkeep.instances.get(name)
            epoch = instance.epoch if instance is not None else 0
            added = self._node.checkers.memories.add(held[0], self._node.name, epoch)
            self.memories[held[0]] = self.memories.get(held[0], b"") + added
        self._node.tell(done)

    def _read_memory(self, request: MemoryRequest, instance: str) -> None:
        said = MemoryState(request.task, request.epoch, final=not instance)
        whole = self.memories.get(request.task, b"")
        self._node.tell(events.MemoryRead(tell_of(said, whole, request)))

    def _write_memory(self, instance: str, state: MemoryState) -> None:
        held, text = self._instances.get(instance), ""
        if held is None:
            text = "the instance has just ended"
        elif state.digest is not None:
            whole = whole_of(state, self._bases.get(instance, b""))
            if digest_of(whole) == state.digest:
                self.memories[held[0]] = self._bases[instance] = whole
            else:
                text = "it is not what follows on what was given before"
        self._node.tell(events.MemoryWritten(instance, state, text))

    def run_ms(self, task: str, manifest: Manifest) -> float:
        """Draw what a run of a task takes."""
        dice = self._node.world.dice
        cost = self.programs.get(manifest.artifact.digest)
        if cost is not None:
            return cost.floor_ms + dice.expovariate(1.0) * (cost.mean_ms - cost.floor_ms)
        if self._costs is None:
            return dice.randint(*self.shape.run_ms)
        cost = self._costs.get(task, UNKNOWN)
        tail_ms = cost.mean_ms - cost.floor_ms
        return cost.floor_ms + (dice.expovariate(1 / tail_ms) if tail_ms > 0 else 0.0)

    def _echo(self, value: Value) -> Value:
        if isinstance(value, Blob) or not value.data.startswith(MARK):
            return value
        data = MARK + f"{self._node.name}/{self._executions}".encode()
        return Tensor(value.dtype, (len(data),), data)

    def _sample(self, pace: int, command: commands.SetPace) -> None:
        if pace != self._pace:
            return
        node = self._node
        cpu_percent = self.load_percent
        if cpu_percent is None:
            cpu_percent = node.world.dice.uniform(*self.shape.cpu_percent)
        now_ms = int(node.clock.now_ms)
        load = LoadReport(
            now_ms,
            cpu_percent,
            memory_used_bytes=self.task_bytes,
            memory_available_bytes=self.task_bytes,
        )
        link = LinkReport(
            now_ms, "eth0", "wired", carrier=True, round_trip_ms=2.0,
            loss_percent=self.loss_percent,
        )  # fmt: skip
        node.tell(events.Sampled(load))
        if self._until_whole:
            self._until_whole -= 1
        else:
            self._until_whole = command.whole_every - 1
            node.tell(events.LinkSampled(link))
        node.later(command.sample_ms, partial(self._sample, pace, command))


def _made_up(shape: Shape) -> Inventory:
    return Inventory(
        "simulated",
        "x86_64",
        "linux",
        shape.cpu_count,
        shape.memory_bytes,
        32 << 30,
        executors=(ExecutorInfo("wasm", "sim"), ExecutorInfo("onnx", "sim")),
        task_memory_bytes=shape.memory_bytes // 2,
        max_instances=MAX_INSTANCES,
    )
