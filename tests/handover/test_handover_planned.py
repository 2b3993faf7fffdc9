"""A handover by hand, from the operator's word to the node's: the planned path."""

import pytest
from cells_bench import CellsBench

from controller.handover_records import HandoverState
from protocols.errors import Blame
from protocols.messages import (
    Assign,
    EnvelopeGrant,
    HandoverAnswer,
    HandoverCommand,
    HandoverComplete,
    HandoverFailed,
    HandoverRequest,
    HandoverTimes,
    Neighbours,
    Release,
)


@pytest.fixture
def bench() -> CellsBench:
    bench = CellsBench("a", "b")
    bench.born("n", "a")
    bench.order("a", spares=0)
    bench.passes(1000, "n")
    assert bench.task().node == "n"
    return bench


def test_nodes_are_told_which_cells_there_are(bench: CellsBench) -> None:
    [*_, told] = bench.told("n", Neighbours)
    assert [one.cell for one in told.cells] == ["b"]
    assert told.cells[0].broker_urls == ("mqtt://b:1883",)


def test_a_target_is_asked_before_the_node_is_told(bench: CellsBench) -> None:
    bench.hand_over("n", "b")
    [request] = bench.said("ta", HandoverRequest, "ts-b")
    [answer] = bench.said("ts-b", HandoverAnswer)
    [command] = bench.told("n", HandoverCommand)
    assert answer.admitted
    assert request.handover == command.handover
    assert (command.target.cell, command.incarnation) == ("b", bench.nodes["n"][1])
    [record] = bench.handovers("n")
    assert record.state is HandoverState.COMMANDED
    assert record.by_hand
    assert bench.answers[-1].value == record


def test_the_tasks_follow_the_node_without_a_restart(bench: CellsBench) -> None:
    before = bench.task()
    assigned = len(bench.told("n", Assign))
    bench.hand_over("n", "b")
    [command] = bench.told("n", HandoverCommand)
    bench.moves("n", "b", handover=command.handover)
    task = bench.task()
    assert (task.scheduler, task.node, task.epoch) == ("ts-b", "n", before.epoch)
    [*_, grant] = bench.said("ta", EnvelopeGrant, "ts-b")
    assert grant.epoch_from > before.epoch_high
    assert len(bench.told("n", Assign)) == assigned
    assert not bench.told("n", Release)
    assert bench.owners() == ["ts-b"]
    [complete] = bench.told("n", HandoverComplete)
    assert complete.incarnation == bench.nodes["n"][1]
    [record] = bench.handovers("n")
    assert record.state is HandoverState.COMPLETED
    assert record.tasks == ("svc.a",)
    assert list(record.phases) == ["preparing", "commanded", "switching", "ownerless", "completed"]
    at = bench.nodes["n"][1]
    for gap_ms, again in ((40.0, 2), (50.0, 3)):
        times = HandoverTimes(
            "h",
            at,
            "a",
            "b",
            "",
            gap_ms=gap_ms,
            spacing_ms=20.0,
            asked_again=again,
            client_gap_ms=45.0,
        )
        bench.say("n", times)
        bench.run()
    [record] = bench.handovers("n")
    assert (record.gap_ms, record.asked_again, record.said_again) == (40.0, 2, 0), "told once"
    assert record.client_gap_ms == 45.0
    crossing = bench.store["crossing", "ta/a>b"].value
    assert (crossing.gap_longest_ms, crossing.asked_again) == (40.0, 2)
    assert crossing.gap_p99_ms == 40.0


def test_clients_of_both_cells_are_told_where_the_task_is_served(bench: CellsBench) -> None:
    bench.hand_over("n", "b")
    bench.moves("n", "b")
    [here], [there] = bench.route("a").plan.steps, bench.route("b").plan.steps
    assert (here.node, here.epoch, here.cell) == ("n", bench.task().epoch, "b")
    assert (there.node, there.epoch, there.cell) == ("n", bench.task().epoch, "")


def test_a_node_with_one_radio_leaves_first_and_is_not_replaced(bench: CellsBench) -> None:
    bench.born("m", "a")
    bench.hand_over("n", "b")
    bench.leaves("n", "b")
    bench.passes(6000, "m")
    assert bench.task().node == "n"
    bench.moves("n", "b", attached=False)
    assert bench.task().scheduler == "ts-b"
    assert bench.handovers("n")[0].state is HandoverState.COMPLETED


def test_a_node_that_goes_on_and_comes_back_takes_its_task_along() -> None:
    bench = CellsBench("a", "b", "c")
    bench.born("n", "a")
    bench.order("a", spares=0)
    bench.passes(1000, "n")
    epoch = bench.task().epoch
    for cell in ("b", "c", "a", "b", "a"):
        bench.moves("n", cell)
        bench.passes(300, "n")
        assert bench.task().scheduler == f"ts-{cell}"
        assert bench.owners() == [f"ts-{cell}"]
    assert bench.task().epoch == epoch
    assert [one.state.value for one in bench.handovers("n")] == ["completed"] * 5
    assert bench.route("c").plan.steps[0].cell == "a"


@pytest.mark.parametrize(
    ("node", "cell", "why"),
    [
        ("x", "b", "there is no node 'x'"),
        ("n", "a", "is served by cell 'a' already"),
        ("n", "z", "there is no cell 'z' that 'n' could go to; there are: b"),
    ],
)
def test_what_cannot_be_handed_over_is_said_in_one_sentence(
    bench: CellsBench, node: str, cell: str, why: str
) -> None:
    bench.hand_over(node, cell)
    assert why in bench.answers[-1].error


def test_one_handover_of_a_node_is_under_way_at_a_time(bench: CellsBench) -> None:
    bench.hand_over("n", "b")
    [command] = bench.told("n", HandoverCommand)
    bench.hand_over("n", "b")
    answer = bench.answers[-1]
    assert (answer.busy, answer.blame) == (True, Blame.ENVIRONMENT)
    assert answer.error == (
        f"handover {command.handover} of node 'n' to b is commanded: ask again when it has ended"
    )
    bench.moves("n", "b", handover=command.handover)
    bench.hand_over("n", "a")
    assert not bench.answers[-1].error


def test_a_lost_node_is_not_handed_over(bench: CellsBench) -> None:
    bench.passes(5000)
    bench.hand_over("n", "b")
    assert bench.answers[-1].error == (
        "node 'n' is lost: only one that is online can be handed over"
    )


def test_a_target_that_does_not_answer_is_given_up(bench: CellsBench) -> None:
    bench.cut.add("ts-b")
    bench.hand_over("n", "b")
    bench.passes(2500, "n")
    assert bench.answers[-1].error == "node 'n' is not handed over: b does not answer"
    assert bench.handovers("n")[0].state is HandoverState.REFUSED
    assert not bench.told("n", HandoverCommand)


def test_a_node_that_does_not_come_stays_where_it_is(bench: CellsBench) -> None:
    bench.hand_over("n", "b")
    [command] = bench.told("n", HandoverCommand)
    bench.say("n", HandoverFailed(command.handover, "n", "b is not reached"))
    bench.run()
    [record] = bench.handovers("n")
    assert (record.state, record.reason) == (HandoverState.FAILED, "b is not reached")
    bench.hand_over("n", "b")
    bench.passes(12_000, "n")
    assert bench.handovers("n")[1].reason == "it has not come to b in time"
    assert bench.owners() == ["ts-a"]
