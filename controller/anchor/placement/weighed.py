"""What was weighed for a task that has a choice: each node, form and provider, with its figures."""

from typing import Final

import numpy as np
from msgspec import structs

from controller.anchor.placement.columns import Floats
from controller.anchor.placement.figures import SOURCES
from controller.anchor.placement.model import Model, Task
from controller.anchor.placement.whole import Whole
from controller.records import Option

OPTIONS_MAX: Final = 24
"""Of each task; they are kept with its record."""
HAIR_MS: Final = 0.05
"""Less is no difference to a person."""


def options(
    whole: Whole, at: int, member: int, names: list[str], hops: Floats
) -> tuple[Option, ...]:
    """Return the options of a unit's member, the nodes in this order, then the others of its cell.

    `hops` are those of the unit on each node of the cell. Costs are those of the task by itself:
    what others of the plan add is the same whichever program it is.
    """
    model, task = whole.model, whole.model.tasks[member]
    if not task.chooses:
        return ()
    unit = model.units[at]
    taken = unit.options[whole.options[at]][unit.members.index(member)]
    index = model.columns.index
    listed = [index[name] for name in names]
    cell = range(whole.cell.start, whole.cell.stop)
    # Enough, whatever share of them shows nothing.
    rest = [node for node in cell[: 2 * OPTIONS_MAX] if node not in set(listed)]
    columns = _columns(model, task)
    found: list[Option] = []
    for node in [*listed, *rest]:
        if len(found) + len(task.programs) > OPTIONS_MAX and found:
            break
        hop = float(hops[node - whole.cell.start])
        found += [
            _option(whole, task, member, program, node, columns[program], hop)
            for program in range(len(task.programs))
        ]
    chosen = whole.nodes[at], taken
    return tuple(_judged(model, found, chosen, task))


class _Column:
    """What one program costs on every node."""

    def __init__(self, model: Model, task: Task, program: int) -> None:
        need = model.needs(task, program)
        terms = model.terms(task, program, need)
        self.wait = terms["compute"]
        self.total = np.sum(list(terms.values()), axis=0)
        self.weighed = model.weighed(task, program, self.wait)
        self.cost = task.costs[program]
        self.short = need > model.columns.free


def _columns(model: Model, task: Task) -> list[_Column]:
    return [_Column(model, task, program) for program in range(len(task.programs))]


def _option(
    whole: Whole, task: Task, member: int, program: int, node: int, column: _Column, hop: float
) -> Option:
    model, one, cost = whole.model, task.programs[program], column.cost
    why = next(
        (rule.why(node) for rule in model.rules[member][program] if not rule.holds[node]), ""
    )
    there = node in whole.nodes
    if not why and column.short[node] and not there:
        why = "has too little task memory left"
    bound = task.request.spec.qos.latency_ms
    late = float(cost.run[node] + column.wait[node] + column.weighed.cold[node])
    fits = not why
    if fits and node in cost.refused:
        why = f"a calibration failed: {cost.refused[node]}"
    elif fits and bound is not None and late > bound + HAIR_MS:
        why = f"misses the latency of {bound:.1f} ms by {late - bound:.1f} ms"
    deviceless = task.request.spec.deviceless is not None
    return Option(
        model.columns.names[node],
        one.name,
        one.manifest.kind.value,
        one.provider,
        round(float(cost.run[node]), 3),
        SOURCES[int(cost.source[node])],
        int(cost.runs[node]),
        round(float(column.weighed.cold[node] if deviceless else cost.start[node]), 3),
        model.warmth(task, program, node).value if deviceless else "",
        int(cost.memory[node]),
        round(float(column.wait[node]), 3),
        round(float(column.total[node]) + hop, 3) if fits else None,
        why=why,
    )


def _judged(model: Model, found: list[Option], chosen: tuple[int, int], task: Task) -> list[Option]:
    """Say which one was chosen, and why each other was not."""
    node, program = model.columns.names[chosen[0]], task.programs[chosen[1]]
    own = (node, program.name, program.provider)
    total = next((one.total_ms for one in found if _key(one) == own), None) or 0.0
    judged = []
    for one in found:
        if _key(one) == own:
            judged.append(structs.replace(one, chosen=True, why=""))
        elif one.why or one.total_ms is None:
            judged.append(one)
        elif not _form(task, one):
            judged.append(structs.replace(one, why="is less accurate"))
        else:
            more = one.total_ms - total
            text = f"costs {more:.1f} ms more" if more >= HAIR_MS else "costs as much"
            if more <= -HAIR_MS:
                text = "another plan for the service costs less"
            judged.append(structs.replace(one, why=text))
    return judged


def _key(one: Option) -> tuple[str, str, str]:
    return one.node, one.variant, one.provider


def _form(task: Task, one: Option) -> bool:
    return next(
        p.form for p in task.programs if (p.name, p.provider) == (one.variant, one.provider)
    )
