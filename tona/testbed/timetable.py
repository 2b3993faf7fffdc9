"""Which node passes through which windows, in which order. Pure."""

import random
from collections.abc import Sequence
from typing import Final

from protocols.errors import UserError
from tona.testbed.traces import Window, unmoved

QUIET_DB: Final = 3.0
"""In a steady window no neighbour is better than the serving cell by more."""


def timetable(
    windows: Sequence[Window],
    nodes: Sequence[str],
    handovers: int,
    seed: int = 0,
    *,
    control: bool = False,
) -> dict[str, list[Window]]:
    """Return the windows of each node: one with a change of the cell, one steady, and so on.

    Over all nodes there are so many with a change. Each window of the traces comes once before any
    comes again. With `control` each window with a change comes once more, and nobody moves. Nodes
    begin with another kind each, so that what a handover takes from the machine falls into windows
    of every kind. Raises UserError where there are none of a kind.
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
        place = number % len(nodes)
        change = moving[number % len(moving)]
        these = [change, steady[number % len(steady)]]
        if control:
            these.append(unmoved(change))
        first = place % len(these)
        made[nodes[place]] += (*these[first:], *these[:first])
    return made


def quiet(window: Window) -> bool:
    """Whether nothing speaks for another cell."""
    return all(
        one.neighbour_rsrp_dbm is None or one.neighbour_rsrp_dbm <= one.rsrp_dbm + QUIET_DB
        for one in window.samples
    )
