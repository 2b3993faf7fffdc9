"""What a way to do a service would give at an anchor, from coarse aggregates alone; pure.

Predictions are for choosing between candidates, not promises: NAMO sees no node and nothing in
real time. Branches count in parallel as far as the anchor's nodes have cores for them.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from controller.booking import least_bytes
from protocols.messages.hierarchy import AnchorSummary, ServiceOrder, TaskSpec
from protocols.messages.invocation import REQUEST
from protocols.qoais import INDICATORS, Bound, holds
from protocols.qoais_map import HOP_MS, THROUGHPUT, demanded_per_s, expected_ms, qoais_of

LOCAL_HOP_MS: Final = 0.2
"""Predicted cost of handing a value on inside a node."""
BUSY_LEAST: Final = 0.05
"""Share of the time that a step is taken to be busy at least."""
BUSY_MOST: Final = 0.9
FREEDOM_MS: Final = 1.0
"""What it is worth to a request that a step can be moved without the one before it."""
_MS: Final = 1000.0
_PERCENT: Final = 100.0
_MIB: Final = 20
SIGNED: Final = "strong"
"""The storage security that has each artifact signed."""


class Estimate(Struct, frozen=True):
    """What is predicted, and what stands against it."""

    values: dict[str, float]
    """Indicators, and `parallel_ms`: what fusing gives away."""
    never: str = ""
    """Why no fleet could keep the agreement so; empty: nothing speaks against it."""
    unfit: str = ""
    """Why it cannot run at this anchor now."""
    short: str = ""
    """Which bound of the agreement it is predicted to miss."""

    @property
    def cost_ms(self) -> float:
        """What a request loses: the lowest is the best."""
        return self.values["latency_ms"] + self.values["parallel_ms"]


def hop_ms(summary: AnchorSummary | None) -> float:
    """Return the predicted cost of handing a value to another node of the anchor."""
    known = summary.round_trip_ms if summary is not None else None
    return HOP_MS if known is None else max(known, LOCAL_HOP_MS)


def local_hop_ms(summary: AnchorSummary | None) -> float:
    """Return the cost inside a node; where hops are not known, fusing is not credited with any."""
    known = summary is not None and summary.round_trip_ms is not None
    return LOCAL_HOP_MS if known else HOP_MS


def run_ms(spec: TaskSpec, summary: AnchorSummary | None) -> float:
    """Return the predicted run of a step on nodes as busy as the anchor's are on the mean."""
    busy = min(summary.cpu_percent / _PERCENT, BUSY_MOST) if summary is not None else 0.0
    return expected_ms(spec) / (1.0 - busy)


def parallel_ms(one: TaskSpec, other: TaskSpec, summary: AnchorSummary | None) -> float:
    """Return what placing two steps apart gives: freedom, and the shorter beside the longer one.

    The latter only as far as they are busy at the same time.
    """
    rate = demanded_per_s(one) or 0.0
    load = summary.cpu_percent / _PERCENT if summary is not None else 0.0
    shorter = min(run_ms(one, summary), run_ms(other, summary))
    return FREEDOM_MS + shorter * min(1.0, max(BUSY_LEAST, load, rate * shorter / _MS))


def estimate(
    order: ServiceOrder,
    summary: AnchorSummary | None,
    accuracy_percent: float | None = None,
    own_bytes: Mapping[str, int] | None = None,
    *,
    secured: bool = True,
) -> Estimate:
    """Predict how an order would do at an anchor; None: nothing is known of it yet.

    `own_bytes`: task memory that the service holds at this anchor already, by task. `secured`:
    whether connections have TLS.
    """
    values = _values(order, summary)
    accuracy = _accuracy(order) if accuracy_percent is None else accuracy_percent
    if accuracy is not None:
        values["accuracy_percent"] = accuracy
    qoais = qoais_of(order.sla, order.users)
    return Estimate(
        {name: round(value, 3) for name, value in values.items()},
        never=_never(order, qoais, values, secured=secured),
        unfit="" if summary is None else _unfit(order, summary, own_bytes or {}),
        short=_short(qoais, values),
    )


def _values(order: ServiceOrder, summary: AnchorSummary | None) -> dict[str, float]:
    far, near = hop_ms(summary), local_hop_ms(summary)
    specs = {one.step: one for one in order.tasks}
    runs = {one.step: run_ms(one, summary) for one in order.tasks}
    at: dict[str, float] = {}
    hops = 0
    given_up = 0.0
    for one in order.tasks:
        start = 0.0
        for step in {edge.source for edge in one.inputs} - {REQUEST}:
            together = bool(one.group) and one.group == specs[step].group
            hops += not together
            given_up += parallel_ms(specs[step], one, summary) if together else 0.0
            start = max(start, at[step] + (near if together else far))
        at[one.step] = start + runs[one.step]
    work = sum(runs.values())
    cores = summary.cpu_count if summary is not None else 0
    # A request and its answer cross between client and node, half a round trip each.
    latency = far + max(*at.values(), work / cores if cores else 0.0)
    return {
        "latency_ms": latency,
        "parallel_ms": given_up,
        "computing_ms": work,
        "hops": float(hops),
        THROUGHPUT: _throughput(order.tasks, runs, summary),
        "memory_bytes": float(sum(one.manifest.limits.memory_bytes for one in order.tasks)),
    }


