"""What a person reads of a plan: scores, spares, and why each other node was rejected."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from controller.anchor.placement.columns import Floats, Ints
from controller.anchor.placement.model import Model
from controller.anchor.placement.search import MAX_TRIES, lowest
from controller.anchor.placement.weighed import options
from controller.anchor.placement.whole import Whole
from controller.records import Placement, Rejection

MAX_REJECTIONS: Final = 32
"""Of each task; they are kept with its record."""
MAX_SCORES: Final = 8
"""Nodes whose terms are kept, the best ones."""
MAX_REASONS: Final = 6
"""Reasons that are counted in one sentence."""
MAX_RANKED: Final = MAX_REJECTIONS + 1 + 64
"""Nodes that are put in order: the chosen one, the most spares, and those that are rejected."""
FEASIBLE: Final = "feasible"
RANK: Final = "rank"
PLAN: Final = "plan"
"""Stage of a node that could run the task, were there a plan for the others."""
_MB: Final = 20


def placed(whole: Whole, revision: int) -> dict[str, Placement]:
    """Return the placement of every task of a plan.

    Scores of a group's tasks are those of the group.
    """
    model = whole.model
    found: dict[str, Placement] = {}
    for at, unit in enumerate(model.units):
        ranked = _ranked(whole, at)
        option = unit.options[whole.options[at]]
        for member, program in zip(unit.members, option, strict=True):
            request = model.requests[member]
            chosen = tuple(ranked.names[: 1 + request.spares])
            task, node = model.tasks[member], whole.nodes[at]
            taken = task.programs[program]
            reason = f"{chosen[0]} has the lowest score of {ranked.feasible} feasible nodes"
            if request.fixed:
                reason = f"it stays on {chosen[0]}"
            if not taken.form:
                reason += f", as variant {taken.name}: there is no place for its own program"
            elif taken.name or taken.provider:
                where = f" on {taken.provider}" if taken.provider else ""
                reason += f", as {taken.name or 'the task itself'}{where}: that costs least"
            rejected = tuple(islice(_rejected(whole, at, member, ranked), MAX_REJECTIONS))
            found[request.spec.task] = Placement(
                *(revision, chosen, ranked.scores, rejected, reason),
                *(taken.name, taken.provider, model.warmth(task, program, node)),
                options(whole, at, member, ranked.names[:MAX_SCORES], ranked.hops),
            )
    return {one.spec.task: found[one.spec.task] for one in model.requests}


class _Ranked(NamedTuple):
    """The nodes that could take a unit while the others stay: its own first, then the best."""

    names: list[str]
    """Enough for spares, scores and rejections."""
    scores: dict[str, dict[str, float]]
    unfit: Ints
    """The first of the others of its cell, counted over the whole snapshot."""
    feasible: int
    """How many could take it."""
    hops: Floats
    """What hops cost it on each node of its cell."""


def refused(model: Model, revision: int, *, certain: bool) -> dict[str, Placement]:
    """Return the reasons when there is no plan; `certain`: not only that none was found."""
    nodes = len(model.columns.names)
    lonely = [unit for unit in model.units if not any(fit.any() for fit in unit.fit)]
    alone = {model.requests[member].spec.task for unit in lonely for member in unit.members}
    if lonely:
        culprit = model.requests[lonely[0].members[0]].spec.task
        others = f"{culprit} finds no node, and a service is placed whole or not at all"
    elif certain:
        others = f"each task finds a node, but no cell of {nodes} nodes takes all of them together"
    else:
        others = f"no plan for all tasks together was found in {MAX_TRIES} tries"
    found: dict[str, Placement] = {}
    for at, unit in enumerate(model.units):
        for member in unit.members:
            task = model.requests[member].spec.task
            reason = others
            if task in alone:
                why = counted(_Why(model, at, member, 0).counts())
                reason = f"none of {nodes} nodes can run it: {why}"
            rejected = islice(_refused(model, at, member, others), MAX_REJECTIONS)
            found[task] = Placement(revision, rejected=tuple(rejected), reason=reason)
    return {one.spec.task: found[one.spec.task] for one in model.requests}


def counted(reasons: Mapping[str, int]) -> str:
    """Return clauses with how many nodes each is said of, the most frequent ones first."""
    ordered = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    parts = [f"{clause} ({count})" for clause, count in ordered[:MAX_REASONS]]
    others = sum(count for _, count in ordered[MAX_REASONS:])
    if others:
        parts.append(f"other reasons ({others})")
    return ", ".join(parts)


def _ranked(whole: Whole, at: int) -> _Ranked:
    start = whole.cell.start
    costs, hops = whole.costs(at)
    own = whole.nodes[at] - start
    fits = np.isfinite(costs)
    count = int(fits.sum())
    order = costs.copy()
    order[own] = -1.0
    best = lowest(order, MAX_RANKED)
    columns = whole.model.columns
    names = [columns.names[start + one] for one in best]
    unfit = start + np.flatnonzero(~fits)[:MAX_REJECTIONS]
    return _Ranked(names, _scores(whole, at, best[:MAX_SCORES], costs, hops), unfit, count, hops)


def _scores(
    whole: Whole, at: int, places: Ints, costs: Floats, hops: Floats
) -> dict[str, dict[str, float]]:
    """Return the terms of the costs at some places of the cell; those that are 0 left out."""
    nodes = whole.cell.start + places
    terms = whole.model.units[at].terms[whole.options[at]]
    parts = {name: values[nodes] for name, values in terms.items() if name != "beside"}
    parts["hops"] = hops[places]
    parts["beside"] = costs[places] - sum(parts.values())
    names = [whole.model.columns.names[node] for node in nodes]
    rows = np.stack(list(parts.values()), axis=1).round(3).tolist()
    return {
        name: {part: value for part, value in zip(parts, row, strict=True) if value}
        for name, row in zip(names, rows, strict=True)
    }


def _rejected(whole: Whole, at: int, member: int, ranked: _Ranked) -> Iterator[Rejection]:
    """Yield the nodes of the cell that cannot run the task, then the worse ones, then the rest."""
    model, cell = whole.model, whole.cell
    names = model.columns.names
    request = model.requests[member]
    why = _Why(model, at, member, whole.options[at])
    used = set(whole.nodes)
    for node in ranked.unfit.tolist():
        taken = whole.taken(at, node) if node in used else (0.0, 0.0)
        yield Rejection(names[node], FEASIBLE, why(node, taken))
    first = ranked.names[0]
    worse = f"the task keeps {first}" if request.fixed else f"{first} scores better"
    for name in ranked.names[1 + request.spares :]:
        yield Rejection(name, RANK, worse)
    for node in (*range(cell.start), *range(cell.stop, len(names))):
        yield Rejection(names[node], RANK, "belongs to another cell than the service's plan")


def _refused(model: Model, at: int, member: int, others: str) -> Iterator[Rejection]:
    names = model.columns.names
    fits = np.logical_or.reduce(model.units[at].fit)
    why = _Why(model, at, member, 0)
    for node in np.flatnonzero(~fits).tolist():
        yield Rejection(names[node], FEASIBLE, why(node, (0.0, 0.0)))
    for node in np.flatnonzero(fits).tolist():
        yield Rejection(names[node], PLAN, f"could run it, but {others}")


class _Why:
    """Why nodes cannot run one task, under one option of its unit."""

    def __init__(self, model: Model, at: int, member: int, option: int) -> None:
        unit = model.units[at]
        chosen = list(zip(unit.members, unit.options[option], strict=True))
        self._columns = model.columns
        self._own = model.rules[member][dict(chosen)[member]]
        self._others = [
            (model.requests[one].spec.step, rule)
            for one, program in chosen
            for rule in model.rules[one][program]
        ]
        self._asked = sum(model.tasks[one].programs[at].memory_bytes for one, at in chosen)
        self._need, self._inst = unit.need[option], unit.inst
        self._size = len(chosen)

    def __call__(self, node: int, taken: tuple[float, float]) -> str:
        """Say it in one clause; `taken` are bytes and instances of the plan's other units there."""
        for rule in self._own:
            if not rule.holds[node]:
                return rule.why(node)
        columns, asked = self._columns, self._asked
        left = int(columns.free[node] - taken[0] - self._need[node]) + asked
        if left < asked:
            who = "the task asks" if self._size == 1 else "the tasks of its group ask"
            return f"has {max(0, left) >> _MB} MB of task memory left, {who} for {asked >> _MB} MB"
        if columns.room[node] - taken[1] < self._inst[node]:
            held = int(columns.instances[node] + taken[1] + self._inst[node]) - self._size
            return f"holds {held} instances already, its limit"
        step, rule = next(one for one in self._others if not one[1].holds[node])
        return f"cannot run {step} of its group: {rule.why(node)}"

    def counts(self) -> Counter[str]:
        """Return of how many nodes each clause is the first that rules them out."""
        columns = self._columns
        found: Counter[str] = Counter()
        left = np.ones(len(columns.names), bool)
        for rule in self._own:
            found.update(rule.why(at) for at in np.flatnonzero(left & ~rule.holds).tolist())
            left &= rule.holds
        short = left & (self._need > columns.free)
        full = left & ~short & (self._inst > columns.room)
        found["has too little task memory left"] += int(short.sum())
        found["has no instance left"] += int(full.sum())
        left &= ~(short | full)
        for step, rule in self._others:
            bad = left & ~rule.holds
            found[f"cannot run {step} of its group"] += int(bad.sum())
            left &= rule.holds
        return +found
