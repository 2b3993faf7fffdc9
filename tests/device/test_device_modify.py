"""Modify without interruption and tuning, on a fake clock."""

from typing import Any

import msgspec
import pytest
from device_harness import MIB, NODE, SimNode, assign, chain, digest, invoke, manifest, of
from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.lifecycle import Entry
from device_agent.core.upkeep import BACKOFF_MAX_MS, RESTARTS_MAX
from protocols.errors import Blame
from protocols.manifest import Manifest
from protocols.messages import Assign, Birth, Result, Status, Tune
from protocols.messages.invocation import FailureCode
from protocols.messages.quality import Tuning
from protocols.messages.task import InstanceState, Release


def joined() -> SimNode:
    node = SimNode()
    node.join()
    return node


def last(node: SimNode) -> Status:
    return of(Status, node.said)[-1]


def variant(epoch: int, of: Manifest | None = None, grace_ms: int = 2000, **tuning: Any) -> Assign:
    plain = assign("t", epoch, of=of or manifest("m1"))
    return structs.replace(plain, tuning=Tuning(**tuning), grace_ms=grace_ms)


def tune(epoch: int, number: int, **tuning: Any) -> Tune:
    return Tune("t", epoch, number, Tuning(**tuning))


def code(node: SimNode, epoch: int) -> FailureCode | None:
    """Ask under an epoch; return why not, or None when it runs."""
    said = node.call(invoke(f"ask-{len(node.said)}", chain(("t", NODE, epoch)), budget_ms=100_000))
    failures = [one.failure for one in of(Result, said)]
    if not failures:
        assert len(of(commands.Execute, said)) == 1
        node.answer(of(commands.Execute, said)[0].call)
        return None
    return failures[0].code if failures[0] is not None else None


@pytest.mark.parametrize(
    "changed",
    [{"threads": 2}, {"provider": "CUDAExecutionProvider"}, {"variant": "small"}],
)
def test_threads_provider_and_variant_are_prepared_beside_what_serves(
    changed: dict[str, Any],
) -> None:
    node = joined()
    node.hear(variant(1))
    node.helpful = False
    small = manifest("small") if "variant" in changed else None
    node.hear(variant(2, small, **changed))
    assert (last(node).epoch, last(node).state) == (2, InstanceState.FETCHING)
    assert last(node).serving_epoch == 1, "the old one serves meanwhile"
    assert code(node, 1) is None
    assert code(node, 2) is FailureCode.NOT_READY
    node.tell(events.ArtifactReady(digest("small" if small else "m1")))
    (start,) = [one for one in node.started if one.instance == "t~2"]
    assert (start.threads, start.provider) == (
        changed.get("threads", 0),
        changed.get("provider", ""),
    )
    node.tell(events.InstanceReady("t~2"))
    assert (last(node).state, last(node).serving_epoch) == (InstanceState.READY, 0)
    assert code(node, 1) is None, "routes are on their way"
    assert code(node, 2) is None
    said = node.after(2000)
    assert [one.instance for one in of(commands.StopInstance, said)] == ["t~1"]
    assert code(node, 1) is FailureCode.STALE
    assert code(node, 2) is None


def test_the_epoch_before_an_adopted_one_is_served_for_the_grace_and_no_older_one() -> None:
    node = joined()
    for epoch in (1, 2, 3):
        node.hear(variant(epoch))
    assert len(node.started) == 1
    assert [code(node, epoch) for epoch in (1, 2, 3)] == [FailureCode.STALE, None, None]
    node.after(1999)
    assert code(node, 2) is None
    node.after(1)
    assert [code(node, epoch) for epoch in (2, 3)] == [FailureCode.STALE, None]


def test_without_a_grace_the_epoch_before_is_stale_at_once() -> None:
    node = joined()
    node.hear(variant(1))
    node.hear(variant(2, grace_ms=0))
    assert [code(node, epoch) for epoch in (1, 2)] == [FailureCode.STALE, None]
    node.hear(variant(3, grace_ms=0, threads=3))
    assert [code(node, epoch) for epoch in (2, 3)] == [FailureCode.STALE, None]
    assert len(node.core.upkeep.instances) == 1


def test_what_was_replaced_a_moment_ago_comes_back_without_a_start() -> None:
    node = joined()
    node.hear(variant(1))
    node.hear(variant(2, threads=2))
    node.hear(variant(3))
    assert [one.instance for one in node.started] == ["t~1", "t~2"]
    assert (last(node).epoch, last(node).state) == (3, InstanceState.READY)
    assert [code(node, epoch) for epoch in (1, 2, 3)] == [None, None, None]
    node.after(2000)
    assert [code(node, epoch) for epoch in (1, 2, 3)] == [
        FailureCode.STALE,
        FailureCode.STALE,
        None,
    ]
    assert list(node.core.upkeep.instances) == ["t~1"]


