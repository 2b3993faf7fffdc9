"""What an envelope allows beside its nodes: variants, shares, rates; and who provides the data.

The document and its autonomy say the most (`TaskSpec.leeway`). The anchor grants less at first:
half of the share and of the workers beyond what the task asks for, and the variants that fit into
the memory that is reserved. What it has kept back it can give when the scheduler asks. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct, structs

from controller.anchor.ledger import Ledger
from controller.anchor.placement import NodeFacts
from controller.anchor.privacy import has, lacks, stays, taken_in
from controller.records import TaskRecord
from protocols.manifest import Manifest
from protocols.messages.hierarchy import Autonomy, NodeState, TaskSpec
from protocols.messages.quality import Leeway, Source, SourceKind, Variant

FIRST_SHARE: Final = 0.5
"""Of what the document allows beyond the task's own demand."""
MAX_PROVIDERS: Final = 8
"""Nodes that are named for one source."""


class Wider(Struct, frozen=True):
    """What a task is given beyond the first grant."""

    share: bool = False
    variants: bool = False


def program(spec: TaskSpec, variant: str) -> Manifest:
    """Return what a variant runs; the specification's own manifest for the empty name."""
    return next((one.manifest for one in spec.variants if one.name == variant), spec.manifest)


def leeway(
    task: TaskRecord,
    autonomy: Autonomy,
    nodes: Sequence[NodeFacts],
    ledger: Ledger,
    wider: Wider,
) -> Leeway:
    """Return what a task's scheduler may change, as far as there is room on every node."""
    if autonomy is Autonomy.MANUAL:
        return Leeway(moves=False)
    spec, most = task.spec, task.spec.leeway
    asked = program(spec, task.tuning.variant).limits.memory_bytes
    free_bytes = min((_free_bytes(one, task, ledger) for one in nodes), default=0)
    free_cpu = min((_free_cpu(one, task, ledger) for one in nodes), default=0.0)
    room = max(asked, free_bytes) if wider.variants else asked
    return structs.replace(
        most,
        variants=tuple(
            one.name
            for one in spec.variants
            if one.name in most.variants
            and one.name != task.tuning.variant
            and one.manifest.limits.memory_bytes <= room
            and _accurate(one, spec)
        ),
        cpu_percent_max=min(
            _part(most.cpu_percent_max, spec.demand.cpu_percent, wider), max(0.0, free_cpu)
        ),
        replicas_max=min(
            round(_part(most.replicas_max, spec.replicas, wider)),
            max(spec.replicas, free_bytes // asked),
        ),
    )


def _part(most: float, demand: float, wider: Wider) -> float:
    """Return the part of what is allowed that is granted; nothing where nothing is allowed."""
    if wider.share or most <= demand:
        return most
    return demand + FIRST_SHARE * (most - demand)


def _accurate(variant: Variant, spec: TaskSpec) -> bool:
    """Whether a variant keeps the accuracy that is agreed, as far as its author has said."""
    least = [one.at_least for one in spec.qos.bounds if one.indicator == "accuracy_percent"]
    wanted = max((one for one in least if one is not None), default=None)
    return wanted is None or variant.accuracy_percent is None or variant.accuracy_percent >= wanted


def _free_bytes(facts: NodeFacts, task: TaskRecord, ledger: Ledger) -> int:
    own = task.reserved.get(facts.node, 0)
    return facts.inventory.task_memory_bytes - ledger.taken_bytes(facts.node) + own


def _free_cpu(facts: NodeFacts, task: TaskRecord, ledger: Ledger) -> float:
    """Return the share that nobody else has reserved, in percent of one core."""
    on = task.home
    own = task.spec.demand.cpu_percent if on == facts.node else 0.0
    return 100.0 * facts.inventory.cpu_count - ledger.taken_cpu_percent(facts.node) + own


def choose_sources(
    wanted: Iterable[Source],
    before: Sequence[Source],
    tasks: Sequence[TaskRecord],
    nodes: Mapping[str, NodeFacts],
    avoid: Mapping[str, str],
) -> tuple[tuple[Source, ...], dict[str, str]]:
    """Choose which nodes provide each source, best first; and say why, by input.

    Who provides a source already goes on with it while it can; where it has been silent for a
    moment, while nobody else could. A source that nobody can provide is
    left out, and so is one whose data may not leave its node while who takes it in runs elsewhere.
    `avoid` names, by input, a node that has been found wanting: it comes last.
    """
    scheduler = next((one.scheduler for one in tasks if one.scheduler), "")
    chosen: list[Source] = []
    why: dict[str, str] = {}
    provided = {one.input: one.nodes for one in before}
    for source in wanted:
        eaters = [one for one in tasks if source.input in taken_in(one.spec)]
        homes = [_home(one) for one in eaters if _home(one)]
        current = next(iter(provided.get(source.input, ())), "")
        able = [one for one in nodes.values() if _provides(one, source, homes, scheduler, current)]
        problem = "" if able else f"no node of the cell provides {source.kind} {source.name!r}"
        if any(stays(one.spec) for one in eaters):
            able = [one for one in able if all(one.node in _places(eater) for eater in eaters)]
            problem = _private_problem(source, eaters, able)
        if problem:
            why[source.input] = problem
            continue
        shunned = avoid.get(source.input, "")
        bound = homes if any(stays(one.spec) for one in eaters) else ()

        def rank(
            one: NodeFacts,
            current: str = current,
            homes: Sequence[str] = homes,
            shunned: str = shunned,
            bound: Sequence[str] = bound,
        ) -> tuple[object, ...]:
            away, far_ms = one.node not in homes, one.round_trip_ms or 0.0
            return (
                one.state is not NodeState.ONLINE,
                bool(bound) and one.node not in bound,
                one.node == shunned,
                one.node != current,
                away,
                far_ms,
                one.node,
            )

        able.sort(key=rank)
        names = tuple(one.node for one in able[:MAX_PROVIDERS])
        chosen.append(structs.replace(source, nodes=names))
        why[source.input] = f"{source.kind} {source.name!r} of {_reason(able, homes, current)}"
    return tuple(chosen), why


def _home(task: TaskRecord) -> str:
    """Return where a task runs or is to run, in the cell that it is in or on its way to."""
    first = task.nodes[0] if task.nodes else ""
    return first if task.leaving is not None else task.node or first


def _places(task: TaskRecord) -> tuple[str, ...]:
    """Return where a task may run now."""
    return (_home(task), *task.nodes)


def _private_problem(source: Source, eaters: list[TaskRecord], able: list[NodeFacts]) -> str:
    """Say why data that may not leave its node reaches nobody; empty: it does."""
    homes = dict.fromkeys(_home(one) for one in eaters if _home(one))
    names = " and ".join(one.spec.task for one in eaters)
    if len(homes) > 1:
        where = " and ".join(homes)
        what = f"{source.kind} {source.name!r} may not leave its node"
        return f"data of {what}, but {names}, which take it in, run on {where}"
    if homes.keys() <= {one.node for one in able}:
        return ""
    return f"{next(iter(homes))}, where {names} runs, does not provide {lacks(source)}"


def _provides(
    facts: NodeFacts, source: Source, homes: list[str], scheduler: str, current: str
) -> bool:
    # Who provides it goes on with it in another cell; a new one is sought in that of the service.
    near = facts.scheduler == scheduler or facts.node in (current, *homes)
    silent = facts.state is NodeState.SUSPECT and facts.node == current
    if not near or not (facts.state is NodeState.ONLINE or silent):
        return False
    # A topic comes over the cell's broker: whoever eats it subscribes.
    return has(facts, source) and (source.kind is not SourceKind.TOPIC or facts.node in homes)


def _reason(able: Sequence[NodeFacts], homes: Sequence[str], current: str) -> str:
    best, others = able[0].node, len(able) - 1
    if best == current:
        reason = "which provides it already"
    elif best in homes:
        reason = "where the task runs that takes it"
    else:
        reason = "the nearest to the cell's broker" if others else "the only one that has it"
    return f"{best}, {reason}" + (f"; {others} more could" if others else "")
