"""Invocations on a fake clock: every path from a request to its one answer."""

import msgspec
import pytest
from device_harness import (
    NODE,
    REPLY,
    SimNode,
    assign,
    chain,
    digest,
    failed,
    invoke,
    manifest,
    of,
    tensor,
)
from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.admission import ACCEPT_AFTER_MS, LIVE_MAX
from device_agent.core.finished import FINISHED_MAX, MARGIN_MS
from protocols.codec import VERSION, Frame, encode
from protocols.errors import Blame
from protocols.manifest import Dtype, ExecutorKind
from protocols.messages import Accepted, Cancel, Deliver, Invoke, Result
from protocols.messages.invocation import (
    MAX_STEPS,
    REQUEST,
    Blob,
    Edge,
    Failure,
    FailureCode,
    Plan,
    Step,
    Tensor,
    Timing,
    Value,
)
from protocols.topics import INVOCATION_MAX_BYTES

BLOB = Blob(Dtype.UINT8, (100_000,), digest("big"), 100_000)


@pytest.fixture
def node() -> SimNode:
    one = SimNode()
    one.join()
    one.hear(assign("t"))
    return one


def failure(said: list[commands.Command]) -> Failure:
    (result,) = of(Result, said)
    assert result.failure is not None
    return result.failure


def test_warm_one_message_in_and_one_out(node: SimNode) -> None:
    (execute,) = node.call(invoke())
    assert isinstance(execute, commands.Execute)
    assert (execute.instance, execute.budget_ms) == ("t~1", 1000)
    assert execute.inputs == {"x": tensor()}
    node.now_ms += 5
    (reply,) = node.answer()
    assert isinstance(reply, commands.Reply)
    assert reply.topic == REPLY
    assert reply.body.outputs == {"answer": tensor(b"ok")}
    assert (reply.body.part, reply.body.parts) == (0, 1)
    (timing,) = reply.body.timings
    assert (timing.task, timing.node, timing.run_us) == ("t", NODE, 100)
    assert node.core.next_due_ms is not None
    assert len(node.core.requests) == 0


def test_accepted_is_said_only_when_the_answer_takes_its_time(node: SimNode) -> None:
    node.call(invoke())
    assert not of(Accepted, node.after(ACCEPT_AFTER_MS - 1))
    (accepted,) = of(Accepted, node.after(1))
    assert (accepted.request, accepted.attempt, accepted.node) == ("r1", 1, NODE)
    assert not of(Accepted, node.after(500))


def test_asked_again_while_it_runs_it_is_accepted_again_and_not_run_twice(node: SimNode) -> None:
    node.call(invoke())
    (accepted,) = of(Accepted, node.call(invoke()))
    assert accepted.attempt == 1
    node.call(invoke(attempt=3))
    assert len(node.calls) == 1
    (result,) = of(Result, node.answer())
    assert result.attempt == 3, "the higher attempt is adopted"


def test_asked_again_after_the_answer_it_is_answered_the_same_and_not_run(node: SimNode) -> None:
    node.call(invoke())
    (first,) = of(Result, node.answer())
    for attempt in (1, 2):
        said = node.call(invoke(attempt=attempt))
        assert not of(commands.Execute, said)
        (again,) = of(Result, said)
        assert again.outputs == first.outputs
        assert again.attempt == attempt
    assert not node.call(invoke(attempt=1)), "an old attempt was answered under a newer one"


def test_answers_are_remembered_until_the_deadline_and_a_margin(node: SimNode) -> None:
    node.call(invoke(budget_ms=1000))
    node.answer()
    node.after(1000 + MARGIN_MS - 100)
    assert not of(commands.Execute, node.call(invoke(budget_ms=10)))
    node.after(60_000)
    assert len(node.core.requests.admission.finished) == 0
    assert node.core.requests.admission.finished.size_bytes == 0


