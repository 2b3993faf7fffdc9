"""Who provides a service's data: chosen by the anchor, told to whoever takes it in, with why."""

from typing import Any

import pytest
from anchor_bench import Bench, chain, said
from msgspec import structs
from tests_support import INVENTORY, task_spec

from controller.anchor.escalations import COOLDOWN_MS
from controller.decider import Output
from controller.records import StoryRecord, TaskState
from protocols.manifest import Dtype
from protocols.messages import EnvelopeGrant, Escalation, EscalationAnswer, ServiceReport
from protocols.messages.hierarchy import NodeState, ServiceState, TaskQos
from protocols.messages.invocation import REQUEST
from protocols.messages.quality import Source, SourceKind
from protocols.qoais import Bound

CAMERA = structs.replace(INVENTORY, sensors=("camera",))
STAYS = TaskQos(bounds=(Bound("data_privacy", level="node"),))
IMAGE = Source("x", SourceKind.SENSOR, "camera", Dtype.UINT8, (-1,))


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.node("n1")
    bench.node("n2", inventory=CAMERA)
    bench.node("n3", inventory=CAMERA)
    return bench


def provided(output: Output) -> list[tuple[str, ...]]:
    return [one.nodes for grant in said(output, EnvelopeGrant) for one in grant.sources]


def stories(bench: Bench, event: str) -> list[str]:
    entries = [one.value for one in bench.store.values() if isinstance(one.value, StoryRecord)]
    return [one.detail for one in entries if one.event == event]


def test_the_node_that_has_the_sensor_provides_it(bench: Bench) -> None:
    output = bench.order(1, "a", "b", sources=(IMAGE,))
    assert set(provided(output)) == {("n2", "n3")}
    assert bench.ta.book.services["svc"].sources[0].nodes == ("n2", "n3")


def test_the_node_where_the_task_runs_comes_first(bench: Bench) -> None:
    output = bench.order(1, "a", sources=(IMAGE,), specs={"nodes": ("n3",)})
    assert provided(output) == [("n3", "n2")]


def test_only_the_nodes_that_the_document_names_provide_it(bench: Bench) -> None:
    output = bench.order(1, "a", sources=(structs.replace(IMAGE, nodes=("n1", "n3")),))
    assert provided(output) == [("n3",)]


def test_another_node_provides_it_when_the_first_is_lost(bench: Bench) -> None:
    bench.order(1, "a", "b", spares=0, sources=(IMAGE,))
    output = bench.node("n2", NodeState.LOST)
    assert provided(output) == [("n3",)], "whoever takes it in is told"
    assert said(output, EnvelopeGrant)[0].spec.task == "svc.a"
    assert stories(bench, "source") == ["x: sensor 'camera' of n3, the only one that has it"]
    assert not provided(bench.node("n2", inventory=CAMERA))[1:]


def test_a_source_that_nobody_has_is_said_so(bench: Bench) -> None:
    missing = structs.replace(IMAGE, name="lidar")
    output = bench.order(1, "a", sources=(missing,))
    assert provided(output) == []
    output = bench.ready("n1", said(output, EnvelopeGrant)[0].epoch_from)
    report: Any = said(output, ServiceReport)[-1]
    assert report.state is ServiceState.DEGRADED
    assert report.reason == "input x is not fed: no node of the cell provides sensor 'lidar'"


def test_a_poor_source_is_exchanged(bench: Bench) -> None:
    output = bench.order(1, "a", sources=(IMAGE,))
    bench.ready("n1", said(output, EnvelopeGrant)[0].epoch_from)
    bench.passes(COOLDOWN_MS)
    question = Escalation("q", "svc.a", 1, "blurred", indicator="data_accuracy_percent")
    output = bench.hear(question)
    [answer] = said(output, EscalationAnswer)
    assert answer.reason == "read input x from n3 instead of n2"
    assert provided(output) == [("n3", "n2")]


# Raw input that may not leave its node.


def test_who_takes_in_data_that_stays_runs_where_it_comes_to_be(bench: Bench) -> None:
    output = bench.order(1, "a", sources=(IMAGE,), specs={"qos": STAYS})
    task = bench.task()
    assert set(task.nodes) == {"n2", "n3"}, "spares have the data too"
    assert provided(output) == [task.nodes]
    assert task.placement is not None
    assert {one.node: one.reason for one in task.placement.rejected}["n1"] == (
        "does not provide sensor 'camera', whose data may not leave its node"
    )


def test_data_that_stays_is_fed_where_its_task_runs_whoever_fed_it_before(bench: Bench) -> None:
    bench.order(1, "a", sources=(IMAGE,), specs={"qos": STAYS, "nodes": ("n2",)})
    output = bench.order(2, "a", sources=(IMAGE,), specs={"qos": STAYS, "nodes": ("n3",)})
    assert provided(output) == [("n3",)]


def test_tasks_that_share_data_that_stays_share_its_node(bench: Bench) -> None:
    specs = tuple(task_spec(f"svc.{name}", REQUEST, qos=STAYS) for name in "ab")
    order = chain("svc", 1, "a", "b", tasks=specs, sources=(IMAGE,))
    bench.hear(order, "namo-main")
    assert bench.task("svc.a").nodes == bench.task("svc.b").nodes
    assert bench.task("svc.a").spec.group == bench.task("svc.b").spec.group != ""


def test_data_that_stays_where_no_task_may_run_is_refused_with_the_reason(bench: Bench) -> None:
    bench.order(1, "a", sources=(IMAGE,), specs={"qos": STAYS, "nodes": ("n1",)})
    task = bench.task()
    assert task.state is TaskState.WAITING
    assert task.placement is not None
    assert "does not provide sensor 'camera', whose data may not leave its node" in {
        one.reason for one in task.placement.rejected
    }


def test_data_that_stays_and_is_lost_where_its_task_runs_is_said_so(bench: Bench) -> None:
    output = bench.order(1, "a", spares=0, sources=(IMAGE,), specs={"qos": STAYS})
    epoch = said(output, EnvelopeGrant)[0].epoch_from
    home = bench.task().nodes[0]
    bench.ready(home, epoch)
    output = bench.node(home, inventory=INVENTORY)
    assert provided(output) == [], "no other node feeds it"
    [report] = said(output, ServiceReport)
    assert report.reason == (
        f"input x is not fed: {home}, where svc.a runs, does not provide "
        "sensor 'camera', whose data may not leave its node"
    )


def test_a_poor_source_whose_data_stays_is_not_exchanged_for_a_remote_one(bench: Bench) -> None:
    output = bench.order(1, "a", sources=(IMAGE,), specs={"qos": STAYS})
    bench.ready(bench.task().nodes[0], said(output, EnvelopeGrant)[0].epoch_from)
    bench.passes(COOLDOWN_MS)
    output = bench.hear(Escalation("q", "svc.a", 1, "blurred", indicator="data_accuracy_percent"))
    [answer] = said(output, EscalationAnswer)
    assert "read input" not in answer.reason
