"""Calls that share a run: when they do, who of them, and that each is still told by itself."""

from typing import Any

import pytest
from device_harness import SimNode, assign, failed, invoke, manifest, of
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from device_agent.core import batches, commands, events
from device_agent.core.batches import Pace
from protocols.manifest import Carry, Dtype, ExecutorKind, Port
from protocols.messages import Cancel, Invoke, QualityReport, Result
from protocols.messages.invocation import Tensor
from protocols.messages.sense import LoadReport

LONG_MS = 1e9


def ask(
    name: str, rows: int = 1, *, width: int = 3, budget_ms: int = 100_000, **more: Any
) -> Invoke:
    value = Tensor(Dtype.UINT8, (rows, width), bytes(rows * width))
    return structs.replace(invoke(name, budget_ms=budget_ms), inputs={"x": value}, **more)


def serving(batch: int = 8, replicas: int = 1, **more: Any) -> SimNode:
    node = SimNode()
    node.join()
    shape = (Port("x", Dtype.UINT8, (-1, -1)),)
    model = manifest(queue=64)
    model = structs.replace(model, kind=ExecutorKind.ONNX, inputs=shape, batch=batch, **more)
    node.hear(assign("t", of=model, replicas=replicas))
    return node


def known(node: SimNode, **ms: float) -> Pace:
    """Teach the node what runs of so many rows take: r1, r2, ..."""
    (instance,) = node.core.upkeep.instances.values()
    instance.mean_run_ms = ms["r1"]
    for size, took_ms in ms.items():
        instance.pace.learn(int(size[1:]), int(size[1:]), took_ms)
    return instance.pace


def running(node: SimNode) -> list[str]:
    calls = node.core.requests.workers._calls
    return [calls[call].request.id for call in node.calls]


def answer_all(node: SimNode, took_ms: float = 10) -> None:
    """Answer what runs now, in order, after so long."""
    node.now_ms += took_ms
    now = list(node.calls)
    for call in now:
        del node.calls[call]
        value = Tensor(Dtype.UINT8, (1,), b"y")
        node.tell(events.ExecutorDone(call, {"y": value}, int(took_ms * 1000), len(now)))


# The choice.

GOOD = {"r1": 10.0, "r2": 10.5, "r4": 11.0, "r8": 11.5, "r16": 40.0}
FLAT = {"r1": 10.0, "r2": 20.0, "r4": 40.0, "r8": 90.0, "r16": 200.0}


def test_nothing_is_shared_before_a_run_is_known() -> None:
    node = serving()
    for name in "abc":
        node.call(ask(name))
    assert running(node) == ["a"]
    answer_all(node)
    assert running(node) == ["b", "c"], "two: the first size to try"


def test_those_that_wait_share_a_run_where_that_is_faster_for_all() -> None:
    node = serving()
    known(node, **GOOD)
    for number in range(6):
        node.call(ask(f"r{number}"))
    assert running(node) == ["r0"], "nobody waited yet"
    answer_all(node)
    assert running(node) == ["r1", "r2", "r3", "r4", "r5"]
    (together,) = of(commands.ExecuteTogether, node.said)
    assert [one.call for one in together.calls] == list(node.calls)


def test_where_it_is_not_faster_they_run_one_by_one() -> None:
    node = serving()
    known(node, **FLAT)
    for number in range(6):
        node.call(ask(f"r{number}"))
    for number in range(6):
        assert running(node) == [f"r{number}"]
        answer_all(node, 10)
    assert not of(commands.ExecuteTogether, node.said)


def test_a_little_faster_is_worth_it_only_when_many_wait() -> None:
    pace = Pace()
    for size, took in {1: 10.0, 2: 17.0, 4: 36.0}.items():
        pace.learn(size, size, took)
    few, many = [1] * 3, [1] * 40
    assert pace.share(few, [LONG_MS] * 3, 3) == 1
    assert pace.share(many, [LONG_MS] * 40, 40) == 2