def test_remembered_answers_are_bounded_in_number_and_bytes(node: SimNode) -> None:
    for number in range(FINISHED_MAX + 50):
        node.call(invoke(f"r{number}", budget_ms=3_600_000))
        node.answer()
    assert len(node.core.requests.admission.finished) == FINISHED_MAX
    for number in range(200):
        node.call(invoke(f"big{number}", budget_ms=3_600_000))
        node.answer(y=tensor(bytes(60_000)))
    assert node.core.requests.admission.finished.size_bytes <= 4 << 20


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        (chain(("t", NODE, 2)), FailureCode.STALE),
        (chain(("t", NODE, 0)), FailureCode.STALE),
        (chain(("u", NODE, 1)), FailureCode.STALE),
        (chain(("t", "node-b", 1)), FailureCode.STALE),
    ],
)
def test_a_plan_of_another_epoch_is_stale(node: SimNode, plan: Plan, code: FailureCode) -> None:
    said = failure(node.call(invoke(plan=plan)))
    assert said.code is code
    assert said.retryable
    assert not node.calls


def test_a_task_that_is_not_ready_says_so(node: SimNode) -> None:
    node.helpful = False
    node.hear(assign("u", of=manifest("u")))
    said = failure(node.call(invoke(plan=chain(("u", NODE, 1)))))
    assert (said.code, said.retryable) == (FailureCode.NOT_READY, True)
    node.tell(events.ArtifactReady(digest("u")))
    node.tell(events.InstanceReady("u~2"))
    assert of(commands.Execute, node.call(invoke(plan=chain(("u", NODE, 1)), attempt=2)))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"z": tensor()},
        {"x": Tensor(Dtype.FLOAT32, (3,), bytes(12))},
        {"x": Tensor(Dtype.UINT8, (1, 3), b"abc")},
        {"x": Tensor(Dtype.UINT8, (4,), b"abc")},
        {"x": Tensor(Dtype.UINT8, (-1,), b"abc")},
        {"x": Blob(Dtype.UINT8, (100_000,), digest("big"), 7)},
    ],
)
def test_values_that_do_not_fit_are_bad_input(node: SimNode, inputs: dict[str, Value]) -> None:
    body = msgspec.structs.replace(invoke(), inputs=inputs)
    said = failure(node.call(body))
    assert said.code is FailureCode.BAD_INPUT
    assert said.blame is Blame.USER
    assert not said.retryable
    assert said.text


def test_inputs_that_the_task_does_not_have_or_lacks_are_bad_input(node: SimNode) -> None:
    node.hear(assign("two", of=manifest("two", inputs=("x", "z"))))
    for edges in ((Edge("x", REQUEST, "x"),), (Edge("w", REQUEST, "x"),)):
        plan = Plan("s", 1, (Step("two", NODE, 1, edges, ("y",)),), (Edge("a", "two", "y"),))
        assert failure(node.call(invoke(edges[0].port, plan))).code is FailureCode.BAD_INPUT


def test_no_time_left_is_the_deadline(node: SimNode) -> None:
    assert failure(node.call(invoke(budget_ms=0))).code is FailureCode.DEADLINE


def test_a_request_without_a_plan_has_no_service_here(node: SimNode) -> None:
    said = failure(node.call(msgspec.structs.replace(invoke(), plan=None)))
    assert said.code is FailureCode.NO_SERVICE


@pytest.mark.parametrize("topic", ["", "x", "tona/1/cell/node/node-b/command", REPLY + "/#"])
def test_an_answer_goes_to_a_client_and_nowhere_else(node: SimNode, topic: str) -> None:
    assert node.call(msgspec.structs.replace(invoke(), reply_to=topic)) == []
    assert node.core.counts["reply topic"] == 1


def test_the_response_topic_of_the_message_is_used_and_correlation_goes_along(
    node: SimNode,
) -> None:
    body = msgspec.structs.replace(invoke(), reply_to="")
    event = events.Received(
        commands.Channel.INVOKE, "app", 1, 0, "acme", "op-9", body, REPLY, b"\x01"
    )
    node.tell(event)
    (reply,) = node.answer()
    assert (reply.topic, reply.correlation) == (REPLY, b"\x01")
    assert (reply.tenant, reply.cause) == ("acme", "op-9")


