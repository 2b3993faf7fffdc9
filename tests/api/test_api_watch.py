import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from controller.api.client import Change, Event, EventReader, change
from protocols.errors import PeerError


class Follower:
    """Reads the events of one watch of the fleet."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self._reader = EventReader()

    async def next(self) -> Event:
        async with asyncio.timeout(60):
            async for line in self._lines:
                event = self._reader.feed(line)
                if event is not None:
                    return event
        raise EOFError

    async def change(self) -> Change:
        event = await self.next()
        assert event.event == "change"
        return change("fleet", event)


@asynccontextmanager
async def watch(http: httpx.AsyncClient, path: str, **more: Any) -> AsyncIterator[Follower]:
    async with http.stream("GET", f"/v1/watch/{path}", **more) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Follower(response)


async def test_a_watch_continues_exactly_where_it_left(cell: Any, http: httpx.AsyncClient) -> None:
    cell.see_node("a")
    async with watch(http, "fleet") as follower:
        begin = await follower.next()
        assert begin.event == "resync"
        cell.see_node("b")
        assert (await follower.change()).key == "b"
        cell.lose_node("a")
        event = await follower.next()
        assert change("fleet", event) == Change("a", None)
    cell.see_node("c")
    cell.see_node("d", silent_ms=9)
    async with watch(http, f"fleet?from={event.token}") as follower:
        assert (await follower.change()).key == "c"
        last = await follower.change()
        assert last == Change("d", cell.registry.model.get("fleet", "d"))
        assert last.value.silent_ms == 9
    async with watch(
        http, f"fleet?from={begin.token}", headers={"last-event-id": event.token}
    ) as again:
        assert (await again.change()).key == "c"
    async with watch(http, f"fleet?from={begin.token}") as again:
        assert [(await again.change()).key for _ in range(4)] == ["b", "a", "c", "d"]


async def test_a_listing_and_its_token_miss_nothing(cell: Any, http: httpx.AsyncClient) -> None:
    cell.see_node("a")
    token = (await http.get("/v1/fleet")).headers["tona-token"]
    cell.see_node("b")
    async with watch(http, f"fleet?from={token}") as follower:
        assert (await follower.change()).key == "b"


async def test_another_epoch_or_a_past_log_is_a_resync(cell: Any, http: httpx.AsyncClient) -> None:
    for number in range(1500):
        cell.see_node(f"n{number}")
    for token, reason in (("before.3", "restarted"), ("e.3", "more than 1000 changes")):
        async with watch(http, f"fleet?from={token}") as follower:
            event = await follower.next()
            assert event.event == "resync"
            assert reason in event.data.decode()
            assert event.token == cell.registry.model.token
            cell.see_node("new")
            assert (await follower.change()).key == "new"


async def test_a_prefix_hides_other_keys(cell: Any, http: httpx.AsyncClient) -> None:
    async with watch(http, "fleet?prefix=b") as follower:
        await follower.next()
        for name in ("a", "b1", "c", "b2"):
            cell.see_node(name)
        assert [(await follower.change()).key for _ in range(2)] == ["b1", "b2"]


async def test_watchers_are_bounded_and_give_their_place_back(
    cell: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.api.watch.MAX_WATCHERS", 1)
    async with watch(http, "fleet") as follower:
        await follower.next()
        refused = await http.get("/v1/watch/fleet")
        assert refused.status_code == 503
        assert refused.json()["error"]["blame"] == "environment"
    await cell.until(lambda: cell.server.api.watchers.count == 0)
    async with watch(http, "fleet") as follower:
        assert (await follower.next()).event == "resync"


async def test_a_slow_watcher_is_let_go_with_a_reason(cell: Any) -> None:
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, cell.address)
    reader, writer = await asyncio.open_connection(sock=narrow, limit=1 << 16)
    writer.write(b"GET /v1/watch/fleet HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(60):
        await reader.readuntil(b"resync")
        # We read nothing more: sockets fill up, then the log passes the watcher by.
        watchers = cell.server.api.watchers
        while _unsent_bytes(cell) == 0:
            for _ in range(200):
                cell.see_node("busy")
            await asyncio.sleep(0)
        for _ in range(2000):
            cell.see_node("last")
        rest = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert b"event: end" in rest
    assert b"this watcher is too slow: more than 1000 changes" in rest
    assert watchers.dropped == 1


def _unsent_bytes(cell: Any) -> int:
    (connection,) = cell.server._server.server_state.connections
    return int(connection.transport.get_write_buffer_size())


async def test_an_idle_watch_is_pinged(
    cell: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.api.watch.PING_S", 0.01)
    async with http.stream("GET", "/v1/watch/task") as response, asyncio.timeout(60):
        async for line in response.aiter_lines():
            if line == ": ping":
                break
    assert cell.calls == []


async def test_a_watch_ends_with_a_reason_when_the_server_stops(
    cell: Any, http: httpx.AsyncClient
) -> None:
    async with watch(http, "fleet") as follower:
        await follower.next()
        stopping = asyncio.create_task(cell.server.stop())
        event = await follower.next()
        assert (event.event, event.data) == ("end", b'{"reason":"the controller is stopping"}')
    async with asyncio.timeout(60):
        await stopping


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("taks", 404, "there is no kind 'taks'; did you mean 'task'?"),
        ("task?from=x", 400, "'x' is no revision token"),
        ("task?from=e.99", 400, "revision 99 lies ahead"),
        ("task?since=e.1", 400, "watch has no argument 'since'"),
    ],
)
async def test_a_wrong_watch_is_one_sentence(
    http: httpx.AsyncClient, path: str, status: int, sentence: str
) -> None:
    response = await http.get(f"/v1/watch/{path}")
    assert response.status_code == status
    assert response.json()["error"]["text"].startswith(sentence)


def test_events_are_read_line_by_line_and_foreign_ones_are_refused() -> None:
    reader = EventReader()
    lines = [
        ": ping",
        "",
        "event: change",
        "id: e.1",
        'data: {"key":"a","value":null}',
        "",
        "id: x",
    ]
    found = [event for line in lines if (event := reader.feed(line)) is not None]
    assert found == [Event("change", b'{"key":"a","value":null}', "e.1")]
    for data in (b"", b"{}", b'{"key":"a","value":{"node":5}}'):
        with pytest.raises(PeerError, match="the change of a fleet is not of this version"):
            change("fleet", Event("change", data))
