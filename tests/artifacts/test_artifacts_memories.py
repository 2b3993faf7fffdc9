"""What a task remembers, given to the instance that awaits it: by a store where it is large."""

import asyncio
import hashlib
import os
from collections.abc import Coroutine
from typing import Any

import pytest
from artifact_store import Store

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.fetch import Fetcher
from device_agent.core import commands, events
from device_agent.core.memories import digest_of
from device_agent.core.queue import FIRST, Urgency
from device_agent.executors.door import ExecutorFailure, Failed
from device_agent.memories import WHOLE_MAX_BYTES, Memories
from device_agent.transfers import Transfers
from protocols.errors import Blame
from protocols.messages import MemoryState
from protocols.messages.invocation import FailureCode

WHOLE = os.urandom(300_000)
GONE = "http://127.0.0.1:1"
"""Where nobody listens."""


class Executor:
    """Remembers what it is given; one whose `ready` is not set is slow to."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.ready.set()
        self.given: list[bytes] = []

    async def restore(self, _: str, state: bytes) -> None:
        await self.ready.wait()
        self.given.append(state)


class Node:
    """A node's hands for memories, with one instance, and what they tell."""

    def __init__(self, blobs: BlobFolder, fetcher: Fetcher) -> None:
        self.executor = Executor()
        self.told: list[events.MemoryWritten] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        transfers = Transfers(
            blobs,
            lambda: fetcher,
            lambda: pytest.fail("nothing is read"),
            self._tell,
            self._spawn,
        )
        kinds: Any = {"t#1": self.executor}
        self._memories = Memories(
            kinds, lambda _: pytest.fail("it is there"), transfers, self._tell, self._spawn
        )

    def _tell(self, event: Any) -> None:
        self.told.append(event)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def give(self, state: MemoryState, *urls: str) -> None:
        self._memories.write(commands.WriteMemory("t#1", state, urls, "test"))

    async def over(self) -> list[str]:
        """Wait for all that was given; return what was said of each."""
        while self._tasks:
            await asyncio.gather(*self._tasks)
        return [one.text for one in self.told]


@pytest.fixture
async def node(blobs: BlobFolder, fetcher: Fetcher) -> Node:
    return Node(blobs, fetcher)


def apart(data: bytes = WHOLE) -> MemoryState:
    return MemoryState("t", 3, digest_of(data), len(data), final=True)


def small(data: bytes, *, final: bool = True) -> MemoryState:
    return MemoryState("t", 3, digest_of(data), len(data), data, final=final)


def path_of(data: bytes) -> str:
    return f"/v1/blobs/{hashlib.sha256(data).hexdigest()}"


async def test_it_comes_from_the_next_store_where_the_first_is_gone(
    node: Node, store: Store
) -> None:
    store.content[path_of(WHOLE)] = WHOLE
    node.give(apart(), GONE, store.url)
    assert await node.over() == [""]
    assert node.executor.given == [WHOLE]


async def test_it_moves_before_the_values_of_requests(node: Node, monkeypatch: Any) -> None:
    said: list[Urgency] = []

    async def fetch(*asked: Any) -> None:
        said.append(asked[3])
        raise ExecutorFailure(Failed(FailureCode.FETCH, Blame.ENVIRONMENT, "gone", retryable=True))

    monkeypatch.setattr(Fetcher, "fetch_blob", lambda _, *asked: fetch(*asked))
    node.give(apart(), GONE)
    assert await node.over() == ["gone"]
    assert said == [FIRST]


async def test_content_that_is_another_one_is_not_taken_in(node: Node, store: Store) -> None:
    store.content[path_of(WHOLE)] = bytes(len(WHOLE))
    node.give(apart(), store.url)
    [said] = await node.over()
    assert "the content is not what its digest says" in said
    assert node.executor.given == []


async def test_one_that_is_too_large_is_not_fetched(node: Node, store: Store) -> None:
    state = MemoryState("t", 3, digest_of(WHOLE), WHOLE_MAX_BYTES + 1, final=True)
    node.give(state, store.url)
    [said] = await node.over()
    assert said.endswith("bytes are more than a task may remember")
    assert store.asked == []


async def test_what_is_said_again_meanwhile_is_written_once(node: Node, store: Store) -> None:
    store.content[path_of(WHOLE)] = WHOLE
    node.executor.ready.clear()
    for _ in range(3):
        node.give(apart(), store.url)
        await asyncio.sleep(0)
    node.executor.ready.set()
    assert await node.over() == [""]
    # The instance has run by now: an older word does not make it go back.
    node.give(apart(), store.url)
    node.give(small(b"older"))
    assert await node.over() == [""]
    assert node.executor.given == [WHOLE]


async def test_an_instance_that_awaits_a_memory_once_more_is_given_it(node: Node) -> None:
    node.give(small(b"first"))
    assert await node.over() == [""]
    again = MemoryState("t", 5, digest_of(b"second"), 6, b"second", final=True)
    node.give(again)
    assert await node.over() == ["", ""]
    assert node.executor.given == [b"first", b"second"]


async def test_what_comes_meanwhile_is_written_next_and_only_the_newest(node: Node) -> None:
    node.executor.ready.clear()
    for at in range(4):
        node.give(small(b"copy %d" % at, final=at == 3))
        await asyncio.sleep(0)
    node.executor.ready.set()
    assert await node.over() == ["", ""]
    assert node.executor.given == [b"copy 0", b"copy 3"]


async def test_one_that_could_not_be_had_may_be_given_again(node: Node, store: Store) -> None:
    node.give(apart(), GONE)
    [said] = await node.over()
    assert "refused" in said
    node.told.clear()
    store.content[path_of(WHOLE)] = WHOLE
    node.give(apart(), store.url)
    assert await node.over() == [""]
    assert node.executor.given == [WHOLE]
