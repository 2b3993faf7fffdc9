"""Models that guests run in the middle of their own calls: counted, bounded, ended with them."""

import pytest
from device_harness import SimNode, assign, chain, failed, invoke, manifest, of, tensor
from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.admission import LIVE_MAX
from protocols.manifest import Dtype, ExecutorKind, Infer, Manifest
from protocols.messages import Assign, Cancel, QualityReport, Release, Result
from protocols.messages.invocation import Blob, FailureCode
from protocols.messages.sense import LoadReport
from protocols.messages.task import Deviceless
from protocols.topics import Channel

PLAN = chain(("guest", "node-a", 1))


def guest(**more: object) -> Manifest:
    found = structs.replace(manifest("guest"), infers=(Infer("net", "s.net"),))
    return structs.replace(found, **more)


def model(epoch: int = 1, generation: int = 1) -> Assign:
    net = structs.replace(manifest(f"net{generation}", queue=1), kind=ExecutorKind.ONNX)
    return Assign("s.net", "s", epoch, generation, net)


def serving(*assigns: Assign) -> SimNode:
    node = SimNode()
    node.join()
    node.hear(assign("guest", of=guest(), replicas=4))
    for one in assigns or (model(),):
        node.hear(one)
    return node


def called(node: SimNode, name: str = "r1", budget_ms: int = 1000, priority: int = 4) -> str:
    """Have a guest run, and return its call."""
    said = node.call(structs.replace(invoke(name, PLAN, budget_ms=budget_ms), priority=priority))
    (run,) = of(commands.Execute, said)
    return run.call


def infer(node: SimNode, call: str, name: str = "net", values: int = 1) -> list[commands.Command]:
    return node.tell(events.Inferring(call, name, (tensor(b"in"),) * values))


def told(said: list[commands.Command]) -> commands.Inferred:
    (one,) = of(commands.Inferred, said)
    return one


def test_large_values_of_an_inference_go_with_the_guests_request() -> None:
    node = serving()
    call = called(node)
    given, found = (
        Blob(Dtype.UINT8, (100_000,), f"made:{number:064x}", 100_000) for number in (1, 2)
    )
    (run,) = of(commands.Execute, node.tell(events.Inferring(call, "net", (given,))))
    assert run.inputs == {"x": given}
    said = node.answer(run.call, y=found)
    assert told(said).outputs == {"y": found}
    assert not of(commands.DropValues, said)
    (drop,) = of(commands.DropValues, node.answer(call))
    assert sorted(drop.names) == [given.digest, found.digest]
    (late,) = of(commands.DropValues, node.tell(events.Inferring(call, "net", (given,))))
    assert late.names == (given.digest,)


def test_a_guest_gets_what_its_model_gives_and_then_answers() -> None:
    node = serving()
    call = called(node)
    (run,) = of(commands.Execute, infer(node, call))
    assert run.instance.startswith("s.net~")
    assert run.inputs == {"x": tensor(b"in")}
    assert run.budget_ms == 1000
    answer = told(node.answer(run.call, y=tensor(b"out")))
    assert (answer.call, answer.outputs, answer.failure) == (call, {"y": tensor(b"out")}, None)
    (again,) = of(commands.Execute, infer(node, call))
    node.answer(again.call)
    (result,) = of(Result, node.answer(call))
    assert result.failure is None
    assert len(node.core.requests) == 0
    assert not node.core.counts
    said = node.tell(events.Sampled(LoadReport(1, 1.0)))
    (quality,) = of(QualityReport, said)
    assert {one.task: one.done for one in quality.tasks} == {"guest": 1, "s.net": 2}


@pytest.mark.parametrize(
    ("name", "values", "code", "text"),
    [
        ("other", 1, FailureCode.BAD_INPUT, "names no model 'other'"),
        ("net", 2, FailureCode.BAD_INPUT, "takes 1 inputs, not 2"),
    ],
)
def test_what_is_not_allowed_or_does_not_fit_runs_nothing(
    name: str, values: int, code: FailureCode, text: str
) -> None:
    node = serving()
    said = infer(node, called(node), name, values)
    failure = told(said).failure
    assert failure is not None
    assert (failure.code, failure.retryable) == (code, False)
    assert text in failure.text
    assert not of(commands.Execute, said)


def test_a_guest_of_another_tenant_finds_no_model() -> None:
    node = serving(structs.replace(model(), tenant="other"))
    failure = told(infer(node, called(node))).failure
    assert failure is not None
    assert failure.retryable
    assert "s.net" in failure.text


