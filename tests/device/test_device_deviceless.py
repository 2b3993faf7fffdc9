"""Instances that follow the requests: none without, one when one comes, more while some wait."""

from typing import Any

import pytest
from device_harness import SimNode, assign, chain, invoke, manifest, of, tensor
from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.arrivals import ENOUGH, FALLBACK_MS, KEEP_MIN_MS
from protocols.messages import Assign, Release, Result
from protocols.messages.sense import LoadReport, Pressure
from protocols.messages.task import Deviceless, InstanceState
from protocols.topics import Channel


def deviceless(keep_alive_ms: int = 0, task: str = "t", replicas: int = 1) -> Assign:
    made = assign(task, of=manifest(task, memory_mib=16), replicas=replicas)
    return structs.replace(made, deviceless=Deviceless(keep_alive_ms))


def held(node: SimNode, *assigns: Assign) -> SimNode:
    for one in assigns:
        node.hear(one)
    return node


def ask(node: SimNode, request: str, task: str = "t", budget_ms: int = 10_000) -> list[Any]:
    plan = chain((task, "node-a", 1))
    return node.hear(invoke(request, plan, budget_ms=budget_ms), Channel.INVOKE, sender="app")


def answer(node: SimNode, took_ms: float = 5.0) -> list[Any]:
    call = next(iter(node.calls))
    del node.calls[call]
    node.after(took_ms)
    return node.tell(events.ExecutorDone(call, {"y": tensor()}, 100))


def rests(said: list[Any]) -> list[str]:
    return [one.instance for one in of(commands.RestInstance, said)]


@pytest.fixture
def node() -> SimNode:
    return SimNode()


def test_an_instance_that_nobody_asks_rests_and_is_ready_all_the_same(node: SimNode) -> None:
    held(node, deviceless(500))
    assert not rests(node.after(499))
    assert rests(node.after(2)) == ["t~1"]
    instance = node.core.upkeep.instances["t~1"]
    assert (instance.resting, instance.state) == (True, InstanceState.READY)
    assert not rests(node.after(60_000)), "once is enough"
    said = ask(node, "r1")
    assert len(of(commands.Execute, said)) == 1
    assert not instance.resting
    assert of(Result, answer(node))


def test_a_call_under_way_keeps_it(node: SimNode) -> None:
    held(node, deviceless(500))
    ask(node, "r1")
    assert not rests(node.after(5000))
    answer(node)
    assert not rests(node.after(499))
    assert rests(node.after(2)) == ["t~1"]


def test_one_that_is_not_deviceless_stays(node: SimNode) -> None:
    node.hear(assign())
    assert not rests(node.after(3 * FALLBACK_MS))


def test_the_time_is_learnt_from_the_calls(node: SimNode) -> None:
    held(node, deviceless())
    for number in range(ENOUGH + 1):
        node.after(3000)
        ask(node, f"r{number}")
        answer(node)
    assert rests(node.after(FALLBACK_MS - 1000)) == ["t~1"]
    ask(node, "again")
    answer(node)
    assert not rests(node.after(3000)), "as long as the pauses were"


def test_it_is_made_ready_before_a_call_that_can_be_foretold(node: SimNode) -> None:
    held(node, deviceless())
    half_hour_ms = 1_800_000
    for number in range(ENOUGH + 2):
        node.after(half_hour_ms)
        ask(node, f"r{number}")
        answer(node)
    assert rests(node.after(2 * KEEP_MIN_MS)) == ["t~1"]
    said = node.after(half_hour_ms)
    assert [one.instance for one in of(commands.WakeInstance, said)] == ["t~1"]
    instance = node.core.upkeep.instances["t~1"]
    assert not instance.resting
    assert rests(node.after(half_hour_ms)) == ["t~1"], "nobody came after all"
    assert not of(commands.WakeInstance, node.after(3 * half_hour_ms))


def test_workers_grow_while_calls_wait_and_shrink_with_the_rest(node: SimNode) -> None:
    held(node, deviceless(500, replicas=3))
    assert node.started[0].replicas == 1
    for number in range(3):
        ask(node, f"r{number}")
        assert len(node.calls) == number + 1
    said = ask(node, "r3")
    assert len(node.calls) == 3
    assert not of(commands.TuneInstance, said), "no more than three"
    while node.calls:
        answer(node)
    node.after(600)
    instance = node.core.upkeep.instances["t~1"]
    assert (instance.resting, instance.workers) == (True, 1)


def load(available_mib: int = 1000, memory_percent: float = 0.0) -> events.Sampled:
    report = LoadReport(
        1,
        5.0,
        memory_used_bytes=(2000 - available_mib) << 20,
        memory_available_bytes=available_mib << 20,
        pressure=Pressure(0.0, memory_percent, 0.0),
    )
    return events.Sampled(report)


@pytest.mark.parametrize("short", [load(available_mib=100), load(memory_percent=20.0)])
def test_when_memory_is_short_the_longest_idle_goes_first(
    node: SimNode, short: events.Sampled
) -> None:
    held(node, deviceless(task="a"), deviceless(task="b"), assign("c", of=manifest("c")))
    for number, task in enumerate("ab"):
        node.after(10)
        ask(node, f"r{number}", task)
        answer(node)
    ask(node, "busy", "b")
    assert not rests(node.tell(load()))
    assert rests(node.tell(short)) == ["a~1"]
    assert not rests(node.tell(short)), "the other has a call"
    answer(node)
    assert rests(node.tell(short)) == ["b~2"]
    assert not rests(node.tell(short)), "one that is not deviceless stays"


def test_a_released_task_leaves_no_timer(node: SimNode) -> None:
    held(node, deviceless(500))
    node.hear(Release("t", 1))
    assert not rests(node.after(60_000))


def test_it_stays_deviceless_when_the_node_starts_again(node: SimNode) -> None:
    held(node, deviceless(500))
    again = SimNode(events.Restored(assigns=tuple(node.journal.values())))
    assert rests(again.after(600)) == ["t~1"]


def test_what_is_fresh_for_each_run_neither_rests_nor_wakes(node: SimNode) -> None:
    made = structs.replace(deviceless(replicas=2), deviceless=Deviceless(fresh=True))
    said = node.hear(made)
    assert node.started[-1].fresh
    assert node.started[-1].replicas == 2
    said += ask(node, "r1") + ask(node, "r2")
    assert len(of(commands.Execute, said)) == 2, "nothing has to wait for it to grow"
    said = answer(node) + answer(node) + node.after(3 * FALLBACK_MS)
    assert not rests(said)
    assert not of(commands.WakeInstance, said)
    follows = structs.replace(made, epoch=2, deviceless=Deviceless())
    node.hear(follows)
    assert not node.started[-1].fresh, "another way to follow the requests is another instance"
