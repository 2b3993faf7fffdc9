"""Who provides a service's data: chosen by the anchor, told to whoever takes it in, with why."""

from typing import Any

import pytest
from anchor_bench import Bench, said
from msgspec import structs
from tests_support import INVENTORY

from controller.anchor.escalations import COOLDOWN_MS
from controller.decider import Output
from controller.records import StoryRecord
from protocols.manifest import Dtype
from protocols.messages import EnvelopeGrant, Escalation, EscalationAnswer, ServiceReport
from protocols.messages.hierarchy import NodeState, ServiceState
from protocols.messages.quality import Source, SourceKind

CAMERA = structs.replace(INVENTORY, sensors=("camera",))
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
    assert report.reason == "no node of its cell provides input x"


def test_a_poor_source_is_exchanged(bench: Bench) -> None:
    output = bench.order(1, "a", sources=(IMAGE,))
    bench.ready("n1", said(output, EnvelopeGrant)[0].epoch_from)
    bench.passes(COOLDOWN_MS)
    question = Escalation("q", "svc.a", 1, "blurred", indicator="data_accuracy_percent")
    output = bench.hear(question)
    [answer] = said(output, EscalationAnswer)
    assert answer.reason == "read input x from n3 instead of n2"
    assert provided(output) == [("n3", "n2")]
