"""Clients that mean harm: silent, endless, slow, or with names that speak to a terminal."""

import asyncio
import hashlib
from typing import Any

import httpx
import pytest

from controller.api import body, peers

DATA = b"content"
ADDRESS = hashlib.sha256(DATA).hexdigest()
HEAD = b"GET /v1/system HTTP/1.1\r\nHost: 127.0.0.1\r\n"
PATIENCE_S = 60
PIECE_BYTES = 1 << 16


async def cut_off(address: tuple[str, int], first: bytes, again: bytes = b"") -> bytes:
    """Open a connection, send and go on sending; return what came until it was ended."""
    reader, writer = await asyncio.open_connection(*address)
    answer = bytearray()

    async def read() -> None:
        # Piece by piece: what has come counts, also where the connection is then reset.
        while piece := await reader.read(PIECE_BYTES):
            answer.extend(piece)

    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(first)
            ended = asyncio.create_task(read())
            while again and not ended.done():
                writer.write(again)
                await asyncio.wait({ended}, timeout=0.02)
            await ended
    except ConnectionError:
        pass
    finally:
        writer.close()
    return bytes(answer)


@pytest.mark.parametrize(
    ("first", "again"),
    [(b"", b""), (HEAD, b""), (HEAD, b"X: y\r\n"), (HEAD + b"\r\n" + HEAD, b"")],
    ids=["silent", "half a head", "a trickle of headers", "half a second head"],
)
async def test_a_connection_without_a_request_is_cut_off(
    cell: Any,
    http: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    first: bytes,
    again: bytes,
) -> None:
    # On a busy machine what is whole may take a while, too.
    monkeypatch.setattr(peers, "HEAD_TIMEOUT_S", 1.0 if b"\r\n\r\n" in first else 0.2)
    answer = await cut_off(cell.address, first, again)
    assert answer.count(b"HTTP/1.1 200") == first.count(b"\r\n\r\n")
    monkeypatch.undo()
    assert (await http.get("/v1/system")).status_code == 200


async def test_a_head_in_time_has_all_the_time_it_needs(
    cell: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "HEAD_TIMEOUT_S", 1.0)

    async def slowly() -> Any:
        for byte in DATA:
            await asyncio.sleep(0.2)
            yield bytes([byte])

    put = await http.put(f"/v1/blobs/{ADDRESS}", content=slowly())
    assert put.status_code == 201
    assert cell.server.api.bulk.retention.size_bytes == len(DATA)


async def test_a_body_that_trickles_gives_its_place_back(
    cell: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "SLOW_TIMEOUT_S", 0.3)
    path = f"/v1/blobs/{ADDRESS}"
    head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
    answer = await cut_off(cell.address, head.encode(), b".")
    assert b"408" in answer
    assert b"the body came too slowly" in answer
    await cell.until(lambda: cell.server.api.bulk._uploads == 0)
    monkeypatch.undo()
    assert (await http.put(path, content=DATA)).status_code == 201


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("name=%1b[2J", "name"),
        ("name=a%0ab", "name"),
        ("name=%c2%9b2J", "name"),
        ("name=ok%0a", "name"),
        (f"name={'x' * 201}", "name"),
        ("media=wasm%0a", "media"),
    ],
)
async def test_an_artifact_is_called_by_what_a_terminal_can_show(
    cell: Any, http: httpx.AsyncClient, query: str, field: str
) -> None:
    answer = await http.put(f"/v1/artifacts/{ADDRESS}?{query}", content=DATA)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field
    assert cell.causes == []
