"""Candidates: what is weighed, how it is estimated, which one is chosen and why."""

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from namo_bench import (
    MIB,
    Host,
    Submit,
    a_document,
    a_service,
    bodies,
    chain,
    step,
    summary,
)

from controller.namo.candidates import Position, fuse, told, weigh
from controller.namo.decompose import order_of
from controller.namo.estimate import estimate, groups_of
from controller.namo.model import Service
from controller.namo.usecase import parse
from protocols.messages import AnchorSummary, ServiceOrder
from protocols.messages.hierarchy import ServiceState


def service(*tasks: dict[str, Any], **more: Any) -> Service:
    (one,) = parse(a_document(a_service(list(tasks), **more)), "json")[0].services
    return one


def order(*tasks: dict[str, Any], **more: Any) -> ServiceOrder:
    one = service(*tasks, **more)
    return order_of(one, one.ways()[0], "u", 1)


def position(*summaries: AnchorSummary, secured: bool = False) -> Position:
    return Position({one.anchor: one for one in summaries}, "ta-main", secured)


FAR: dict[str, Any] = {"round_trip_ms": 40.0}
SLA: dict[str, Any] = {"zone": {"latency_ms": {"at_most": 100}}}


def diamond() -> list[dict[str, Any]]:
    join = step("join", "left.y")
    join["inputs"] = {"a": "left.y", "b": "right.y"}
    return [
        step("head", expected_ms=10),
        step("left", "head.y", expected_ms=20),
        step("right", "head.y", expected_ms=30),
        {**join, "expected_ms": 5},
    ]


def test_branches_count_in_parallel_where_there_are_cores_for_them() -> None:
    idle = {"cpu_percent": 0.0, "round_trip_ms": 2.0}
    wide = estimate(order(*diamond()), summary(**idle))
    # Request and answer, then head, right, join, with a hop between each.
    assert wide.values["latency_ms"] == pytest.approx(2 + 10 + 2 + 30 + 2 + 5)
    narrow = estimate(order(*diamond()), summary(**idle, nodes=1, cpu_count=1))
    assert narrow.values["latency_ms"] == pytest.approx(2 + 10 + 20 + 30 + 5)


def test_a_busy_anchor_is_slower() -> None:
    idle, busy = (estimate(order(step("t")), summary(cpu_percent=one)) for one in (0.0, 50.0))
    assert busy.values["computing_ms"] == 2 * idle.values["computing_ms"]


def test_linear_steps_are_fused_where_a_hop_costs_more_than_it_gives() -> None:
    spread = order(*chain("p", "q", "r", expected_ms=5))
    assert fuse(spread.tasks, summary(**FAR)) == {"p": "p", "q": "p", "r": "p"}
    near = weigh(service(*chain("p", "q", expected_ms=50)), "u", 1, position(summary()))
    assert [one.name for one in near] == ["main+spread", "main+fused"]
    assert near[1].estimate.values["latency_ms"] < near[0].estimate.values["latency_ms"]
    far = weigh(service(*chain("p", "q", expected_ms=50)), "u", 1, position(summary(**FAR)))
    assert [one.name for one in far] == ["main+fused", "main+spread"]
    assert {one.group for one in far[0].order.tasks} == {"p"}


def test_steps_that_are_busy_side_by_side_stay_apart() -> None:
    """At 100 requests a second two steps of 9 ms each give more apart than the hop costs."""
    rate = {"zone": {"throughput_per_s": {"at_least": 100}}}
    tasks = chain("p", "q", expected_ms=9)
    hop = summary(round_trip_ms=8.0, cpu_percent=0.0)
    assert weigh(service(*tasks), "u", 1, position(hop))[0].name == "main+fused"
    assert weigh(service(*tasks, sla=rate), "u", 1, position(hop))[0].name == "main+spread"


def test_branches_and_joins_are_never_fused() -> None:
    assert fuse(order(*diamond()).tasks, summary(**FAR)) == {}


def test_a_group_fits_on_a_node_and_on_nodes_that_all_allow() -> None:
    big = chain("p", "q", "r", limits={"memory_bytes": 400 * MIB})
    assert fuse(order(*big).tasks, summary(**FAR)) == {"p": "p", "q": "p"}
    apart = chain("p", "q")
    apart[0]["nodes"], apart[1]["nodes"] = ["n1"], ["n2"]
    assert fuse(order(*apart).tasks, summary(**FAR)) == {}


def test_nothing_is_fused_where_hops_are_not_known() -> None:
    for known in (position(), position(summary(round_trip_ms=None))):
        ranked = weigh(service(*chain("p", "q")), "u", 1, known)
        assert [one.name for one in ranked] == ["main+spread", "main+fused"]


