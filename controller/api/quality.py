"""The quality of a service from SLA to resource, target beside measured: one row each. Pure.

What is not measured is declared by an author or kept by placement, and its row says so.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Final

from msgspec import Struct

from controller.records import (
    FLEET,
    QUALITY,
    TASK,
    NodeView,
    ServiceQuality,
    ServiceRecord,
    TaskQuality,
    TaskRecord,
)
from controller.registry import Registry
from protocols.manifest import ExecutorKind
from protocols.messages.hierarchy import ServiceState, TaskSpec
from protocols.messages.invocation import REQUEST
from protocols.qoais import INDICATORS, Bound, ServiceKind, Share, Zone, holds
from protocols.qoais_map import (
    LATENCY,
    by_dimension,
    qoais_of,
    resource_bounds,
    stored_bytes,
    task_values,
)

SLA: Final = "sla"
QOAIS: Final = "qoais"
TASK_LEVEL: Final = "task"
EVERY_USER: Final = "every user"
_MS: Final = 1000.0
_PERCENT: Final = 100.0

Value = float | str


class QosRow(Struct, frozen=True):
    """One indicator at one level."""

    level: str
    """`sla`, `qoais`, `task`, or the dimension of a resource."""
    of: str
    """The user, service or task."""
    indicator: str
    unit: str
    target: Bound | None = None
    """None: nothing was agreed, it is only measured."""
    value: float | str | None = None
    """As measured, declared or kept; None: not known now."""
    kept: bool | None = None
    how: str = ""
    """Where the value comes from."""


class ServiceQos(Struct, frozen=True):
    """How a service keeps what was agreed."""

    service: str
    kind: ServiceKind
    state: ServiceState
    paper: bool
    """Whether the map from quality to resources is the paper's; otherwise it is ours."""
    target_ratio: float
    """Of users that are to be satisfied."""
    satisfaction_ratio: float | None
    """Of users that are; None: nobody was measured."""
    users: int
    satisfied: int
    rows: tuple[QosRow, ...]


def service_qos(record: ServiceRecord, registry: Registry) -> ServiceQos:
    """Return the quality of a service, from what was agreed to what its nodes measure."""
    order = record.order
    seen: ServiceQuality = registry.get(QUALITY, order.service) or ServiceQuality(
        order.service, "", target_ratio=order.sla.satisfaction_ratio
    )
    tasks = {one.task: one for one in seen.tasks}
    held = [
        _Task(spec, registry.get(TASK, spec.task), tasks.get(spec.task), registry, seen.window_ms)
        for spec in order.tasks
    ]
    rows = [
        *_zone_rows(EVERY_USER, order.sla.zone),
        *(
            row
            for one in order.users
            for row in _zone_rows(f"user {one.user}", one.zone)
            if row.target not in order.sla.zone.bounds
        ),
        *_service_rows(record, seen, held),
        *(row for one in held for row in one.shares()),
        *(row for one in held for row in one.resources(record)),
    ]
    return ServiceQos(
        service=order.service,
        kind=order.kind,
        state=record.state,
        paper=order.kind is ServiceKind.TRAINING,
        target_ratio=order.sla.satisfaction_ratio,
        satisfaction_ratio=seen.satisfaction_ratio,
        users=seen.users,
        satisfied=seen.satisfied,
        rows=tuple(rows),
    )


def _zone_rows(of: str, zone: Zone) -> Iterator[QosRow]:
    for bound in zone.bounds:
        yield QosRow(SLA, of, bound.indicator, INDICATORS[bound.indicator].unit, bound)


def _row(level: str, of: str, bound: Bound | str, values: Mapping[str, Value]) -> QosRow:
    name = bound if isinstance(bound, str) else bound.indicator
    target = None if isinstance(bound, str) else bound
    value = values.get(name)
    return QosRow(
        level,
        of,
        name,
        INDICATORS[name].unit,
        target,
        value,
        holds(target, value) if target is not None and value is not None else None,
        INDICATORS[name].how,
    )


def _service_rows(
    record: ServiceRecord, seen: ServiceQuality, tasks: "list[_Task]"
) -> Iterable[QosRow]:
    order = record.order
    autonomy = {"autonomy": order.autonomy.value}
    values: dict[str, Value] = {**_over_tasks(tasks), **autonomy, **seen.values}
    if order.kind is ServiceKind.TRAINING and isinstance(took := values.get(LATENCY), float):
        values.setdefault("training_duration_s", took / _MS)
    qoais = qoais_of(order.sla, order.users)
    agreed = {one.indicator for one in qoais}
    rows = [_row(QOAIS, order.service, one, values) for one in qoais]
    measured = [name for name in INDICATORS if name in seen.values and name not in agreed]
    return rows + [_row(QOAIS, order.service, name, values) for name in measured]


