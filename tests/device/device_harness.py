"""A node without a machine: the production core on a fake clock, with a shell that tests drive."""

from collections.abc import Iterable
from typing import Any, TypeVar

from device_agent.core import commands, events
from device_agent.core.core import Core
from protocols.errors import Blame
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages import Assign, Invoke, Welcome
from protocols.messages.invocation import REQUEST, Edge, FailureCode, Plan, Step, Tensor
from protocols.messages.presence import ExecutorInfo, Inventory, Trust
from protocols.messages.task import InstanceState
from protocols.topics import Channel

NODE = "node-a"
REPLY = "tona/1/cell/client/app/reply"
MIB = 1 << 20
T = TypeVar("T")

INVENTORY = Inventory(
    profile="generic",
    arch="x86_64",
    os="linux",
    cpu_count=2,
    memory_bytes=4096 * MIB,
    disk_bytes=1 << 34,
    executors=(ExecutorInfo("wasm", "1"), ExecutorInfo("onnx", "1")),
    task_memory_bytes=1024 * MIB,
    max_instances=8,
)


def digest(name: str) -> str:
    return "sha256:" + (name.encode().hex() * 64)[:64]


def manifest(
    name: str = "m", *, memory_mib: int = 64, inputs: tuple[str, ...] = ("x",), queue: int = 4
) -> Manifest:
    return Manifest(
        kind=ExecutorKind.WASM,
        artifact=ArtifactRef(digest(name), 1000),
        inputs=tuple(Port(one, Dtype.UINT8, (-1,)) for one in inputs),
        outputs=(Port("y", Dtype.UINT8, (-1,)),),
        limits=Limits(memory_bytes=memory_mib * MIB, queue=queue),
    )


def assign(
    task: str = "t",
    epoch: int = 1,
    generation: int = 1,
    *,
    of: Manifest | None = None,
    replicas: int = 1,
) -> Assign:
    return Assign(task, "s", epoch, generation, of or manifest(f"m{generation}"), replicas)


def tensor(data: bytes = b"abc") -> Tensor:
    return Tensor(Dtype.UINT8, (len(data),), data)


def chain(*steps: tuple[str, str, int], service: str = "s") -> Plan:
    """Return a plan of (task, node, epoch), each fed by the one before."""
    made, source, port = [], REQUEST, "x"
    for task, node, epoch in steps:
        made.append(Step(task, node, epoch, (Edge("x", source, port),), ("y",)))
        source, port = task, "y"
    return Plan(service, 1, tuple(made), (Edge("answer", source, "y"),))


def invoke(
    request: str = "r1", plan: Plan | None = None, *, attempt: int = 1, budget_ms: int = 1000
) -> Invoke:
    plan = plan or chain(("t", NODE, 1))
    return Invoke(request, "s", budget_ms, {"x": tensor()}, REPLY, attempt, plan)


