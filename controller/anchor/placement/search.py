"""Search for a plan of low cost on a board: beam, local search, and a bounded complete search.

Everything is deterministic: of equal choices the one with the first node by name is taken.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from controller.anchor.placement.board import INST, NEED, TAKE, Board, Loads, Slots
from controller.anchor.placement.columns import Floats, Ints

EXTENSIONS: Final = 2048
"""Extensions of partial plans that the beam weighs for each unit."""
MAX_SWEEPS: Final = 20
"""Rounds of the local search; it ends earlier, when a round finds nothing better."""
MAX_PAIRS: Final = 160
"""Pairs of units that are placed anew together, in all..."""
PAIR_NODES: Final = 1600
"""... and pairs times nodes."""
MAX_TRIES: Final = 2000
"""Steps of the complete search; then a plan counts as not to be found."""
GAIN_MS: Final = 1e-6
"""What counts as better: less is rounding."""
DECIMALS: Final = 6

Plan = tuple[int, ...]
"""The slot of each unit."""


class Found(NamedTuple):
    """What the complete search has to say."""

    plan: Plan | None
    exhausted: bool
    """Without a plan: whether there is none, rather than that the search was cut short."""


def solve(board: Board) -> Found:
    """Return the best plan that is found within the named bounds."""
    if any(not len(unit.node) for unit in board.units):
        return Found(None, exhausted=True)
    plans = beam(board, range(len(board.units)))
    if not plans:
        by_size = sorted(
            range(len(board.units)), key=lambda at: -board.units[at].brings[NEED].max()
        )
        plans = beam(board, by_size)
    if not plans:
        found = complete(board)
        if found.plan is None:
            return found
        plans = [found.plan]
    pairs = min(MAX_PAIRS, PAIR_NODES // len(board.nodes))
    return Found(improve(board, plans[0], pairs), exhausted=False)


def beam(board: Board, order: Sequence[int], extensions: int = EXTENSIONS) -> list[Plan]:
    """Return the plans that are left when units are placed one by one, best first."""
    size = len(board.units)
    costs = np.zeros(1)
    at = np.full((1, size), -1)
    slot = np.full((1, size), -1)
    sums = np.zeros((5, 1, len(board.nodes)))
    placed: set[int] = set()
    for unit in order:
        slots = board.units[unit]
        total = costs[:, None] + _extended(board, unit, placed, at, sums)
        width = max(1, extensions // len(slots.node))
        chosen = lowest(total.ravel(), width)
        if not len(chosen):
            return []
        parent, which = np.divmod(chosen, len(slots.node))
        costs = total.ravel()[chosen]
        at, slot, sums = at[parent], slot[parent], sums[:, parent]
        node = slots.node[which]
        at[:, unit], slot[:, unit] = node, which
        sums[:, np.arange(len(chosen)), node] += slots.brings[:, which]
        placed.add(unit)
    return [tuple(map(int, one)) for one in slot]


def _extended(board: Board, unit: int, placed: set[int], at: Ints, sums: Floats) -> Floats:
    """Return what each slot of a unit adds to each partial plan; inf where it is full."""
    slots = board.units[unit]
    there = sums[:, :, slots.node]
    added: Floats = slots.base + np.einsum("is,iws->ws", slots.pays, there[TAKE:INST])
    for way in board.ways[unit]:
        if way.other in placed:
            nodes = at[:, way.other, None]
            added += (way.slots + way.cost[nodes]) * (slots.node != nodes)
    added[(there[NEED:] > slots.limit[:, None]).any(axis=0)] = np.inf
    return added


def lowest(costs: Floats, count: int) -> Ints:
    """Return the places of the lowest finite costs in rising order; of equal ones the first."""
    rounded = costs.round(DECIMALS)
    if len(costs) > count:
        last = np.partition(rounded, count - 1)[count - 1]
        below = np.flatnonzero(rounded < last)
        equal = np.flatnonzero(rounded == last)[: count - len(below)]
        found: Ints = np.concatenate([below, equal])
    else:
        found = np.arange(len(costs))
    found = found[np.isfinite(costs[found])]
    ordered: Ints = found[rounded[found].argsort(kind="stable")]
    return ordered


def improve(board: Board, plan: Plan, pairs: int = 0) -> Plan:
    """Place single units anew as long as that lowers the cost.

    When nothing more is found so, pairs of units are placed anew together, up to so many times.
    """
    loads = Loads(board, plan)
    for _ in range(MAX_SWEEPS):
        better = False
        for unit in range(len(plan)):
            better |= _single(loads, unit)
        if better:
            continue
        for one, other in _pairs(loads)[:pairs]:
            pairs -= 1
            if _both(loads, one, other):
                better = True
                break
        if not better:
            break
    return tuple(loads.slot)


def _single(loads: Loads, unit: int) -> bool:
    """Place one unit anew; return whether that is better."""
    slot = loads.lift(unit)
    costs = loads.costs(unit)
    best = int(costs.round(DECIMALS).argmin())
    better = bool(costs[best] < costs[slot] - GAIN_MS)
    loads.put(unit, best if better else slot)
    return better


def _pairs(loads: Loads) -> list[tuple[int, int]]:
    """Return all pairs of units, those first that an edge or a node ties."""
    tied = [{way.other for way in one} for one in loads.board.ways]
    size, at = len(loads.slot), loads.at
    pairs = [(one, other) for one in range(size) for other in range(one + 1, size)]
    return sorted(
        pairs, key=lambda pair: pair[1] not in tied[pair[0]] and at[pair[0]] != at[pair[1]]
    )


def _both(loads: Loads, one: int, other: int) -> bool:
    """Place two units anew, as well as it can be done while the others stay."""
    slots = loads.lift(one), loads.lift(other)
    pair = _Pair(loads, one, other)
    cost, chosen = min(pair.apart(), pair.together())
    better = cost < pair.cost(*slots) - GAIN_MS
    for unit, slot in zip((one, other), chosen if better else slots, strict=True):
        loads.put(unit, slot)
    return better


class _Pair:
    """Two units that are lifted, and the cheapest slot of each on each node."""

    def __init__(self, loads: Loads, one: int, other: int) -> None:
        board = loads.board
        self._loads = loads
        self._one, self._other = board.units[one], board.units[other]
        self._costs = loads.costs(one), loads.costs(other)
        self._way = next((way.cost for way in board.ways[one] if way.other == other), None)
        self._at, self._first = _by_node(self._one, self._costs[0], len(board.nodes))
        self._by, self._second = _by_node(self._other, self._costs[1], len(board.nodes))

    def cost(self, slot: int, by: int) -> float:
        """Return what two slots cost."""
        cost = float(self._costs[0][slot] + self._costs[1][by])
        here, there = int(self._one.node[slot]), int(self._other.node[by])
        if here == there:
            return cost + float(_beside(self._one, slot, self._other, by))
        return cost if self._way is None else cost + float(self._way[here] + self._way[there])

    def apart(self) -> tuple[float, tuple[int, int]]:
        """Return the cheapest way to have them on two nodes."""
        one, other = self._first, self._second
        if self._way is not None:
            one, other = one + self._way, other + self._way
        here, there = int(one.argmin()), int(other.argmin())
        if here == there:
            rest, other_rest = one.copy(), other.copy()
            rest[here] = other_rest[there] = np.inf
            aside, other_aside = int(rest.argmin()), int(other_rest.argmin())
            if rest[aside] + other[there] <= one[here] + other_rest[other_aside]:
                here = aside
            else:
                there = other_aside
        cost = np.inf if here == there else one[here] + other[there]
        return float(cost), (int(self._at[here]), int(self._by[there]))

    def together(self) -> tuple[float, tuple[int, int]]:
        """Return the cheapest way to have them on one node."""
        board, at, by = self._loads.board, self._at, self._by
        asked = self._one.brings[NEED:, at] + self._other.brings[NEED:, by]
        full = (self._loads.sums[NEED:] + asked > board.limit).any(axis=0)
        costs = self._first + self._second + _beside(self._one, at, self._other, by)
        costs[full] = np.inf
        node = int(costs.round(DECIMALS).argmin())
        return float(costs[node]), (int(at[node]), int(by[node]))


def _beside(one: Slots, at: Ints | int, other: Slots, by: Ints | int) -> Floats:
    """Return what two units on one node cost each other."""
    # Rows of `pays` and `brings` go in pairs: weight pays for load, need pays for tasks; counted
    # from either side, each pair of rows is one of the four products.
    cost: Floats = (one.pays[:, at] * other.brings[TAKE:INST, by]).sum(axis=0)
    return cost


def _by_node(slots: Slots, costs: Floats, size: int) -> tuple[Ints, Floats]:
    """Return for each node the cheapest slot there and its cost; -1 and inf where there is none."""
    costs = costs.round(DECIMALS)
    best: Ints = np.full(size, -1)
    if slots.single:
        order = np.arange(len(costs))
    else:
        # Of several slots of one node the last one written stays.
        order = np.lexsort((np.arange(len(costs)), costs))[::-1]
    best[slots.node[order]] = order
    return best, np.where(best < 0, np.inf, costs[best])


def complete(board: Board, tries: int = MAX_TRIES) -> Found:
    """Look for any plan that fits, in every possible way but for nodes that are alike."""
    return _Complete(board, tries).run()


class _Complete:
    """Depth first, the unit with fewest slots left next, the fullest node that still fits first."""

    def __init__(self, board: Board, tries: int) -> None:
        self._board = board
        self._tries = tries
        self._left = board.limit.copy()
        self._plan = [-1] * len(board.units)
        self._alike = _alike(board)

    def run(self) -> Found:
        """Return a plan; or that there is none; or that the tries are used up."""
        done = self._place(set(range(len(self._plan))))
        return Found(tuple(self._plan) if done else None, exhausted=not done and self._tries > 0)

    def _place(self, rest: set[int]) -> bool:
        if not rest:
            return True
        fitting = {unit: self._fitting(unit) for unit in sorted(rest)}
        if self._hopeless(fitting):
            return False
        unit = min(fitting, key=lambda one: (len(fitting[one]), -self._size(one), one))
        slots = self._board.units[unit]
        asked = slots.brings[NEED:]
        left = self._left[0, slots.node] - asked[0]
        tried: set[tuple[float, ...]] = set()
        for slot in sorted(fitting[unit], key=lambda one: (slots.option[one], left[one], one)):
            node = slots.node[slot]
            kind = (slots.option[slot], self._alike[node], *self._left[:, node])
            if kind in tried:
                continue
            tried.add(kind)
            if self._tries <= 0:
                return False
            self._tries -= 1
            self._left[:, node] -= asked[:, slot]
            self._plan[unit] = slot
            if self._place(rest - {unit}):
                return True
            self._left[:, node] += asked[:, slot]
        return False

    def _hopeless(self, fitting: Mapping[int, Sequence[int]]) -> bool:
        """Whether a unit has no slot left, or all of them need more than nodes can still give."""
        if not all(fitting.values()):
            return True
        units = self._board.units
        needs = [units[unit].brings[NEED, slots].min() for unit, slots in fitting.items()]
        # What is left of a node is lost when even the smallest does not fit there.
        usable = self._left[0, self._left[0] >= min(needs)]
        return bool(sum(needs) > usable.sum())

    def _size(self, unit: int) -> float:
        return float(self._board.units[unit].brings[NEED].max())

    def _fitting(self, unit: int) -> list[int]:
        slots = self._board.units[unit]
        fits = (slots.brings[NEED:] <= self._left[:, slots.node]).all(axis=0)
        return [int(one) for one in np.flatnonzero(fits)]


def _alike(board: Board) -> list[int]:
    """Return a number for each node; nodes with one number are the same to every unit."""
    asked: list[list[tuple[float, ...]]] = [[] for _ in board.nodes]
    for at, unit in enumerate(board.units):
        for slot, node in enumerate(unit.node):
            need, inst = unit.brings[NEED:, slot]
            asked[node].append((at, int(unit.option[slot]), float(need), float(inst)))
    numbers: dict[tuple[tuple[float, ...], ...], int] = {}
    return [numbers.setdefault(tuple(one), len(numbers)) for one in asked]
