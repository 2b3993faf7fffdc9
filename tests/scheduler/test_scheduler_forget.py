"""Nodes that are gone for good: an operator has them forgotten."""

import pytest
from scheduler_bench import Bench, drain, running, said, told
from tests_support import INVENTORY

from controller.decider import Output, Record, View
from controller.records import FLEET, NODE
from protocols.errors import Blame
from protocols.messages import Assign, Death, NodeSummary, RebirthRequest, Welcome
from protocols.messages.hierarchy import NodeState


@pytest.fixture
def bench() -> Bench:
    one = Bench()
    one.born("n1", "n2", "n3")
    return one


def forget(bench: Bench, node: str) -> Output:
    return drain(bench, node, "node.forget")


def lose(bench: Bench, node: str) -> None:
    bench.node(node, Death("retired", orderly=True))
    assert bench.ts.nodes.state(node) is NodeState.LOST


def test_a_lost_node_is_forgotten_for_good(bench: Bench) -> None:
    lose(bench, "n1")
    output = forget(bench, "n1")
    assert output.answers[0].value == {"node": "n1"}
    assert Record(NODE, "n1", None, "test") in output.records
    assert View(FLEET, "n1", None) in output.views
    assert not any(one.key == "n1" and one.value for one in output.views)
    gone = NodeSummary("n1", NodeState.LOST, 0, INVENTORY, forgotten=True)
    assert said(output, NodeSummary)[-1] == gone
    assert "n1" not in bench.ts.nodes
    assert not any(one.key == "n1" for one in bench.passes(1000, "n2", "n3").views)
    assert forget(bench, "n1").answers[0].error == "there is no node 'n1' here"


def test_the_others_keep_what_is_known_of_them(bench: Bench) -> None:
    bench.passes(1000, "n1", "n2", "n3")
    lose(bench, "n1")
    before = {
        one: (bench.ts.nodes.state(one), bench.ts.nodes.silent_ms(slot, bench.now_ms))
        for one, slot in bench.ts.nodes.slots.items()
    }
    forget(bench, "n1")
    del before["n1"]
    assert before == {
        one: (bench.ts.nodes.state(one), bench.ts.nodes.silent_ms(slot, bench.now_ms))
        for one, slot in bench.ts.nodes.slots.items()
    }
    assert [bench.ts.nodes.names[slot] for slot in bench.ts.nodes.slots.values()] == [*before]
    # Who falls silent is found by its slot.
    bench.passes(10_000, "n2")
    assert bench.ts.nodes.state("n2") is NodeState.ONLINE
    assert bench.ts.nodes.state("n3") is NodeState.LOST


@pytest.mark.parametrize("how", ["online", "draining"])
def test_a_node_that_lives_is_not_forgotten(bench: Bench, how: str) -> None:
    if how == "draining":
        drain(bench, "n1")
    (answer,) = forget(bench, "n1").answers
    assert answer.blame is Blame.USER
    assert answer.error == (
        f"node 'n1' is {how}: end its agent first, it can be forgotten when it is lost"
    )
    assert "n1" in bench.ts.nodes


def test_a_node_that_holds_a_task_is_not_forgotten(bench: Bench) -> None:
    bench = Bench()
    bench.born("n1")
    running(bench, "n1")
    lose(bench, "n1")
    assert bench.ts.table.on("n1") == ("svc.a",)
    (answer,) = forget(bench, "n1").answers
    assert answer.error == (
        "node 'n1' still has the place of task 'svc.a': "
        "let it move to another node, or delete its use case, first"
    )


def test_a_node_of_an_earlier_life_of_the_scheduler_is_forgotten(bench: Bench) -> None:
    records = [Record(NODE, key, one, "test") for key, one in bench.ts.fleet.recorded.items()]
    later = Bench(epoch=2)
    later.ts.restore(records, later.now_ms)
    output = forget(later, "n1")
    assert output.answers[0].value == {"node": "n1"}
    assert Record(NODE, "n1", None, "test") in output.records


def test_born_again_it_is_simply_known_again(bench: Bench) -> None:
    drain(bench, "n1")
    lose(bench, "n1")
    forget(bench, "n1")
    # A word without a birth is answered by asking for it.
    later = bench.passes(200, "n1")
    assert told(later, "n1", RebirthRequest)
    bench.incarnations["n1"] = 0
    output = bench.born("n1")
    assert told(output, "n1", Welcome)
    assert bench.ts.nodes.state("n1") is NodeState.ONLINE, "the wish to drain it was forgotten too"
    assert [one.key for one in output.learnt if one.kind == NODE] == ["n1"]
    running(bench, "n1")
    assert said(Output(sends=bench.seen), Assign)
