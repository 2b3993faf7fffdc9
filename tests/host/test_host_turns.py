"""The host around roles: what it never loses, and what ends it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from msgspec import Struct

from controller.decider import (
    Answer,
    Called,
    Carry,
    Event,
    Fired,
    Output,
    Received,
    Record,
    Role,
    Send,
    Timer,
    ToNode,
)
from controller.host import host as hosting
from controller.host.host import Host
from protocols.errors import EnvironmentFailure
from protocols.messages import Probe

WAIT_S = 60


class Arguments(Struct):
    pass


class Scripted:
    """A role that does with each event what the test says."""

    role = Role.NAMO
    name = "namo-main"

    def __init__(self, act: Callable[[Event, Output], None]) -> None:
        self.restored = False
        self.seen: list[Event] = []
        self._act = act

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        del records, now_ms
        self.restored = True
        return Output()

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        del now_ms
        assert self.restored, "a role without its memory decides on nothing"
        out = Output()
        for event in events:
            self.seen.append(event)
            self._act(event, out)
        return out


class Disk:
    """A store that takes nothing for a while, and the read model of nobody."""

    def __init__(self) -> None:
        self.failures = 0
        self.taken = 0

    async def append(self, owner_epoch: int, expected: Any, records: Sequence[Record]) -> None:
        del owner_epoch, expected
        if self.failures:
            self.failures -= 1
            raise EnvironmentFailure("the disk is full")
        self.taken += len(records)

    def apply(self, records: Iterable[Record], views: Iterable[Any]) -> None:
        del records, views


def made(act: Callable[[Event, Output], None], disk: Disk) -> tuple[Host, Scripted]:
    role = Scripted(act)
    return Host([role], disk, 1, disk, lambda *_: True), role  # type: ignore[arg-type]


@asynccontextmanager
async def serving(host: Host) -> AsyncIterator["asyncio.Task[None]"]:
    host.restore(())
    task = asyncio.create_task(host.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, ZeroDivisionError, EnvironmentFailure):
            await task


def message() -> Received:
    return Received("n1", 1, 1, "default", "x", Probe(1))


def answer(event: Event, out: Output) -> None:
    if isinstance(event, Called):
        out.records.append(Record("usecase", "u", None, "x"))
        out.answers.append(Answer(event.call, value="done"))


async def test_what_comes_before_the_memory_waits_for_it() -> None:
    host, role = made(answer, Disk())
    early = asyncio.create_task(host.call("usecase.submit", Arguments()))
    for _ in range(5):
        await asyncio.sleep(0)
    assert role.seen == []
    async with serving(host):
        assert (await asyncio.wait_for(early, WAIT_S)).value == "done"


class Carrier:
    """Notes after whom something is carried."""

    def __init__(self) -> None:
        self.carried: list[Carry] = []
        self.news = asyncio.Event()

    def reach(self, points: Any) -> None:
        raise AssertionError(points)

    def follow(self, topics: Any) -> None:
        raise AssertionError(topics)

    def carry(self, carry: Carry) -> None:
        self.carried.append(carry)
        self.news.set()


async def test_what_comes_for_a_node_that_has_left_is_carried_whatever_the_disk_does() -> None:
    """It takes nothing here any more, and requests would wait for the disk."""
    gone, back = Carry("n1", "b", 1000), Carry("n1", "", 0)

    def act(_event: Event, out: Output) -> None:
        out.records.append(Record("usecase", "u", None, "x"))
        out.carries.append(gone if not carrier.carried else back)

    disk, carrier = Disk(), Carrier()
    disk.failures = 1000
    host, _ = made(act, disk)
    host.carrier = carrier
    async with serving(host):
        for expected in ([gone], [gone, back]):
            carrier.news.clear()
            host.post("namo-main", message())
            await asyncio.wait_for(carrier.news.wait(), WAIT_S)
            assert carrier.carried == expected
        assert disk.taken == 0


async def test_whatever_a_role_trips_over_ends_the_host() -> None:
    """Half a decision was taken and its output is lost: nothing after it can be right."""

    def trip(_event: Event, _out: Output) -> None:
        raise ZeroDivisionError

    host, _ = made(trip, Disk())
    async with serving(host) as task:
        host.post("namo-main", message())
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(task, WAIT_S)


async def test_a_flood_drops_messages_but_no_call_and_no_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosting, "MAX_EVENTS", 3)
    fired = asyncio.Event()

    def act(event: Event, out: Output) -> None:
        answer(event, out)
        if isinstance(event, Fired):
            fired.set()
        elif isinstance(event, Called):
            out.timers.append(Timer("tick", 0))

    host, role = made(act, Disk())
    for _ in range(10):
        host.post("namo-main", message())
    call = asyncio.create_task(host.call("usecase.submit", Arguments()))
    await asyncio.sleep(0)
    async with serving(host):
        await asyncio.wait_for(call, WAIT_S)
        await asyncio.wait_for(fired.wait(), WAIT_S)
    assert host.counters["events_dropped"] == 7
    assert len(role.seen) == 3 + 1 + 1


async def test_a_disk_that_works_again_is_well_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "COMMIT_RETRY_S", 0.001)
    disk = Disk()
    disk.failures = 3
    host, _ = made(answer, disk)
    async with serving(host):
        await asyncio.wait_for(host.call("usecase.submit", Arguments()), WAIT_S)
    assert host.counters["commit_failures"] == 3
    assert host.last_failure == ""


async def test_what_waits_for_a_dead_disk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "MAX_HELD", 5)
    monkeypatch.setattr(hosting, "COMMIT_RETRY_S", 0.001)
    disk = Disk()
    disk.failures = 10**9
    host, _ = made(lambda _, out: out.records.append(Record("k", "k", None, "x")), disk)
    async with serving(host) as task:
        while not task.done():
            host.post("namo-main", message())
            await asyncio.wait([task], timeout=0.001)
        with pytest.raises(EnvironmentFailure, match="disk is full"):
            await task


async def test_nothing_waits_for_what_was_merely_learnt_and_it_is_kept_in_order() -> None:
    sent, all_taken, taken = asyncio.Event(), asyncio.Event(), list[str]()

    class Ordered(Disk):
        async def append(self, owner: int, expected: Any, records: Sequence[Record]) -> None:
            await super().append(owner, expected, records)
            taken.extend(one.cause for one in records)
            if len(taken) == 3:
                all_taken.set()

    def act(event: Event, out: Output) -> None:
        if isinstance(event, Called):
            answer(event, out)
        else:
            out.learnt.append(Record("node", "n1", None, "learnt"))
            out.sends.append(Send(ToNode("n1"), Probe(1), "x"))

    disk = Ordered()
    disk.failures = 1
    role = Scripted(act)
    host = Host([role], disk, 1, disk, lambda *_: sent.set() or True)  # type: ignore[arg-type,func-returns-value]
    async with serving(host):
        host.post("namo-main", message())
        await asyncio.wait_for(sent.wait(), WAIT_S)
        assert not taken, "it has left before anything was durable"
        done = await asyncio.wait_for(host.call("usecase.submit", Arguments()), WAIT_S)
        assert done.value == "done"
        assert taken == ["learnt", "x"]
        host.post("namo-main", message())
        await asyncio.wait_for(all_taken.wait(), WAIT_S)
