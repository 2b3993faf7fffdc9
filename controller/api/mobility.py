"""The lines of the table of operations about nodes that change their cell."""

from typing import Annotated, Final

from msgspec import Meta

from controller.api.operation import Arguments, Effect, Key, Named, Operation, Permission, Plane
from controller.handover_records import (
    CrossingRecord,
    HandoverRecord,
    HandoverState,
    one_of_each,
    summed,
)
from controller.records import CROSSING, FLEET, HANDOVER
from controller.registry import Registry

LIMIT_MAX: Final = 10_000


class HandOver(Arguments, frozen=True):
    """A node, and the cell that is to serve it."""

    name: Key
    cell: Key


class ListHandovers(Arguments, frozen=True):
    """Which handovers to list."""

    node: str = ""
    cell: str = ""
    """Only those that leave it or come to it."""
    state: HandoverState | None = None
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = 100


class ListCrossings(Arguments, frozen=True):
    """No arguments."""


MOBILITY: Final = (
    Operation(
        "node.handover",
        "Have a node served by another cell; its tasks go on.",
        HandOver,
        HandoverRecord,
        Permission.OPERATE,
        Plane.CONTROL,
        "POST",
        "/v1/nodes/{name}/handover",
        Effect.WRITE,
        idempotent=False,
        kind=FLEET,
    ),
    Operation(
        "handover.list",
        "List the handovers, the newest first.",
        ListHandovers,
        list[HandoverRecord],
        Permission.VIEW,
        Plane.CONTROL,
        "GET",
        "/v1/handovers",
    ),
    Operation(
        "handover.show",
        "Show a handover by its name, or the last one of a node.",
        Named,
        HandoverRecord,
        Permission.VIEW,
        Plane.CONTROL,
        "GET",
        "/v1/handovers/{name}",
    ),
    Operation(
        "handover.cells",
        "Count the handovers from each cell to each other.",
        ListCrossings,
        list[CrossingRecord],
        Permission.VIEW,
        Plane.CONTROL,
        "GET",
        "/v1/crossings",
    ),
)


def handovers(arguments: ListHandovers, registry: Registry) -> list[HandoverRecord]:
    """Return the handovers that are asked for, the newest first."""
    of_node = registry.list(HANDOVER, where=lambda one: arguments.node in ("", one.node))
    found = [
        one
        for one in one_of_each(of_node)
        if arguments.cell in ("", one.source, one.target) and arguments.state in (None, one.state)
    ]
    found.sort(key=lambda one: (-one.started_unix_ms, one.node, -one.number))
    return found[: arguments.limit]


def handover(name: str, registry: Registry) -> HandoverRecord | None:
    """Return a handover by its name, or the last one of a node; None: there is no such one."""
    nodes = {one.node for one in registry.list(HANDOVER) if name in (one.handover, one.node)}
    found = one_of_each(registry.list(HANDOVER, where=lambda one: one.node in nodes))
    named = [one for one in found if name in (one.handover, one.node)]
    return max(
        named, key=lambda one: (one.handover == name, one.started_unix_ms, one.number), default=None
    )


def crossings(registry: Registry) -> list[CrossingRecord]:
    """Return what handovers between each pair of cells have come to."""
    return summed(registry.list(CROSSING))
