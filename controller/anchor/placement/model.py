"""The objective: what a plan costs, in milliseconds that one request through the service loses.

A plan gives every *unit* (a task, or the tasks of one group) a node and each of its tasks a program
(the manifest, or a variant). Its cost, which `place` and the exact solver of the tests minimise
alike, is the sum of

- for each task on its node (`Unit.base`): waiting for the processor, how full the memory is, the
  way from and to the client, a start when it leaves its place, and two terms that only order the
  choices: a less accurate variant instead of the manifest, a node that has just failed the task;
- for a task that has a choice beside its node also the run itself and what starts, memory and
  lateness cost it in this form (`forms.py`);
- for each pair of tasks on one node: what each adds to the other's waiting and to the memory in
  use, linearly, at the load that the node has before the plan;
- for each edge between two nodes: half a round trip at either end, three for a value that is
  fetched, and the bytes over either link (`Model.ways`). On one node an edge costs nothing.

A node takes no more than its free task memory and its free instances. What an elastic task needs of
it is its share, and the rest only where no other task has that headroom already (`booking.py`).
"""

from collections.abc import Iterable, Sequence
from itertools import islice, product
from typing import Final, NamedTuple

import numpy as np

from controller.anchor.placement.columns import LOAD_MAX, Bools, Columns, Floats
from controller.anchor.placement.facts import Request
from controller.anchor.placement.figures import Cost, cost_of
from controller.anchor.placement.forms import LEVELS, Terms, Weighed, weigh
from controller.anchor.placement.rules import Program, Rule, chosen, rules
from controller.booking import share
from protocols.errors import TonaBug
from protocols.forms import has_choice
from protocols.manifest import Port, tensor_bytes
from protocols.messages.hierarchy import TaskSpec
from protocols.messages.invocation import INLINE_MAX_BYTES, REQUEST
from protocols.messages.quality import Warmth
from protocols.messages.task import RESTING_SHARE, is_elastic

SLICE_MS: Final = 3.0
"""What a program waits for the processor beside its own run, for another's slice of time."""
MEMORY_MS: Final = 5.0
"""Of a node whose task memory is full: what runs there is the first to suffer."""
HOP_MS: Final = 0.5
"""At either end of a way between machines: packing, broker, wake-up."""
MOVE_MS: Final = 40.0
"""Of leaving the node that runs the task: a start, and a second instance meanwhile."""
VARIANT_MS: Final = 10_000.0
"""Of taking a variant: only where the manifest fits nowhere."""
FAILED_MS: Final = 100_000.0
"""Of a node that has just failed the task: better than none."""
LIST_LENGTH: Final = 256
"""Of the one axis that is open until a request comes: a text, a list of finds."""
PICTURE_ELEMENTS: Final = 512 * 512
"""At least so many has a value with several open axes: a picture."""
FETCH_HALVES: Final = 3
"""Half round trips of a value that is announced and then fetched."""
MAX_OPTIONS: Final = 64
"""Combinations of programs that are weighed for one unit; fewest variants first."""
MAX_COMBINATIONS: Final = 4096


class Task(NamedTuple):
    """One request, ready to be weighed; arrays have one entry for each node."""

    request: Request
    programs: tuple[Program, ...]
    """The manifest first."""
    costs: tuple[Cost, ...]
    """Of each program."""
    chooses: bool
    """Whether there is anything to choose beside the node."""
    now_ms: float
    """What a run takes as it runs now."""
    own: int | None
    """The node where the snapshot has counted it already."""
    take: Floats
    """Share of the node's processors that it adds."""
    client: Floats | None
    """Way from and to the client."""


class Unit(NamedTuple):
    """Tasks that share a node, and what each option of their programs asks of each node."""

    members: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    """For each option the program of each member."""
    fit: list[Bools]
    """By option: where all of it fits by itself."""
    terms: list[Terms]
    """By option: the cost by itself."""
    base: list[Floats]
    """By option: their sum; meaningless where it does not fit."""
    need: list[Floats]
    """By option: bytes of task memory beyond what is counted there already."""
    weight: list[Floats]
    """By option: ms of run and slice that suffer from others' load."""
    take: Floats
    inst: Floats
    """Instances beyond those that are counted there already."""
    pinned: int | None
    """The node that it keeps, which fits unexamined."""

    @property
    def cheapest(self) -> Floats:
        """The cost by itself under the cheapest option, for each node; inf where it cannot be."""
        if self.pinned is not None:
            kept = np.full(len(self.take), np.inf)
            kept[self.pinned] = self.base[0][self.pinned]
            return kept
        costs = [np.where(fit, base, np.inf) for fit, base in zip(self.fit, self.base, strict=True)]
        return costs[0] if len(costs) == 1 else np.minimum.reduce(costs)


