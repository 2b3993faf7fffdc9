"""A move brings the memory along: a copy first, the rest when the route has switched."""

from typing import Any

import pytest
from scheduler_bench import Bench, drain, grant, running, said, told
from tests_support import manifest

from controller.scheduler import memories
from controller.scheduler.memories import ASK_AGAIN_MS, COPY_MAX_MS, TELL_MS, WAIT_MAX_MS
from protocols.manifest import HostFunction, Limits
from protocols.messages import (
    AnchorWelcome,
    Assign,
    MemoryRequest,
    MemoryState,
    Release,
    Route,
    Status,
    TaskEvent,
)
from protocols.messages.presence import Holding
from protocols.messages.task import MEMORY_INLINE_BYTES, InstanceState, LostPolicy, Origin

READY, STOPPED = InstanceState.READY, InstanceState.STOPPED
NODES = ("n1", "n2", "n3")
LARGE = MEMORY_INLINE_BYTES - 3
COPY = MemoryState("svc.a", 1, "sha256:" + "a" * 64, 4, b"copy")


def _with(one: Any, **changes: Any) -> Any:
    fields = {name: getattr(one, name) for name in one.__struct_fields__}
    return type(one)(**(fields | changes))


def grant_of(bench: Bench, **policy: Any) -> Assign:
    base = grant(*NODES)
    made = manifest(functions=(HostFunction.MEMORY,), limits=Limits(state_bytes=1 << 20))
    spec = _with(base.spec, manifest=made, policy=LostPolicy(**policy))
    [assign] = said(bench.anchor(_with(base, spec=spec)), Assign)
    bench.ready("n1", assign.epoch)
    return assign


def waits(bench: Bench, node: str, epoch: int, remembers: str = "", awaits: int = 1) -> Any:
    status = Status(1, "svc.a", epoch, READY, generation=1, awaits=awaits, remembers=remembers)
    return bench.node(node, status)


def ended(bench: Bench, node: str, epoch: int) -> Any:
    return bench.node(node, Status(2, "svc.a", epoch, STOPPED))


def moved(bench: Bench, **policy: Any) -> Assign:
    """Empty n1; return what n2 is assigned."""
    grant_of(bench, checkpoint_ms=0, **policy)
    [assign] = told(drain(bench, "n1"), "n2", Assign)
    assert assign.origin == Origin("n1", 1)
    return assign


def routed(output: Any) -> list[str]:
    return [one.plan.steps[0].node for one in said(output, Route) if one.plan is not None]


def test_a_move_copies_first_and_switches_then(bench: Bench) -> None:
    second = moved(bench)
    output = waits(bench, "n2", second.epoch)
    [asked] = told(output, "n1", MemoryRequest)
    assert (asked.epoch, asked.known, routed(output)) == (1, "", [])
    assert told(bench.node("n1", COPY), "n2", MemoryState) == [COPY]
    output = waits(bench, "n2", second.epoch, str(COPY.digest))
    assert routed(output) == ["n2"]
    assert [one.epoch for one in told(output, "n1", Release)] == [1]
    [asked] = told(ended(bench, "n1", 1), "n1", MemoryRequest)
    assert (asked.known, asked.known_bytes) == (COPY.digest, 4)
    rest = MemoryState("svc.a", 1, "sha256:" + "b" * 64, 6, b"ab", 4, final=True)
    assert told(bench.node("n1", rest), "n2", MemoryState) == [rest]
    [event] = said(waits(bench, "n2", second.epoch, awaits=0), TaskEvent)
    assert event.event == "memory-moved"
    assert event.detail.startswith("6 bytes came along to n2")


def test_a_task_stays_until_all_that_it_remembers_is_there(bench: Bench) -> None:
    second = moved(bench)
    waits(bench, "n2", second.epoch)
    bench.node("n1", COPY)
    waits(bench, "n2", second.epoch, str(COPY.digest))
    assert not said(drain(bench, "n2"), Assign)
    ended(bench, "n1", 1)
    rest = _with(COPY, final=True)
    bench.node("n1", rest)
    [third] = said(waits(bench, "n2", second.epoch, awaits=0), Assign)
    assert third.origin == Origin("n2", second.epoch)


def test_words_that_were_lost_are_said_again(bench: Bench) -> None:
    second = moved(bench)
    assert told(waits(bench, "n2", second.epoch), "n1", MemoryRequest)
    assert told(bench.passes(ASK_AGAIN_MS + 200, *NODES), "n1", MemoryRequest)
    bench.node("n1", COPY)
    waits(bench, "n2", second.epoch, str(COPY.digest))
    ended(bench, "n1", 1)
    bench.node("n1", _with(COPY, final=True))
    [again] = told(bench.passes(ASK_AGAIN_MS + 200, *NODES), "n2", MemoryState)
    assert again.final


