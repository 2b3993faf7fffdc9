"""Use cases that the network itself asks for: pulled, let go, with hysteresis and cooldown."""

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from namo_bench import Delete, Host, a_service, bodies, step, summary

from controller.records import UseCaseState
from protocols.messages import ServiceDelete, ServiceOrder
from protocols.messages.hierarchy import ServiceState

FOR_MS = 1000
COOLDOWN_MS = 10_000
WHEN = {"cpu_percent": {"at_least": 80, "until": 60}}


def dormant(**more: Any) -> Host:
    host = Host()
    trigger = {"when": WHEN, "for_ms": FOR_MS, "cooldown_ms": COOLDOWN_MS, **more}
    out = host.submit(a_service([step("t")]), trigger=trigger)
    assert out.sends == []
    assert out.answers[0].value.dormant
    assert out.answers[0].value.tasks == {"a.t": None}
    return host


def load(host: Host, percent: float, anchor: str = "ta-main") -> list[Any]:
    """Have an anchor report its load; returns what was sent until the condition has lasted."""
    outs = [host.hear(summary(anchor, cpu_percent=percent), anchor), *host.pass_time(FOR_MS)]
    return [body for out in outs for body in bodies(out)]


def over(host: Host) -> None:
    """Have the anchor report that the service is over."""
    generation = host.service().order.generation
    host.report("a", generation, ServiceState.DELETED)


def test_nothing_is_ordered_before_the_trigger_is_pulled() -> None:
    host = dormant()
    assert host.use_case().state is UseCaseState.DORMANT
    assert host.use_case().origin == "network"
    assert load(host, 79.9) == []
    assert list(host.records) == [("usecase", "u")]


def test_a_condition_that_lasts_orders_and_its_end_withdraws() -> None:
    host = dormant()
    (order,) = load(host, 90)
    assert isinstance(order, ServiceOrder)
    assert host.use_case().state is UseCaseState.ACCEPTED
    assert host.use_case().reason == "pulled: cpu_percent 90"
    host.runs()
    assert host.use_case().state is UseCaseState.RUNNING
    host.pass_time(COOLDOWN_MS)
    assert load(host, 70) == []
    (delete,) = load(host, 50)
    assert delete == ServiceDelete("a", order.generation)
    over(host)
    assert host.use_case().state is UseCaseState.DORMANT
    assert host.use_case().reason == "let go: cpu_percent 50"
    host.pass_time(COOLDOWN_MS)
    (again,) = load(host, 95)
    assert isinstance(again, ServiceOrder)
    assert again.generation > order.generation


def test_a_short_peak_pulls_nothing() -> None:
    host = dormant()
    host.hear(summary(cpu_percent=90.0))
    host.now_ms += FOR_MS - 1
    host.hear(summary(cpu_percent=10.0))
    assert host.timers == {}
    assert host.pass_time(10 * FOR_MS) == []


def test_a_switch_waits_for_the_cooldown() -> None:
    host = dormant()
    load(host, 90)
    host.runs()
    assert load(host, 10) == []
    sent = [body for out in host.pass_time(COOLDOWN_MS) for body in bodies(out)]
    assert {type(one) for one in sent} == {ServiceDelete}


def test_it_is_not_pulled_again_before_its_services_are_over() -> None:
    host = dormant(cooldown_ms=0)
    load(host, 90)
    host.runs()
    load(host, 10)
    assert not any(isinstance(one, ServiceOrder) for one in load(host, 90))
    generation = host.service().order.generation
    out = host.report("a", generation, ServiceState.DELETED)
    assert any(isinstance(one, ServiceOrder) for one in bodies(out))


def test_network_intelligence_looks_at_all_anchors_together() -> None:
    host = dormant()
    assert load(host, 60) == []
    assert [type(one) for one in load(host, 110 - 10, "ta-two")] == [ServiceOrder]


def test_element_intelligence_looks_at_one_anchor() -> None:
    host = dormant(network="element", element="ta-two")
    assert load(host, 95) == []
    assert [type(one) for one in load(host, 95, "ta-two")] == [ServiceOrder]
    any_one = dormant(network="element")
    load(any_one, 10)
    assert [type(one) for one in load(any_one, 95, "ta-two")] == [ServiceOrder]


def test_few_nodes_may_pull_it_too() -> None:
    host = dormant(when={"nodes": {"at_most": 2}, "lost": {"at_least": 1}})
    host.hear(summary(nodes=2))
    assert host.pass_time(FOR_MS) == []
    host.hear(summary(nodes=2, lost=3))
    (out,) = host.pass_time(FOR_MS)
    assert [type(one) for one in bodies(out)] == [ServiceOrder]


def test_a_crash_forgets_no_trigger() -> None:
    host = dormant()
    host.restart()
    assert [type(one) for one in load(host, 90)] == [ServiceOrder]
    host.runs()
    host.restart()
    host.pass_time(COOLDOWN_MS)
    assert [type(one) for one in load(host, 10)] == [ServiceDelete]


def test_a_dormant_use_case_is_changed_and_deleted_like_any_other() -> None:
    host = dormant()
    trigger = {"when": {"cpu_percent": {"at_least": 30}}, "for_ms": 0}
    host.submit(a_service([step("t")]), trigger=trigger)
    assert host.use_case().generation == 2
    assert {type(one) for one in load(host, 31)} == {ServiceOrder}
    host.call("usecase.delete", Delete("u"))
    over(host)
    assert host.use_case().state is UseCaseState.DELETED
    assert load(host, 99) == []
    gone = dormant()
    gone.call("usecase.delete", Delete("u"))
    assert gone.use_case().state is UseCaseState.DELETED


def test_a_document_that_loses_its_trigger_runs_at_once() -> None:
    host = dormant()
    out = host.submit(a_service([step("t")]))
    assert [type(one) for one in bodies(out)] == [ServiceOrder]
    assert host.use_case().origin == "user"


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 3000)), max_size=30))
def test_it_never_switches_faster_than_its_cooldown(loads: list[tuple[float, int]]) -> None:
    host = dormant()
    switched: list[int] = []

    def note(sent: list[Any]) -> None:
        kinds = {type(one) for one in sent}
        if kinds & {ServiceOrder, ServiceDelete}:
            switched.append(host.now_ms)
            if ServiceDelete in kinds:
                over(host)
            else:
                host.runs()

    for percent, gap_ms in loads:
        note(bodies(host.hear(summary(cpu_percent=percent))))
        end_ms = host.now_ms + gap_ms
        while host.timers and min(host.timers.values()) <= end_ms:
            note(bodies(host.fire()))
        host.now_ms = end_ms
    gaps = [after - before for before, after in itertools.pairwise(switched)]
    assert all(one >= COOLDOWN_MS for one in gaps)
