"""Two processes of one controller: what one shows the other, and what one does for the other."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import Struct
from tests_support import INVENTORY

from controller.decider import Answer, View
from controller.host import neighbours as module
from controller.host.host import monotonic_ms
from controller.host.linker import Linker
from controller.host.links import Links
from controller.host.neighbours import Neighbours
from controller.records import CELL, FLEET, CellView, NodeView
from controller.registry import LiveRegistry, Registry
from protocols.errors import Blame, UserError
from protocols.messages import Linking, Mirror
from protocols.messages.hierarchy import NodeState

WAIT_S = 60


class Drain(Struct):
    name: str


class Drained(Struct):
    node: str


TYPES = {"node.drain": (Drain, Drained)}


class Process:
    """One process, without its roles; the wire is a call unless it is cut."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.cut = False
        self.peer: Process
        self.served: list[str] = []
        self.registry = LiveRegistry(Registry(role))
        self.begin(1)

    def begin(self, life: int) -> None:
        self.linker = Linker(Links(life << 20), self._speak, monotonic_ms)
        self.desk = Neighbours(self.role, self.linker, self.registry, self._serve, TYPES.get)
        self.linker.hand, self.linker.up = self.desk.hand, self.desk.up

    def _speak(self, own: str, frame: Linking) -> bool:
        if not self.cut:
            loop = asyncio.get_running_loop()
            loop.call_soon(self.peer.linker.hear, frame.receiver, own, frame)
        return not self.cut

    async def _serve(self, operation: str, arguments: Any, tenant: str, cause: str) -> Answer:
        self.served.append(f"{operation} {arguments.name} {tenant} {cause}")
        if arguments.name == "nobody":
            return Answer("", error="there is no node 'nobody'", blame=Blame.USER)
        if arguments.name == "trouble":
            raise UserError("trouble")
        return Answer("", Drained(arguments.name))


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Process, Process]]:
    namo, ts = Process("namo-main"), Process("ts-du-1")
    namo.peer, ts.peer = ts, namo
    ts.desk.show_to("namo-main", everything=True)
    yield namo, ts
    for one in (namo, ts):
        one.desk.close()
        one.linker.close()


async def shown(process: Process, cell: CellView) -> None:
    async with asyncio.timeout(WAIT_S):
        while process.registry.model.get(CELL, cell.scheduler) != cell:
            await process.registry.changed(CELL)


async def test_what_one_shows_the_other_has(pair: tuple[Process, Process]) -> None:
    namo, ts = pair
    for number in range(3):
        cell = CellView("ts-du-1", f"c{number}", "mqtt://127.0.0.1:1")
        ts.registry.apply(views=[View(CELL, "ts-du-1", cell)])
        await shown(namo, cell)


async def test_a_new_life_of_either_shows_everything_again(pair: tuple[Process, Process]) -> None:
    namo, ts = pair
    cell = CellView("ts-du-1", "c", "mqtt://127.0.0.1:1")
    ts.registry.apply(views=[View(CELL, "ts-du-1", cell)])
    await shown(namo, cell)
    namo.desk.close()
    namo.linker.close()
    namo.registry = LiveRegistry(Registry("anew"))
    namo.begin(2)
    ts.linker.wired()
    await shown(namo, cell)


async def test_a_call_is_served_there_and_answered_here(pair: tuple[Process, Process]) -> None:
    namo, ts = pair
    answer = await namo.desk.call("ts-du-1", "node.drain", Drain("n"), "acme", "why")
    assert answer.value == Drained("n")
    assert ts.served == ["node.drain n acme why"]
    answer = await namo.desk.call("ts-du-1", "node.drain", Drain("nobody"), "acme", "why")
    assert (answer.error, answer.blame) == ("there is no node 'nobody'", Blame.USER)
    answer = await namo.desk.call("ts-du-1", "node.drain", Drain("trouble"), "acme", "why")
    assert (answer.error, answer.blame) == ("trouble", Blame.USER)


async def test_a_call_outlives_a_new_life_of_who_serves_it(pair: tuple[Process, Process]) -> None:
    namo, ts = pair
    await namo.desk.call("ts-du-1", "node.drain", Drain("n"), "acme", "why")
    namo.cut = True
    call = asyncio.create_task(namo.desk.call("ts-du-1", "node.drain", Drain("m"), "acme", "why"))
    await asyncio.sleep(0)
    ts.desk.close()
    ts.linker.close()
    ts.begin(2)
    namo.cut = False
    ts.desk.show_to("namo-main", everything=True)
    async with asyncio.timeout(WAIT_S):
        assert (await call).value == Drained("m")


