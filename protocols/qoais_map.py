"""Task QoS into resource QoS: what a task's share asks of data, algorithm, computing, connection.

TONA paper, "Task QoS Assurance" and Table 1. The paper maps training; which indicators apply to the
other five kinds of service, and every formula here, is ours. Pure; NAMO, TA and TS all use it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from protocols.errors import TonaBug
from protocols.manifest import ExecutorKind, tensor_bytes
from protocols.messages.hierarchy import TaskSpec
from protocols.messages.invocation import REQUEST
from protocols.messages.quality import Source, TaskSample, UserZone
from protocols.qoais import INDICATORS, Bound, Dimension, Direction, ServiceKind, Sla, Zone

EXPECTED_MS: Final = {
    ExecutorKind.WASM: 5.0,
    ExecutorKind.ONNX: 50.0,
    ExecutorKind.CONTAINER: 200.0,
}
"""Predicted cost of one run where the document declares none."""
HOP_MS: Final = 1.0
"""Predicted cost of handing a request to the next task; no budget is smaller than its share."""
JITTER_SHARE: Final = 0.5
"""Of the delay's share: what arrivals may swing without spoiling the share itself."""
LATENCY: Final = "latency_ms"
THROUGHPUT: Final = "throughput_per_s"
_BITS: Final = 8
_MEGA: Final = 1e6
_HAIR: Final = 1e-9


def expected_ms(spec: TaskSpec) -> float:
    """Return the predicted cost of one run of the task's own manifest."""
    return spec.expected_ms or EXPECTED_MS[spec.manifest.kind]


def resource_bounds(
    spec: TaskSpec,
    sources: Sequence[Source] = (),
    kind: ServiceKind = ServiceKind.INFERENCE,
) -> tuple[Bound, ...]:
    """Return resource QoS of a task, in the order of `Dimension`, each indicator once.

    `sources` are those of its service: they say how often it runs and how large its inputs are.
    Of two demands on one indicator the stricter one stands.
    """
    found: dict[str, Bound] = {}
    for one in (*_own(spec), *_computing(spec), *_connection(spec, sources), *_data(spec)):
        indicator = INDICATORS.get(one.indicator)
        if indicator is None or indicator.dimension is None or kind not in indicator.kinds:
            continue
        before = found.get(one.indicator)
        found[one.indicator] = one if before is None else stricter(before, one)
    ordered = list(Dimension)
    return tuple(
        sorted(found.values(), key=lambda one: (ordered.index(_dimension(one)), one.indicator))
    )


def by_dimension(bounds: Iterable[Bound]) -> dict[Dimension, tuple[Bound, ...]]:
    """Group resource bounds by the dimension that they ask something of."""
    groups: dict[Dimension, list[Bound]] = {one: [] for one in Dimension}
    for bound in bounds:
        groups[_dimension(bound)].append(bound)
    return {dimension: tuple(group) for dimension, group in groups.items() if group}


def stricter(one: Bound, other: Bound) -> Bound:
    """Return the one of two bounds on the same indicator that is harder to keep."""
    indicator = INDICATORS[one.indicator]
    if not indicator.quantitative:
        levels = indicator.levels
        return max(one, other, key=lambda bound: levels.index(bound.level or levels[0]))
    if indicator.direction is Direction.LOWER:
        return min(one, other, key=lambda bound: math.inf if (at := bound.at_most) is None else at)
    return max(one, other, key=lambda bound: -math.inf if (at := bound.at_least) is None else at)


def demanded_per_s(spec: TaskSpec, sources: Sequence[Source] = ()) -> float | None:
    """Return how often the task must run: as agreed, as it is fed, or one request at a time."""
    agreed = [one.at_least for one in spec.qos.bounds if one.indicator == THROUGHPUT]
    rates = [rate for rate in (*agreed, *(one.rate_per_s for one in sources)) if rate]
    if rates:
        return max(rates)
    return 1000.0 / spec.qos.latency_ms if spec.qos.latency_ms else None


def request_bytes(spec: TaskSpec, sources: Sequence[Source] = ()) -> int | None:
    """Return the bytes that one run takes in and gives; None where a length is not known before."""
    fed = {one.input: one.shape for one in sources}
    raw = {edge.port: fed.get(edge.source_port) for edge in spec.inputs if edge.source == REQUEST}
    constant = {one.port for one in spec.manifest.constants}
    inputs = [
        (port.dtype, (raw.get(port.name) or port.shape) if -1 in port.shape else port.shape)
        for port in spec.manifest.inputs
        if port.name not in constant
    ]
    every = [*inputs, *((port.dtype, port.shape) for port in spec.manifest.outputs)]
    if any(-1 in shape for _, shape in every):
        return None
    return sum(tensor_bytes(dtype, shape) for dtype, shape in every)


def stored_bytes(spec: TaskSpec) -> int:
    """Return what a node keeps to run the task: program or model, and constants."""
    constants = (one.artifact.size_bytes for one in spec.manifest.constants)
    return spec.manifest.artifact.size_bytes + sum(constants)


