"""Large bodies, which come past uvicorn: whole, cut off, refused, and what follows them."""

import asyncio
import hashlib
from typing import Any

import httpx
import pytest

from controller.api import body, intake

SIZES = (body.PIECE_BYTES - 1, body.PIECE_BYTES, 2 * body.PIECE_BYTES + 3)


def put(data: bytes, path: str = "", more: str = "") -> bytes:
    path = path or f"/v1/blobs/{hashlib.sha256(data).hexdigest()}"
    head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n{more}\r\n"
    return head.encode() + data


async def status(reader: asyncio.StreamReader) -> int:
    """Read one answer; return its status."""
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        await reader.readexactly(length)
    return int(head.split(" ", 2)[1])


async def test_one_connection_takes_large_and_small_bodies_in_turn(
    cell: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[intake.Intake] = []

    class Counted(intake.Intake):
        def __init__(self, *about: Any) -> None:
            super().__init__(*about)
            made.append(self)

    monkeypatch.setattr(intake, "Intake", Counted)
    reader, writer = await asyncio.open_connection(*cell.address)
    bodies = [bytes([number]) * size for number, size in enumerate((*SIZES, 10, *SIZES))]
    # All at once: the next head comes with the end of the body before.
    writer.write(b"".join(map(put, bodies)))
    assert [await status(reader) for _ in bodies] == [201] * len(bodies)
    assert len(made) == 2 * len(SIZES)
    for one in bodies:
        got = await http.get(f"/v1/blobs/{hashlib.sha256(one).hexdigest()}")
        assert got.content == one
    writer.close()


async def test_what_is_refused_passes_by_and_the_connection_goes_on(
    cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await asyncio.open_connection(*cell.address)
    data = bytes(SIZES[-1])
    monkeypatch.setattr("controller.api.bulk.MAX_UPLOADS", 0)
    writer.write(put(data))
    assert await status(reader) == 503
    monkeypatch.undo()
    full = OSError(28, "No space left on device")

    def write(*_: object) -> int:
        raise full

    monkeypatch.setattr("controller.api.content.os.write", write)
    writer.write(put(data))
    assert await status(reader) == 507
    monkeypatch.undo()
    writer.write(put(data, f"/v1/blobs/{'0' * 64}"))
    assert await status(reader) == 400
    writer.write(put(data))
    assert await status(reader) == 201
    writer.close()


async def test_a_large_body_that_stands_still_is_told_so(
    cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "SLOW_TIMEOUT_S", 0.2)
    reader, writer = await asyncio.open_connection(*cell.address)
    writer.write(put(bytes(SIZES[0]))[:-1])
    assert await status(reader) == 408
    writer.close()


async def test_a_client_that_asks_first_is_told_to_go_on(cell: Any) -> None:
    reader, writer = await asyncio.open_connection(*cell.address)
    data = bytes(SIZES[0])
    head = put(data, more="Expect: 100-continue\r\n")[: -len(data)]
    writer.write(head)
    async with asyncio.timeout(10):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
    writer.write(data)
    assert await status(reader) == 201
    writer.close()