def test_sizes_are_tried_once_and_no_larger_one_after_one_that_was_no_better() -> None:
    pace = Pace()
    pace.learn(1, 1, 10.0)
    rows, left = [1] * 64, [LONG_MS] * 64
    tried = []
    for took in (18.0, 30.0, 70.0):
        tried.append(pace.share(rows, left, 64))
        pace.learn(tried[-1], tried[-1], took)
    assert tried == [2, 4, 8]
    assert pace.share(rows, left, 64) == 4, "the fastest known"


def test_what_is_known_is_learnt_anew_after_a_while() -> None:
    pace = Pace()
    for _ in range(batches.RUNS_KNOWN - 1):
        pace.learn(4, 4, 1.0)
    pace.learn(1, 1, 10.0)
    assert pace.row_ms == {1: 10.0}


@settings(deadline=None)
@given(
    took=st.lists(st.floats(0.1, 1000), min_size=1, max_size=6),
    calls=st.lists(st.tuples(st.integers(1, 9), st.floats(-10, 5000)), min_size=1, max_size=20),
    behind=st.integers(0, 100),
)
def test_nobody_who_shares_is_predicted_late(
    took: list[float], calls: list[tuple[int, float]], behind: int
) -> None:
    pace = Pace()
    for power, ms in enumerate(took):
        pace.learn(1 << power, 1 << power, ms)
    rows, left = [one[0] for one in calls], [one[1] for one in calls]
    number = pace.share(rows, left, len(calls) + behind)
    assert 1 <= number <= len(calls)
    if number > 1:
        assert batches.MARGIN * pace.ms(sum(rows[:number])) <= min(left[:number])


@settings(deadline=None)
@given(
    took=st.lists(st.floats(0.1, 1000), min_size=2, max_size=5),
    number=st.integers(2, 16),
    behind=st.integers(0, 40),
)
def test_sharing_is_never_predicted_to_cost_those_who_wait_time(
    took: list[float], number: int, behind: int
) -> None:
    pace = Pace()
    for power, ms in enumerate(took):
        pace.learn(1 << power, 1 << power, ms)
    waiting = number + behind
    shared = pace.share([1] * number, [LONG_MS] * number, waiting)
    if shared > 1 and 1 << (shared - 1).bit_length() in pace.row_ms:
        alone, together = pace.ms(1), pace.ms(shared)
        apart = sum(at * alone for at in range(1, waiting + 1))
        joined = shared * together
        joined += sum(together + at * alone for at in range(1, waiting - shared + 1))
        assert joined < apart + 1e-6


# Who.


def test_only_equal_shapes_share_and_only_so_many_rows() -> None:
    node = serving(batch=5)
    known(node, **GOOD)
    node.call(ask("first"))
    for name, rows, width in (("a", 1, 3), ("b", 1, 4), ("c", 2, 3), ("d", 3, 3), ("e", 2, 3)):
        node.call(ask(name, rows, width=width))
    answer_all(node)
    assert running(node) == ["a", "c", "e"], "b is of another shape, d would be the sixth row"
    answer_all(node)
    assert running(node) == ["b"]


def test_nobody_is_passed_over_by_a_call_of_lower_priority() -> None:
    node = serving()
    known(node, **GOOD)
    node.call(ask("first"))
    node.call(ask("a", priority=7))
    node.call(ask("other", priority=6, width=9))
    node.call(ask("b", priority=6))
    node.call(ask("low", priority=5))
    answer_all(node)
    assert running(node) == ["a", "b"], "b passes one of its own priority, low would not"
    answer_all(node)
    assert running(node) == ["other"]


def test_nobody_is_made_late_by_those_who_pass() -> None:
    node = serving()
    known(node, **GOOD)
    node.call(ask("first"))
    node.call(ask("a", budget_ms=32))
    node.call(ask("tight", width=9, budget_ms=33))
    for number in range(4):
        node.call(ask(f"b{number}", budget_ms=30_000))
    answer_all(node)
    # 23 ms are left for `tight`, which takes 10: a run of 14 ms before it would be too long.
    assert running(node) == ["a"]


