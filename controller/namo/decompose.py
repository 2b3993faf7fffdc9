"""A use case into orders for the anchors: services, tasks in topological order, task QoS.

TONA paper, "Task Procedures", steps 2 and 3. One order for one way to do the service: which of its
decompositions, and which of its steps are fused. `controller.namo.candidates` weighs them.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from controller.namo.forms import formed
from controller.namo.graph import order
from controller.namo.leeway import leeway_of
from controller.namo.model import (
    Alternative,
    Declarations,
    Input,
    OnBreak,
    Output,
    OutputCheck,
    Service,
    Task,
    UseCase,
    Zoned,
    bounds_of,
)
from controller.namo.quality import shared
from controller.namo.wiring import (
    INFER,
    MAX_NAME,
    asked_of_request,
    come_from,
    sources_of,
    together,
)
from protocols.base import EPOCH_LIMIT
from protocols.errors import TonaBug, UserError
from protocols.manifest import Carry, Check, Infer, LinkedModule, Manifest, Port, Reference, Sample
from protocols.manifest import Constant as Filled
from protocols.messages.calibration import CalibrationInput
from protocols.messages.hierarchy import Autonomy, ServiceOrder, TaskSpec
from protocols.messages.invocation import REQUEST, Edge, Plan, Step
from protocols.messages.quality import Declared, Feed, Sink, Source, UserZone, Variant
from protocols.messages.task import Deviceless
from protocols.qoais import Sla, Zone
from protocols.qoais_map import qoais_of
from protocols.topics import CONTROL_MAX_BYTES

SPREAD: Final = "spread"
FUSED: Final = "fused"
FRAME_BYTES: Final = 4096
"""Room for what stands around an order or a plan in its frame."""


def decompose(use_case: UseCase, generation: int) -> tuple[ServiceOrder, ...]:
    """Turn a validated use case into one order for each service, each done its own way, spread.

    Raises UserError when a service is too large to be said in one message.
    """
    return tuple(
        order_of(one, one.ways()[0], use_case.name, generation) for one in use_case.services
    )


def order_of(
    service: Service,
    way: Alternative,
    use_case: str,
    generation: int,
    groups: Mapping[str, str] | None = None,
) -> ServiceOrder:
    """Return the order for one way to do a service; `groups` maps fused steps to their group.

    Raises UserError when it is too large to be said in one message.
    """
    zone = Zone(tuple(service.sla.all_bounds()))
    sla = Sla(zone, service.sla.satisfaction_ratio)
    users = tuple(_user(one, zone) for one in service.sla.users)
    sources = _sources(service)
    autonomy = _autonomy(zone)
    feeds = sources_of(way.tasks)
    tasks = {task.name: task for task in way.tasks}
    node = _level(zone, "data_privacy") == "node"
    bare = [
        _spec(service.name, tasks[name], tasks, _origins(tasks[name], service, node))
        for name in order(feeds)[0]
    ]
    specs = shared(bare, qoais_of(sla, users), sources)
    beside = together(way.tasks, groups or {})
    made = ServiceOrder(
        service=service.name,
        use_case=use_case,
        kind=service.kind,
        generation=generation,
        tasks=tuple(
            msgspec.structs.replace(
                spec,
                group=beside.get(spec.step, ""),
                leeway=leeway_of(tasks[spec.step], spec, autonomy),
            )
            for spec in specs
        ),
        outputs=tuple(
            Edge(name, come.step, come.port)
            for name, come in ((name, come_from(text)) for name, text in way.outputs.items())
        ),
        sla=sla,
        spares=service.spares,
        decomposition=named(way, beside),
        users=users,
        sources=sources,
        sinks=tuple(Sink(name, kind) for name, kind in service.sinks.items()),
        autonomy=autonomy,
    )
    _check_size(made)
    return made


def named(way: Alternative, groups: Mapping[str, str]) -> str:
    """Return the name of a way whose steps are in these groups."""
    return f"{way.name}+{SPREAD if groups == together(way.tasks, {}) else FUSED}"


def _check_size(made: ServiceOrder) -> None:
    plan = _widest_plan(made)
    fed = Feed(made.service, EPOCH_LIMIT, plan, made.sources, made.sinks)
    size = max(len(msgspec.msgpack.encode(one)) for one in (made, plan, fed))
    if size > CONTROL_MAX_BYTES - FRAME_BYTES:
        raise UserError(
            f"service {made.service!r} takes {size} bytes to describe, "
            f"at most {CONTROL_MAX_BYTES - FRAME_BYTES} are possible: split it into two services"
        )


def _autonomy(zone: Zone) -> Autonomy:
    level = _level(zone, "autonomy")
    return Autonomy(level) if level else Autonomy.FULL


def _level(zone: Zone, indicator: str) -> str:
    found = (one.level for one in zone.bounds if one.indicator == indicator)
    return next(found, None) or ""


def _user(one: Zoned, zone: Zone) -> UserZone:
    """Return a user's whole zone: the service's, with what is different for this user."""
    own = {bound.indicator: bound for bound in bounds_of(one.zone)}
    return UserZone(
        one.user, Zone(tuple(({one.indicator: one for one in zone.bounds} | own).values()))
    )


def _sources(service: Service) -> tuple[Source, ...]:
    asked = asked_of_request(service.ways()[0])
    return tuple(
        Source(
            input=name,
            kind=one.kind,
            name=one.name or name,
            dtype=one.dtype or asked[name].dtype,
            shape=asked[name].shape if one.shape is None else one.shape,
            nodes=one.nodes,
            rate_per_s=one.rate_per_s,
        )
        for name, one in service.sources.items()
    )


def _origins(task: Task, service: Service, stays: bool) -> tuple[str, ...]:
    """Return the nodes where a task's raw input comes to be; () where that is not known."""
    comes = [come_from(one.source) for one in task.inputs.values()]
    raw = [come.port for come in comes if come.step == REQUEST]
    named = [
        service.sources[port].nodes
        for port in raw
        if port in service.sources and service.sources[port].nodes
    ]
    if stays and raw and task.nodes:
        named.append(task.nodes)
    if not named:
        return ()
    return tuple(one for one in named[0] if all(one in others for others in named[1:]))