class SimNode:
    """Drives a core; while `helpful`, fetches, starts and stops succeed at once."""

    def __init__(
        self,
        restored: events.Restored | None = None,
        inventory: Inventory = INVENTORY,
        trust: Trust | None = None,
        *,
        helpful: bool = True,
    ) -> None:
        self.core = Core(
            node=NODE, agent_version="0", boot_id="b", inventory=inventory, trust=trust
        )
        self.now_ms = 1000.0
        self.helpful = helpful
        self.said: list[commands.Command] = []
        self.journal: dict[str, Assign] = {}
        self.older: dict[str, Assign | None] = {}
        self.tombstones: dict[str, int] = {}
        self.calls: dict[str, commands.Execute] = {}
        self.started: list[commands.StartInstance] = []
        self.incarnation = 0
        self.most: dict[str, int] = {}
        """Workers that an instance has ever had: fewer are had only when calls have ended."""
        if restored is not None:
            self.journal = {one.task: one for one in restored.assigns}
            self.older |= {one.task: one for one in restored.older}
        self.tell(restored or events.Restored())

    def tell(self, event: events.Event) -> list[commands.Command]:
        """Hand one event in, serve what can be served at once, return all commands."""
        before = len(self.said)
        todo = [event]
        while todo:
            out = self.core.handle(todo.pop(0), self.now_ms)
            self.said += out
            for command in out:
                todo += self._serve(command)
            self.check()
        return self.said[before:]

    def _serve(self, command: commands.Command) -> list[events.Event]:
        match command:
            case commands.Keep(one, _, older):
                self.journal[one.task] = one
                self.older[one.task] = older
            case commands.Forget(task, epoch, _):
                self.journal.pop(task, None)
                self.older.pop(task, None)
                self.tombstones[task] = epoch
            case commands.Execute():
                self.calls[command.call] = command
            case commands.ExecuteTogether(calls):
                self.calls |= {one.call: one for one in calls}
            case commands.TuneInstance(instance, replicas):
                self.most[instance] = max(replicas, self.most.get(instance, 1))
            case commands.StartInstance():
                self.started.append(command)
                self.most[command.instance] = command.replicas
                return [events.InstanceReady(command.instance)] if self.helpful else []
            case commands.FetchArtifact(one, tenant=tenant) if self.helpful:
                return [events.ArtifactReady(one, tenant)]
            case commands.StopInstance(one, _) if self.helpful:
                self.calls = {c: e for c, e in self.calls.items() if e.instance != one}
                return [events.InstanceStopped(one)]
            case commands.CancelCall(_, call) if self.helpful and call in self.calls:
                del self.calls[call]
                return [failed(call)]
            case _:
                pass
        return []

    def check(self) -> None:
        """Hold the invariants of one node."""
        ready: dict[str, int] = {}
        for one in self.core.upkeep.instances.values():
            if one.state is InstanceState.READY:
                ready[one.task] = ready.get(one.task, 0) + 1
            assert one.busy <= self.most.get(one.name, one.replicas)
            assert one.busy == len({id(run) for run in one.running.values()})
            assert len(one.queue) <= one.manifest.limits.queue
        for task, held in self.core.assignments.held.items():
            serving = [one for one in (held.current, held.leaving) if one is not None]
            serving = [one for one in serving if one.state is InstanceState.READY]
            assert ready.get(task, 0) == len(serving), "nobody else is ready"
            epochs = [one.epoch for one in serving]
            assert len(set(epochs)) == len(epochs), "one instance an epoch"
            if not held.released:
                assert self.journal[task] == held.assign
                assert self.older.get(task) == held.older
                assert held.older is None or (held.coming and held.current)

    def at(self, now_ms: float) -> list[commands.Command]:
        """Let time pass up to `now_ms`, with every tick on the way."""
        before = len(self.said)
        while (due := self.core.next_due_ms) is not None and due <= now_ms:
            self.now_ms = max(self.now_ms, due)
            self.tell(events.Tick())
        self.now_ms = max(self.now_ms, now_ms)
        return self.said[before:]

    def after(self, ms: float) -> list[commands.Command]:
        return self.at(self.now_ms + ms)

    def hear(
        self,
        body: Any,
        channel: Channel = Channel.COMMAND,
        *,
        sender: str = "ts-1",
        correlation: bytes = b"",
    ) -> list[commands.Command]:
        event = events.Received(
            channel, sender, 1, 0, "default", "test", body, correlation=correlation
        )
        return self.tell(event)

    def call(self, body: Any) -> list[commands.Command]:
        return self.hear(body, Channel.INVOKE, sender="app")

    def connect(self) -> list[commands.Command]:
        self.incarnation += 1
        return self.tell(events.Connected(self.incarnation))

    def welcome(self, epoch: int = 7, **more: Any) -> list[commands.Command]:
        urls = ("http://127.0.0.1:1",)
        return self.hear(
            Welcome("ts-1", epoch, self.incarnation, 1000, 1000, store_urls=urls, **more)
        )

    def join(self) -> None:
        self.connect()
        self.welcome()

    def answer(self, call: str | None = None, **outputs: Any) -> list[commands.Command]:
        call = call or next(iter(self.calls))
        del self.calls[call]
        return self.tell(events.ExecutorDone(call, outputs or {"y": tensor(b"ok")}, 100))

    def state(self, task: str = "t") -> InstanceState | None:
        held = self.core.assignments.held.get(task)
        return held.shown.state if held and held.shown else None


def failed(call: str) -> events.ExecutorFailed:

    return events.ExecutorFailed(
        call, FailureCode.EXECUTOR, Blame.ENVIRONMENT, "it broke", retryable=True
    )


def of(kind: type[T], said: Iterable[Any]) -> list[T]:
    """Return the commands of a kind, or what messages of that kind were said."""
    found = []
    for one in said:
        if isinstance(one, kind):
            found.append(one)
        body = getattr(one, "body", None)
        if isinstance(body, kind):
            found.append(body)
    return found
