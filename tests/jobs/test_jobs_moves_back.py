"""A service that comes back, and runs that were half done when it left: once, and told once."""

from typing import Any

import pytest
from jobs_world import (
    ABOVE,
    OTHER,
    TA,
    TS,
    Edge,
    World,
    jobs_of,
    leaving,
    let_go,
    ordered,
    query,
    say,
    says,
    submit,
)

from protocols.messages import JobHandover, JobOwned, ServiceDelete, ServiceOrder
from protocols.messages.invocation import FailureCode
from protocols.messages.job import JobState
from protocols.qoais import ServiceKind


@pytest.fixture
def world() -> World:
    """Return a world where j1 runs, is with both anchors, and comes back: its owner lost count."""
    world = leaving(deadline_ms=20_000)
    world.lose = lambda _to, body: isinstance(body, JobOwned)
    let_go(world)
    world.settle()
    assert jobs_of(world, TA)
    assert jobs_of(world, OTHER)
    world.lose = lambda _to, _body: False
    order = ServiceOrder(
        "svc", "uc", ServiceKind.COMPUTING, 3, world.specs, world.outputs, epochs_above=2 * ABOVE
    )
    says(world, TA, order)
    says(world, OTHER, ServiceDelete("svc", 3, transferred=True))
    world.settle()
    return world


def test_its_jobs_are_open_once(world: World) -> None:
    first = world.roles[TA].jobs._open["j1"]
    world.passes(3000, 500)
    assert world.roles[TA].jobs._open["j1"] is first
    world.nodes["n1"].release()
    world.passes(40_000, 500)
    assert world.record().state is JobState.DONE
    assert len(world.roles[TA].jobs) == 0
    assert not jobs_of(world, OTHER)


def test_a_done_job_is_not_run_and_told_again(world: World) -> None:
    world.nodes["n1"].release()
    world.settle()
    world.nodes["n1"].holds = False
    world.passes(5000, 500)
    assert world.nodes["n1"].runs == ["v1"]
    assert len(world.ends()) == 1


def test_a_cancelled_job_stays_cancelled(world: World) -> None:
    say(world, query(cancel=True))
    world.nodes["n1"].holds = False
    world.passes(30_000, 500)
    assert world.record().state is JobState.CANCELLED
    assert [end.failure.code for end in world.ends()] == [FailureCode.CANCELLED]


def test_a_service_that_is_ended_takes_the_jobs_on_their_way_along() -> None:
    world = World(anchors=(TA, OTHER))
    world.nodes["n1"].holds = True
    say(world, submit())
    ordered(world)
    world.lose = lambda _to, body: isinstance(body, JobHandover)
    let_go(world)
    says(world, TA, ServiceDelete("svc", 3))
    world.settle()
    assert world.record().state is JobState.FAILED
    assert len(world.ends()) == 1


@pytest.fixture
def halves() -> World:
    """Return a world where one of two ends of j1 has come."""
    world = World("n1", "n2", steps=2, start=False, anchors=(TA, OTHER))
    world.outputs = (Edge("y", "s0", "x"), Edge("z", "s1", "x"))
    world.start_controller()
    for node in world.nodes.values():
        node.start()
    world.settle()
    world.order()
    world.settle()
    world.nodes["n2"].holds = True
    say(world, submit("j1", b"v1"))
    world.passes(100)
    assert list(world.record().parts) == [0]
    return world


def both(world: World) -> list[Any]:
    world.nodes["n2"].release()
    world.settle()
    world.nodes["n2"].holds = False
    world.passes(60_000, 1000)
    record = jobs_of(world, OTHER)["j1"]
    assert record.state is JobState.DONE
    assert sorted(record.parts) == [0, 1]
    assert len(world.roles[TS].jobs) == 0
    return [end.part for end in world.ends()]


def test_a_job_with_half_its_ends_is_run_anew(halves: World) -> None:
    ordered(halves)
    let_go(halves)
    halves.settle()
    assert not jobs_of(halves, TA)
    assert both(halves) == [0, 1]


def test_one_that_was_begun_at_the_new_anchor_is_run_anew_as_well(halves: World) -> None:
    ordered(halves)
    halves.passes(70_000, 1000)
    # The run goes on for this one; what has come of it lies with the old anchor.
    say(halves, submit("j1", b"v1"))
    halves.passes(100)
    assert "j1" in jobs_of(halves, OTHER)
    let_go(halves)
    halves.settle()
    assert both(halves) == [0, 1]
