"""The core under whatever comes: random histories, a simulated day, foreign frames."""

import random
from typing import Any

import msgspec
from device_harness import NODE, REPLY, SimNode, assign, chain, failed, invoke, of, tensor
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from device_agent.core import commands, events
from device_agent.core.admission import LIVE_MAX
from device_agent.core.capacity import HELD_MAX
from device_agent.core.finished import FINISHED_MAX
from protocols import codec
from protocols.codec import Frame
from protocols.errors import Blame, PeerError
from protocols.messages import (
    Accepted,
    Acknowledge,
    Assign,
    Birth,
    Cancel,
    Drain,
    Invoke,
    LinkReport,
    LoadReport,
    RebirthRequest,
    Release,
    Result,
    Status,
)
from protocols.messages.invocation import Edge, Plan, Step
from protocols.messages.task import InstanceState
from protocols.topics import Channel

TASKS = ("a", "b", "c")
tasks = st.sampled_from(TASKS)
small = st.integers(0, 6)


class NodeMachine(RuleBasedStateMachine):
    """Random schedulers, clients, executors and links around one core."""

    def __init__(self) -> None:
        super().__init__()
        self.node = SimNode()
        self.node.helpful = False
        self.online = False
        self.highest: dict[str, int] = {}
        self.invoked: dict[tuple[str, int], float] = {}
        self.answered: dict[tuple[str, int], int] = {}
        self.accepted: set[tuple[str, int]] = set()
        self.cancelled: set[str] = set()
        self.numbers = 0
        self.seen = 0

    def instances(self, *states: InstanceState) -> list[Any]:
        every = self.node.core.upkeep.instances.values()
        return [one for one in every if one.state in states]

    # The scheduler.

    @rule(task=tasks, epoch=small, generation=st.integers(1, 3))
    def assign(self, task: str, epoch: int, generation: int) -> None:
        before = {one.name: one.epoch for one in self.instances(InstanceState.READY)}
        said = self.node.hear(assign(task, epoch, generation))
        keeps = of(commands.Keep, said)
        if epoch < self.highest.get(task, -1):
            assert not keeps, "a stale epoch was accepted"
        if keeps:
            self.highest[task] = max(epoch, self.highest.get(task, -1))
        else:
            after = {one.name: one.epoch for one in self.instances(InstanceState.READY)}
            assert after == before

    @rule(task=tasks, epoch=small)
    def release(self, task: str, epoch: int) -> None:
        if of(commands.Forget, self.node.hear(Release(task, epoch))):
            self.highest[task] = max(epoch + 1, self.highest.get(task, -1))

    @rule(fresh=st.booleans())
    def reconnect(self, fresh: bool) -> None:
        running = {one.name for one in self.instances(InstanceState.READY)}
        self.node.tell(events.Disconnected("x"))
        self.node.connect()
        self.node.welcome(epoch=self.numbers if fresh else 1)
        assert {one.name for one in self.instances(InstanceState.READY)} == running

    @rule()
    def disconnect(self) -> None:
        self.node.tell(events.Disconnected("x"))

    @rule()
    def rebirth(self) -> None:
        self.node.hear(RebirthRequest("ts-1", 1))

    @rule(number=st.integers(0, 50))
    def acknowledge(self, number: int) -> None:
        self.node.hear(Acknowledge(number, self.node.incarnation))

    # The executors and the store.

    @rule(good=st.booleans(), pick=small)
    def fetched(self, good: bool, pick: int) -> None:
        waited = sorted(self.node.core.upkeep._fetching)
        if waited:
            tenant, one = waited[pick % len(waited)]
            ready = events.ArtifactReady(one, tenant)
            self.node.tell(ready if good else events.ArtifactFailed(one, "x", tenant=tenant))

    @rule(good=st.booleans(), pick=small, retryable=st.booleans())
    def started(self, good: bool, pick: int, retryable: bool) -> None:
        found = self.instances(InstanceState.DEPLOYING)
        if found:
            name = found[pick % len(found)].name
            bad = events.InstanceFailed(name, "x", Blame.USER, retryable)
            self.node.tell(events.InstanceReady(name) if good else bad)

    @rule(pick=small)
    def exited(self, pick: int) -> None:
        found = self.instances(InstanceState.READY, InstanceState.DRAINING)
        if found:
            name = found[pick % len(found)].name
            self.node.tell(events.InstanceExited(name, "killed"))
            self.node.calls = {c: e for c, e in self.node.calls.items() if e.instance != name}

    @rule(pick=small)
    def stopped(self, pick: int) -> None:
        found = [one for one in self.instances(InstanceState.DRAINING) if one.stopping]
        if found:
            name = found[pick % len(found)].name
            self.node.tell(events.InstanceStopped(name))
            self.node.calls = {c: e for c, e in self.node.calls.items() if e.instance != name}

    @rule(good=st.booleans(), pick=small)
    def call_ends(self, good: bool, pick: int) -> None:
        if self.node.calls:
            call = sorted(self.node.calls)[pick % len(self.node.calls)]
            if good:
                self.node.answer(call)
            else:
                del self.node.calls[call]
                self.node.tell(failed(call))

    # The clients.

    @rule(task=tasks, epoch=small, second=st.sampled_from((*TASKS, "")), budget=st.integers(0, 400))
    def invoke(self, task: str, epoch: int, second: str, budget: int) -> None:
        self.numbers += 1
        name = f"r{self.numbers}"
        steps = [(task, NODE, epoch)]
        if second and second != task:
            steps.append((second, NODE, epoch))
        self.invoked[name, 1] = self.node.now_ms + budget
        self.node.call(invoke(name, chain(*steps), budget_ms=budget))

    @rule(pick=small)
    def invoke_again(self, pick: int) -> None:
        live = sorted(self.node.core.requests.admission.live)
        if live:
            name = live[pick % len(live)]
            request = self.node.core.requests.admission.live[name]
            before = len(self.node.calls)
            self.node.call(invoke(name, request.plan, attempt=request.attempt))
            assert len(self.node.calls) == before, "it runs twice"

    @rule(pick=small)
    def cancel(self, pick: int) -> None:
        live = sorted(self.node.core.requests.admission.live)
        if live:
            self.cancelled.add(live[pick % len(live)])
            self.node.call(Cancel(live[pick % len(live)]))

    @rule(ms=st.sampled_from((1, 19, 25, 300, 5_000, 70_000)))
    def time_passes(self, ms: int) -> None:
        self.node.after(ms)

    # What always holds.

    @invariant()
    def answers_are_counted(self) -> None:
        for one in self.node.said[self.seen :]:
            body = getattr(one, "body", None)
            if isinstance(body, Result):
                key = body.request, body.attempt
                self.answered[key] = self.answered.get(key, 0) + 1
                assert self.answered[key] == 1, f"{key} was answered twice"
            elif isinstance(body, Accepted):
                self.accepted.add((body.request, body.attempt))
        self.seen = len(self.node.said)

    @invariant()
    def one_epoch_serves(self) -> None:
        self.node.check()
        for task, held in self.node.core.assignments.held.items():
            every = [held.current, held.coming, held.leaving, *held.retiring]
            names = [one.name for one in every if one is not None]
            assert len(names) == len(set(names))
            ready = [one for one in every if one and one.state is InstanceState.READY]
            assert len(ready) <= 2, "the serving one, and one whose grace is not over"
            assert all(one.epoch <= self.highest[task] for one in ready)

    @invariant()
    def slots_and_calls_agree(self) -> None:
        calls = self.node.core.requests.workers._calls.values()
        for one in self.node.core.upkeep.instances.values():
            assert len(one.running) == sum(run.instance is one for run in calls)
            assert one.fetching == 0

    @invariant()
    def what_is_held_is_journalled(self) -> None:
        held = self.node.core.assignments.held
        kept = {task for task, one in held.items() if not one.released}
        assert kept == self.node.journal.keys()

    def teardown(self) -> None:
        """Once every deadline is over, every request has had its one answer."""
        if self.node.incarnation:
            self.node.tell(events.Disconnected("x"))
        self.node.connect()
        self.node.after(1000)
        self.answers_are_counted()
        assert len(self.node.core.requests) == 0
        late = {key for key in self.invoked if key[0] not in self.cancelled} - self.answered.keys()
        # An answer that was kept while the node was offline is dropped at its deadline.
        assert all(self.invoked[key] <= self.node.now_ms for key in late)
        self.node.helpful = True
        for task in TASKS:
            self.node.hear(Release(task, 100))
        self.node.after(200_000)
        assert not self.node.core.upkeep.instances or self.instances(InstanceState.DRAINING)


