"""Large request bodies, read by the transport into the buffer where they are wanted.

uvicorn copies a body three times, in pieces of 64 KB that a task waits for one by one. Here the
rest of a body takes the connection over: the kernel writes it where it stays. Then uvicorn goes on
with the next request. What nobody wants any more is read and forgotten, so that the client hears
why.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

import httptools
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION: Final = "tona.intake"
"""Where the application finds the connection's protocol, below the scope's `extensions`."""
LEAST_BYTES: Final = 64 << 10
"""A smaller body comes as uvicorn gives it."""
SCRATCH_BYTES: Final = 64 << 10


class Intaking(HttpToolsProtocol):
    """HTTP/1.1 whose application may have a body read by an `Intake`."""

    def on_message_begin(self) -> None:
        """Begin a request; tell the application where it comes from."""
        super().on_message_begin()
        # An extension of our own kind: ASGI's types know of dictionaries alone.
        self.scope["extensions"] = {EXTENSION: self}  # type: ignore[dict-item]

    def renew_parser(self) -> None:
        """Expect a request next: a body has come past the parser."""
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn's own.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)


def intake(request: Request, size_bytes: int) -> "Intake | None":
    """Return what reads the body of a request, if most of it is still to come."""
    protocol = request.scope.get("extensions", {}).get(EXTENSION)
    cycle = protocol.cycle if protocol is not None else None
    if cycle is None or cycle.scope is not request.scope or cycle.waiting_for_100_continue:
        return None
    coming = cycle.more_body and not cycle.disconnected
    if not coming or size_bytes - len(cycle.body) < LEAST_BYTES:
        return None
    return Intake(protocol, size_bytes)


class Intake(asyncio.BufferedProtocol):
    """The body of one request on its way in."""

    def __init__(self, protocol: Intaking, size_bytes: int) -> None:
        """Take over what is left of a body of this size, which is not all here."""
        self._protocol = protocol
        self._cycle = protocol.cycle
        self._early, self._cycle.body = self._cycle.body, bytearray()
        self._left = size_bytes - len(self._early)
        """Bytes that the transport has not given yet."""
        self._room = memoryview(b"")
        self._at = 0
        self._wanted = True
        self._full: asyncio.Future[None] = protocol.loop.create_future()
        protocol.flow.pause_reading()
        protocol.transport.set_protocol(self)

    async def pieces(
        self, piece_bytes: int, slow_bytes: int, slow_s: float
    ) -> AsyncGenerator[bytearray]:
        """Yield the body in pieces of this size but for the last.

        Raises ClientDisconnect, and TimeoutError when so few bytes came in so long.
        """
        try:
            while self._left or self._early:
                piece = bytearray(min(piece_bytes, len(self._early) + self._left))
                early = self._early[: len(piece)]
                piece[: len(early)] = early
                del self._early[: len(early)]
                if len(early) < len(piece):
                    await self._fill(memoryview(piece)[len(early) :], slow_bytes, slow_s)
                yield piece
        finally:
            self._forget()

    async def _fill(self, room: memoryview, slow_bytes: int, slow_s: float) -> None:
        self._room, self._at = room, 0
        self._full = self._protocol.loop.create_future()
        self._protocol.flow.resume_reading()
        mark = -slow_bytes
        while not self._full.done():
            if self._at - mark < slow_bytes:
                raise TimeoutError
            mark = self._at
            await asyncio.wait({self._full}, timeout=slow_s)
        if self._cycle.disconnected:
            raise ClientDisconnect

    def _forget(self) -> None:
        """Let what still comes pass by."""
        if self._left and not self._cycle.disconnected:
            self._wanted = False
            self._room, self._at = memoryview(bytearray(SCRATCH_BYTES)), 0
            self._protocol.flow.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes belong."""
        del sizehint
        if not self._wanted:
            self._at = 0
        return self._room[self._at : self._at + self._left]

    def buffer_updated(self, nbytes: int) -> None:
        """Take note of bytes that have come."""
        self._at += nbytes
        self._left -= nbytes
        if not self._left:
            self._end()
        elif self._wanted and self._at == len(self._room):
            self._protocol.flow.pause_reading()
        else:
            return
        self._filled()

    def _filled(self) -> None:
        if not self._full.done():
            self._full.set_result(None)

    def _end(self) -> None:
        """Give the connection back: what follows is another request."""
        protocol, cycle = self._protocol, self._cycle
        protocol.renew_parser()
        protocol.transport.set_protocol(protocol)
        cycle.more_body = False
        cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits that the rest does not come."""
        self._protocol.connection_lost(exc)
        self._filled()

    def pause_writing(self) -> None:
        """As the protocol that this one stands in for."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """As the protocol that this one stands in for."""
        self._protocol.resume_writing()