def test_the_configured_anchor_stands_in_until_one_has_spoken() -> None:
    (one,) = weigh(service(step("t")), "u", 1, position())
    assert (one.anchor, one.feasible) == ("ta-main", True)
    (one,) = weigh(service(step("t")), "u", 1, position(summary("ta-radio")))
    assert one.anchor == "ta-radio"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"nodes": 0}, "none of its nodes is online"),
        ({"executors": {"onnx": 4}}, "none of its 4 nodes has the executor wasm"),
        (
            {"largest_free_bytes": 100 * MIB},
            "p needs 256 MiB on one node, 100 MiB are free on the emptiest",
        ),
        (
            {"task_memory_free_bytes": 300 * MIB},
            "it needs 512 MiB of task memory, 300 MiB are free",
        ),
        ({"cpu_count": 0}, "it asks for 10 % of a core, all nodes together have 0 %"),
    ],
)
def test_an_anchor_that_cannot_is_rejected_with_its_reason(
    more: dict[str, Any], reason: str
) -> None:
    bad, good = summary("ta-bad", **more), summary("ta-good", cpu_percent=80.0)
    ranked = weigh(service(*chain("p", "q")), "u", 1, position(bad, good))
    assert ranked[0].anchor == "ta-good"
    told_of = {(one.decomposition, one.anchor): one for one in told(ranked, ranked[0])}
    rejected = told_of["main+spread", "ta-bad"]
    assert (rejected.feasible, rejected.reason) == (False, reason)


def test_memory_that_the_service_holds_already_is_no_obstacle_to_itself() -> None:
    full = position(summary(task_memory_free_bytes=0, largest_free_bytes=0))
    one = service(step("t"))
    assert not weigh(one, "u", 1, full)[0].feasible
    assert weigh(one, "u", 1, full, ("ta-main", {"a.t": 256 * MIB}))[0].feasible


def test_what_keeps_the_agreement_comes_before_what_is_fast() -> None:
    """The fast alternative is not accurate enough; the slow one is."""
    fast = {
        "name": "fast",
        "accuracy_percent": 70,
        "tasks": [step("quick", expected_ms=1)],
        "outputs": {"y": "quick.y"},
    }
    one = service(
        step("t", expected_ms=80, accuracy_percent=95),
        alternatives=[fast],
        sla={"zone": {"accuracy_percent": {"at_least": 90}, "latency_ms": {"at_most": 100}}},
    )
    ranked = weigh(one, "u", 1, position(summary()))
    assert [each.name for each in ranked] == ["main+spread", "fast+spread"]
    assert ranked[1].estimate.never == "its declared accuracy is 70.00 %, 90 % are agreed"
    chosen, other = told(ranked, ranked[0])
    assert chosen.reason.startswith("keeps the agreement with the least time lost of 2: ")
    assert other.reason == "its declared accuracy is 70.00 %, 90 % are agreed"


def test_the_nearest_to_the_agreement_is_taken_when_none_keeps_it() -> None:
    one = service(step("t", expected_ms=300), sla=SLA)
    ranked = weigh(one, "u", 1, position(summary()))
    (chosen,) = told(ranked, ranked[0])
    assert chosen.feasible
    assert chosen.reason.startswith("none keeps the agreement, this is nearest to it: latency_ms")


def test_a_declared_level_below_the_agreed_one_is_told() -> None:
    zone = {"zone": {"robustness": {"level": "high"}}}
    one = service(step("t", declared={"robustness": "low"}), sla=zone)
    (ranked,) = weigh(one, "u", 1, position())
    assert ranked.estimate.never == "task 't' declares robustness low, less than agreed"


def test_transmission_security_asks_for_tls() -> None:
    zone = {"zone": {"transmission_security": {"level": "basic"}}}
    one = service(step("t"), sla=zone)
    (plain,) = weigh(one, "u", 1, position())
    assert "asks for TLS" in plain.estimate.never
    (secured,) = weigh(one, "u", 1, position(secured=True))
    assert secured.estimate.never == ""


def test_strong_storage_security_asks_for_nodes_that_ask_for_signatures() -> None:
    zone = {"zone": {"storage_security": {"level": "strong"}}}
    one = service(step("t"), sla=zone)
    (plain,) = weigh(one, "u", 1, position())
    assert "asks for signatures" in plain.estimate.never
    (secured,) = weigh(one, "u", 1, position(secured=True))
    assert secured.estimate.never == ""


def test_what_can_never_be_kept_is_refused_at_once() -> None:
    host = Host()
    zone = {"zone": {"accuracy_percent": {"at_least": 99}}}
    text = a_document(a_service([step("t", accuracy_percent=90)], sla=zone))
    (answer,) = host.call("usecase.submit", Submit(text)).answers
    assert answer.error == (
        "service 'a' cannot keep what was agreed: "
        "main+spread: its declared accuracy is 90.00 %, 99 % are agreed"
    )
    assert host.records == {}


def test_what_nobody_declares_is_noted() -> None:
    zone = {"zone": {"accuracy_percent": {"at_least": 99}, "latency_ms": {"at_most": 9}}}
    (answer,) = Host().submit(a_service([step("t")], sla=zone)).answers
    (note,) = answer.value.notes
    assert note.startswith("a: accuracy_percent is declared by the author of the model")


