"""Artifacts that can never run: given up after two nodes, until the generation changes."""

import pytest
from anchor_bench import Bench, said

from controller.anchor.placing import RETRY_MAX_MS
from controller.anchor.stories import FIRST_KEPT, Stories
from controller.decider import Output
from controller.desk import Desk
from controller.records import STORY_LENGTH, StoryRecord, TaskState
from protocols.errors import Blame
from protocols.messages import (
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    ServiceReport,
    TaskReport,
)
from protocols.messages.hierarchy import Attempt, NodeState, ServiceState
from protocols.messages.task import InstanceState

NO_WASM = "the artifact is no Wasm module: its first bytes differ"


def failed(
    bench: Bench, *nodes: str, number: int = 1, generation: int = 1, blame: Blame = Blame.USER
) -> Output:
    """Have the scheduler say that these nodes of the envelope could not run the task."""
    attempts = tuple(Attempt(f"run on {node}", NO_WASM, blame) for node in nodes)
    problem = "no node of the envelope can run the task"
    return bench.hear(Escalation(f"e{number}", "svc.a", generation, problem, attempts, number))


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    for name in ("n1", "n2", "n3"):
        bench.node(name)
    return bench


def test_an_artifact_that_fails_on_two_nodes_is_given_up(bench: Bench) -> None:
    bench.order()
    output = failed(bench, "n1", "n2")
    task = bench.task()
    assert task.state is TaskState.FAILED
    assert task.reason.startswith(f"{NO_WASM} (it failed so on n1 and n2")
    assert not bench.reserved()
    assert said(output, EnvelopeRevoke, "ts-main")
    assert not said(output, EnvelopeGrant)
    [up] = said(output, Escalation, "namo-main")
    assert up.problem == task.reason
    assert said(output, EscalationAnswer)[-1].granted is False
    # What the scheduler says last does not hide why.
    bench.hear(TaskReport("svc.a", 1, "n2", 2, InstanceState.FAILED, NO_WASM, Blame.USER))
    assert bench.task() == task
    after = bench.passes(20 * RETRY_MAX_MS)
    after.extend(bench.node("n4"))
    assert not said(after, EnvelopeGrant), "neither time nor another node helps"
    assert not said(after, Escalation)
    bench.restart()
    for name in ("n1", "n2", "n3"):
        bench.node(name)
    assert not said(bench.passes(20 * RETRY_MAX_MS), EnvelopeGrant), "nor a restart"
    assert bench.task() == task


def test_the_next_generation_is_tried_anew(bench: Bench) -> None:
    bench.order()
    failed(bench, "n1", "n2")
    [grant] = said(bench.order(2), EnvelopeGrant)
    assert bench.task().state is TaskState.PLACED
    bench.ready(grant.nodes[0], grant.epoch_from, generation=2)
    assert bench.task().state is TaskState.RUNNING


def test_one_node_is_not_enough_while_there_is_another(bench: Bench) -> None:
    bench.order(spares=0)
    [grant] = said(failed(bench, "n1"), EnvelopeGrant)
    assert grant.nodes != ("n1",)
    failed(bench, *grant.nodes, number=2)
    assert bench.task().state is TaskState.FAILED
    assert "n1 and n2" in bench.task().reason


def test_the_only_node_is_enough() -> None:
    bench = Bench()
    bench.node("n1")
    bench.order(spares=0)
    output = failed(bench, "n1")
    assert bench.task().state is TaskState.FAILED
    assert len(said(output, Escalation, "namo-main")) == 1
    assert not said(bench.passes(20 * RETRY_MAX_MS), EnvelopeGrant)


def test_every_node_that_could_not_run_the_newest_generation_is_known_with_the_reason(
    bench: Bench,
) -> None:
    bench.order()
    full = Attempt("run on n1", "its disk is full", Blame.ENVIRONMENT)

    def report(node: str, epoch: int, *attempts: Attempt, generation: int = 1) -> None:
        ready = InstanceState.READY
        bench.hear(TaskReport("svc.a", generation, node, epoch, ready, attempts=attempts))

    report("n2", 2, full)
    assert bench.task().failures == {"n1": "its disk is full"}
    report("n2", 2)
    assert bench.task().failures, "another envelope does not make it forgotten"
    failed(bench, "n2", blame=Blame.ENVIRONMENT)
    assert bench.task().failures == {"n1": "its disk is full", "n2": NO_WASM}
    report("n1", bench.task().epoch_high)
    assert bench.task().failures == {"n2": NO_WASM}, "it runs there"
    bench.order(generation=2)
    assert not bench.task().failures
    report("n1", bench.task().epoch_high, full)
    assert not bench.task().failures, "of the generation before"


def test_what_the_environment_did_is_tried_again(bench: Bench) -> None:
    bench.order()
    failed(bench, "n1", "n2", "n3", blame=Blame.ENVIRONMENT)
    assert bench.task().given_up == 0
    assert said(bench.passes(RETRY_MAX_MS), EnvelopeGrant)


def test_what_serves_goes_on_when_its_next_generation_is_given_up(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 1)
    [grant] = said(bench.order(2), EnvelopeGrant)
    output = failed(bench, "n1", "n2", number=grant.epoch_from, generation=2)
    task = bench.task()
    assert (task.state, task.node) == (TaskState.MODIFYING, "n1")
    assert not said(output, EnvelopeRevoke)
    assert said(output, ServiceReport)[-1].state is ServiceState.DEGRADED
    assert len(said(output, Escalation, "namo-main")) == 1
    again = failed(bench, "n1", "n2", number=99, generation=2)
    assert not said(again, Escalation, "namo-main"), "NAMO is asked once"
    # When the older one is lost too there is nothing left.
    bench.lost("n1", grant.epoch_from)
    assert bench.task().state is TaskState.FAILED
    assert bench.task().reason == task.reason
    assert not said(bench.passes(20 * RETRY_MAX_MS), EnvelopeGrant)


def test_what_has_served_is_tried_again_whoever_is_blamed(bench: Bench) -> None:
    bench.order()
    bench.ready("n1", 1)
    bench.lost("n1", 2)
    assert said(failed(bench, "n1", "n2", number=2), EnvelopeGrant)


def test_other_tasks_of_the_service_are_mended_still(bench: Bench) -> None:
    bench.order(1, "a", "b", spares=0)
    node = bench.task("svc.b").nodes[0]
    bench.ready(node, 1, task="svc.b")
    failed(bench, "n1", "n2")
    output = bench.node(node, NodeState.LOST)
    assert [one.spec.task for one in said(output, EnvelopeGrant)] == ["svc.b"]
    assert bench.task().state is TaskState.FAILED


def test_what_is_told_in_a_row_is_counted_and_the_beginning_is_kept() -> None:
    desk = Desk("ta-main")
    stories = Stories(desk)
    kept: dict[str, StoryRecord] = {}

    def tell(event: str, detail: str) -> None:
        desk.begin(0)
        stories.tell("svc.a", "ta", event, detail, "test")
        for record in desk.output.records:
            assert isinstance(record.value, StoryRecord)
            kept[record.key] = record.value

    tell("accepted", "generation 1")
    for _ in range(12):
        tell("failed", "no")
    assert [one.detail for one in kept.values()] == ["generation 1", "no (12 times)"]
    for number in range(1000):
        tell("assigned", str(number))
    entries = sorted(kept.values(), key=lambda one: one.number)
    assert len(entries) == STORY_LENGTH
    assert [one.number for one in entries[:FIRST_KEPT]] == list(range(FIRST_KEPT))
    assert entries[0].event == "accepted"
    assert entries[-1].detail == "999"
