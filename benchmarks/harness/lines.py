"""The other end of `Process.ask`: a program that answers lines of JSON, one after another."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec


def say(answer: Any) -> None:
    """Write one line."""
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


async def serve(handle: Callable[[Any], Awaitable[Any]]) -> None:
    """Answer each line with what `handle` returns, until the other side hangs up."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    serving = asyncio.ensure_future(_answer(reader, handle))
    loop.add_signal_handler(signal.SIGTERM, serving.cancel)
    await asyncio.wait({serving})
    if not serving.cancelled():
        serving.result()


async def _answer(reader: asyncio.StreamReader, handle: Callable[[Any], Awaitable[Any]]) -> None:
    while line := await reader.readline():
        say(await handle(msgspec.json.decode(line)))
