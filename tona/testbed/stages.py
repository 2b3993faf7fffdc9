"""In which stage of a handover a gap ended: preparing, attaching, switching, parting. Pure.

An anchor's record says when a handover was asked for, the node commanded, when it had come, and
when its tasks had their owner; the node says how long it lingered in the cell that it left. A gap
that ended in none of these is the radio's.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from heapq import nlargest
from typing import Final

from msgspec import Struct

from controller.handover_records import HandoverRecord, HandoverState

LONGEST_MAX: Final = 20
"""Gaps that are told one by one."""
AFTER_MS: Final = 250.0
"""So long after its end a handover is still to blame: what it has delayed comes out by then."""
LINGER_MS: Final = 1000.0
"""Of a node that has not told how long it lingered."""


class Stage(StrEnum):
    """What was done when a gap ended."""

    RADIO = "radio"
    """No handover: the conditions of the trace alone."""
    PREPARING = "preparing"
    """The target was asked."""
    ATTACHING = "attaching"
    """The node connected to its next cell, and was served by the last one."""
    SWITCHING = "switching"
    """It was served by the next cell; tasks and routes went there."""
    PARTING = "parting"
    """All was done but to leave the last cell."""


_BEGINS: Final = {
    HandoverState.PREPARING: Stage.PREPARING,
    HandoverState.COMMANDED: Stage.ATTACHING,
    HandoverState.SWITCHING: Stage.SWITCHING,
    HandoverState.COMPLETED: Stage.PARTING,
}


class Gap(Struct, frozen=True):
    """Between two answers; on the monotonic clock."""

    node: str
    end_ns: int
    ms: float


class Move(Struct, frozen=True):
    """When the stages of a handover began, in order, and when the last one was over."""

    node: str
    stages: tuple[tuple[int, Stage], ...]
    end_ns: int

    @property
    def begin_ns(self) -> int:
        """When it was asked for."""
        return self.stages[0][0]


class Longest(Struct, frozen=True):
    """One of the longest gaps in handover windows."""

    ms: float
    node: str
    stage: Stage
    after_ms: float | None = None
    """Since the handover was asked for; None: there was none."""


class Share(Struct, frozen=True):
    """The gaps that ended in one stage."""

    gaps: int
    longer: int
    """Than the 99.9th percentile of steady windows."""
    max_ms: float


def move_of(record: HandoverRecord, unix_ns: int) -> Move | None:
    """Return when a handover was where; `unix_ns` is the wall clock at 0 of the monotonic one."""
    start_ns = record.started_unix_ms * 1_000_000 - unix_ns
    found = sorted(
        (start_ns + record.phases[state.value] * 1_000_000, number, stage)
        for number, (state, stage) in enumerate(_BEGINS.items())
        if state.value in record.phases
    )
    if not found:
        return None
    came_ms = record.phases.get(HandoverState.SWITCHING.value, max(record.phases.values()))
    leaves_ms = came_ms + record.times.get("linger_ms", LINGER_MS)
    over_ms = max(leaves_ms, record.phases.get(HandoverState.COMPLETED.value, 0))
    end_ns = start_ns + round((over_ms + AFTER_MS) * 1e6)
    return Move(record.node, tuple((at_ns, stage) for at_ns, _, stage in found), end_ns)


def staged(gaps: Iterable[Gap], moves: Iterable[Move]) -> list[Longest]:
    """Return in what each gap ended."""
    by_node: dict[str, list[Move]] = {}
    for one in sorted(moves, key=lambda one: one.begin_ns):
        by_node.setdefault(one.node, []).append(one)
    return [_stage(one, by_node.get(one.node, ())) for one in gaps]


def _stage(gap: Gap, moves: Sequence[Move]) -> Longest:
    at = bisect_right(moves, gap.end_ns, key=lambda one: one.begin_ns) - 1
    if at < 0 or gap.end_ns > moves[at].end_ns:
        return Longest(gap.ms, gap.node, Stage.RADIO)
    move = moves[at]
    stage = [stage for at_ns, stage in move.stages if at_ns <= gap.end_ns][-1]
    return Longest(gap.ms, gap.node, stage, (gap.end_ns - move.begin_ns) / 1e6)


def shares(found: Sequence[Longest], bound_ms: float | None) -> Mapping[Stage, Share]:
    """Return what ended in each stage; `bound_ms` is what few steady gaps exceed."""
    made = {}
    for stage in Stage:
        of_stage = [one.ms for one in found if one.stage is stage]
        if of_stage:
            longer = sum(bound_ms is not None and ms > bound_ms for ms in of_stage)
            made[stage] = Share(len(of_stage), longer, max(of_stage))
    return made


def longest(found: Iterable[Longest]) -> tuple[Longest, ...]:
    """Return the longest gaps, the longest first."""
    return tuple(nlargest(LONGEST_MAX, found, key=lambda one: one.ms))
