"""A deviceless task whose node is full is served on spares too, and on one node again later."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from scheduler_bench import Bench, drain, grant, said, told
from tests_support import manifest

from controller.decider import Received
from controller.scheduler.further import (
    FRESH_MS,
    FULL_MS,
    KEEP_MAX_MS,
    KEEP_MS,
    Demand,
    Load,
    decide,
)
from protocols.manifest import HostFunction, Limits
from protocols.messages import (
    Assign,
    EnvelopeRevoke,
    Invoke,
    QualityReport,
    Release,
    Route,
    TaskEvent,
)
from protocols.messages.quality import TaskSample
from protocols.messages.task import Deviceless

NODES = ("n1", "n2", "n3")
KEEP = 2000


def spreading(bench: Bench, keep_ms: int = KEEP, **of_manifest: Any) -> Assign:
    base = grant(*NODES)
    changes: dict[str, Any] = {"deviceless": Deviceless(keep_ms)}
    if of_manifest:
        changes["manifest"] = manifest(**of_manifest)
    spec = structs.replace(base.spec, **changes)
    [assign] = said(bench.anchor(structs.replace(base, spec=spec)), Assign)
    bench.ready("n1", assign.epoch)
    return assign


def measured(
    bench: Bench, node: str, epoch: int, done: int, queue: int = 0, *, starved: bool = False
) -> Any:
    """Say what a node did in half a second, each run 100 ms long."""
    sample = TaskSample("svc.a", epoch, done=done, queue=queue, run_ms=100.0, starved=starved)
    return bench.node(node, QualityReport(bench.now_ms, 500, (sample,)))


def full(
    bench: Bench, node: str, epoch: int, ms: int = FULL_MS + 1000, done: int = 5, **said: Any
) -> list[Any]:
    sends = []
    for _ in range(ms // 400):
        sends += measured(bench, node, epoch, done, queue=3, **said).sends
        sends += bench.passes(400, *NODES).sends
    return [one for one in sends if isinstance(one.body, Assign | Route | Release | TaskEvent)]


def widened(bench: Bench) -> tuple[int, int]:
    """Return the epochs on n1 and n2, both of which serve."""
    first = spreading(bench)
    second = next(one.body for one in full(bench, "n1", first.epoch) if type(one.body) is Assign)
    bench.ready("n2", second.epoch)
    return first.epoch, second.epoch


def plans(bench: Bench) -> list[str]:
    route = bench.ts.serving.route("svc")
    assert route is not None
    ways = (route.plan, *route.others) if route.plan else ()
    return [one.steps[0].node for one in ways]


def test_calls_that_wait_bring_a_further_node(bench: Bench) -> None:
    first, second = widened(bench)
    assert second > first
    assert plans(bench) == ["n1", "n2"]
    route = bench.ts.serving.route("svc")
    assert route is not None
    assert route.credit == 2 * 64


@pytest.mark.parametrize("starved", [True, False])
def test_calls_that_wait_for_memory_bring_a_further_node(bench: Bench, *, starved: bool) -> None:
    first = spreading(bench)
    sends = full(bench, "n1", first.epoch, done=0, starved=starved)
    assigned = [one.to.node for one in sends if type(one.body) is Assign]
    assert assigned == (["n2"] if starved else []), "workers that rest are enough"
    if starved:
        second = next(one.body for one in sends if type(one.body) is Assign)
        bench.ready("n2", second.epoch)
        assert plans(bench) == ["n1", "n2"]


def test_a_moment_brings_none(bench: Bench) -> None:
    first = spreading(bench)
    full(bench, "n1", first.epoch, 800)
    measured(bench, "n1", first.epoch, 5)
    assert not said(bench.passes(4000, *NODES), Assign)


def test_fewer_calls_leave_one_node(bench: Bench) -> None:
    widened(bench)
    output = bench.passes(KEEP + FRESH_MS + 1000, *NODES)
    assert {one.epoch for one in told(output, "n2", Release)} == {2}
    assert plans(bench) == ["n1"]
    assert [one.event for one in said(output, TaskEvent)] == ["narrower"]


def test_a_further_node_takes_over_when_the_first_is_emptied(bench: Bench) -> None:
    widened(bench)
    output = drain(bench, "n1")
    assert not said(output, Assign)
    assert told(output, "n1", Release)
    assert plans(bench) == ["n2"]


def test_a_lost_further_node_is_given_up(bench: Bench) -> None:
    widened(bench)
    bench.passes(6000, "n1", "n3")
    assert plans(bench) == ["n1"]


def test_the_end_of_a_task_is_told_to_all(bench: Bench) -> None:
    widened(bench)
    output = bench.anchor(EnvelopeRevoke("svc.a", 1))
    assert told(output, "n1", Release)
    assert told(output, "n2", Release)


def test_a_task_that_remembers_stays_on_one_node(bench: Bench) -> None:
    functions, limits = (HostFunction.MEMORY,), Limits(state_bytes=100)
    first = spreading(bench, functions=functions, limits=limits)
    assert not [one for one in full(bench, "n1", first.epoch) if isinstance(one.body, Assign)]


def test_plain_clients_are_shared_among_the_nodes(bench: Bench) -> None:
    widened(bench)

    def asked(request: str) -> str:
        invoke = Invoke(request, "svc", 1000, {}, "tona/1/cell/client/c/reply")
        output = bench.feed(Received("c", 1, 0, "default", "test", invoke))
        [send] = [one for one in output.sends if isinstance(one.body, Invoke)]
        return str(send.to.node)

    first = {name: asked(name) for name in map(str, range(40))}
    assert set(first.values()) == {"n1", "n2"}
    assert first == {name: asked(name) for name in first}, "repeated: where it was"


loads = st.builds(Load, st.floats(0, 8), st.booleans(), st.booleans(), st.integers(0, 20_000))


@given(
    st.lists(st.lists(loads, max_size=3), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(100, 10_000),
)
def test_what_is_decided_follows_from_what_lasts(
    turns: list[list[Load]], workers: int, keep_ms: int
) -> None:
    demand, nodes, now_ms, since_ms = Demand(), 1, 1, 0
    for turn in turns:
        now_ms += 400
        fresh = {f"n{at}": structs.replace(one, heard_ms=now_ms) for at, one in enumerate(turn)}
        demand.loads = fresh
        step = decide(demand, nodes, workers, keep_ms, now_ms)
        assert step in (-1, 0, 1)
        if step:
            assert now_ms - since_ms >= min(FULL_MS, keep_ms)
            assert step > 0 or nodes > 1
            since_ms = now_ms
        if step > 0:
            assert any(one.waits for one in turn)
        nodes += step
        assert nodes >= 1
        assert demand.keep_ms <= max(KEEP_MAX_MS, keep_ms)


def test_what_went_too_early_stays_longer() -> None:
    demand, now_ms = Demand(), 1
    busy = {"n1": Load(4.0, waits=True, hot=False, heard_ms=0)}
    kept = []
    for _ in range(3):
        steps = 0
        while steps <= 0:
            now_ms += 200
            demand.loads = {one: structs.replace(at, heard_ms=now_ms) for one, at in busy.items()}
            steps = decide(demand, 1, 1, KEEP_MS, now_ms)
        demand.loads, began_ms = {}, now_ms
        while decide(demand, 2, 1, KEEP_MS, now_ms) == 0:
            now_ms += 200
        kept.append(now_ms - began_ms)
    assert kept[0] < kept[1] < kept[2] <= KEEP_MAX_MS
