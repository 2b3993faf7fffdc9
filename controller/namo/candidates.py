"""The ways to do a service, weighed: decompositions x {spread, fused} x anchors; pure.

TONA paper, "Logical Architecture" and "Task Procedures", steps 3 and 4: NAMO decomposes and picks
the anchor position. Whatever keeps the agreement comes first; where that bounds the latency, the
most accurate of those; then what loses a request the least time. A name breaks ties, so that equal
inputs give equal choices.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from controller.booking import least_bytes
from controller.namo.decompose import order_of
from controller.namo.estimate import Estimate, estimate, hop_ms, local_hop_ms, parallel_ms
from controller.namo.model import Alternative, Service
from controller.records import Candidate
from protocols.messages.hierarchy import AnchorSummary, ServiceOrder, TaskSpec
from protocols.messages.invocation import REQUEST
from protocols.qoais_map import LATENCY

MAX_ANCHORS: Final = 8
"""Anchors that are weighed for one service: the least loaded."""
MAX_KEPT: Final = 32
"""Candidates that are told to people."""


class Position(Struct, frozen=True):
    """What NAMO knows when it weighs."""

    summaries: Mapping[str, AnchorSummary]
    """Of anchors that have spoken, by their name as a role."""
    anchor: str
    """The one to take while none has."""
    secured: bool = False
    """Whether connections have TLS with certificates of both sides."""


class Weighed(Struct, frozen=True):
    """A candidate with the order that it would be."""

    order: ServiceOrder
    anchor: str
    estimate: Estimate

    @property
    def name(self) -> str:
        """Its decomposition."""
        return self.order.decomposition

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others."""
        return self.name, self.anchor

    @property
    def feasible(self) -> bool:
        """Whether it could run as things stand."""
        return not (self.estimate.never or self.estimate.unfit)


def weigh(
    service: Service,
    use_case: str,
    generation: int,
    position: Position,
    held: tuple[str, Mapping[str, int]] = ("", {}),
) -> list[Weighed]:
    """Return every candidate, the best first; `held`: where the service runs, and its memory there.

    Raises UserError when the service is too large to be said in one message.
    """
    found: list[Weighed] = []
    for way in service.ways():
        spread = order_of(service, way, use_case, generation)
        for anchor, summary in _anchors(position, held[0]):
            own = held[1] if anchor == held[0] else {}
            made = [spread]
            groups = fuse(spread.tasks, summary)
            if groups:
                fused = order_of(service, way, use_case, generation, groups)
                made += [fused] if fused.decomposition != spread.decomposition else []
            found += [
                Weighed(one, anchor, _estimate(one, way, summary, own, position)) for one in made
            ]
    return sorted(found, key=_rank)


def _rank(one: Weighed) -> tuple[bool, bool, bool, float, float, str, str]:
    told = one.estimate
    # What keeps the agreement on latency is quick enough: then the more accurate one is better.
    quick = any(bound.indicator == LATENCY for bound in one.order.sla.zone.bounds)
    weighs = quick and _keeps(one)
    return (
        bool(told.never),
        bool(told.unfit),
        bool(told.short),
        -told.values.get("accuracy_percent", 100.0) if weighs else 0.0,
        told.cost_ms,
        one.name,
        one.anchor,
    )


def _estimate(
    order: ServiceOrder,
    way: Alternative,
    summary: AnchorSummary | None,
    own: Mapping[str, int],
    position: Position,
) -> Estimate:
    return estimate(order, summary, way.accuracy_percent, own, secured=position.secured)


def _anchors(position: Position, held: str) -> list[tuple[str, AnchorSummary | None]]:
    """Return the anchors to weigh; the one that has the service is always among them."""
    if not position.summaries:
        return [(held or position.anchor, None)]
    ranked: list[tuple[str, AnchorSummary | None]] = [
        *sorted(
            position.summaries.items(),
            key=lambda one: (one[0] != held, not one[1].nodes, one[1].cpu_percent, one[0]),
        )
    ]
    if held and held not in position.summaries:
        # Silent, or not heard since our start: it owns the service all the same.
        ranked.insert(0, (held, None))
    return ranked[:MAX_ANCHORS]


