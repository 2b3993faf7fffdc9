"""Nobody is told for good that a job does not exist while it may be on its way."""

import pytest
from jobs_world import (
    OTHER,
    TA,
    TS,
    App,
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

from controller.decider import Linked
from controller.records import ANCHORED
from protocols.messages import JobHandover, JobsMoved, ServiceOrder
from protocols.qoais import ServiceKind


@pytest.fixture
def world() -> World:
    """Return a world where j1 runs, and the old anchor has not been told to let go."""
    return leaving(run_ms=600_000)


def restart(world: World, name: str) -> None:
    del world.roles[name]
    world.start_anchor(name)
    world.feed(name, Linked(TS))
    world.feed(TS, Linked(name))
    world.settle()


def expects(world: World) -> tuple[str, ...]:
    expects: tuple[str, ...] = world.store_of_other[ANCHORED, "svc"].value.expects
    return expects


def finish(world: World) -> None:
    let_go(world)
    world.settle()
    world.nodes["n1"].release()
    world.passes(90_000, 1000)
    assert world.app is not None
    assert world.app.ended["j1"].failure is None
    assert not world.app.refused
    assert world.nodes["n1"].runs == ["v1"]
    assert not expects(world)
    say(world, query("j9"))
    assert not world.accepted("j9")[-1].retryable


def test_a_slow_move_is_waited_for(world: World) -> None:
    world.passes(200_000, 1000)
    assert world.app is not None
    assert not world.app.refused
    assert {one.retryable for one in world.accepted() if not one.accepted} == {True}
    finish(world)


def test_so_it_is_over_a_restart_of_the_new_anchor(world: World) -> None:
    restart(world, OTHER)
    world.passes(12_000, 500)
    assert expects(world)
    finish(world)


def test_a_last_word_that_was_lost_is_asked_for(world: World) -> None:
    world.lose = lambda _to, body: isinstance(body, JobsMoved) and not body.asks
    let_go(world)
    world.settle()
    assert not jobs_of(world, TA)
    assert expects(world)
    restart(world, TA)
    world.lose = lambda _to, _body: False
    world.passes(40_000, 1000)
    assert not expects(world)


def test_an_anchor_that_has_jobs_yet_does_not_say_otherwise(world: World) -> None:
    let_go(world)
    world.lose = lambda _to, body: isinstance(body, JobHandover)
    world.wire.clear()
    world.passes(100_000, 1000)
    assert expects(world)
    restart(world, TA)
    world.passes(100_000, 1000)
    assert expects(world)
    world.lose = lambda _to, _body: False
    world.passes(40_000, 1000)
    assert not expects(world)
    assert "j1" in jobs_of(world, OTHER)


def test_new_jobs_wait_for_no_anchor_for_ever(world: World) -> None:
    world.nodes["n1"].holds = False
    world.passes(61_000, 1000)
    say(world, submit("j2", b"v2"))
    world.passes(100)
    assert world.ends("j2")


def test_the_anchors_that_namo_names_are_waited_for_one_by_one() -> None:
    world = World(start=False, anchors=(TA, OTHER))
    world.start_controller()
    world.nodes["n1"].start()
    world.settle()
    order = ServiceOrder(
        "svc", "uc", ServiceKind.COMPUTING, 2, world.specs, world.outputs,
        taken_from=("ta-dead", TA),
    )  # fmt: skip
    says(world, OTHER, order)
    world.settle()
    world.passes(5000, 500)
    assert expects(world) == ("ta-dead",)
    world.passes(70_000, 1000)
    say(world, query("j1"))
    assert [one.retryable for one in world.accepted()] == [True]


def test_a_scheduler_without_memory_takes_no_service_for_unknown() -> None:
    world = World(start=False, anchors=(TA, OTHER))
    world.start_controller()
    say(world, query("j1"))
    say(world, submit("j2"))
    assert [one.retryable for one in (*world.accepted(), *world.accepted("j2"))] == [True, True]
    world.passes(61_000, 1000)
    say(world, query("j1"))
    assert not world.accepted()[-1].retryable


def test_the_client_asks_at_its_own_pace() -> None:
    world = World(anchors=(TA, OTHER))
    world.app = App(world)
    world.nodes["n1"].holds = True
    world.app.open(submit("j1", b"v1", run_ms=600_000))
    world.settle()
    world.passes(100)
    ordered(world)
    world.passes(61_000, 1000)
    before = len(world.accepted())
    world.passes(60_000, 100)
    assert 0 < len(world.accepted()) - before <= 3
