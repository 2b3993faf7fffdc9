"""An anchor and the schedulers of its cells on a bench, and nodes that speak the protocol."""

from typing import Any

from anchor_bench import chain
from msgspec import Struct, structs
from tests_support import INVENTORY

from controller.anchor.decider import Anchor
from controller.anchor.decider import Settings as AnchorSettings
from controller.decider import (
    Answer,
    Called,
    Decider,
    Event,
    Fired,
    Output,
    Received,
    Record,
    Send,
    ToNode,
    ToRole,
)
from controller.handover_records import HandoverRecord
from controller.records import TaskRecord
from controller.scheduler.decider import Scheduler
from controller.scheduler.decider import Settings as SchedulerSettings
from device_agent.core.memories import digest_of, tell_of, whole_of
from protocols.messages import (
    Assign,
    Birth,
    Death,
    Feed,
    LoadReport,
    MemoryRequest,
    MemoryState,
    Release,
    Status,
)
from protocols.messages.mobility import CellPoint
from protocols.messages.presence import Arrival, Feeding, Holding, Inventory
from protocols.messages.task import InstanceState, Origin
from protocols.topics import Channel


class HandOver(Struct, frozen=True):
    """The arguments of `node.handover`."""

    name: str
    cell: str


def store_of(cell: str) -> str:
    """Return where the store of a cell is."""
    return f"http://{cell}"


