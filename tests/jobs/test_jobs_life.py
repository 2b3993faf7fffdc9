"""The life of a job through anchor, scheduler and node: recorded, run, completed once."""

from typing import Any

import pytest
from jobs_world import World, failure, held, is_run, query, say, submit, tensor
from msgspec import Struct, structs

from controller.anchor import job_line, job_shelf, jobs
from controller.api.jobs import JobInput, SubmitJob
from controller.decider import Called, Received
from controller.job_view import job_view
from controller.records import JOB
from controller.scheduler import jobs as runs
from device_agent.core import jobs as ends
from protocols.messages import (
    Acknowledge,
    Cancel,
    Deliver,
    JobAccepted,
    JobEnded,
    JobKept,
    JobRun,
)
from protocols.messages.invocation import Edge, FailureCode
from protocols.messages.job import JobState
from protocols.topics import Channel

# One job, nothing lost.


def test_a_short_job_is_answered_once_and_its_end_says_that_it_was_taken(world: World) -> None:
    say(world, submit(data=b"hello"))
    [end] = world.ends()
    assert (end.failure, end.outputs) == (None, {"y": tensor(b"hello")})
    assert world.nodes["n1"].runs == ["hello"]
    assert world.record().state is JobState.DONE
    assert world.waiting() == 0, "the node may forget what is recorded"
    world.passes(60_000, 500)
    assert len(world.told) == 1
    assert world.nodes["n1"].runs == ["hello"]


def test_a_job_that_takes_longer_is_accepted_before_it_is_over(world: World) -> None:
    held(world)
    say(world, submit())
    assert not world.told
    world.passes(jobs.HOLD_MS, 1)
    assert world.accepted()[0].accepted
    assert world.record().state is JobState.RUNNING
    world.nodes["n1"].release()
    world.settle()
    assert [type(one) for one in world.told] == [JobAccepted, JobEnded]


def test_a_job_that_must_wait_is_accepted_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_line, "CREDIT_MAX", 1)
    held(world)
    say(world, submit("j0"))
    say(world, submit("j1"))
    assert not world.accepted("j0")
    assert world.accepted("j1")


def test_a_run_waits_for_no_commit_and_nobody_hears_before_one(world: World) -> None:
    world.hold_commits = True
    before = world.commits
    say(world, submit())
    assert world.nodes["n1"].runs == ["x"]
    assert not world.told, "nobody hears of what a crash could take back"
    assert world.waiting() == 1
    world.commit()
    world.settle()
    assert world.ends()
    assert world.commits - before == 1, "acceptance and end are one record"


def test_inputs_are_dropped_at_the_end_and_the_same_job_is_still_known(world: World) -> None:
    say(world, submit(data=b"one"))
    assert not world.record().submit.inputs
    say(world, submit(data=b"one"))
    assert [one.outputs for one in world.ends()] == [{"y": tensor(b"one")}] * 2
    assert world.nodes["n1"].runs == ["one"]


@pytest.mark.parametrize("over", [True, False])
def test_the_same_id_with_other_content_is_refused(world: World, over: bool) -> None:
    world.nodes["n1"].holds = not over
    say(world, submit(data=b"one"))
    world.passes(jobs.HOLD_MS)
    say(world, submit(data=b"two"))
    say(world, submit(data=b"one"), "other")
    *taken, first, second = world.accepted()
    assert [one.accepted for one in taken] == [True] * (not over)
    assert (first.accepted, second.accepted) == (False, False)
    assert "another one" in first.reason
    assert not first.retryable
    world.nodes["n1"].release()
    world.settle()
    assert world.nodes["n1"].runs == ["one"]


def test_a_repeated_submit_of_an_open_job_is_accepted_and_not_run_again(world: World) -> None:
    held(world)
    for _ in range(3):
        say(world, submit())
        world.passes(jobs.HOLD_MS)
    assert [one.accepted for one in world.accepted()] == [True] * 3
    world.nodes["n1"].release()
    world.settle()
    assert world.nodes["n1"].runs == ["x"]
    assert len(world.ends()) == 1


def test_an_unknown_service_is_refused_in_one_sentence() -> None:
    world = World(start=False)
    world.start_controller()
    world.settle()
    say(world, submit())
    [answer] = world.accepted()
    assert not answer.accepted
    assert answer.reason == "there is no service 'svc' here"


def test_values_that_fit_into_no_message_are_refused(world: World) -> None:
    large = submit()
    large.inputs.update({f"x{at}": tensor(bytes(60_000)) for at in range(3)})
    say(world, large)
    [answer] = world.accepted()
    assert "blobs" in answer.reason


