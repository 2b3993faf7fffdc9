"""A use case into orders for the anchors: services, tasks in topological order, task QoS.

TONA paper, "Task Procedures", steps 2 and 3. The latency of a service is split over its tasks in
proportion to their predicted cost along the dearest path through each, so that the budgets of no
path add up to more than the service's bound. Other bounds are passed to every task as they are.
"""

from typing import Final

import msgspec

from controller.namo.checks import LATENCY, MAX_NAME, source, sources_of
from controller.namo.graph import longest_through, order
from controller.namo.model import Input, Output, Service, Task, UseCase
from protocols.base import EPOCH_LIMIT
from protocols.errors import TonaBug, UserError
from protocols.manifest import Constant, ExecutorKind, Manifest, Port
from protocols.messages.hierarchy import ServiceOrder, TaskQos, TaskSpec
from protocols.messages.invocation import Edge, Plan, Step
from protocols.qoais import Sla, Zone
from protocols.topics import CONTROL_MAX_BYTES

EXPECTED_MS: Final = {ExecutorKind.WASM: 5.0, ExecutorKind.ONNX: 50.0}
"""Predicted cost of one run where the document declares none."""
HOP_MS: Final = 1.0
"""Predicted cost of handing a request to the next task; no budget is smaller than its share."""
FRAME_BYTES: Final = 4096
"""Room for what stands around an order or a plan in its frame."""


def decompose(use_case: UseCase, generation: int) -> tuple[ServiceOrder, ...]:
    """Turn a validated use case into one order for each service.

    Raises UserError when a service is too large to be said in one message.
    """
    return tuple(_order(service, use_case.name, generation) for service in use_case.services)


def _order(service: Service, use_case: str, generation: int) -> ServiceOrder:
    tasks = {task.name: task for task in service.tasks}
    sources = sources_of(service)
    ordered, _ = order(sources)
    zone = Zone(tuple(service.sla.all_bounds()))
    budgets = _budgets(service, sources, ordered)
    others = tuple(one for one in zone.bounds if one.indicator != LATENCY)
    outputs = [(name, source(text)) for name, text in service.outputs.items()]
    made = ServiceOrder(
        service=service.name,
        use_case=use_case,
        kind=service.kind,
        generation=generation,
        tasks=tuple(
            _spec(service.name, tasks[name], tasks, TaskQos(budgets.get(name), others))
            for name in ordered
        ),
        outputs=tuple(Edge(name, come.step, come.port) for name, come in outputs),
        sla=Sla(zone, service.sla.satisfaction_ratio),
        spares=service.spares,
    )
    size = max(len(msgspec.msgpack.encode(one)) for one in (made, _widest_plan(made)))
    if size > CONTROL_MAX_BYTES - FRAME_BYTES:
        raise UserError(
            f"service {service.name!r} takes {size} bytes to describe, "
            f"at most {CONTROL_MAX_BYTES - FRAME_BYTES} are possible: split it into two services"
        )
    return made


def _widest_plan(made: ServiceOrder) -> Plan:
    """Return the largest plan that a route of this service may carry."""
    named = {spec.step: spec.task for spec in made.tasks}
    steps = tuple(
        Step(
            spec.task,
            "n" * MAX_NAME,
            EPOCH_LIMIT,
            tuple(_renamed(edge, named) for edge in spec.inputs),
            tuple(port.name for port in spec.manifest.outputs),
        )
        for spec in made.tasks
    )
    outputs = tuple(_renamed(edge, named) for edge in made.outputs)
    return Plan(made.service, made.generation, steps, outputs)


def _renamed(edge: Edge, named: dict[str, str]) -> Edge:
    return Edge(edge.port, named.get(edge.source, edge.source), edge.source_port)


def _spec(service: str, task: Task, tasks: dict[str, Task], qos: TaskQos) -> TaskSpec:
    inputs: list[Port] = []
    edges: list[Edge] = []
    for port, one in task.inputs.items():
        come = source(one.source)
        given = tasks[come.step].outputs[come.port] if come.step in tasks else None
        inputs.append(_port(port, one, given))
        edges.append(Edge(port, come.step, come.port))
    inputs += [Port(port, one.dtype, one.shape) for port, one in task.constants.items()]
    manifest = Manifest(
        kind=task.executor,
        artifact=task.artifact,
        inputs=tuple(inputs),
        outputs=tuple(Port(port, one.dtype, one.shape) for port, one in task.outputs.items()),
        limits=task.limits,
        constants=tuple(Constant(port, one.artifact) for port, one in task.constants.items()),
        providers=task.providers,
    )
    return TaskSpec(
        task=f"{service}.{task.name}",
        step=task.name,
        manifest=manifest,
        inputs=tuple(edges),
        qos=qos,
        demand=task.demand,
        policy=task.policy,
        replicas=task.replicas,
        nodes=task.nodes,
    )


def _port(port: str, declared: Input, given: Output | None) -> Port:
    """Type an input: as declared, for that is the task's own promise, else as its source."""
    dtype = declared.dtype or (given.dtype if given else None)
    shape = given.shape if given and declared.shape is None else declared.shape
    if dtype is None or shape is None:
        raise TonaBug(f"the input {port!r} has passed validation without a type")
    return Port(port, dtype, shape)


def _budgets(
    service: Service, sources: dict[str, list[str]], ordered: list[str]
) -> dict[str, float]:
    bounds = [one.at_most for one in service.sla.all_bounds() if one.indicator == LATENCY]
    if not bounds or bounds[0] is None:
        return {}
    cost = {
        task.name: HOP_MS + (task.expected_ms or EXPECTED_MS[task.executor])
        for task in service.tasks
    }
    through = longest_through(ordered, sources, cost)
    return {name: bounds[0] * cost[name] / through[name] for name in ordered}
