"""Several schedulers: nodes change cells, services lie in one, and move as a whole."""

from typing import Any

import pytest
from anchor_bench import MEMORY, Bench, said
from msgspec import structs
from tests_support import INVENTORY

from controller.anchor.decider import Settings
from controller.anchor.escalations import COOLDOWN_MS
from controller.anchor.placing import TRANSFER_MS
from controller.decider import Linked, Output
from controller.records import StoryRecord, TaskState
from protocols.messages import (
    AnchorSummary,
    AnchorWelcome,
    Elsewhere,
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    NodeSummary,
    Relinquished,
    SchedulerHello,
    ServiceDelete,
    ServiceReport,
)
from protocols.messages.hierarchy import NodeState, ServiceState
from protocols.messages.mobility import CellPoint

A, B = "ts-a", "ts-b"


@pytest.fixture
def bench() -> Bench:
    bench = Bench(Settings(schedulers=(A, B), side="radio", cells=("a", "b")))
    for name in ("a1", "a2"):
        bench.tight(name, 2, A)
    return bench


def runs(bench: Bench, *names: str, spares: int = 0) -> None:
    for grant in said(bench.order(1, *names, spares=spares), EnvelopeGrant):
        bench.ready(grant.nodes[0], grant.epoch_from, task=grant.spec.task, by=A)


def moves(bench: Bench) -> Output:
    """Complain until the anchor moves the service to the other cell."""
    output = Output()
    for number in range(6):
        bench.passes(COOLDOWN_MS)
        question = Escalation(f"q{number}", "svc.a", 1, "slow", indicator="latency_ms")
        output = bench.hear(question, bench.task().scheduler)
        [answer] = said(output, EscalationAnswer)
        if "cell" in answer.reason:
            return output
    return output


def grants(output: Output) -> dict[str, Any]:
    return {one.spec.task: one for one in said(output, EnvelopeGrant)}


def test_a_grant_goes_to_the_scheduler_of_the_cell(bench: Bench) -> None:
    bench.tight("b1", 1, B)
    output = bench.order(1, "a", "b", "c", spares=0)
    assert len(said(output, EnvelopeGrant, A)) == 3
    assert not said(output, EnvelopeGrant, B)
    assert bench.ta.book.scheduler_of("svc") == A


def test_a_service_that_fits_only_across_two_cells_waits(bench: Bench) -> None:
    bench.tight("b1", 4, B)
    output = bench.order(1, "a", "b", "c", "d", "e", spares=0)
    assert not said(output, EnvelopeGrant)
    assert bench.task().state is TaskState.WAITING
    output = bench.tight("b2", 1, B)
    assert len(said(output, EnvelopeGrant, B)) == 5


def test_the_word_of_a_stranger_about_nodes_does_not_count(bench: Bench) -> None:
    bench.node("x1", scheduler="ts-x")
    assert "x1" not in bench.ta.book.nodes
    assert bench.ta.counters["unknown_scheduler"] == 1


def test_a_service_moves_as_a_whole_make_before_break(bench: Bench) -> None:
    runs(bench, "a", "b")
    for name in ("b1", "b2"):
        bench.tight(name, 2, B)
    before = bench.reserved()
    old = {name: bench.task(f"svc.{name}") for name in "ab"}
    output = moves(bench)
    assert len(said(output, EnvelopeGrant, B)) == 2
    assert not said(output, EnvelopeRevoke), "the old cell serves on"
    new = grants(output)
    for name in "ab":
        task = bench.task(f"svc.{name}")
        assert task.state is TaskState.TRANSFERRING
        assert new[f"svc.{name}"].epoch_from > old[name].epoch_high
        assert new[f"svc.{name}"].current_node == ""
    both = bench.reserved()
    assert {node: both[node] for node in before} == before, "both copies are reserved"
    assert sum(both.values()) > sum(before.values())
    assert bench.ta.book.scheduler_of("svc") == B
    first = new["svc.a"]
    output = bench.ready(first.nodes[0], first.epoch_from, task="svc.a", by=B)
    assert not said(output, EnvelopeRevoke), "one task alone makes no service"
    second = new["svc.b"]
    output = bench.ready(second.nodes[0], second.epoch_from, task="svc.b", by=B)
    assert {one.task for one in said(output, EnvelopeRevoke, A)} == {"svc.a", "svc.b"}
    assert set(bench.reserved()) <= {"b1", "b2"}
    assert {bench.task(f"svc.{name}").state for name in "ab"} == {TaskState.RUNNING}


