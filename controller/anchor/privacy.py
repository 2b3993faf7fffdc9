"""Raw input that may not leave its node: whoever takes it in runs where it comes to be. Pure."""

from collections.abc import Iterable, Mapping

from msgspec import structs

from controller.anchor.placement import NodeFacts
from controller.anchor.placement.rules import privacy
from protocols.messages.hierarchy import ServiceOrder, TaskSpec
from protocols.messages.invocation import REQUEST
from protocols.messages.quality import Source, SourceKind


def stays(spec: TaskSpec) -> bool:
    """Whether the raw input of a task may not leave the node that it comes to be on."""
    return privacy(spec) == "node"


def taken_in(spec: TaskSpec) -> frozenset[str]:
    """Return the inputs of the service that a task takes in itself."""
    return frozenset(one.source_port for one in spec.inputs if one.source == REQUEST)


def gathered(order: ServiceOrder) -> ServiceOrder:
    """Return an order whose tasks are of one group where one node's raw input feeds them all."""
    group_of = {one.task: one.group for one in order.tasks}
    for source in order.sources:
        eaters = [one for one in order.tasks if stays(one) and source.input in taken_in(one)]
        if len(eaters) < 2:  # noqa: PLR2004 - one alone is with itself
            continue
        groups = {group_of[one.task] for one in eaters} - {""}
        name = min(groups, default=f"{source.input}/raw")
        names = {one.task for one in eaters}
        for task, group in group_of.items():
            if task in names or group in groups:
                group_of[task] = name
    tasks = tuple(structs.replace(one, group=group_of[one.task]) for one in order.tasks)
    return order if tasks == order.tasks else structs.replace(order, tasks=tasks)


def confined(
    spec: TaskSpec, sources: Iterable[Source], nodes: Mapping[str, NodeFacts]
) -> dict[str, tuple[str, ...]]:
    """Return the nodes on which a task has its raw input, each set under the clause for others."""
    if not stays(spec):
        return {}
    inputs = taken_in(spec)
    return {
        f"does not provide {lacks(one)}": tuple(
            facts.node for facts in nodes.values() if has(facts, one)
        )
        for one in sources
        if one.input in inputs and (one.nodes or one.kind is not SourceKind.TOPIC)
    }


def lacks(source: Source) -> str:
    """Return what a node does not have where the raw input of a private task is missing."""
    return f"{source.kind} {source.name!r}, whose data may not leave its node"


def has(facts: NodeFacts, source: Source) -> bool:
    """Whether a node has what a source reads. A topic comes over the broker to whoever eats it."""
    if source.nodes and facts.node not in source.nodes:
        return False
    match source.kind:
        case SourceKind.SENSOR:
            return source.name in facts.inventory.sensors
        case SourceKind.FILE:
            return facts.inventory.files
        case SourceKind.TOPIC:
            return True
