"""A client of several cells: where it sends, and what it does when a service goes elsewhere."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from protocols.errors import Blame
from protocols.messages.invocation import Failure, FailureCode
from tona import spread, target
from tona.errors import BadInput, CannotConnect, ServiceUnavailable, error_of
from tona.spread import SpreadClient
from tona.target import at_cell
from tona.where import CellFound, Found

HERE, THERE = CellFound("c1", "mqtt://127.0.0.1:1"), CellFound("c2", "mqtt://127.0.0.1:2")
GONE = error_of(Failure(FailureCode.NO_SERVICE, Blame.USER, "there is no service", retryable=True))


class OneCell:
    """A client of one cell that answers, fails, or keeps a request for ever."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.does: Any = None
        self.asked: list[float] = []
        self.given_up = 0
        self.back = asyncio.Event()

    def served_in(self, service: str, cell: str) -> None:
        assert (service, cell) == ("s", self.name)
        self.back.set()

    async def invoke(self, service: str, inputs: Any, *, deadline_s: float, priority: int) -> str:
        del service, inputs, priority
        self.asked.append(deadline_s)
        if isinstance(self.does, Exception):
            raise self.does
        if self.does == "wait":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.given_up += 1
                raise
        return f"answer of {self.name}"

    async def close(self) -> None:
        pass


class Spread(SpreadClient):
    """With two cells of the test, and a controller that says what it is told to."""

    def __init__(self) -> None:
        super().__init__(at_cell("c0", "127.0.0.1", 9, "http://127.0.0.1:9"))
        self.says: list[Found | Exception] = []
        self.looked = 0
        self.thrice = asyncio.Event()
        self.cells = {HERE: OneCell("c1"), THERE: OneCell("c2")}
        self._where._ask = self._ask_where  # type: ignore[method-assign] - of the controller

    async def _ask_where(self, service: str) -> Found:
        del service
        self.looked += 1
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if self.looked >= 3:
            self.thrice.set()
        if isinstance(said, Exception):
            raise said
        return said

    async def _client(self, cell: CellFound, due_s: float) -> Any:
        del due_s
        return self.cells[cell]


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Spread]:
    monkeypatch.setattr(spread, "LOOK_AGAIN_S", 0.02)
    monkeypatch.setattr(spread, "LOOK_PAUSE_S", 0.01)
    monkeypatch.setattr(spread, "UNKNOWN_S", 0.1)
    made = Spread()
    yield made
    await made.close()


async def test_a_service_is_looked_for_once_and_asked_in_its_cell(client: Spread) -> None:
    client.says = [Found(known=True, cell=THERE)]
    for _ in range(3):
        assert await client.invoke("s", {}) == "answer of c2"  # type: ignore[comparison-overlap]
    assert client.looked == 1
    assert client.cells[HERE].asked == []


async def test_a_request_that_waits_follows_its_service(client: Spread) -> None:
    client.says = [Found(known=True, cell=HERE), Found(known=True, cell=THERE)]
    client.cells[HERE].does = "wait"
    result = await asyncio.wait_for(client.invoke("s", {}, deadline_s=20), 30)
    assert result == "answer of c2"  # type: ignore[comparison-overlap]
    assert client.cells[HERE].given_up == 1
    assert client.cells[THERE].asked[0] < 20


async def test_a_cell_to_which_the_service_has_come_back_is_asked_again(client: Spread) -> None:
    client.says = [Found(known=True, cell=HERE)]
    one = client.cells[HERE]
    client._clients[HERE] = one  # type: ignore[assignment] - as much of a client as is needed
    one.does = "wait"
    task = asyncio.create_task(client.invoke("s", {}))
    await asyncio.wait_for(one.back.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cell_that_knows_the_service_no_more_is_left(client: Spread) -> None:
    client.says = [Found(known=True, cell=HERE), Found(known=True, cell=THERE)]
    client.cells[HERE].does = GONE
    assert await client.invoke("s", {}) == "answer of c2"  # type: ignore[comparison-overlap]


async def test_where_it_has_not_gone_its_failure_is_told(client: Spread) -> None:
    client.says = [Found(known=True, cell=HERE)]
    client.cells[HERE].does = GONE
    with pytest.raises(ServiceUnavailable, match="there is no service"):
        await client.invoke("s", {})


async def test_a_controller_that_is_away_and_a_place_to_come_are_waited_for(
    client: Spread,
) -> None:
    away = CannotConnect("nobody answers")
    client.says = [away, Found(known=True), Found(known=True, cell=HERE)]
    assert await client.invoke("s", {}) == "answer of c1"  # type: ignore[comparison-overlap]


async def test_a_controller_that_goes_away_leaves_requests_where_they_are(client: Spread) -> None:
    client.says = [Found(known=True, cell=HERE), CannotConnect("nobody answers")]
    client.cells[HERE].does = "wait"
    task = asyncio.create_task(client.invoke("s", {}))
    await asyncio.wait_for(client.thrice.wait(), 30)
    assert client.cells[HERE].given_up == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.cells[HERE].given_up == 1


async def test_what_is_nowhere_is_told_at_the_deadline_or_at_once(client: Spread) -> None:
    client.says = [Found(known=True)]
    with pytest.raises(ServiceUnavailable, match="no place yet"):
        await client.invoke("s", {}, deadline_s=1)
    client.says = [Found(known=False)]
    with pytest.raises(ServiceUnavailable, match="there is no service 's'"):
        await client.invoke("s", {}, deadline_s=60)
    with pytest.raises(BadInput, match="cannot name a service"):
        await client.submit("a b", {}, accept_s=0.1)


async def test_a_broker_that_answers_as_the_controllers_time_ends_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = asyncio.Event()

    async def silent(_: object) -> bytes:
        try:
            return await asyncio.Future()
        finally:
            over.set()
            # As a connection that is let go of.
            for _ in range(5):
                await asyncio.sleep(0)

    monkeypatch.setattr(spread, "LOOK_S", 0.01)
    monkeypatch.setattr(target, "_system", silent)
    monkeypatch.setattr("tona.client.AsyncClient.open", lambda *_: over.wait())
    at = at_cell("c1", "127.0.0.1", 1, "https://127.0.0.1:1", identity="alice")
    one = SpreadClient(replace(at, unasked=True))
    await one.open()
    assert not one._target.api_url