class CellsBench:
    """`ta` and a scheduler `ts-X` for each cell `X`; words between roles arrive in order."""

    def __init__(self, *cells: str) -> None:
        self.cells = cells or ("a", "b")
        self.now_ms = 10_000
        self.stores: dict[str, dict[tuple[str, str], Record]] = {}
        """By role."""
        self.answers: list[Answer] = []
        self.seen: list[tuple[str, Send]] = []
        self.reach: dict[str, tuple[str, ...]] = {}
        """By scheduler: the cells that its gateway carries to."""
        self.cut: set[str] = set()
        """Roles that are not heard and do not hear."""
        self.dead: set[str] = set()
        """Nodes that neither hear nor say anything before they are born again."""
        self.roles: dict[str, Decider] = {}
        self.timers: dict[tuple[str, str], int] = {}
        self.lives = dict.fromkeys(["ta", *self.schedulers], 0)
        self.nodes: dict[str, tuple[str, int]] = {}
        """Where each node is, and its incarnation."""
        self.held: dict[str, dict[str, Holding]] = {}
        self.memory: dict[tuple[str, str], bytes] = {}
        """What each node remembers of each task; it outlives the task there."""
        self.lying: dict[tuple[str, str], bytes] = {}
        """By store and digest."""
        self.awaits: dict[tuple[str, str], Origin] = {}
        self.runs: dict[str, int] = {}
        """Of each task, wherever."""
        self.inventories: dict[str, Inventory] = {}
        """Of nodes that are not as usual."""
        self.feeds: dict[str, dict[str, Feeding]] = {}
        self.follows: dict[str, tuple[tuple[str, Channel], ...]] = {}
        """What each scheduler has brought from other cells."""
        self.queue: list[tuple[str, Event]] = []
        for role in self.lives:
            self.start(role)
        self.passes(1200)

    @property
    def store(self) -> dict[tuple[str, str], Record]:
        """What the anchor has made durable."""
        return self.stores["ta"]

    @property
    def schedulers(self) -> tuple[str, ...]:
        return tuple(f"ts-{cell}" for cell in self.cells)

    def start(self, role: str) -> None:
        """Start a role, again if it has run before."""
        self.lives[role] += 1
        for key in [key for key in self.timers if key[0] == role]:
            del self.timers[key]
        if role == "ta":
            made: Decider = Anchor(
                AnchorSettings("ta", self.schedulers, "namo", cells=self.cells, unix_offset_ms=0)
            )
        else:
            cell = role.removeprefix("ts-")
            made = Scheduler(
                SchedulerSettings(
                    role,
                    self.lives[role],
                    ("ta",),
                    elsewhere=("ta",),
                    cell=cell,
                    store_urls=(store_of(cell),),
                    point=CellPoint(cell, role, (f"mqtt://{cell}:1883",)),
                )
            )
        self.roles[role] = made
        records = list(self.stores.setdefault(role, {}).values())
        self._took(role, made.restore(records, self.now_ms))
        self.run()

    def feed(self, role: str, *events: Event) -> None:
        self.queue += [(role, one) for one in events]
        self.run()

    def run(self) -> None:
        while self.queue:
            role, event = self.queue.pop(0)
            self._took(role, self.roles[role].handle([event], self.now_ms))

    def _took(self, role: str, output: Output) -> None:
        for record in (*output.learnt, *output.records):
            if record.value is None:
                self.stores[role].pop((record.kind, record.key), None)
            else:
                self.stores[role][record.kind, record.key] = record
        if output.reach is not None:
            self.reach[role] = tuple(one.cell for one in output.reach)
        for timer in output.timers:
            self.timers.pop((role, timer.key), None)
            if timer.at_ms is not None:
                self.timers[role, timer.key] = timer.at_ms
        self.answers += output.answers
        if output.follows is not None:
            self.follows[role] = output.follows
        for send in output.sends:
            self.seen.append((role, send))
            if isinstance(send.to, ToRole):
                self._say(role, send.to.role, send)
            elif isinstance(send.to, ToNode) and send.to.node not in self.dead:
                self._node_hears(role.removeprefix("ts-"), send.to.node, send.body)

    def _say(self, role: str, to: str, send: Send) -> None:
        if to in self.roles and not {role, to} & self.cut:
            self.queue.append((to, Received(role, 0, 0, send.tenant, send.cause, send.body)))

    # Nodes.

    def _feeds(self, cell: str, node: str, body: Feed) -> None:
        if cell == self.nodes[node][0]:
            feeds = self.feeds.setdefault(node, {})
            feeds[body.service] = Feeding(body.service, body.number)
            if not body.sources:
                del feeds[body.service]

    def _node_hears(self, cell: str, node: str, body: Any) -> None:
        held = self.held.get(node, {})
        if isinstance(body, Assign):
            known = held.get(body.task)
            if known is not None and known.epoch >= body.epoch:
                return
            ready = InstanceState.READY
            held[body.task] = Holding(
                body.task, body.epoch, ready, body.generation, body.tuning, origin=body.origin
            )
            if body.origin is not None:
                self.awaits[node, body.task] = body.origin
            self._tell(node, body.task, cell)
        elif isinstance(body, Feed):
            self._feeds(cell, node, body)
        elif isinstance(body, Release):
            for task in [one for one in held if one == body.task]:
                if held[task].epoch <= body.epoch:
                    del held[task]
                    self.awaits.pop((node, task), None)
                    status = Status(1, task, body.epoch, InstanceState.STOPPED)
                    self.say(node, status, cell)
        elif isinstance(body, MemoryRequest) and (node, body.task) not in self.awaits:
            self.say(node, self._remembered(node, body, cell), cell)
        elif isinstance(body, MemoryState):
            self._given(node, body, cell)

    # What tasks remember.

    def _remembered(self, node: str, asked: MemoryRequest, cell: str) -> MemoryState:
        final = asked.task not in self.held.get(node, {})
        whole = self.memory.get((node, asked.task), b"")
        said = tell_of(MemoryState(asked.task, asked.epoch, final=final), whole, asked)
        if said.data is None:
            self.lying[store_of(cell), str(said.digest)] = whole
        return said

    def _fetched(self, state: MemoryState, cell: str) -> bytes | None:
        stores = (*state.store_urls, store_of(cell))
        found = (self.lying.get((one, str(state.digest))) for one in stores)
        return next((one for one in found if one is not None), None)

    def _given(self, node: str, state: MemoryState, cell: str) -> None:
        key = node, state.task
        if key not in self.awaits or self.awaits[key].epoch != state.epoch:
            return
        if state.digest is not None and state.data is None:
            fetched = self._fetched(state, cell)
            if fetched is None:
                return
            self.memory[key] = fetched
        elif state.digest is not None:
            self.memory[key] = whole_of(state, self.memory.get(key, b""))
        if state.final:
            del self.awaits[key]
            known = self.held[node][state.task]
            self.held[node][state.task] = structs.replace(known, origin=None)
        self._tell(node, state.task, cell)

    def _tell(self, node: str, task: str, cell: str) -> None:
        held, origin = self.held[node][task], self.awaits.get((node, task))
        whole = self.memory.get((node, task))
        status = Status(
            1,
            task,
            held.epoch,
            InstanceState.READY,
            generation=held.generation,
            awaits=origin.epoch if origin is not None else 0,
            remembers=digest_of(whole) if origin is not None and whole is not None else "",
        )
        self.say(node, status, cell)

    def say(self, node: str, body: Any, cell: str = "") -> None:
        """Have a node say something where it is."""
        at, incarnation = self.nodes[node]
        event = Received(node, incarnation, 1, "default", "test", body)
        self.queue.append((f"ts-{cell or at}", event))

    def born(self, node: str, cell: str, arrival: Arrival | None = None) -> None:
        """Have a node attach to a cell, with all that it holds."""
        self.dead.discard(node)
        _, incarnation = self.nodes.get(node, ("", 0))
        self.nodes[node] = (cell, incarnation + 1)
        held = tuple(self.held.setdefault(node, {}).values())
        inventory = self.inventories.get(node, INVENTORY)
        feeds = tuple(self.feeds.get(node, {}).values())
        self.say(node, Birth("1", "boot", inventory, held, feeds=feeds, arrival=arrival))
        self.run()

    def leaves(self, node: str, to: str) -> None:
        """Have a node say farewell to its cell, and where it goes."""
        self.say(node, Death("it moves", orderly=True, moved_to=to))
        self.run()

    def moves(self, node: str, to: str, *, attached: bool = True, handover: str = "") -> None:
        """Have a node attach to another cell."""
        source, incarnation = self.nodes[node]
        self.born(node, to, Arrival(source, incarnation, handover, attached))

    def passes(self, ms: int, *alive: str) -> None:
        """Let time pass; the nodes that live say so."""
        until_ms = self.now_ms + ms
        while self.now_ms < until_ms:
            self.now_ms += 100
            for node in alive:
                self.say(node, LoadReport(self.now_ms, 5.0))
            due = [key for key, at_ms in self.timers.items() if at_ms <= self.now_ms]
            for role, key in due:
                if self.timers.get((role, key), self.now_ms + 1) <= self.now_ms:
                    del self.timers[role, key]
                    self.feed(role, Fired(key))
            self.run()

    def goes(self, node: str, to: str) -> None:
        """Have a node attach to another cell, and leave its own then."""
        source, incarnation = self.nodes[node]
        self.moves(node, to)
        death = Death("it moves", orderly=True, moved_to=to)
        self.queue.append((f"ts-{source}", Received(node, incarnation, 9, "default", "t", death)))
        self.run()

    def told_at(self, cell: str, node: str, kind: type[Any]) -> list[Any]:
        """Return what a cell has told a node."""
        return [
            send.body
            for by, send in self.seen
            if by == f"ts-{cell}" and isinstance(send.body, kind) and send.to == ToNode(node)
        ]

    # What people do and see.

    def order(self, *names: str, **changes: Any) -> None:
        body = chain("svc", 1, *(names or ("a",)), **changes)
        self.feed("ta", Received("namo", 0, 0, "default", "test", body))

    def hear_at_anchor(self, sender: str, body: Any) -> None:
        """Have the anchor hear a scheduler."""
        self.feed("ta", Received(sender, 0, 0, "default", "test", body))

    def hand_over(self, node: str, cell: str) -> None:
        called = Called("c", "node.handover", HandOver(node, cell), "default", "test", 0)
        self.feed("ta", called)

    def task(self, name: str = "svc.a") -> TaskRecord:
        value = self.store["task", name].value
        assert isinstance(value, TaskRecord)
        return value

    def handovers(self, node: str) -> list[HandoverRecord]:
        found = [one.value for one in self.store.values() if isinstance(one.value, HandoverRecord)]
        return sorted((one for one in found if one.node == node), key=lambda one: one.number)

    def owners(self, task: str = "svc.a") -> list[str]:
        """Return the schedulers that may act on a task now."""
        found = []
        for name in self.schedulers:
            ts = self.roles[name]
            assert isinstance(ts, Scheduler)
            ts.desk.now_ms = self.now_ms
            if task in ts.table.tasks and ts.leases.hold("ta"):
                found.append(name)
        return found

    def told(self, node: str, kind: type[Any]) -> list[Any]:
        return [
            send.body
            for _, send in self.seen
            if isinstance(send.body, kind) and send.to == ToNode(node)
        ]

    def said(self, role: str, kind: type[Any], to: str = "") -> list[Any]:
        return [
            send.body
            for by, send in self.seen
            if by == role
            and isinstance(send.body, kind)
            and (not to or getattr(send.to, "role", "") == to)
        ]

    def route(self, cell: str, service: str = "svc") -> Any:
        ts = self.roles[f"ts-{cell}"]
        assert isinstance(ts, Scheduler)
        return ts.serving.route(service)
