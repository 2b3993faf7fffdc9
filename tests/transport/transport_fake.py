"""A broker of a few lines whose every answer a test decides."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

ACCEPT = b"\x20\x03\x00\x00\x00"


class Line:
    """One connection as the fake broker sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def packet(self) -> tuple[int, bytes]:
        """Return the first byte and the body of the next packet."""
        first = (await self._reader.readexactly(1))[0]
        length, shift = 0, 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        return first, await self._reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def greet(self, connack: bytes = ACCEPT) -> None:
        """Accept CONNECT and grant its one SUBSCRIBE."""
        await self.packet()
        await self.say(connack)
        _, body = await self.packet()
        await self.say(b"\x90\x04" + body[:2] + b"\x00\x01")

    async def until_closed(self) -> None:
        while await self._reader.read(65536):
            pass


class FakeBroker:
    """Serves every connection with `story`; a story that ends closes it."""

    def __init__(self, story: Callable[[Line], Awaitable[None]]) -> None:
        self._story = story
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._story(Line(reader, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