async def test_who_is_away_is_named(
    pair: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    namo, _ = pair
    namo.cut = True
    monkeypatch.setattr(module, "CALL_TIMEOUT_S", 0.05)
    answer = await namo.desk.call("ts-du-1", "node.drain", Drain("n"), "acme", "why")
    assert "ts-du-1 did not answer" in answer.error
    assert answer.blame is Blame.ENVIRONMENT


async def test_nodes_of_a_process_that_is_away_are_shown_as_suspect(
    pair: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    namo, ts = pair
    monkeypatch.setattr(module, "AWAY_MS", 60)

    async def seen(state: NodeState) -> None:
        async with asyncio.timeout(WAIT_S):
            while getattr(namo.registry.model.get(FLEET, "n"), "state", None) is not state:
                await namo.registry.changed(FLEET)

    view = NodeView("n", NodeState.ONLINE, "ts-du-1", INVENTORY)
    ts.registry.apply(views=[View(FLEET, "n", view)])
    await seen(NodeState.SUSPECT)
    assert "ts-du-1" in namo.registry.model.get(FLEET, "n").reason
    ts.linker.wired()
    await seen(NodeState.ONLINE)


async def test_an_operation_of_another_version_is_refused(pair: tuple[Process, Process]) -> None:
    namo, ts = pair
    ts.desk._types = lambda _: None
    answer = await namo.desk.call("ts-du-1", "node.drain", Drain("n"), "acme", "why")
    assert "not known here" in answer.error


async def test_a_slow_line_makes_the_mirror_wait(
    pair: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits stays a set of keys: the link is not flooded with what will be old."""
    namo, ts = pair
    cell = CellView("ts-du-1", "c", "mqtt://127.0.0.1:1")
    ts.registry.apply(views=[View(CELL, "ts-du-1", cell)])
    await shown(namo, cell)
    monkeypatch.setattr(module, "WAITING_MAX", 5)
    ts.cut = True
    for number in range(100):
        ts.registry.apply(views=[View(CELL, f"k{number}", cell)])
    for _ in range(10):
        ts.desk._flush()
    assert ts.linker.links.waiting("desk-ts-du-1", "desk-namo-main")[0] <= 5
    ts.cut = False
    ts.linker.wired()
    async with asyncio.timeout(WAIT_S):
        while len(namo.registry.model.list(CELL)) < 101:
            await namo.registry.changed(CELL)


async def test_a_foreign_mirror_is_not_heard(pair: tuple[Process, Process]) -> None:
    namo, ts = pair
    ts.linker.say("desk-ts-du-1", "desk-namo-main", "default", "x", Mirror("comet", "a", b"x"))
    await namo.desk.call("ts-du-1", "node.drain", Drain("n"), "acme", "why")
    assert namo.registry.model.list("comet") == []


async def ready(process: Process) -> None:
    async with asyncio.timeout(WAIT_S):
        while process.desk.starting():  # noqa: ASYNC110 - asked for when somebody calls
            await asyncio.sleep(0.01)


async def test_a_process_is_starting_until_it_was_shown_everything(
    pair: tuple[Process, Process],
) -> None:
    namo, ts = pair
    cells = [CellView(f"ts-{at}", "c", "mqtt://127.0.0.1:1") for at in range(50)]
    ts.registry.apply(views=[View(CELL, one.scheduler, one) for one in cells])
    await shown(namo, cells[-1])
    namo.desk.close()
    namo.linker.close()
    namo.registry = LiveRegistry(Registry("anew"))
    namo.begin(2)
    namo.desk.wait_for(["ts-du-1"])
    assert namo.desk.starting() == (
        "this controller is starting and has not heard ts-du-1 yet: ask again in a moment"
    )
    ts.linker.wired()
    await ready(namo)
    assert len([*namo.registry.model.keys(CELL)]) == len(cells)


async def test_a_process_that_is_away_is_not_waited_for_long(
    pair: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    namo, _ = pair
    namo.cut = True
    monkeypatch.setattr(module, "AWAY_MS", 30)
    namo.desk.wait_for(["ts-du-1"])
    assert namo.desk.starting()
    await ready(namo)