def _throughput(
    specs: Sequence[TaskSpec], runs: Mapping[str, float], summary: AnchorSummary | None
) -> float:
    """Return how many requests a second the slowest place can take."""
    slowest = max(runs[one.step] / one.replicas for one in specs)
    if summary is not None and summary.nodes and summary.cpu_count:
        cores = summary.cpu_count / summary.nodes
        for group in groups_of(specs):
            slowest = max(slowest, sum(runs[one.step] for one in group) / cores)
    return _MS / slowest


def groups_of(specs: Sequence[TaskSpec]) -> list[list[TaskSpec]]:
    """Return the tasks by the node they share; one without a group stands alone."""
    groups: dict[str, list[TaskSpec]] = {}
    for one in specs:
        groups.setdefault(one.group or f"/{one.step}", []).append(one)
    return list(groups.values())


def _accuracy(order: ServiceOrder) -> float | None:
    """Return the product of what is declared; None where nothing is."""
    found = [
        one.number
        for spec in order.tasks
        for one in spec.declared
        if one.indicator == "accuracy_percent" and one.number is not None
    ]
    if not found:
        return None
    product = _PERCENT
    for one in found:
        product *= one / _PERCENT
    return product


def _never(
    order: ServiceOrder, qoais: Sequence[Bound], values: Mapping[str, float], *, secured: bool
) -> str:
    """Hold what is declared, and what the controller offers, against the agreement."""
    for bound in qoais:
        if bound.indicator == "accuracy_percent" and bound.indicator in values:
            if not holds(bound, values[bound.indicator]):
                return (
                    f"its declared accuracy is {values[bound.indicator]:.2f} %, "
                    f"{bound.at_least:g} % are agreed"
                )
            continue
        tls = bound.level in INDICATORS["transmission_security"].levels[1:]
        if bound.indicator == "transmission_security" and tls and not secured:
            return "transmission_security asks for TLS, which this controller does not use"
        if bound.indicator == "storage_security" and bound.level == SIGNED and not secured:
            return "storage_security strong asks for signatures, which nodes on loopback do not"
        for spec in order.tasks:
            for one in spec.declared:
                value = one.level if one.number is None else one.number
                if one.indicator == bound.indicator and not holds(bound, value):
                    return f"task {spec.step!r} declares {one.indicator} {value}, less than agreed"
    return ""


def _short(qoais: Sequence[Bound], values: Mapping[str, float]) -> str:
    for bound in qoais:
        value = values.get(bound.indicator)
        if value is None or bound.indicator == "accuracy_percent" or holds(bound, value):
            continue
        limit = bound.at_least if bound.at_most is None else bound.at_most
        unit = INDICATORS[bound.indicator].unit
        return f"{bound.indicator}: {value:.1f} {unit} predicted, {limit:g} {unit} agreed"
    return ""


def _unfit(order: ServiceOrder, summary: AnchorSummary, own_bytes: Mapping[str, int]) -> str:
    if not summary.nodes:
        return "none of its nodes is online"
    kinds = sorted({_kind(one, summary) for one in order.tasks})
    wanted = sorted({one.demand.accelerator for one in order.tasks} - {""})
    for names, have, what in (
        (kinds, summary.executors, "executor"),
        (wanted, summary.accelerators, "accelerator"),
    ):
        for name in names:
            if not have.get(name):
                return f"none of its {summary.nodes} nodes has the {what} {name}"
    return _memory_problem(order, summary, own_bytes) or _cpu_problem(order, summary)


def _kind(spec: TaskSpec, summary: AnchorSummary) -> str:
    """Return the executor of a task, or of a variant of it where only that one is there."""
    kinds = [spec.manifest.kind.value, *(one.manifest.kind.value for one in spec.variants)]
    return next((one for one in kinds if summary.executors.get(one)), kinds[0])


def _memory_problem(
    order: ServiceOrder, summary: AnchorSummary, own_bytes: Mapping[str, int]
) -> str:
    total = 0
    for group in groups_of(order.tasks):
        need = sum(map(least_bytes, group))
        need -= sum(own_bytes.get(one.task, 0) for one in group)
        total += need
        if need > summary.largest_free_bytes:
            names = "+".join(one.step for one in group)
            return (
                f"{names} needs {need >> _MIB} MiB on one node, "
                f"{summary.largest_free_bytes >> _MIB} MiB are free on the emptiest"
            )
    if total > summary.task_memory_free_bytes:
        return (
            f"it needs {total >> _MIB} MiB of task memory, "
            f"{summary.task_memory_free_bytes >> _MIB} MiB are free"
        )
    return ""


def _cpu_problem(order: ServiceOrder, summary: AnchorSummary) -> str:
    # How busy the cores are now is no bar: that passes, and slows the runs that are estimated.
    asked = sum(one.demand.cpu_percent for one in order.tasks)
    whole = summary.cpu_count * _PERCENT
    if asked > whole:
        return f"it asks for {asked:.0f} % of a core, all nodes together have {whole:.0f} %"
    return ""