# Waiting, order and credit.


def test_a_job_waits_for_a_route() -> None:
    world = World(start=False)
    world.start_controller()
    world.settle()
    world.order()
    world.settle()
    say(world, submit())
    assert world.accepted()[0].accepted
    world.passes(10_000)
    assert not world.ends()
    world.nodes["n1"].start()
    world.settle()
    world.passes(5000)
    assert world.ends()[0].outputs
    assert world.record().attempts == 1


def test_at_most_the_credit_runs_and_priority_goes_before_age(world: World) -> None:
    held(world)
    for at in range(job_line.CREDIT_MAX):
        say(world, submit(f"first-{at}", b"first"))
    say(world, submit("low", b"low", priority=1))
    say(world, submit("high", b"high", priority=9))
    node = world.nodes["n1"]
    world.passes(1000)
    assert world.record("low").state is JobState.ACCEPTED
    assert node.core is not None
    assert len(node.core.requests) == job_line.CREDIT_MAX
    node.release()
    node.holds = False
    world.settle()
    node.release()
    world.settle()
    assert node.runs.index("high") < node.runs.index("low")
    assert world.record("low").state is JobState.DONE


def test_people_see_what_runs_and_what_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_line, "CREDIT_MAX", 1)
    held(world)
    for at in range(3):
        say(world, submit(f"j{at}"))
    world.passes(jobs.HOLD_MS)
    states = [world.shown[JOB, f"j{at}"].state.value for at in range(3)]
    assert states == ["running", "accepted", "accepted"]
    # Both ends in one turn: the second job is started and over in it.
    ends = [JobEnded(f"j{at}", 1, "svc", {"y": tensor()}) for at in range(2)]
    world.feed("ta-main", *(Received("ts-main", 0, 0, "default", "t", one) for one in ends))
    states = [world.shown[JOB, f"j{at}"].state.value for at in range(3)]
    assert states == ["done", "done", "running"]
    assert world.record("j2").state is JobState.ACCEPTED, "that it runs is no record"


def test_an_overloaded_node_halves_the_credit_and_good_runs_raise_it(world: World) -> None:
    line = world.roles["ta-main"].jobs._line("svc")
    world.nodes["n1"].fails = [failure(FailureCode.BUSY)]
    say(world, submit())
    assert line.credit == job_line.CREDIT_MAX // 2
    world.passes(1000)
    assert world.ends()[0].failure is None
    assert line.credit == job_line.CREDIT_MAX // 2 + 1


def test_too_many_open_jobs_are_refused_clearly(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "OPEN_MAX", 2)
    held(world)
    for at in range(3):
        say(world, submit(f"j{at}"))
    [refusal] = world.accepted("j2")
    assert (refusal.accepted, refusal.retryable) == (False, True)
    assert refusal.reason.startswith("too many open jobs")
    world.nodes["n1"].release()
    world.settle()
    say(world, submit("j2"))
    world.passes(jobs.HOLD_MS)
    assert world.accepted("j2")[-1].accepted


def test_open_jobs_are_bounded_in_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "OPEN_MAX_BYTES", 100)
    held(world)
    say(world, submit("j1", bytes(60)))
    say(world, submit("j2", bytes(60)))
    world.passes(jobs.HOLD_MS)
    assert world.accepted("j1")[0].accepted
    assert not world.accepted("j2")[0].accepted


def test_the_oldest_ended_jobs_are_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_shelf, "ENDED_MAX", 3)
    for at in range(5):
        say(world, submit(f"j{at}"))
    assert {key for kind, key in world.store if kind == JOB} == {"j2", "j3", "j4"}
    say(world, query("j0"))
    assert "there is no job" in world.accepted("j0")[-1].reason


# Words that are lost on the wire.


def test_a_lost_run_is_sent_again(world: World) -> None:
    world.lose = is_run
    say(world, submit())
    world.lose = lambda *_: False
    world.passes(3000)
    assert len(world.ends()) == 1
    assert world.record().attempts == 1


def test_a_run_of_which_nothing_is_heard_is_lost_and_tried_again(world: World) -> None:
    world.lose = is_run
    say(world, submit(run_ms=3000))
    world.passes(9000)
    assert world.record().attempts == 2
    assert world.record().failure is not None
    assert world.record().failure.code is FailureCode.NODE_LOST
    world.lose = lambda *_: False
    world.passes(5000)
    assert world.ends()[0].failure is None
    assert world.nodes["n1"].runs == ["x"]