def fuse(specs: Sequence[TaskSpec], summary: AnchorSummary | None) -> dict[str, str]:
    """Return groups for linear steps whose hop costs more than placing them apart gives.

    Where no hop does, all linear steps, so that there is something to weigh; where none are
    linear, or no node is known to have the memory, nothing.
    """
    linear = _linear(specs)
    saved_ms = hop_ms(summary) - local_hop_ms(summary)
    worth = [edge for edge in linear if saved_ms > parallel_ms(*edge, summary)]
    room = summary.largest_free_bytes if summary is not None else None
    groups: dict[str, str] = {}
    members: dict[str, list[TaskSpec]] = {}
    for one, other in worth or linear:
        group = groups.get(one.step, one.step)
        chain = [*members.get(group, [one]), other]
        need = sum(map(least_bytes, chain))
        if (room is not None and need > room) or not _together(chain):
            continue
        members[group] = chain
        groups |= {spec.step: group for spec in chain}
    return groups


def _linear(specs: Sequence[TaskSpec]) -> list[tuple[TaskSpec, TaskSpec]]:
    """Return the edges that neither split nor join, in topological order."""
    by_step = {one.step: one for one in specs}
    feeds = {one.step: {e.source for e in one.inputs} - {REQUEST} for one in specs}
    takers: dict[str, set[str]] = {one.step: set() for one in specs}
    for step, sources in feeds.items():
        for source in sources:
            takers[source].add(step)
    return [
        (by_step[source], one)
        for one in specs
        if len(feeds[one.step]) == 1
        for source in feeds[one.step]
        if len(takers[source]) == 1
    ]


def _together(chain: Sequence[TaskSpec]) -> bool:
    """Whether some node is allowed to have all of them."""
    named = [set(nodes) for one in chain for nodes in (one.nodes, one.origins) if nodes]
    return not named or bool(set.intersection(*named))


def told(ranked: Sequence[Weighed], chosen: Weighed) -> tuple[Candidate, ...]:
    """Return the candidates as people see them, the chosen one first, each with its reason."""
    others = [one for one in ranked if one.key != chosen.key]
    made = [_candidate(chosen, _why(chosen, others))]
    made += [_candidate(one, _why_not(one, chosen)) for one in others[: MAX_KEPT - 1]]
    return tuple(made)


def _candidate(one: Weighed, reason: str) -> Candidate:
    return Candidate(one.name, one.anchor, one.feasible, one.estimate.values, reason)


def _why(chosen: Weighed, others: Sequence[Weighed]) -> str:
    said = chosen.estimate
    cost = f"{said.values['latency_ms']:.1f} ms predicted"
    against = said.never or said.unfit
    if against:
        return f"nothing fits now; the best of {1 + len(others)} once it does: {against}"
    if said.short:
        return f"none keeps the agreement, this is nearest to it: {said.short}"
    if not others:
        return f"the only way there is, {cost}"
    if any(one.estimate.cost_ms < said.cost_ms and _keeps(one) for one in others):
        return f"keeps the agreement with the most accuracy of {1 + len(others)}: {cost}"
    return f"keeps the agreement with the least time lost of {1 + len(others)}: {cost}"


def _keeps(one: Weighed) -> bool:
    said = one.estimate
    return not (said.never or said.unfit or said.short)


def _why_not(one: Weighed, chosen: Weighed) -> str:
    said = one.estimate
    against = said.never or said.unfit
    if against:
        return against
    if said.short and not chosen.estimate.short:
        return said.short
    cost = f"{said.cost_ms:.1f} ms lost against {chosen.estimate.cost_ms:.1f} ms"
    own, best = (told.values.get("accuracy_percent") for told in (said, chosen.estimate))
    if (
        own is not None
        and best is not None
        and own < best
        and said.cost_ms < chosen.estimate.cost_ms
    ):
        return f"{cost}, but {own:.1f} % accurate against {best:.1f} %"
    if said.values["parallel_ms"] > 0:
        return f"{cost}, {said.values['parallel_ms']:.1f} ms of it parallel work given up"
    return cost


def rebuilt(service: Service, held: ServiceOrder, use_case: str) -> ServiceOrder | None:
    """Return the order that a document gives for the way that is held; None: it has it no longer.

    Two documents that give the same order for it ask for no change.
    """
    name, _, _ = held.decomposition.rpartition("+")
    groups = {one.step: one.group for one in held.tasks if one.group}
    ways = service.ways()
    way = next((one for one in ways if one.name == name), None) if name else ways[0]
    if way is None:
        return None
    made = order_of(service, way, use_case, held.generation, groups)
    decomposition = made.decomposition if name else held.decomposition
    return replace(made, decomposition=decomposition, epochs_above=held.epochs_above)
