"""QoAIS into task QoS: each task's share of what its service must keep, over the DAG.

TONA paper, "Change 4" and "Task Procedures", step 3. How an indicator is shared stands in its
definition (`protocols.qoais.Share`). Whatever is shared out adds up, multiplies or joins to no
more than the bound of the service, on every path.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from controller.namo.graph import longest_through
from protocols.manifest import ExecutorKind
from protocols.messages.hierarchy import TaskQos, TaskSpec
from protocols.messages.invocation import REQUEST
from protocols.messages.quality import Source
from protocols.qoais import INDICATORS, Bound, Share
from protocols.qoais_map import HOP_MS, LATENCY, expected_ms, request_bytes, stored_bytes

ACCURACY: Final = "accuracy_percent"
TRAINING: Final = "training_duration_s"
_MS: Final = 1000.0
_WHOLE: Final = 100.0


def shared(
    specs: Sequence[TaskSpec], qoais: Sequence[Bound], sources: Sequence[Source] = ()
) -> tuple[TaskSpec, ...]:
    """Give each task its share of the QoAIS; the specs stand in topological order."""
    called = {one.step for one in specs if one.inferred}
    feeds = {
        one.step: [
            *(edge.source for edge in one.inputs if edge.source != REQUEST),
            *(other.name for other in one.manifest.infers if other.name in called),
        ]
        for one in specs
    }
    cost = {one.step: HOP_MS + expected_ms(one) for one in specs}
    through = longest_through([one.step for one in specs], feeds, cost)
    path_part = {step: cost[step] / through[step] for step in cost}
    latency_ms = _latency_ms(qoais)
    bounds: dict[str, list[Bound]] = {one.step: [] for one in specs}
    for bound in qoais:
        if bound.indicator == LATENCY:
            continue
        for step, part in _shares(bound, specs, path_part, cost, sources).items():
            bounds[step].append(part)
    return tuple(
        replace(
            one,
            qos=TaskQos(
                None if latency_ms is None else latency_ms * path_part[one.step],
                tuple(bounds[one.step]),
            ),
        )
        for one in specs
    )


def _latency_ms(qoais: Sequence[Bound]) -> float | None:
    """Return the time that one request may take; a training is one long request."""
    found = [one.at_most for one in qoais if one.indicator == LATENCY and one.at_most is not None]
    found += [_MS * one.at_most for one in qoais if one.indicator == TRAINING and one.at_most]
    return min(found, default=None)


def _shares(
    bound: Bound,
    specs: Sequence[TaskSpec],
    path_part: Mapping[str, float],
    cost: Mapping[str, float],
    sources: Sequence[Source],
) -> dict[str, Bound]:
    """Return the share of each task that has one."""
    rule = INDICATORS[bound.indicator].share
    match rule:
        case Share.SERVICE:
            return {}
        case Share.EACH:
            return {one.step: bound for one in specs}
        case Share.PATH:
            return {step: _times(bound, part) for step, part in path_part.items()}
        case _:
            weights = _weights(bound.indicator, specs, cost, sources)
            total = sum(weights.values())
            equal = 1.0 / max(1, len(weights))
            parts = {one: part / total if total > 0 else equal for one, part in weights.items()}
            split = _times if rule is Share.SUM else _root
            return {step: split(bound, part) for step, part in parts.items()}


def _weights(
    indicator: str,
    specs: Sequence[TaskSpec],
    cost: Mapping[str, float],
    sources: Sequence[Source],
) -> dict[str, float]:
    """Return how the tasks that take part in an indicator share it, in no unit."""
    match indicator:
        case "accuracy_percent":
            return _accuracy_weights(specs)
        case "storage_bytes":
            return {one.step: float(stored_bytes(one)) for one in specs}
        case "memory_bytes":
            return {one.step: float(one.manifest.limits.memory_bytes) for one in specs}
        case "transmission_bytes":
            sizes = {one.step: request_bytes(one, sources) for one in specs}
            if all(size is not None for size in sizes.values()):
                return {step: float(size or 0) for step, size in sizes.items()}
    return dict(cost)


def _accuracy_weights(specs: Sequence[TaskSpec]) -> dict[str, float]:
    """Share what may be lost like what the author says will be lost.

    Then a task keeps its share exactly when the whole, as declared, keeps the bound. Where nothing
    is declared the models take equal shares; a program without a model loses nothing.
    """
    declared = {
        one.step: -math.log(max(accuracy, 1e-9) / _WHOLE)
        for one in specs
        if (accuracy := declared_number(one, ACCURACY)) is not None
    }
    silent = [
        one.step
        for one in specs
        if one.manifest.kind is ExecutorKind.ONNX and one.step not in declared
    ]
    if not declared and not silent:
        return {one.step: 1.0 for one in specs}
    mean = sum(declared.values()) / len(declared) if declared else 1.0
    return declared | dict.fromkeys(silent, mean)


def declared_number(spec: TaskSpec, indicator: str) -> float | None:
    """Return what the author of a task's program declares; None: nothing."""
    found = (one.number for one in spec.declared if one.indicator == indicator)
    return next(found, None)


def _times(bound: Bound, part: float) -> Bound:
    if bound.at_most is not None:
        return replace(bound, at_most=bound.at_most * part)
    return bound if bound.at_least is None else replace(bound, at_least=bound.at_least * part)


def _root(bound: Bound, part: float) -> Bound:
    """Take a weighted root of a percentage that is kept, or of what remains of one that is lost."""
    if bound.at_least is not None:
        return replace(bound, at_least=_WHOLE * (bound.at_least / _WHOLE) ** part)
    lost = min(bound.at_most or 0.0, _WHOLE)
    return replace(bound, at_most=_WHOLE * (1.0 - (1.0 - lost / _WHOLE) ** part))
