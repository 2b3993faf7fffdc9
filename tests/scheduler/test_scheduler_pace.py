"""Nodes sample as often as their tightest task needs."""

from hypothesis import given
from hypothesis import strategies as st
from scheduler_bench import Bench, told
from tests_support import task_spec

from controller.scheduler.pace import FASTEST_SAMPLE_MS, sample_ms
from protocols.messages import (
    AnchorWelcome,
    EnvelopeGrant,
    EnvelopeRevoke,
    SetSensing,
    Welcome,
)
from protocols.messages.hierarchy import TaskQos
from protocols.messages.invocation import Edge
from protocols.messages.task import InstanceState, Status


def test_a_tight_task_quickens_its_node_until_it_is_gone() -> None:
    bench = Bench()
    bench.anchor(AnchorWelcome("ta-main", 1, 0))
    bench.born("n1", "n2")
    tight = task_spec(qos=TaskQos(latency_ms=500.0))
    grant = EnvelopeGrant("svc", 1, tight, ("n1",), 1, 32, ("svc.a",), (Edge("y", "a", "x"),))
    output = bench.anchor(grant)
    assert [one.sample_ms for one in told(output, "n1", SetSensing)] == [100]
    assert not told(output, "n2", SetSensing)
    assert not told(bench.ready("n1", 1), "n1", SetSensing), "nothing is told twice"
    [welcome] = told(bench.born("n1"), "n1", Welcome)
    assert welcome.sample_ms == 100, "a node that comes again is told at once"
    output = bench.anchor(EnvelopeRevoke("svc.a", 1, "over"))
    output.extend(bench.node("n1", Status(2, "svc.a", 1, InstanceState.STOPPED)))
    assert [one.sample_ms for one in told(output, "n1", SetSensing)] == [1000]


@given(usual=st.integers(50, 10_000), budgets=st.lists(st.none() | st.floats(0.1, 1e7), max_size=8))
def test_the_pace_stays_within_its_bounds(usual: int, budgets: list[float | None]) -> None:
    pace = sample_ms(usual, budgets)
    assert FASTEST_SAMPLE_MS <= pace <= usual
