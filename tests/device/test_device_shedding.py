"""Overload: who is served first, who is shed and when, and that every request is told once."""

from collections import Counter
from typing import Any

from device_harness import SimNode, assign, failed, invoke, manifest, of
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.admission import LIVE_MAX
from device_agent.core.queue import Queue
from protocols.messages import Invoke, QualityReport, Result
from protocols.messages.invocation import FailureCode
from protocols.messages.quality import Tuning
from protocols.messages.sense import LoadReport


def ask(name: str, priority: int = 4, budget_ms: int = 100_000) -> Invoke:
    return structs.replace(invoke(name, budget_ms=budget_ms), priority=priority)


def serving(queue: int = 4, replicas: int = 1) -> SimNode:
    node = SimNode()
    node.join()
    node.hear(assign("t", of=manifest(queue=queue), replicas=replicas))
    return node


def learnt(mean_ms: float, queue: int = 4) -> SimNode:
    """Return a node whose task has run once, so long."""
    node = serving(queue)
    node.call(ask("first"))
    node.now_ms += mean_ms
    node.answer()
    return node


def running(node: SimNode) -> list[str]:
    calls = node.core.requests.workers._calls
    return [calls[call].request.id for call in node.calls]


def failures(said: list[commands.Command]) -> dict[str, FailureCode]:
    return {one.request: one.failure.code for one in of(Result, said) if one.failure is not None}


def test_higher_priority_goes_first_then_the_earlier_deadline_then_the_first() -> None:
    node = serving()
    node.call(ask("running"))
    node.call(ask("late", 4, 9000))
    node.call(ask("soon", 4, 5000))
    node.call(ask("soon-too", 4, 5000))
    node.call(ask("high", 7, 60_000))
    order = []
    while node.calls:
        order += running(node)
        node.answer()
    assert order == ["running", "high", "soon", "soon-too", "late"]


def test_what_cannot_be_in_time_is_refused_at_once_with_figures() -> None:
    node = learnt(100)
    node.call(ask("running"))
    said = node.call(ask("hopeless", budget_ms=150))
    (result,) = of(Result, said)
    assert result.failure is not None
    assert result.failure.code is FailureCode.SHED
    assert "100 ms" in result.failure.text
    assert "150 ms are left" in result.failure.text
    assert not result.failure.retryable, "no time for another attempt"
    assert not of(Result, node.call(ask("fits", budget_ms=250)))


def test_another_attempt_is_worth_it_while_there_is_time_for_it() -> None:
    node = learnt(100)
    node.call(ask("running"))
    node.call(ask("a", 5))
    node.call(ask("b", 5))
    (result,) = of(Result, node.call(ask("c", budget_ms=350)))
    assert result.failure is not None
    assert (result.failure.code, result.failure.retryable) == (FailureCode.SHED, True)


def test_the_estimate_counts_only_those_before_it_and_every_worker() -> None:
    node = learnt(100)
    node.call(ask("running"))
    for number in range(3):
        node.call(ask(f"low{number}", 2))
    assert not of(Result, node.call(ask("high", 8, 250))), "it goes before the low ones"


def test_an_instance_that_runs_nothing_unlearns_a_bad_hour() -> None:
    node = learnt(10_000)
    for number in range(40):
        said = node.call(ask(f"r{number}", budget_ms=500))
        assert not of(Result, said)
        node.now_ms += 10
        node.answer()
    node.call(ask("running"))
    assert not of(Result, node.call(ask("second", budget_ms=500)))


def test_a_turn_that_comes_too_late_is_shed_and_not_run() -> None:
    node = learnt(100)
    node.call(ask("running"))
    node.call(ask("waits", budget_ms=250))
    node.call(ask("patient"))
    node.now_ms += 200
    said = node.answer()
    assert failures(said) == {"waits": FailureCode.SHED}
    assert running(node) == ["patient"]


def test_a_full_queue_sheds_whoever_is_worth_least() -> None:
    node = serving(queue=2)
    node.call(ask("running"))
    node.call(ask("low", 1))
    node.call(ask("usual", 4))
    assert failures(node.call(ask("high", 6))) == {"low": FailureCode.SHED}
    assert failures(node.call(ask("lower", 2))) == {"lower": FailureCode.SHED}
    assert failures(node.call(ask("sooner", 4, 50_000))) == {"usual": FailureCode.SHED}
    order = []
    while node.calls:
        order += running(node)
        node.answer()
    assert order == ["running", "high", "sooner"]


def test_a_full_node_lets_a_waiting_request_go_for_a_higher_one() -> None:
    node = serving(queue=4096)
    for number in range(LIVE_MAX):
        node.call(ask(f"r{number}", 3, 100_000 - number))
    said = node.call(ask("same", 3))
    assert failures(said) == {"same": FailureCode.BUSY}
    said = node.call(ask("high", 4))
    assert failures(said) == {"r1": FailureCode.SHED}, "the latest deadline of those that wait"
    assert len(node.core.requests) == LIVE_MAX


