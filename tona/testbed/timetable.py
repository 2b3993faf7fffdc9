"""Which node passes through which windows, in which order. Pure."""

import random
from collections.abc import Sequence
from typing import Final

from protocols.errors import UserError
from tona.testbed.traces import Window

QUIET_DB: Final = 3.0
"""In a steady window no neighbour is better than the serving cell by more."""


def timetable(
    windows: Sequence[Window], nodes: Sequence[str], handovers: int, seed: int = 0
) -> dict[str, list[Window]]:
    """Return the windows of each node: one with a change of the cell, one steady, and so on.

    Over all nodes there are so many with a change. Each window of the traces comes once before any
    comes again. Raises UserError where there are none of a kind.
    """
    chance = random.Random(seed)  # noqa: S311 - the order is no secret
    moving = [one for one in windows if one.moves]
    steady = [one for one in windows if not one.moves and quiet(one)]
    for kind, what in ((moving, "a change of the cell"), (steady, "ten seconds without one")):
        if not kind:
            raise UserError(f"no trace has {what}: choose others")
        chance.shuffle(kind)
    made: dict[str, list[Window]] = {node: [] for node in nodes}
    for number in range(handovers):
        node = nodes[number % len(nodes)]
        made[node] += (moving[number % len(moving)], steady[number % len(steady)])
    return made


def quiet(window: Window) -> bool:
    """Whether nothing speaks for another cell."""
    return all(
        one.neighbour_rsrp_dbm is None or one.neighbour_rsrp_dbm <= one.rsrp_dbm + QUIET_DB
        for one in window.samples
    )
