"""Reading request bodies within bounds of size and time."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from starlette.requests import ClientDisconnect, Request

from controller.api.errors import Refused
from controller.api.intake import intake
from protocols.errors import Blame

BODY_MAX_BYTES: Final = 1 << 20
"""A JSON body; contents have bounds of their own."""
SLOW_TIMEOUT_S: Final = 60.0
"""How long `SLOW_BYTES` may take, or the rest: a slower client has lost its request."""
SLOW_BYTES: Final = 64 << 10
PIECE_BYTES: Final = 2 << 20
"""Of a large body, read at once."""


def declared_bytes(request: Request) -> int | None:
    """Return the length that the client announced, None when it streams."""
    text = request.headers.get("content-length")
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


async def chunks(request: Request, max_bytes: int) -> AsyncGenerator[bytes | bytearray]:
    """Yield the body as it comes. Raises Refused: too large (413), slow (408), cut off (400)."""
    too_large = Refused(413, f"the body is larger than {max_bytes} bytes, the most there may be")
    size_bytes = declared_bytes(request) or 0
    if size_bytes > max_bytes:
        raise too_large
    size = 0
    large = intake(request, size_bytes)
    try:
        if large is not None:
            async with aclosing(large.pieces(PIECE_BYTES, SLOW_BYTES, SLOW_TIMEOUT_S)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        async for chunk in _streamed(request):
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            yield chunk
    except TimeoutError:
        raise Refused(
            408,
            f"the body came too slowly: less than {SLOW_BYTES} bytes in {SLOW_TIMEOUT_S:.0f} s",
            blame=Blame.ENVIRONMENT,
        ) from None
    except ClientDisconnect:
        raise Refused(
            400, "the connection ended within the body", blame=Blame.ENVIRONMENT
        ) from None


async def _streamed(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as uvicorn gives it. Raises TimeoutError and ClientDisconnect."""
    size = mark = 0
    left_s = SLOW_TIMEOUT_S
    stream = request.stream()
    while True:
        since_s = time.monotonic()
        async with asyncio.timeout(left_s):
            chunk = await anext(stream, None)
        if chunk is None:
            return
        size += len(chunk)
        # What the taker of a chunk does with it is not the client's time.
        left_s -= time.monotonic() - since_s
        if size - mark >= SLOW_BYTES:
            mark, left_s = size, SLOW_TIMEOUT_S
        yield chunk


async def whole(request: Request, max_bytes: int = BODY_MAX_BYTES) -> bytes:
    """Return a small body. Raises Refused."""
    return b"".join([chunk async for chunk in chunks(request, max_bytes)])
