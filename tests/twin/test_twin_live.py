"""A twin of a live fleet: here the live one is a twin too, so that both can be held together."""

import msgspec

from controller.api.quality import ServiceQos
from controller.records import (
    SERVICE,
    USE_CASE,
    NodeView,
    ServiceRecord,
    UseCaseRecord,
)
from controller.twin.live import Snapshot, compare, predict, twin_of
from controller.twin.run import Plan, Twin
from protocols.messages.hierarchy import NodeState, ServiceState
from protocols.messages.sense import LinkReport, LoadReport
from protocols.qoais import ServiceKind

ROUND_TRIP_MS = 6.0


def a_fleet() -> Twin:
    twin = Twin(3, Plan(nodes=4, services=2, steps=2, requests_per_s=0.0))
    twin.boot()
    twin.world.run_until(3000)
    for number in range(2):
        twin.submit(number)
    twin.world.run_until(8000)
    return twin


def snapshot(twin: Twin) -> Snapshot:
    link = LinkReport(1, "eth0", "wired", carrier=True, round_trip_ms=ROUND_TRIP_MS)
    nodes = [
        NodeView(name, NodeState.ONLINE, "ts-gateway", node.hands.inventory, "sim",
                 LoadReport(1, 10.0), link)
        for name, node in twin.nodes.items()
        if node.alive
    ]  # fmt: skip
    records = twin.head.store.current.items()
    return Snapshot(
        tuple(nodes),
        tuple(one.value for (kind, _), one in records
              if kind == USE_CASE and isinstance(one.value, UseCaseRecord)),
        tuple(one.value for (kind, _), one in records
              if kind == SERVICE and isinstance(one.value, ServiceRecord)),
        tuple(twin.tasks().values()),
    )  # fmt: skip


def test_the_twin_takes_up_where_the_fleet_is() -> None:
    fleet = a_fleet()
    taken = snapshot(fleet)
    twin = twin_of(taken, 1)
    assert {name: task.node for name, task in twin.tasks().items()} == {
        name: task.node for name, task in fleet.tasks().items()
    }
    assert not twin.checkers.counts["executions"]


def test_a_loss_is_predicted_as_it_comes() -> None:
    fleet = a_fleet()
    taken = snapshot(fleet)
    lost = fleet.tasks()["service-0.step0"].node
    prediction = predict(taken)
    fleet.nodes[lost].kill()
    fleet.world.run_until(fleet.world.now_ms + 30_000)
    now = {name: fleet.tasks()[name].node for name in prediction.losses[lost]}
    assert prediction.losses[lost] == now
    rows = {row.what: row for row in compare(prediction, snapshot(fleet))}
    assert rows["service-0.step0: node"].predicted == rows["service-0.step0: node"].measured


def test_latency_is_runs_and_ways() -> None:
    prediction = predict(snapshot(a_fleet()))
    for latency in prediction.latency.values():
        assert latency.answered == latency.requests
        assert latency.p50_ms is not None
        assert latency.p99_ms is not None
        # Two runs of 5 ms or so; to the first node, between the two perhaps, and back.
        assert 8.0 < latency.p50_ms < 30.0
        assert latency.p50_ms < latency.p99_ms


def test_what_was_measured_stands_beside_what_was_predicted() -> None:
    taken = snapshot(a_fleet())
    prediction = predict(taken)
    rows = [
        {
            "level": "qoais",
            "of": "service-0",
            "indicator": "latency_ms",
            "unit": "ms",
            "value": 20.0,
        }
    ]
    quality = msgspec.convert(
        {
            "service": "service-0", "kind": ServiceKind.COMPUTING, "state": ServiceState.RUNNING,
            "paper": False, "target_ratio": 1.0, "satisfaction_ratio": 1.0, "users": 1,
            "satisfied": 1, "rows": rows,
        },
        ServiceQos,
    )  # fmt: skip
    now = msgspec.structs.replace(taken, quality=(quality,))
    row = next(one for one in compare(prediction, now) if one.what.startswith("service-0: mean"))
    assert row.measured == 20
    assert row.error_percent is not None
    assert row.predicted is not None
