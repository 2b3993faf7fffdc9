"""Two hosts whose roles speak over links: after what is durable, in order, told of new lives."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from controller.decider import Event, Linked, Output, Received, Record, Role, Send, ToRole
from controller.host.host import Host, monotonic_ms
from controller.host.linker import Linker
from controller.host.links import Links
from controller.records import STORY, StoryRecord
from protocols.messages import EnvelopeRevoke, Linking

WAIT_S = 60
OTHER = {"ta-main": "ts-main", "ts-main": "ta-main"}


class Speaker:
    """A role that says what it is told to, with a record where asked, and keeps what it hears."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.role = Role.TA if name.startswith("ta") else Role.TS
        self.heard: list[int] = []
        self.links: list[str] = []
        self.news = asyncio.Event()

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        del records, now_ms
        return Output()

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        del now_ms
        out = Output()
        for event in events:
            match event:
                case Linked(role=role):
                    self.links.append(role)
                case Received(sender="test", body=EnvelopeRevoke() as body, tenant=tenant):
                    if tenant == "durable":
                        story = StoryRecord("t", body.generation, "ta", "placed")
                        out.records.append(Record(STORY, "t/0", story, "x"))
                    out.sends.append(Send(ToRole(OTHER[self.name]), body, "x"))
                case Received(sender=sender, body=EnvelopeRevoke() as body):
                    assert sender == OTHER[self.name]
                    self.heard.append(body.generation)
        self.news.set()
        return out

    async def until(self, good: Any) -> None:
        async with asyncio.timeout(WAIT_S):
            while not good():
                self.news.clear()
                await self.news.wait()


class Disk:
    """A store whose commits wait until they may go on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.taken: list[Record] = []

    async def append(self, owner_epoch: int, expected: Any, records: Sequence[Record]) -> None:
        del owner_epoch, expected
        await self.open.wait()
        self.taken += records

    def apply(self, records: Iterable[Record], views: Iterable[Any]) -> None:
        del records, views


class Side:
    def __init__(self, name: str) -> None:
        self.name = name
        self.peer: Side
        self.disk = Disk()
        self.life = 0

    def begin(self) -> None:
        self.life += 1
        self.role = Speaker(self.name)
        self.linker = Linker(Links(self.life << 20), self._speak, monotonic_ms)
        self.host = Host(
            [self.role],
            self.disk,
            1,
            self.disk,
            lambda *_: False,
            linker=self.linker,  # type: ignore[arg-type, list-item]
        )
        self.linker.hand, self.linker.up = self.host.handed, self.host.linked
        self.host.restore(())
        self.task = asyncio.create_task(self.host.run())

    async def end(self) -> None:
        self.linker.close()
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    def say(self, number: int, *, durable: bool = False) -> None:
        body = EnvelopeRevoke("t", number)
        tenant = "durable" if durable else "default"
        self.host.post(self.name, Received("test", 0, 0, tenant, "x", body))

    def _speak(self, own: str, frame: Linking) -> bool:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: self.peer.linker.hear(frame.receiver, own, frame))
        return True


@pytest.fixture
async def sides() -> AsyncIterator[tuple[Side, Side]]:
    ta, ts = Side("ta-main"), Side("ts-main")
    ta.peer, ts.peer = ts, ta
    ta.begin()
    ts.begin()
    ta.linker.open("ta-main", "ts-main")
    yield ta, ts
    await ta.end()
    await ts.end()


async def test_what_is_said_comes_in_order_and_both_are_told_of_the_link(
    sides: tuple[Side, Side],
) -> None:
    ta, ts = sides
    for number in range(100):
        ta.say(number)
        ts.say(1000 + number)
    await ts.role.until(lambda: ts.role.heard == list(range(100)))
    await ta.role.until(lambda: ta.role.heard == list(range(1000, 1100)))
    assert (ta.role.links, ts.role.links) == (["ts-main"], ["ta-main"])


async def test_nothing_leaves_before_its_record_is_durable(sides: tuple[Side, Side]) -> None:
    ta, ts = sides
    await ts.role.until(lambda: ts.role.links)
    ta.disk.open.clear()
    ta.say(1, durable=True)
    ta.say(2)
    ts.say(3)
    await ta.role.until(lambda: ta.role.heard == [3])
    assert ts.role.heard == []
    ta.disk.open.set()
    await ts.role.until(lambda: ts.role.heard == [1, 2])
    stamped = [one.value.unix_ms for one in ta.disk.taken]  # type: ignore[union-attr]
    assert all(stamped), "an entry of a story has the time at which it became durable"


async def test_a_new_life_of_one_is_told_to_both(sides: tuple[Side, Side]) -> None:
    ta, ts = sides
    ta.say(1)
    await ts.role.until(lambda: ts.role.heard == [1])
    await ts.end()
    ts.begin()
    ts.linker.open("ts-main", "ta-main")
    await ta.role.until(lambda: ta.role.links == ["ts-main", "ts-main"])
    ta.say(2)
    await ts.role.until(lambda: ts.role.heard == [2])
    assert ts.role.links == ["ta-main"]
