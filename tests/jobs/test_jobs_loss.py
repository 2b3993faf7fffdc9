"""Jobs through the loss of every part, at every moment: each completes once."""

import random

import pytest
from jobs_world import App, World, submit
from msgspec import structs

from controller.decider import ToRole
from controller.records import JOB, JobRecord
from protocols.messages import JobEnded
from protocols.messages.job import JobState


def finished(world: World, count: int, patience_ms: int = 240_000) -> None:
    """Let time pass until the application has heard of every end."""
    assert world.app is not None
    end_ms = world.now_ms + patience_ms
    while len(world.app.ended) < count:
        assert world.now_ms < end_ms, f"{len(world.app.ended)} of {count} have ended"
        world.passes(500)


def check(world: World, count: int) -> None:
    """Hold what must be true when all is over."""
    app = world.app
    assert app is not None
    assert not app.refused
    for at in range(count):
        end = app.ended[f"j{at}"]
        assert end.failure is None
        assert end.outputs["y"].data == f"value {at}".encode()  # type: ignore[union-attr]
    records = [one.value for (kind, _), one in world.store.items() if kind == JOB]
    assert len(records) == count
    assert all(isinstance(one, JobRecord) and one.state is JobState.DONE for one in records)
    world.passes(70_000, 500)
    assert world.waiting() == 0, "the nodes keep nothing that is recorded"
    assert len(world.roles["ta-main"].jobs) == 0
    assert len(world.roles["ts-main"].jobs) == 0
    for line in world.roles["ta-main"].jobs._lines.values():
        assert not line.running


def opened(world: World, count: int) -> None:
    world.app = App(world)
    world.app.open(*(submit(f"j{at}", f"value {at}".encode()) for at in range(count)))


def deliver(world: World, steps: int) -> None:
    for _ in range(steps):
        if world.wire:
            world.wire.popleft()()


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("steps", range(0, 40, 3))
def test_the_controller_dies_at_any_step(steps: int, hold: bool) -> None:
    """What was not committed is gone, what was accepted is not."""
    world = World()
    opened(world, 3)
    world.hold_commits = hold
    deliver(world, steps)
    promised = {one.job for one in world.told if not isinstance(one, JobEnded)}
    durable = {key for kind, key in world.store if kind == JOB}
    assert promised <= durable
    world.kill_controller()
    world.wire.clear()
    world.hold_commits = False
    world.passes(300)
    world.start_controller()
    finished(world, 3)
    check(world, 3)


@pytest.mark.parametrize("steps", range(0, 40, 4))
def test_the_anchor_alone_dies_at_any_step(steps: int) -> None:
    world = World()
    opened(world, 3)
    deliver(world, steps)
    world.roles.pop("ta-main")
    world.held.clear()
    world.settle()
    world.start_anchor()
    # Between processes both sides of the link are told of a new beginning.
    world.linked()
    finished(world, 3)
    check(world, 3)


@pytest.mark.parametrize("steps", range(0, 40, 4))
def test_the_scheduler_alone_dies_at_any_step(steps: int) -> None:
    world = World()
    opened(world, 3)
    deliver(world, steps)
    world.roles.pop("ts-main")
    world.settle()
    world.start_scheduler()
    finished(world, 3)
    check(world, 3)


@pytest.mark.parametrize("steps", range(0, 40, 4))
def test_the_node_dies_at_any_step_and_comes_back(steps: int) -> None:
    world = World()
    opened(world, 3)
    deliver(world, steps)
    world.nodes["n1"].kill()
    world.passes(1000)
    world.nodes["n1"].start()
    finished(world, 3)
    check(world, 3)


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_node_is_lost_and_a_spare_runs_its_jobs(comes_back: bool) -> None:
    world = World("n1", "n2")
    for node in world.nodes.values():
        node.holds = True
    opened(world, 5)
    world.passes(1000)
    [runs] = [one for one in world.nodes.values() if one.calls]
    other = next(one for one in world.nodes.values() if one is not runs)
    runs.disconnect()
    other.holds = False
    # What it has begun it finishes, with nobody to hear.
    runs.release()
    finished(world, 5)
    assert sorted(other.runs) == sorted(f"value {at}" for at in range(5))
    ends = len(world.told)
    if comes_back:
        runs.connect()
        world.passes(20_000)
        assert world.waiting() == 0
        assert len(world.told) == ends, "late ends are acknowledged, and nobody hears of them"
    else:
        runs.kill()
    check(world, 5)


def test_what_ends_while_the_node_is_cut_off_is_told_when_it_is_back() -> None:
    world = World()
    node = world.nodes["n1"]
    node.holds = True
    opened(world, 5)
    world.passes(1000)
    node.disconnect()
    node.release()
    world.passes(500)
    assert not world.app.ended  # type: ignore[union-attr]
    node.connect()
    node.holds = False
    finished(world, 5)
    assert len(node.runs) == 5, "nothing ran twice"
    check(world, 5)


def test_the_client_dies_and_another_asks_for_its_jobs() -> None:
    world = World()
    world.nodes["n1"].holds = True
    opened(world, 3)
    world.passes(1000)
    world.app = App(world)
    world.nodes["n1"].release()
    world.settle()
    assert not world.app.ended
    world.app.open(*(submit(f"j{at}", f"value {at}".encode()) for at in range(3)))
    finished(world, 3)
    check(world, 3)


@pytest.mark.parametrize("seed", range(24))
def test_every_job_completes_once_under_any_faults(seed: int) -> None:
    """Losses, doubles, kills and cuts from a seed; then quiet, and everything is as it must be."""
    dice = random.Random(seed)
    world = World("n1", "n2", "n3")
    opened(world, 30)
    dropped = dice.uniform(0.0, 0.2)
    # Between roles nothing is lost: in one process it is a call, between two a link with numbers.
    world.lose = lambda to, _body: not isinstance(to, ToRole) and dice.random() < dropped
    for _ in range(40):
        match dice.randrange(8):
            case 0:
                world.kill_controller()
                world.wire.clear()
                world.passes(dice.randrange(1, 500))
                world.start_controller()
            case 1:
                node = dice.choice(list(world.nodes.values()))
                node.kill()
                world.passes(dice.choice((100, 5000)))
                node.start()
            case 2:
                node = dice.choice(list(world.nodes.values()))
                node.disconnect()
                world.passes(dice.choice((100, 5000)))
                node.connect()
            case 3:
                dice.choice(list(world.nodes.values())).holds = dice.random() < 0.5
            case 4:
                world.hold_commits = not world.hold_commits
            case _:
                deliver(world, dice.randrange(100))
                world.commit()
        for node in world.nodes.values():
            node.release()
        world.passes(dice.randrange(1, 2000))
    world.lose = lambda *_: False
    world.hold_commits = False
    world.commit()
    for node in world.nodes.values():
        node.holds = False
        node.release()
    finished(world, 30)
    check(world, 30)


def test_a_record_of_a_later_attempt_is_durable_before_its_run_leaves() -> None:
    world = World()
    world.client(submit())
    world.settle()
    done = world.record()
    # As if it were restored in the middle of its third attempt.
    again = structs.replace(done, state=JobState.ACCEPTED, attempts=3, parts={}, submit=submit())
    key = (JOB, "j1")
    world.store[key] = structs.replace(world.store[key], value=again)
    world.kill_controller()
    world.nodes["n1"].kill()
    world.start_controller()
    world.nodes["n1"].start()
    world.passes(5000)
    assert world.record().state is JobState.DONE
    assert world.record().attempts == 3