TestNode = NodeMachine.TestCase
TestNode.settings = settings(stateful_step_count=60, deadline=None, derandomize=True)


def test_online_every_request_is_answered_exactly_once() -> None:
    """Without cuts nothing is left out: a seeded crowd, checked to the last request."""
    dice = random.Random(7)
    node = SimNode()
    node.join()
    for task in TASKS:
        node.hear(assign(task, 1, replicas=2))
    epochs = dict.fromkeys(TASKS, 1)
    for number in range(3000):
        first, second = dice.sample(TASKS, 2)
        steps = [(first, NODE, epochs[first])]
        if dice.random() < 0.5:
            steps.append((second, NODE, epochs[second]))
        node.call(invoke(f"r{number}", chain(*steps), budget_ms=dice.randint(0, 50)))
        if dice.random() < 0.05:
            task = dice.choice(TASKS)
            epochs[task] += 1
            node.hear(assign(task, epochs[task], dice.randint(1, 2)))
        if dice.random() < 0.02:
            name = node.core.assignments.held[first].current
            if name is not None and name.state is InstanceState.READY:
                node.tell(events.InstanceExited(name.name, "killed"))
        while node.calls and dice.random() < 0.6:
            call = dice.choice(sorted(node.calls))
            if dice.random() < 0.9:
                node.answer(call)
            else:
                del node.calls[call]
                node.tell(failed(call))
        node.after(dice.choice((0, 1, 5, 30)))
    node.after(10_000)
    results = [one.request for one in of(Result, node.said)]
    assert sorted(results) == sorted(f"r{number}" for number in range(3000))
    good = [one for one in of(Result, node.said) if one.failure is None]
    assert 300 < len(good) < 3000


