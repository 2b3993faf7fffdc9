"""How much a fleet asks of its controller, and a controller of its machine, over a day.

The deciders are the production ones, a Task Anchor and a Task Scheduler; nodes are one table of
numbers. A node's load follows the trace, its own share of it, and a noise of its own; it reports
when that has moved by a step since its last report, and as heartbeat, through the very messages
that a daemon sends. Tasks come and go with the trace, are placed by the anchor, assigned by the
scheduler and taken or refused by the node's memory. What is not modelled: the wire (nothing is lost
or late), executors (an assigned task is ready at once), invocations (they pass from client to node
without the controller) and the network's own limits.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from controller.anchor.decider import Anchor
from controller.anchor.settings import Settings as AnchorSettings
from controller.decider import Decider, Event, Fired, Output, Received, Send, ToNode, ToRole
from controller.records import TASK, TaskRecord, TaskState
from controller.scheduler.decider import Scheduler
from controller.scheduler.settings import Settings as SchedulerSettings
from controller.twin.svg import Chart, Line, Panel
from protocols.codec import VERSION, Frame
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages import (
    Assign,
    Birth,
    Body,
    LoadReport,
    Release,
    ServiceDelete,
    ServiceOrder,
    Status,
)
from protocols.messages.hierarchy import Demand, TaskSpec
from protocols.messages.invocation import REQUEST, Edge
from protocols.messages.presence import ExecutorInfo, Inventory
from protocols.messages.task import InstanceState
from protocols.qoais import ServiceKind

BATCH: Final = 256
"""Events that the host hands over in one turn."""
CPU_STEP_PERCENT: Final = 10.0
"""As a node's settings say when nobody has changed them."""
NOISE_PERCENT: Final = 3.0
NOISE_MEMORY: Final = 0.98
"""How much of a node's noise is left after a step."""
SCALE_S: Final = 600.0
"""Between two looks at how many tasks the load asks for."""
MAX_TURNS: Final = 64
"""In which what one event sets off must come to rest."""
TARGET_PERCENT: Final = 70.0
"""A fleet is large enough when its busiest hour takes no more of its cores."""
_PORT: Final = Port("x", Dtype.UINT8, (-1,))


class Question(Struct, frozen=True):
    """What is asked."""

    nodes: int = 10_000
    hours: float = 24.0
    step_s: float = 120.0
    """Between two looks at all nodes."""
    heartbeat_s: float = 300.0
    tasks: int = 0
    """At the top of the trace; 0: half as many as nodes."""
    task_cpu_percent: float = 60.0
    """Of one core, at the top of the trace."""
    task_memory_bytes: int = 256 << 20
    cpu_count: int = 4
    memory_bytes: int = 4 << 30
    base_percent: tuple[float, float] = (4.0, 12.0)
    """Load of a node without tasks."""
    swing_percent: tuple[float, float] = (5.0, 35.0)
    """What of a node's load follows the trace beside its tasks."""
    seed: int = 1


class Moment(Struct, frozen=True):
    """One step of the day."""

    at_s: float
    load: float
    """Of the trace, 1 at its top."""
    cpu_percent: float
    """Mean of the nodes."""
    messages_per_s: float
    bytes_per_s: float
    ts_ms_per_s: float
    """Processor time of the scheduler."""
    ta_ms_per_s: float
    wanted: int
    placed: int
    waiting: int
    busy_nodes: int
    """With at least one task."""


class Answer(Struct, frozen=True):
    """What came of it."""

    question: Question
    moments: tuple[Moment, ...]
    messages: dict[str, int]
    """By kind."""
    ts_load_percent: tuple[float, float]
    """Of one core, mean and in the busiest step."""
    ta_load_percent: tuple[float, float]
    messages_per_s: tuple[float, float]
    bytes_per_s: tuple[float, float]
    peak_wanted: int
    peak_waiting: int
    nodes_needed: int
    """So that every task finds memory and the mean load stays within the target."""
    needed_for: str
    """Which of the two decides."""
    seconds: float = 0.0