def test_only_models_run_so_nobody_waits_in_a_circle() -> None:
    node = serving(structs.replace(model(), manifest=manifest("net")))
    failure = told(infer(node, called(node))).failure
    assert failure is not None
    assert "is no model" in failure.text


def test_a_model_that_is_gone_or_not_ready_yet_is_worth_another_try() -> None:
    node = serving()
    call = called(node)
    node.hear(Release("s.net", 1))
    failure = told(infer(node, call)).failure
    assert failure is not None
    assert (failure.code, failure.retryable) == (FailureCode.NOT_READY, True)
    node.helpful = False
    node.hear(model(epoch=2))
    failure = told(infer(node, call)).failure
    assert failure is not None
    assert "is not ready on this node" in failure.text


def test_a_new_version_of_the_model_serves_the_next_run() -> None:
    node = serving()
    call = called(node)
    node.hear(model(epoch=2, generation=2))
    (run,) = of(commands.Execute, infer(node, call))
    assert run.instance == node.started[-1].instance


def test_models_wait_and_are_shed_like_any_run() -> None:
    node = serving()
    first, second, third = (called(node, name) for name in ("a", "b", "c"))
    (run,) = of(commands.Execute, infer(node, first))
    assert not infer(node, second), "one worker: it waits"
    failure = told(infer(node, third)).failure
    assert failure is not None
    assert (failure.code, failure.retryable) == (FailureCode.SHED, True)
    said = node.answer(run.call)
    assert told(said).call == first
    (next_run,) = of(commands.Execute, said)
    assert told(node.answer(next_run.call)).call == second


def test_the_priority_of_the_request_decides_who_goes_first() -> None:
    node = serving()
    first, low = called(node, "a"), called(node, "b", priority=2)
    high = called(node, "c", priority=9)
    (run,) = of(commands.Execute, infer(node, first))
    infer(node, low)
    displaced = told(infer(node, high))
    assert displaced.call == low
    assert displaced.failure is not None
    (next_run,) = of(commands.Execute, node.answer(run.call))
    assert told(node.answer(next_run.call)).call == high


@pytest.mark.parametrize("how", ["cancel", "deadline", "failed", "done"])
def test_what_a_guest_waits_for_ends_with_its_run(how: str) -> None:
    node = serving()
    call = called(node)
    (run,) = of(commands.Execute, infer(node, call))
    if how == "cancel":
        said = node.hear(Cancel("r1"), sender="app", channel=Channel.INVOKE)
    elif how == "deadline":
        said = node.after(1000)
    elif how == "failed":
        said = node.tell(failed(call))
    else:
        said = node.answer(call)
    assert run.call in {one.call for one in of(commands.CancelCall, said)}
    assert all(one.failure is not None for one in of(commands.Inferred, said))
    assert len(node.core.requests) == 0
    assert not node.core.requests.workers.running(run.call)


def test_a_model_that_dies_is_told_to_its_guest() -> None:
    node = serving()
    call = called(node)
    (run,) = of(commands.Execute, infer(node, call))
    del node.calls[run.call]
    failure = told(node.tell(failed(run.call))).failure
    assert failure is not None
    assert failure.retryable
    (run,) = of(commands.Execute, infer(node, call))
    failure = told(node.tell(events.InstanceExited(run.instance, "killed"))).failure
    assert failure is not None
    assert failure.retryable
    (result,) = of(Result, node.answer(call))
    assert result.failure is None, "the guest has made do without"


def test_a_host_that_asks_twice_or_for_nobody_is_not_answered() -> None:
    node = serving()
    call = called(node)
    assert of(commands.Execute, infer(node, call))
    assert not infer(node, call)
    assert not infer(node, "999")
    assert node.core.counts["late inference"] == 2


def test_a_deviceless_model_wakes() -> None:
    node = serving(structs.replace(model(), deviceless=Deviceless(10)))
    call = called(node)
    said = node.after(20)
    assert of(commands.RestInstance, said)
    (run,) = of(commands.Execute, infer(node, call))
    assert told(node.answer(run.call)).failure is None
    assert of(commands.RestInstance, node.after(20)), "and rests again"


def test_the_bound_of_requests_holds_for_models_too() -> None:
    node = serving()
    call = called(node)
    admission = node.core.requests.admission
    taken = {f"x{at}": next(iter(admission.live.values())) for at in range(LIVE_MAX - 1)}
    admission.live.update(taken)
    failure = told(infer(node, call)).failure
    assert failure is not None
    assert (failure.code, failure.retryable) == (FailureCode.BUSY, True)
