"""What a scheduler believes of nodes: forged and forgotten epochs, failed copies, floods."""

from typing import Any

import msgspec
import pytest
from scheduler_bench import READY, Bench, drain, grant, running, said, told
from tests_support import INVENTORY

from controller.decider import Output, Received, ToInvoke
from controller.records import NODE
from controller.scheduler import fleet, releases
from protocols import codec
from protocols.base import EPOCH_LIMIT
from protocols.codec import VERSION, Frame
from protocols.errors import MalformedFrame
from protocols.manifest import Dtype
from protocols.messages import (
    AnchorWelcome,
    Assign,
    Birth,
    Body,
    Death,
    Drain,
    EnvelopeRevoke,
    Escalation,
    Invoke,
    LinkReport,
    LoadReport,
    Release,
    Result,
    Route,
    Status,
    TaskReport,
)
from protocols.messages.invocation import INLINE_MAX_BYTES, FailureCode, Tensor
from protocols.messages.presence import Holding
from protocols.messages.task import InstanceState
from protocols.topics import CONTROL_MAX_BYTES, INVOCATION_MAX_BYTES

FAILED = InstanceState.FAILED


def routed_to(output: Output) -> str:
    plan = said(output, Route)[-1].plan
    return plan.steps[0].node if plan else ""


@pytest.mark.parametrize("epoch", [2, 32, 33, 2**53])
@pytest.mark.parametrize("node", ["n2", "n3"])
def test_no_node_takes_a_task_by_saying_so(bench: Bench, node: str, epoch: int) -> None:
    """One of the envelope or not, an epoch that was never given there is not believed."""
    running(bench, "n1", "n2")
    forged = Status(1, "svc.a", epoch, READY, generation=1)
    output = bench.node(node, forged)
    assert not said(output, Route)
    assert not told(output, "n1", Release)
    assert [one.epoch for one in told(output, node, Release)] == [epoch]
    drain(bench, "n1")
    assert told(Output(sends=bench.seen), "n2", Assign), "the lease was not used up"


def test_a_holding_in_no_known_state_is_no_frame() -> None:
    holding = Holding("svc.a", 1, "bogus", 1)  # type: ignore[arg-type]
    birth = Birth("1", "boot", INVENTORY, (holding,))
    payload = codec.encode(Frame(VERSION, "n1", 1, 0, "default", "x", birth), CONTROL_MAX_BYTES)
    with pytest.raises(MalformedFrame):
        codec.decode(payload, CONTROL_MAX_BYTES)


@pytest.mark.parametrize("seen", [50, EPOCH_LIMIT])
def test_epochs_go_on_above_what_a_node_remembers(bench: Bench, seen: int) -> None:
    """The store of the cell was lost, the nodes' journals were not."""
    bench.anchor(grant("n1"))
    output = bench.node("n1", Status(1, "svc.a", seen, InstanceState.STOPPED))
    [escalation] = said(output, Escalation)
    if seen == EPOCH_LIMIT:
        assert escalation.epoch_seen < 32, "an absurd claim costs only the node that makes it"
        assert [one.action for one in escalation.attempts] == ["run on n1"]
        return
    assert escalation.epoch_seen == seen
    assert not escalation.attempts, "the node has not failed"
    output = bench.anchor(grant("n1", first=seen + 1))
    assert [one.epoch for one in told(output, "n1", Assign)] == [seen + 1]


def test_a_failed_copy_gives_its_room_back(bench: Bench) -> None:
    bench.anchor(grant("n1", "n2"))
    output = bench.node("n1", Status(1, "svc.a", 1, FAILED, "no memory"))
    assert told(output, "n2", Assign)
    assert [one.epoch for one in told(output, "n1", Release)] == [1]


def test_a_failed_move_gives_its_room_back(bench: Bench) -> None:
    running(bench, "n1", "n2")
    bench.node("n2", LoadReport(1, 10.0))
    [assign] = told(bench.lasts("n1", LoadReport(1, 97.0)), "n2", Assign)
    output = bench.node("n2", Status(1, "svc.a", assign.epoch, FAILED, "no memory"))
    assert [one.epoch for one in told(output, "n2", Release)] == [assign.epoch]


def test_a_failed_generation_leaves_the_old_one_where_it_is(bench: Bench) -> None:
    running(bench, "n1")
    [assign] = told(bench.anchor(grant("n1", generation=2, first=33)), "n1", Assign)
    output = bench.node("n1", Status(2, "svc.a", assign.epoch, FAILED, "bad", generation=2))
    assert not said(output, Release)
    assert not said(output, Route)
    output = bench.anchor(EnvelopeRevoke("svc.a", 2, "over"))
    assert [one.epoch for one in told(output, "n1", Release)] == [assign.epoch], "both are over"


def test_a_failure_that_nobody_asked_about_is_released(bench: Bench) -> None:
    """The scheduler before this one assigned it; the node keeps its room until it is told."""
    output = bench.node("n1", Status(1, "old.x", 9, FAILED, "bad"))
    assert [one.epoch for one in told(output, "n1", Release)] == [9]
    bench.node("n1", Status(2, "old.x", 9, FAILED, "bad"))
    assert told(bench.passes(1200, "n1"), "n1", Release), "it has not been given up yet"
    bench.node("n1", Status(3, "old.x", 9, InstanceState.STOPPED))
    assert not told(bench.passes(3000, "n1"), "n1", Release)