def test_who_still_serves_a_task_that_leaves_hears_where_the_others_are(bench: Bench) -> None:
    """It begins anew before the next one is ready: its clients ask it for the whole service."""
    runs(bench, "a", "b")
    for name in ("b1", "b2"):
        bench.tight(name, 2, B)
    moves(bench)
    gone = structs.replace(bench.task(), leaving=None, state=TaskState.RUNNING, node="b1")
    bench.ta.book.put(gone, "test")
    hello = SchedulerHello(A, 2, CellPoint("a", A, ("mqtt://a",)))
    assert [one.spec.task for one in said(bench.hear(hello, A), Elsewhere, A)] == ["svc.a"]


def test_a_transfer_that_takes_too_long_returns(bench: Bench) -> None:
    runs(bench, "a")
    bench.tight("b1", 2, B)
    moves(bench)
    bench.restart()
    for name in ("a1", "a2"):
        bench.tight(name, 2, A)
    bench.tight("b1", 2, B)
    output = bench.passes(TRANSFER_MS)
    assert [one.task for one in said(output, EnvelopeRevoke, B)] == ["svc.a"]
    [grant] = said(output, EnvelopeGrant, A)
    assert grant.nodes[0] == grant.current_node == bench.task().node
    assert bench.task().state is TaskState.RUNNING
    assert bench.reserved() == {bench.task().node: MEMORY}


def test_a_transfer_that_fails_returns_at_once(bench: Bench) -> None:
    runs(bench, "a")
    bench.tight("b1", 2, B)
    moves(bench)
    output = bench.hear(Escalation("f", "svc.a", 1, "no node can run it"), B)
    assert not said(output, EscalationAnswer, B)[0].granted
    assert said(output, EnvelopeRevoke, B)
    assert said(output, EnvelopeGrant, A)
    assert bench.task().scheduler == A


def test_what_had_arrived_returns_too_and_is_heard_there(bench: Bench) -> None:
    runs(bench, "a", "b")
    for name in ("b1", "b2"):
        bench.tight(name, 2, B)
    home, epoch = bench.task("svc.a").node, bench.task("svc.a").epoch
    new = grants(moves(bench))["svc.a"]
    bench.ready(new.nodes[0], new.epoch_from, task="svc.a", by=B)
    assert bench.task("svc.a").state is TaskState.RUNNING
    bench.lost(new.nodes[0], new.epoch_from, task="svc.a", by=B)
    assert bench.task("svc.a").state is TaskState.TRANSFERRING
    bench.passes(TRANSFER_MS)
    assert (bench.task("svc.a").node, bench.task("svc.a").scheduler) == (home, A)
    bench.lost(home, epoch, task="svc.a", by=A)
    assert bench.task("svc.a").state is TaskState.MOVING


def half_moves(bench: Bench) -> Output:
    """Have a service move of which one task serves, and the other is let go first."""
    [first, _] = said(bench.order(1, "a", "b", spares=0), EnvelopeGrant)
    bench.ready(first.nodes[0], first.epoch_from, by=A)
    bench.tight("b1", 2, B)
    output = moves(bench)
    assert (bench.task("svc.b").scheduler, bench.task("svc.b").heir) == (A, B)
    return output


def lets_go(bench: Bench, output: Output) -> Output:
    [revoke] = said(output, EnvelopeRevoke, A)
    return bench.hear(Relinquished("svc.b", 1, None, 0, 0, revoke.leased), A)


@pytest.mark.parametrize("first", ["let go", "given up"])
def test_what_did_not_serve_yet_returns_with_the_others(bench: Bench, first: str) -> None:
    output = half_moves(bench)
    if first == "let go":
        [grant] = said(lets_go(bench, output), EnvelopeGrant, B)
        assert grant.spec.task == "svc.b"
        assert not bench.task("svc.b").attached, "its node has gone nowhere"
    bench.hear(Escalation("f", "svc.a", 1, "no node can run it"), B)
    for name in ("svc.a", "svc.b"):
        task = bench.task(name)
        assert (task.scheduler, task.heir, task.leaving) == (A, "", None)
        assert set(task.nodes) <= {"a1", "a2"}


