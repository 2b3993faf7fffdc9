"""Kept connections to a controller: one that ends under a request costs no answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from controller.api.server import KEEP_ALIVE_S
from protocols.errors import EnvironmentFailure
from tona.cli import invoke
from tona.cli.api import KEPT_S, Api, Target

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"
HALF = ANSWER[:-1]
NOTHING = b""


@asynccontextmanager
async def controller(*connections: Sequence[bytes]) -> AsyncIterator[tuple[str, list[str]]]:
    """Give each connection these answers, and close it after the next request."""
    asked: list[str] = []
    left = list(connections)
    open_ones: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = asyncio.current_task()
        assert own is not None
        open_ones.add(own)
        answers = left.pop(0) if left else []
        for answer in [*answers, NOTHING]:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            asked.append(head.split()[1].decode())
            writer.write(answer)
            if answer != ANSWER:
                break
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
        await asyncio.gather(*open_ones)


async def test_what_a_kept_connection_did_not_answer_is_asked_again_on_a_fresh_one() -> None:
    async with controller([ANSWER], [ANSWER]) as (url, asked), Api(Target(url)) as api:
        assert await api.call("task.list") == []
        assert await api.call("fleet.status") == []
    assert asked == ["/v1/tasks", "/v1/fleet", "/v1/fleet"]


async def test_a_change_that_may_be_asked_twice_is_asked_again() -> None:
    async with controller([ANSWER], [ANSWER]) as (url, asked), Api(Target(url)) as api:
        await api.call("task.list")
        # The answer is none of this operation's: what counts is that one came.
        with pytest.raises(Exception, match="not of this version"):
            await api.call("node.drain", name="n1")
    assert asked == ["/v1/tasks", *["/v1/nodes/n1/drain"] * 2]


async def test_it_is_asked_twice_at_most() -> None:
    async with controller([ANSWER]) as (url, asked), Api(Target(url)) as api:
        await api.call("task.list")
        with pytest.raises(EnvironmentFailure, match="disconnected"):
            await api.call("fleet.status")
    assert asked == ["/v1/tasks", "/v1/fleet", "/v1/fleet"]


async def test_a_fresh_connection_without_an_answer_is_believed() -> None:
    async with controller([], [ANSWER]) as (url, asked), Api(Target(url)) as api:
        with pytest.raises(EnvironmentFailure, match="disconnected"):
            await api.call("task.list")
    assert asked == ["/v1/tasks"]


async def test_half_an_answer_is_one() -> None:
    async with controller([ANSWER, HALF], [ANSWER]) as (url, asked), Api(Target(url)) as api:
        await api.call("task.list")
        with pytest.raises(EnvironmentFailure):
            await api.call("fleet.status")
    assert asked == ["/v1/tasks", "/v1/fleet"]


async def test_what_may_not_be_asked_twice_has_a_connection_of_its_own() -> None:
    async with controller([ANSWER], [ANSWER], [NOTHING]) as (url, asked), Api(Target(url)) as api:
        await api.call("task.list")
        with pytest.raises(Exception, match="not of this version"):
            await api.call("node.handover", name="n1", cell="east")
        with pytest.raises(EnvironmentFailure, match="disconnected"):
            await api.call("node.handover", name="n2", cell="east")
    assert asked == ["/v1/tasks", "/v1/nodes/n1/handover", "/v1/nodes/n2/handover"]


async def test_the_controller_keeps_connections_longer_than_they_are_used() -> None:
    assert KEPT_S < KEEP_ALIVE_S
    async with Api(Target("http://127.0.0.1:1")) as api:
        pools = [one._transport._pool for one in (api._http, api._fresh)]  # type: ignore[attr-defined]
        assert pools[0]._keepalive_expiry == KEPT_S
        assert pools[1]._max_keepalive_connections == 0


async def test_a_controller_that_says_nothing_is_done_without_where_a_bundle_names_the_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def silent(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    given = SimpleNamespace(bundle=SimpleNamespace(value="alice.json"))
    monkeypatch.setattr(invoke, "settings", lambda: given)
    monkeypatch.setattr("tona.cli.api.target", lambda _: Target("http://127.0.0.1:1"))
    monkeypatch.setattr(Api, "call", silent)
    monkeypatch.setattr(invoke, "ORDER_S", 0.01)
    assert await invoke._order("s") is None