def test_a_base_that_was_forgotten_has_the_whole_asked_for(bench: Bench) -> None:
    second = moved(bench)
    waits(bench, "n2", second.epoch)
    bench.node("n1", COPY)
    waits(bench, "n2", second.epoch, str(COPY.digest))
    ended(bench, "n1", 1)
    rest = MemoryState("svc.a", 1, "sha256:" + "b" * 64, 6, b"ab", 4, final=True)
    waits(bench, "n2", second.epoch)
    assert not told(bench.node("n1", rest), "n2", MemoryState)
    asked = told(bench.passes(ASK_AGAIN_MS + 200, *NODES), "n1", MemoryRequest)
    assert {one.known for one in asked} == {""}


def test_a_copy_that_does_not_come_delays_a_move_within_a_bound(bench: Bench) -> None:
    second = moved(bench)
    waits(bench, "n2", second.epoch)
    output = bench.passes(COPY_MAX_MS + 400, *NODES)
    assert "n2" in routed(output)


def test_a_lost_node_leaves_its_checkpoint(bench: Bench) -> None:
    grant_of(bench, checkpoint_ms=1000, lost_after_ms=1000)
    [asked] = told(bench.passes(1400, *NODES), "n1", MemoryRequest)
    assert asked.epoch == 1
    bench.node("n1", COPY)
    output = bench.passes(8000, "n2", "n3")
    second, *_ = told(output, "n2", Assign)
    assert second.origin == Origin("n1", 1)
    given = told(waits(bench, "n2", second.epoch), "n2", MemoryState)
    assert [(one.data, one.final) for one in given] == [(b"copy", True)]
    [event] = said(waits(bench, "n2", second.epoch, awaits=0), TaskEvent)
    assert event.event == "memory-lost"
    assert "it goes on with what was known" in event.detail


def test_a_lost_node_without_a_checkpoint_is_said_to_be_lost(bench: Bench) -> None:
    grant_of(bench, checkpoint_ms=0, lost_after_ms=1000)
    second, *_ = told(bench.passes(8000, "n2", "n3"), "n2", Assign)
    [given] = told(waits(bench, "n2", second.epoch), "n2", MemoryState)
    assert (given.digest, given.final) == (None, True)
    assert "nothing of it is known" in given.reason


def test_a_checkpoint_is_put_together_from_what_follows(bench: Bench) -> None:
    grant_of(bench, checkpoint_ms=1000, lost_after_ms=1000)
    bench.passes(1400, *NODES)
    bench.node("n1", COPY)
    [asked] = told(bench.passes(1000, *NODES), "n1", MemoryRequest)
    assert (asked.known, asked.known_bytes) == (COPY.digest, 4)
    bench.node("n1", MemoryState("svc.a", 1, "sha256:" + "b" * 64, 6, b"ab", 4))
    second, *_ = told(bench.passes(8000, "n2", "n3"), "n2", Assign)
    [given] = told(waits(bench, "n2", second.epoch), "n2", MemoryState)
    assert (given.data, given.after_bytes) == (b"copyab", 0)


def goes_on_with(bench: Bench) -> tuple[bytes | None, str]:
    """Lose n1; return what n2 is given, and what is told of it."""
    second, *_ = told(bench.passes(8000, "n2", "n3"), "n2", Assign)
    [given] = told(waits(bench, "n2", second.epoch), "n2", MemoryState)
    [event] = said(waits(bench, "n2", second.epoch, awaits=0), TaskEvent)
    return given.data, event.detail


@pytest.mark.parametrize(
    "more",
    [
        MemoryState("svc.a", 1, "sha256:" + "b" * 64, 9, b"ab", 7),
        MemoryState("svc.a", 1, "sha256:" + "b" * 64, MEMORY_INLINE_BYTES + 1, bytes(LARGE), 4),
    ],
)
def test_a_checkpoint_stays_until_all_of_a_newer_one_has_come(
    bench: Bench, more: MemoryState
) -> None:
    grant_of(bench, checkpoint_ms=1000, lost_after_ms=1000)
    bench.passes(1400, *NODES)
    bench.node("n1", COPY)
    [asked] = told(bench.passes(1000, *NODES), "n1", MemoryRequest)
    assert asked.known == COPY.digest
    bench.node("n1", more)
    assert told(bench.passes(400, *NODES), "n1", MemoryRequest)[0].known == ""
    assert goes_on_with(bench)[0] == COPY.data


def test_a_checkpoint_without_room_leaves_the_older_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memories, "KEPT_MAX_BYTES", 6)
    grant_of(bench, checkpoint_ms=1000, lost_after_ms=1000)
    bench.passes(1400, *NODES)
    whole = MemoryState("svc.a", 1, "sha256:" + "b" * 64, 5, b"whole")
    for one in (COPY, whole):
        # What is put in another's place takes the other's room.
        bench.node("n1", one)
        bench.passes(1000, *NODES)
    bench.node("n1", MemoryState("svc.a", 1, "sha256:" + "c" * 64, 7, b"ab", 5))
    data, detail = goes_on_with(bench)
    assert data == b"whole"
    assert detail.endswith(" ms before (a newer one has no room)")


