"""A controller that is starting is waited for, within a bound."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from protocols.errors import EnvironmentFailure
from tona.cli import api as module
from tona.cli.api import Api, Target

SAID = b'{"error":{"blame":"environment","text":"this controller is starting"}}'


@asynccontextmanager
async def controller(refusals: int) -> AsyncIterator[tuple[str, list[int]]]:
    """Serve empty listings, but first say so many times that it is starting."""
    asked: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(len(asked))
        starting = len(asked) <= refusals
        head = "503 Service Unavailable\r\nretry-after: 1" if starting else "200 OK"
        body = SAID if starting else b"[]"
        text = f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(text.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", asked


async def test_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    rest = asyncio.sleep

    async def pause(delay_s: float) -> None:
        pauses.append(delay_s)
        await rest(0)

    monkeypatch.setattr(module.asyncio, "sleep", pause)
    async with controller(2) as (url, asked), Api(Target(url)) as api:
        assert await api.call("task.list") == []
        assert await api.listing("fleet.status") == ([], "")
    assert len(asked) == 4
    assert pauses == [1.0, 1.0]


async def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STARTING_S", 0.5)
    async with controller(100) as (url, asked), Api(Target(url)) as api:
        with pytest.raises(EnvironmentFailure, match="this controller is starting"):
            await api.call("task.list")
    assert len(asked) == 1