class Fleet:
    """The nodes as one table."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._dice = np.random.default_rng(question.seed)
        count = question.nodes
        self.names = [f"node-{number:06d}" for number in range(count)]
        self.slots = {name: slot for slot, name in enumerate(self.names)}
        self.tasks: list[dict[str, int]] = [{} for _ in range(count)]
        """Epoch of each task held, by node."""
        self.task_counts: NDArray[np.int64] = np.zeros(count, np.int64)
        self.cpu_percent: NDArray[np.float64] = np.zeros(count)
        self._base = self._dice.uniform(*question.base_percent, count)
        self._swing = self._dice.uniform(*question.swing_percent, count)
        self._noise = np.zeros(count)
        self._said: NDArray[np.float64] | None = None
        """The load that each node reported last."""
        # Heartbeats of a fleet are spread: nobody began at the same time.
        self._said_s = -self._dice.uniform(0, question.heartbeat_s, count)
        self.inventory = Inventory(
            "simulated",
            "aarch64",
            "linux",
            question.cpu_count,
            question.memory_bytes,
            32 << 30,
            executors=(ExecutorInfo("wasm", "sim"),),
            task_memory_bytes=question.memory_bytes // 2,
            max_instances=64,
        )
        self._room = self.inventory.task_memory_bytes // question.task_memory_bytes

    def look(self, now_s: float, load: float) -> list[int]:
        """Let time pass to the next look; return the nodes that report."""
        question = self._question
        spread = NOISE_PERCENT * (1 - NOISE_MEMORY**2) ** 0.5
        self._noise = NOISE_MEMORY * self._noise + self._dice.normal(0.0, spread, len(self.names))
        share = question.task_cpu_percent / question.cpu_count
        wanted = self._base + self._swing * load + self._noise + self.task_counts * share * load
        self.cpu_percent = np.clip(wanted, 0.0, 100.0)
        if self._said is None:
            self._said = self.cpu_percent.copy()
        moved = np.abs(self.cpu_percent - self._said) >= CPU_STEP_PERCENT
        due = now_s - self._said_s >= question.heartbeat_s
        slots = np.flatnonzero(moved | due)
        self._said[slots] = self.cpu_percent[slots]
        self._said_s[slots] = now_s
        return [int(slot) for slot in slots]

    def assigned(self, slot: int, assign: Assign) -> Status:
        """Take a task, or refuse it."""
        held = self.tasks[slot]
        fits = assign.task in held or len(held) < self._room
        if fits:
            held[assign.task] = assign.epoch
            self.task_counts[slot] = len(held)
        state = InstanceState.READY if fits else InstanceState.FAILED
        reason = "" if fits else "no task memory left"
        return Status(1, assign.task, assign.epoch, state, reason, generation=assign.generation)

    def released(self, slot: int, release: Release) -> Status:
        """Give a task up."""
        self.tasks[slot].pop(release.task, None)
        self.task_counts[slot] = len(self.tasks[slot])
        return Status(1, release.task, release.epoch, InstanceState.STOPPED)


class Day:
    """One simulated day of a controller."""

    def __init__(self, question: Question, trace: Sequence[tuple[float, float]]) -> None:
        self.question = question
        self.fleet = Fleet(question)
        self._times = np.array([at for at, _ in trace])
        self._loads = np.array([load for _, load in trace])
        self._ts = Scheduler(
            SchedulerSettings(
                heartbeat_ms=int(question.heartbeat_s * 1000),
                sample_ms=int(question.step_s * 1000),
            )
        )
        self._ta = Anchor(AnchorSettings())
        self._roles: dict[str, Decider] = {one.name: one for one in (self._ts, self._ta)}
        self._queues: dict[str, list[Event]] = {name: [] for name in self._roles}
        self._now_ms = 0
        self._number = 0
        self._timers: dict[tuple[str, str], tuple[int, int]] = {}
        """By role and key: when it is due, and after what time it was set, ms."""
        self._generations: dict[int, int] = {}
        self._before = 0
        self.cost_s: dict[str, float] = dict.fromkeys(self._roles, 0.0)
        self.messages: Counter[str] = Counter()
        self.bytes = 0
        self._sizes: dict[str, int] = {}
        self._states: dict[str, TaskState] = {}
        self._wanted = 0
        self._scale_s = 0.0

    # The roles.

    def _tell(self, role: str, sender: str, body: Body) -> None:
        self._number += 1
        incarnation = 0 if sender in self._roles or sender == "namo-main" else 1
        self._queues[role].append(
            Received(sender, incarnation, self._number, "default", "sim", body)
        )
        if len(self._queues[role]) >= BATCH:
            self._turn(role)

    def _turn(self, role: str) -> None:
        queue = self._queues[role]
        if queue:
            self._queues[role] = []
            began_s = perf_counter()
            output = self._roles[role].handle(queue, self._now_ms)
            self.cost_s[role] += perf_counter() - began_s
            self._take(role, output)

    def _rest(self) -> None:
        """Hand over what waits until everything has come to rest."""
        for _ in range(MAX_TURNS):
            if not any(self._queues.values()):
                return
            for role in self._queues:
                self._turn(role)

    def _take(self, role: str, output: Output) -> None:
        for record in output.records:
            if record.kind == TASK:
                if isinstance(record.value, TaskRecord):
                    self._states[record.key] = record.value.state
                else:
                    self._states.pop(record.key, None)
        for timer in output.timers:
            self._timers.pop((role, timer.key), None)
            if timer.at_ms is not None:
                wait_ms = timer.at_ms - self._now_ms
                self._timers[role, timer.key] = timer.at_ms, wait_ms
        for send in (*output.early, *output.sends):
            self._send(role, send)

    def _send(self, role: str, send: Send) -> None:
        match send.to:
            case ToRole(role=peer) if peer in self._queues:
                self._queues[peer].append(Received(role, 0, 0, "default", "sim", send.body))
            case ToNode(node=node):
                self._count(role, send.body)
                slot = self.fleet.slots[node]
                if isinstance(send.body, Assign):
                    self._said(node, self.fleet.assigned(slot, send.body))
                elif isinstance(send.body, Release):
                    self._said(node, self.fleet.released(slot, send.body))
            case _:
                self._count(role, send.body)

    def _said(self, node: str, body: Body) -> None:
        self._count(node, body)
        self._tell(self._ts.name, node, body)

    def _count(self, sender: str, body: Body) -> None:
        """Count a message on the wire, with the size that one of its kind has."""
        kind = type(body).__name__
        size = self._sizes.get(kind)
        if size is None:
            frame = Frame(VERSION, sender, 1, 1, "default", "sim", body)
            size = self._sizes[kind] = len(msgspec.msgpack.encode(frame))
        self.messages[kind] += 1
        self.bytes += size

    # The day.

    def begin(self) -> None:
        """Start both roles and have every node join."""
        for name, role in self._roles.items():
            self._take(name, role.restore((), self._now_ms))
        self._rest()
        birth = Birth("sim", "boot", self.fleet.inventory)
        for name in self.fleet.names:
            self._said(name, birth)
        self._rest()
        self._reset()

    def _reset(self) -> None:
        self.cost_s = dict.fromkeys(self._roles, 0.0)
        self.bytes = 0
        self._before = self.messages.total()

    def step(self, at_s: float) -> Moment:
        """Let one step pass and return what it was like."""
        question = self.question
        self._now_ms = int(at_s * 1000)
        load = float(np.interp(at_s, self._times, self._loads))
        self._reset()
        for slot in self.fleet.look(at_s, load):
            cpu_percent = float(self.fleet.cpu_percent[slot])
            used = question.memory_bytes // 2
            self._said(
                self.fleet.names[slot],
                LoadReport(
                    self._now_ms,
                    cpu_percent,
                    memory_used_bytes=used,
                    memory_available_bytes=used,
                ),
            )
        self._rest()
        if at_s >= self._scale_s:
            self._scale_s = at_s + SCALE_S
            self._want(round(load * (question.tasks or question.nodes // 2)))
        self._rest()
        self._fire()
        waiting = sum(state is TaskState.WAITING for state in self._states.values())
        step_s = question.step_s
        return Moment(
            at_s,
            load,
            float(self.fleet.cpu_percent.mean()),
            (self.messages.total() - self._before) / step_s,
            self.bytes / step_s,
            1000 * self.cost_s[self._ts.name] / step_s,
            1000 * self.cost_s[self._ta.name] / step_s,
            self._wanted,
            len(self._states) - waiting,
            waiting,
            int(np.count_nonzero(self.fleet.task_counts)),
        )

    def _fire(self) -> None:
        """Fire what is due, once; what comes back sooner than the next step is charged as often."""
        due = [key for key, (at_ms, _) in self._timers.items() if at_ms <= self._now_ms]
        for role, key in due:
            _, wait_ms = self._timers.pop((role, key))
            before_s = self.cost_s[role]
            self._queues[role].append(Fired(key))
            self._turn(role)
            times = max(1.0, 1000 * self.question.step_s / max(1, wait_ms))
            again = (role, key) in self._timers
            if again:
                self.cost_s[role] = before_s + times * (self.cost_s[role] - before_s)
        self._rest()

    def _want(self, count: int) -> None:
        """Order or delete services of one task each until there are so many."""
        while self._wanted < count:
            self._wanted += 1
            self._tell(self._ta.name, "namo-main", self._order(self._wanted))
        while self._wanted > count:
            delete = ServiceDelete(f"svc-{self._wanted}", self._generations[self._wanted])
            self._tell(self._ta.name, "namo-main", delete)
            self._wanted -= 1

    def _order(self, number: int) -> ServiceOrder:
        question = self.question
        self._generations[number] = generation = self._generations.get(number, 0) + 1
        artifact = ArtifactRef(f"sha256:{number % 16:064x}", 100_000)
        limits = Limits(memory_bytes=question.task_memory_bytes)
        spec = TaskSpec(
            f"svc-{number}.t",
            "t",
            Manifest(ExecutorKind.WASM, artifact, (_PORT,), (_PORT,), limits),
            (Edge("x", REQUEST, "x"),),
            demand=Demand(question.task_cpu_percent),
        )
        outputs = (Edge("x", "t", "x"),)
        return ServiceOrder(
            f"svc-{number}", "day", ServiceKind.COMPUTING, generation, (spec,), outputs
        )


def answer(
    question: Question,
    trace: Sequence[tuple[float, float]],
    progress: Callable[[float], None] | None = None,
) -> Answer:
    """Simulate the day and add it up; `progress` hears the share that is done."""
    began_s = perf_counter()
    day = Day(question, trace)
    day.begin()
    moments = []
    steps = int(question.hours * 3600 / question.step_s)
    for number in range(1, steps + 1):
        moments.append(day.step(number * question.step_s))
        if progress is not None:
            progress(number / steps)
    needed, needed_for = _needed(question, moments)
    return Answer(
        question,
        tuple(moments),
        dict(sorted(day.messages.items())),
        _mean_and_peak([one.ts_ms_per_s / 10 for one in moments]),
        _mean_and_peak([one.ta_ms_per_s / 10 for one in moments]),
        _mean_and_peak([one.messages_per_s for one in moments]),
        _mean_and_peak([one.bytes_per_s for one in moments]),
        max(one.wanted for one in moments),
        max(one.waiting for one in moments),
        needed,
        needed_for,
        perf_counter() - began_s,
    )


def _mean_and_peak(values: Sequence[float]) -> tuple[float, float]:
    return sum(values) / max(1, len(values)), max(values, default=0.0)


def _needed(question: Question, moments: Sequence[Moment]) -> tuple[int, str]:
    """Return how many such nodes the busiest moment asks for, and for what."""
    room = question.memory_bytes // 2 // question.task_memory_bytes
    most = max(moments, key=lambda one: (one.wanted, one.load))
    by_memory = -(-most.wanted // max(1, room))
    own = (sum(question.base_percent) + sum(question.swing_percent) * most.load) / 2
    demand = most.wanted * question.task_cpu_percent * most.load / question.cpu_count
    by_cpu = -int(-demand // max(1.0, TARGET_PERCENT - own))
    return (by_cpu, "processors") if by_cpu > by_memory else (by_memory, "memory")


def picture(told: Answer) -> str:
    """Return the day as an SVG chart."""
    moments, question = told.moments, told.question
    hours = [one.at_s / 3600 for one in moments]

    def line(name: str, values: Iterable[float]) -> Line:
        return Line(name, list(zip(hours, values, strict=True)))

    panels = (
        Panel(
            "load of the trace and of the nodes, %",
            (
                line("trace", (100 * one.load for one in moments)),
                line("nodes' CPU", (one.cpu_percent for one in moments)),
            ),
        ),
        Panel("messages per second", (line("all", (one.messages_per_s for one in moments)),)),
        Panel(
            "processor time, ms in each second",
            (
                line("scheduler", (one.ts_ms_per_s for one in moments)),
                line("anchor", (one.ta_ms_per_s for one in moments)),
            ),
        ),
        Panel(
            "tasks and nodes",
            (
                line("wanted", (one.wanted for one in moments)),
                line("placed", (one.placed for one in moments)),
                line("waiting", (one.waiting for one in moments)),
                line("busy nodes", (one.busy_nodes for one in moments)),
            ),
        ),
    )
    title = f"{question.nodes} nodes over {question.hours:g} hours, reporting on change"
    span = (hours[0], hours[-1]) if hours else (0.0, 1.0)
    return Chart(title, "hours", panels, span).svg()