def test_the_old_cell_serves_until_what_is_let_go_is_ready_too(bench: Bench) -> None:
    output = half_moves(bench)
    grant = grants(output)["svc.a"]
    ready = bench.ready("b1", grant.epoch_from, task="svc.a", by=B)
    assert not said(ready, EnvelopeRevoke), "one task alone makes no service"
    grant = grants(lets_go(bench, output))["svc.b"]
    ready = bench.ready("b1", grant.epoch_from, task="svc.b", by=B)
    assert [one.task for one in said(ready, EnvelopeRevoke, A)] == ["svc.a"]


def test_a_task_that_returned_is_let_go_too_late(bench: Bench) -> None:
    output = half_moves(bench)
    for name in ("a1", "a2"):
        bench.tight(name, int(name == bench.task().leaving.node), A)  # type: ignore[union-attr]
    bench.hear(Escalation("f", "svc.a", 1, "no node can run it"), B)
    before = bench.task("svc.b")
    assert before.state is TaskState.WAITING
    assert not said(lets_go(bench, output), EnvelopeGrant)
    assert bench.task("svc.b") == before


def test_who_only_knows_that_a_node_is_gone_does_not_get_what_is_placed_there(
    bench: Bench,
) -> None:
    output = half_moves(bench)
    bench.restart()
    bench.node("b1", NodeState.LOST, scheduler=A)
    lets_go(bench, output)
    assert bench.task("svc.b").scheduler == B


def test_an_order_does_not_end_a_transfer(bench: Bench) -> None:
    runs(bench, "a")
    bench.tight("b1", 3, B)
    new = grants(moves(bench))["svc.a"]
    output = bench.order(2, "a", "b", spares=0)
    assert not said(output, EnvelopeRevoke)
    assert bench.task().state is TaskState.TRANSFERRING
    output = bench.ready(new.nodes[0], new.epoch_from, by=B)
    assert not said(output, EnvelopeRevoke), "svc.b has no place yet"
    output = bench.passes(TRANSFER_MS)
    assert said(output, EnvelopeGrant, A), "so it returns"
    assert {bench.task(f"svc.{name}").scheduler for name in "ab"} == {A}
    assert bench.task("svc.b").state is TaskState.PLACED


def test_the_old_cell_is_heard_while_the_new_one_prepares(bench: Bench) -> None:
    runs(bench, "a")
    bench.tight("b1", 2, B)
    epoch = bench.task().epoch
    moves(bench)
    bench.lost(bench.task().node, epoch, by=A)
    assert bench.task().state is TaskState.TRANSFERRING
    output = bench.hear(SchedulerHello(A, 2), A)
    [grant] = said(output, EnvelopeGrant, A)
    assert grant.epoch_to < grant.epoch_from, "no further epochs for a copy that is left"
    assert grant.current_epoch == epoch
    assert said(output, AnchorWelcome)[0].grants == 1


def test_a_deleted_service_leaves_both_cells(bench: Bench) -> None:
    runs(bench, "a")
    bench.tight("b1", 2, B)
    moves(bench)
    output = bench.hear(ServiceDelete("svc", 1), "namo-main")
    assert said(output, EnvelopeRevoke, A)
    assert said(output, EnvelopeRevoke, B)
    assert not bench.reserved()


def test_a_node_belongs_to_the_cell_it_came_to_last(bench: Bench) -> None:
    bench.node("a1", scheduler=B, incarnation=2)
    assert bench.ta.book.nodes["a1"].scheduler == B
    bench.node("a1", NodeState.LOST, scheduler=A)
    assert bench.ta.book.nodes["a1"].state is NodeState.ONLINE
    bench.node("a1", scheduler=A, incarnation=1)
    assert bench.ta.book.nodes["a1"].scheduler == B, "a late word"


def test_a_service_follows_its_node_without_a_second_copy(bench: Bench) -> None:
    runs(bench, "a")
    home, epoch = bench.task().node, bench.task().epoch
    output = bench.node(home, scheduler=B, incarnation=2)
    [revoke] = said(output, EnvelopeRevoke, A)
    assert revoke.transferred
    assert not said(output, EnvelopeGrant), "one scheduler or none"
    gone = Relinquished("svc.a", 1, home, epoch, epoch, revoke.leased)
    output = bench.hear(gone, A)
    [grant] = said(output, EnvelopeGrant, B)
    assert (grant.nodes, grant.current_node, grant.current_epoch) == ((home,), home, epoch)
    assert bench.task().scheduler == B