class Model:
    """All of one `place` in numbers. Pure; everything is computed once."""

    def __init__(self, requests: Sequence[Request], columns: Columns) -> None:
        self.requests = requests
        self.columns = columns
        before = np.minimum(columns.load, LOAD_MAX)
        self.alpha = 1 / (1 - before) ** 2
        """Ms that a share of load costs each ms of weight: the slope of waiting there."""
        self.beta = MEMORY_MS / np.maximum(columns.memory, 1)
        """Ms that a byte costs each task beside it."""
        self._memory = self.beta * (columns.memory - columns.free)
        self._share = 0.01 / columns.cores
        self._hops: dict[tuple[int, int], Floats] = {}
        specs = [request.spec for request in requests]
        fed = {edge.source for spec in specs for edge in spec.inputs}
        fed |= {one.name for spec in specs for one in spec.manifest.infers}
        self.tasks = [self._task(request, request.spec.step not in fed) for request in requests]
        self.rules: list[list[list[Rule]]] = [
            [rules(task.request, program, columns) for program in task.programs]
            for task in self.tasks
        ]
        self.units = [self._unit(members) for members in _members(requests)]
        self.ways = self._ways()

    def needs(self, task: Task, at: int) -> Floats:
        """Return the bytes that a program needs of each node beyond what is counted there."""
        request, own = task.request, task.own
        full = float(task.programs[at].memory_bytes)
        others = self.columns.headroom
        if own is not None:
            others = others.copy()
            others[own] -= request.headroom_bytes
        part = self._share_of(task, at)
        booked = np.where(part < 1.0, np.minimum(full, np.floor(full * part) + 1), full)
        need = np.asarray(booked + np.maximum(0.0, full - booked - others), np.float64)
        if own is not None:
            need[own] = 0.0 if request.fixed else max(0.0, need[own] - _counted(request))
        return need

    def _share_of(self, task: Task, at: int) -> Floats:
        """Return the part of its memory that a task counts as on each node."""
        spec = task.request.spec
        levels = [
            share(one, task.request.per_s)
            if is_elastic(spec.deviceless, spec.manifest, one)
            else 1.0
            for one in LEVELS
        ]
        if levels[0] == 1.0:
            return np.ones(len(self.columns.names))
        found: Floats = np.array(levels)[self.weighed(task, at, self.wait(task, at)).level]
        return found

    def wait(self, task: Task, at: int) -> Floats:
        """Return what a run of a program waits for the processor of each node, ms."""
        load = np.minimum(self.columns.load + task.take, LOAD_MAX)
        wait: Floats = (task.costs[at].run + SLICE_MS) * load / (1 - load)
        return wait

    def terms(self, task: Task, at: int, need: Floats) -> Terms:
        """Return the cost of one task by itself under one of its programs."""
        columns, request, program = self.columns, task.request, task.programs[at]
        terms: Terms = {
            "compute": self.wait(task, at),
            "memory": self._memory + self.beta * need,
        }
        if task.chooses:
            terms |= self.weighed(task, at, terms["compute"]).terms
        if task.client is not None:
            terms["client"] = task.client
        if request.current:
            terms["move"] = np.full(len(need), MOVE_MS)
            terms["move"][columns.at((request.current,))] = 0.0
        if not program.form:
            terms["variant"] = np.full(len(need), VARIANT_MS)
        if request.failed:
            terms["failed"] = np.where(columns.at(tuple(request.failed)), FAILED_MS, 0.0)
        return terms

    def weighed(self, task: Task, at: int, wait: Floats) -> Weighed:
        """Return what one of its programs costs a task that has a choice, and what stays of it."""
        cost, program = task.costs[at], task.programs[at]
        return weigh(task.request, program, cost, wait, self.beta, task.now_ms)

    def warmth(self, task: Task, at: int, node: int) -> Warmth:
        """Return what is to stay on a node of a deviceless instance while nobody asks."""
        if not task.chooses:
            return Warmth.FORM
        return LEVELS[self.weighed(task, at, self.wait(task, at)).level[node]]

    def cost(self, options: Sequence[int], nodes: Sequence[int]) -> float:
        """Return the objective of a whole plan: an option and a node for each unit."""
        total = 0.0
        for at, (unit, option, node) in enumerate(zip(self.units, options, nodes, strict=True)):
            total += unit.base[option][node]
            for before in range(at):
                if nodes[before] == node:
                    total += self.beside(before, options[before], at, option, node)
        for (one, other), way in self.ways.items():
            if nodes[one] != nodes[other]:
                total += way[nodes[one]] + way[nodes[other]]
        return float(total)

    def beside(self, one: int, option: int, other: int, other_option: int, node: int) -> float:
        """Return what two units cost each other on one node."""
        a, b = self.units[one], self.units[other]
        load = a.weight[option][node] * b.take[node] + b.weight[other_option][node] * a.take[node]
        memory = len(a.members) * b.need[other_option][node] + len(b.members) * a.need[option][node]
        return float(self.alpha[node] * load + self.beta[node] * memory)

    def _task(self, request: Request, last: bool) -> Task:
        spec, columns = request.spec, self.columns
        own = columns.index.get(request.fixed or request.reserved_on)
        take = spec.demand.cpu_percent * self._share
        if own is not None:
            take[own] = 0.0
        client: Floats | None = None
        asked = {edge.port for edge in spec.inputs if edge.source == REQUEST}
        if asked:
            client = self._way([one for one in spec.manifest.inputs if one.name in asked])
            origins = columns.at(spec.origins)
            if origins.any():
                client = np.where(origins, 0.0, client + client[origins].min())
        if last:
            way = self._way(spec.manifest.outputs)
            client = way if client is None else client + way
        found = chosen(request, columns.driving)
        costs = tuple(self._cost(request, one) for one in found)
        chooses = len(found) > 1 or has_choice(spec)
        return Task(
            request, found, costs, chooses, _now_ms(request, found, costs, own), own, take, client
        )

    def _cost(self, request: Request, program: Program) -> Cost:
        """Return what is known of a program, for the bytes that the task takes in."""
        asked = {edge.port for edge in request.spec.inputs}
        ports = [one for one in program.manifest.inputs if one.name in asked]
        size = request.input_bytes or float(sum(map(_bytes, ports)))
        key = program.manifest.artifact.digest, program.provider
        return cost_of(program, size, self.columns, self.columns.figures.get(key, {}))

    def _way(self, ports: Sequence[Port]) -> Floats:
        """Return what a message with these values costs at either of its ends."""
        sizes = [_bytes(port) for port in ports]
        halves = FETCH_HALVES if any(size > INLINE_MAX_BYTES for size in sizes) else 1
        key = halves, sum(sizes)
        if key not in self._hops:
            columns = self.columns
            way = (halves / 2) * columns.round_trip_ms + sum(sizes) * columns.byte_ms
            self._hops[key] = way + HOP_MS
        return self._hops[key]

    def _unit(self, members: tuple[int, ...]) -> Unit:
        tasks = [self.tasks[at] for at in members]
        options = _options(tasks)
        take = _sum(task.take for task in tasks)
        each = [_instances(task.request.spec) for task in tasks]
        inst = np.full(len(take), sum(each))
        for task, one in zip(tasks, each, strict=True):
            if task.own is not None:
                inst[task.own] -= min(one, task.request.instances)
        pinned = self._pinned(tasks)
        unit = Unit(members, options, [], [], [], [], [], take, inst, pinned)
        for option in options:
            self._option(unit, tasks, option)
        return unit

    def _option(self, unit: Unit, tasks: Sequence[Task], option: tuple[int, ...]) -> None:
        """Add one option to a unit."""
        columns = self.columns
        pairs = list(zip(tasks, option, strict=True))
        needs = [self.needs(task, at) for task, at in pairs]
        weights = [task.costs[at].run + SLICE_MS for task, at in pairs]
        terms: Terms = {}
        for (task, at), need in zip(pairs, needs, strict=True):
            for name, values in self.terms(task, at, need).items():
                terms[name] = terms[name] + values if name in terms else values
        total = _sum(needs)
        if len(tasks) > 1:
            all_of = _sum(weights)
            load = _sum(
                (all_of - weight) * task.take for weight, task in zip(weights, tasks, strict=True)
            )
            terms["beside"] = self.alpha * load + self.beta * (len(tasks) - 1) * total
        fit = (total <= columns.free) & (unit.inst <= columns.room)
        for member, program_at in zip(unit.members, option, strict=True):
            for rule in self.rules[member][program_at]:
                fit &= rule.holds
        if unit.pinned is not None:
            fit[unit.pinned] = not unit.fit
        unit.fit.append(fit)
        unit.terms.append(terms)
        unit.base.append(_sum(terms.values()))
        unit.need.append(total)
        unit.weight.append(_sum(weights))

    def _pinned(self, tasks: Sequence[Task]) -> int | None:
        """Return the node that the unit keeps; none where its tasks would keep several."""
        kept = {task.request.fixed for task in tasks} - {""}
        return self.columns.index.get(kept.pop()) if len(kept) == 1 else None

    def _ways(self) -> dict[tuple[int, int], Floats]:
        """Return for each two units with edges between them what a hop costs at either end."""
        unit_of = {
            self.requests[member].spec.step: at
            for at, unit in enumerate(self.units)
            for member in unit.members
        }
        sent: dict[tuple[str, str], set[str]] = {}
        for request in self.requests:
            for edge in request.spec.inputs:
                if edge.source in unit_of:
                    sent.setdefault((edge.source, request.spec.step), set()).add(edge.source_port)
        steps = {request.spec.step: request.spec for request in self.requests}
        ways: dict[tuple[int, int], Floats] = {}
        for (source, target), names in sent.items():
            one, other = sorted((unit_of[source], unit_of[target]))
            if one != other:
                ports = [port for port in steps[source].manifest.outputs if port.name in names]
                way = self._way(ports)
                ways[one, other] = ways[one, other] + way if (one, other) in ways else way
        return ways