def test_a_higher_attempt_waits_in_its_new_place() -> None:
    node = serving()
    node.call(ask("running"))
    node.call(ask("a", 4, 50_000))
    node.call(ask("b", 4, 60_000))
    node.call(structs.replace(ask("b", 9, 60_000), attempt=2))
    node.answer()
    assert running(node) == ["b"]


class Item:
    def __init__(self, rank: tuple[int, float, int]) -> None:
        self.rank = rank


@given(st.lists(st.tuples(st.integers(-9, 0), st.floats(0, 100), st.booleans()), max_size=60))
@settings(deadline=None, derandomize=True)
def test_the_queue_is_what_a_sorted_list_is(steps: list[tuple[int, float, bool]]) -> None:
    queue, plain = Queue(), []
    for number, (priority, deadline, take) in enumerate(steps):
        if take and plain:
            assert queue.pop() is plain.pop(0)
            continue
        one = Item((priority, deadline, number))
        assert queue.ahead(one.rank) == sum(two.rank < one.rank for two in plain)
        queue.push(one)
        plain = sorted([*plain, one], key=lambda two: two.rank)
        assert queue.last is plain[-1]
        if number % 7 == 3:
            gone = plain.pop(len(plain) // 2)
            assert queue.remove(gone)
            assert not queue.remove(gone)
    assert len(queue) == len(plain)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 9), st.sampled_from((30, 80, 300, 5000))),
        st.tuples(st.just("end"), st.booleans(), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.integers(1, 60), st.just(0)),
    ),
    max_size=80,
)


def check_order(
    node: SimNode, name: str, asked: dict[str, tuple[int, float]], said: list[Any], queue: int
) -> None:
    """Hold what one request has set off against the order of priority and deadline."""
    priority, deadline = asked[name]
    for gone, code in failures(said).items():
        if gone != name and code is FailureCode.SHED:
            # Room was made for the newcomer, which is worth more.
            assert (-asked[gone][0], asked[gone][1]) >= (-priority, deadline)
    kept = queue_of(node)
    if failures(said).get(name) is FailureCode.SHED and "its limit" in text_of(said):
        assert len(kept) == queue
        assert all((-one.priority, one.deadline_ms) <= (-priority, deadline) for one in kept)


def check_tally(node: SimNode, asked: dict[str, tuple[int, float]]) -> None:
    """Hold the report of a node against what its clients were told."""
    results = of(Result, node.said)
    told = Counter(one.request for one in results)
    assert told == Counter(asked.keys()), "each is answered once, or refused with a reason"
    assert all(one.failure is None or one.failure.text for one in results)
    codes = Counter(one.failure.code if one.failure else None for one in results)
    reports = of(QualityReport, node.tell(events.Sampled(LoadReport(int(node.now_ms), 1.0))))
    assert len(reports) == bool(asked)
    for report in reports:
        (task,), (user,) = report.tasks, report.users
        assert (task.done, task.queue) == (codes[None], 0)
        assert task.shed == codes[FailureCode.SHED]
        assert task.late == codes[FailureCode.DEADLINE]
        assert task.failed == codes[FailureCode.EXECUTOR]
        assert (user.user, user.answered) == ("app", codes[None])
        assert user.answered + user.failed == len(asked)


@given(steps, st.integers(1, 3), st.integers(1, 5))
@settings(deadline=None, derandomize=True)
def test_no_higher_one_is_shed_for_a_lower_one_and_the_tally_is_exact(
    steps: list[tuple[str, int, int]], replicas: int, queue: int
) -> None:
    node = serving(queue, replicas)
    asked: dict[str, tuple[int, float]] = {}
    for kind, one, two in steps:
        if kind == "ask":
            name = f"r{len(asked)}"
            asked[name] = (one, node.now_ms + two)
            check_order(node, name, asked, node.call(ask(name, one, two)), queue)
        elif kind == "end" and node.calls:
            call = sorted(node.calls, key=int)[two % len(node.calls)]
            if one:
                node.answer(call)
            else:
                del node.calls[call]
                node.tell(failed(call))
        elif kind == "wait":
            node.after(one)
    while node.calls:
        node.answer()
    node.after(10_000)
    check_tally(node, asked)


def queue_of(node: SimNode) -> list[Any]:
    held = node.core.assignments.held["t"].current
    assert held is not None
    return [run.request for _, run in held.queue._runs]


def text_of(said: list[commands.Command]) -> str:
    return " ".join(one.failure.text for one in of(Result, said) if one.failure is not None)


def test_a_task_of_higher_priority_goes_first_where_calls_share_a_worker() -> None:
    node = SimNode()
    node.join()
    node.hear(structs.replace(assign("t"), tuning=Tuning(priority=7)))
    (execute,) = of(commands.Execute, node.call(ask("r", 5)))
    assert execute.priority == 12
