"""Whether a task at the edge follows the device that it serves to another cell: predicted quality.

A request of the device either goes on to where the task is (*afar*): by the gateways of both cells
to its node there and back; or to the node that the target cell has for it (*near*). Who asks counts
as the device does: a request comes from the device and its answer goes to the client, half of the
way each. What the move costs is what requests wait at the switch, once for each stay of the device.
The ways decide, not the load: a node that has the task is the busier one for that alone, so where
two cells are as near a task would go to and fro. Pure.
"""

from typing import Final

from msgspec import Struct

NEARER_SHARE: Final = 0.2
"""Of the way between the gateways: so much nearer the other cell has to be to whom a task serves.
"""
LEAST_GAIN_MS: Final = 1.0
"""Of a request: what is less is not worth a second instance."""
BUSY_MAX: Final = 0.9
"""A node is not taken to be busier: what waits there longer is not foreseen by its load."""
BETWEEN_MS: Final = 10.0
"""From gateway to gateway and back, where none of them has measured it."""
STAY_S: Final = 60.0
"""A device that has not been seen to go on is taken to stay so long."""
LEAST_PER_S: Final = 0.1
"""A task that serves a device is asked so often at least."""
COMES_ALONG: Final = 4.0
"""Round trips between the gateways while requests wait for a memory, and..."""
BYTES_PER_MS: Final = 5000.0
"""...what of it changes meanwhile, over what a backhaul carries of it at least."""
CHANGES_SHARE: Final = 0.05
"""Of a declared memory: what is to follow when the route has switched."""
START_SHARE: Final = 0.02
"""Of a start beside what serves: it delays no request, and takes the processor of others."""


class Place(Struct, frozen=True):
    """A node that serves the task, or could."""

    node: str
    cell: str
    round_trip_ms: float
    """From its gateway to it and back."""
    run_ms: float
    """A run there, with nobody beside it; 0: not known."""
    busy: float
    """Share of its processors, by what others do."""


class Device(Struct, frozen=True):
    """A device that the task serves."""

    node: str
    cell: str
    round_trip_ms: float
    stays_s: float
    """In that cell, as it was seen to move so far."""


class Asker(Struct, frozen=True):
    """The clients of a cell."""

    cell: str
    per_s: float
    """Requests of theirs."""


class Question(Struct, frozen=True):
    """All that is weighed."""

    task: str
    here: Place
    there: Place | None
    """None: no node of the target cell takes it."""
    refused: str
    """Why not."""
    devices: tuple[Device, ...]
    bound_ms: float | None
    """The latency that is agreed."""
    per_s: float
    """Requests."""
    memory_bytes: int
    """That it may remember; 0: it remembers nothing."""
    start_ms: float
    ways_ms: dict[tuple[str, str], float] = {}
    """From gateway to gateway and back, as measured, by their cells in order."""
    askers: tuple[Asker, ...] = ()
    """Who asks, where that is known: some do from another cell."""


class Verdict(Struct, frozen=True):
    """Whether a task follows, and why, for people."""

    follows: bool
    reason: str


def weigh(asked: Question) -> Verdict:
    """Return whether a task follows its devices to the target cell."""
    there = asked.there
    if there is None:
        return Verdict(False, f"stays on {asked.here.node}: {asked.refused}")
    afar_ms, near_ms = _mean(asked, asked.here), _mean(asked, there)
    gain_ms, cost_ms = afar_ms - near_ms, switch_ms(asked)
    found = f"a request takes {afar_ms:.1f} ms from {asked.here.cell}, {near_ms:.1f} ms in"
    found += f" {there.cell}{_between(asked, there)}"
    clear_ms = NEARER_SHARE * way_ms(asked, asked.here.cell, there.cell)
    if _ways_ms(asked, asked.here) - _ways_ms(asked, there) < clear_ms:
        why = f"{there.cell} is not clearly nearer to whom it serves"
        return Verdict(False, f"stays on {asked.here.node}: {found}; {why}")
    bound = asked.bound_ms
    if bound is not None and near_ms <= bound < afar_ms:
        return Verdict(True, f"follows to {there.node}: {found}, and {bound:g} ms are agreed")
    if gain_ms < LEAST_GAIN_MS:
        return Verdict(False, f"stays on {asked.here.node}: {found}")
    stays_s = min((one.stays_s for one in asked.devices), default=STAY_S)
    won_ms = gain_ms * max(asked.per_s, LEAST_PER_S) * stays_s
    if won_ms <= cost_ms:
        who = "device is" if asked.devices else "clients are"
        why = f"in the {stays_s:.0f} s that the {who} thought to stay less is won than lost"
        return Verdict(False, f"stays on {asked.here.node}: {found}; {why}")
    return Verdict(True, f"follows to {there.node}: {found}")


def way_ms(asked: Question, one: str, other: str) -> float:
    """Return the round trip between the gateways of two cells."""
    return 0.0 if one == other else asked.ways_ms.get(_ends(one, other), BETWEEN_MS)


def switch_ms(asked: Question) -> float:
    """Return what all requests together wait because of one move."""
    wait_ms = 0.0
    if asked.memory_bytes:
        to = asked.there.cell if asked.there is not None else ""
        wait_ms = COMES_ALONG * way_ms(asked, asked.here.cell, to)
        wait_ms += CHANGES_SHARE * asked.memory_bytes / BYTES_PER_MS
    # Who comes at the beginning of the wait waits for all of it, who comes at its end for nothing.
    waiting = max(asked.per_s, LEAST_PER_S) * wait_ms / 1000
    return waiting * wait_ms / 2 + START_SHARE * asked.start_ms


def _ends(one: str, other: str) -> tuple[str, str]:
    return min(one, other), max(one, other)


def _between(asked: Question, there: Place) -> str:
    """Say how far the two cells are from each other, and how that is known."""
    ends = _ends(asked.here.cell, there.cell)
    known = "measured" if ends in asked.ways_ms else "assumed"
    return f" ({way_ms(asked, *ends):.1f} ms between them, {known})"


def running_ms(place: Place) -> float:
    """Return what a run takes there, beside what others do."""
    return place.run_ms / (1 - min(place.busy, BUSY_MAX))


def _mean(asked: Question, place: Place) -> float:
    """Return what a request takes, over all devices and clients."""
    return _ways_ms(asked, place) + running_ms(place)


def _ways_ms(asked: Question, place: Place) -> float:
    """Return what a request takes on its way to the node and back."""
    ways = [one.round_trip_ms + way_ms(asked, one.cell, place.cell) for one in asked.devices]
    if asked.askers:
        total = sum(one.per_s for one in asked.askers)
        theirs = sum(one.per_s * way_ms(asked, one.cell, place.cell) for one in asked.askers)
        # As far as to all devices together: half of each way is not gone.
        ways += [theirs / total] * max(1, len(ways))
    return sum(ways) / max(1, len(ways)) + place.round_trip_ms
