"""The operations that only read: answered from the registry, by name. Pure."""

from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from controller.accounts import OPERATION, PROFILE, AuditOperations
from controller.api.choices import explain_service, list_approvals
from controller.api.errors import not_found
from controller.api.holders import holders
from controller.api.jobs import ListJobs
from controller.api.mobility import crossings, handover, handovers
from controller.api.operation import Named, Operation
from controller.api.operations import (
    ListArtifacts,
    ListNodes,
    ListServices,
    ListTasks,
    ListUseCases,
)
from controller.api.places import Explanation, ServicePlace
from controller.api.quality import service_qos
from controller.api.stats import task_stats
from controller.handover_records import HandoverRecord
from controller.job_view import JobView, job_view
from controller.records import (
    APPROVAL,
    ARTIFACT,
    CELL,
    FLEET,
    HANDOVER,
    JOB,
    NODE,
    SERVICE,
    STORY,
    STORY_LENGTH,
    TASK,
    USE_CASE,
    NodeRecord,
    NodeView,
    TaskState,
    UseCaseState,
)
from controller.registry import Registry
from protocols.messages.hierarchy import NodeState, ServiceState

WORDS: Final = {
    USE_CASE: "use case",
    SERVICE: "service",
    TASK: "task",
    FLEET: "node",
    APPROVAL: "approval",
}
_UNHEARD: Final = "not heard of since this controller started"


def read(operation: Operation, arguments: Any, registry: Registry) -> Any:
    """Answer an operation. Raises Refused (404) for an unknown name."""
    check_named(operation, arguments, registry)
    return _READS[operation.name](arguments, registry)


def check_named(operation: Operation, arguments: Struct, registry: Registry) -> None:
    """Check that the thing an operation names is there. Raises Refused (404)."""
    name = str(getattr(arguments, "name", ""))
    if operation.kind and name and _find(registry, operation.kind, name) is None:
        known = [*registry.keys(operation.kind)]
        if operation.kind == FLEET:
            known += registry.keys(NODE)
        raise not_found(WORDS[operation.kind], name, known)
    node = getattr(arguments, "node", "")
    if operation.kind == TASK and node and _find(registry, FLEET, node) is None:
        # One that has been forgotten may have left figures of the task.
        ran = {one.node for one in registry.list(PROFILE, f"{name}/")}
        if node not in ran:
            known = [*registry.keys(FLEET), *registry.keys(NODE), *filter(None, ran)]
            raise not_found("node", node, known, "node")


def _find(registry: Registry, kind: str, name: str) -> Any:
    found = registry.get(kind, name)
    if found is None and kind == FLEET:
        record = registry.get(NODE, name)
        return None if record is None else _unheard(record)
    return found


def _unheard(record: NodeRecord) -> NodeView:
    """Return the view of a node that was known before a restart and has not come back yet."""
    return NodeView(
        node=record.node,
        state=NodeState.LOST,
        scheduler="",
        inventory=record.inventory,
        agent_version=record.agent_version,
        reason=_UNHEARD,
    )


def _show(kind: str) -> Callable[[Named, Registry], Any]:
    return lambda arguments, registry: _find(registry, kind, arguments.name)


def _use_cases(arguments: ListUseCases, registry: Registry) -> Any:
    return registry.list(
        USE_CASE,
        arguments.prefix,
        lambda one: _in_state(one.state, arguments.state, UseCaseState.DELETED),
    )


def _services(arguments: ListServices, registry: Registry) -> Any:
    return registry.list(
        SERVICE,
        arguments.prefix,
        lambda one: (
            _in_state(one.state, arguments.state, ServiceState.DELETED)
            and arguments.use_case in ("", one.order.use_case)
        ),
    )


def _where(arguments: Named, registry: Registry) -> ServicePlace:
    """All tasks of a service are in one cell; while it is transferred, the old one serves."""
    service = arguments.name
    known = registry.get(SERVICE, service) is not None
    for task in registry.list(TASK, where=lambda one: one.service == service):
        scheduler = task.leaving.scheduler if task.leaving is not None else task.scheduler
        cell = registry.get(CELL, scheduler)
        if cell is not None:
            return ServicePlace(service, known, cell)
    return ServicePlace(service, known)


