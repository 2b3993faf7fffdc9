"""The daemon's end of a socket to one of its processes: numbered requests, each answered once.

Raw sockets on the loop's readers: a stream reader would cost a task switch and a copy more on the
path of every warm call.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from device_agent.executors.programs.wire import (
    CHUNK_BYTES,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    PREFIX,
    WireError,
    measure,
)
from protocols.errors import EnvironmentFailure, TonaBug

_log = logging.getLogger("tona.executors")
_encode = msgspec.json.Encoder().encode

EVENT: Final = 0
"""The number of a frame that answers no request."""


class Reply(Struct, frozen=True):
    """What a process says; each kind of request fills some of it."""

    id: int
    us: int = 0
    out: list[tuple[str, int, tuple[int, ...], int, str]] = []
    """Outputs: name, dtype number, shape, bytes, hex digest of the file or empty for inline."""
    mem: int = 0
    fail: tuple[str, str, str, bool] | None = None
    """Code, blame, text, retryable."""
    log: list[tuple[int, str]] = []
    """Lines of the program: 0 debug, 1 info, 2 warning, 3 error."""
    pid: int = 0
    providers: list[str] = []
    note: str = ""
    forks: bool = False
    """Whether the process with the model forks those that run it."""
    gaps: list[str] = []
    """What its sandbox lacks on this machine."""
    exit: tuple[int, str] | None = None
    """A child of the process ended: its number, how."""
    digest: str = ""
    """Hex, of a value that was brought to a store."""
    form: str = ""
    """Fingerprint of the file that a module was compiled into."""
    unloaded: bool = False
    """The instance is not here: what a call brought along to load it was refused."""
    cpu: int | None = None
    """Processor time of the call in microseconds; null: not measured."""
    peak: int = 0
    """Most memory of the process, where that is not in `mem`."""
    flags: str = ""
    """A check that the outputs have broken, where that only flags them."""
    born: tuple[int, int] | None = None
    """A child of the process began: its number, its process id."""
    calls: int = 1
    """That the run has answered."""
    trust: tuple[int, int, list[str]] | None = None
    """Root's version, expiry of the timestamp in seconds since 1970, targets signed no more."""
    infer: tuple[int, str, list[tuple[int, tuple[int, ...], int, str]]] | None = None
    """A guest wants a model run: number of its request, name, values as in `out` without names."""


_decoder = msgspec.json.Decoder(Reply)

OnReply = Callable[[Reply | None, memoryview], None]
"""Called once with the answer and its body, which lives only during the call; None: no answer."""


OnAsk = Callable[[Reply, memoryview], None]
"""Called with an event that brings values, and its body, which lives only during the call."""


def no_event(reply: Reply) -> None:
    """Ignore an event."""
    del reply


class Link:
    """One socket; ends when the other side does, and answers what is open with None then."""

    def __init__(
        self,
        sock: socket.socket,
        on_end: Callable[[], None],
        on_event: Callable[[Reply], None] = no_event,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._on_event = on_event
        self.on_ask: OnAsk | None = None
        self._waiting: dict[int, OnReply] = {}
        self._number = EVENT
        self._buffer = bytearray(CHUNK_BYTES)
        self._partial = bytearray()
        self._wanted = 0
        """How many bytes the frame in `_partial` takes, as far as known."""
        self._unsent = bytearray()
        self.open = True
        self._loop.add_reader(sock, self._readable)

    def request(self, header: dict[str, Any], buffers: list[bytes], on_reply: OnReply) -> int:
        """Send a request and return its number; `on_reply` is called once, never from here."""
        self._number += 1
        number = self._number
        header["id"] = number
        self._waiting[number] = on_reply
        self._send(header, buffers)
        return number

    def post(self, header: dict[str, Any]) -> tuple[int, asyncio.Future[Reply | None]]:
        """Send a request that brings no body; its number and its answer."""
        answer: asyncio.Future[Reply | None] = self._loop.create_future()

        def settle(reply: Reply | None, _body: memoryview) -> None:
            if not answer.done():
                answer.set_result(reply)

        return self.request(header, [], settle), answer

    @property
    def pending(self) -> int:
        """How many requests are not answered."""
        return len(self._waiting)

    async def ask(self, header: dict[str, Any]) -> Reply | None:
        """Send a request and wait for its answer; None when the other side ends first."""
        return await self.post(header)[1]

    def tell(
        self, header: dict[str, Any], fds: tuple[int, ...] = (), buffers: list[bytes] | None = None
    ) -> None:
        """Send a frame that nobody answers, with descriptors or a body if need be."""
        self._send(header, buffers or [], fds)

    def _send(
        self, header: dict[str, Any], buffers: list[bytes], fds: tuple[int, ...] = ()
    ) -> None:
        text = _encode(header)
        size = sum(map(len, buffers))
        if len(text) > MAX_HEADER_BYTES or size > MAX_BODY_BYTES:
            raise TonaBug(f"a frame of {len(text)} + {size} bytes to an executor")
        data = b"".join((PREFIX.pack(len(text), size), text, *buffers))
        if not self.open:
            self._loop.call_soon(self._abandon)
        elif self._unsent:
            if fds:
                raise EnvironmentFailure("an executor process does not read")
            self._unsent += data
        else:
            self._write(data, fds)

    def _write(self, data: bytes | bytearray, fds: tuple[int, ...] = ()) -> None:
        try:
            if fds:
                rights = struct.pack(f"<{len(fds)}i", *fds)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                sent = self._sock.sendmsg([data], ancillary)
            else:
                sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            if fds:
                raise EnvironmentFailure("an executor process does not read") from None
            sent = 0
        except OSError:
            self._loop.call_soon(self.close)
            return
        if sent < len(data):
            self._unsent += memoryview(data)[sent:]
            self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        data, self._unsent = self._unsent, bytearray()
        self._loop.remove_writer(self._sock)
        self._write(data)

    def finish(self) -> None:
        """Take what a process that has ended still said, then hang up."""
        while self.open and self._readable():
            pass
        self.close()

    def _readable(self) -> bool:
        """Take what is there; whether there may be more."""
        try:
            size = self._sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            size = 0
        if not size:
            self.close()
            return False
        data = memoryview(self._buffer)[:size]
        try:
            if self._partial:
                self._partial += data
                if len(self._partial) < self._wanted:
                    return True
                data = memoryview(bytes(self._partial))
                self._partial = bytearray()
            used = self._take(data)
            if used < len(data):
                self._partial += data[used:]
        except (WireError, msgspec.DecodeError) as error:
            _log.error("an executor process broke the protocol and is ended: %s", error)
            self.close()
        return True

    def _take(self, data: memoryview) -> int:
        at = self._wanted = 0
        while self.open and len(data) - at >= PREFIX.size:
            header, body = measure(data[at:])
            start = at + PREFIX.size
            end = start + header + body
            if end > len(data):
                self._wanted = end - at
                break
            reply = _decoder.decode(data[start : start + header])
            on_reply = self._waiting.pop(reply.id, None)
            if on_reply is not None:
                on_reply(reply, data[start + header : end])
            elif reply.infer is not None and self.on_ask is not None:
                self.on_ask(reply, data[start + header : end])
            elif reply.id == EVENT:
                self._on_event(reply)
            at = end
        return at

    def close(self) -> None:
        """Hang up; open requests are answered with None, then the owner is told. Idempotent."""
        if not self.open:
            return
        self.open = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._abandon()
        self._on_end()

    def _abandon(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for on_reply in waiting.values():
            on_reply(None, memoryview(b""))
