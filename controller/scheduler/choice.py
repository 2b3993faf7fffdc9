"""Which action to take: the cheapest one predicted to help that breaks no bound."""

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from msgspec import Struct

from controller.scheduler import envelope
from controller.scheduler.copies import TaskEntry
from controller.scheduler.danger import Danger
from controller.scheduler.feeds import AS_DECLARED, Data
from controller.scheduler.gauges import AVAILABILITY, LATENCY, Gauges
from controller.scheduler.levers import (
    COST_DATA,
    COST_REBUILD,
    COST_TUNE,
    COST_WORKERS,
    SAFE_USE,
    WORTH,
    Forecast,
    Levers,
    Option,
    Place,
    price,
)
from controller.scheduler.nodes import NodeTable
from controller.scheduler.quality import Col, TaskMeters
from controller.scheduler.table import TaskTable
from protocols.messages.invocation import REQUEST
from protocols.qoais import Dimension

RELAX_USE: Final = 0.60
"""An action is taken back only where the use is predicted to stay below this."""
LEAST_GAIN: Final = 0.05
"""An action that is predicted to lower the use by less changes nothing."""
SATURATED_USE: Final = 0.90
"""Workers that are busier than this share of the time will refuse requests."""

_OF_LINK: Final = frozenset({"delay_ms", "jitter_ms", "loss_percent"})
_PARTS: Final = (
    ("variant", "variant", Dimension.ALGORITHM, COST_REBUILD),
    ("provider", "provider", Dimension.COMPUTING, COST_REBUILD),
    ("threads", "threads", Dimension.COMPUTING, COST_REBUILD),
    ("replicas", "workers", Dimension.COMPUTING, COST_WORKERS),
    ("cpu_percent", "share", Dimension.COMPUTING, COST_TUNE),
    ("priority", "priority", Dimension.CONNECTION, COST_TUNE),
    ("encoding", "encoding", Dimension.CONNECTION, COST_TUNE),
)
"""Parts of a tuning; after the variant what holds most of a node is given back first."""

Weighed = tuple[TaskEntry, Place, Option, Forecast]


class Chosen(Struct, frozen=True):
    """The action to take, and the use of the endangered bound that it is to bring."""

    option: Option
    use: float


def choose(
    danger: Danger, options: Iterable[Weighed], meters: TaskMeters, nodes: NodeTable
) -> tuple[Chosen | None, list[tuple[str, str]]]:
    """Return the action to take, and why the others were not: `(action, reason)`."""
    safe: list[tuple[float, str, Chosen]] = []
    better: list[tuple[float, str, Chosen]] = []
    rejected = []
    for entry, place, option, forecast in options:
        broken = _breaks(entry, forecast)
        use = predicted_use(danger, entry, option, forecast, meters, nodes)
        if broken:
            rejected.append((option.key, broken))
        elif use is None:
            rejected.append((option.key, "nothing is known of what it brings"))
        elif use > danger.use * (1.0 - LEAST_GAIN):
            rejected.append((option.key, f"predicted {use * danger.target:.4g}"))
        else:
            chosen = Chosen(option, use)
            cost = price(option, entry, place, forecast)
            if use < SAFE_USE:
                safe.append((cost, option.key, chosen))
            elif use < danger.use * (1.0 - WORTH):
                better.append((use, option.key, chosen))
            rejected.append((option.key, f"predicted {use * danger.target:.4g}"))
    best = safe or better
    if not best:
        return None, rejected
    return min(best, key=lambda one: one[:2])[2], rejected


def predicted_use(
    danger: Danger,
    entry: TaskEntry,
    option: Option,
    forecast: Forecast,
    meters: TaskMeters,
    nodes: NodeTable,
) -> float | None:
    """Return the use of the endangered bound after an action; None: nothing is known."""
    level = meters.get(entry.task, Col.LEVEL_MS)
    target = danger.target
    if danger.indicator == LATENCY and forecast.level_ms is not None:
        if danger.whole or option.task != danger.task:
            gained = (level or 0.0) - forecast.level_ms
            # Of what the service takes beyond the task's own part, no more can be saved.
            saved = min(forecast.saved_ms, max(0.0, danger.measured - (level or 0.0)))
            return max(0.0, danger.measured - gained - saved) / target
        return forecast.level_ms / target
    if danger.indicator == AVAILABILITY and forecast.level_ms is not None:
        return danger.use * forecast.use / max(SATURATED_USE, _use_now(entry, meters))
    if danger.indicator in _OF_LINK:
        found = _link_value(danger.indicator, option.node, nodes)
    else:
        found = _figure(danger.indicator, forecast)
    return found / target if found is not None and target > 0 else None