def _widest_plan(made: ServiceOrder) -> Plan:
    """Return the largest plan that a route of this service may carry."""
    known = {spec.step: spec.task for spec in made.tasks}
    steps = tuple(
        Step(
            spec.task,
            "n" * MAX_NAME,
            EPOCH_LIMIT,
            tuple(_renamed(edge, known) for edge in spec.inputs),
            tuple(port.name for port in spec.manifest.outputs),
        )
        for spec in made.tasks
        if not spec.inferred
    )
    outputs = tuple(_renamed(edge, known) for edge in made.outputs)
    return Plan(made.service, made.generation, steps, outputs)


def _renamed(edge: Edge, named: dict[str, str]) -> Edge:
    return Edge(edge.port, named.get(edge.source, edge.source), edge.source_port)


def _manifest(service: str, task: Task, inputs: tuple[Port, ...]) -> Manifest:
    """Return what an executor must know of a task; its constants are inputs too."""
    filled = tuple(Port(port, one.dtype, one.shape) for port, one in task.constants.items())
    return Manifest(
        kind=task.executor,
        artifact=task.artifact,
        inputs=inputs + filled,
        outputs=tuple(Port(port, one.dtype, one.shape) for port, one in task.outputs.items()),
        limits=task.limits,
        constants=tuple(Filled(port, one.artifact) for port, one in task.constants.items()),
        providers=task.providers,
        interface=task.interface,
        functions=task.functions,
        modules=tuple(LinkedModule(name, one.artifact) for name, one in task.modules.items()),
        arguments=task.arguments,
        carries=tuple(Carry(*pair) for pair in task.carries.items()),
        batch=task.batch,
        checks=tuple(_check(port, one) for port, one in task.checks.items()),
        reference=_reference(task),
        infers=tuple(Infer(step, f"{service}.{step}") for step in task.infers),
        threads=task.threads,
    )


def _spec(service: str, task: Task, tasks: dict[str, Task], origins: tuple[str, ...]) -> TaskSpec:
    inputs: list[Port] = []
    edges: list[Edge] = []
    for port, one in task.inputs.items():
        come = come_from(one.source)
        given = tasks[come.step].outputs[come.port] if come.step in tasks else None
        inputs.append(_port(port, one, given))
        if one.source != INFER:
            edges.append(Edge(port, come.step, come.port))
    return TaskSpec(
        task=f"{service}.{task.name}",
        step=task.name,
        manifest=_manifest(service, task, tuple(inputs)),
        inputs=tuple(edges),
        demand=task.demand,
        policy=task.policy,
        replicas=task.replicas,
        nodes=task.nodes,
        variants=tuple(
            Variant(
                name=one.name,
                manifest=_manifest(service, formed(task, one), tuple(inputs)),
                accuracy_percent=one.accuracy_percent,
                expected_ms=one.expected_ms,
                declared=_declared(one.accuracy_percent, one.precision_bits, one.declared),
            )
            for one in task.variants
        ),
        declared=_declared(task.accuracy_percent, task.precision_bits, task.declared),
        expected_ms=task.expected_ms,
        priority=task.priority,
        origins=origins,
        deviceless=_deviceless(task),
        samples=tuple(
            CalibrationInput(port, one.dtype, one.shape, one.artifact)
            for port, one in task.samples.items()
        ),
        quarantine=task.quarantine,
    )


def _deviceless(task: Task) -> Deviceless | None:
    if task.deviceless is None:
        return None
    # To leave at once is to stay for the shortest time there is.
    kept_ms = task.deviceless.keep_alive_ms
    return Deviceless(0 if kept_ms is None else max(1, kept_ms), task.deviceless.fresh)


def _check(output: str, one: OutputCheck) -> Check:
    return Check(
        output,
        one.at_least,
        one.at_most,
        one.values,
        one.finite,
        one.items_at_least,
        one.items_at_most,
        one.form,
        one.on_break is OnBreak.REFUSE,
    )


def _reference(task: Task) -> Reference | None:
    wanted = task.reference
    if wanted is None:
        return None
    inputs = tuple(Sample(port, one.shape, one.artifact) for port, one in task.samples.items())
    outputs = tuple(Sample(port, one.shape, one.artifact) for port, one in wanted.outputs.items())
    return Reference(inputs, outputs, wanted.tolerance, wanted.every_s * 1000)


def _declared(
    accuracy_percent: float | None, precision_bits: int | None, others: Declarations
) -> tuple[Declared, ...]:
    own = (("accuracy_percent", accuracy_percent), ("precision_bits", precision_bits))
    made = [Declared(name, number=float(value)) for name, value in own if value is not None]
    for name, value in others.items():
        level = value if isinstance(value, str) else ""
        made.append(Declared(name, None if isinstance(value, str) else value, level))
    return tuple(made)


def _port(port: str, declared: Input, given: Output | None) -> Port:
    """Type an input: as declared, for that is the task's own promise, else as its source."""
    dtype = declared.dtype or (given.dtype if given else None)
    shape = given.shape if given and declared.shape is None else declared.shape
    if dtype is None or shape is None:
        raise TonaBug(f"the input {port!r} has passed validation without a type")
    return Port(port, dtype, shape)
