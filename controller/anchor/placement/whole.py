"""A plan before all nodes of its cell: the last look for better places, and what each would cost.

Only the few nodes that the plan uses differ from the cost of a unit by itself, so that a look at
thousands of nodes is a handful of additions.
"""

from collections.abc import Sequence

import numpy as np

from controller.anchor.placement.board import NEED
from controller.anchor.placement.columns import Floats
from controller.anchor.placement.model import Model
from controller.anchor.placement.search import DECIMALS, GAIN_MS, MAX_SWEEPS


class Whole:
    """Units with their options and nodes; nodes are counted over the whole snapshot."""

    def __init__(
        self, model: Model, cell: slice, options: Sequence[int], nodes: Sequence[int]
    ) -> None:
        self.model = model
        self.cell = cell
        self.options = list(options)
        self.nodes = list(nodes)
        columns = model.columns
        limit = np.stack([columns.free[cell], columns.room[cell]])
        # A node that is booked above what it has keeps what is pinned there.
        self._limit = np.maximum(limit, 0)
        self._sums = np.zeros((5, cell.stop - cell.start))
        for at in range(len(self.nodes)):
            self._put(at)

    @property
    def cost(self) -> float:
        """The objective, without the noise of rounding."""
        return round(self.model.cost(self.options, self.nodes), DECIMALS)

    def settle(self) -> None:
        """Move single units as long as that lowers the cost; programs stay as they are."""
        movable = [at for at, unit in enumerate(self.model.units) if unit.pinned is None]
        for _ in range(MAX_SWEEPS):
            better = False
            for at in movable:
                costs, _ = self.costs(at)
                node = self.cell.start + int(costs.round(DECIMALS).argmin())
                now = costs[self.nodes[at] - self.cell.start]
                if costs[node - self.cell.start] < now - GAIN_MS:
                    self._put(at, -1)
                    self.nodes[at] = node
                    self._put(at)
                    better = True
            if not better:
                break

    def costs(self, at: int) -> tuple[Floats, Floats]:
        """Return what a unit would add on each node of the cell, the others staying; inf: full.

        The second array is what hops are of it.
        """
        cell, unit, option = self.cell, self.model.units[at], self.options[at]
        costs = np.where(unit.fit[option][cell], unit.base[option][cell], np.inf)
        hops = self._hops(at)
        costs += hops
        self._put(at, -1)
        used = np.unique(np.array(self.nodes)) - cell.start
        take, weight, count, need, inst = self._sums[:, used]
        own_need, own_take = unit.need[option][cell][used], unit.take[cell][used]
        load = unit.weight[option][cell][used] * take + own_take * weight
        memory = own_need * count + len(unit.members) * need
        model = self.model
        costs[used] += model.alpha[cell][used] * load + model.beta[cell][used] * memory
        asked = np.stack([need + own_need, inst + unit.inst[cell][used]])
        costs[used[(asked > self._limit[:, used]).any(axis=0)]] = np.inf
        self._put(at)
        return costs, hops

    def taken(self, at: int, node: int) -> tuple[float, float]:
        """Return the bytes and instances that the plan's other units put on a node."""
        need, inst = self._sums[NEED:, node - self.cell.start].tolist()
        if self.nodes[at] != node:
            return need, inst
        unit = self.model.units[at]
        return need - unit.need[self.options[at]][node], inst - unit.inst[node]

    def _put(self, at: int, sign: int = 1) -> None:
        """Count a unit where it is; with the sign -1 count it no longer."""
        unit, option, node = self.model.units[at], self.options[at], self.nodes[at]
        brings = (
            unit.take[node],
            unit.weight[option][node],
            len(unit.members),
            unit.need[option][node],
            unit.inst[node],
        )
        self._sums[:, node - self.cell.start] += [sign * one for one in brings]

    def _hops(self, at: int) -> Floats:
        cell = self.cell
        hops = np.zeros(cell.stop - cell.start)
        for (one, other), way in self.model.ways.items():
            if at in (one, other):
                there = self.nodes[other if at == one else one]
                hop = way[cell] + way[there]
                hop[there - cell.start] = 0.0
                hops += hop
        return hops