def sizes(node: SimNode) -> dict[str, int]:
    core = node.core
    return {
        "timers": len(core._turn.timers),
        "heap": len(core._turn.timers._heap),
        "outbox": len(core.outbox),
        "held": len(core.assignments.held),
        "instances": len(core.upkeep.instances),
        "tombstones": len(core.tasks.tombstones),
        "live": len(core.requests),
        "finished": len(core.requests.admission.finished),
        "calls": len(core.requests.workers._calls),
        "counts": len(core.counts),
        "kept": len(core.replies._kept._all),
    }


def test_a_day_at_1_hz_grows_nothing() -> None:
    node = SimNode()
    node.join()
    node.hear(assign("a"))
    early: dict[str, int] = {}
    reports = 0
    for second in range(86_400):
        now = node.now_ms + 1000
        node.at(now)
        load = LoadReport(int(now), 10.0 + second % 3)
        reports += len(of(LoadReport, node.tell(events.Sampled(load))))
        node.tell(events.LinkSampled(LinkReport(int(now), "eth0", "wired", carrier=True)))
        if second % 60 == 0:
            node.call(invoke(f"r{second}", chain(("a", NODE, 1))))
            node.answer()
        if second % 3600 == 0:
            node.tell(events.Disconnected("broker restarts"))
            node.join()
        if second % 600 == 0:
            node.hear(assign("b", second))
            node.hear(Release("b", second))
            for status in of(Status, node.said):
                node.hear(Acknowledge(status.number, node.incarnation))
        node.said.clear()
        node.started.clear()
        node.tombstones.clear()
        if second == 40_000:
            early = sizes(node)
    assert reports >= 86_000
    late = sizes(node)
    assert {name: late[name] for name in early if late[name] > early[name] + 2} == {}


def test_ten_thousand_malformed_and_foreign_frames_change_nothing() -> None:
    dice = random.Random(11)
    node = SimNode()
    node.join()
    node.hear(assign("t"))
    good = [
        codec.encode(Frame(1, "x", 1, 0, "default", "c", body), 1 << 20)
        for body in (
            invoke("bad", chain(("t", NODE, 99))),
            Assign("t", "s", 0, 0, assign().manifest),
            Release("t", 0),
            Acknowledge(1, 99),
            Status(1, "t", 9, InstanceState.READY),
            Birth("0", "b", node.core._inventory),
            Invoke("r", "s", 5, {"x": tensor()}, REPLY, 1, None),
        )
    ]
    dropped = 0
    for _ in range(10_000):
        frame = bytearray(dice.choice(good))
        for _ in range(dice.randint(0, 4)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        del frame[dice.randint(1, len(frame)) :: 3 if dice.random() < 0.1 else len(frame)]
        try:
            body = codec.decode(bytes(frame), 64 * 1024).body
        except PeerError:
            dropped += 1
            continue
        if isinstance(body, Assign | Release | Drain):
            continue  # a bit of luck could make these right
        node.hear(body, dice.choice((Channel.COMMAND, Channel.INVOKE)), sender="stranger")
        node.after(1)
    assert dropped > 1000
    assert node.state() is InstanceState.READY
    assert len(node.started) == 1
    assert len(node.core.counts) < 20
    assert of(commands.Execute, node.call(invoke("r-good")))


def test_a_flood_is_bounded_everywhere() -> None:
    node = SimNode()
    node.join()
    node.helpful = False
    for number in range(2000):
        node.hear(assign(f"t{number}"))
        node.hear(Release(f"u{number}", 5))
    node.helpful = True
    node.hear(assign("t0"))
    steps = (
        Step("t0", "elsewhere", 1, (), ("y",)),
        Step("t1", NODE, 1, (Edge("x", "t0", "y"), Edge("z", "t9", "y")), ("y",)),
    )
    for number in range(5000):
        node.call(invoke(f"r{number}", Plan("s", 1, steps, (Edge("y", "t1", "y"),))))
        node.call(msgspec.structs.replace(invoke(f"s{number}"), reply_to=f"{REPLY}"))
    after = sizes(node)
    assert after["held"] <= HELD_MAX
    assert after["live"] <= LIVE_MAX
    assert after["finished"] <= FINISHED_MAX
    assert after["tombstones"] <= 1024
    assert after["outbox"] <= 512
