"""A twin of a live fleet: the same nodes, loads and tasks, to be asked what would happen.

The store of the twin is filled with the live records and its nodes' journals with what they hold,
so that its deciders take up where the live ones are. What a run of a task costs is what the fleet
measures, else what its author expects; what a way between machines costs is half of the measured
round trip. Nothing else of a machine is modelled: other programs on it show in its load alone.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct, structs

from controller.api.quality import ServiceQos
from controller.config import Config
from controller.decider import Record
from controller.records import (
    ANCHORED,
    NODE,
    SERVICE,
    TASK,
    USE_CASE,
    AnchoredRecord,
    NodeRecord,
    NodeView,
    ServiceRecord,
    TaskRecord,
    TaskState,
    UseCaseRecord,
)
from controller.twin.client import SimClient
from controller.twin.hands import Cost, Shape, blank
from controller.twin.network import Weather
from controller.twin.run import Plan, Twin
from device_agent.core.commands import Keep
from protocols.manifest import Manifest
from protocols.messages import Assign
from protocols.messages.hierarchy import NodeState
from protocols.messages.invocation import REQUEST

REQUESTS: Final = 200
"""Sent to each service, one at a time."""
GAP_MS: Final = 20
BUDGET_MS: Final = 20_000
BEGIN_MS: Final = 6000
LOSS_MS: Final = 30_000
"""After which what a loss has moved stands."""
ROUND_TRIP_MS: Final = 1.0
FLOOR_SHARE: Final = 0.8
"""Of the mean run, what the shortest takes; the rest is the mean of an exponential tail."""


class Snapshot(Struct, frozen=True):
    """A live fleet at one moment."""

    nodes: tuple[NodeView, ...]
    use_cases: tuple[UseCaseRecord, ...]
    services: tuple[ServiceRecord, ...]
    tasks: tuple[TaskRecord, ...]
    quality: tuple[ServiceQos, ...] = ()
    taken_unix_ms: int = 0


class Latency(Struct, frozen=True):
    """What the clients of a service wait."""

    requests: int
    answered: int
    p50_ms: float | None
    p99_ms: float | None
    mean_ms: float | None


class Prediction(Struct, frozen=True):
    """What the twin of a snapshot says."""

    snapshot: Snapshot
    seed: int
    latency: dict[str, Latency]
    """By service."""
    losses: dict[str, dict[str, str]]
    """By node that is lost, where each of its tasks would go; or why it would wait."""


class Row(Struct, frozen=True):
    """One predicted number beside the one that came."""

    what: str
    predicted: float | str | None
    measured: float | str | None
    error_percent: float | None = None


def predict(snapshot: Snapshot, seed: int = 1) -> Prediction:
    """Ask a twin of the fleet for latencies, and for the loss of each node that runs tasks."""
    twin = twin_of(snapshot, seed)
    latency = {one.order.service: _latency(snapshot, seed, one) for one in snapshot.services}
    placed = _placed(twin)
    losses = {
        node: _after_loss(snapshot, seed, node)
        for node in sorted({node for node in placed.values() if node})
    }
    return Prediction(snapshot, seed, latency, losses)


def compare(prediction: Prediction, now: Snapshot) -> list[Row]:
    """Hold a prediction against what the fleet measures now."""
    rows = []
    measured = {one.service: _value(one, one.service, "latency_ms") for one in now.quality}
    for service, latency in sorted(prediction.latency.items()):
        there, said = measured.get(service), latency.mean_ms
        error = 100 * (said - there) / there if there and said is not None else None
        rows.append(Row(f"{service}: mean latency, ms", said, there, error))
    before = {one.spec.task: one.node for one in prediction.snapshot.tasks}
    alive = {one.node for one in now.nodes if one.state is not NodeState.LOST}
    for task in now.tasks:
        name = task.spec.task
        lost = before.get(name)
        expected = lost if lost in alive else prediction.losses.get(lost or "", {}).get(name)
        rows.append(Row(f"{name}: node", expected, task.node or task.reason))
    return rows


def twin_of(snapshot: Snapshot, seed: int) -> Twin:
    """Return a twin that has taken up where the live fleet is. Raises BrokenRule."""
    nodes = [one for one in snapshot.nodes if one.state is not NodeState.LOST]
    half_ms = _half_round_trip(nodes)
    plan = Plan(nodes=0, services=0, skew=0.0, weather=Weather((0.5 * half_ms, 0.75 * half_ms)))
    twin = Twin(seed, plan)
    costs = _costs(snapshot)
    for view in nodes:
        load = view.load.cpu_percent if view.load is not None else 0.0
        node = twin.add_node(view.node, Shape(cpu_percent=(load, load)))
        node.hands.is_like(view.inventory, costs)
    twin.head.store.append(list(_records(snapshot, twin.head.config)))
    for task in snapshot.tasks:
        held = twin.nodes.get(task.node)
        if held is not None and task.epoch:
            assign = Assign(
                task.spec.task, task.service, task.epoch, task.served or task.generation,
                _manifest(task), task.spec.replicas, task.tuning,
            )  # fmt: skip
            held.journal.write([Keep(assign, "snapshot")])
    twin.boot()
    twin.world.run_until(BEGIN_MS)
    return twin


def _records(snapshot: Snapshot, config: Config) -> Iterable[Record]:
    """Yield the live records, as if the roles of the twin had written them."""
    for use_case in snapshot.use_cases:
        yield Record(USE_CASE, use_case.name, use_case, "snapshot")
    for service in snapshot.services:
        name = service.order.service
        yield Record(SERVICE, name, structs.replace(service, anchor=config.ta), "snapshot")
        anchored = AnchoredRecord(service.order, service.tenant, config.namo)
        yield Record(ANCHORED, name, anchored, "snapshot")
    for task in snapshot.tasks:
        renamed = structs.replace(task, scheduler=config.ts)
        yield Record(TASK, task.spec.task, renamed, "snapshot")
    for view in snapshot.nodes:
        record = NodeRecord(view.node, view.agent_version, "snapshot", view.inventory)
        yield Record(NODE, view.node, record, "snapshot")


def _manifest(task: TaskRecord) -> Manifest:
    for variant in task.spec.variants:
        if variant.name == task.variant:
            return variant.manifest
    return task.spec.manifest


def _costs(snapshot: Snapshot) -> dict[str, Cost]:
    """Return what a run of each task takes, as the fleet measures it."""
    costs = {}
    for task in snapshot.tasks:
        mean = task.spec.expected_ms
        if mean is not None:
            costs[task.spec.task] = Cost(FLOOR_SHARE * mean, mean)
    for service in snapshot.quality:
        for row in service.rows:
            if row.indicator == "compute_ms" and isinstance(row.value, float | int):
                costs[row.of] = Cost(FLOOR_SHARE * row.value, float(row.value))
    return costs


def _value(quality: ServiceQos, of: str, indicator: str) -> float | None:
    """Return what was measured of something, if it was."""
    for row in quality.rows:
        if (row.of, row.indicator) == (of, indicator) and isinstance(row.value, float | int):
            return float(row.value)
    return None


def _half_round_trip(nodes: Sequence[NodeView]) -> float:
    trips = sorted(one.link.round_trip_ms for one in nodes if one.link and one.link.round_trip_ms)
    return (trips[len(trips) // 2] if trips else ROUND_TRIP_MS) / 2


def _placed(twin: Twin) -> dict[str, str]:
    return {name: task.node for name, task in twin.tasks().items()}


def _latency(snapshot: Snapshot, seed: int, service: ServiceRecord) -> Latency:
    twin = twin_of(snapshot, seed)
    inputs = {
        edge.source_port: blank(port)
        for task in service.order.tasks
        for edge in task.inputs
        for port in task.manifest.inputs
        if edge.source == REQUEST and port.name == edge.port
    }
    client = SimClient(
        "what-if",
        service.order.service,
        twin.world,
        twin.networks,
        lambda: twin.networks[0],
        inputs,
    )
    twin.world.run_until(twin.world.now_ms + 1000)
    for _ in range(REQUESTS):
        client.request(BUDGET_MS)
        twin.world.run_until(twin.world.now_ms + GAP_MS)
    twin.world.run_until(twin.world.now_ms + BUDGET_MS)
    waits = sorted(
        one.answered_ms - one.sent_ms
        for one in client.requests.values()
        if one.answered_ms is not None
    )
    if not waits:
        return Latency(REQUESTS, 0, None, None, None)
    return Latency(
        REQUESTS,
        len(waits),
        round(waits[len(waits) // 2], 3),
        round(waits[len(waits) * 99 // 100], 3),
        round(sum(waits) / len(waits), 3),
    )


def _after_loss(snapshot: Snapshot, seed: int, node: str) -> dict[str, str]:
    twin = twin_of(snapshot, seed)
    moved = [name for name, at in _placed(twin).items() if at == node]
    twin.nodes[node].kill()
    twin.world.run_until(twin.world.now_ms + LOSS_MS)
    tasks = twin.tasks()
    return {
        name: tasks[name].node
        if tasks[name].state is not TaskState.WAITING and tasks[name].node != node
        else f"waits: {tasks[name].reason}"
        for name in moved
    }
