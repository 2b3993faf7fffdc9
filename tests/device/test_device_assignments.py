"""Assignments on a fake clock: epochs, updates, trouble, release."""

import pytest
from device_harness import MIB, NODE, SimNode, assign, chain, digest, invoke, manifest, of

from device_agent.core import commands, events
from device_agent.core.lifecycle import TABLE, Entry, LifecycleEvent, step
from device_agent.core.timers import Timers
from device_agent.core.upkeep import DRAIN_MS, RESTARTS_MAX
from protocols.errors import Blame, TonaBug
from protocols.messages import Assign, Drain, Release, Result, Status
from protocols.messages.presence import Inventory
from protocols.messages.task import InstanceState


def joined() -> SimNode:
    node = SimNode()
    node.join()
    return node


def last(node: SimNode) -> Status:
    return of(Status, node.said)[-1]


def test_an_assignment_is_journalled_before_anything_else() -> None:
    node = joined()
    said = node.hear(assign("t"))
    assert isinstance(said[0], commands.Keep)
    assert last(node).state is InstanceState.READY
    assert [one.instance for one in node.started] == ["t~1"]


def test_the_same_assignment_repeats_the_status_and_restarts_nothing() -> None:
    node = joined()
    node.hear(assign("t"))
    said = node.hear(assign("t"))
    assert [type(one) for one in said] == [commands.Say]
    assert of(Status, said)[0].state is InstanceState.READY


def test_a_stale_epoch_is_counted_and_answered_with_the_present() -> None:
    node = joined()
    node.hear(assign("t", 5))
    said = node.hear(assign("t", 4, 9))
    assert not of(commands.Keep, said)
    assert of(Status, said)[0].epoch == 5
    assert node.core.counts["stale"] == 1
    node.hear(Release("t", 5))
    node.hear(assign("t", 5))
    assert node.core.counts["stale"] == 2
    assert last(node).state is InstanceState.STOPPED


def test_a_higher_epoch_of_what_runs_is_adopted_without_restart() -> None:
    node = joined()
    node.hear(assign("t", 1))
    node.hear(assign("t", 2))
    assert len(node.started) == 1
    assert (last(node).epoch, last(node).state) == (2, InstanceState.READY)
    assert node.journal["t"].epoch == 2
    assert any("adopted" in one.event for one in node.core.story("t"))


def test_a_new_generation_takes_over_when_it_is_ready() -> None:
    node = joined()
    node.hear(assign("t", 1, 1))
    node.helpful = False
    node.hear(assign("t", 2, 2))
    node.call(invoke("r1", chain(("t", NODE, 1))))
    assert [one.instance for one in node.calls.values()] == ["t~1"], "the old one serves"
    node.tell(events.ArtifactReady(digest("m2")))
    said = node.tell(events.InstanceReady("t~2"))
    assert not of(commands.StopInstance, said), "what runs is finished first"
    node.call(invoke("r2", chain(("t", NODE, 2)), budget_ms=60_000))
    said = node.answer(next(iter(node.calls)))
    assert of(Result, said)[0].failure is None
    node.call(invoke("late", chain(("t", NODE, 1)), budget_ms=60_000))
    assert node.calls["3"].instance == "t~1", "its epoch is served for the grace"
    said = node.after(2000)
    assert not of(commands.StopInstance, said), "what runs is finished first"
    said = node.answer("3")
    assert [one.instance for one in of(commands.StopInstance, said)] == ["t~1"]
    node.tell(events.InstanceStopped("t~1"))
    assert of(Result, node.answer())[0].request == "r2"
    assert last(node).generation == 2


def test_an_update_that_fails_leaves_the_old_one_serving() -> None:
    node = joined()
    node.hear(assign("t", 1, 1))
    node.helpful = False
    node.hear(assign("t", 2, 2))
    node.tell(events.ArtifactReady(digest("m2")))
    node.tell(events.InstanceFailed("t~2", "no such export", Blame.USER, retryable=False))
    assert (last(node).state, last(node).epoch) == (InstanceState.FAILED, 2)
    assert last(node).blame is Blame.USER
    node.call(invoke("r1", chain(("t", NODE, 1))))
    assert len(node.calls) == 1
    node.hear(assign("t", 3, 1))
    assert (last(node).state, last(node).epoch) == (InstanceState.READY, 3), "rolled back"


def test_a_newer_update_replaces_one_on_its_way() -> None:
    node = joined()
    node.hear(assign("t", 1, 1))
    node.helpful = False
    node.hear(assign("t", 2, 2))
    node.helpful = True
    node.hear(assign("t", 3, 3))
    assert (last(node).generation, last(node).state) == (3, InstanceState.READY)
    node.tell(events.ArtifactReady(digest("m2")))
    assert [one.instance for one in node.started] == ["t~1", "t~3"]