def test_correlation_that_came_in_the_body_goes_back_and_on(node: SimNode) -> None:
    body = msgspec.structs.replace(invoke(), correlation=b"\x02")
    node.call(body)
    (reply,) = node.answer()
    assert reply.correlation == b"\x02"
    there = chain(("t", NODE, 1), ("b", "node-b", 1))
    node.call(msgspec.structs.replace(body, request="r2", plan=there))
    (deliver,) = of(Deliver, node.answer())
    assert deliver.correlation == b"\x02"


def test_workers_and_queue_are_bounded_and_first_come_is_first_served(node: SimNode) -> None:
    node.hear(assign("t", 2, replicas=2))
    plan = chain(("t", NODE, 2))
    for number in range(6):
        node.call(invoke(f"r{number}", plan))
    assert len(node.calls) == 2
    said = failure(node.call(invoke("r6", plan)))
    assert (said.code, said.retryable) == (FailureCode.SHED, True)
    order = []
    while node.calls:
        order += [one.request for one in of(Result, node.answer())]
    assert order == [f"r{number}" for number in range(6)]
    assert of(commands.Execute, node.call(invoke("r6", plan))), "refused is not remembered"


def test_a_model_hears_of_its_call_when_the_step_before_it_runs() -> None:
    node = SimNode()
    node.join()
    model = structs.replace(manifest("model"), kind=ExecutorKind.ONNX)
    for task, of_it in (("t", manifest()), ("u", model), ("v", manifest())):
        node.hear(assign(task, of=of_it))
    plan = chain(("t", NODE, 1), ("u", NODE, 1), ("v", NODE, 1))
    said = node.call(invoke("r1", plan))
    assert [type(one) for one in said] == [commands.Execute, commands.ExpectCall]
    model_instance = node.core.assignments.held["u"].current.name
    assert said[1].instance == model_instance
    said = node.answer()
    assert [one.instance for one in of(commands.Execute, said)] == [model_instance]
    assert not of(commands.ExpectCall, said), "a module takes nothing that has to be there before"
    said = node.call(invoke("r2", plan))
    assert of(commands.Execute, said)
    assert not of(commands.ExpectCall, said), "the model runs: it has its memory"


def test_requests_under_way_are_bounded_over_all_tasks() -> None:
    node = SimNode()
    node.join()
    node.hear(assign("t", of=manifest(queue=4096)))
    for number in range(LIVE_MAX):
        node.call(invoke(f"r{number}"))
    assert failure(node.call(invoke("more"))).code is FailureCode.BUSY


def test_the_deadline_answers_what_waits_and_what_runs(node: SimNode) -> None:
    node.call(invoke("r1", budget_ms=500))
    node.call(invoke("r2", budget_ms=400))
    said = node.after(400)
    assert [one.request for one in of(Result, said)] == ["r2"]
    said = node.after(100)
    (result,) = of(Result, said)
    assert result.failure.code is FailureCode.DEADLINE
    assert "t is running" in result.failure.text
    assert of(commands.CancelCall, said)
    assert len(node.core.requests) == 0
    assert node.core.assignments.held["t"].current.running == {}


def test_a_late_answer_of_an_executor_is_counted(node: SimNode) -> None:
    node.helpful = False
    node.call(invoke("r1", budget_ms=500))
    call = next(iter(node.calls))
    node.after(600)
    assert node.tell(events.ExecutorDone(call, {"y": tensor()}, 1)) == []
    assert node.tell(events.ExecutorDone(call, {"y": tensor()}, 1)) == []
    assert node.core.counts["late call"] == 1


def test_a_failed_call_is_told_with_its_blame_and_a_retry_runs_afresh(node: SimNode) -> None:
    node.call(invoke())
    said = failure(node.tell(failed(node.calls.popitem()[0])))
    assert (said.code, said.task, said.node) == (FailureCode.EXECUTOR, "t", NODE)
    again = node.call(invoke())
    assert failure(again) == said, "the same attempt has its answer already"
    assert of(commands.Execute, node.call(invoke(attempt=2)))
    assert of(Result, node.answer())[0].failure is None


