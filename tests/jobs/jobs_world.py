"""An anchor, a scheduler and nodes, wired in one process: every message, commit and crash by hand.

Messages are delivered one by one, oldest first; a test may lose them, hold commits back, kill and
start any of the parts, and let time pass.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct
from tests_support import INVENTORY, PORT, manifest

from controller.anchor.decider import Anchor
from controller.anchor.decider import Settings as AnchorSettings
from controller.decider import (
    Called,
    Event,
    Fired,
    Linked,
    Output,
    Received,
    Record,
    Send,
    ToInvoke,
    ToNode,
    ToRole,
    ToTopic,
)
from controller.records import JOB, TASK, JobRecord
from controller.scheduler.decider import Scheduler
from controller.scheduler.decider import Settings as SchedulerSettings
from device_agent.core import commands, events
from device_agent.core.core import Core
from device_agent.core.events import ExecutorFailed
from protocols.errors import Blame
from protocols.messages import (
    Assign,
    Invoke,
    JobAccepted,
    JobEnded,
    JobQuery,
    JobRun,
    JobStatus,
    JobSubmit,
    ServiceDelete,
    ServiceOrder,
)
from protocols.messages.hierarchy import TaskSpec
from protocols.messages.invocation import REQUEST, Edge, FailureCode, Tensor
from protocols.messages.sense import LoadReport
from protocols.qoais import ServiceKind
from protocols.topics import Channel
from tona.jobs import (
    Ended,
    Followed,
    JobHeard,
    Jobs,
    JobsOnline,
    JobsWake,
    JobsWoken,
    Opened,
    SendJob,
    Taken,
)

CLIENT = "app"
REPLY = f"tona/1/cell/client/{CLIENT}/reply"
OTHER = "ta-other"
TA, TS, NAMO = "ta-main", "ts-main", "namo-main"
STEPS_MAX = 200_000
ABOVE = 1_000_000
"""Epochs of a second anchor."""


def tensor(data: bytes = b"x") -> Tensor:
    return Tensor(PORT.dtype, (len(data),), data)


def submit(job: str = "j1", data: bytes = b"x", **more: Any) -> JobSubmit:
    return JobSubmit(job, "svc", {"x": tensor(data)}, REPLY, **more)


class Node:
    """A device core whose executor echoes when it is told to, or at once."""

    def __init__(self, name: str, world: "World") -> None:
        self.name = name
        self.world = world
        self.journal: dict[str, Assign] = {}
        self.incarnation = 0
        self.connected = False
        self.holds = False
        """Whether calls wait for `release`."""
        self.runs: list[str] = []
        """Jobs in the order in which they were executed."""
        self.fails: list[events.ExecutorFailed] = []
        """How the next calls fail; the call's name is filled in."""
        self.calls: dict[str, commands.Execute] = {}
        self.boots = 0
        self.core: Core | None = None

    def start(self) -> None:
        self.boots += 1
        self.calls.clear()
        self.core = Core(
            node=self.name, agent_version="0", boot_id=f"b{self.boots}", inventory=INVENTORY
        )
        self.tell(events.Restored(tuple(self.journal.values())))
        self.connect()

    def kill(self) -> None:
        self.core, self.connected = None, False

    def connect(self) -> None:
        self.incarnation += 1
        self.connected = True
        self.tell(events.Connected(self.incarnation))

    def disconnect(self) -> None:
        self.connected = False
        self.tell(events.Disconnected("cut"))

    def tell(self, event: events.Event) -> None:
        todo = [event]
        while todo and self.core is not None:
            for command in self.core.handle(todo.pop(0), self.world.now_ms):
                todo += self._do(command)

    def hear(self, channel: Channel, sender: str, body: Any) -> None:
        if self.connected:
            self.tell(events.Received(channel, sender, 1, 0, "default", "test", body))

    def release(self) -> None:
        """Let every call finish, and those that follow them."""
        while self.calls:
            self._finish(next(iter(self.calls.values())))

    def _do(self, command: commands.Command) -> list[events.Event]:  # noqa: C901, PLR0912 - one arm each
        match command:
            case commands.Say(channel=channel, body=body):
                if self.connected:
                    self.world.from_node(self, channel, body)
            case commands.Forward(node=node, body=body):
                if self.connected:
                    self.world.post(ToInvoke(node), body, self.name)
            case commands.Keep(assign=assign):
                self.journal[assign.task] = assign
            case commands.Forget(task=task):
                self.journal.pop(task, None)
            case commands.FetchArtifact(digest=digest, tenant=tenant):
                return [events.ArtifactReady(digest, tenant)]
            case commands.StartInstance(instance=instance):
                return [events.InstanceReady(instance)]
            case commands.StopInstance(instance=instance):
                return [events.InstanceStopped(instance)]
            case commands.Execute() if self.holds:
                self.calls[command.call] = command
            case commands.Execute():
                return [self._result(command)]
            case commands.CancelCall(call=call) if call in self.calls:
                del self.calls[call]
            case _:
                pass
        return []

    def _finish(self, command: commands.Execute) -> None:
        del self.calls[command.call]
        self.tell(self._result(command))

    def _result(self, command: commands.Execute) -> events.Event:
        data = next(iter(command.inputs.values()))
        self.runs.append(data.data.decode() if isinstance(data, Tensor) else "blob")
        if self.fails:
            told = self.fails.pop(0)
            return events.ExecutorFailed(
                command.call, told.code, told.blame, told.text, told.retryable
            )
        return events.ExecutorDone(command.call, {"x": data}, 100)