def test_an_instance_that_dies_in_its_grace_is_not_mended() -> None:
    node = joined()
    node.hear(variant(1))
    node.hear(variant(2, threads=2))
    node.tell(events.InstanceExited("t~1", "killed by signal 9"))
    assert list(node.core.upkeep.instances) == ["t~2"]
    assert [code(node, epoch) for epoch in (1, 2)] == [FailureCode.STALE, None]


def test_a_birth_tells_what_serves_beside_what_is_prepared() -> None:
    node = joined()
    node.hear(variant(1, replicas=2))
    node.helpful = False
    node.hear(variant(2, manifest("small"), variant="small"))
    node.join()
    [held] = of(Birth, node.said)[-1].holdings
    assert (held.epoch, held.state, held.tuning.variant) == (2, InstanceState.FETCHING, "small")
    assert (held.serving_epoch, held.serving_generation) == (1, 1)
    assert held.serving_tuning == Tuning(replicas=2)
    node.tell(events.ArtifactReady(digest("small")))
    node.tell(events.InstanceReady("t~2"))
    node.join()
    [held] = of(Birth, node.said)[-1].holdings
    assert (held.epoch, held.state, held.serving_epoch) == (2, InstanceState.READY, 0)
    assert held.serving_tuning is None


def test_one_that_cannot_be_prepared_leaves_the_old_one_serving_for_good() -> None:
    node = joined()
    node.hear(variant(1))
    node.helpful = False
    node.hear(variant(2, threads=2))
    node.tell(events.ArtifactReady(digest("m1")))
    node.tell(events.InstanceFailed("t~2", "no room", Blame.ENVIRONMENT, retryable=False))
    assert (last(node).state, last(node).serving_epoch) == (InstanceState.FAILED, 1)
    node.after(100_000)
    assert code(node, 1) is None


def test_one_whose_artifact_cannot_come_leaves_the_old_one_serving_for_good() -> None:
    node = joined()
    node.hear(variant(1))
    node.helpful = False
    node.hear(variant(2, manifest("small"), variant="small"))
    for _ in range(RESTARTS_MAX + 1):
        node.tell(events.ArtifactFailed(digest("small"), "the disk is full"))
        assert (last(node).reason, last(node).serving_epoch) == ("the disk is full", 1)
        assert code(node, 1) is None
        node.after(BACKOFF_MAX_MS)
    assert last(node).state is InstanceState.FAILED, "tried again within a bound"
    assert code(node, 1) is None


def test_a_release_ends_all_copies_of_a_modify() -> None:
    node = joined()
    node.hear(variant(1))
    node.hear(variant(2, threads=2))
    node.hear(variant(3, threads=3))
    node.hear(Release("t", 3))
    assert not node.core.upkeep.instances
    assert last(node).state is InstanceState.STOPPED
    assert code(node, 3) is FailureCode.STALE


def test_a_tune_restarts_nothing_is_journalled_and_confirmed() -> None:
    node = joined()
    node.hear(variant(1))
    said = node.hear(tune(1, 4, replicas=3, cpu_percent=150.0, priority=7, encoding="deflate"))
    assert isinstance(said[0], commands.Keep)
    (told,) = of(commands.TuneInstance, said)
    assert (told.instance, told.replicas, told.cpu_percent, told.priority) == ("t~1", 3, 150.0, 7)
    assert last(node).tuned == 4
    assert node.journal["t"].tuning.encoding == "deflate"
    assert len(node.started) == 1
    said = node.hear(tune(1, 4, replicas=1))
    assert not of(commands.Keep, said)
    assert not of(commands.TuneInstance, said)
    assert last(node).tuned == 4, "the same number again is only confirmed"
    node.hear(tune(1, 3, replicas=1))
    assert node.core.assignments.held["t"].assign.tuning.replicas == 3


def test_a_tune_of_another_epoch_changes_nothing() -> None:
    node = joined()
    node.hear(variant(2))
    for epoch in (1, 3):
        assert not of(commands.Keep, node.hear(tune(epoch, 9, replicas=2)))
    assert (last(node).epoch, last(node).tuned) == (2, 0)
    assert not of(commands.Keep, node.hear(Tune("unknown", 1, 1, Tuning(replicas=2))))


def test_a_scheduler_that_counts_anew_is_heard() -> None:
    node = joined()
    node.hear(variant(1))
    node.hear(tune(1, 9, replicas=2))
    newer = events.Received(
        commands.Channel.COMMAND, "ts-1", 2, 0, "default", "c", tune(1, 1, replicas=4)
    )
    node.tell(newer)
    assert last(node).tuned == 1
    assert node.core.assignments.held["t"].shown.replicas == 4


def test_what_is_tuned_while_it_comes_begins_so() -> None:
    node = joined()
    node.helpful = False
    node.hear(variant(1))
    said = node.hear(tune(1, 1, replicas=2, cpu_percent=50.0))
    assert not of(commands.TuneInstance, said), "nothing runs yet"
    node.tell(events.ArtifactReady(digest("m1")))
    assert (node.started[0].replicas, node.started[0].cpu_percent) == (2, 50.0)


