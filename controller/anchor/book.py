"""What an anchor knows: services, tasks, nodes, and what is reserved for whom.

Whatever is durable changes through here only, so that a record, its reservation and its story leave
in the same output.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import structs

from controller.anchor.census import Census
from controller.anchor.checkpoints import Checkpoints
from controller.anchor.figures import Figures
from controller.anchor.ledger import Ledger
from controller.anchor.lifecycle import TaskEvent, advance
from controller.anchor.placement import NodeFacts, Snapshot
from controller.anchor.placement.sums import Amended
from controller.anchor.settings import Settings
from controller.anchor.stories import Stories
from controller.decider import Record
from controller.desk import Desk
from controller.records import (
    ANCHORED,
    CHECKPOINT,
    FIGURE,
    NODE,
    STORY,
    TASK,
    AnchoredRecord,
    CheckpointRecord,
    FigureRecord,
    Home,
    NodeRecord,
    StoryRecord,
    TaskRecord,
    TaskState,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Inventory

AWAY_MS: Final = 30_000
"""How long after a start a scheduler that is silent may take to speak of its nodes."""
SPEAK_MS: Final = 5000
"""How long one that has said hello may take to have them all."""
PATIENCE: Final = "patience"


class Book:
    """The state that all parts of an anchor share."""

    def __init__(self, desk: Desk, settings: Settings) -> None:
        self.desk = desk
        self.settings = settings
        self.services: dict[str, AnchoredRecord] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.nodes: dict[str, NodeFacts] = {}
        self.inventories: dict[str, Inventory] = {}
        self.census = Census()
        self.ledger = Ledger()
        self.figures = Figures(desk)
        self.stories = Stories(desk)
        self.checkpoints = Checkpoints(desk)
        self.seats: dict[str, str] = {}
        """Where schedulers say that tasks are, of other anchors too: a task that is taken over
        begins where it is.
        """
        self.unfed: dict[str, dict[str, str]] = {}
        """By service: the inputs that no node provides now, each with the reason."""
        self.revision = 0
        self.counters: dict[str, int] = {
            "unexpected_message": 0,
            "stale_report": 0,
            "unknown_scheduler": 0,
            "forged_message": 0,
            "checkpoints": 0,
            "checkpoints_without_room": 0,
        }
        self._heard: set[str] = set()
        """Nodes of which a scheduler has spoken since our start."""
        self._patient_until_ms: dict[str, int] = {}
        self._of_service: dict[str, dict[str, None]] = {}
        self._fed: dict[str, set[str]] = {}
        """By node: the services whose data it provides."""
        self._sorted_nodes: tuple[NodeFacts, ...] | None = None

    def restore(self, records: Iterable[Record]) -> None:
        """Take in services, tasks and stories; nodes are lost until their scheduler speaks."""
        for record in records:
            match record.value:
                case AnchoredRecord() as value if record.kind == ANCHORED:
                    self._hold_service(record.key, value)
                case TaskRecord() as value if record.kind == TASK:
                    self._hold(value)
                case NodeRecord() as value if record.kind == NODE:
                    self.put_node(NodeFacts(value.node, NodeState.LOST, value.inventory))
                case FigureRecord() as value if record.kind == FIGURE:
                    self.figures.restore(value)
                case StoryRecord() as value if record.kind == STORY:
                    self.stories.restore(value)
                case CheckpointRecord() as value if record.kind == CHECKPOINT:
                    self.checkpoints.restore(value)
        self.stories.restored(self.tasks.keys())
        self.checkpoints.restored(self.tasks)
        for scheduler in self.settings.schedulers if self.tasks else ():
            self.wait_for(scheduler, AWAY_MS)

    # Tasks and services.

    def put(self, task: TaskRecord, cause: str) -> TaskRecord:
        """Make the newest state of a task durable, its reservation with it."""
        before = self.tasks.get(task.spec.task)
        if before is not None and task.home not in ("", before.home):
            # That was of another node, whose attachments do not compare.
            kept = task.attached if task.attached != before.attached else 0
            task = structs.replace(task, attached=kept)
        self._hold(task)
        self.desk.keep(TASK, task.spec.task, task, cause)
        return task

    def drop(self, task: TaskRecord, cause: str) -> None:
        """Forget a task; its story stays for a while."""
        name = task.spec.task
        del self.tasks[name]
        names = self._of_service.get(task.service, {})
        names.pop(name, None)
        if not names:
            self._of_service.pop(task.service, None)
        self.ledger.drop(name)
        self.figures.forget(name)
        self.checkpoints.forget(name)
        self.desk.keep(TASK, name, None, cause)
        self.stories.ends(name, cause)

    def put_service(self, name: str, record: AnchoredRecord | None, cause: str) -> None:
        """Make the newest state of a service durable; None: it is gone."""
        if record is None:
            self.unfed.pop(name, None)
        self._hold_service(name, record)
        self.desk.keep(ANCHORED, name, record, cause)

    def fed_by(self, node: str) -> list[str]:
        """Return the services whose data a node provides."""
        return sorted(self._fed.get(node, ()))

    def _hold_service(self, name: str, record: AnchoredRecord | None) -> None:
        for node in _providers(self.services.get(name)):
            services = self._fed[node]
            services.discard(name)
            if not services:
                del self._fed[node]
        if record is None:
            self.services.pop(name, None)
            return
        self.services[name] = record
        for node in _providers(record):
            self._fed.setdefault(node, set()).add(name)

    def of_service(self, service: str) -> list[TaskRecord]:
        """Return all tasks of a service, those that are being deleted among them."""
        return [self.tasks[name] for name in self._of_service.get(service, {})]

    def ordered(self, service: str) -> list[TaskRecord]:
        """Return the tasks of a service's newest order, in topological order."""
        held = self.services.get(service)
        return [self.tasks[spec.task] for spec in held.order.tasks] if held is not None else []

    def scheduler_of(self, service: str) -> str:
        """Return the TS that holds a service's envelopes; empty while none does."""
        return next((one.scheduler for one in self.ordered(service) if one.scheduler), "")

    def after(self, task: TaskRecord, event: TaskEvent) -> TaskRecord:
        """Return the task in the state that an event leads to."""
        state = advance(task.state, event, self.stories.tale(task.spec.task))
        return structs.replace(task, state=state)

    def left(self, task: TaskRecord) -> Home | None:
        """Return where what a task remembers is when its record leaves its node; None: nowhere."""
        if task.memory is None and task.spec.manifest.remembers and task.node and task.served:
            return Home(task.scheduler, task.node, task.epoch)
        return task.memory

    def homeless(self, task: TaskRecord) -> TaskRecord:
        """Return a task that has no envelope any more, and needs another one."""
        if task.state is not TaskState.ACCEPTED:
            task = self.after(task, TaskEvent.UNREADY)
        task = self.after(task, TaskEvent.NO_NODE)
        memory = self.left(task)
        return structs.replace(task, nodes=(), node="", reserved={}, leaving=None, memory=memory)

    def tell(self, task: str, event: str, detail: str, cause: str, layer: str = "ta") -> None:
        """Add an entry to a task's story."""
        self.stories.tell(task, layer, event, detail, cause)

    def _hold(self, task: TaskRecord) -> None:
        name = task.spec.task
        self.tasks[name] = task
        self._of_service.setdefault(task.service, {})[name] = None
        self.ledger.put(task)

    # Nodes.

    def put_node(self, facts: NodeFacts) -> None:
        """Take in what is known of a node; every plan made before is stale."""
        self.revision += 1
        if facts.scheduler:
            self._heard.add(facts.node)
        self.census.put(self.nodes.get(facts.node), facts)
        self.nodes[facts.node] = facts
        self.inventories[facts.node] = facts.inventory
        self._sorted_nodes = None

    def drop_node(self, node: str) -> None:
        """Forget a node; every plan made before is stale."""
        self.revision += 1
        self.census.put(self.nodes.pop(node, None), None)
        self.inventories.pop(node, None)
        self._heard.discard(node)
        self._sorted_nodes = None

    def wait_for(self, scheduler: str, ms: int) -> None:
        """Take no node of a scheduler for lost that it has not spoken of, for so long."""
        self._patient_until_ms[scheduler] = self.desk.now_ms + ms
        self.desk.wake(f"{PATIENCE}/{scheduler}", self.desk.now_ms + ms)

    def unknown(self, node: str, scheduler: str) -> bool:
        """Whether nobody has spoken of a node since our start, and somebody may yet."""
        until_ms = self._patient_until_ms.get(scheduler, 0)
        return node not in self._heard and self.desk.now_ms < until_ms

    def gone(self, node: str, scheduler: str) -> bool:
        """Whether a node cannot be counted on: lost, being emptied, or in another cell now."""
        facts = self.nodes.get(node)
        if self.unknown(node, scheduler):
            return False
        if facts is None or facts.state in (NodeState.LOST, NodeState.DRAINING):
            return True
        return bool(scheduler) and facts.scheduler != scheduler

    def emptied(self, node: str) -> bool:
        """Whether a node takes nothing new."""
        facts = self.nodes.get(node)
        return facts is not None and facts.state is NodeState.DRAINING

    def usable(self, node: str, scheduler: str = "") -> bool:
        """Whether a node is online, under this scheduler if one is named."""
        facts = self.nodes.get(node)
        if facts is None or facts.state is not NodeState.ONLINE:
            return False
        return not scheduler or facts.scheduler == scheduler

    def snapshot(
        self,
        scheduler: str = "",
        *,
        without: Mapping[str, Mapping[str, int]] | None = None,
        avoid_scheduler: str = "",
    ) -> Snapshot:
        """Return the fleet for placement; `without` are reservations that do not count, by task.

        With a scheduler only the nodes of its cell stand in it.
        """
        if self._sorted_nodes is None:
            self._sorted_nodes = tuple(self.nodes[name] for name in sorted(self.nodes))
        nodes, left_out = self._sorted_nodes, Counter[str]()
        if scheduler or avoid_scheduler:
            nodes = tuple(
                one
                for one in nodes
                if (not scheduler or one.scheduler == scheduler)
                and (not avoid_scheduler or one.scheduler != avoid_scheduler)
            )
            if not nodes:
                left_out = Counter(_left_out(one, avoid_scheduler) for one in self._sorted_nodes)
        ledger = self.ledger
        shared = ledger.shared()
        memory: dict[str, float] = {node: ledger.booked_bytes(node) for node in shared}
        instances: dict[str, float] = {node: ledger.taken_instances(node) for node in shared}
        cpu_percent = {node: ledger.taken_cpu_percent(node) for node in shared}
        left: dict[str, set[str]] = {node: set() for node in shared}
        for task, reserved in (without or {}).items():
            for node, held in reserved.items():
                left.setdefault(node, set()).add(task)
                memory[node] = memory.get(node, ledger.memory_bytes.get(node, 0)) - held
                counted = instances.get(node, ledger.instances.get(node, 0))
                instances[node] = counted - ledger.instances_of(task)
        return Snapshot(
            self.revision,
            nodes,
            Amended(ledger.memory_bytes, memory),
            Amended(ledger.cpu_percent, cpu_percent),
            Amended(ledger.instances, instances),
            left_out,
            self.figures.known,
            Amended(
                ledger.headroom_bytes,
                {node: ledger.headroom(node, tasks) for node, tasks in left.items()},
            ),
        )


def _providers(held: AnchoredRecord | None) -> set[str]:
    """Return the nodes that provide a service's data."""
    return {one.nodes[0] for one in held.sources if one.nodes} if held is not None else set()


def _left_out(facts: NodeFacts, avoided: str) -> str:
    """Say why a node is not weighed, where only those of some cells are."""
    if not facts.scheduler:
        return "has not been heard of since the start"
    return f"is in the cell of {facts.scheduler}" + (", which it is to leave" if avoided else "")