def task_values(sample: TaskSample, window_ms: int) -> dict[str, float]:
    """Return the indicator values that a sample measures; what it cannot tell is left out."""
    runs = sample.done + sample.failed
    asked = runs + sample.shed + sample.late
    values: dict[str, float] = {}
    if window_ms > 0:
        values[THROUGHPUT] = 1000.0 * sample.done / window_ms
    if asked:
        values["availability_percent"] = 100.0 * sample.done / asked
    if runs:
        values["reliability_percent"] = 100.0 * sample.done / runs
    if sample.done:
        spent_ms = sample.run_ms + sample.queue_ms + sample.fetch_ms
        values[LATENCY] = spent_ms
        values["compute_ms"] = values["computing_ms"] = sample.run_ms
        values["data_preparation_ms"] = sample.fetch_ms
        values["transmission_bytes"] = sample.sent_bytes / sample.done
        if spent_ms > 0:
            values["compute_efficiency_percent"] = 100.0 * sample.run_ms / spent_ms
        if sample.energy_j is not None:
            values["energy_j"] = sample.energy_j / sample.done
    if sample.memory_bytes is not None:
        values["memory_bytes"] = float(sample.memory_bytes)
    return values


def _own(spec: TaskSpec) -> Iterable[Bound]:
    """Return what the share says of a resource already, such as precision or privacy."""
    return (one for one in spec.qos.bounds if one.indicator not in (LATENCY, THROUGHPUT))


def _computing(spec: TaskSpec) -> Iterable[Bound]:
    memory_bytes = spec.manifest.limits.memory_bytes
    yield Bound("memory_bytes", at_most=float(memory_bytes))
    if spec.qos.latency_ms is not None:
        run_ms = expected_ms(spec)
        yield Bound("compute_ms", at_most=spec.qos.latency_ms * run_ms / (run_ms + HOP_MS))


def _connection(spec: TaskSpec, sources: Sequence[Source]) -> Iterable[Bound]:
    if spec.qos.latency_ms is not None:
        # What compute_ms leaves of the budget.
        delay_ms = spec.qos.latency_ms * HOP_MS / (expected_ms(spec) + HOP_MS)
        yield Bound("delay_ms", at_most=delay_ms)
        yield Bound("jitter_ms", at_most=JITTER_SHARE * delay_ms)
    rate = demanded_per_s(spec, sources)
    size = request_bytes(spec, sources)
    if rate is not None and size is not None:
        yield Bound("bandwidth_mbit_per_s", at_least=rate * size * _BITS / _MEGA)
    kept = [
        one.at_least
        for one in spec.qos.bounds
        if one.indicator in ("reliability_percent", "availability_percent")
        and one.at_least is not None
    ]
    if kept:
        yield Bound("reliability_percent", at_least=max(kept))
        yield Bound("loss_percent", at_most=max(0.0, 100.0 - max(kept)))


def _data(spec: TaskSpec) -> Iterable[Bound]:
    yield Bound("storage_bytes", at_most=float(stored_bytes(spec)))


def _dimension(bound: Bound) -> Dimension:
    dimension = INDICATORS[bound.indicator].dimension
    if dimension is None:
        raise TonaBug(f"{bound.indicator} is of the whole task, not of a resource")
    return dimension


def qoais_of(sla: Sla, users: Sequence[UserZone] = ()) -> tuple[Bound, ...]:
    """Return the QoAIS that satisfies enough users: the strictest bounds of those to be satisfied.

    With a satisfaction ratio r, of n users with a zone of their own the strictest floor((1-r) n)
    may be left out; the service's zone, which everybody else has, is never left out.
    """
    base = {one.indicator: one for one in sla.zone.bounds}
    # A hair above, for 0.1 * 10 is less than 1 to a computer.
    spared = math.floor((1 - sla.satisfaction_ratio) * len(users) + _HAIR)
    ranked = sorted(users, key=lambda one: (_strictness(one.zone, base), one.user))
    found = dict(base)
    for user in ranked[: len(users) - spared]:
        for bound in user.zone.bounds:
            before = found.get(bound.indicator)
            found[bound.indicator] = bound if before is None else stricter(before, bound)
    return tuple(found.values())


def _strictness(zone: Zone, base: Mapping[str, Bound]) -> float:
    """Return how much more than the service's zone a user asks for: 1 is just as much."""
    return max((_ratio(one, base.get(one.indicator)) for one in zone.bounds), default=1.0)


def _ratio(bound: Bound, base: Bound | None) -> float:
    if base is None:
        return math.inf
    if bound.at_most is not None and base.at_most is not None:
        return base.at_most / bound.at_most if bound.at_most > 0 else math.inf
    if bound.at_least is not None and base.at_least is not None:
        return bound.at_least / base.at_least if base.at_least > 0 else math.inf
    levels = INDICATORS[bound.indicator].levels
    return (1.0 + levels.index(bound.level or "")) / (1.0 + levels.index(base.level or ""))