def _over_tasks(tasks: "list[_Task]") -> dict[str, Value]:
    """Join what is known of every task the way the indicator is shared out."""
    joined: dict[str, Value] = {}
    for name, indicator in INDICATORS.items():
        found = [value for one in tasks if isinstance(value := one.values.get(name), float)]
        whole = len(found) == len(tasks)
        if indicator.share is Share.SUM and whole:
            joined[name] = sum(found)
        elif indicator.share is Share.PRODUCT and found and (whole or not indicator.measured):
            joined[name] = _PERCENT * prod(one / _PERCENT for one in found)
        elif indicator.share is Share.EACH:
            levels = [one.values[name] for one in tasks if name in one.values]
            if levels:
                joined[name] = _worst(name, levels)
    return joined


def _worst(name: str, values: list[Value]) -> Value:
    """Return the value of the task that keeps least."""
    indicator = INDICATORS[name]
    if not indicator.quantitative:
        return min(values, key=lambda one: indicator.levels.index(str(one)))
    numbers = [one for one in values if isinstance(one, float)]
    return max(numbers) if indicator.direction == "lower" else min(numbers)


class _Task:
    """One task: what it is to keep, and what is known of it."""

    def __init__(
        self,
        spec: TaskSpec,
        record: TaskRecord | None,
        seen: TaskQuality | None,
        registry: Registry,
        window_ms: int,
    ) -> None:
        self.spec = spec
        self._record = record
        self.node = seen.node if seen is not None else record.node if record is not None else ""
        view = registry.get(FLEET, self.node) if self.node else None
        self.values: dict[str, Value] = {
            **_declared(spec, record.variant if record is not None else ""),
            "storage_bytes": float(stored_bytes(spec)),
            **_kept(spec, self.node, view),
            **_link(view),
        }
        if seen is not None:
            if seen.sample is not None:
                self.values |= task_values(seen.sample, window_ms)
            self.values |= seen.values

    def shares(self) -> Iterator[QosRow]:
        """Return a row for each share of the QoAIS."""
        qos = self.spec.qos
        if qos.latency_ms is not None:
            bound = Bound(LATENCY, at_most=qos.latency_ms)
            yield _row(TASK_LEVEL, self.spec.task, bound, self.values)
        for bound in qos.bounds:
            yield _row(TASK_LEVEL, self.spec.task, bound, self.values)

    def resources(self, record: ServiceRecord) -> Iterator[QosRow]:
        """Return a row for each thing that the share asks of a resource."""
        order = record.order
        bounds = self._record.resources if self._record is not None else ()
        bounds = bounds or resource_bounds(self.spec, order.sources, order.kind)
        for dimension, group in by_dimension(bounds).items():
            for bound in group:
                yield _row(dimension.value, self.spec.task, bound, self.values)


def _kept(spec: TaskSpec, node: str, view: NodeView | None) -> dict[str, Value]:
    """Say what placement and executor keep of security and privacy; nothing before it is placed.

    What is not fed by raw input takes none anywhere; all tasks of a service are in one cell.
    """
    if not node:
        return {}
    raw = any(edge.source == REQUEST for edge in spec.inputs)
    kind = spec.manifest.kind
    executors = view.inventory.executors if view is not None else ()
    told = next((one.security for one in executors if one.kind == kind), "")
    return {
        "data_privacy": "cell" if raw and node not in spec.origins else "node",
        "algorithm_privacy": "node" if node in spec.nodes else "cell",
        "computing_security": told or ("strong" if kind is ExecutorKind.WASM else "basic"),
        "storage_security": "strong" if view is not None and view.trust is not None else "basic",
    }


def _declared(spec: TaskSpec, variant: str) -> dict[str, Value]:
    """Return what the author says of the program that runs."""
    named = next((one for one in spec.variants if one.name == variant), None)
    declared = spec.declared if named is None else named.declared
    return {
        one.indicator: one.level if one.number is None else float(one.number) for one in declared
    }


def _link(node: NodeView | None) -> dict[str, Value]:
    """Return what the node of a task measures of its connection."""
    link = node.link if node is not None else None
    if link is None:
        return {}
    trip = None if link.round_trip_ms is None else link.round_trip_ms / 2
    measured = {
        "delay_ms": trip,
        "jitter_ms": link.jitter_ms,
        "loss_percent": link.loss_percent,
        "bandwidth_mbit_per_s": link.bandwidth_mbit_per_s,
    }
    return {name: float(value) for name, value in measured.items() if value is not None}
