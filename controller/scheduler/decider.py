"""The Task Scheduler as a decider: what it hears, and what follows from it.

Soft state only: after a restart a hello makes the TA grant again, rebirths bring the nodes and what
they hold, and a healthy task is adopted where it runs. Inside an envelope the scheduler acts at
once; what the envelope cannot hold it escalates, once, with its attempts.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from controller.decider import (
    Answer,
    Called,
    Event,
    Fired,
    Output,
    Received,
    Record,
    Role,
    Send,
    Timer,
    ToInvoke,
    ToNode,
    ToRole,
    ToService,
    ToTopic,
    View,
)
from controller.records import FLEET, NODE, NodeRecord, NodeView
from controller.scheduler import routes
from controller.scheduler.mover import Mover
from controller.scheduler.nodes import NodeTable
from controller.scheduler.presence import NodeEvent, advance
from protocols.errors import Blame, TonaBug
from protocols.messages import (
    Acknowledge,
    AnchorWelcome,
    Birth,
    Death,
    Drain,
    EnvelopeGrant,
    EnvelopeRevoke,
    EscalationAnswer,
    Invoke,
    LinkReport,
    LoadReport,
    NodeSummary,
    RebirthRequest,
    Result,
    Route,
    RouteRequest,
    SchedulerHello,
    Status,
    Welcome,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.invocation import Failure, FailureCode, Plan
from protocols.topics import INVOCATION_MAX_BYTES

SWEEP_MS: Final = 200
HELLO_MS: Final = 1000
REBIRTH_QUIET_MS: Final = 1000
"""An unknown node is asked for its birth at most this often."""
MAX_UNKNOWN: Final = 100_000
MAX_NODES: Final = 100_000
"""Names of nodes that were ever seen; beyond it a new one is counted and not taken in."""
FRAME_BYTES: Final = 1024
"""Room for what stands around a request in its frame."""
SUMMARY_STEP_PERCENT: Final = 20.0
"""A change of load of this much is worth telling the TA, who sees coarsely."""
_DRAINED: Final = "drained by an operator"
_SWEEP: Final = "sweep"
_HELLO: Final = "hello"


class Settings(Struct, frozen=True):
    """What a scheduler is told by its host."""

    name: str = "ts-main"
    epoch: int = 1
    """Grows with every start of this scheduler."""
    anchors: tuple[str, ...] = ("ta-main",)
    heartbeat_ms: int = 1000
    sample_ms: int = 1000
    store_urls: tuple[str, ...] = ()


class Scheduler:
    """A TS; see `controller.decider.Decider`."""

    role = Role.TS

    def __init__(self, settings: Settings) -> None:
        self.name = settings.name
        self.settings = settings
        self.nodes = NodeTable()
        self.output = Output()
        self.mover = Mover(settings.name, self.nodes, self._tell)
        self.counters: dict[str, int] = {
            "late_incarnation": 0,
            "too_many_nodes": 0,
            "unexpected_message": 0,
        }
        self._asked_ms: dict[str, int] = {}
        self._unwelcome: set[str] = set(settings.anchors)
        self._route_epoch = settings.epoch << 20
        self._routes: dict[str, Route] = {}
        self._dirty_nodes: set[int] = set()
        self._recorded: dict[str, NodeRecord] = {}
        self._now_ms = 0
        self._on: dict[type[Struct], Callable[[Received, Any], None]] = {
            LoadReport: self._on_load,
            LinkReport: self._on_link,
            Birth: self._on_birth,
            Death: self._on_death,
            Status: self._on_status,
            Invoke: self._on_invoke,
            RouteRequest: self._on_route_request,
            EnvelopeGrant: self._on_grant,
            EnvelopeRevoke: self._on_revoke,
            EscalationAnswer: self._on_answer,
            AnchorWelcome: self._on_welcome,
        }

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        """Take in which nodes were ever seen; all else comes from the nodes and the TA."""
        for record in records:
            if record.kind == NODE and isinstance(record.value, NodeRecord):
                self._recorded[record.key] = record.value
        self._begin(now_ms)
        self._hello()
        self.output.timers.append(Timer(_SWEEP, now_ms + SWEEP_MS))
        return self._end()

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        """Decide on a batch of events."""
        self._begin(now_ms)
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
                    self._on_call(event)
        return self._end()

    def _begin(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self.mover.now_ms = now_ms
        self.output = Output()

    def _end(self) -> Output:
        self.mover.settle()
        for service in self.mover.take_changed_services():
            self._renew_route(service)
        for node in self.mover.take_changed_nodes():
            if node in self.nodes:
                self._dirty_nodes.add(self.nodes.slots[node])
        for slot in self._dirty_nodes:
            self._view(slot)
        self._dirty_nodes.clear()
        return self.output

    def _tell(self, send: Send) -> None:
        self.output.sends.append(send)

    # What nodes say.

    def _on_birth(self, event: Received, birth: Birth) -> None:
        node = event.sender
        known = self.nodes.slots.get(node)
        if known is not None and event.incarnation < self.nodes.incarnations[known]:
            self.counters["late_incarnation"] += 1
            return
        if node not in self._recorded and len(self._recorded) >= MAX_NODES:
            self.counters["too_many_nodes"] += 1
            return
        heartbeat_ms = self.settings.heartbeat_ms
        slot = self.nodes.born(node, event.incarnation, birth, heartbeat_ms, self._now_ms)
        self._advance(slot, NodeEvent.BIRTH, birth.draining, event.cause)
        if birth.draining:
            # A scheduler before this one asked for it, and the node has not forgotten.
            self._advance(slot, NodeEvent.DRAIN, birth.draining, event.cause)
        elif self.nodes.states[slot] is NodeState.DRAINING:
            self.output.sends.append(Send(ToNode(node), Drain(_DRAINED), event.cause))
        self._asked_ms.pop(node, None)
        self.output.sends.append(
            Send(
                ToNode(node),
                Welcome(
                    scheduler=self.name,
                    scheduler_epoch=self.settings.epoch,
                    incarnation=event.incarnation,
                    heartbeat_ms=heartbeat_ms,
                    sample_ms=self.settings.sample_ms,
                    store_urls=self.settings.store_urls,
                ),
                event.cause,
            )
        )
        record = NodeRecord(node, birth.agent_version, birth.boot_id, birth.inventory)
        if self._recorded.get(node) != record:
            self._recorded[node] = record
            self.output.records.append(Record(NODE, node, record, event.cause))
        self._summarise(slot, event.cause)
        stamp = (event.incarnation, event.number)
        self.mover.node_born(node, stamp, birth.holdings, event.cause)

    def _on_death(self, event: Received, death: Death) -> None:
        slot = self._known(event, ask=False)
        if slot is None:
            return
        what = NodeEvent.FAREWELL if death.orderly else NodeEvent.WILL
        self._advance(slot, what, death.reason, event.cause)
        if self.nodes.states[slot] is NodeState.SUSPECT:
            self._ask_rebirth(event.sender, "a will was published for you", event.cause)

    def _on_load(self, event: Received, load: LoadReport) -> None:
        slot = self._known(event)
        if slot is None:
            return
        self._heard(slot, event.cause)
        self.nodes.loads[slot] = load
        self.nodes.cpu_percent[slot] = load.cpu_percent
        self._dirty_nodes.add(slot)
        step = abs(float(self.nodes.summarised_cpu_percent[slot]) - load.cpu_percent)
        if step >= SUMMARY_STEP_PERCENT:
            self._summarise(slot, event.cause)
        self.mover.load_changed(event.sender, load, event.cause)

    def _on_link(self, event: Received, link: LinkReport) -> None:
        slot = self._known(event)
        if slot is None:
            return
        self._heard(slot, event.cause)
        self.nodes.links[slot] = link
        self._dirty_nodes.add(slot)
        self.mover.link_changed(event.sender, link, event.cause)

    def _on_status(self, event: Received, status: Status) -> None:
        slot = self._known(event)
        if slot is None:
            return
        self._heard(slot, event.cause)
        self.output.sends.append(
            Send(
                ToNode(event.sender),
                Acknowledge(status.number, event.incarnation, "status"),
                event.cause,
            )
        )
        stamp = (event.incarnation, event.number)
        self.mover.status(event.sender, stamp, status, event.cause)
        self._dirty_nodes.add(slot)

    def _known(self, event: Received, *, ask: bool = True) -> int | None:
        """Return the slot of a node whose word counts, else ask it for its birth."""
        slot = self.nodes.slots.get(event.sender)
        if slot is not None and event.incarnation < self.nodes.incarnations[slot]:
            self.counters["late_incarnation"] += 1
            return None
        unborn = (
            slot is None
            or event.incarnation > self.nodes.incarnations[slot]
            or self.nodes.states[slot] is NodeState.LOST
        )
        if unborn:
            if ask:
                self._ask_rebirth(event.sender, "your birth is not known here", event.cause)
            return None
        return slot

    def _ask_rebirth(self, node: str, reason: str, cause: str) -> None:
        asked_ms = self._asked_ms.get(node)
        if asked_ms is not None and self._now_ms - asked_ms < REBIRTH_QUIET_MS:
            return
        if len(self._asked_ms) >= MAX_UNKNOWN:
            self._asked_ms.clear()
        self._asked_ms[node] = self._now_ms
        request = RebirthRequest(self.name, self.settings.epoch, reason)
        self.output.sends.append(Send(ToNode(node), request, cause))

    def _heard(self, slot: int, cause: str) -> None:
        self.nodes.heard(slot, self._now_ms)
        if self.nodes.states[slot] is NodeState.SUSPECT:
            self._advance(slot, NodeEvent.HEARD, "", cause)

    def _advance(self, slot: int, event: NodeEvent, reason: str, cause: str) -> None:
        before = self.nodes.states[slot]
        after = advance(before, event)
        if after is before and event is not NodeEvent.BIRTH:
            return
        self.nodes.set_state(slot, after, self._now_ms, reason)
        self._dirty_nodes.add(slot)
        if after is not before:
            self._summarise(slot, cause)
            self.mover.node_changed(
                self.nodes.names[slot],
                after,
                reason,
                cause,
                orderly=event is NodeEvent.FAREWELL,
            )

    # Time.

    def _on_timer(self, key: str) -> None:
        if key == _HELLO:
            self._hello()
        elif key == _SWEEP:
            self._sweep()
            self.output.timers.append(Timer(_SWEEP, self._now_ms + SWEEP_MS))
        else:
            raise TonaBug(f"the scheduler set no timer {key!r}")

    def _sweep(self) -> None:
        for slot in self.nodes.unconfirmed(self._now_ms):
            silent_ms = self.nodes.silent_ms(slot, self._now_ms)
            self._advance(slot, NodeEvent.TIMEOUT, f"silent for {silent_ms} ms", "sweep")
        for slot in self.nodes.silent(self._now_ms):
            node = self.nodes.names[slot]
            silent_ms = self.nodes.silent_ms(slot, self._now_ms)
            if self.nodes.states[slot] is NodeState.DRAINING:
                self._advance(slot, NodeEvent.TIMEOUT, f"silent for {silent_ms} ms", "sweep")
                continue
            self._advance(slot, NodeEvent.SILENCE, f"silent for {silent_ms} ms", "sweep")
            self._ask_rebirth(node, "you have been silent", "sweep")
        self.mover.sweep()

    def _hello(self) -> None:
        if not self._unwelcome:
            return
        for anchor in sorted(self._unwelcome):
            hello = SchedulerHello(self.name, self.settings.epoch)
            self.output.sends.append(Send(ToRole(anchor), hello, "start"))
        self.output.timers.append(Timer(_HELLO, self._now_ms + HELLO_MS))

    # What the TA says.

    def _on_grant(self, event: Received, grant: EnvelopeGrant) -> None:
        self.mover.grant(grant, event.sender, event.tenant, event.cause)

    def _on_revoke(self, event: Received, revoke: EnvelopeRevoke) -> None:
        self.mover.revoke(revoke, event.cause)

    def _on_answer(self, event: Received, answer: EscalationAnswer) -> None:
        self.mover.answered(answer, event.cause)

    def _on_welcome(self, event: Received, welcome: AnchorWelcome) -> None:
        if welcome.scheduler_epoch != self.settings.epoch:
            return
        self._unwelcome.discard(event.sender)
        if not self._unwelcome:
            self.mover.anchor_welcomed(event.cause)
        for slot in range(len(self.nodes)):
            self._summarise(slot, event.cause)

    def _summarise(self, slot: int, cause: str) -> None:
        load, link = self.nodes.loads[slot], self.nodes.links[slot]
        self.nodes.summarised_cpu_percent[slot] = self.nodes.cpu_percent[slot]
        summary = NodeSummary(
            node=self.nodes.names[slot],
            state=self.nodes.states[slot],
            incarnation=self.nodes.incarnations[slot],
            inventory=self.nodes.births[slot].inventory,
            cpu_percent=load.cpu_percent if load else 0.0,
            memory_available_bytes=load.memory_available_bytes if load else 0,
            round_trip_ms=link.round_trip_ms if link else None,
            reason=self.nodes.reasons[slot],
        )
        for anchor in self.settings.anchors:
            self.output.sends.append(Send(ToRole(anchor), summary, cause))

    # What clients and people say.

    def _on_invoke(self, event: Received, invoke: Invoke) -> None:
        route = self._routes.get(invoke.service)
        if route is None or route.plan is None:
            reason = route.reason if route else f"there is no service {invoke.service!r} here"
            code = FailureCode.NOT_READY if route else FailureCode.NO_SERVICE
            self._refuse(
                event, invoke, Failure(code, Blame.USER, reason, retryable=route is not None)
            )
            return
        forwarded = [
            (node, self._planned(event, invoke, route.plan, names))
            for node, names in routes.entry_inputs(route.plan).items()
        ]
        if any(_too_large(one) for _, one in forwarded):
            text = (
                "the values do not fit into one message beside the plan: send large ones as blobs"
            )
            self._refuse(
                event, invoke, Failure(FailureCode.BAD_INPUT, Blame.USER, text, retryable=False)
            )
            return
        for node, one in forwarded:
            self.output.sends.append(Send(ToInvoke(node), one, event.cause, event.tenant))

    def _planned(self, event: Received, invoke: Invoke, plan: Plan, names: set[str]) -> Invoke:
        """Return the part of a request that one entry node takes, with the plan."""
        return Invoke(
            invoke.request,
            invoke.service,
            invoke.budget_ms,
            {name: value for name, value in invoke.inputs.items() if name in names},
            invoke.reply_to or event.reply_to,
            invoke.attempt,
            plan,
            invoke.correlation or event.correlation,
        )

    def _refuse(self, event: Received, invoke: Invoke, failure: Failure) -> None:
        reply_to = invoke.reply_to or event.reply_to
        if reply_to:
            to = ToTopic(reply_to, invoke.correlation or event.correlation)
            answer = Result(invoke.request, invoke.attempt, failure=failure)
            self.output.sends.append(Send(to, answer, event.cause))

    def _on_route_request(self, event: Received, request: RouteRequest) -> None:
        reply_to = request.reply_to or event.reply_to
        if not reply_to:
            return
        route = self._routes.get(request.service)
        if route is None:
            reason = f"there is no service {request.service!r} here"
            route = routes.route(request.service, self._route_epoch, reason, ())
        self.output.sends.append(Send(ToTopic(reply_to, event.correlation), route, event.cause))

    def _renew_route(self, service: str) -> None:
        tasks = self.mover.service_tasks(service)
        old = self._routes.get(service)
        if tasks:
            plan = routes.build_plan(self.mover.tasks, tasks)
        elif old is None:
            return
        else:
            plan = f"service {service!r} was deleted"
        if old is not None and old.plan == (None if isinstance(plan, str) else plan):
            return
        self._route_epoch += 1
        new = routes.route(service, self._route_epoch, plan, self.settings.store_urls)
        if tasks:
            self._routes[service] = new
        else:
            self._routes.pop(service, None)
        self.output.sends.append(Send(ToService(service), new, "route"))

    def _on_call(self, event: Called) -> None:
        node = str(getattr(event.arguments, "name", ""))
        slot = self.nodes.slots.get(node)
        if event.operation != "node.drain":
            raise TonaBug(f"the scheduler has no operation {event.operation!r}")
        if slot is None or self.nodes.states[slot] is NodeState.LOST:
            self.output.answers.append(
                Answer(event.call, error=f"node {node!r} is not online", blame=Blame.USER)
            )
            return
        self._advance(slot, NodeEvent.DRAIN, _DRAINED, event.cause)
        self.output.sends.append(Send(ToNode(node), Drain(_DRAINED), event.cause, event.tenant))
        self.output.answers.append(Answer(event.call, value={"node": node, "state": "draining"}))

    def _view(self, slot: int) -> None:
        birth = self.nodes.births[slot]
        node = self.nodes.names[slot]
        self.output.views.append(
            View(
                FLEET,
                node,
                NodeView(
                    node=node,
                    state=self.nodes.states[slot],
                    scheduler=self.name,
                    inventory=birth.inventory,
                    agent_version=birth.agent_version,
                    load=self.nodes.loads[slot],
                    link=self.nodes.links[slot],
                    tasks=self.mover.tasks_on(node),
                    reason=self.nodes.reasons[slot],
                    warnings=birth.warnings,
                    silent_ms=self.nodes.silent_ms(slot, self._now_ms),
                ),
            )
        )


def _too_large(invoke: Invoke) -> bool:
    return len(msgspec.msgpack.encode(invoke)) > INVOCATION_MAX_BYTES - FRAME_BYTES
