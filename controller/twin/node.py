"""A simulated node: the device agent's own core, on a machine and executors that are made up.

Executors take the time they are told and echo their inputs; the journal survives a kill, all else
is gone with the process. Downloads always succeed while the node is connected.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from msgspec import Struct

from controller.twin.world import Network, World
from device_agent.core import commands, events
from device_agent.core.core import Core
from protocols.codec import VERSION, Frame
from protocols.errors import Blame
from protocols.manifest import Manifest
from protocols.messages import (
    Assign,
    Body,
    Death,
    LinkReport,
    LoadReport,
    Probe,
)
from protocols.messages.presence import ExecutorInfo, Inventory
from protocols.topics import Channel, Party, Topic, build, parse

WILL_DELAY_MS: Final = 5


class Shape(Struct, frozen=True):
    """What a simulated machine is and how fast it works."""

    cpu_count: int = 4
    memory_bytes: int = 4 << 30
    fetch_ms: int = 40
    start_ms: int = 30
    run_ms: tuple[int, int] = (1, 20)
    cpu_percent: tuple[float, float] = (5.0, 40.0)


class SimNode:
    """One device: a core that can be killed, restarted and cut off."""

    def __init__(
        self,
        name: str,
        cell: str,
        world: World,
        network: Network,
        shape: Shape,
        on_run: Callable[[str, str, int, str], None],
    ) -> None:
        self.name = name
        self.cell = cell
        self.world = world
        self.network = network
        self.shape = shape
        self.alive = False
        self.load_percent: float | None = None
        """Set by a scenario: the CPU load to show; None draws one."""
        self.broken = False
        """Set by a scenario: whether executors start nothing."""
        self._on_run = on_run
        """Told (node, task, epoch, request) of every execution, for the checkers."""
        self._journal: dict[str, Assign] = {}
        self._tombstones: dict[str, int] = {}
        self._incarnation = 0
        self._life = 0
        self._number = 0
        self._cached: set[str] = set()
        self._instances: dict[str, tuple[str, Manifest]] = {}
        self._wake_ms: float | None = None
        self._pace = 0
        self._core: Core | None = None

    @property
    def core(self) -> Core:
        """The running core."""
        if self._core is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._core

    def held_bytes(self) -> int:
        """Return the memory that the tasks of this node may take.

        A new generation beside its old one counts alone: the old one leaves.
        """
        newest = {task: manifest.limits.memory_bytes for task, manifest in self._instances.values()}
        return sum(newest.values())

    # Life.

    def start(self) -> None:
        """Boot: restore the journal, connect."""
        self._life += 1
        self.alive = True
        self._instances.clear()
        self._wake_ms = None
        inventory = Inventory(
            "simulated",
            "x86_64",
            "linux",
            self.shape.cpu_count,
            self.shape.memory_bytes,
            32 << 30,
            executors=(ExecutorInfo("wasm", "sim"), ExecutorInfo("onnx", "sim")),
            task_memory_bytes=self.shape.memory_bytes // 2,
            max_instances=64,
        )
        self._core = Core(
            node=self.name,
            agent_version="sim",
            boot_id=f"boot-{self._life}",
            inventory=inventory,
        )
        self._tell(events.Restored(tuple(self._journal.values()), tuple(self._tombstones.items())))
        self._connect()
        self._later(1000, partial(self._sample, self._pace))

    def kill(self) -> None:
        """End the process at once; the broker says its will."""
        incarnation, self._core, self.alive = self._incarnation, None, False
        self._life += 1
        self.network.leave(self.name)
        self.world.after(WILL_DELAY_MS, partial(self._will, incarnation))

    def cut(self, *, off: bool) -> None:
        """Take the link away, or give it back; the process lives on."""
        self.network.cut(self.name, off=off)
        if not self.alive:
            return
        if off:
            self.network.leave(self.name)
            self._tell(events.Disconnected("cut"))
        else:
            self._connect()

    def shut_down(self) -> None:
        """Ask the daemon to end in order."""
        self._tell(events.ShutDown("asked to"))

    def _will(self, incarnation: int) -> None:
        self._publish(self._own(Channel.PRESENCE), Death("will"), "will", incarnation)

    def _connect(self) -> None:
        self._incarnation += 1
        self._number = 0
        for channel in (Channel.COMMAND, Channel.INVOKE):
            self.network.listen(self.name, self._own(channel), self._hear)
        self._tell(events.Connected(self._incarnation, self.world.dice.random()))

    def _own(self, channel: Channel) -> Topic:
        return build(self.cell, Party.NODE, self.name, channel)

    def _later(self, delay_ms: float, action: Callable[[], None]) -> None:
        life = self._life

        def run() -> None:
            if self._life == life:
                action()

        self.world.after(round(delay_ms), run)

    # Events in, commands out.

    def _hear(self, topic: Topic, frame: Frame) -> None:
        self._tell(
            events.Received(
                topic.channel,
                frame.sender,
                frame.incarnation,
                frame.number,
                frame.tenant,
                frame.cause,
                frame.body,
            )
        )

    def _tell(self, event: events.Event) -> None:
        if self._core is None:
            return
        for command in self._core.handle(event, self.world.now_ms):
            self._do(command)
        due_ms = self._core.next_due_ms if self._core is not None else None
        if due_ms is not None and (self._wake_ms is None or due_ms < self._wake_ms):
            self._wake_ms = due_ms
            self._later(max(0.0, due_ms - self.world.now_ms) + 1, self._tick)

    def _tick(self) -> None:
        self._wake_ms = None
        self._tell(events.Tick())

    def _do(self, command: commands.Command) -> None:  # noqa: C901, PLR0912 - one arm each
        match command:
            case commands.Say(channel=channel, body=body, cause=cause):
                if not isinstance(body, Probe):
                    self._publish(self._own(channel), body, cause)
            case commands.Forward(node=node, body=body, cause=cause):
                self._publish(build(self.cell, Party.NODE, node, Channel.INVOKE), body, cause)
            case commands.Reply(topic=topic, body=body, cause=cause):
                self._publish(parse(topic), body, cause)
            case commands.Keep(assign=assign):
                self._journal[assign.task] = assign
            case commands.Forget(task=task, epoch=epoch):
                self._journal.pop(task, None)
                self._tombstones[task] = epoch
            case commands.FetchArtifact(digest=digest):
                delay_ms = 1 if digest in self._cached else self.shape.fetch_ms
                self._cached.add(digest)
                self._later(delay_ms, partial(self._tell, events.ArtifactReady(digest)))
            case commands.StartInstance(instance=instance, task=task, manifest=manifest):
                self._instances[instance] = (task, manifest)
                self._later(self.shape.start_ms, partial(self._started, instance))
            case commands.StopInstance(instance=instance):
                self._instances.pop(instance, None)
                self._later(1, partial(self._tell, events.InstanceStopped(instance)))
            case commands.Execute():
                self._execute(command)
            case commands.FetchBlob(digest=digest):
                self._later(5, partial(self._tell, events.BlobReady(digest)))
            case commands.PushBlob(digest=digest):
                self._later(5, partial(self._tell, events.BlobPushed(digest)))
            case commands.SetPace(sample_ms=sample_ms):
                self._pace += 1
                self._later(sample_ms, partial(self._sample, self._pace, sample_ms))
            case commands.Exit():
                self._later(0, self._exit)
            case commands.CancelCall():
                pass

    def _started(self, instance: str) -> None:
        if self.broken:
            text = "the runtime does not start"
            failed = events.InstanceFailed(instance, text, Blame.ENVIRONMENT, retryable=False)
            self._tell(failed)
        else:
            self._tell(events.InstanceReady(instance))

    def _exit(self) -> None:
        self._core, self.alive = None, False
        self._life += 1
        self.network.leave(self.name)

    def _execute(self, command: commands.Execute) -> None:
        task, manifest = self._instances[command.instance]
        run_ms = self.world.dice.randint(*self.shape.run_ms)
        # A released task is forgotten by the journal before its last call has run.
        held = self._journal.get(task)
        epoch = held.epoch if held is not None else self._tombstones[task]
        self._on_run(self.name, task, epoch, command.call)
        value = next(iter(command.inputs.values()))
        outputs = {port.name: value for port in manifest.outputs}
        done = events.ExecutorDone(command.call, outputs, run_ms * 1000)
        self._later(run_ms, partial(self._tell, done))

    def _publish(
        self, topic: Topic, body: Body, cause: str, incarnation: int | None = None
    ) -> None:
        self._number += 1
        frame = Frame(
            VERSION,
            self.name,
            self._incarnation if incarnation is None else incarnation,
            self._number,
            "default",
            cause[:128],
            body,
        )
        self.network.publish(self.name, topic, frame)

    def _sample(self, pace: int, sample_ms: int = 1000) -> None:
        if pace != self._pace:
            return
        cpu_percent = self.load_percent
        if cpu_percent is None:
            cpu_percent = self.world.dice.uniform(*self.shape.cpu_percent)
        available = self.shape.memory_bytes // 2
        now_ms = self.world.now_ms
        load = LoadReport(
            now_ms, cpu_percent, memory_used_bytes=available, memory_available_bytes=available
        )
        self._tell(events.Sampled(load))
        self._tell(events.LinkSampled(LinkReport(now_ms, "eth0", "wired", carrier=True)))
        self._later(sample_ms, partial(self._sample, pace, sample_ms))