def test_an_anchor_hears_that_a_newer_checkpoint_has_no_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memories, "KEPT_MAX_BYTES", 6)
    bench.anchor(AnchorWelcome("ta-main", 1, 0, roaming=True))
    grant_of(bench, checkpoint_ms=1000)
    bench.passes(1400, *NODES)
    [told_first] = said(bench.node("n1", COPY), MemoryState)
    assert (told_first.data, told_first.reason) == (b"copy", "")
    bench.passes(TELL_MS, *NODES)
    grown = MemoryState("svc.a", 1, "sha256:" + "c" * 64, 7, b"abc", 4)
    [again] = said(bench.node("n1", grown), MemoryState)
    assert (again.digest, again.data, again.reason) == (COPY.digest, None, memories.NO_ROOM)
    assert again.checkpoint_age_ms >= TELL_MS


def test_a_scheduler_without_memory_learns_from_the_nodes_what_is_due(bench: Bench) -> None:
    base = grant(*NODES, current_node="n2", current_epoch=2, first=33)
    made = manifest(functions=(HostFunction.MEMORY,), limits=Limits(state_bytes=1 << 20))
    spec = _with(base.spec, manifest=made)
    held = Holding("svc.a", 2, READY, 1, origin=Origin("n1", 1))
    bench.anchor(_with(base, spec=spec))
    output = bench.born("n2", holdings=(held,))
    assert not said(output, Assign)
    [asked] = told(output, "n1", MemoryRequest)
    assert asked.epoch == 1
    rest = _with(COPY, final=True)
    assert told(bench.node("n1", rest), "n2", MemoryState) == [rest]


def test_a_task_without_memory_waits_for_nothing(bench: Bench) -> None:
    running(bench, *NODES)
    [assign] = told(drain(bench, "n1"), "n2", Assign)
    assert assign.origin is None


def test_nobody_else_can_tell_what_a_task_remembers(bench: Bench) -> None:
    second = moved(bench)
    waits(bench, "n2", second.epoch)
    assert not said(bench.node("n3", COPY), MemoryState)
    assert not said(bench.node("n1", _with(COPY, epoch=7)), MemoryState)


@pytest.mark.parametrize("every_ms", [0, 5000])
def test_checkpoints_are_asked_for_as_the_policy_says(bench: Bench, every_ms: int) -> None:
    grant_of(bench, checkpoint_ms=every_ms)
    asked = told(bench.passes(11_000, *NODES), "n1", MemoryRequest)
    assert len(asked) == (2 if every_ms else 0)


def test_a_task_that_waits_for_its_node_gives_no_memory_up(bench: Bench) -> None:
    second = moved(bench, replace=False)
    waits(bench, "n2", second.epoch)
    bench.node("n1", COPY)
    waits(bench, "n2", second.epoch, str(COPY.digest))
    bench.passes(WAIT_MAX_MS + 5000, "n2", "n3")
    assert not [one for one in bench.seen if isinstance(one.body, MemoryState) and one.body.final]
    bench.born("n1")
    asked = told(bench.passes(1000, *NODES), "n1", MemoryRequest)
    assert asked
    rest = _with(COPY, final=True)
    assert told(bench.node("n1", rest), "n2", MemoryState) == [rest]


def test_no_node_says_what_only_roles_say_of_a_memory(bench: Bench) -> None:
    second = moved(bench)
    waits(bench, "n2", second.epoch)
    digest = "sha256:" + "a" * 64
    named = MemoryState(
        "svc.a", 1, digest, 60_000, store_urls=("http://evil",), checkpoint_age_ms=1
    )
    [given] = told(bench.node("n1", named), "n2", MemoryState)
    assert given == MemoryState("svc.a", 1, digest, 60_000)


def back_with_a_memory(bench: Bench, epoch: int, origin: Origin | None = None) -> Any:
    """Have a scheduler of a new life serve on n1, and n2 come back with what it had before."""
    made = manifest(functions=(HostFunction.MEMORY,), limits=Limits(state_bytes=1 << 20))
    base = grant(*NODES, first=33, current_node="n1", current_epoch=1)
    bench.born("n1", "n3")
    bench.anchor(_with(base, spec=_with(base.spec, manifest=made)))
    bench.passes(60_000, "n1", "n3")
    bench.ready("n1", 33)
    holding = Holding("svc.a", epoch, READY, 1, origin=origin)
    return bench.born("n2", holdings=(holding,))


def test_a_memory_whose_move_was_never_durable_is_told_as_lost() -> None:
    bench = Bench(epoch=2)
    output = back_with_a_memory(bench, 2)
    assert [one.epoch for one in told(output, "n2", Release)] == [2]
    [event] = said(output, TaskEvent)
    assert event.event == "memory-lost"
    assert "n2" in event.detail
    holding = Holding("svc.a", 2, READY, 1)
    assert not said(bench.born("n2", holdings=(holding,)), TaskEvent), "it is said once"


@pytest.mark.parametrize(("epoch", "origin"), [(1, None), (2, Origin("n1", 1))])
def test_a_copy_without_a_memory_of_its_own_is_no_loss(epoch: int, origin: Origin | None) -> None:
    output = back_with_a_memory(Bench(epoch=2), epoch, origin)
    assert told(output, "n2", Release)
    assert not said(output, TaskEvent)
