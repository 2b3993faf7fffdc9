"""The plan for a service: which cell, which nodes, which spares, and why not the others."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from controller.anchor.placement.board import Board
from controller.anchor.placement.columns import Columns, Floats, Ints
from controller.anchor.placement.explain import counted, placed, refused
from controller.anchor.placement.facts import Request, Snapshot
from controller.anchor.placement.model import Model
from controller.anchor.placement.search import Found, lowest, solve
from controller.anchor.placement.whole import Whole
from controller.records import Placement

SMALL_CELL: Final = 48
"""Up to so many nodes all of them are weighed for each unit."""
CANDIDATES: Final = 12
"""Nodes that are weighed for each unit of a larger cell, at least as many as there are units."""
NEIGHBOURS: Final = 4
"""Of the best nodes of each unit that an edge ties to it."""
MAX_CELLS: Final = 4
"""Cells that are searched, those with the lowest bound first, once one of them has a plan."""


def place(requests: Sequence[Request], snapshot: Snapshot) -> dict[str, Placement]:
    """Place all tasks of one service, given in topological order, or none of them.

    Every placement names the chosen node first and its spares after, the terms of the best nodes'
    scores, and why others were rejected. Without a plan nothing is chosen, and the reason says
    which task found no node. Raises TonaBug for a fixed node that the snapshot does not have.
    """
    if not requests:
        return {}
    if not snapshot.nodes:
        known = sum(snapshot.left_out.values())
        reason = "no node has joined yet"
        if known:
            reason = f"none of {known} nodes may be used: {counted(snapshot.left_out)}"
        none = Placement(snapshot.revision, reason=reason)
        return {one.spec.task: none for one in requests}
    model = Model(requests, Columns(snapshot))
    chosen, certain = choose(model)
    if chosen is None:
        return refused(model, snapshot.revision, certain=certain)
    return placed(chosen, snapshot.revision)


def choose(model: Model) -> tuple[Whole | None, bool]:
    """Return the best plan over all cells; without one, whether it is certain that there is none.

    A cell whose lower bound (every unit at its best place, no hops) is not below the best plan
    found so far cannot hold a better one.
    """
    cheapest = [unit.cheapest for unit in model.units]
    cells = model.columns.cells
    bounds = [sum(float(costs[cell].min()) for costs in cheapest) for cell in cells]
    best: Whole | None = None
    certain = True
    order = sorted(range(len(cells)), key=lambda one: (bounds[one], one))
    for searched, at in enumerate(order):
        if not np.isfinite(bounds[at]):
            break
        if best is not None and (bounds[at] >= best.cost or searched >= MAX_CELLS):
            break
        found, board = _solved(model, cells[at], [costs[cells[at]] for costs in cheapest])
        certain &= found.exhausted
        if found.plan is not None:
            plan = Whole(model, cells[at], *board.places(found.plan))
            plan.settle()
            if best is None or plan.cost < best.cost:
                best = plan
    return best, certain


def _solved(model: Model, cell: slice, cheapest: Sequence[Floats]) -> tuple[Found, Board]:
    """Search in one cell on the nodes that matter.

    With as many candidates for each unit as there are units, a plan that exists on the whole cell
    exists on these: whoever has so many finds one that nobody else uses.
    """
    size = cell.stop - cell.start
    if size <= SMALL_CELL:
        lists = [np.arange(size) for _ in model.units]
    else:
        lists = _candidates(model, cell, cheapest)
    for at, unit in enumerate(model.units):
        if unit.pinned is not None:
            lists[at] = np.array([unit.pinned - cell.start])
    used = np.unique(np.concatenate(lists))
    board = Board(model, cell.start + used, [np.searchsorted(used, one) for one in lists])
    return solve(board), board


def _candidates(model: Model, cell: slice, cheapest: Sequence[Floats]) -> list[Ints]:
    """Return for each unit the nodes to weigh, by their place in the cell."""
    nearest = [lowest(costs, max(CANDIDATES, len(model.units))) for costs in cheapest]
    # Where a unit does not fit, it counts as its worst place: the others may still gather there.
    costs = np.stack(cheapest)
    worst = costs[np.isfinite(costs)].max()
    shared = lowest(np.minimum(costs, worst).sum(axis=0), CANDIDATES)
    index = model.columns.index
    homes = {index.get(one.current) for one in model.requests}
    homes |= {index.get(one.reserved_on) for one in model.requests}
    own = [at - cell.start for at in homes if at is not None and cell.start <= at < cell.stop]
    lists = [[nearest[at], shared, np.array(own, np.intp)] for at in range(len(model.units))]
    for one, other in model.ways:
        lists[one].append(nearest[other][:NEIGHBOURS])
        lists[other].append(nearest[one][:NEIGHBOURS])
    return [np.unique(np.concatenate(one)) for one in lists]