def test_a_failure_that_may_not_be_retried_is_repeated(node: SimNode) -> None:
    body = msgspec.structs.replace(invoke(), inputs={})
    node.call(body)
    said = failure(node.call(invoke(attempt=2)))
    assert said.code is FailureCode.BAD_INPUT


def test_an_exit_fails_what_runs_and_waits_as_retryable(node: SimNode) -> None:
    node.call(invoke("r1"))
    node.call(invoke("r2"))
    results = of(Result, node.tell(events.InstanceExited("t~1", "killed by signal 9")))
    assert {one.request for one in results} == {"r1", "r2"}
    assert all(one.failure.retryable for one in results)
    node.calls.clear()
    node.after(60_000)
    assert of(commands.Execute, node.call(invoke("r1", attempt=2)))


def test_cancel_drops_what_waits_and_stops_what_runs(node: SimNode) -> None:
    node.call(invoke("r1"))
    node.call(invoke("r2"))
    assert node.call(Cancel("r2")) == []
    assert of(commands.CancelCall, node.call(Cancel("r1")))
    assert len(node.core.requests) == 0
    assert node.call(Cancel("r1")) == []
    assert node.call(Cancel("unknown")) == []
    assert failure(node.call(invoke("r1"))).code is FailureCode.CANCELLED
    assert of(commands.Execute, node.call(invoke("r3")))


def test_steps_on_one_node_feed_each_other_without_the_wire(node: SimNode) -> None:
    node.hear(assign("u"))
    plan = chain(("t", NODE, 1), ("u", NODE, 1))
    node.call(invoke(plan=plan))
    (execute,) = node.answer(y=tensor(b"mid"))
    assert execute.inputs == {"x": tensor(b"mid")}
    (result,) = of(Result, node.answer())
    assert [one.task for one in result.timings] == ["t", "u"]
    said = node.call(invoke(plan=plan, attempt=2))
    assert len(of(Result, said)) == 1
    assert not of(commands.Execute, said)


def test_a_step_on_another_node_gets_a_delivery(node: SimNode) -> None:
    plan = chain(("t", NODE, 1), ("u", "node-b", 4))
    node.call(invoke(plan=plan))
    node.now_ms += 10
    (forward,) = node.answer(y=tensor(b"mid"))
    assert isinstance(forward, commands.Forward)
    assert forward.node == "node-b"
    body = forward.body
    assert (body.source, body.values, body.budget_ms) == ("t", {"y": tensor(b"mid")}, 990)
    assert body.plan is plan, "the plan is not copied"
    moved = chain(("t", NODE, 1), ("u", "node-c", 5))
    (again,) = of(commands.Forward, node.call(invoke(plan=moved, attempt=2)))
    assert again.node == "node-c", "a newer plan moves the answer, nothing runs again"


def join_plan() -> Plan:
    steps = (
        Step("a", "node-a1", 1, (Edge("x", REQUEST, "x"),), ("y",)),
        Step("b", "node-b1", 1, (Edge("x", REQUEST, "x"),), ("y",)),
        Step("two", NODE, 1, (Edge("x", "a", "y"), Edge("z", "b", "y")), ("y",)),
    )
    return Plan("s", 1, steps, (Edge("answer", "two", "y"),))


def delivery(source: str, attempt: int = 1, data: bytes = b"d", budget_ms: int = 1000) -> Deliver:
    return Deliver("r1", attempt, source, budget_ms, {"y": tensor(data)}, REPLY, join_plan())


@pytest.fixture
def joining(node: SimNode) -> SimNode:
    node.hear(assign("two", of=manifest("two", inputs=("x", "z"))))
    return node


def test_a_step_waits_for_all_its_inputs(joining: SimNode) -> None:
    assert joining.call(delivery("a", data=b"1")) == []
    (execute,) = joining.call(delivery("b", data=b"2"))
    assert execute.inputs == {"x": tensor(b"1"), "z": tensor(b"2")}
    assert of(Accepted, joining.call(delivery("b"))), "a repeated delivery is accepted again"
    assert of(Result, joining.answer())