def test_more_runs_than_a_scheduler_looks_after_come_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RUNS_MAX", 1)
    held(world)
    say(world, submit("j1"))
    say(world, submit("j2"))
    assert world.record("j2").failure.code is FailureCode.BUSY  # type: ignore[union-attr]
    world.nodes["n1"].release()
    world.nodes["n1"].holds = False
    world.settle()
    world.passes(1000)
    assert world.ends("j2")[0].failure is None


def test_ends_on_a_node_are_bounded_and_the_oldest_job_runs_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "ENDS_MAX", 2)
    world.lose = lambda to, _body: to is Channel.RESULT
    for at in range(3):
        say(world, submit(f"j{at}", b"%d" % at))
    assert world.waiting() == 2
    world.lose = lambda *_: False
    world.passes(30_000)
    assert [len(world.ends(f"j{at}")) for at in range(3)] == [1, 1, 1]


def test_ends_that_wait_are_said_again_in_bursts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "BURST", 4)
    world.lose = lambda to, _body: to is Channel.RESULT
    for at in range(10):
        say(world, submit(f"j{at}"))
    said: list[int] = []

    def count(to: Any, _body: Any) -> bool:
        if to is Channel.RESULT:
            said.append(world.now_ms)
        return to is Channel.RESULT

    world.lose = count
    world.passes(1500, 10)
    assert len(said) == 10
    assert max(said.count(at) for at in said) <= 4


def test_a_lost_end_is_said_again_and_the_job_runs_once(world: World) -> None:
    world.lose = lambda _, body: isinstance(body, JobEnded) and body.number > 0
    say(world, submit())
    world.lose = lambda *_: False
    assert world.waiting() == 1
    world.passes(3000)
    assert len(world.ends()) == 1
    assert world.waiting() == 0
    assert world.nodes["n1"].runs == ["x"]


def test_a_lost_acknowledgement_is_given_again(world: World) -> None:
    world.lose = lambda _, body: isinstance(body, Acknowledge) and body.of == "job"
    say(world, submit())
    assert world.waiting() == 1
    world.lose = lambda *_: False
    world.passes(3000)
    assert world.waiting() == 0
    assert len(world.ends()) == 1


def test_many_ends_are_acknowledged_in_one_message(world: World) -> None:
    kept: list[JobKept] = []

    def catch(_to: Any, body: Any) -> bool:
        if isinstance(body, JobKept):
            kept.append(body)
        return isinstance(body, JobKept)

    world.lose = catch
    for at in range(20):
        say(world, submit(f"j{at}"))
    assert world.waiting() == len(kept) == 20
    sent: list[Acknowledge] = []

    def count(_to: Any, body: Any) -> bool:
        if isinstance(body, Acknowledge) and body.of == "job":
            sent.append(body)
        return False

    world.lose = count
    world.feed("ts-main", *(Received("ta-main", 0, 0, "default", "t", one) for one in kept))
    world.settle()
    assert world.waiting() == 0
    assert len(sent) == 1


def test_an_asking_client_is_told_how_it_stands_and_again_how_it_ended(world: World) -> None:
    held(world)
    say(world, submit())
    say(world, query())
    assert world.statuses()[0].state is JobState.RUNNING
    world.nodes["n1"].release()
    world.settle()
    say(world, query())
    assert len(world.ends()) == 2
    assert world.ends()[0] == world.ends()[1]
    say(world, query(), "other")
    assert not world.accepted()[-1].accepted


# Parts.


def test_parts_of_several_nodes_make_one_end() -> None:
    world = World("n1", "n2", steps=2, start=False)
    world.outputs = (Edge("y", "s0", "x"), Edge("z", "s1", "x"))
    world.start_controller()
    for node in world.nodes.values():
        node.start()
    world.settle()
    world.order()
    world.settle()
    say(world, submit(data=b"both"))
    ends = world.ends()
    assert [(one.part, one.parts) for one in ends] == [(0, 2), (1, 2)]
    outputs = ends[0].outputs | ends[1].outputs
    assert outputs == {"y": tensor(b"both"), "z": tensor(b"both")}
    assert world.waiting() == 0
    assert world.record().state is JobState.DONE


def test_a_lost_delivery_between_nodes_is_made_again() -> None:
    world = World("n1", "n2", steps=2)
    world.lose = lambda _, body: isinstance(body, Deliver)
    say(world, submit())
    world.lose = lambda *_: False
    world.passes(4000)
    assert len(world.ends()) == 1
    assert world.nodes["n1"].runs == ["x"], "what has run is not run again"


# Operations of the API.


class Named(Struct, frozen=True):
    name: str


