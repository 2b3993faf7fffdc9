"""A client beside a node: whom it asks when its service has gone, and nobody told it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sdk_cell import CELL, Cell

from protocols import topics
from protocols.codec import VERSION, Frame
from protocols.messages import Route
from protocols.messages.invocation import Plan, Step
from protocols.topics import Channel, Party
from protocols.transport.session import Inbound
from tona import beside
from tona import client as client_module
from tona.beside import BesideClient
from tona.events import AskRoute, Heard
from tona.target import find
from tona.where import CellFound, Found


@pytest.fixture
async def client(cell: Cell, tmp_path: Path) -> AsyncIterator[BesideClient]:
    broker = cell.system["broker"]
    file = tmp_path / "ue-1.json"
    file.write_text(json.dumps({"node": "ue-1", "cell": CELL, "broker": broker}), "utf-8")
    target = replace(await find(cell.url), api_url=cell.url)
    made = BesideClient(target, file)
    await made.open()
    yield made
    await made.close()


class Controller:
    """Says where services are, one answer after the other; the last one stays."""

    def __init__(self, client: BesideClient, cells: list[str]) -> None:
        self.looked = 0
        self.cells = cells
        assert client._where is not None
        client._where._ask = self._ask  # type: ignore[method-assign] - of the controller

    async def _ask(self, _service: str) -> Found:
        self.looked += 1
        cell = self.cells.pop(0) if len(self.cells) > 1 else self.cells[0]
        return Found(known=True, cell=CellFound(cell, ""))


@pytest.mark.parametrize("says", ["nothing", "none"])
async def test_a_service_that_its_cell_knows_no_more_is_looked_for_again(
    client: BesideClient, says: str
) -> None:
    controller = Controller(client, ["c2", CELL])
    if says == "none":
        asked = client._ask_route

        def refused(command: Any) -> None:
            home = client._home(command.service)
            asked(command)
            if home == "c2":
                reason = "none of that name was submitted here"
                client._routed_to(Route(command.service, 1, None, 30_000, reason=reason))

        client._on[beside.AskRoute] = refused
    async with asyncio.timeout(60):
        result = await client.invoke("s", {"x": b"hello"})
    assert bytes(result.outputs["y"]) == b"hello"
    assert client._homes["s"] == CELL
    assert controller.looked == 2


async def test_a_controller_is_not_asked_for_every_question(
    client: BesideClient,
) -> None:
    controller = Controller(client, ["c2"])
    with pytest.raises(Exception, match=r"no answer|not served"):
        await client.invoke("s", {"x": b"hello"}, deadline_s=3.0)
    assert 2 <= controller.looked <= 3, "once for the request, and then now and then"


class Schedulers:
    """Counts who is asked for a service, and says what they would."""

    def __init__(self, client: BesideClient) -> None:
        self._client = client
        self.asked: list[str] = []
        self.news = asyncio.Event()
        client._asked.add("s")
        client._homes["s"] = "c1"
        client._ask_route = self._ask  # type: ignore[method-assign] - of the brokers

    def _ask(self, command: AskRoute) -> None:
        self.asked.append(self._client._home(command.service))
        self.news.set()

    def say(self, cell: str | None) -> int:
        """Say that a service is in a cell, or in none; return what the requests had to learn."""
        step = Step("s.t", "n", 1, (), (), cell=cell or "")
        plan = Plan("s", 1, (step,), ()) if cell is not None else None
        taken: list[Any] = []
        self._client._core._on[Heard] = taken.append
        frame = Frame(VERSION, "ts", 1, 0, "default", "x", Route("s", 1, plan, 30_000))
        topic = topics.build(CELL, Party.SERVICE, "s", Channel.ROUTE)
        self._client.hear(Inbound(topic, frame, "", b""))
        return len(taken)


async def test_who_has_not_heard_yet_that_it_serves_does_not_send_clients_in_circles(
    client: BesideClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "BEHIND_S", 0.05)
    cells = Schedulers(client)
    client._left["other", "c1"] = client._loop.time()
    assert cells.say("c2") == 1
    assert cells.asked == ["c2"]
    # It leads back to where the client has come from, or knows of nothing: what it said before
    # is no news, and the plan that led here is kept.
    assert (cells.say("c1"), cells.say(None)) == (0, 0)
    assert (client._home("s"), cells.asked) == ("c2", ["c2"])
    cells.news.clear()
    async with asyncio.timeout(60):
        await cells.news.wait()
    assert cells.asked == ["c2", "c2"], "once more, when it has had the time"
    # By then it knows: if it still leads back the service has gone back.
    assert cells.say("c1") == 1
    assert cells.asked == ["c2", "c2", "c1"]
    # It serves: that is believed at any time.
    assert cells.say("") == 1
    assert client._home("s") == "c1"
    assert cells.say("c3") == 1
    assert client._home("s") == "c3"