def test_inputs_of_different_attempts_are_not_mixed(joining: SimNode) -> None:
    joining.call(delivery("a", 1, b"1"))
    assert joining.call(delivery("b", 2, b"2")) == []
    assert of(Accepted, joining.call(delivery("a", 1, b"1"))), "late, but under way"
    (execute,) = joining.call(delivery("a", 2, b"3"))
    assert execute.inputs == {"x": tensor(b"3"), "z": tensor(b"2")}


def test_partial_inputs_are_dropped_at_the_deadline_with_a_reason(joining: SimNode) -> None:
    joining.call(delivery("a", budget_ms=300))
    said = joining.after(300)
    assert "two waits for inputs" in failure(said).text
    assert len(joining.core.requests) == 0


def test_parts_of_an_answer_are_numbered_by_their_step(node: SimNode) -> None:
    node.hear(assign("u"))
    steps = tuple(Step(one, NODE, 1, (Edge("x", REQUEST, "x"),), ("y",)) for one in ("t", "u"))
    outputs = (Edge("one", "t", "y"), Edge("two", "u", "y"), Edge("same", "t", "y"))
    node.call(invoke(plan=Plan("s", 1, steps, outputs)))
    (first,) = of(Result, node.answer())
    (second,) = of(Result, node.answer())
    assert (first.part, first.parts, set(first.outputs)) == (0, 2, {"one", "same"})
    assert (second.part, second.parts, set(second.outputs)) == (1, 2, {"two"})


def test_large_inputs_are_fetched_once_for_all_who_wait(node: SimNode) -> None:
    body = msgspec.structs.replace(invoke(), inputs={"x": BLOB})
    (fetch,) = node.call(body)
    assert isinstance(fetch, commands.FetchBlob)
    assert (fetch.digest, fetch.urls) == (BLOB.digest, ("http://127.0.0.1:1",))
    assert node.call(msgspec.structs.replace(body, request="r2")) == []
    node.now_ms += 7
    (execute,) = node.tell(events.BlobReady(BLOB.digest))
    assert execute.inputs == {"x": BLOB}
    (result,) = of(Result, node.answer())
    assert result.timings[0].fetch_us == 7000


def test_calls_and_values_are_as_urgent_as_their_request(node: SimNode) -> None:
    # More than the manifest gives one run: the executor holds to that, and sorts by the request.
    body = msgspec.structs.replace(invoke(budget_ms=20_000), inputs={"x": BLOB}, priority=7)
    due_ms = node.now_ms + 20_000
    (fetch,) = of(commands.FetchBlob, node.call(body))
    node.now_ms += 1000
    (execute,) = of(commands.Execute, node.tell(events.BlobReady(BLOB.digest)))
    (push,) = of(commands.PushBlob, node.answer(y=BLOB))
    assert fetch.urgency == push.urgency == (-7, due_ms)
    assert execute.budget_ms == 19_000 > manifest().limits.deadline_ms


def test_a_value_that_nobody_waits_for_any_more_is_let_go(node: SimNode) -> None:
    body = msgspec.structs.replace(invoke(), inputs={"x": BLOB})
    later = msgspec.structs.replace(invoke("r2", budget_ms=3000), inputs={"x": BLOB})
    node.call(body)
    node.call(later)
    said = node.at(node.now_ms + 1000)
    assert failure(said).code is FailureCode.DEADLINE
    assert not of(commands.LeaveBlob, said), "another request waits for it"
    said = node.call(Cancel("r2"))
    assert of(commands.LeaveBlob, said) == [commands.LeaveBlob(BLOB.digest)]
    assert of(commands.FetchBlob, node.call(msgspec.structs.replace(later, request="r3")))
    node.call(msgspec.structs.replace(later, request="r4"))
    assert of(commands.Execute, node.tell(events.BlobReady(BLOB.digest)))
    assert not of(commands.LeaveBlob, node.call(Cancel("r3"))), "it is here"