def test_a_reboot_keeps_the_tuning_and_the_birth_tells_it() -> None:
    node = joined()
    node.hear(variant(1, variant="small", threads=2))
    node.hear(tune(1, 1, replicas=2, priority=8))
    again = SimNode(events.Restored(tuple(node.journal.values())))
    start = again.started[0]
    assert (start.replicas, start.threads, start.priority) == (2, 2, 8)
    (birth,) = of(Birth, again.connect())
    assert birth.holdings[0].tuning == Tuning("small", 2, replicas=2, priority=8)


@pytest.mark.parametrize("comes", [False, True])
def test_a_reboot_ends_no_version_that_serves_while_another_cannot_come(comes: bool) -> None:
    node = joined()
    node.hear(variant(1, replicas=2))
    node.helpful = False
    node.hear(variant(2, manifest("m2")))
    node.hear(variant(3, manifest("m3"), grace_ms=0))
    node.hear(variant(4, manifest("m3"), grace_ms=0))
    kept = events.Restored(
        tuple(node.journal.values()), older=tuple(filter(None, node.older.values()))
    )
    again = SimNode(kept, helpful=False)
    again.join()
    again.tell(events.ArtifactFailed(digest("m3"), "404", Blame.ENVIRONMENT, retryable=True))
    again.tell(events.ArtifactReady(digest("m1")))
    assert again.started[-1].replicas == 2
    again.tell(events.InstanceReady(again.started[-1].instance))
    assert (last(again).epoch, last(again).serving_epoch) == (4, 1)
    assert code(again, 1) is None
    if comes:
        again.after(BACKOFF_MAX_MS)
        again.tell(events.ArtifactReady(digest("m3")))
        again.tell(events.InstanceReady(again.started[-1].instance))
        assert (code(again, 4), last(again).serving_epoch) == (None, 0)
    else:
        again.hear(variant(5, replicas=2))
        assert (code(again, 5), last(again).state) == (None, InstanceState.READY)
    assert again.older == {"t": None}, "what serves no more is kept no more"


def test_a_full_disk_loses_no_task_to_a_tune() -> None:
    node = joined()
    node.hear(variant(1))
    node.helpful = False
    node.tell(events.InstanceExited("t~1", "killed"))
    node.hear(tune(1, 1, replicas=2))
    node.tell(events.JournalFailed("t", 1, "the disk is full"))
    assert node.state() is InstanceState.RESTARTING
    assert of(commands.Keep, node.after(60_000)), "it is written later"


def test_workers_beyond_the_memory_of_the_node_are_not_had_and_it_says_so() -> None:
    node = joined()
    node.hear(assign("t", of=manifest(memory_mib=300), replicas=5))
    assert node.started[0].replicas == 3
    assert last(node).reason.startswith("3 of 5 workers")
    node.hear(assign("u", of=manifest("u", memory_mib=400)))
    assert node.started[1].replicas == 1
    (told,) = of(commands.TuneInstance, node.said)
    assert (told.instance, told.replicas) == ("t~1", 2), "who comes later finds room for one"
    node.hear(Release("u", 1))
    assert of(commands.TuneInstance, node.said)[-1].replicas == 3


def test_more_workers_run_more_calls_at_once_and_fewer_let_them_end() -> None:
    node = joined()
    node.hear(variant(1))
    plan = chain(("t", NODE, 1))
    for number in range(4):
        node.call(invoke(f"r{number}", plan))
    assert len(node.calls) == 1
    node.hear(tune(1, 1, replicas=3))
    node.answer()
    assert len(node.calls) == 3
    node.hear(tune(1, 2, replicas=1))
    assert len(node.calls) == 3
    for _ in range(3):
        node.answer()
    node.call(invoke("r5", plan))
    node.call(invoke("r6", plan))
    assert len(node.calls) == 1


def test_what_an_executor_cannot_give_is_told_with_the_status() -> None:
    node = joined()
    node.hear(variant(1))
    node.tell(events.InstanceStats("t~1", 10 * MIB))
    said = node.tell(events.InstanceStats("t~1", 10 * MIB, "no share of its own here"))
    (status,) = of(Status, said)
    assert (status.reason, status.state) == ("no share of its own here", InstanceState.READY)
    assert not node.tell(events.InstanceStats("t~1", 10 * MIB, "no share of its own here"))


def test_the_story_tells_of_both() -> None:
    node = joined()
    node.hear(variant(1))
    node.hear(variant(2, threads=2))
    told = [one.event for one in node.core.story("t")]
    assert told[-1] == "started of epoch 2"
    assert all(isinstance(one, Entry) for one in node.core.story("t"))
    assert msgspec.structs.asdict(last(node))["epoch"] == 2