@pytest.mark.parametrize("failed_first", [True, False])
def test_what_has_failed_is_not_adopted(failed_first: bool) -> None:
    """A scheduler without memory finds a copy that serves, and the rest of a move that failed."""
    bench = Bench(epoch=2)
    born = [("n2", Holding("svc.a", 8, FAILED, 1)), ("n1", Holding("svc.a", 7, READY, 1))]
    for node, holding in born if failed_first else born[::-1]:
        bench.born(node, holdings=(holding,))
    output = bench.anchor(grant("n1", "n2", first=33, current_node="n1", current_epoch=7))
    output.extend(bench.anchor(AnchorWelcome("ta-main", 2, 1)))
    assert routed_to(output) == "n1"
    assert [one.epoch for one in told(output, "n2", Release)] == [8]
    assert not told(output, "n1", Release)


@pytest.mark.parametrize("late", ["n1", "n2"])
def test_a_move_under_way_is_adopted_as_one(late: str) -> None:
    """The copy that serves goes on until the newer one is ready, whoever speaks first."""
    bench = Bench(epoch=2)
    bench.anchor(grant("n1", "n2", first=33, current_node="n1", current_epoch=7))
    bench.anchor(AnchorWelcome("ta-main", 2, 1))
    held = {
        "n1": Holding("svc.a", 7, READY, 1),
        "n2": Holding("svc.a", 8, InstanceState.FETCHING, 1),
    }
    output = Output()
    for node in sorted(held, key=lambda one: one == late):
        output.extend(bench.born(node, holdings=(held[node],)))
    assert routed_to(output) == "n1"
    assert not said(output, Release)
    assert not said(output, Assign)
    output = bench.ready("n2", 8)
    assert routed_to(output) == "n2"
    assert [one.epoch for one in told(output, "n1", Release)] == [7]


def test_a_node_that_returns_with_its_failure_does_not_hold_the_task(bench: Bench) -> None:
    bench.anchor(grant("n1"))
    bench.node("n1", Status(1, "svc.a", 1, FAILED, "no memory"))
    bench.born("n1", holdings=(Holding("svc.a", 1, FAILED, 1),))
    output = bench.anchor(grant("n1", first=33))
    assert [one.epoch for one in told(output, "n1", Assign)] == [33]


@pytest.mark.parametrize("state", [InstanceState.FETCHING, READY])
def test_a_release_that_is_overtaken_is_not_repeated_for_ever(
    bench: Bench, state: InstanceState
) -> None:
    epoch = running(bench, "n1")
    bench.anchor(EnvelopeRevoke("svc.a", 1, "over"))
    bench.anchor(grant("n1", generation=2, first=33))
    bench.node("n1", Status(2, "svc.a", 33, state, generation=2))
    again = told(bench.passes(3000, "n1", "n2", "n3"), "n1", Release)
    assert epoch not in [one.epoch for one in again]


def test_a_drained_node_is_emptied_when_a_spare_comes_back(bench: Bench) -> None:
    running(bench, "n1", "n2")
    bench.passes(4000, "n1", "n3")
    output = drain(bench, "n1")
    assert not said(output, Assign)
    output = bench.born("n2")
    output.extend(bench.passes(400, "n1", "n2", "n3"))
    assert told(output, "n2", Assign)


def test_a_node_that_is_emptied_still_hears_what_it_was_asked_to_prepare(bench: Bench) -> None:
    """A new generation, assigned and lost on the way; then the node is drained."""
    running(bench, "n1", "n2")
    [lost] = told(bench.anchor(grant("n1", "n2", generation=2, first=33)), "n1", Assign)
    drain(bench, "n1")
    output = bench.passes(2000, "n1", "n2", "n3")
    assert [one.epoch for one in told(output, "n1", Assign)][:1] == [lost.epoch]
    output = bench.ready("n1", lost.epoch, 2)
    assert [one.generation for one in told(output, "n2", Assign)] == [2]


def test_a_task_in_danger_asks_for_epochs(bench: Bench) -> None:
    bench.anchor(msgspec.structs.replace(grant("n1", "n2"), epoch_to=1))
    bench.ready("n1", 1)
    bench.node("n2", LoadReport(1, 10.0))
    [escalation] = said(bench.lasts("n1", LoadReport(1, 97.0)), Escalation)
    assert escalation.epoch_seen == 1
    assert not escalation.attempts, "no node has failed the task"


def test_what_strangers_say_is_kept_within_bounds(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "MAX_NODES", 5)
    monkeypatch.setattr(releases, "MAX_RELEASES", 5)
    for number in range(20):
        bench.born(f"stranger-{number}")
        bench.node("n1", Status(1, f"made.up-{number}", 1, READY))
    assert len(bench.ts.nodes) == 5
    assert bench.ts.counters["too_many_nodes"] == 18
    assert len(bench.ts.table.releases) == 5
    assert told(bench.born("n1"), "n1", Release) == []
    assert bench.ts.nodes.state("n1") == "online", "who was known stays so"