def test_outputs_that_nobody_waits_for_any_more_are_not_pushed(node: SimNode) -> None:
    for request, budget_ms in (("r1", 1000), ("r2", 3000)):
        node.call(invoke(request, budget_ms=budget_ms))
        node.answer(y=BLOB)
    said = node.at(node.now_ms + 1000)
    assert failure(said).code is FailureCode.DEADLINE
    assert not of(commands.LeaveBlob, said), "another answer waits for it"
    said = node.call(Cancel("r2"))
    assert of(commands.LeaveBlob, said) == [commands.LeaveBlob(BLOB.digest, pushing=True)]


def test_a_large_input_that_cannot_be_had_fails_as_retryable(node: SimNode) -> None:
    node.call(msgspec.structs.replace(invoke(), inputs={"x": BLOB}))
    said = failure(node.tell(events.BlobFailed(BLOB.digest, "404")))
    assert (said.code, said.retryable) == (FailureCode.FETCH, True)


def test_large_outputs_are_pushed_before_the_answer(node: SimNode) -> None:
    node.call(invoke())
    (push,) = node.answer(y=BLOB)
    assert isinstance(push, commands.PushBlob)
    assert len(node.core.requests) == 1
    assert of(Accepted, node.call(invoke()))
    (reply,) = node.tell(events.BlobPushed(BLOB.digest))
    assert reply.body.outputs == {"answer": BLOB}
    again = node.call(invoke(attempt=2))
    assert not of(commands.Execute, again)
    assert of(commands.PushBlob, again), "the store may have let go of it since"
    assert of(Result, node.tell(events.BlobPushed(BLOB.digest)))


def test_a_large_output_follows_a_step_that_moved_to_another_node(node: SimNode) -> None:
    node.hear(assign("u"))
    node.call(invoke(plan=chain(("t", NODE, 1), ("u", NODE, 1))))
    node.answer(y=BLOB)
    said = failure(node.tell(events.BlobFailed(BLOB.digest, "swept")))
    assert said.retryable
    moved = chain(("t", NODE, 1), ("u", "node-b", 2))
    again = node.call(invoke(plan=moved, attempt=2))
    assert of(commands.PushBlob, again), "it never had to leave this node before"
    assert not of(commands.Forward, again)
    (forward,) = of(commands.Forward, node.tell(events.BlobPushed(BLOB.digest)))
    assert (forward.node, forward.body.values) == ("node-b", {"y": BLOB})


def test_a_large_output_that_stays_on_the_node_is_not_pushed(node: SimNode) -> None:
    node.hear(assign("u"))
    node.call(invoke(plan=chain(("t", NODE, 1), ("u", NODE, 1))))
    said = node.answer(y=BLOB)
    assert not of(commands.PushBlob, said)
    assert of(commands.FetchBlob, said), "the folder confirms that it is still there"
    assert of(commands.Execute, node.tell(events.BlobReady(BLOB.digest)))


def test_a_failed_push_is_retryable_and_does_not_run_again(node: SimNode) -> None:
    node.call(invoke())
    node.answer(y=BLOB)
    said = failure(node.tell(events.BlobFailed(BLOB.digest, "refused", pushing=True)))
    assert (said.code, said.retryable) == (FailureCode.FETCH, True)
    again = node.call(invoke(attempt=2))
    assert of(commands.PushBlob, again)
    assert not of(commands.Execute, again)
    assert of(Result, node.tell(events.BlobPushed(BLOB.digest)))


def test_outputs_too_large_for_a_message_or_absent_are_failures(node: SimNode) -> None:
    edges = tuple(Edge(f"p{number}", "t", "y") for number in range(4))
    plan = Plan("s", 1, (Step("t", NODE, 1, (Edge("x", REQUEST, "x"),), ("y",)),), edges)
    node.call(invoke("r1", plan))
    assert failure(node.answer(y=tensor(bytes(60_000)))).code is FailureCode.LIMIT
    plan = msgspec.structs.replace(plan, outputs=(Edge("p", "t", "nope"),))
    node.call(invoke("r2", plan))
    assert "nope" in failure(node.answer()).text


