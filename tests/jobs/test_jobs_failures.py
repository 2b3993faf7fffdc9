"""How jobs fail: what may pass is tried again, deadlines, deleted services, cancelled ones."""

import pytest
from jobs_world import World, failure, held, query, say, submit

from controller.anchor import jobs
from protocols.messages.invocation import FailureCode
from protocols.messages.job import JobState


def test_a_failure_that_may_pass_is_tried_again_after_a_pause(world: World) -> None:
    world.nodes["n1"].fails = [failure(), failure()]
    say(world, submit())
    assert not world.ends()
    assert (world.record().attempts, world.record().state) == (2, JobState.ACCEPTED)
    world.passes(2000)
    assert world.ends()[0].failure is None
    assert world.record().attempts == 3


def test_a_failure_for_good_ends_it_at_once(world: World) -> None:
    world.nodes["n1"].fails = [failure(retryable=False)]
    say(world, submit())
    [end] = world.ends()
    assert end.failure.text == "it broke"
    assert world.record().state is JobState.FAILED
    assert world.waiting() == 0


def test_attempts_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ATTEMPTS_MAX", 3)
    world.nodes["n1"].fails = [failure() for _ in range(9)]
    say(world, submit())
    world.passes(5000)
    assert world.ends()[0].failure.text == "it broke"
    assert len(world.nodes["n1"].runs) == 3


def test_a_deadline_ends_a_job_that_nobody_can_run() -> None:
    world = World(start=False)
    world.start_controller()
    world.settle()
    world.order()
    world.settle()
    say(world, submit(deadline_ms=5000))
    world.passes(4000)
    assert not world.ends()
    world.passes(2000)
    [end] = world.ends()
    assert end.failure.code is FailureCode.DEADLINE
    assert "5000 ms" in end.failure.text


def test_a_deadline_goes_on_after_a_restart(world: World) -> None:
    held(world)
    say(world, submit(deadline_ms=8000))
    world.passes(2000)
    world.kill_controller()
    world.start_controller()
    world.settle()
    world.passes(9000)
    assert world.ends()[0].failure.code is FailureCode.DEADLINE
    assert not world.nodes["n1"].calls, "the run was stopped"


def test_a_deleted_service_ends_its_jobs(world: World) -> None:
    held(world)
    say(world, submit())
    world.delete()
    world.settle()
    [end] = world.ends()
    assert end.failure.code is FailureCode.NO_SERVICE
    assert world.record().state is JobState.FAILED


def test_a_cancelled_job_stops_at_its_node_and_stays_over(world: World) -> None:
    held(world)
    say(world, submit())
    assert world.nodes["n1"].calls
    say(world, query(cancel=True))
    assert not world.nodes["n1"].calls
    [end] = world.ends()
    assert end.failure.code is FailureCode.CANCELLED
    assert world.record().state is JobState.CANCELLED
    world.feed("ts-main")
    say(world, submit())
    assert world.ends()[-1].failure.code is FailureCode.CANCELLED
    assert not world.nodes["n1"].calls
