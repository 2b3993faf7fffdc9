"""A task's memory comes along: nothing runs before it is there, and nothing twice over."""

from typing import Any

import pytest
from device_harness import NODE, SimNode, assign, chain, invoke, manifest, of, tensor
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.memories import digest_of, tell_of, whole_of
from protocols.manifest import ExecutorKind, HostFunction, Limits
from protocols.messages import Assign, MemoryRequest, MemoryState, Release, Result, Status
from protocols.messages.invocation import FailureCode
from protocols.messages.task import MEMORY_INLINE_BYTES, InstanceState, Origin
from protocols.topics import Channel

ELSEWHERE = Origin("node-b", 3)


def awaiting(epoch: int = 4, origin: Origin | None = ELSEWHERE) -> Assign:
    return structs.replace(assign("t", epoch, of=manifest("t")), origin=origin)


def whole(data: bytes, *, final: bool = True, epoch: int = 3) -> MemoryState:
    return MemoryState("t", epoch, digest_of(data), len(data), data, final=final)


def ask(node: SimNode, request: str, epoch: int = 4) -> list[Any]:
    return node.call(invoke(request, chain(("t", NODE, epoch)), budget_ms=60_000))


def give(node: SimNode, state: MemoryState, text: str = "") -> list[Any]:
    """Hand a memory in; the executor takes it, or says why not."""
    said = node.hear(state)
    for command in of(commands.WriteMemory, said):
        said = said + node.tell(events.MemoryWritten(command.instance, command.state, text))
    return said


def last_status(said: list[Any]) -> Status:
    return [one for one in of(Status, said) if one.task == "t"][-1]


@pytest.fixture
def node() -> SimNode:
    node = SimNode()
    node.join()
    return node


def test_requests_wait_for_the_memory_and_none_is_refused(node: SimNode) -> None:
    status = last_status(node.hear(awaiting()))
    assert (status.state, status.awaits) == (InstanceState.READY, 3)
    assert not of(commands.Execute, ask(node, "r1") + ask(node, "r2"))
    said = give(node, whole(b"seven"))
    assert len(of(commands.Execute, said)) == 1
    assert last_status(said).awaits == 0
    assert len(of(Result, node.answer())) + len(of(Result, node.answer())) == 2


def test_it_is_journalled_as_taken_in_before_anything_runs(node: SimNode) -> None:
    node.hear(awaiting())
    ask(node, "r1")
    said = give(node, whole(b"seven"))
    kinds = [type(one) for one in said]
    assert kinds.index(commands.Keep) < kinds.index(commands.Execute)
    assert node.journal["t"].origin is None
    again = SimNode(events.Restored((node.journal["t"],)))
    again.join()
    assert of(commands.Execute, ask(again, "r2")), "it has all of it and waits for nothing"
    late = again.hear(whole(b"older"))
    assert not of(commands.WriteMemory, late), "a late word never makes it go back"


def test_a_crash_before_it_has_come_leaves_it_waiting(node: SimNode) -> None:
    node.hear(awaiting())
    give(node, whole(b"copy", final=False))
    again = SimNode(events.Restored((node.journal["t"],)))
    again.join()
    assert not of(commands.Execute, ask(again, "r1"))
    assert last_status(again.hear(awaiting())).remembers == "", "a base that is gone is not claimed"
    assert of(commands.Execute, give(again, whole(b"copy and more")))


def test_copies_are_taken_in_while_it_waits(node: SimNode) -> None:
    node.hear(awaiting())
    said = give(node, whole(b"copy", final=False))
    assert (last_status(said).awaits, last_status(said).remembers) == (3, digest_of(b"copy"))
    said = give(node, whole(b"other", final=False), "it is too large")
    assert (last_status(said).remembers, last_status(said).reason) == (
        "",
        "its memory: it is too large",
    )


def test_what_is_lost_is_gone_on_without(node: SimNode) -> None:
    node.hear(awaiting())
    ask(node, "r1")
    assert of(commands.Execute, give(node, MemoryState("t", 3, final=True, reason="lost")))


def test_another_epochs_memory_is_not_taken(node: SimNode) -> None:
    node.hear(awaiting())
    assert not of(commands.WriteMemory, node.hear(whole(b"x", epoch=2)))
    assert node.core.counts["memory not awaited"] == 1


def test_a_copy_that_comes_back_waits_for_what_was_done_elsewhere(node: SimNode) -> None:
    node.hear(awaiting(1, None))
    node.hear(awaiting(4))
    assert not of(commands.Execute, ask(node, "r1"))
    assert of(commands.Execute, give(node, whole(b"seven")))


def test_its_own_memory_is_not_waited_for(node: SimNode) -> None:
    node.hear(awaiting(4, Origin(NODE, 3)))
    assert of(commands.Execute, ask(node, "r1"))