@pytest.mark.parametrize("spare_bytes", range(0, 20_000, 1_000))
def test_what_a_peer_sent_along_never_makes_our_message_too_large(
    node: SimNode, spare_bytes: int
) -> None:
    node.hear(assign("two", of=manifest("two")))
    steps = (
        Step("a", "node-a1", 1, (Edge("x", REQUEST, "x"),), ("y",)),
        Step("two", NODE, 1, (Edge("x", "a", "y"),), ("y",)),
        *(Step(f"end{at}", "node-b", 1, (Edge("x", "two", f"y{at}"),), ("y",)) for at in range(3)),
    )
    plan = Plan("s", 1, steps, (Edge("answer", "end0", "y"),))
    label = "\N{GRINNING FACE}" * 64
    timings = (Timing(label, label, 2**53, 2**53, 2**53),) * MAX_STEPS
    sent = Deliver("r1", 1, "a", 1000, {"y": tensor()}, REPLY, plan, timings, bytes(2048))
    node.call(sent)
    large = tensor(bytes(64_000 - spare_bytes))
    for said in node.answer(y0=large, y1=large, y2=large):
        if isinstance(said, commands.Forward | commands.Reply):
            frame = Frame(VERSION, "n" * 64, 2**53, 2**53, "t" * 64, "c" * 128, said.body)
            encode(frame, INVOCATION_MAX_BYTES)


def test_a_plan_with_a_cycle_feeds_nobody_twice(node: SimNode) -> None:
    node.hear(assign("u"))
    steps = (
        Step("t", NODE, 1, (Edge("x", REQUEST, "x"),), ("y",)),
        Step("u", NODE, 1, (Edge("x", "t", "y"),), ("y",)),
        Step("t", NODE, 1, (Edge("x", "u", "y"),), ("y",)),
    )
    plan = Plan("s", 1, steps, (Edge("answer", "u", "y"),))
    node.call(invoke(plan=plan))
    node.answer()
    node.answer()
    said = node.call(invoke(plan=plan, attempt=2))
    assert len(of(Result, said)) <= 2
    assert not node.calls


def test_a_diamond_of_repeats_does_not_explode(node: SimNode) -> None:
    steps = [Step("t", NODE, 1, (Edge("x", REQUEST, "x"),), ("y",))]
    sources = ["t"]
    for layer in range(2):
        names = [f"l{layer}{side}" for side in "ab"]
        for name in names:
            node.hear(assign(name, of=manifest(name, inputs=("x", "z"), memory_mib=1)))
            both = (sources * 2)[:2]
            edges = tuple(Edge(p, s, "y") for p, s in zip(("x", "z"), both, strict=True))
            steps.append(Step(name, NODE, 1, edges, ("y",)))
        sources = names
    plan = Plan("s", 1, tuple(steps), (Edge("answer", sources[0], "y"),))
    node.call(invoke(plan=plan))
    while node.calls:
        node.answer()
    again = node.call(invoke(plan=plan, attempt=2))
    assert len(of(Result, again)) == 1


def test_answers_wait_while_the_node_is_offline(node: SimNode) -> None:
    node.call(invoke("r1", budget_ms=60_000))
    node.call(invoke("r2", budget_ms=60_000))
    node.call(invoke("r3", budget_ms=1500))
    node.tell(events.Disconnected())
    assert not of(Result, node.answer())
    node.answer()
    node.answer()
    node.after(2000)
    said = node.connect()
    assert [one.request for one in of(Result, said)] == ["r1", "r2"]
    assert not of(Result, node.after(10_000))


def test_an_invoke_of_another_shape_is_no_trouble(node: SimNode) -> None:
    step = Step("t", NODE, 1, (), ("y",))
    plan = Plan("s", 1, (step,), (Edge("answer", "nobody", "y"),))
    said = node.call(Invoke("r1", "s", 1000, {}, REPLY, 1, plan))
    assert failure(said).code is FailureCode.BAD_INPUT
