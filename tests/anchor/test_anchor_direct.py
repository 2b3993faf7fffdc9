"""The core's anchor speaks to nodes itself: a deletion reaches them although their TS is away."""

import pytest
from anchor_bench import Bench, said
from tests_support import INVENTORY

from controller.anchor.decider import Settings
from controller.anchor.direct import AGAIN_MS, TRIES
from controller.decider import Output, ToNode
from controller.records import TaskState
from protocols.messages import Birth, Death, Release, ServiceDelete, ServiceReport, Status
from protocols.messages.presence import Holding
from protocols.messages.task import InstanceState

STOPPED = InstanceState.STOPPED


@pytest.fixture
def bench() -> Bench:
    bench = Bench(Settings(direct=True))
    bench.node("n1")
    bench.order(spares=0)
    bench.ready("n1", 1)
    return bench


def released(output: Output) -> list[str]:
    return [
        send.to.node
        for send in output.sends
        if isinstance(send.to, ToNode) and isinstance(send.body, Release)
    ]


def test_a_deletion_is_said_to_the_node_until_it_confirms(bench: Bench) -> None:
    output = bench.hear(ServiceDelete("svc", 1), "namo-main")
    assert released(output) == ["n1"]
    assert said(output, ServiceReport)[-1].state.value == "deleted"
    assert bench.task().state is TaskState.DELETING
    assert bench.reserved() == {"n1": 1 << 28}, "it runs there still"
    assert released(bench.passes(AGAIN_MS)) == ["n1"]
    bench.hear(Status(1, "svc.a", 32, STOPPED), "n1")
    assert "svc.a" not in bench.ta.book.tasks
    assert not bench.reserved()
    assert not released(bench.passes(10 * AGAIN_MS))


def test_a_crash_does_not_end_the_deletion(bench: Bench) -> None:
    bench.hear(ServiceDelete("svc", 1), "namo-main")
    bench.node("n1")
    assert released(bench.restart()) == ["n1"]


def test_a_node_that_never_answers_is_asked_at_its_next_birth(bench: Bench) -> None:
    bench.hear(ServiceDelete("svc", 1), "namo-main")
    bench.passes(TRIES * AGAIN_MS)
    assert "svc.a" not in bench.ta.book.tasks
    held = Holding("svc.a", 1, InstanceState.READY)
    birth = Birth("1", "boot", INVENTORY, (held,))
    assert released(bench.hear(birth, "n1", incarnation=2)) == ["n1"]
    other = Birth("1", "boot", INVENTORY, (Holding("of.another", 1, InstanceState.READY),))
    assert not released(bench.hear(other, "n1", incarnation=3)), "it may be another anchor's"


def test_a_birth_without_it_or_a_farewell_confirms(bench: Bench) -> None:
    bench.hear(ServiceDelete("svc", 1), "namo-main")
    bench.hear(Birth("1", "boot", INVENTORY), "n1", incarnation=2)
    assert "svc.a" not in bench.ta.book.tasks
    bench.order(2, spares=0)
    bench.hear(ServiceDelete("svc", 2), "namo-main")
    bench.hear(Death("late", orderly=True), "n1", incarnation=1)
    assert bench.task().state is TaskState.DELETING, "the farewell of an older connection"
    bench.hear(Death("power off"), "n1", incarnation=2)
    assert bench.task().state is TaskState.DELETING, "a will is only a hint"
    bench.hear(Death("bye", orderly=True), "n1", incarnation=2)
    assert "svc.a" not in bench.ta.book.tasks


def test_a_service_that_is_ordered_again_while_it_ends_begins_anew(bench: Bench) -> None:
    bench.hear(ServiceDelete("svc", 1), "namo-main")
    high = bench.task().epoch_high
    bench.order(2, spares=0)
    assert bench.task().state is TaskState.PLACED
    assert bench.task().epoch_high > high
    bench.hear(Status(1, "svc.a", 32, STOPPED), "n1")
    assert bench.task().state is TaskState.PLACED


def test_without_the_setting_nothing_is_said_to_nodes() -> None:
    bench = Bench()
    bench.node("n1")
    bench.order()
    assert not released(bench.hear(ServiceDelete("svc", 1), "namo-main"))
    bench.hear(Birth("1", "boot", INVENTORY), "n1")
    assert bench.ta.counters["unexpected_message"] == 1