def test_the_choice_is_recorded_with_all_candidates() -> None:
    host = Host()
    host.hear(summary(**FAR))
    host.hear(summary("ta-radio", cpu_percent=70.0), "ta-radio")
    host.submit(a_service(chain("p", "q")))
    record = host.service()
    assert (record.order.decomposition, record.anchor) == ("main+spread", "ta-radio")
    assert len(record.candidates) == 4
    assert record.candidates[0].reason.startswith("keeps the agreement")
    assert all(one.reason for one in record.candidates)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=type(record)) == record


def test_an_unchanged_document_leaves_the_choice_alone_whatever_the_fleet_looks_like() -> None:
    host = Host()
    host.submit(a_service(chain("p", "q")), a_service([step("t")], "b"))
    host.runs("a")
    host.runs("b")
    host.hear(summary(**FAR))
    changed = a_service([step("t", replicas=2)], "b")
    out = host.submit(a_service(chain("p", "q")), changed)
    assert bodies(out) == [host.service("b").order]
    assert host.service().order.decomposition == "main+spread"


def test_a_changed_document_stays_at_its_anchor() -> None:
    host = Host()
    host.submit(a_service([step("t")]))
    host.runs()
    host.hear(summary("ta-main", cpu_percent=80.0))
    host.hear(summary("ta-radio", cpu_percent=1.0), "ta-radio")
    host.submit(a_service([step("t", replicas=2)]))
    assert host.service().anchor == "ta-main"


def test_a_service_that_fits_nowhere_now_is_ordered_and_waits() -> None:
    host = Host()
    host.hear(summary(nodes=0))
    host.submit(a_service([step("t")]))
    assert host.service().state is ServiceState.DEPLOYING
    assert host.service().candidates[0].reason == (
        "nothing fits now; the best of 1 once it does: none of its nodes is online"
    )


costs = st.lists(st.floats(0.1, 200), min_size=1, max_size=7)
fleets = st.builds(
    summary,
    cpu_percent=st.floats(0, 100),
    round_trip_ms=st.none() | st.floats(0, 100),
    largest_free_bytes=st.integers(0, 2048).map(lambda one: one * MIB),
)


@given(costs, fleets, st.data())
def test_groups_are_chains_that_fit_and_every_choice_is_stable(
    expected: list[float], fleet: AnchorSummary, data: st.DataObject
) -> None:
    names = [f"t{at}" for at in range(len(expected))]
    feeds = [data.draw(st.integers(0, at - 1)) if at else -1 for at in range(len(names))]
    tasks = [
        step(name, f"{names[feed]}.y" if feed >= 0 else "request.x", expected_ms=cost)
        for name, feed, cost in zip(names, feeds, expected, strict=True)
    ]
    ends = [name for at, name in enumerate(names) if at not in feeds]
    raw = json.loads(a_document(a_service(tasks)))
    raw["services"][0]["outputs"] = {f"o{at}": f"{one}.y" for at, one in enumerate(ends[:16])}
    one = parse(json.dumps(raw), "json")[0].services[0]
    made = order_of(one, one.ways()[0], "u", 1)
    groups = fuse(made.tasks, fleet)
    for group in groups_of(order_of(one, one.ways()[0], "u", 1, groups).tasks):
        assert (
            len(group) == 1
            or sum(each.manifest.limits.memory_bytes for each in group) <= fleet.largest_free_bytes
        )
        for spec, following in itertools.pairwise(group):
            assert {edge.source for edge in following.inputs} == {spec.step}
    first = weigh(one, "u", 1, position(fleet))
    again = weigh(one, "u", 1, position(fleet))
    assert [each.key for each in first] == [each.key for each in again]
    assert all(each.estimate.values["latency_ms"] > 0 for each in first)


def test_an_anchor_that_has_fallen_silent_is_no_candidate() -> None:
    host = Host()
    host.hear(summary("ta-main", cpu_percent=1.0))
    host.hear(summary("ta-radio", cpu_percent=80.0), "ta-radio")
    host.now_ms += 119_000
    host.hear(summary("ta-radio", cpu_percent=80.0), "ta-radio")
    host.now_ms += 2000
    host.submit(a_service([step("t")]))
    assert host.service().anchor == "ta-radio"
    assert len(host.service().candidates) == 1


def test_the_users_that_are_to_be_satisfied_count_in_the_choice() -> None:
    slow = {"name": "slow", "tasks": [step("late", expected_ms=50)], "outputs": {"y": "late.y"}}
    users = [{"user": "alice", "zone": {"latency_ms": {"at_most": 30}}}]
    sla = {**SLA, "users": users}
    ranked = weigh(service(step("t"), alternatives=[slow], sla=sla), "u", 1, position(summary()))
    assert [bool(one.estimate.short) for one in ranked] == [False, True]
    assert told(ranked, ranked[0])[1].reason.startswith("latency_ms: ")
