"""An anchor on a bench: its store survives its restarts."""

from typing import Any

from msgspec import structs
from tests_support import INVENTORY, task_spec

from controller.anchor.decider import Anchor, Settings
from controller.decider import Event, Fired, Output, Received, Record
from controller.records import TaskRecord
from protocols.messages import NodeSummary, ServiceOrder, TaskReport
from protocols.messages.hierarchy import NodeState, TaskSpec
from protocols.messages.invocation import REQUEST, Edge
from protocols.messages.presence import Inventory
from protocols.messages.task import InstanceState
from protocols.qoais import ServiceKind

MEMORY = task_spec().manifest.limits.memory_bytes


class Bench:
    """An anchor, its store, its clock, and the words of schedulers, NAMO and nodes."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.store: dict[tuple[str, str], Record] = {}
        self.timers: dict[str, int] = {}
        self.now_ms = 0
        self.restart()

    def restart(self) -> Output:
        self.ta = Anchor(self.settings)
        self.timers.clear()
        return self._took(self.ta.restore(list(self.store.values()), self.now_ms))

    def feed(self, *events: Event) -> Output:
        return self._took(self.ta.handle(list(events), self.now_ms))

    def _took(self, output: Output) -> Output:
        for record in output.records:
            if record.value is None:
                self.store.pop((record.kind, record.key), None)
            else:
                self.store[record.kind, record.key] = record
        for timer in output.timers:
            if timer.at_ms is None:
                self.timers.pop(timer.key, None)
            else:
                self.timers[timer.key] = timer.at_ms
        return output

    def passes(self, ms: int) -> Output:
        """Let time pass; every timer fires when it is due."""
        until_ms = self.now_ms + ms
        output = Output()
        while self.timers and min(self.timers.values()) <= until_ms:
            key = min(self.timers, key=lambda one: (self.timers[one], one))
            self.now_ms = max(self.now_ms, self.timers.pop(key))
            output.extend(self.feed(Fired(key)))
        self.now_ms = until_ms
        return output

    def hear(self, body: Any, sender: str = "ts-main", incarnation: int = 0) -> Output:
        return self.feed(Received(sender, incarnation, 0, "default", "test", body))

    def node(
        self,
        name: str,
        state: NodeState = NodeState.ONLINE,
        scheduler: str = "ts-main",
        inventory: Inventory = INVENTORY,
        incarnation: int = 1,
    ) -> Output:
        return self.hear(NodeSummary(name, state, incarnation, inventory), scheduler)

    def tight(self, name: str, tasks: int = 1, scheduler: str = "ts-main") -> Output:
        """Have a node with room for so many tasks."""
        return self.node(name, scheduler=scheduler, inventory=room(tasks))

    def order(self, generation: int = 1, *names: str, **changes: Any) -> Output:
        """Order a chain of steps as service `svc`."""
        return self.hear(chain("svc", generation, *(names or ("a",)), **changes), "namo-main")

    def task(self, name: str = "svc.a") -> TaskRecord:
        return self.ta.book.tasks[name]

    def ready(
        self, node: str, epoch: int, generation: int = 1, task: str = "svc.a", by: str = "ts-main"
    ) -> Output:
        report = TaskReport(task, generation, node, epoch, InstanceState.READY)
        return self.hear(report, by)

    def lost(self, node: str, epoch: int, task: str = "svc.a", by: str = "ts-main") -> Output:
        report = TaskReport(task, 1, node, epoch, InstanceState.STOPPED, "silent")
        return self.hear(report, by)

    def reserved(self) -> dict[str, int]:
        """Return what the durable records reserve, by node."""
        sums: dict[str, int] = {}
        for record in self.store.values():
            if isinstance(record.value, TaskRecord):
                for node, held in record.value.reserved.items():
                    sums[node] = sums.get(node, 0) + held
        return sums


def chain(service: str, generation: int, *names: str, **changes: Any) -> ServiceOrder:
    """Return an order of steps in a row; `specs` replaces fields of every task."""
    specs = changes.pop("specs", {})
    tasks = tuple(
        structs.replace(
            task_spec(f"{service}.{name}", names[at - 1] if at else REQUEST, **specs),
        )
        for at, name in enumerate(names)
    )
    changes.setdefault("tasks", tasks)
    changes.setdefault("spares", 1)
    return ServiceOrder(
        service,
        "use",
        ServiceKind.INFERENCE,
        generation,
        changes.pop("tasks"),
        (Edge("y", names[-1], "x"),),
        **changes,
    )


def sized(spec: TaskSpec, memory_bytes: int) -> TaskSpec:
    limits = structs.replace(spec.manifest.limits, memory_bytes=memory_bytes)
    return structs.replace(spec, manifest=structs.replace(spec.manifest, limits=limits))


def room(tasks: int) -> Inventory:
    """Return what a node is that has room for so many tasks."""
    return structs.replace(INVENTORY, task_memory_bytes=tasks * MEMORY)


def said(output: Output, kind: type[Any], to: str = "") -> list[Any]:
    """Return what was said of a kind, to one role if it is named."""
    return [
        send.body
        for send in output.sends
        if isinstance(send.body, kind) and (not to or getattr(send.to, "role", "") == to)
    ]