def _figure(indicator: str, forecast: Forecast) -> float | None:
    """Return what is predicted of an indicator of the task itself."""
    match indicator:
        case "compute_ms" | "computing_ms":
            return forecast.run_ms
        case "transmission_bytes":
            return forecast.sent_bytes
        case "energy_j":
            return forecast.energy_j
        case _:
            return None


def _use_now(entry: TaskEntry, meters: TaskMeters) -> float:
    workers = envelope.replicas_of(entry.grant, entry.tuning)
    run_ms = meters.number(entry.task, Col.RUN_MS)
    return meters.number(entry.task, Col.OFFERED_PER_S) * run_ms / 1000 / workers


def _link_value(indicator: str, node: str, nodes: NodeTable) -> float | None:
    slot = nodes.slots.get(node)
    link = nodes.links[slot] if slot is not None else None
    if link is None:
        return None
    if indicator == "delay_ms":
        return link.round_trip_ms / 2 if link.round_trip_ms is not None else None
    return link.jitter_ms if indicator == "jitter_ms" else link.loss_percent


def _breaks(entry: TaskEntry, forecast: Forecast) -> str:
    """Return which bound of the task a way of running would break; empty: none."""
    for bound in (*entry.grant.spec.qos.bounds, *entry.grant.resources):
        match bound.indicator:
            case "accuracy_percent":
                value, least = forecast.accuracy_percent, bound.at_least
                if least is not None and (value is None or value < least):
                    known = "not declared" if value is None else f"{value:g} %"
                    return f"its accuracy is {known}, the bound {least:g} %"
            case "energy_j":
                value, most = forecast.energy_j, bound.at_most
                if most is not None and value is not None and value > most:
                    return f"it would take {value:.3g} J, the bound is {most:g}"
            case _:
                pass
    return ""


def relaxations(
    entry: TaskEntry, place: Place, data: Data, levers: Levers, gauges: Gauges
) -> list[tuple[Option, float]]:
    """Return what can be taken back without danger, with the predicted use; data go first."""
    safe = []
    for option in _backward(entry, data):
        forecast = levers.forecast(entry, place, data, option)
        use = _relaxed_use(entry, forecast, gauges)
        if use is not None and use < RELAX_USE and not _breaks(entry, forecast):
            safe.append((option, use))
    return safe


def _backward(entry: TaskEntry, data: Data) -> Iterator[Option]:
    """Yield what was changed, each part by itself: one that is still needed keeps no other."""
    if entry.current is None:
        return
    first, now, node = envelope.initial(entry.grant), entry.tuning, entry.current.node
    if data != AS_DECLARED and entry.grant.sources:
        key = "data as declared"
        yield Option(key, entry.task, Dimension.DATA, now, node, AS_DECLARED, COST_DATA)
    for name, said, dimension, cost in _PARTS:
        granted = {name: getattr(first, name)}
        if getattr(now, name) != granted[name]:
            key = f"{said} as granted"
            if name == "variant":
                key = f"back to variant {first.variant or 'of the task'}"
            tuning = msgspec.structs.replace(now, **granted)
            yield Option(key, entry.task, dimension, tuning, node, data, cost)


def _relaxed_use(entry: TaskEntry, forecast: Forecast, gauges: Gauges) -> float | None:
    """Return the worst use that is predicted for a task; None: nothing is known."""
    if forecast.level_ms is None:
        return None
    target = entry.grant.spec.qos.latency_ms
    use = max(forecast.use, forecast.level_ms / target if target else 0.0)
    whole = gauges.worst_use(entry.grant.service)
    level = gauges.meters.get(entry.task, Col.LEVEL_MS)
    if whole is not None and level:
        use = max(use, whole * forecast.level_ms / level)
    for one in gauges.uses(entry):
        figure = _figure(one.indicator, forecast)
        if figure is not None and one.target > 0:
            use = max(use, figure / one.target)
    return use


def place_of(entry: TaskEntry, table: TaskTable) -> Place:
    """Return where the neighbours of a task run; the client is nowhere."""
    nodes: dict[str, str] = {}
    fed: dict[str, bool] = {}
    step = entry.grant.spec.step
    for task in table.of_service(entry.grant.service):
        other = table.tasks.get(task)
        if other is None or other.current is None:
            continue
        nodes[other.grant.spec.step] = other.current.node
        fed[other.grant.spec.step] = any(edge.source == step for edge in other.grant.spec.inputs)
    sources = {edge.source for edge in entry.grant.spec.inputs if edge.source != REQUEST}
    before = tuple(nodes[one] for one in sorted(sources) if one in nodes)
    after = tuple(nodes[one] for one in sorted(nodes) if fed[one])
    ends = any(edge.source == step for edge in entry.grant.outputs)
    return Place(before, (*after, "") if ends else after)
