"""The executor's end of the wire: frames in and out, tensor values, the bond to the parent.

Standard library only, for it runs under an interpreter of choice.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from device_agent.executors.programs.wire import (
        CHUNK_BYTES,
        INLINE_MAX_BYTES,
        MADE,
        PREFIX,
        measure,
    )
else:
    from wire import CHUNK_BYTES, INLINE_MAX_BYTES, MADE, PREFIX, measure

MAX_READ_BYTES: Final = 256 * 1024
MAX_TEXT: Final = 2000
"""Characters of a refusal."""
_PR_SET_PDEATHSIG: Final = 1
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
_decode = json.JSONDecoder().raw_decode

Header = dict[str, Any]
Frame = tuple[Header, memoryview]
Answer = tuple[Header, "list[memoryview]"]
Value = tuple[str, int, "tuple[int, ...]", memoryview]
"""Name, dtype number, shape, bytes."""


class Refusal(Exception):
    """A call that gives no outputs: code, blame, text, whether another try may help."""

    def __init__(self, code: str, blame: str, text: str, *, retryable: bool = False) -> None:
        super().__init__(text)
        # Parts of it are a guest's words: neither JSON nor a terminal is to stumble over them.
        plain = "".join(one if one.isprintable() else " " for one in text[:MAX_TEXT])
        self.answer = [code, blame, plain, retryable]


class Pipe(Protocol):
    """What a stream needs of a socket."""

    def recv(self, size: int, /) -> bytes:
        """Read some bytes; none when the other side has hung up."""
        ...

    def sendall(self, data: bytes, /) -> None:
        """Write all bytes."""
        ...


class Stream:
    """The executor's end of the socket: blocking, one frame after another."""

    def __init__(self, sock: Pipe) -> None:
        self._sock = sock
        self._rest = b""

    def has_rest(self) -> bool:
        """Whether bytes were read beyond the last frame."""
        return bool(self._rest)

    def _read(self, size: int) -> bytes:
        try:
            return self._sock.recv(size)
        except ConnectionError:
            # The daemon went before it had read everything.
            return b""

    def receive(self) -> tuple[Header, memoryview] | None:
        """Return the next frame, None when the daemon has hung up. Raises WireError."""
        data = self._rest or self._read(CHUNK_BYTES)
        while len(data) < PREFIX.size:
            more = self._read(CHUNK_BYTES) if data else b""
            if not more:
                return None
            data += more
        header_bytes, body_bytes = measure(data)
        start = PREFIX.size + header_bytes
        end = start + body_bytes
        if len(data) < end:
            parts = [data]
            missing = end - len(data)
            while missing > 0:
                more = self._read(min(missing, MAX_READ_BYTES))
                if not more:
                    return None
                parts.append(more)
                missing -= len(more)
            data = b"".join(parts)
        self._rest = data[end:]
        header, _ = _decode(data[PREFIX.size : start].decode())
        return header, memoryview(data)[start:end]

    def send(self, header: Header, buffers: list[memoryview] | None = None) -> None:
        """Send one frame; the daemon reads all the time, so this does not block for long.

        Whether it is there at all the next read tells.
        """
        text = _encode(header).encode()
        body = buffers or []
        prefix = PREFIX.pack(len(text), sum(one.nbytes for one in body))
        with contextlib.suppress(ConnectionError):
            self._sock.sendall(b"".join([prefix, text, *body]))


def open_value(path: str) -> int:
    """Open a value for reading. Raises Refusal."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Refusal(
            "fetch", "environment", f"value {path}: {error.strerror}", retryable=True
        ) from None


def sized(handle: int, size: int, what: str) -> None:
    """Hold an open file against its size. Raises Refusal."""
    have = os.fstat(handle).st_size
    if have != size:
        raise Refusal("fetch", "environment", f"{what} has {have} bytes, not {size}")


def map_file(path: str, size: int) -> memoryview:
    """Map a file of exactly this size for reading. Raises Refusal."""
    return map_handle(open_value(path), size, f"value {path}")


def map_handle(handle: int, size: int, what: str) -> memoryview:
    """Map an open file of exactly this size for reading, and close it. Raises Refusal."""
    try:
        sized(handle, size, what)
        return memoryview(mmap.mmap(handle, size, prot=mmap.PROT_READ) if size else b"")
    finally:
        os.close(handle)


def read_values(described: list[list[Any]], body: memoryview, blobs: str) -> list[Value]:
    """Take the values of a frame apart; large ones are mapped. Raises Refusal."""
    values: list[Value] = []
    at = 0
    for name, dtype, shape, size, file in described:
        if file:
            view = map_file(f"{blobs}/{file}", size)
        else:
            view = body[at : at + size]
            at += size
        values.append((name, dtype, tuple(shape), view))
    return values


def write_value(view: memoryview, blobs: str) -> str:
    """Write a large value into the blob folder; return its file there.

    Most values never leave the node: who brings one elsewhere finds its digest. Raises Refusal when
    the folder's disk is full or not writable.
    """
    name = f"{MADE}/{os.urandom(32).hex()}"
    path = f"{blobs}/{name}"
    try:
        with open(path, "xb", buffering=0) as file:
            left = view
            while left.nbytes:
                left = left[file.write(left) :]
    except OSError as error:
        remove(path)
        raise Refusal(
            "executor",
            "environment",
            f"a value of {view.nbytes} bytes does not fit into {blobs}: {error.strerror}",
            retryable=True,
        ) from None
    return name


def remove(path: str) -> None:
    """Remove a file that may be gone."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def write_values(
    values: list[Value], blobs: str, limit_bytes: int
) -> tuple[list[list[Any]], list[memoryview]]:
    """Describe outputs for a frame, large ones written as files. Raises Refusal."""
    total = sum(view.nbytes for _, _, _, view in values)
    if total > limit_bytes:
        raise Refusal(
            "limit", "user", f"the outputs take {total} bytes, the task's limit is {limit_bytes}"
        )
    described: list[list[Any]] = []
    inline: list[memoryview] = []
    for name, dtype, shape, view in values:
        file = ""
        if view.nbytes > INLINE_MAX_BYTES:
            file = write_value(view, blobs)
        else:
            inline.append(view)
        described.append([name, dtype, shape, view.nbytes, file])
    return described, inline


def to_the_end(work: Callable[[], None]) -> None:
    """Do a thread's work until the daemon hangs up, then end the process, or loudly at a bug."""
    try:
        work()
    except OSError:
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a thread's edge: half a host would hang its calls
        sys.excepthook(*sys.exc_info())
        os._exit(os.EX_SOFTWARE)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exit when it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)