def test_several_free_workers_divide_those_that_wait() -> None:
    node = serving(replicas=2)
    known(node, **GOOD)
    for number in range(2):
        node.call(ask(f"busy{number}"))
    for number in range(6):
        node.call(ask(f"r{number}"))
    (instance,) = node.core.upkeep.instances.values()
    # Both workers get free in one turn of the core.
    for call in list(node.calls):
        node.core.requests.workers.take(call)
        del node.calls[call]
    node.core._turn.out.clear()
    node.core.requests.workers.next(instance)
    sizes = [
        len(one.calls) for one in node.core._turn.out if isinstance(one, commands.ExecuteTogether)
    ]
    assert sizes == [3, 3]


@pytest.mark.parametrize("more", [{"batch": 1}, {"carries": (Carry("s", "t"),)}])
def test_models_that_do_not_say_so_or_remember_share_nothing(more: dict[str, Any]) -> None:
    node = serving(**more)
    for number in range(8):
        node.call(ask(f"r{number}"))
    while node.calls:
        assert len(node.calls) == 1
        answer_all(node)


# Each by itself.


def sharing_node(number: int = 4) -> SimNode:
    node = serving()
    known(node, **GOOD)
    node.call(ask("first"))
    for at in range(number):
        node.call(ask(f"r{at}"))
    answer_all(node)
    assert len(node.calls) == number
    return node


def test_a_bad_one_fails_alone_and_a_cancelled_one_goes_alone() -> None:
    node = sharing_node()
    calls = list(node.calls)
    node.call(Cancel("r2"))
    assert [one.call for one in of(commands.CancelCall, node.said)] == [calls[2]]
    node.calls.pop(calls[1])
    node.tell(failed(calls[1]))
    node.call(ask("next"))
    assert len(node.calls) == 2, "the worker still has the others"
    answer_all(node)
    told = {one.request: one.failure for one in of(Result, node.said)}
    assert told["r0"] is None
    assert told["r3"] is None
    assert told["r1"] is not None
    assert "r2" not in told
    assert running(node) == ["next"]


def test_figures_are_each_ones_part() -> None:
    node = sharing_node()
    node.tell(events.Sampled(LoadReport(1, 0, 0.0, 0, 0)))
    answer_all(node, 40)
    node.tell(events.Sampled(LoadReport(2, 0, 0.0, 0, 0)))
    (sample,) = of(QualityReport, node.said)[-1].tasks
    assert (sample.done, sample.run_ms) == (4, 10.0)
    result = of(Result, node.said)[-1]
    assert result.timings[0].run_us == 40_000, "what the caller has waited for"


def test_what_a_run_alone_takes_is_not_learnt_from_shared_ones() -> None:
    node = sharing_node(8)
    (instance,) = node.core.upkeep.instances.values()
    before = instance.mean_run_ms
    answer_all(node, 16)
    assert instance.mean_run_ms == pytest.approx(before)
    assert instance.pace.row_ms[8] == pytest.approx(1.4375 + batches.LEARNING * (2.0 - 1.4375))


@settings(deadline=None)
@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, 9),
            st.integers(1, 4),
            st.integers(1, 2),
            st.sampled_from((60, 400, 9000)),
        ),
        max_size=40,
    ),
    took=st.lists(st.sampled_from((1, 5, 30, 80)), min_size=1, max_size=8),
)
def test_every_request_is_answered_once_whatever_shares(
    asked: list[tuple[int, int, int, int]], took: list[int]
) -> None:
    node = serving(batch=6)
    for at, (priority, rows, width, budget_ms) in enumerate(asked):
        node.call(ask(f"r{at}", rows, width=width, budget_ms=budget_ms, priority=priority))
        if at % 5 == 4 and node.calls:
            answer_all(node, took[at % len(took)])
        node.after(0)
    while node.calls:
        answer_all(node, took[0])
        node.after(0)
    told = [one.request for one in of(Result, node.said)]
    assert sorted(told) == sorted(f"r{at}" for at in range(len(asked)))
    for together in of(commands.ExecuteTogether, node.said):
        shapes = {one.inputs["x"].shape[1:] for one in together.calls}
        assert len(shapes) == 1
        assert sum(one.inputs["x"].shape[0] for one in together.calls) <= 6
