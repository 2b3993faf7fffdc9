"""Amounts by node, and the columns that placement makes of them; a change costs one entry."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPARSE: Final = 2
"""Up to one node in so many, an amount is put to its place; else every node is looked up."""


class Sums(dict[str, float]):
    """Amounts by node that remember what has changed since a column was made of them.

    They change by `s[node] = amount` and `s.pop(node, None)` alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: Sequence[str] | None = None
        self._column: Floats = np.zeros(0)
        self._changed: set[str] = set()

    def __setitem__(self, node: str, amount: float) -> None:
        super().__setitem__(node, amount)
        self._changed.add(node)

    # The one form of a dictionary's that is used.
    def pop(self, node: str, default: float | None = None) -> float | None:  # type: ignore[override]
        """Take an amount out; `default` when there is none."""
        self._changed.add(node)
        return super().pop(node, default)

    def column(self, names: Sequence[str], index: Mapping[str, int]) -> Floats:
        """Return the amounts of these nodes, a copy; quick for the same list of names as before."""
        if names is not self._names:
            self._names, self._column = names, spread(self, names, index)
        else:
            for node in self._changed:
                at = index.get(node)
                if at is not None:
                    self._column[at] = self.get(node, 0.0)
        self._changed.clear()
        return self._column.copy()


class Amended(Mapping[str, float]):
    """Sums with some amounts in the place of theirs; good until the sums change."""

    def __init__(self, sums: Sums, instead: Mapping[str, float]) -> None:
        self._sums = sums
        self._instead = instead

    def __getitem__(self, node: str) -> float:
        return self._instead[node] if node in self._instead else self._sums[node]

    def __iter__(self) -> Iterator[str]:
        yield from self._sums
        yield from (one for one in self._instead if one not in self._sums)

    def __len__(self) -> int:
        return len(self._sums) + sum(one not in self._sums for one in self._instead)

    def column(self, names: Sequence[str], index: Mapping[str, int]) -> Floats:
        """Return the amounts of these nodes."""
        column = self._sums.column(names, index)
        for node, amount in self._instead.items():
            at = index.get(node)
            if at is not None:
                column[at] = amount
        return column


def spread(amounts: Mapping[str, float], names: Sequence[str], index: Mapping[str, int]) -> Floats:
    """Return the amounts of these nodes, 0 where there is none."""
    if isinstance(amounts, Amended):
        return amounts.column(names, index)
    if len(amounts) * SPARSE > len(names):
        return np.fromiter((amounts.get(one, 0.0) for one in names), np.float64, len(names))
    found = np.zeros(len(names))
    for name, amount in amounts.items():
        at = index.get(name)
        if at is not None:
            found[at] = amount
    return found
