"""The optimum of a placement by HiGHS: the objective of `controller.anchor.placement.model`."""

from itertools import combinations, product
from typing import Final, NamedTuple

import highspy
import numpy as np

from controller.anchor.placement.columns import Floats
from controller.anchor.placement.model import Model

MB: Final = 1 << 20
RELATIVE_GAP: Final = 1e-6
"""At which the solver calls a plan the optimum."""


class Optimum(NamedTuple):
    """The best plan of all."""

    cost: float
    options: tuple[int, ...]
    nodes: tuple[int, ...]


class _Slot(NamedTuple):
    """One option of a unit on one node, and the variable that says whether it is taken."""

    option: int
    node: int
    x: int


class _Program:
    """A mixed integer program; every variable lies between 0 and 1."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self._integral: list[int] = []
        self._rows: list[tuple[float, float, list[tuple[int, float]]]] = []

    def variable(self, cost: float, *, integral: bool = False) -> int:
        """Add a variable; return its number."""
        if integral:
            self._integral.append(len(self.costs))
        self.costs.append(cost)
        return len(self.costs) - 1

    def row(self, low: float, high: float, *entries: tuple[int, float]) -> None:
        """Add a constraint."""
        self._rows.append((low, high, list(entries)))

    def solve(self) -> list[float] | None:
        """Return the variables' values at the optimum; None when there is no solution."""
        solver = highspy.Highs()
        solver.silent()
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("mip_rel_gap", RELATIVE_GAP)
        count = len(self.costs)
        solver.addVars(count, np.zeros(count), np.ones(count))
        solver.changeColsCost(count, np.arange(count, dtype=np.int32), np.array(self.costs))
        for at in self._integral:
            solver.changeColIntegrality(at, highspy.HighsVarType.kInteger)
        for low, high, entries in self._rows:
            index = np.array([at for at, _ in entries], np.int32)
            solver.addRow(low, high, len(entries), index, np.array([one for _, one in entries]))
        solver.run()
        status = solver.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None
        assert status == highspy.HighsModelStatus.kOptimal, status
        return list(solver.getSolution().col_value)


def optimum(model: Model) -> Optimum | None:
    """Return the cheapest plan, or None where no plan fits.

    One variable says whether a unit takes an option on a node, one for each cell whether the plan
    lies in it, and one for two units on one node is the product of their two.
    """
    program, columns = _Program(), model.columns
    cells = [program.variable(0.0, integral=True) for _ in columns.cells]
    program.row(1.0, 1.0, *((one, 1.0) for one in cells))
    cell_of = {
        at: variable
        for cell, variable in zip(columns.cells, cells, strict=True)
        for at in range(cell.start, cell.stop)
    }
    units: list[list[_Slot]] = []
    for unit in model.units:
        slots = [
            _Slot(option, node, program.variable(float(unit.base[option][node]), integral=True))
            for option, fit in enumerate(unit.fit)
            for node in np.flatnonzero(fit).tolist()
        ]
        program.row(1.0, 1.0, *((slot.x, 1.0) for slot in slots))
        for slot in slots:
            program.row(0.0, 1.0, (cell_of[slot.node], 1.0), (slot.x, -1.0))
        units.append(slots)
    _capacities(program, model, units)
    for one, other in combinations(range(len(units)), 2):
        _pair(program, model, units, one, other)
    values = program.solve()
    if values is None:
        return None
    taken = [max(slots, key=lambda slot: values[slot.x]) for slots in units]
    options, nodes = tuple(slot.option for slot in taken), tuple(slot.node for slot in taken)
    return Optimum(model.cost(options, nodes), options, nodes)


def _capacities(program: _Program, model: Model, units: list[list[_Slot]]) -> None:
    columns = model.columns
    for node in range(len(columns.names)):
        here = [
            (unit, slot)
            for unit, slots in zip(model.units, units, strict=True)
            for slot in slots
            if slot.node == node
        ]
        need = [(slot.x, unit.need[slot.option][node] / MB) for unit, slot in here]
        program.row(-highspy.kHighsInf, max(columns.free[node], 0) / MB, *need)
        inst = [(slot.x, unit.inst[node]) for unit, slot in here]
        program.row(-highspy.kHighsInf, max(columns.room[node], 0), *inst)


def _pair(program: _Program, model: Model, units: list[list[_Slot]], one: int, other: int) -> None:
    """Add what two units cost each other: a hop from either node, less where it is the same."""
    way: Floats = model.ways.get((one, other), np.zeros(len(model.columns.names)))
    for slot in (*units[one], *units[other]):
        program.costs[slot.x] += way[slot.node]
    both: list[tuple[int, float]] = []
    for mine, theirs in product(units[one], units[other]):
        if mine.node == theirs.node:
            cost = model.beside(one, mine.option, other, theirs.option, mine.node)
            x = program.variable(cost - 2 * way[mine.node])
            program.row(-1.0, 1.0, (x, 1.0), (mine.x, -1.0), (theirs.x, -1.0))
            program.row(0.0, 1.0, (mine.x, 1.0), (x, -1.0))
            program.row(0.0, 1.0, (theirs.x, 1.0), (x, -1.0))
            both.append((x, 1.0))
    if both:
        program.row(0.0, 1.0, *both)