def test_a_request_that_its_plan_makes_too_large_is_refused(bench: Bench) -> None:
    """Larger than its channel it would not leave the controller, and end it instead."""
    running(bench, "n1")

    def ask(*sizes: int) -> Output:
        values = {
            name: Tensor(Dtype.UINT8, (size,), bytes(size))
            for name, size in zip("xyz", sizes, strict=False)
        }
        invoke = Invoke("r", "svc", 1000, values, "tona/1/cell/client/c/reply")
        return bench.feed(Received("c", 1, 0, "default", "r", invoke))

    [result] = said(whole(bench, ask, INLINE_MAX_BYTES), Result)
    assert result.failure.code is FailureCode.BAD_INPUT
    [sent] = ask(5).sends
    assert sent.to == ToInvoke("n1")


def whole(bench: Bench, ask: Any, size: int) -> Output:
    """Ask with as much as fits a frame without its plan, from a task that takes three values."""
    route = bench.ts.serving.routes["svc"]
    assert route.plan is not None
    [step] = route.plan.steps
    inputs = tuple(msgspec.structs.replace(step.inputs[0], source_port=name) for name in "xyz")
    step = msgspec.structs.replace(step, inputs=inputs)
    plan = msgspec.structs.replace(route.plan, steps=(step,))
    bench.ts.serving.routes["svc"] = msgspec.structs.replace(route, plan=plan)
    output: Output = ask(size, size, size - 700)
    frame_bytes = 2 * size + size - 700
    assert frame_bytes < INVOCATION_MAX_BYTES
    bench.ts.serving.routes["svc"] = route
    return output


BODIES: tuple[Body, ...] = (
    LinkReport(1, "eth0", "wired", carrier=False),
    Status(2**53, "svc.a", 2**53, InstanceState.DRAINING),
    Status(0, "svc.a", 0, FAILED),
    Status(0, "svc.b", 2**53, InstanceState.RESTARTING),
)


@pytest.mark.parametrize("body", BODIES)
def test_nothing_a_node_says_trips_the_scheduler(bench: Bench, body: Body) -> None:
    running(bench, "n1", "n2")
    for node in ("n1", "n2", "n3", "n4"):
        bench.node(node, body)
    bench.passes(10_000, "n3")


def test_a_drain_outlives_the_scheduler_that_asked_for_it() -> None:
    bench = Bench(epoch=2)
    bench.incarnations["n1"] = 1
    drained = Birth("1", "boot", INVENTORY, (Holding("svc.a", 7, READY, 1),), (), "drained")
    bench.node("n1", drained)
    bench.born("n2")
    output = bench.anchor(grant("n1", "n2", first=33, current_node="n1", current_epoch=7))
    assert bench.ts.nodes.state("n1") == "draining"
    assert told(output, "n2", Assign)


def test_a_drained_node_that_has_forgotten_is_told_again(bench: Bench) -> None:
    drain(bench, "n1")
    assert told(bench.born("n1"), "n1", Drain)
    assert not told(bench.born("n2"), "n2", Drain)


def test_a_drained_node_that_was_lost_comes_back_drained(bench: Bench) -> None:
    output = drain(bench, "n1")
    records = [one for one in output.records if one.kind == NODE]
    bench.node("n1", Death("end", orderly=True))
    assert bench.ts.nodes.state("n1") == "lost"
    assert told(bench.born("n1"), "n1", Drain) == [Drain("drained by an operator")]
    assert bench.ts.nodes.state("n1") == "draining"
    later = Bench(epoch=2)
    later.ts.restore(records, later.now_ms)
    later.born("n1")
    assert later.ts.nodes.state("n1") == "draining"


def test_a_node_that_is_resumed_takes_tasks_whether_it_heard_that_or_not(bench: Bench) -> None:
    drain(bench, "n1")
    output = drain(bench, "n1", "node.resume")
    assert output.answers[0].value == {"node": "n1", "state": "online"}
    assert told(output, "n1", Drain) == [Drain(over=True)]
    deaf = Birth("1", "boot", INVENTORY, (), (), "drained by an operator")
    assert told(bench.node("n1", deaf), "n1", Drain) == [Drain(over=True)]
    assert bench.ts.nodes.state("n1") == "online"


def test_an_envelope_without_nodes_is_no_envelope(bench: Bench) -> None:
    bench.anchor(msgspec.structs.replace(grant("n1"), nodes=()))
    assert bench.ts.counters["empty_grant"] == 1


def test_what_goes_on_is_reported_again_after_a_grant_and_what_strays_is_not(bench: Bench) -> None:
    running(bench, "n1", "n2")
    assert not said(bench.passes(500, "n1", "n2"), TaskReport)
    again = bench.anchor(grant("n1", "n2", first=100))
    [report] = said(again, TaskReport)
    assert (report.node, report.state) == ("n1", READY)
    bench.anchor(grant("n2", first=200))
    assert not [one for one in said(bench.passes(100), TaskReport) if one.node == "n1"]
