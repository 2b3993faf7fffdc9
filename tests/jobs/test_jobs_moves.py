"""Jobs move with their service to another anchor: owned by one, completed once."""

from typing import Any

import pytest
from jobs_world import (
    ABOVE,
    OTHER,
    REPLY,
    TA,
    TS,
    App,
    World,
    jobs_of,
    let_go,
    ordered,
    says,
    submit,
)
from msgspec import structs

from controller.anchor import job_moves
from controller.decider import Linked
from protocols.messages import (
    JobHandover,
    JobOwned,
    JobQuery,
    JobsMoved,
    ServiceDelete,
    ServiceOrder,
)
from protocols.messages.job import JobState
from protocols.qoais import ServiceKind


@pytest.fixture
def world() -> World:
    """One job is over, three run, and the service is with its second anchor, too."""
    world = World(anchors=(TA, OTHER))
    world.app = App(world)
    world.app.open(submit("j0", b"value 0"))
    world.settle()
    world.nodes["n1"].holds = True
    world.app.open(*(submit(f"j{at}", f"value {at}".encode()) for at in range(1, 4)))
    world.settle()
    world.passes(100)
    ordered(world)
    return world


def finish(world: World) -> None:
    for _ in range(60):
        world.nodes["n1"].release()
        world.passes(2000, 500)
    assert world.app is not None
    assert {name: end.failure for name, end in world.app.ended.items()} == dict.fromkeys(
        ("j0", "j1", "j2", "j3")
    )
    assert not world.app.refused
    assert not jobs_of(world, TA), "one anchor owns them"
    owned = jobs_of(world, OTHER)
    assert sorted(owned) == ["j0", "j1", "j2", "j3"]
    assert {one.state for one in owned.values()} == {JobState.DONE}
    assert world.waiting() == 0
    assert len(world.roles[TS].jobs) == 0


def test_jobs_go_with_their_service_and_run_once(world: World) -> None:
    let_go(world)
    world.settle()
    assert not jobs_of(world, TA)
    assert sorted(jobs_of(world, OTHER)) == ["j0", "j1", "j2", "j3"]
    finish(world)
    assert sorted(world.nodes["n1"].runs) == [f"value {at}" for at in range(4)]


def test_the_end_that_there_was_is_told_by_the_new_anchor(world: World) -> None:
    let_go(world)
    world.settle()
    before = len(world.ends("j0"))
    world.client(JobQuery("j0", "svc", REPLY))
    world.settle()
    assert len(world.ends("j0")) == before + 1


def test_nobody_is_answered_about_jobs_that_may_be_on_their_way(world: World) -> None:
    before = len(world.told)
    world.client(submit("j1", b"value 1"))
    world.client(JobQuery("j2", "svc", REPLY))
    world.settle()
    assert len(world.told) == before
    assert not jobs_of(world, OTHER)
    let_go(world)
    world.settle()
    world.client(submit("j1", b"value 1"))
    world.settle()
    assert world.accepted("j1")[-1].accepted
    finish(world)
    assert len(world.nodes["n1"].runs) == 4


@pytest.mark.parametrize("kind", [JobHandover, JobOwned, JobsMoved])
def test_what_is_lost_between_anchors_is_said_again(world: World, kind: type[Any]) -> None:
    lost: list[Any] = []

    def lose(_to: Any, body: Any) -> bool:
        if isinstance(body, kind) and len(lost) < 3:
            lost.append(body)
            return True
        return False

    world.lose = lose
    let_go(world)
    world.settle()
    assert lost
    finish(world)


@pytest.mark.parametrize("who", [TA, OTHER])
@pytest.mark.parametrize("steps", range(0, 30, 3))
def test_an_anchor_dies_at_any_step_of_the_way(world: World, who: str, steps: int) -> None:
    # An end that has stayed behind is a memory for people; here it goes first.
    let_go(world)
    for _ in range(steps):
        if world.wire:
            world.wire.popleft()()
    del world.roles[who]
    world.held.clear()
    world.settle()
    world.start_anchor(who)
    world.feed(who, Linked(TS))
    world.feed(TS, Linked(who))
    world.settle()
    for _ in range(60):
        world.nodes["n1"].release()
        world.passes(2000, 500)
    assert world.app is not None
    assert sorted(world.app.ended) == ["j0", "j1", "j2", "j3"]
    owned = jobs_of(world, OTHER)
    assert {"j1", "j2", "j3"} <= owned.keys()
    assert not jobs_of(world, TA).keys() & {"j1", "j2", "j3"}


def test_jobs_that_nobody_takes_fail_for_good(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_moves, "UNTAKEN_MS", 4000)
    world.lose = lambda _to, body: isinstance(body, JobHandover)
    let_go(world)
    world.passes(10_000, 500)
    kept = jobs_of(world, TA)
    assert kept["j0"].state is JobState.DONE
    assert {kept[f"j{at}"].state for at in range(1, 4)} == {JobState.FAILED}
    assert "took no job" in kept["j1"].failure.text


def test_a_service_that_comes_back_finds_its_jobs(world: World) -> None:
    world.lose = lambda _to, body: isinstance(body, JobHandover)
    let_go(world)
    world.settle()
    world.lose = lambda _to, _body: False
    order = ServiceOrder("svc", "uc", ServiceKind.COMPUTING, 3, world.specs, world.outputs)
    says(world, TA, structs.replace(order, epochs_above=2 * ABOVE))
    says(world, OTHER, ServiceDelete("svc", 3, transferred=True))
    world.settle()
    for _ in range(60):
        world.nodes["n1"].release()
        world.passes(2000, 500)
    assert {one.state for one in jobs_of(world, TA).values()} == {JobState.DONE}
    assert not jobs_of(world, OTHER)


def test_a_service_that_is_ordered_anew_waits_for_nobodys_jobs() -> None:
    world = World()
    world.delete()
    world.settle()
    order = ServiceOrder("svc", "uc", ServiceKind.COMPUTING, 2, world.specs, world.outputs)
    says(world, TA, structs.replace(order, epochs_above=ABOVE))
    world.settle()
    world.client(submit("j1"))
    world.settle()
    assert world.ends("j1")