def test_an_exit_restarts_within_the_bound_and_then_fails() -> None:
    node = joined()
    node.hear(assign("t"))
    for _ in range(RESTARTS_MAX):
        node.tell(events.InstanceExited(node.started[-1].instance, "killed by signal 9"))
        assert node.state() is InstanceState.RESTARTING
        node.after(61_000)
        assert node.state() is InstanceState.READY
    node.tell(events.InstanceExited(node.started[-1].instance, "killed by signal 9"))
    assert node.state() is InstanceState.FAILED
    assert (last(node).reason, last(node).restarts) == ("killed by signal 9", RESTARTS_MAX)
    node.hear(assign("t", 2))
    assert node.state() is InstanceState.READY, "a new epoch tries again"


def test_old_troubles_are_forgiven() -> None:
    node = joined()
    node.hear(assign("t"))
    for _ in range(4 * RESTARTS_MAX):
        node.tell(events.InstanceExited(node.started[-1].instance, "out of memory"))
        node.after(200_000)
    assert node.state() is InstanceState.READY


def test_a_fetch_that_fails_offline_is_tried_until_the_cell_is_back() -> None:
    node = SimNode(events.Restored())
    node.helpful = False
    node.hear(assign("t"))
    for _ in range(50):
        node.tell(events.ArtifactFailed(digest("m1"), "no route to host"))
        node.after(100_000)
    assert node.state() is InstanceState.FETCHING
    node.tell(events.ArtifactFailed(digest("m1"), "no route to host"))
    assert node.state() is InstanceState.RESTARTING
    node.helpful = True
    node.join()
    assert node.state() is InstanceState.READY, "the welcome tries again at once"


def test_a_fetch_that_fails_online_ends_in_failed_with_reason_and_blame() -> None:
    node = joined()
    node.helpful = False
    node.hear(assign("t"))
    for _ in range(RESTARTS_MAX + 1):
        node.tell(events.ArtifactFailed(digest("m1"), "the disk is full"))
        node.after(61_000)
    assert node.state() is InstanceState.FAILED
    assert (last(node).reason, last(node).blame) == ("the disk is full", Blame.ENVIRONMENT)


def test_release_finishes_what_runs_then_stops_and_remembers_the_epoch() -> None:
    node = joined()
    node.hear(assign("t", 4))
    node.call(invoke("r1", chain(("t", NODE, 4))))
    node.call(invoke("r2", chain(("t", NODE, 4))))
    said = node.hear(Release("t", 4))
    assert isinstance(said[0], commands.Forget)
    assert last(node).state is InstanceState.DRAINING
    said = node.call(invoke("r3", chain(("t", NODE, 4))))
    assert of(Result, said)[0].failure.retryable
    node.answer()
    said = node.answer()
    assert of(Result, said)[0].failure is None
    assert last(node).state is InstanceState.STOPPED
    assert not node.core.assignments.held
    assert node.tombstones == {"t": 4}
    assert of(Status, node.hear(Release("t", 4)))[0].state is InstanceState.STOPPED


def test_a_drain_is_bounded_and_unfinished_requests_are_answered() -> None:
    node = joined()
    node.hear(assign("t"))
    node.call(invoke("r1", chain(("t", NODE, 1)), budget_ms=100_000))
    node.hear(Release("t", 1))
    said = node.after(DRAIN_MS)
    assert of(Result, said)[0].failure.retryable
    assert last(node).state is InstanceState.STOPPED


def test_a_release_of_an_older_epoch_is_stale() -> None:
    node = joined()
    node.hear(assign("t", 5))
    node.hear(Release("t", 4))
    assert node.state() is InstanceState.READY
    assert node.core.counts["stale"] == 1


def test_an_unknown_release_fences_the_task() -> None:
    node = joined()
    node.hear(Release("t", 9))
    node.hear(assign("t", 9))
    assert node.state() is None
    node.hear(assign("t", 10))
    assert node.state() is InstanceState.READY


def test_a_task_comes_back_while_its_old_instance_drains() -> None:
    node = joined()
    node.hear(assign("t", 1))
    node.call(invoke("r1"))
    node.hear(Release("t", 1))
    node.hear(assign("t", 2))
    assert (last(node).state, last(node).epoch) == (InstanceState.READY, 2)
    node.answer()
    assert node.state() is InstanceState.READY
    assert len(node.core.upkeep.instances) == 1


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (assign("big", of=manifest(memory_mib=2000)), "1024 MiB for tasks"),
        (assign("more", of=manifest(memory_mib=1000)), "64 MiB are taken"),
    ],
)
def test_more_than_the_node_has_is_refused_with_a_reason(message: Assign, told: str) -> None:
    node = joined()
    node.hear(assign("t"))
    said = node.hear(message)
    assert not of(commands.Keep, said)
    (status,) = of(Status, said)
    assert status.state is InstanceState.FAILED
    assert told in status.reason
    assert NODE in status.reason


def test_too_many_tasks_and_unknown_executors_are_refused() -> None:
    node = joined()
    for number in range(8):
        node.hear(assign(f"t{number}", of=manifest(memory_mib=1)))
    node.hear(assign("one-more", of=manifest(memory_mib=1)))
    assert "its limit is 8" in last(node).reason
    node = SimNode(inventory=Inventory("p", "a", "o", 1, 64 * MIB, 1))
    node.join()
    node.hear(assign("other"))
    assert "no wasm executor" in last(node).reason