def test_jobs_of_the_api_are_jobs(world: World) -> None:
    held(world)
    asked = SubmitJob("api-1", "svc", {"x": JobInput(text="hi")})
    world.call("job.submit", asked)
    world.call("job.submit", SubmitJob("api-1", "svc", {"x": JobInput(text="ho")}))
    world.settle()
    first, second = world.answers[-2:]
    assert (first.value.job, first.value.client) == ("api-1", "api")
    assert "another one" in second.error
    world.call("job.cancel", Named("api-1"))
    world.call("job.cancel", Named("nothing"))
    world.settle()
    cancelled, unknown = world.answers[-2:]
    assert cancelled.value.state is JobState.CANCELLED
    assert unknown.error == "there is no job 'nothing'"


# Who may say what.


def test_a_node_cannot_end_what_was_not_sent_to_it() -> None:
    world = World("n1", "n2")
    for node in world.nodes.values():
        node.holds = True
    say(world, submit())
    [runs] = [one for one in world.nodes.values() if one.calls]
    other = next(one for one in world.nodes.values() if one is not runs)
    forged = JobEnded("j1", 1, "svc", {"y": tensor(b"forged")}, number=1)
    world.from_node(other, Channel.RESULT, forged)
    world.settle()
    assert not world.ends()
    world.feed("ts-main")
    world.client(forged)  # type: ignore[arg-type]
    world.client(JobRun("j9", 1, "svc", {}, 1000))  # type: ignore[arg-type]
    world.client(Cancel("j1"))  # type: ignore[arg-type]
    world.settle()
    assert not world.ends()
    assert runs.calls


# Nobody who could take an end.


def test_the_end_of_a_job_without_an_anchor_is_acknowledged_after_a_while(world: World) -> None:
    """The node is not asked to keep it for ever, nor to forget it before an anchor may be back."""
    say(world, submit(data=b"one"))
    core = world.nodes["n1"].core
    assert core is not None
    world.lose = lambda _to, body: isinstance(body, Acknowledge) and body.of == "job"
    say(world, submit("j2", data=b"two"))
    world.lose = lambda _to, _body: False
    assert world.waiting() == 1
    scheduler = world.roles["ts-main"]
    scheduler.jobs._anchors = ("ta-main", "ta-other")
    scheduler.jobs._anchor_of = lambda _service: ""
    world.passes(runs.STRAY_MS - 2000, 500)
    assert world.waiting() == 1
    world.passes(2 * ends.REPEAT_MAX_MS, 500)
    assert world.waiting() == 0
    assert not scheduler.jobs._strays


def test_ends_without_an_anchor_are_remembered_within_bounds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "STRAYS_MAX", 2)
    scheduler = world.roles["ts-main"]
    scheduler.jobs._anchors = ("ta-main", "ta-other")
    for at in range(5):
        stray = JobEnded(f"j{at}", 1, "unknown", {}, number=at + 1)
        world.from_node(world.nodes["n1"], Channel.RESULT, stray)
        world.settle()
    assert list(scheduler.jobs._strays) == [("j3", 1, 0), ("j4", 1, 0)]


# When.


def test_a_job_says_when_it_was_accepted_started_and_ended() -> None:
    world = World(unix_offset_ms=10**12)
    world.nodes["n1"].holds = True
    taken_ms = 10**12 + world.now_ms
    say(world, submit())
    world.passes(5000)
    shown = world.shown[JOB, "j1"]
    assert (shown.accepted_unix_ms, shown.started_unix_ms, shown.ended_unix_ms) == (
        taken_ms,
        taken_ms,
        0,
    )
    world.start_controller()
    world.passes(5000)
    world.nodes["n1"].release()
    world.settle()
    record = world.record()
    assert (record.accepted_unix_ms, record.started_unix_ms) == (taken_ms, taken_ms)
    assert record.ended_unix_ms == 10**12 + world.now_ms
    view = job_view(record)
    assert view.ended_unix_ms == record.ended_unix_ms


def test_a_clock_that_is_not_known_is_not_guessed_and_a_call_tells_it(world: World) -> None:
    say(world, submit())
    assert world.record().accepted_unix_ms == world.record().ended_unix_ms == 0
    world.feed("ta-main", Called("c", "job.cancel", Named("no"), "default", "api", 5 * 10**12))
    say(world, submit("j2"))
    assert world.record("j2").ended_unix_ms == 5 * 10**12


def test_a_job_with_inputs_of_another_name_is_refused_at_once(world: World) -> None:
    strange = structs.replace(submit(), inputs={"nothing": tensor()})
    say(world, strange)
    [answer] = world.accepted()
    assert not answer.accepted
    assert not answer.retryable
    assert answer.reason.startswith("service 'svc' has no input 'nothing'")
    assert not world.nodes["n1"].runs
