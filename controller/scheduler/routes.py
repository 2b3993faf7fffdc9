"""Routes: where a service is served now, as a plan over the ready copies of its tasks."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from controller.scheduler.copies import Copy
from controller.scheduler.table import TaskTable
from protocols.messages.invocation import PLANS_MAX, REQUEST, Edge, Plan, Route, Step

ROUTE_VALID_MS: Final = 30_000
ROUTE_CREDIT: Final = 64
"""Until what the tasks can bear is known."""
CREDIT_STEP: Final = 2


def build_plans(
    table: TaskTable, service_tasks: tuple[str, ...], cell: str = ""
) -> tuple[Plan, ...] | str:
    """Return the plans of a service, or one sentence why it is not served now.

    The first is over the current copies; where a task is served on further nodes too, the others
    lead over those in turn.
    """
    served: list[list[Copy]] = []
    for name in service_tasks:
        if name not in table.tasks and name not in table.away:
            return f"task {name} has no envelope yet"
        copies = table.copies_of(name)
        if not copies:
            return f"task {name} is not ready"
        served.append(copies)
    count = min(PLANS_MAX, max(map(len, served)))
    plans = [_plan_over([copies[at % len(copies)] for copies in served]) for at in range(count)]
    first = plans[0]
    if isinstance(first, str):
        return first
    found = (one for one in plans if not isinstance(one, str))
    # Whoever has a step of it in another cell needs to know which ones are in ours.
    return tuple(_named(one, cell) if cells(one) else one for one in found)


def _plan_over(copies: list[Copy]) -> Plan | str:
    step_tasks = {copy.grant.spec.step: copy.grant.spec.task for copy in copies}
    last = copies[-1].grant
    steps = tuple(_step(copy, step_tasks) for copy in copies if not copy.grant.spec.inferred)
    outputs = tuple(_renamed(edge, step_tasks) for edge in last.outputs)
    given = {(step.task, port) for step in steps for port in step.outputs}
    taken = {edge for step in steps for edge in step.inputs if edge.source != REQUEST}
    for edge in taken.union(outputs):
        # Copies of two generations may serve beside each other, but not if they do not fit.
        if (edge.source, edge.source_port) not in given:
            return f"task {edge.source} is being changed"
    return Plan(last.service, min(copy.generation for copy in copies), steps, outputs)


def still_serves(plan: Plan, table: TaskTable, cell: str = "") -> bool:
    """Whether a plan goes on as it is while a change of its service is prepared."""
    for step in plan.steps:
        copies = table.copies_of(step.task)
        if not copies or (copies[0].node, copies[0].epoch) != (step.node, step.epoch):
            return False
        if (copies[0].cell or cell) != (step.cell or cell):
            return False
    return True


def cells(plan: Plan) -> dict[str, str]:
    """Return the cells of the nodes of a plan that are in another one."""
    return {step.node: step.cell for step in plan.steps if step.cell}


def _step(copy: Copy, step_tasks: Mapping[str, str]) -> Step:
    spec = copy.grant.spec
    return Step(
        task=spec.task,
        node=copy.node,
        epoch=copy.epoch,
        inputs=tuple(_renamed(edge, step_tasks) for edge in spec.inputs),
        outputs=tuple(port.name for port in spec.manifest.outputs),
        cell=copy.cell,
    )


def _renamed(edge: Edge, step_tasks: Mapping[str, str]) -> Edge:
    # In a plan steps go by their tasks' names, which are unique in the cell.
    return Edge(edge.port, step_tasks.get(edge.source, edge.source), edge.source_port)


def is_entry(step: Step) -> bool:
    """Whether a step takes something from the request."""
    return any(edge.source == REQUEST for edge in step.inputs)


def entry_inputs(plan: Plan) -> dict[str, set[str]]:
    """Return for each node with a step fed by the request the names of the values it needs."""
    wanted: dict[str, set[str]] = {}
    for step in plan.steps:
        names = {edge.source_port for edge in step.inputs if edge.source == REQUEST}
        if names:
            wanted.setdefault(step.node, set()).update(names)
    return wanted


def another_credit(old: int, new: int) -> bool:
    """Whether a credit has changed so much that clients should know."""
    return new >= old * CREDIT_STEP or new * CREDIT_STEP <= old


def route(
    service: str,
    epoch: int,
    plans: tuple[Plan, ...] | str,
    blob_urls: tuple[str, ...],
    credit: int,
    encoding: str,
) -> Route:
    """Return the message that tells clients where a service is served, or why it is not."""
    if isinstance(plans, str):
        return Route(
            service, epoch, None, ROUTE_VALID_MS, credit=0, blob_urls=blob_urls, reason=plans
        )
    plan, *others = plans
    inputs = sorted({name for names in entry_inputs(plan).values() for name in names})
    return Route(
        service,
        epoch,
        plan,
        ROUTE_VALID_MS,
        credit=credit,
        blob_urls=blob_urls,
        inputs=tuple(inputs),
        encoding=encoding,
        others=tuple(others),
    )


def from_afar(route: Route, cell: str) -> Route:
    """Return a route of this cell as clients in other cells need it: each step names its cell."""
    if route.plan is None or not cell:
        return route
    others = tuple(_named(one, cell) for one in route.others)
    return replace(route, plan=_named(route.plan, cell), others=others)


def _named(plan: Plan, cell: str) -> Plan:
    return replace(plan, steps=tuple(replace(one, cell=one.cell or cell) for one in plan.steps))