def _tasks(arguments: ListTasks, registry: Registry) -> Any:
    return registry.list(
        TASK,
        arguments.prefix,
        lambda one: (
            _in_state(one.state, arguments.state, TaskState.DELETED)
            and arguments.service in ("", one.service)
            and arguments.node in ("", one.node)
        ),
    )


def _in_state(state: Any, wanted: Any, deleted: Any) -> bool:
    return state is not deleted if wanted is None else state is wanted


def _explain(arguments: Named, registry: Registry) -> Explanation:
    task = registry.get(TASK, arguments.name)
    return Explanation(
        task.spec.task,
        task.state,
        task.node,
        task.reason,
        task.placement,
        task.following,
        task.failures,
    )


def _story(arguments: Named, registry: Registry) -> Any:
    slots = (registry.get(STORY, f"{arguments.name}/{slot}") for slot in range(STORY_LENGTH))
    return sorted((one for one in slots if one is not None), key=lambda one: one.number)


def _fleet(arguments: ListNodes, registry: Registry) -> list[NodeView]:
    seen = {one.node: one for one in registry.list(FLEET, arguments.prefix)}
    for record in registry.list(NODE, arguments.prefix):
        if record.node not in seen:
            seen[record.node] = _unheard(record)
    return [
        seen[node]
        for node in sorted(seen)
        if arguments.state is None or seen[node].state is arguments.state
    ]


def _artifacts(arguments: ListArtifacts, registry: Registry) -> Any:
    found = registry.list(ARTIFACT, where=lambda one: one.name.startswith(arguments.prefix))
    return sorted(found, key=lambda one: (one.name, one.digest))


def _jobs(arguments: ListJobs, registry: Registry) -> list[JobView]:
    found = registry.list(
        JOB,
        arguments.prefix,
        lambda one: (
            arguments.service in ("", one.submit.service) and arguments.state in (None, one.state)
        ),
    )
    return [job_view(one, whole=False) for one in found[: arguments.limit]]


def _job(arguments: Named, registry: Registry) -> JobView:
    record = registry.get(JOB, arguments.name)
    if record is None:
        # Nobody mistypes a job's id, and there are too many to look for a near one.
        raise not_found("job", arguments.name, ())
    return job_view(record)


def _handover(arguments: Named, registry: Registry) -> HandoverRecord:
    found = handover(arguments.name, registry)
    if found is None:
        known = [name for one in registry.list(HANDOVER) for name in (one.handover, one.node)]
        raise not_found("handover", arguments.name, dict.fromkeys(known))
    return found


def _operations(arguments: AuditOperations, registry: Registry) -> Any:
    found = registry.list(
        OPERATION,
        where=lambda one: (
            arguments.operation in ("", one.operation)
            and arguments.who in ("", one.who)
            and arguments.verdict in ("", one.verdict)
            and one.unix_ms >= arguments.since_unix_ms
        ),
    )
    return sorted(found, key=lambda one: -one.number)[: arguments.limit]


_READS: Final[dict[str, Callable[[Any, Registry], Any]]] = {
    "usecase.list": _use_cases,
    "usecase.show": _show(USE_CASE),
    "service.list": _services,
    "service.show": _show(SERVICE),
    "service.where": _where,
    "service.qos": lambda arguments, registry: service_qos(
        registry.get(SERVICE, arguments.name), registry
    ),
    "service.explain": lambda arguments, registry: explain_service(
        registry.get(SERVICE, arguments.name)
    ),
    "approve.list": list_approvals,
    "task.list": _tasks,
    "task.show": _show(TASK),
    "task.explain": _explain,
    "task.events": _story,
    "task.stats": task_stats,
    "audit.list": _operations,
    "fleet.status": _fleet,
    "node.show": _show(FLEET),
    "artifact.list": _artifacts,
    "artifact.holders": holders,
    "job.list": _jobs,
    "job.show": _job,
    "handover.list": handovers,
    "handover.show": _handover,
    "handover.cells": lambda _, registry: crossings(registry),
}