class App:
    """An application: the production core of the client, and what it was told of each job."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.core = Jobs(REPLY)
        self.taken: list[str] = []
        self.refused: dict[str, str] = {}
        self.ended: dict[str, Ended] = {}
        self._wake_ms: float | None = None
        self._do(JobsOnline(connected=True))

    def open(self, *bodies: JobSubmit) -> None:
        for body in bodies:
            self._do(Opened(body))
            self._do(Followed(body.job, body.service))

    def hear(self, body: Any) -> None:
        self._do(JobHeard(body))

    def tick(self) -> None:
        if self._wake_ms is not None and self._wake_ms <= self.world.now_ms:
            self._wake_ms = None
            self._do(JobsWoken())

    def _do(self, event: Any) -> None:
        for command in self.core.handle(event, self.world.now_ms):
            match command:
                case SendJob(body=body):
                    self.world.client(body)
                case Taken(job=job, refused=refused) if refused:
                    self.refused[job] = refused
                case Taken(job=job):
                    self.taken.append(job)
                case Ended(job=job):
                    assert job not in self.ended, f"{job} has ended twice"
                    self.ended[job] = command
                case JobsWake(at_ms=at_ms):
                    self._wake_ms = at_ms


class World:
    """Everything, and the wire between."""

    def __init__(
        self,
        *names: str,
        steps: int = 1,
        start: bool = True,
        unix_offset_ms: int | None = None,
        anchors: tuple[str, ...] = ("ta-main",),
    ) -> None:
        self.now_ms = 1000
        self.unix_offset_ms = unix_offset_ms
        self.anchors = anchors
        self.store_of_other: dict[tuple[str, str], Record] = {}
        self.wire: deque[Callable[[], None]] = deque()
        self.lose: Callable[[Any, Any], bool] = lambda _to, _body: False
        """Whether a message (target or sender's channel, body) is lost on the wire."""
        self.store: dict[tuple[str, str], Record] = {}
        self.hold_commits = False
        self.held: deque[tuple[str, Output]] = deque()
        self.commits = 0
        self.shown: dict[tuple[str, str], Any] = {}
        """What people see: records and views as they come."""
        self.told: list[Any] = []
        """What the client has heard."""
        self.answers: list[Any] = []
        self.timers: dict[tuple[str, str], int] = {}
        self.epoch = 0
        self.roles: dict[str, Any] = {}
        self.app: App | None = None
        self.nodes = {name: Node(name, self) for name in names or ("n1",)}
        self.specs = _specs(steps, tuple(self.nodes))
        self.outputs = (Edge("y", self.specs[-1].step, "x"),)
        if start:
            self.start_controller()
            for node in self.nodes.values():
                node.start()
            self.settle()
            self.order()
            self.settle()

    # Parts.

    def start_controller(self) -> None:
        """Start anchor and scheduler in one process, from the store."""
        self.roles.clear()
        self.timers.clear()
        self.held.clear()
        for anchor in self.anchors:
            self.start_anchor(anchor)
        self.start_scheduler()

    def stored(self, role: str) -> dict[tuple[str, str], Record]:
        return self.store_of_other if role == OTHER else self.store

    def start_anchor(self, name: str = TA) -> None:
        settings = AnchorSettings(name, (TS,), NAMO, unix_offset_ms=self.unix_offset_ms)
        self.roles[name] = Anchor(settings)
        self.timers = {key: at for key, at in self.timers.items() if key[0] != name}
        records = list(self.stored(name).values())
        self.take(name, self.roles[name].restore(records, self.now_ms))

    def start_scheduler(self) -> None:
        self.epoch += 1
        settings = SchedulerSettings(name=TS, epoch=self.epoch, anchors=self.anchors)
        self.roles[TS] = Scheduler(settings)
        self.timers = {key: at for key, at in self.timers.items() if key[0] != TS}
        self.take(TS, self.roles[TS].restore(list(self.store.values()), self.now_ms))

    def linked(self) -> None:
        """Tell both roles that the link between them has begun anew."""
        self.feed(TA, Linked(TS))
        self.feed(TS, Linked(TA))

    def kill_controller(self) -> None:
        """End it at once: what was not committed or sent is gone."""
        self.roles.clear()
        self.held.clear()
        self.timers.clear()

    def order(self, generation: int = 1) -> None:
        order = ServiceOrder(
            "svc", "uc", ServiceKind.COMPUTING, generation, self.specs, self.outputs
        )
        self.feed(TA, Received(NAMO, 0, 0, "default", "test", order))

    def delete(self) -> None:
        self.feed(TA, Received(NAMO, 0, 0, "default", "test", ServiceDelete("svc", 1)))

    # The wire.

    def feed(self, role: str, *batch: Event) -> None:
        if role in self.roles:
            self.take(role, self.roles[role].handle(list(batch), self.now_ms))

    def take(self, role: str, output: Output) -> None:
        for send in output.early:
            self._send(role, send)
        if output.records or any(name == role for name, _ in self.held):
            self.held.append((role, output))
            if not self.hold_commits:
                self.commit()
        else:
            self._let_out(role, output)

    def commit(self) -> None:
        """Make durable what has gathered, and let it out."""
        batch, self.held = self.held, deque()
        self.commits += bool(batch)
        for role, output in batch:
            store = self.stored(role)
            for record in (*output.learnt, *output.records):
                if record.value is None:
                    store.pop((record.kind, record.key), None)
                else:
                    store[record.kind, record.key] = record
        for role, output in batch:
            self._let_out(role, output)

    def _let_out(self, role: str, output: Output) -> None:
        for one in (*output.records, *output.views):
            self.shown[one.kind, one.key] = one.value
        for timer in output.timers:
            if timer.at_ms is None:
                self.timers.pop((role, timer.key), None)
            else:
                self.timers[role, timer.key] = timer.at_ms
        for send in output.sends:
            self._send(role, send)
        self.answers += output.answers

    def _send(self, role: str, send: Send) -> None:
        self.post(send.to, send.body, role, send.tenant)

    def post(self, to: Any, body: Any, sender: str, tenant: str = "default") -> None:
        if not self.lose(to, body):
            self.wire.append(lambda: self._deliver(to, body, sender, tenant))

    def _deliver(self, to: Any, body: Any, sender: str, tenant: str) -> None:
        match to:
            case ToRole(role=role):
                self.feed(role, Received(sender, 0, 0, tenant, "test", body))
            case ToNode(node=node) if node in self.nodes:
                self.nodes[node].hear(Channel.COMMAND, sender, body)
            case ToInvoke(node=node):
                self.nodes[node].hear(Channel.INVOKE, sender, body)
            case ToTopic():
                self.told.append(body)
                if self.app is not None:
                    self.app.hear(body)
            case _:
                pass

    def from_node(self, node: Node, channel: Channel, body: Any) -> None:
        incarnation = node.incarnation
        if not self.lose(channel, body):
            self.wire.append(
                lambda: self.feed(TS, Received(node.name, incarnation, 0, "default", "test", body))
            )

    def client(self, body: JobSubmit | JobQuery, tenant: str = "default") -> None:
        """Have a client say something on its service's topic."""
        if not self.lose("client", body):
            self.wire.append(
                lambda: self.feed(TS, Received(CLIENT, 7, 0, tenant, "test", body, REPLY, b"c"))
            )

    def call(self, operation: str, arguments: Struct) -> None:
        self.feed(TA, Called("call-1", operation, arguments, "default", "api", 0))

    # Time.

    def settle(self) -> None:
        """Deliver everything that is on its way, and what follows from it at once."""
        steps = 0
        while self.wire:
            self.wire.popleft()()
            steps += 1
            assert steps < STEPS_MAX, "the world does not come to rest"

    def passes(self, ms: int, step_ms: int = 100) -> None:
        """Let time pass, with heartbeats of the nodes that are connected."""
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms:
            self.now_ms = min(end_ms, self.now_ms + step_ms)
            for node in self.nodes.values():
                if node.connected and self.now_ms % 500 == 0:
                    self.from_node(node, Channel.LOAD, LoadReport(self.now_ms, 5.0))
                core = node.core
                while core is not None and (core.next_due_ms or self.now_ms + 1) <= self.now_ms:
                    node.tell(events.Tick())
            for (role, key), at_ms in sorted(self.timers.items()):
                if at_ms <= self.now_ms and self.timers.get((role, key)) == at_ms:
                    del self.timers[role, key]
                    self.feed(role, Fired(key))
            if self.app is not None:
                self.app.tick()
            self.settle()

    # What came of it.

    def record(self, job: str = "j1") -> JobRecord:
        value = self.store[JOB, job].value
        assert isinstance(value, JobRecord)
        return value

    def heard(self, kind: type[Any], job: str = "j1") -> list[Any]:
        return [one for one in self.told if isinstance(one, kind) and one.job == job]

    def ends(self, job: str = "j1") -> list[JobEnded]:
        return self.heard(JobEnded, job)

    def accepted(self, job: str = "j1") -> list[JobAccepted]:
        return self.heard(JobAccepted, job)

    def statuses(self, job: str = "j1") -> list[JobStatus]:
        return self.heard(JobStatus, job)

    def waiting(self) -> int:
        """Return how many ends lie in outboxes of nodes."""
        return sum(len(one.core.jobs) for one in self.nodes.values() if one.core is not None)


def _specs(steps: int, nodes: Iterable[str]) -> tuple[TaskSpec, ...]:
    """Return a chain of tasks; with several nodes the steps stand on them in turn."""
    names = tuple(nodes)
    made = []
    for at in range(steps):
        source = REQUEST if at == 0 else f"s{at - 1}"
        where = (names[at % len(names)],) if steps > 1 else ()
        made.append(
            TaskSpec(f"svc.s{at}", f"s{at}", manifest(), (Edge("x", source, "x"),), nodes=where)
        )
    return tuple(made)


def is_run(_to: Any, body: Any) -> bool:
    """Whether a message has a job run at a node."""
    return isinstance(body, Invoke) and body.job


def is_asked(_to: Any, body: Any) -> bool:
    """Whether a message is the anchor's word to run a job."""
    return isinstance(body, JobRun)


def query(job: str = "j1", *, cancel: bool = False) -> JobQuery:
    """Return a client's question after a job."""
    return JobQuery(job, "svc", REPLY, cancel)


def failure(code: FailureCode = FailureCode.EXECUTOR, *, retryable: bool = True) -> ExecutorFailed:
    """Return what an executor says that failed."""
    return ExecutorFailed("", code, Blame.ENVIRONMENT, "it broke", retryable)


def say(world: World, body: Any, tenant: str = "default") -> None:
    """Have the client say something, and all come to rest."""
    world.client(body, tenant)
    world.settle()


def leaving(**changes: Any) -> World:
    """Return a world where j1 runs and its service is with a second anchor, too."""
    world = World(anchors=(TA, OTHER))
    world.app = App(world)
    world.nodes["n1"].holds = True
    world.app.open(submit("j1", b"v1", **changes))
    world.settle()
    world.passes(100)
    ordered(world)
    return world


def held(world: World) -> World:
    """Have the first node keep its runs."""
    world.nodes["n1"].holds = True
    return world


# Another anchor.


def jobs_of(world: World, role: str) -> dict[str, Any]:
    return {key: one.value for (kind, key), one in world.stored(role).items() if kind == JOB}


def says(world: World, role: str, body: Any) -> None:
    world.feed(role, Received(NAMO, 0, 0, "default", "test", body))


def ordered(world: World) -> None:
    """Have NAMO give the service to the other anchor."""
    order = ServiceOrder(
        "svc", "uc", ServiceKind.COMPUTING, 2, world.specs, world.outputs, epochs_above=ABOVE
    )
    says(world, OTHER, order)
    world.settle()
    assert (TASK, "svc.s0") in world.store_of_other


def let_go(world: World) -> None:
    says(world, TA, ServiceDelete("svc", 2, transferred=True))