def test_a_service_that_follows_its_node_is_not_moved_for_its_quality(bench: Bench) -> None:
    runs(bench, "a")
    home, epoch = bench.task().node, bench.task().epoch
    bench.tight("b1", 2, B)
    [revoke] = said(bench.node(home, scheduler=B, incarnation=2), EnvelopeRevoke, A)
    output = bench.hear(Escalation("q", "svc.a", 1, "slow", indicator="latency_ms"), A)
    assert not said(output, EscalationAnswer)[0].granted
    assert not said(output, EnvelopeGrant)
    assert bench.task().leaving is None
    gone = Relinquished("svc.a", 1, home, epoch, epoch, revoke.leased)
    [grant] = said(bench.hear(gone, A), EnvelopeGrant, B)
    assert (grant.current_node, grant.current_epoch) == (home, epoch)


def test_namo_hears_of_the_fleet_coarsely(bench: Bench) -> None:
    runs(bench, "a")
    bench.tight("b1", 3, B)
    bench.tight("b1", 3, B)
    bench.node("a2", NodeState.LOST, A)
    summary = said(bench.passes(10_000), AnchorSummary, "namo-main")[-1]
    assert (summary.side, summary.cells) == ("radio", ("a", "b"))
    assert (summary.nodes, summary.lost) == (2, 1)
    assert summary.cpu_count == 8
    assert summary.executors == {"wasm": 2, "onnx": 2}
    assert summary.task_memory_free_bytes == 4 * MEMORY, "reserved is not free"
    assert summary.largest_free_bytes == 3 * MEMORY


def test_namo_begins_anew_and_hears_everything(bench: Bench) -> None:
    runs(bench, "a")
    output = bench.feed(Linked("namo-main"))
    [report] = said(output, ServiceReport)
    assert report.state is ServiceState.RUNNING
    assert report.epoch_high == bench.task().epoch_high
    assert said(bench.passes(0), AnchorSummary)


def test_the_report_of_another_scheduler_is_stale(bench: Bench) -> None:
    runs(bench, "a")
    bench.ready("b1", bench.task().epoch, by=B)
    assert bench.task().node in ("a1", "a2")
    assert bench.ta.counters["stale_report"] == 1


def test_a_cell_that_cannot_take_a_service_is_refused_with_what_excludes_its_nodes(
    bench: Bench,
) -> None:
    runs(bench, "a")
    for number in range(6):
        bench.passes(COOLDOWN_MS)
        bench.hear(Escalation(f"q{number}", "svc.a", 1, "slow", indicator="latency_ms"), A)
    asked = [one for one in bench.store.values() if isinstance(one.value, StoryRecord)]
    reasons = [one.value.detail for one in asked]
    found = bench.ta.placing.search.another_cell("svc")
    assert found.plan["svc.a"].reason == (
        "none of 2 nodes may be used: is in the cell of ts-a, which it is to leave (2)"
    )
    assert not any("has joined" in one for one in reasons)


def test_a_forgotten_node_counts_no_more() -> None:
    bench = Bench()
    bench.node("n1")
    bench.node("n2", NodeState.LOST)
    assert said(bench.passes(6000), AnchorSummary)[-1].lost == 1
    bench.hear(NodeSummary("n2", NodeState.LOST, 0, INVENTORY, forgotten=True))
    assert "n2" not in bench.ta.book.nodes
    assert said(bench.passes(1000), AnchorSummary)[-1].lost == 0
    bench.node("n2", incarnation=0)
    assert said(bench.passes(1000), AnchorSummary)[-1].nodes == 2


def test_a_cell_that_a_node_has_left_cannot_have_it_forgotten() -> None:
    bench = Bench(Settings(schedulers=("ts-1", "ts-2")))
    bench.node("n1", scheduler="ts-1")
    bench.node("n1", scheduler="ts-2", incarnation=2)
    bench.hear(NodeSummary("n1", NodeState.LOST, 0, INVENTORY, forgotten=True), "ts-1")
    assert bench.ta.book.usable("n1", "ts-2")
