"""What is durable of handovers; kinds and keys as in `controller.records`."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from msgspec import Struct, structs

from protocols.histogram import total
from protocols.messages.mobility import CellPoint

OWNERLESS: Final = "ownerless"
"""Among the phases: how long the task that waited longest had no scheduler, at most, in ms."""


class HandoverState(StrEnum):
    """How far a handover is."""

    PREPARING = "preparing"
    """The target is asked whether it has room."""
    COMMANDED = "commanded"
    """The node was told, and has not come."""
    SWITCHING = "switching"
    """It has come; its tasks are on their way to the new scheduler."""
    COMPLETED = "completed"
    REFUSED = "refused"
    """No target has room, or the node cannot be told."""
    FAILED = "failed"
    """The node has not come."""
    VOID = "void"
    """A conditional one whose condition never held, or whose place another one has taken."""


class HandoverRecord(Struct, frozen=True):
    """A node's change of cell (kind `handover`, key `NODE/ANCHOR/slot`)."""

    handover: str
    node: str
    number: int
    """Of the node's handovers, growing."""
    source: str
    """The cell that it leaves."""
    target: str
    """The cell that it comes to, or is to come to."""
    state: HandoverState
    cause: str = ""
    """Why, for people."""
    reason: str = ""
    """Why it was refused or has failed."""
    conditional: bool = False
    by_hand: bool = False
    offset_db: float = 0.0
    """Of the condition."""
    time_to_trigger_ms: int = 0
    others: tuple[str, ...] = ()
    """Cells that are tried when the target has no room, in order."""
    incarnation: int = 0
    """Of the attachment that ends."""
    arrived: int = 0
    """Of the new one; 0: it has not come."""
    attached: bool = False
    """Whether it was still attached to the source when it came."""
    tasks: tuple[str, ...] = ()
    """That have gone with it."""
    phases: dict[str, int] = {}
    """When each state began, in ms since the first; `ownerless` is how long the task that waited
    longest had no scheduler, at most.
    """
    started_unix_ms: int = 0
    times: dict[str, float] = {}
    """As the node has measured them, named as in HandoverTimes."""
    gap_ms: float | None = None
    """The longest time between two answers of the node around it; None: nobody asked, or it is not
    known yet.
    """
    spacing_ms: float | None = None
    """How far apart its answers were before."""
    asked_again: int | None = None
    """Requests that came to the node once more; None: it has not told."""
    said_again: int | None = None
    """Answers and requests that the node has sent once more."""
    edge: dict[str, str] = {}
    """Tasks that serve the node from other nodes: whether each follows or stays, and why."""
    client_gap_ms: float | None = None
    """How long a client's request stood at most around it, as clients have told; None: none has."""
    ping_pong: bool = False
    """Whether it was completed and took the node back to the cell that it had left just before."""


class PointRecord(Struct, frozen=True):
    """Where a cell is reached, as its scheduler has said (kind `point`, key the scheduler)."""

    point: CellPoint


class ReachRecord(Struct, frozen=True):
    """The cells that an anchor has named to a scheduler (kind `reach`, key the anchor)."""

    cells: tuple[CellPoint, ...]
    """Those to whose brokers its gateway carries, MAX_NEIGHBOURS at most."""


class CrossingRecord(Struct, frozen=True):
    """Handovers from one cell to another (kind `crossing`, key `ANCHOR/SOURCE>TARGET`)."""

    source: str
    target: str
    completed: int = 0
    failed: int = 0
    refused: int = 0
    ping_pongs: int = 0
    """Those that went back to where the node had just come from."""
    total_ms: float = 0.0
    """Of all that were completed, from the first step to the last."""
    longest_ms: float = 0.0
    ownerless_longest_ms: float = 0.0
    gaps: tuple[int, ...] = ()
    """Of those with a gap: a histogram of ms, as in `protocols.histogram`."""
    gap_longest_ms: float = 0.0
    gap_p50_ms: float | None = None
    gap_p99_ms: float | None = None
    asked_again: int = 0
    """Requests that came to nodes once more, of all."""
    said_again: int = 0
    """What nodes have sent once more, of all."""


_RANK: Final = (
    HandoverState.VOID,
    HandoverState.REFUSED,
    HandoverState.FAILED,
    HandoverState.COMPLETED,
    HandoverState.PREPARING,
    HandoverState.COMMANDED,
    HandoverState.SWITCHING,
)
"""Of what two anchors say of one handover: a node that has come to the target has come."""


def one_of_each(found: Iterable[HandoverRecord]) -> list[HandoverRecord]:
    """Return every handover once, with what each anchor that has seen it knows of it.

    They are the same when they have one name, or end in the same attachment of their node.
    """
    merged: dict[tuple[str, str], HandoverRecord] = {}
    by_arrival: dict[tuple[str, int, str], tuple[str, str]] = {}
    for one in sorted(found, key=lambda one: (not one.incarnation, one.started_unix_ms)):
        key = one.node, one.handover
        if one.arrived:
            key = by_arrival.setdefault((one.node, one.arrived, one.target), key)
        before = merged.get(key)
        merged[key] = one if before is None else _both(before, one)
    return list(merged.values())


def _both(one: HandoverRecord, other: HandoverRecord) -> HandoverRecord:
    """Return what two anchors know of a handover; the first has commanded it, or seen it first."""
    later_ms = other.started_unix_ms - one.started_unix_ms
    phases = dict(one.phases)
    for name, at_ms in other.phases.items():
        if name == OWNERLESS:
            phases[name] = max(at_ms, phases.get(name, 0))
        elif name == HandoverState.COMPLETED:
            phases[name] = max(at_ms + later_ms, phases.get(name, 0))
        else:
            phases.setdefault(name, max(0, at_ms + later_ms))
    state = max(one.state, other.state, key=_RANK.index)
    ended = state in (HandoverState.COMPLETED, HandoverState.SWITCHING)
    told = other if one.asked_again is None else one
    return structs.replace(
        one,
        target=other.target if other.arrived else one.target,
        state=state,
        cause=one.cause or other.cause,
        reason="" if ended and one.state is HandoverState.FAILED else one.reason or other.reason,
        arrived=max(one.arrived, other.arrived),
        attached=one.attached or other.attached,
        ping_pong=one.ping_pong or other.ping_pong,
        tasks=tuple(dict.fromkeys((*one.tasks, *other.tasks))),
        phases=phases,
        times=one.times or other.times,
        gap_ms=told.gap_ms,
        spacing_ms=told.spacing_ms,
        asked_again=told.asked_again,
        said_again=told.said_again,
        client_gap_ms=told.client_gap_ms,
    )


def summed(found: Iterable[CrossingRecord]) -> list[CrossingRecord]:
    """Return each pair of cells once: several anchors count what each has seen of the same.

    So the highest of every count is nearest to the truth.
    """
    merged: dict[tuple[str, str], CrossingRecord] = {}
    for one in found:
        before = merged.setdefault((one.source, one.target), one)
        highest = {name: max(getattr(before, name), getattr(one, name)) for name in _COUNTS}
        seen = max((before, one), key=lambda each: total(each.gaps))
        gaps = {name: getattr(seen, name) for name in ("gaps", "gap_p50_ms", "gap_p99_ms")}
        merged[one.source, one.target] = structs.replace(before, **highest, **gaps)
    return [merged[key] for key in sorted(merged)]


_COUNTS: Final = (
    "completed",
    "failed",
    "refused",
    "ping_pongs",
    "total_ms",
    "longest_ms",
    "ownerless_longest_ms",
    "gap_longest_ms",
    "asked_again",
    "said_again",
)