def _sum(values: Iterable[Floats]) -> Floats:
    total: Floats | None = None
    for one in values:
        total = one if total is None else total + one
    if total is None:
        raise TonaBug("a sum of nothing has no length")
    return total


def _instances(spec: TaskSpec) -> float:
    """Return what a task counts as at most, of the instances of a node."""
    rests = is_elastic(spec.deviceless, spec.manifest, Warmth.FORM) and spec.qos.latency_ms is None
    return RESTING_SHARE if rests else 1.0


def _counted(request: Request) -> int:
    """Return what the snapshot has counted for a task on its own node."""
    if request.reserved_bytes is None:
        return request.spec.manifest.limits.memory_bytes
    return request.reserved_bytes + request.headroom_bytes


def _bytes(port: Port) -> int:
    """Return how large a value is taken to be."""
    known = tuple(one for one in port.shape if one >= 0)
    missing = len(port.shape) - len(known)
    if not missing:
        return tensor_bytes(port.dtype, known)
    list_bytes = tensor_bytes(port.dtype, (*known, LIST_LENGTH))
    picture_bytes = tensor_bytes(port.dtype, (PICTURE_ELEMENTS,))
    return list_bytes if missing == 1 else max(list_bytes, picture_bytes)


def _options(tasks: Sequence[Task]) -> tuple[tuple[int, ...], ...]:
    """Return the combinations of programs of a unit, those with fewest variants first.

    Of those with equally many, the forms that run fastest where they are fastest come first.
    """
    if len(tasks) == 1:
        return tuple((at,) for at in range(len(tasks[0].programs)))
    ranks = [_ranks(task) for task in tasks]
    found = islice(product(*(sorted(one, key=one.__getitem__) for one in ranks)), MAX_COMBINATIONS)

    def key(option: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        pairs = list(zip(tasks, ranks, option, strict=True))
        variants = sum(not task.programs[at].form for task, _, at in pairs)
        return variants, sum(rank[at] for _, rank, at in pairs), option

    return tuple(sorted(found, key=key)[:MAX_OPTIONS])


def _ranks(task: Task) -> dict[int, int]:
    """Return the place of each program of a task, the fastest form first."""
    order = sorted(
        range(len(task.programs)),
        key=lambda at: (not task.programs[at].form, float(task.costs[at].run.min(initial=0)), at),
    )
    return {at: rank for rank, at in enumerate(order)}


def _now_ms(
    request: Request, programs: Sequence[Program], costs: Sequence[Cost], own: int | None
) -> float:
    """Return what a run takes as a task runs now; 0 where it does not."""
    for program, cost in zip(programs, costs, strict=True):
        if (program.name, program.provider) == request.program and own is not None:
            return float(cost.run[own])
    return 0.0


def _members(requests: Sequence[Request]) -> list[tuple[int, ...]]:
    """Return the units: which tasks share a node, in the order of their first."""
    groups: dict[tuple[bool, str], list[int]] = {}
    for at, request in enumerate(requests):
        spec = request.spec
        key = (True, spec.group) if spec.group else (False, spec.task)
        groups.setdefault(key, []).append(at)
    return [tuple(members) for members in groups.values()]
