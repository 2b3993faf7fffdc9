"""Two anchors over one scheduler: whatever both do at once, no node is overbooked."""

from collections import deque
from typing import Any

import pytest
from anchor_bench import MEMORY, chain, room, sized
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from msgspec import structs

from controller.anchor.decider import Anchor
from controller.anchor.decider import Settings as AnchorSettings
from controller.decider import Fired, Linked, Output, Received, Record, ToNode, ToRole
from controller.records import TaskRecord, TaskState
from controller.scheduler.decider import Scheduler
from controller.scheduler.decider import Settings as SchedulerSettings
from protocols.messages import Assign, Birth, Escalation, LoadReport, Release, ServiceDelete, Status
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Holding
from protocols.messages.task import InstanceState

A, B, TS, NAMO = "ta-a", "ta-b", "ts-main", "namo-main"
ROOMS = {"n1": 2, "n2": 2, "n3": 3}
"""Nodes, and for how many tasks of the smallest size they have room."""
ROUNDS = 400


class Node:
    """What a node holds: the newest epoch of each task, ready as soon as it may speak."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = 1
        self.number = 0
        self.held: dict[str, Assign] = {}

    def birth(self) -> Birth:
        holdings = tuple(
            Holding(one.task, one.epoch, InstanceState.READY, one.generation, one.tuning)
            for one in self.held.values()
        )
        return Birth("0", "b1", room(ROOMS[self.name]), holdings)

    def hear(self, body: Any) -> Any:
        self.number += 1
        if isinstance(body, Assign):
            held = self.held.get(body.task)
            if held is None or held.epoch <= body.epoch:
                self.held[body.task] = body
            now = self.held[body.task]
            state, epoch, generation = InstanceState.READY, now.epoch, now.generation
        elif isinstance(body, Release):
            held = self.held.get(body.task)
            if held is not None and held.epoch > body.epoch:
                return None
            self.held.pop(body.task, None)
            state, epoch, generation = InstanceState.STOPPED, body.epoch, 0
        else:
            return None
        return Status(self.number, body.task, epoch, state, generation=generation)


class Shared:
    """Two anchors, a scheduler and nodes; each pair hears each other in order, by hand."""

    def __init__(self) -> None:
        self.now_ms = 1000
        self.wire: dict[tuple[str, str], deque[Any]] = {}
        self.stores: dict[str, dict[tuple[str, str], Record]] = {A: {}, B: {}, TS: {}}
        self.timers: dict[tuple[str, str], int] = {}
        self.roles: dict[str, Any] = {}
        self.nodes = {name: Node(name) for name in ROOMS}
        self.epoch = 0
        self.refusals = 0
        for name in (A, B, TS):
            self.start(name)
        for node in self.nodes.values():
            self.say(node.name, TS, node.birth())

    def start(self, name: str) -> None:
        """Start a role from its store; its links begin anew, and both ends are told."""
        if name == TS:
            self.epoch += 1
            role: Any = Scheduler(SchedulerSettings(name=TS, epoch=self.epoch, anchors=(A, B)))
        else:
            role = Anchor(AnchorSettings(name, (TS,), NAMO))
        self.roles[name] = role
        self.timers = {key: at for key, at in self.timers.items() if key[0] != name}
        for pair in [pair for pair in self.wire if name in pair]:
            del self.wire[pair]
        self.take(name, role.restore(list(self.stores[name].values()), self.now_ms))
        for other in (A, B) if name == TS else (TS,):
            if other in self.roles:
                self.feed(other, Linked(name))
                self.feed(name, Linked(other))

    def feed(self, role: str, event: Any) -> None:
        self.take(role, self.roles[role].handle([event], self.now_ms))

    def take(self, role: str, output: Output) -> None:
        store = self.stores[role]
        # What is merely learnt is durable soon; the simulator tries that a crash loses it.
        for record in (*output.learnt, *output.records):
            if record.value is None:
                store.pop((record.kind, record.key), None)
            else:
                store[record.kind, record.key] = record
        for timer in output.timers:
            self.timers.pop((role, timer.key), None)
            if timer.at_ms is not None:
                self.timers[role, timer.key] = timer.at_ms
        for send in (*output.early, *output.sends):
            match send.to:
                case ToRole(role=to) if to in self.roles:
                    self.refusals += isinstance(send.body, Escalation) and bool(send.body.refused)
                    self.say(role, to, send.body)
                case ToNode(node=to) if to in self.nodes:
                    self.say(role, to, send.body)
                case _:
                    pass

    def say(self, sender: str, to: str, body: Any) -> None:
        self.wire.setdefault((sender, to), deque()).append(body)

    def deliver(self, pair: tuple[str, str]) -> None:
        queue = self.wire[pair]
        body = queue.popleft()
        if not queue:
            del self.wire[pair]
        sender, to = pair
        if to in self.nodes:
            answer = self.nodes[to].hear(body)
            if answer is not None:
                self.say(to, TS, answer)
            return
        node = self.nodes.get(sender)
        incarnation, number = (node.incarnation, node.number) if node else (0, 0)
        self.feed(to, Received(sender, incarnation, number, "default", "test", body))

    def settle(self) -> None:
        for _ in range(ROUNDS):
            if not self.wire:
                return
            for pair in sorted(self.wire):
                while pair in self.wire:
                    self.deliver(pair)
        raise AssertionError(f"it does not come to rest: {sorted(self.wire)}")

    def passes(self, ms: int) -> None:
        """Let time pass, with heartbeats of the nodes."""
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms:
            self.now_ms = min(end_ms, self.now_ms + 500)
            for node in self.nodes.values():
                node.number += 1
                self.say(node.name, TS, LoadReport(self.now_ms, 5.0))
                self.deliver((node.name, TS))
            for key, at_ms in sorted(self.timers.items()):
                if at_ms <= self.now_ms and self.timers.get(key) == at_ms:
                    del self.timers[key]
                    self.feed(key[0], Fired(key[1]))

    def order(self, anchor: str, service: str, generation: int, *sizes: int, **more: Any) -> None:
        names = "abc"[: len(sizes)]
        made = chain(service, generation, *names, **more)
        tasks = tuple(
            sized(one, size * MEMORY) for one, size in zip(made.tasks, sizes, strict=True)
        )
        body = structs.replace(made, tasks=tasks)
        self.feed(anchor, Received(NAMO, 0, 0, "default", "test", body))

    def delete(self, anchor: str, service: str, generation: int, **more: Any) -> None:
        body = ServiceDelete(service, generation, **more)
        self.feed(anchor, Received(NAMO, 0, 0, "default", "test", body))

    def tasks(self, anchor: str) -> dict[str, TaskRecord]:
        return dict(self.roles[anchor].book.tasks)

    def booked(self, node: str) -> int:
        """Return what the durable records of both anchors reserve on a node."""
        return sum(
            record.value.reserved.get(node, 0)
            for name in (A, B)
            for record in self.stores[name].values()
            if isinstance(record.value, TaskRecord)
        )


@pytest.fixture
def shared() -> Shared:
    shared = Shared()
    shared.settle()
    return shared


def test_an_anchor_plans_around_what_another_one_has_reserved(shared: Shared) -> None:
    shared.order(A, "s", 1, 2, spares=0, specs={"nodes": ("n1",)})
    shared.settle()
    shared.order(B, "t", 1, 2, spares=0, specs={"nodes": ("n1", "n2")})
    assert shared.tasks(B)["t.a"].nodes == ("n2",), "it knows before it asks"
    shared.settle()
    assert shared.refusals == 0
    shared.order(B, "u", 1, 1, spares=0, specs={"nodes": ("n1",)})
    task = shared.tasks(B)["u.a"]
    assert task.state is TaskState.WAITING
    assert task.placement is not None
    told = {one.node: one.reason for one in task.placement.rejected}["n1"]
    assert told.startswith("has 0 MB of task memory left")


def test_of_two_plans_at_once_one_has_the_node_and_the_other_another(shared: Shared) -> None:
    for anchor, service in ((A, "s"), (B, "t")):
        shared.order(anchor, service, 1, 2, spares=0, specs={"nodes": ("n1", "n2")})
    first = {shared.tasks(A)["s.a"].nodes, shared.tasks(B)["t.a"].nodes}
    assert len(first) == 1, "both plan for the same node"
    shared.settle()
    assert shared.refusals == 1
    nodes = [one for a in (A, B) for task in shared.tasks(a).values() for one in task.nodes]
    assert sorted(nodes) == ["n1", "n2"]
    assert {task.state for a in (A, B) for task in shared.tasks(a).values()} == {TaskState.RUNNING}


def test_who_found_no_room_has_it_when_the_other_one_is_gone(shared: Shared) -> None:
    for anchor, service in ((A, "s"), (B, "t")):
        shared.order(anchor, service, 1, 2, spares=0, specs={"nodes": ("n1",)})
    shared.settle()
    waits = next(a for a in (A, B) if not next(iter(shared.tasks(a).values())).nodes)
    [task] = shared.tasks(waits).values()
    assert task.state is TaskState.WAITING
    assert not task.reserved
    has, service = (A, "s") if waits == B else (B, "t")
    shared.delete(has, service, 1)
    shared.settle()
    [task] = shared.tasks(waits).values()
    assert task.state is TaskState.RUNNING


def test_a_service_that_moves_between_anchors_stays_where_it_has_room(shared: Shared) -> None:
    """What is reserved for it by the one is not in the way of the other."""
    shared.order(A, "s", 1, 2, spares=0, specs={"nodes": ("n1",)})
    shared.settle()
    above = shared.tasks(A)["s.a"].epoch_high + 1000
    more = {"spares": 0, "specs": {"nodes": ("n1",)}, "epochs_above": above}
    shared.order(B, "s", 2, 2, **more)
    shared.settle()
    assert shared.tasks(B)["s.a"].state is TaskState.RUNNING
    shared.delete(A, "s", 2, transferred=True)
    shared.settle()
    assert shared.booked("n1") == 2 * MEMORY
    assert shared.refusals == 0


class TwoAnchors(RuleBasedStateMachine):
    """Orders, deletions, transfers and restarts; messages arrive in any order between pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Shared()
        self.generation = 0
        self.at: dict[str, str] = {}

    @initialize()
    def begin(self) -> None:
        self.shared.settle()

    @rule(
        anchor=st.sampled_from((A, B)),
        service=st.sampled_from(("s0", "s1", "s2", "s3")),
        sizes=st.lists(st.integers(1, 2), min_size=1, max_size=2),
        spares=st.integers(0, 2),
    )
    def order(self, anchor: str, service: str, sizes: list[int], spares: int) -> None:
        self.generation += 1
        holder = self.at.setdefault(service, anchor)
        self.shared.order(holder, service, self.generation, *sizes, spares=spares)

    @precondition(lambda self: self.at)
    @rule(at=st.integers(0, 9))
    def delete(self, at: int) -> None:
        service = sorted(self.at)[at % len(self.at)]
        self.shared.delete(self.at.pop(service), service, self.generation)

    @precondition(lambda self: self.shared.wire)
    @rule(at=st.integers(0, 99), many=st.integers(1, 8))
    def deliver(self, at: int, many: int) -> None:
        pairs = sorted(self.shared.wire)
        pair = pairs[at % len(pairs)]
        for _ in range(many):
            if pair in self.shared.wire:
                self.shared.deliver(pair)
                self.no_node_is_overbooked()

    @rule(name=st.sampled_from((A, B, TS)))
    def restart(self, name: str) -> None:
        self.shared.start(name)
        if name == TS:
            for node in self.shared.nodes.values():
                node.incarnation += 1
                self.shared.say(node.name, TS, node.birth())

    @rule()
    def rest(self) -> None:
        """Everything has been heard: what both have on paper fits, too."""
        self.shared.settle()
        self.no_node_is_overbooked()
        for node, tasks in ROOMS.items():
            assert self.shared.booked(node) <= tasks * MEMORY, node

    @rule(ms=st.sampled_from((500, 5000)))
    def wait(self, ms: int) -> None:
        self.shared.passes(ms)

    @invariant()
    def no_node_is_overbooked(self) -> None:
        scheduler = self.shared.roles[TS]
        scheduler.table.holds.settle(scheduler.table.tasks)
        for node, tasks in ROOMS.items():
            held = scheduler.table.holds.reserved_bytes(node)
            assert held <= tasks * MEMORY, node

    def teardown(self) -> None:
        self.shared.settle()
        assert all(self.shared.roles[TS].nodes.state(node) is NodeState.ONLINE for node in ROOMS)


TwoAnchors.TestCase.settings = settings(stateful_step_count=30, deadline=None)
test_two_anchors_and_faults = TwoAnchors.TestCase
