"""A model cut down to some nodes, as the searches use it: slots of units, and what is on the nodes.

A *slot* of a unit is one option of its programs on one node where that fits by itself. Slots are
ordered by option and then by node, so that of equal slots the first is the one to take.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from controller.anchor.placement.columns import Floats, Ints
from controller.anchor.placement.model import Model

TAKE, WEIGHT, COUNT, NEED, INST = range(5)
"""Rows of what stands on a node: load share, ms of weight, tasks, bytes, instances."""
_ASKED: Final = slice(NEED, INST + 1)
_PAID: Final = slice(TAKE, NEED + 1)


class Slots(NamedTuple):
    """All slots of one unit; arrays have one column for each."""

    node: Ints
    """Index among the board's nodes."""
    option: Ints
    base: Floats
    brings: Floats
    """What it puts on its node, in five rows."""
    pays: Floats
    """What each of the first four rows of others costs it, in ms."""
    limit: Floats
    """How much of the last two rows may be there already."""
    single: bool
    """Whether no node has two of its slots."""


class Way(NamedTuple):
    """An edge of the unit graph as one end sees it."""

    other: int
    """The unit at the other end."""
    cost: Floats
    """At either end, for each node of the board."""
    slots: Floats
    """The same for each slot of the unit at this end."""


class Board:
    """The units on some nodes of the snapshot. Pure; the searches keep their own state.

    `allowed` are the nodes to weigh for each unit, by their place in `nodes`.
    """

    def __init__(self, model: Model, nodes: Ints, allowed: Sequence[Ints]) -> None:
        columns = model.columns
        self.model = model
        self.nodes = nodes
        self.limit = np.maximum(np.stack([columns.free[nodes], columns.room[nodes]]), 0)
        """Bytes and instances that a plan may put on each node."""
        self._alpha, self._beta = model.alpha[nodes], model.beta[nodes]
        self.units = [self._slots(at, allowed[at]) for at in range(len(model.units))]
        self.ways: list[list[Way]] = [[] for _ in model.units]
        for (one, other), cost in model.ways.items():
            there = cost[nodes]
            self.ways[one].append(Way(other, there, there[self.units[one].node]))
            self.ways[other].append(Way(one, there, there[self.units[other].node]))

    def _slots(self, at: int, local: Ints) -> Slots:
        unit, nodes = self.model.units[at], self.nodes
        across = nodes[local]
        at_node = [local[fit[across]] for fit in unit.fit]
        sizes = [len(one) for one in at_node]
        node = np.concatenate(at_node)
        option = np.repeat(np.arange(len(sizes)), sizes)
        where = [nodes[one] for one in at_node]
        base = _joined(unit.base, where)
        need = _joined(unit.need, where)
        weight = _joined(unit.weight, where)
        take, inst = unit.take[nodes[node]], unit.inst[nodes[node]]
        alpha, beta = self._alpha[node], self._beta[node]
        count = np.full(len(node), float(len(unit.members)))
        brings = np.stack([take, weight, count, need, inst])
        pays = np.stack([alpha * weight, alpha * take, beta * need, beta * count])
        limit = self.limit[:, node] - brings[_ASKED]
        return Slots(node, option, base, brings, pays, limit, len(unit.options) == 1)

    def places(self, plan: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the option and the node, counted over the whole snapshot, of each unit's slot."""
        pairs = list(zip(self.units, plan, strict=True))
        options = [int(unit.option[slot]) for unit, slot in pairs]
        return options, [int(self.nodes[unit.node[slot]]) for unit, slot in pairs]

    def cost(self, plan: Sequence[int]) -> float:
        """Return the objective of a plan: the slot of each unit."""
        return self.model.cost(*self.places(plan))


class Loads:
    """What stands on each node of a board while units are placed and lifted."""

    def __init__(self, board: Board, plan: Sequence[int] = ()) -> None:
        self.board = board
        self.sums = np.zeros((5, len(board.nodes)))
        self.at = [-1] * len(board.units)
        """Node of each unit; -1: not placed."""
        self.slot = [-1] * len(board.units)
        for unit, slot in enumerate(plan):
            self.put(unit, slot)

    def put(self, unit: int, slot: int) -> None:
        """Place a unit."""
        slots = self.board.units[unit]
        node = int(slots.node[slot])
        self.sums[:, node] += slots.brings[:, slot]
        self.at[unit], self.slot[unit] = node, slot

    def lift(self, unit: int) -> int:
        """Take a unit away and return the slot where it was."""
        slot = self.slot[unit]
        self.sums[:, self.at[unit]] -= self.board.units[unit].brings[:, slot]
        self.at[unit] = self.slot[unit] = -1
        return slot

    def costs(self, unit: int) -> Floats:
        """Return what each slot of a unit that is not placed would add; inf where it is full."""
        slots = self.board.units[unit]
        there = self.sums[:, slots.node]
        costs: Floats = slots.base + (slots.pays * there[_PAID]).sum(axis=0)
        for way in self.board.ways[unit]:
            node = self.at[way.other]
            if node >= 0:
                costs += (way.slots + way.cost[node]) * (slots.node != node)
        costs[(there[_ASKED] > slots.limit).any(axis=0)] = np.inf
        return costs


def _joined(values: Sequence[Floats], where: Sequence[Ints]) -> Floats:
    joined: Floats = np.concatenate([one[at] for one, at in zip(values, where, strict=True)])
    return joined
