"""Whatever is ordered, moved, lost and deleted: no node is overbooked, no question unanswered."""

from typing import Any

from anchor_bench import MEMORY, Bench, chain, room, said, sized
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

from controller.anchor.decider import Settings
from controller.anchor.lifecycle import HOMELESS
from controller.booking import may_grow_to
from controller.decider import Output
from controller.records import TaskState
from protocols.messages import (
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    NodeSummary,
    RunFigures,
    SchedulerHello,
    ServiceDelete,
    TaskReport,
)
from protocols.messages.hierarchy import Attempt, NodeState, TaskQos
from protocols.messages.quality import Leeway
from protocols.messages.task import Deviceless, InstanceState

CELLS = ("ts-a", "ts-b")
ROOMS = {f"{cell[-1]}{at}": (cell, 2 + at) for cell in CELLS for at in range(3)}
"""Nodes, their cells, and for how many tasks of the smallest size they have room."""
SERVICES = ("s0", "s1", "s2")
LEEWAY = Leeway(cpu_percent_max=400.0, replicas_max=4)

nodes = st.sampled_from(sorted(ROOMS))
services = st.sampled_from(SERVICES)


class Schedulers(RuleBasedStateMachine):
    """An anchor and the schedulers of two cells, which do whatever their envelopes allow."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(Settings(schedulers=CELLS))
        self.held: dict[tuple[str, str], EnvelopeGrant] = {}
        """By scheduler and task."""
        self.used: dict[str, int] = {}
        self.leases: dict[str, list[range]] = {}
        self.generation = 0
        self.asked = 0

    def take(self, output: Output) -> None:
        for send in output.sends:
            role = getattr(send.to, "role", "")
            if isinstance(send.body, EnvelopeGrant):
                task = send.body.spec.task
                self.held[role, task] = send.body
                lease = range(send.body.epoch_from, send.body.epoch_to + 1)
                for old in self.leases.setdefault(task, []):
                    assert not (lease and old and lease[0] <= old[-1] and old[0] <= lease[-1])
                self.leases[task].append(lease)
            elif isinstance(send.body, EnvelopeRevoke):
                self.held.pop((role, send.body.task), None)

    def grant(self, at: int) -> tuple[str, EnvelopeGrant]:
        keys = sorted(self.held)
        key = keys[at % len(keys)]
        return key[0], self.held[key]

    @initialize()
    def begin(self) -> None:
        for node in sorted(ROOMS):
            self.node(node, NodeState.ONLINE)

    @rule(node=nodes, state=st.sampled_from((NodeState.ONLINE, *NodeState)))
    def node(self, node: str, state: NodeState) -> None:
        cell, tasks = ROOMS[node]
        self.take(self.bench.hear(NodeSummary(node, state, 1, room(tasks)), cell))

    @rule(
        service=services,
        steps=st.integers(1, 3),
        size=st.integers(1, 2),
        spares=st.integers(0, 2),
        follows=st.sampled_from((None, None, Deviceless())),
        latency_ms=st.sampled_from((None, 5.0, 1000.0)),
    )
    def order(
        self,
        service: str,
        steps: int,
        size: int,
        spares: int,
        follows: Deviceless | None,
        latency_ms: float | None,
    ) -> None:
        self.generation += 1
        names = ("a", "b", "c")[:steps]
        qos = TaskQos(latency_ms=latency_ms)
        specs = {"leeway": LEEWAY, "deviceless": follows, "qos": qos}
        order = chain(service, self.generation, *names, spares=spares, specs=specs)
        tasks = tuple(sized(one, size * MEMORY) for one in order.tasks)
        self.take(self.bench.hear(structs.replace(order, tasks=tasks), "namo-main"))

    @rule(service=services)
    def delete(self, service: str) -> None:
        self.take(self.bench.hear(ServiceDelete(service, self.generation), "namo-main"))

    @rule()
    def all_ready(self) -> None:
        """Every scheduler has done as it was granted."""
        for (by, task), grant in sorted(self.held.items()):
            epoch = max(self.used.get(task, 0), grant.epoch_from)
            self.used[task] = epoch
            report = TaskReport(task, grant.generation, grant.nodes[0], epoch, InstanceState.READY)
            self.take(self.bench.hear(report, by))

    @precondition(lambda self: self.held)
    @rule(at=st.integers(0, 99), to=st.integers(0, 9), state=st.sampled_from(InstanceState))
    def report(self, at: int, to: int, state: InstanceState) -> None:
        by, grant = self.grant(at)
        task = grant.spec.task
        epoch = max(self.used.get(task, 0), grant.epoch_from)
        self.used[task] = epoch
        node = grant.nodes[to % len(grant.nodes)]
        self.take(self.bench.hear(TaskReport(task, grant.generation, node, epoch, state), by))

    @precondition(lambda self: self.held)
    @rule(
        at=st.integers(0, 99),
        indicator=st.sampled_from(("", "", "latency_ms", "accuracy_percent")),
        failed=st.integers(0, 3),
        passed_ms=st.sampled_from((0, 100, 2000)),
    )
    def escalate(self, at: int, indicator: str, failed: int, passed_ms: int) -> None:
        by, grant = self.grant(at)
        self.take(self.bench.passes(passed_ms))
        self.asked += 1
        attempts = tuple(Attempt(f"run on {node}", "no") for node in grant.nodes[:failed])
        question: Any = Escalation(
            f"e{self.asked}", grant.spec.task, grant.generation, "why", attempts, 0, indicator
        )
        output = self.bench.hear(question, by)
        [answer] = said(output, EscalationAnswer, by)
        assert answer.number == question.number
        assert answer.reason
        self.take(output)
        again = said(self.bench.hear(question, by), EscalationAnswer, by)
        assert again == [answer] or question.task not in self.bench.ta.book.tasks

    @precondition(lambda self: self.held)
    @rule(
        at=st.integers(0, 99),
        per_s=st.sampled_from((0.001, 0.05, 1.0, 100.0)),
        run_ms=st.sampled_from((1.0, 50.0)),
    )
    def ran(self, at: int, per_s: float, run_ms: float) -> None:
        """A task is asked more often, or less."""
        by, grant = self.grant(at)
        told = RunFigures(
            grant.spec.task, grant.nodes[0], runs=9, run_ms=run_ms, input_bytes=100.0, per_s=per_s
        )
        self.take(self.bench.hear(told, by))

    @rule(ms=st.sampled_from((500, 5000, 100_000)))
    def wait(self, ms: int) -> None:
        self.take(self.bench.passes(ms))

    @rule()
    def crash(self) -> None:
        self.take(self.bench.restart())

    @rule(cell=st.sampled_from(CELLS))
    def forgetful(self, cell: str) -> None:
        for key in [key for key in self.held if key[0] == cell]:
            del self.held[key]
        self.take(self.bench.hear(SchedulerHello(cell, 1), cell))

    @invariant()
    def no_node_is_overbooked(self) -> None:
        growths: dict[str, int] = {}
        for task in self.bench.ta.book.tasks.values():
            for node, size in task.reserved.items():
                growths[node] = max(growths.get(node, 0), may_grow_to(task) - size)
        for node, held in self.bench.reserved().items():
            assert held + max(0, growths[node]) <= ROOMS[node][1] * MEMORY, node
            assert self.bench.ta.book.ledger.headroom(node) == max(0, growths[node])

    @invariant()
    def the_sums_are_those_of_the_records(self) -> None:
        assert self.bench.ta.book.ledger.memory_bytes == self.bench.reserved()

    @invariant()
    def what_may_run_somewhere_has_room_there(self) -> None:
        for task in self.bench.ta.book.tasks.values():
            if task.state not in HOMELESS:
                assert task.nodes
                assert set(task.nodes) <= task.reserved.keys()

    @invariant()
    def a_service_is_placed_as_a_whole_in_one_cell(self) -> None:
        book = self.bench.ta.book
        for service in book.services:
            tasks = book.ordered(service)
            assert len({one.heir or one.scheduler for one in tasks if one.nodes}) <= 1
            new = [one for one in tasks if not one.served and one.generation == 1]
            placed = {one.state is not TaskState.ACCEPTED and bool(one.nodes) for one in new}
            assert len(placed) <= 1 or len(new) < len(tasks)


Schedulers.TestCase.settings = settings(stateful_step_count=40, deadline=None)
test_schedulers_and_faults = Schedulers.TestCase
