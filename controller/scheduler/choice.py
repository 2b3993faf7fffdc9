"""Which action to take: the cheapest one predicted to help that breaks no bound."""

from collections.abc import Iterable
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
from protocols.messages.quality import Tuning
from protocols.qoais import Dimension

RELAX_USE: Final = 0.60
"""An action is taken back only where the use is predicted to stay below this."""
SATURATED_USE: Final = 0.90
"""Workers that are busier than this share of the time will refuse requests."""

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
    found: float | None = None
    match danger.indicator:
        case "compute_ms" | "computing_ms":
            found = forecast.run_ms
        case "transmission_bytes":
            found = forecast.sent_bytes
        case "energy_j":
            found = forecast.energy_j
        case "delay_ms" | "jitter_ms" | "loss_percent":
            found = _link_value(danger.indicator, option.node, nodes)
        case _:
            pass
    return found / target if found is not None and target > 0 else None


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
    current = entry.current
    if current is None:
        return []
    first, now = envelope.initial(entry.grant), entry.tuning
    replace = msgspec.structs.replace
    found: list[Option] = []

    def offer(key: str, dimension: Dimension, tuning: Tuning, new: Data, cost: float) -> None:
        option = Option(key, entry.task, dimension, tuning, current.node, new, cost)
        found.append(option)

    if data != AS_DECLARED and entry.grant.sources:
        offer("data as declared", Dimension.DATA, now, AS_DECLARED, COST_DATA)
    if now.variant != first.variant:
        back = replace(now, variant=first.variant)
        offer(f"back to variant {first.variant or 'of the task'}", Dimension.ALGORITHM, back, data,
              COST_REBUILD)  # fmt: skip
    soft = replace(first, variant=now.variant, threads=now.threads, provider=now.provider)
    if soft != now:
        offer("share, workers, priority and encoding as granted", Dimension.COMPUTING, soft, data,
              COST_TUNE)  # fmt: skip
    target = entry.grant.spec.qos.latency_ms
    whole = gauges.worst_use(entry.grant.service)
    level = gauges.meters.get(entry.task, Col.LEVEL_MS)
    safe = []
    for option in found:
        forecast = levers.forecast(entry, place, data, option)
        if forecast.level_ms is None:
            continue
        use = forecast.level_ms / target if target else 0.0
        if whole is not None and level:
            use = max(use, whole * forecast.level_ms / level)
        if max(use, forecast.use) < RELAX_USE:
            safe.append((option, use))
    return safe


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
