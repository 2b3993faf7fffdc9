"""Many nodes come at once: nobody who is here waits for them, and none of them is forgotten."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from scheduler_bench import READY, Bench, running, said, told
from tests_support import INVENTORY

from controller.decider import Event, Fired, Output, Received, Timer
from controller.scheduler.decider import LOSSES_PAUSE_MS
from controller.scheduler.fleet import LOSSES_MAX
from controller.scheduler.joins import AFTER_MAX, PAUSE_MS, SLICE, Joins
from protocols.messages import (
    Assign,
    Birth,
    LinkReport,
    LoadReport,
    NodeSummary,
    RebirthRequest,
    Welcome,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Arrival, Holding

MANY = 10 * SLICE
NAMES = [f"m{number}" for number in range(MANY)]


def word(node: str, body: Birth | LoadReport | LinkReport, incarnation: int = 1) -> Received:
    return Received(node, incarnation, 0, "default", "test", body)


def birth(node: str, incarnation: int = 1, *tasks: str) -> Received:
    held = tuple(Holding(task, 1, READY, 1) for task in tasks)
    arrival = Arrival("lost", 0)
    return word(node, Birth("1", "boot", INVENTORY, held, arrival=arrival), incarnation)


def storm(bench: Bench, *more: Event) -> Output:
    return bench.feed(*(birth(one) for one in NAMES), *more)


def welcomed(output: Output) -> list[str]:
    return [one.to.node for one in output.sends if isinstance(one.body, Welcome)]  # type: ignore[union-attr]


def test_a_lost_carrier_is_acted_on_in_the_turn_that_brings_a_storm(bench: Bench) -> None:
    running(bench, "n1", "n2")
    for node in ("n1", "n2"):
        bench.node(node, LoadReport(1, 5.0))
    bench.now_ms += 10 * PAUSE_MS
    output = storm(bench, word("n1", LinkReport(1, "eth0", "wired", False)))
    assert [told(output, "n2", Assign) != [], len(welcomed(output))] == [True, SLICE]
    later = bench.feed(*(word("n2", LoadReport(1, 5.0)) for _ in range(3)))
    assert not welcomed(later), "whatever else comes takes no slice of its own"
    assert Timer("joins", bench.now_ms + PAUSE_MS) in output.timers
    everyone = welcomed(output) + welcomed(bench.joined())
    assert everyone == NAMES
    assert bench.ts.counters["births_waited"] == MANY - SLICE
    asked = [one for one in bench.seen if isinstance(one.body, RebirthRequest)]
    assert not asked, "who waits in line is asked for nothing"


def test_who_brings_tasks_comes_before_who_brings_none(bench: Bench) -> None:
    storm(bench, birth("late", 1, "svc.a"))
    bench.now_ms += PAUSE_MS
    assert welcomed(bench.feed(Fired("joins")))[0] == "late"


def test_what_is_said_behind_a_birth_waits_for_it_and_a_newer_birth_takes_its_place(
    bench: Bench,
) -> None:
    last = NAMES[-1]
    storm(bench, word(last, LoadReport(1, 77.0)), birth(last, 2), birth(last, 1))
    storm_of_words = [word(last, LoadReport(at, float(at)), 2) for at in range(AFTER_MAX + 5)]
    output = bench.feed(*storm_of_words)
    assert not output.sends
    assert bench.ts.counters["births_replaced"] == 2
    assert bench.ts.counters["words_outrun"] == 5
    bench.joined()
    slot = bench.ts.nodes.slots[last]
    assert bench.ts.nodes.incarnations[slot] == 2
    assert bench.ts.nodes.cpu_percent[slot] == AFTER_MAX + 4


def test_a_known_node_that_waits_with_another_birth_goes_on_to_be_heard(bench: Bench) -> None:
    output = storm(bench, birth("n1"), word("n1", LoadReport(1, 42.0)))
    assert not told(output, "n1", Welcome)
    assert bench.ts.nodes.cpu_percent[bench.ts.nodes.slots["n1"]] == 42.0
    assert told(bench.joined(), "n1", Welcome)


def test_many_that_fall_silent_are_given_up_in_several_turns(bench: Bench) -> None:
    names = [f"s{number}" for number in range(3 * LOSSES_MAX)]
    bench.born(*names)
    lost: set[str] = set()
    turns: list[int] = []
    bench.now_ms += 4000
    output = bench.feed(Fired("sweep"))
    while bench.now_ms < 60_000 and not lost.issuperset(names):
        found = [one.node for one in said(output, NodeSummary) if one.state is not NodeState.ONLINE]
        turns.append(len(found))
        lost |= {one for one in found if bench.ts.nodes.state(one) is NodeState.LOST}
        again = any(one.key == "losses" for one in output.timers)
        bench.now_ms += LOSSES_PAUSE_MS if again else 200
        output = bench.feed(Fired("losses" if again else "sweep"))
    assert lost.issuperset(names)
    assert max(turns) <= 2 * LOSSES_MAX


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.booleans(), st.booleans())))
def test_each_node_keeps_its_order_and_nobody_waits_for_ever(
    comes: Iterable[tuple[int, int, bool, bool]],
) -> None:
    """A line of births and words of any nodes at any time: what comes out is in order, by node."""
    now_ms, out = 0, []
    joins = Joins(lambda _: False, {})
    for number, passes_ms, is_birth, bringing in comes:
        now_ms += passes_ms
        one = birth(f"n{number}", 1, *(["t"] if bringing else []))
        event = one if is_birth else word(f"n{number}", LoadReport(now_ms, 1.0))
        came = [event] if joins.admits(event, now_ms) else []
        came += joins.next(now_ms)
        assert sum(isinstance(one.body, Birth) for one in came) <= SLICE
        out += came
    for _ in range(10):
        now_ms += PAUSE_MS
        out += joins.next(now_ms)
    assert not joins
    assert joins.due_ms is None
    for node in {one.sender for one in out}:
        sampled = [
            one.body.sampled_ms
            for one in out
            if one.sender == node and isinstance(one.body, LoadReport)
        ]
        assert sampled == sorted(sampled)