def test_what_a_node_awaits_stays_due_under_another_epoch(node: SimNode) -> None:
    node.hear(awaiting(4))
    node.hear(awaiting(5, None))
    assert not of(commands.Execute, ask(node, "r1", 5))
    assert of(commands.Execute, give(node, whole(b"seven")))


def request(epoch: int = 1) -> MemoryRequest:
    return MemoryRequest("t", epoch, ExecutorKind.WASM)


def test_it_is_said_while_it_runs_and_as_final_when_it_is_over(node: SimNode) -> None:
    node.hear(awaiting(1, None))
    ask(node, "r1", 1)
    [read] = of(commands.ReadMemory, node.hear(request()))
    assert read.instance == "t~1"
    node.hear(Release("t", 1))
    assert not of(commands.ReadMemory, node.hear(request())), "its last run has not ended"
    node.answer()
    [read] = of(commands.ReadMemory, node.hear(request()))
    assert read.instance == ""
    told = node.tell(events.MemoryRead(whole(b"x", epoch=1)))
    assert [(one.channel, one.body.final) for one in of(commands.Say, told)] == [
        (Channel.STATUS, True)
    ]


def test_nothing_is_final_that_began_anew(node: SimNode) -> None:
    node.hear(awaiting(1, None))
    node.hear(Release("t", 1))
    node.hear(request())
    node.hear(awaiting(2, None))
    assert not of(MemoryState, node.tell(events.MemoryRead(whole(b"x", epoch=1))))


def test_a_node_that_ends_says_first_what_its_tasks_remember(node: SimNode) -> None:
    made = structs.replace(
        manifest("t"), functions=(HostFunction.MEMORY,), limits=Limits(state_bytes=9)
    )
    node.hear(assign("t", 1, of=made))
    node.hear(assign("u", 1))
    said = node.tell(events.ShutDown("rest"))
    [read] = of(commands.ReadMemory, said)
    assert (read.request.task, read.request.epoch, read.instance) == ("t", 1, "")
    assert not of(commands.Exit, said)
    said = node.tell(events.MemoryRead(whole(b"all", epoch=1)))
    [state] = of(MemoryState, said)
    assert (state.data, state.final) == (b"all", False), "it may go on here one day"
    assert of(commands.Exit, said)


def test_what_is_not_here_yet_is_not_said(node: SimNode) -> None:
    assert not of(commands.ReadMemory, node.hear(request())), "never held"
    node.hear(awaiting())
    assert not of(commands.ReadMemory, node.hear(request(4))), "it waits itself"
    assert not of(commands.ReadMemory, node.hear(request(9))), "an epoch of the future"


def test_a_request_whose_time_is_over_while_it_waits_is_told_so(node: SimNode) -> None:
    node.hear(awaiting())
    node.call(invoke("r1", chain(("t", NODE, 4)), budget_ms=300))
    [result] = of(Result, node.after(400))
    assert result.failure.code is FailureCode.DEADLINE


@given(base=st.binary(max_size=64), more=st.binary(max_size=64), other=st.booleans())
def test_what_follows_and_what_was_there_are_the_whole(
    base: bytes, more: bytes, *, other: bool
) -> None:
    full = base + more
    known = b"?" * len(base) if other else base
    asked = MemoryRequest("t", 1, ExecutorKind.WASM, digest_of(known), len(known))
    said = tell_of(MemoryState("t", 1), full, asked)
    assert whole_of(said, known) == full
    assert said.digest == digest_of(full)
    if not other and base:
        assert said.data == more


def test_what_is_large_goes_by_digest() -> None:
    large = bytes(MEMORY_INLINE_BYTES + 1)
    said = tell_of(MemoryState("t", 1), large, request())
    assert (said.data, said.after_bytes, said.size_bytes) == (None, 0, len(large))
    asked = structs.replace(request(), known=digest_of(large), known_bytes=len(large))
    assert tell_of(MemoryState("t", 1), large + b"delta", asked).data == b"delta"


def test_a_stopped_tasks_words_name_its_tensor_no_more(node: SimNode) -> None:
    """What is answered under the old epoch while it drains is in what is said as final."""
    node.hear(awaiting(1, None))
    ask(node, "r1", 1)
    node.hear(Release("t", 1))
    assert of(Result, node.answer(y=tensor(b"8")))
    assert of(commands.ReadMemory, node.hear(request()))[0].instance == ""


def test_what_lies_in_stores_of_another_cell_is_fetched_there_first(node: SimNode) -> None:
    node.hear(awaiting())
    urls = ("http://there:1", "http://further:1")
    apart = MemoryState("t", 3, digest_of(b"x"), 60_000, final=True, store_urls=urls)
    [command] = of(commands.WriteMemory, node.hear(apart))
    assert command.urls[:2] == urls
    assert len(command.urls) > 2, "and then in its own"
