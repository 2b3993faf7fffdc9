"""The Task Anchor as a decider: orders become durable tasks, tasks get envelopes.

Everything it promises stands in a record of the same output, so the host makes it durable before
anybody hears of it. It sees nodes coarsely, through summaries; the scheduler acts inside the
envelope without asking, and escalates what it cannot hold.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import Struct, structs

from controller.anchor.lifecycle import TaskEvent, advance
from controller.anchor.placement import NodeFacts, Request, Snapshot, place
from controller.decider import (
    Called,
    Event,
    Fired,
    Output,
    Received,
    Record,
    Role,
    Send,
    Timer,
    ToRole,
)
from controller.records import (
    ANCHORED,
    NODE,
    STORY,
    STORY_LENGTH,
    TASK,
    AnchoredRecord,
    NodeRecord,
    Placement,
    StoryRecord,
    TaskRecord,
    TaskState,
)
from protocols.base import EPOCH_LIMIT
from protocols.errors import Blame, TonaBug
from protocols.messages import (
    AnchorWelcome,
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    NodeSummary,
    SchedulerHello,
    ServiceDelete,
    ServiceOrder,
    ServiceReport,
    TaskReport,
)
from protocols.messages.hierarchy import Attempt, NodeState, ServiceState
from protocols.messages.task import InstanceState

EPOCH_BLOCK: Final = 32
"""Epochs leased with each grant; the TS asks for more when they are used up."""
RETRY_MIN_MS: Final = 3000
RETRY_MAX_MS: Final = 60_000
"""A waiting task is tried again within these bounds, and at once when a node comes."""
EPOCHS_OF_GENERATION: Final = 1_000_000
"""Epochs of a task that is ordered anew begin above those of its former life on the nodes."""
MAX_OVER: Final = 512
"""Tasks that are over and whose stories are still kept for people."""
_RETRY: Final = "retry/"


class Settings(Struct, frozen=True):
    """What an anchor is told by its host."""

    name: str = "ta-main"
    scheduler: str = "ts-main"
    namo: str = "namo-main"


class Anchor:
    """A TA; see `controller.decider.Decider`."""

    role = Role.TA

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        self.settings = settings
        self.services: dict[str, AnchoredRecord] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.nodes: dict[str, NodeFacts] = {}
        self.revision = 0
        self.counters: dict[str, int] = {"unexpected_message": 0, "stale_report": 0}
        self._stories: dict[str, int] = {}
        self._last_story: dict[str, str] = {}
        self._failed: dict[str, dict[str, str]] = {}
        self._retries: dict[str, tuple[int, int]] = {}
        """Of waiting tasks: how often tried again, and when it is tried next."""
        self._over: dict[str, None] = {}
        """Tasks that are over, oldest first."""
        self._reported: dict[str, tuple[int, ServiceState, str]] = {}
        self._short: dict[str, str] = {}
        self._now_ms = 0
        self.output = Output()
        self._on: dict[type[Struct], Callable[[Received, Any], None]] = {
            ServiceOrder: self._on_order,
            ServiceDelete: self._on_delete,
            NodeSummary: self._on_node,
            TaskReport: self._on_report,
            Escalation: self._on_escalation,
            EscalationAnswer: self._on_answer,
            SchedulerHello: self._on_hello,
        }

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        """Take in services, tasks and stories; nodes are lost until their scheduler speaks."""
        self._now_ms, self.output = now_ms, Output()
        for record in records:
            match record.value:
                case AnchoredRecord() as value if record.kind == ANCHORED:
                    self.services[record.key] = value
                case TaskRecord() as value if record.kind == TASK:
                    self.tasks[record.key] = value
                case NodeRecord() as value if record.kind == NODE:
                    self.nodes[value.node] = NodeFacts(value.node, NodeState.LOST, value.inventory)
                case StoryRecord() as value if record.kind == STORY:
                    following = self._stories.get(value.task, 0)
                    self._stories[value.task] = max(following, value.number + 1)
        self._over = dict.fromkeys(sorted(self._stories.keys() - self.tasks.keys()))
        for name, task in self.tasks.items():
            if _unplaced(task):
                self._try_later(name)
        return self.output

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        """Decide on a batch of events."""
        self._now_ms, self.output = now_ms, Output()
        for event in events:
            match event:
                case Received():
                    handler = self._on.get(type(event.body))
                    if handler is None:
                        self.counters["unexpected_message"] += 1
                    else:
                        handler(event, event.body)
                case Fired(key=key):
                    self._on_timer(key)
                case Called():
                    raise TonaBug(f"the anchor has no operation {event.operation!r}")
        short, self._short = self._short, {}
        for service, cause in short.items():
            self._place_service(service, cause)
        return self.output

    # Orders.

    def _on_order(self, event: Received, order: ServiceOrder) -> None:
        held = self.services.get(order.service)
        if held is not None and held.order.generation >= order.generation:
            self._report_service(order.service, event.cause, again=True)
            return
        record = AnchoredRecord(order, event.tenant, event.sender)
        self.services[order.service] = record
        self._record(ANCHORED, order.service, record, event.cause)
        wanted = {spec.task for spec in order.tasks}
        for old in [one for one in self.tasks.values() if one.service == order.service]:
            if old.spec.task not in wanted:
                self._end_task(old, "not in the new generation", event.cause)
        for spec in order.tasks:
            task = self.tasks.get(spec.task)
            if task is None:
                task = TaskRecord(
                    spec,
                    order.service,
                    event.tenant,
                    order.generation,
                    TaskState.ACCEPTED,
                    epoch_high=(order.generation - 1) * EPOCHS_OF_GENERATION,
                )
                self._over.pop(spec.task, None)
                self._story(spec.task, "ta", "accepted", f"generation {order.generation}", event)
            else:
                state = advance(task.state, TaskEvent.ORDER, self._tale(spec.task))
                task = structs.replace(task, spec=spec, generation=order.generation, state=state)
                self._story(spec.task, "ta", "modified", f"generation {order.generation}", event)
            self._keep(task, event.cause)
        self._place_service(order.service, event.cause, everything=True)

    def _on_delete(self, event: Received, delete: ServiceDelete) -> None:
        held = self.services.get(delete.service)
        if held is not None and held.order.generation > delete.generation:
            self._report_service(delete.service, event.cause, again=True)
            return
        self.services.pop(delete.service, None)
        for task in [one for one in self.tasks.values() if one.service == delete.service]:
            self._end_task(task, "the service was deleted", event.cause)
        if held is not None:
            self._record(ANCHORED, delete.service, None, event.cause)
        self._reported.pop(delete.service, None)
        report = ServiceReport(delete.service, delete.generation, ServiceState.DELETED)
        self._send(event.sender, report, event.cause, event.tenant)

    def _end_task(self, task: TaskRecord, reason: str, cause: str) -> None:
        name = task.spec.task
        state = advance(task.state, TaskEvent.DELETE, self._tale(name))
        advance(state, TaskEvent.FORGET, self._tale(name))
        revoke = EnvelopeRevoke(name, task.generation, reason)
        self._send(self.settings.scheduler, revoke, cause, task.tenant)
        self._tell_story(name, "ta", "deleted", reason, cause)
        del self.tasks[name]
        self._failed.pop(name, None)
        self._retries.pop(name, None)
        self._record(TASK, name, None, cause)
        self._over[name] = None
        if len(self._over) > MAX_OVER:
            self._forget(next(iter(self._over)), cause)
        for one in self.tasks.values():
            if _unplaced(one):
                # There is room now that there was not before.
                self._short.setdefault(one.service, cause)

    def _forget(self, name: str, cause: str) -> None:
        """Drop the story of a task that is long over."""
        del self._over[name]
        self._last_story.pop(name, None)
        for slot in range(min(STORY_LENGTH, self._stories.pop(name, 0))):
            self._record(STORY, f"{name}/{slot}", None, cause)

    # Placement.

    def _place_service(self, service: str, cause: str, *, everything: bool = False) -> None:
        """Place the tasks that need it; the others keep their nodes and count as placed."""
        held = self.services.get(service)
        if held is None:
            return
        requests = [
            self._request(self.tasks[spec.task], held.order.spares) for spec in held.order.tasks
        ]
        plan = place(requests, self._snapshot())
        for spec in held.order.tasks:
            task, placement = self.tasks[spec.task], plan[spec.task]
            if everything or self._better(task, placement):
                self._apply(task, placement, cause)
        self._report_service(service, cause)

    def _request(self, task: TaskRecord, spares: int) -> Request:
        runs = task.state is TaskState.RUNNING and self._online(task.node)
        current = task.node if runs else ""
        failed = self._failed.get(task.spec.task, {})
        return Request(task.spec, spares, current, _reserved_on(task), failed)

    def _better(self, task: TaskRecord, placement: Placement) -> bool:
        """Whether a placement gives a task that lacks nodes something it does not have."""
        if _unplaced(task):
            return bool(placement.chosen) or task.state is TaskState.ACCEPTED
        alive = {node for node in task.nodes if self._online(node)}
        return len(alive) < len(placement.chosen) and bool(set(placement.chosen) - alive)

    def _online(self, node: str) -> bool:
        facts = self.nodes.get(node)
        return facts is not None and facts.state is NodeState.ONLINE

    def _snapshot(self) -> Snapshot:
        memory: dict[str, int] = {}
        cpu: dict[str, float] = {}
        instances: dict[str, int] = {}
        for task in self.tasks.values():
            node = _reserved_on(task)
            if node:
                spec = task.spec
                memory[node] = memory.get(node, 0) + spec.manifest.limits.memory_bytes
                cpu[node] = cpu.get(node, 0.0) + spec.demand.cpu_percent
                instances[node] = instances.get(node, 0) + 1
        nodes = tuple(self.nodes[name] for name in sorted(self.nodes))
        return Snapshot(self.revision, nodes, memory, cpu, instances)

    def _apply(self, task: TaskRecord, placement: Placement, cause: str) -> None:
        name = task.spec.task
        if placement.revision != self.revision:
            raise TonaBug(f"a plan of revision {placement.revision} is stale at {self.revision}")
        if not placement.chosen:
            self._wait(task, placement, cause)
            return
        state = advance(task.state, TaskEvent.PLACE, self._tale(name))
        task = structs.replace(
            task, state=state, nodes=placement.chosen, placement=placement, reason=""
        )
        detail = f"{placement.reason}; envelope {', '.join(placement.chosen)}"
        self._tell_story(name, "ta", "placed", detail, cause)
        self._grant(task, cause)

    def _grant(self, task: TaskRecord, cause: str) -> None:
        """Lease a fresh block of epochs with the envelope; the record goes first."""
        order = self.services[task.service].order
        first, last = task.epoch_high + 1, task.epoch_high + EPOCH_BLOCK
        task = structs.replace(task, epoch_high=last, granted=task.generation)
        self._keep(task, cause)
        grant = EnvelopeGrant(
            service=task.service,
            generation=task.generation,
            spec=task.spec,
            nodes=task.nodes,
            epoch_from=first,
            epoch_to=last,
            plan_tasks=tuple(spec.task for spec in order.tasks),
            outputs=order.outputs,
            current_node=task.node,
            current_epoch=task.epoch,
        )
        self._send(self.settings.scheduler, grant, cause, task.tenant)

    def _wait(self, task: TaskRecord, placement: Placement, cause: str) -> None:
        """No node can run the task: tell NAMO once, and try again later or when a node comes."""
        name = task.spec.task
        was = task.state
        state = advance(was, TaskEvent.NO_NODE, self._tale(name))
        self._keep(
            structs.replace(task, state=state, placement=placement, reason=placement.reason), cause
        )
        if not _unplaced(self.tasks[name]):
            return
        self._try_later(name)
        if was is TaskState.WAITING:
            return
        self._tell_story(name, "ta", "waiting", placement.reason, cause)
        attempts = tuple(
            Attempt(f"place on {one.node}", one.reason) for one in placement.rejected[:64]
        )
        number = f"{self.name}/{name}/{task.epoch_high}"
        escalation = Escalation(number, name, task.generation, placement.reason, attempts)
        self._send(self.services[task.service].namo, escalation, cause, task.tenant)

    def _try_later(self, name: str) -> None:
        """Have a waiting task tried again, ever more rarely; what is due already stays so."""
        tries, due_ms = self._retries.get(name, (0, self._now_ms))
        if due_ms <= self._now_ms:
            due_ms = self._now_ms + min(RETRY_MAX_MS, RETRY_MIN_MS << min(tries, 10))
            self._retries[name] = tries + 1, due_ms
            self.output.timers.append(Timer(_RETRY + name, due_ms))

    def _on_timer(self, key: str) -> None:
        name = key.removeprefix(_RETRY)
        task = self.tasks.get(name)
        if task is not None and _unplaced(task):
            self._failed.pop(name, None)
            self._short[task.service] = "retry"
            tries, _ = self._retries.get(name, (0, 0))
            self._retries[name] = tries, self._now_ms
            self._try_later(name)

    # What schedulers say.

    def _on_node(self, event: Received, summary: NodeSummary) -> None:
        old = self.nodes.get(summary.node)
        self.revision += 1
        self.nodes[summary.node] = NodeFacts(
            summary.node,
            summary.state,
            summary.inventory,
            summary.cpu_percent,
            summary.round_trip_ms,
        )
        if old and old.state is summary.state and old.inventory == summary.inventory:
            return
        came = summary.state is NodeState.ONLINE
        for task in self.tasks.values():
            if came:
                self._failed.get(task.spec.task, {}).pop(summary.node, None)
            spares = self.services[task.service].order.spares
            alive = sum(self._online(node) for node in task.nodes)
            if _unplaced(task):
                if came:
                    self._short[task.service] = event.cause
            elif alive < 1 + spares:
                self._short[task.service] = event.cause

    def _on_report(self, event: Received, report: TaskReport) -> None:
        task = self.tasks.get(report.task)
        if task is None or report.epoch < task.epoch or report.epoch > task.epoch_high:
            self.counters["stale_report"] += 1
            return
        ready = report.state is InstanceState.READY and report.generation == task.generation
        what = TaskEvent.READY if ready else TaskEvent.UNREADY
        if task.state is TaskState.ACCEPTED:
            return
        state = advance(task.state, what, self._tale(report.task))
        if ready:
            self._retries.pop(report.task, None)
        self._keep(
            structs.replace(
                task, state=state, node=report.node, epoch=report.epoch, reason=report.reason
            ),
            event.cause,
        )
        detail = f"{report.node} under epoch {report.epoch}"
        if report.reason:
            detail += f": {report.reason}"
        self._tell_story(
            report.task,
            "ts",
            _TOLD.get(report.state, report.state.value),
            detail,
            event.cause,
            report.blame,
        )
        self._report_service(task.service, event.cause)

    def _on_escalation(self, event: Received, escalation: Escalation) -> None:
        task = self.tasks.get(escalation.task)
        if task is None or escalation.generation != task.generation:
            return
        tried = "; ".join(f"{one.action}: {one.outcome}" for one in escalation.attempts[:4])
        self._story(
            escalation.task, "ts", "escalated", f"{escalation.problem} ({tried})"[:2000], event
        )
        failed = self._failed.setdefault(escalation.task, {})
        for attempt in escalation.attempts:
            node = attempt.action.removeprefix("run on ")
            if node in self.nodes and self._online(node):
                failed[node] = attempt.outcome[:300]
        leases = task.epoch_high <= escalation.epoch_seen < EPOCH_LIMIT
        if leases:
            task = structs.replace(task, epoch_high=escalation.epoch_seen)
        request = self._request(task, self.services[task.service].order.spares)
        placement = place([request], self._snapshot())[escalation.task]
        fresh = [node for node in placement.chosen if node not in failed]
        granted = bool(fresh) or (leases and bool(placement.chosen))
        if granted:
            self._apply(task, placement, event.cause)
            reason = f"new envelope {', '.join(placement.chosen)}"
        else:
            reason = placement.reason if not placement.chosen else "every node has failed it"
            empty = structs.replace(placement, chosen=(), reason=reason)
            self._wait(task, empty, event.cause)
        answer = EscalationAnswer(escalation.number, escalation.task, granted, reason)
        self._send(event.sender, answer, event.cause, task.tenant)
        self._report_service(task.service, event.cause)

    def _on_answer(self, event: Received, answer: EscalationAnswer) -> None:
        what = "granted" if answer.granted else "refused"
        self._story(answer.task, "namo", what, answer.reason, event)

    def _on_hello(self, event: Received, hello: SchedulerHello) -> None:
        """Grant again what a scheduler without memory should hold, under fresh epochs."""
        grants = 0
        for task in list(self.tasks.values()):
            if task.nodes and task.state is not TaskState.ACCEPTED:
                self._grant(task, event.cause)
                grants += 1
        welcome = AnchorWelcome(self.name, hello.scheduler_epoch, grants)
        self._send(event.sender, welcome, event.cause)

    # Upwards, and for people.

    def _report_service(self, service: str, cause: str, *, again: bool = False) -> None:
        held = self.services.get(service)
        if held is None:
            return
        tasks = [self.tasks[spec.task] for spec in held.order.tasks]
        waiting = next((one for one in tasks if one.state is TaskState.WAITING), None)
        behind = next((one for one in tasks if one.granted < one.generation), None)
        if behind is not None and behind.state is TaskState.RUNNING:
            why = f"{behind.spec.task} runs as it was before: {behind.reason}"
            state, reason = ServiceState.DEGRADED, why
        elif all(one.state is TaskState.RUNNING for one in tasks):
            state, reason = ServiceState.RUNNING, ""
        elif waiting is not None:
            state, reason = ServiceState.WAITING, f"{waiting.spec.task}: {waiting.reason}"
        elif any(one.state is TaskState.MOVING for one in tasks):
            moving = next(one for one in tasks if one.state is TaskState.MOVING)
            state, reason = ServiceState.DEGRADED, f"{moving.spec.task}: {moving.reason}"
        else:
            state, reason = ServiceState.DEPLOYING, ""
        key = (held.order.generation, state, reason)
        if again or self._reported.get(service) != key:
            self._reported[service] = key
            report = ServiceReport(service, held.order.generation, state, reason)
            self._send(held.namo, report, cause, held.tenant)

    def _keep(self, task: TaskRecord, cause: str) -> None:
        self.tasks[task.spec.task] = task
        self._record(TASK, task.spec.task, task, cause)

    def _record(self, kind: str, key: str, value: Struct | None, cause: str) -> None:
        self.output.records.append(Record(kind, key, value, cause))

    def _send(self, role: str, body: Any, cause: str, tenant: str = "default") -> None:
        self.output.sends.append(Send(ToRole(role), body, cause, tenant))

    def _story(self, task: str, layer: str, event: str, detail: str, source: Received) -> None:
        self._tell_story(task, layer, event, detail, source.cause)

    def _tell_story(
        self,
        task: str,
        layer: str,
        event: str,
        detail: str,
        cause: str,
        blame: Blame | None = None,
    ) -> None:
        number = self._stories.get(task, 0)
        self._stories[task] = number + 1
        self._last_story[task] = f"{layer} {event} {detail}"[:200]
        record = StoryRecord(task, number, layer, event, detail, cause, blame)
        self._record(STORY, f"{task}/{number % STORY_LENGTH}", record, cause)

    def _tale(self, task: str) -> str:
        return f"{self._stories.get(task, 0)} entries, last: {self._last_story.get(task, 'none')}"


def _unplaced(task: TaskRecord) -> bool:
    """Whether a task, or its newest generation, still needs a node that can run it."""
    waits = task.state in (TaskState.ACCEPTED, TaskState.WAITING)
    return waits or task.granted < task.generation


def _reserved_on(task: TaskRecord) -> str:
    """Return the node whose room a task takes; empty when it was never placed."""
    return task.node or (task.nodes[0] if task.nodes else "")


_TOLD: Final = {
    InstanceState.READY: "running",
    InstanceState.DEPLOYING: "assigned",
    InstanceState.STOPPED: "lost",
    InstanceState.FAILED: "failed",
}