def test_a_draining_node_takes_no_new_task_but_lets_the_old_ones_finish() -> None:
    node = joined()
    node.hear(assign("t"))
    node.call(invoke("r1"))
    node.hear(Drain("maintenance"))
    node.hear(assign("u"))
    assert "maintenance" in last(node).reason
    assert of(Result, node.call(invoke("r2")))[0].failure.retryable
    assert of(Result, node.answer())[0].failure is None
    node.hear(assign("t", 2))
    assert last(node).epoch == 2, "what it holds can still be fenced"


def test_a_full_disk_is_told_and_what_serves_goes_on() -> None:
    node = joined()
    node.helpful = False
    node.hear(assign("t"))
    node.tell(events.JournalFailed("t", 1, "database or disk is full; 0 MiB are free"))
    assert last(node).state is InstanceState.FAILED
    assert "disk is full" in last(node).reason
    assert not node.core.assignments.held
    node.helpful = True
    node.tell(events.ArtifactReady(digest("m1")))
    node.hear(assign("t", 2))
    node.hear(assign("t", 3))
    node.tell(events.JournalFailed("t", 3, "disk is full"))
    assert node.state() is InstanceState.READY
    (again,) = of(commands.Keep, node.after(60_000))
    assert again.assign.epoch == 3
    node.hear(Release("t", 3))
    node.tell(events.JournalFailed("t", 3, "disk is full"))
    (forget,) = of(commands.Forget, node.after(60_000))
    assert (forget.task, forget.epoch) == ("t", 3)


def test_a_restart_of_the_daemon_brings_the_tasks_back_without_anybody() -> None:
    node = SimNode(events.Restored((assign("t", 3), assign("u", 4)), (("old", 9),)))
    assert node.state("t") is InstanceState.READY
    assert node.state("u") is InstanceState.READY
    assert not of(commands.Keep, node.said), "flash is spared"
    node.hear(assign("old", 9))
    assert node.core.counts["stale"] == 1


def test_a_reconnection_touches_no_task() -> None:
    node = joined()
    node.hear(assign("t"))
    before = len(node.started)
    for _ in range(5):
        node.tell(events.Disconnected("broker gone"))
        node.after(7000)
        node.join()
        node.hear(assign("t"))
    assert len(node.started) == before
    assert not of(commands.StopInstance, node.said)


def test_shared_artifacts_are_fetched_once() -> None:
    node = joined()
    node.helpful = False
    node.hear(assign("t"))
    node.hear(assign("u"))
    assert len(of(commands.FetchArtifact, node.said)) == 1
    node.tell(events.ArtifactReady(digest("m1")))
    assert {one.task for one in node.started} == {"t", "u"}


def test_memory_of_an_instance_is_told_when_it_clearly_changes() -> None:
    node = joined()
    node.hear(assign("t"))
    assert of(Status, node.tell(events.InstanceStats("t~1", 10 * MIB)))[0].memory_bytes == 10 * MIB
    assert not node.tell(events.InstanceStats("t~1", 11 * MIB))
    assert of(Status, node.tell(events.InstanceStats("t~1", 20 * MIB)))


def test_late_words_of_executors_are_passed_over() -> None:
    node = joined()
    node.hear(assign("t"))
    node.hear(Release("t", 1))
    for event in (
        events.InstanceReady("t~1"),
        events.InstanceStopped("t~1"),
        events.InstanceFailed("t~1", "x", Blame.USER, retryable=True),
        events.InstanceExited("t~1", "x"),
        events.InstanceStats("t~1", 5),
        events.ArtifactReady(digest("nobody")),
        events.ArtifactFailed(digest("nobody"), "x"),
    ):
        assert node.tell(event) == []


def test_a_start_that_is_released_is_stopped() -> None:
    node = joined()
    node.helpful = False
    node.hear(assign("t"))
    node.tell(events.ArtifactReady(digest("m1")))
    assert of(commands.StopInstance, node.hear(Release("t", 1)))
    node.tell(events.InstanceReady("t~1"))
    node.after(60_000)
    assert last(node).state is InstanceState.STOPPED, "bounded, though the executor is mute"


def test_an_illegal_step_is_a_bug_that_tells_the_story() -> None:
    story = [Entry(InstanceState.READY, "started of epoch 1", "op-1")]
    with pytest.raises(TonaBug, match=r"task t cannot take 'retry' while ready: started .*op-1"):
        step(InstanceState.READY, LifecycleEvent.RETRY, "t", story)


def test_every_state_but_the_first_is_reached_and_only_stopped_is_final() -> None:
    reached = set(TABLE.values())
    assert reached == set(InstanceState)
    left = {state for state, _ in TABLE}
    assert set(InstanceState) - left == {InstanceState.STOPPED}


def test_timers_stay_as_small_as_what_is_live() -> None:
    timers = Timers()
    for number in range(100_000):
        timers.set(("a", str(number)), number + 10_000)
        timers.cancel(("a", str(number)))
        timers.set(("b", ""), number)
    assert len(timers) == 1
    assert len(timers._heap) < 100
    assert timers.next_ms() == 99_999
    assert list(timers.due(200_000)) == [("b", "")]
    assert timers.next_ms() is None
