"""HTTP/1.1 as far as transfers need it: a kept connection, bodies of a told length, few copies.

The standard library's client reads headers as mail, which is a fifth of a small process.
"""

from __future__ import annotations

import socket
from io import BufferedReader, RawIOBase
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ssl import SSLContext

HEAD_MAX_LINES: Final = 100
LINE_MAX_BYTES: Final = 8 * 1024
PORT_MAX: Final = 65535
EARLY_MAX: Final = 8
"""Answers that are none yet (1xx), before the one that is."""
LENGTH_DIGITS: Final = 18
ANSWER_S: Final = 30.0
"""How long the head of an answer may take, and a body that is read whole, however they drip."""
OK: Final = 200
NO_CONTENT: Final = 204
NOT_MODIFIED: Final = 304


class HttpError(ValueError):
    """The other side says what is no HTTP, or what is not understood here."""


class Address:
    """An address, taken apart."""

    def __init__(self, url: str) -> None:
        """Raise ValueError, with a sentence, when it is none."""
        self.scheme, _, rest = url.partition("://")
        self.netloc, _, target = rest.partition("/")
        self.target = f"/{target}"
        if self.scheme not in {"http", "https"}:
            raise ValueError(f"{self.scheme}: is no way to fetch")
        host, colon, port = self.netloc.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = self.netloc, "443" if self.scheme == "https" else "80"
        if host.startswith("[") != host.endswith("]"):
            raise ValueError("names no IPv6 address")
        self.host = host.strip("[]")
        if any(one <= " " or one > "~" for one in self.netloc + self.target):
            raise ValueError("has signs that no address has")
        if not self.host or not port.isdecimal() or int(port) > PORT_MAX:
            raise ValueError("names no host and port")
        self.port = int(port)


class Response:
    """An answer whose body is read from its connection."""

    def __init__(self, file: BufferedReader) -> None:
        """Read the head. Raises OSError or HttpError."""
        self._file = file
        for _ in range(EARLY_MAX + 1):
            version, self.status, self.reason, self.headers = _head(file)
            if self.status >= OK:
                break
        else:
            raise HttpError("does not come to its answer")
        ends = self.headers.get("connection", "").lower() == "close"
        self.stays = version == "HTTP/1.1" and not ends
        """Whether the connection serves another request after this answer."""
        length = self.headers.get("content-length")
        if "transfer-encoding" in self.headers:
            raise HttpError("sends a body whose length it does not tell")
        if self.status in {NO_CONTENT, NOT_MODIFIED}:
            length = "0"
        if length is not None and (len(length) > LENGTH_DIGITS or not length.isdecimal()):
            raise HttpError(f"tells the length {length[:20]!r}")
        if length is None:
            self.stays = False
        self.length: int | None = None if length is None else int(length)
        """What is left of the body; None: it ends with the connection."""

    def read_into(self, buffer: memoryview) -> int:
        """Read what is there of the body; 0 at its end. Raises OSError or HttpError."""
        if self.length is not None:
            buffer = buffer[: self.length]
        size = self._file.readinto1(buffer) if buffer else 0
        if self.length is None:
            self.length = None if size else 0
        elif not size and self.length:
            raise HttpError("the answer ends too early")
        else:
            self.length -= size
        return size

    def read1(self, size: int) -> bytes:
        """Read what is there of the body, up to a size; nothing at its end. Raises as above."""
        buffer = bytearray(size)
        return bytes(buffer[: self.read_into(memoryview(buffer))])

    def read(self, size: int) -> bytes:
        """Read the body, up to a size, within `ANSWER_S`. Raises as above."""
        data, until_s = b"", monotonic() + ANSWER_S
        while len(data) < size and (more := self.read1(size - len(data))):
            data += more
            _hold(until_s)
        return data


class _Hurried(RawIOBase):
    """What a connection says, until a moment."""

    def __init__(self, raw: Any) -> None:
        self.until_s: float | None = None
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        _hold(self.until_s)
        size: int | None = self._raw.readinto(buffer)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class Connection:
    """One connection, opened at once."""

    def __init__(self, address: Address, timeout_s: float, tls: SSLContext | None) -> None:
        """Raise OSError."""
        self.key = address.scheme, address.netloc
        self._netloc = address.netloc
        self._last: Response | None = None
        # A text would be taken for an international name, which loads tables for those.
        host: Any = address.host.encode("ascii")
        sock = socket.create_connection((host, address.port), timeout_s)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_hostname=host)
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self._hurried: Any = _Hurried(sock.makefile("rb", buffering=0))
        self._file: BufferedReader = BufferedReader(self._hurried)

    @property
    def free(self) -> bool:
        """Whether another request can be sent: the last answer is read and left it open."""
        return self._last is None or (self._last.stays and self._last.length == 0)

    def ask(
        self, method: str, target: str, headers: dict[str, str], body: BufferedReader | None = None
    ) -> Response:
        """Send a request, with a file as its body; return the answer. Raises OSError or HttpError.

        The kernel takes the file over where no TLS is between.
        """
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._netloc}\r\n{lines}\r\n"
        self._sock.sendall(head.encode("ascii"))
        if body is not None:
            self._sock.sendfile(body)
        self._hurried.until_s = monotonic() + ANSWER_S
        self._last = Response(self._file)
        self._hurried.until_s = None
        return self._last

    def close(self) -> None:
        """Close it."""
        self._file.close()
        self._sock.close()


def _hold(until_s: float | None) -> None:
    if until_s is not None and monotonic() >= until_s:
        raise HttpError(f"takes longer than {ANSWER_S:.0f} s to answer")


def _head(file: BufferedReader) -> tuple[str, int, str, dict[str, str]]:
    """Read version, status, reason and headers, names in small letters."""
    version, _, rest = _line(file).partition(" ")
    status, _, reason = rest.partition(" ")
    if not version.startswith("HTTP/1.") or len(status) != 3 or not status.isdecimal():  # noqa: PLR2004 - as HTTP has it
        raise HttpError("what answers is no HTTP")
    headers: dict[str, str] = {}
    for _ in range(HEAD_MAX_LINES):
        name, _, value = _line(file).partition(":")
        if not name:
            return version, int(status), reason, headers
        headers[name.lower()] = value.strip()
    raise HttpError(f"sends more than {HEAD_MAX_LINES} headers")


def _line(file: BufferedReader) -> str:
    line = file.readline(LINE_MAX_BYTES)
    if not line.endswith(b"\n"):
        raise HttpError("the answer ends too early" if len(line) < LINE_MAX_BYTES else "long lines")
    return line.rstrip(b"\r\n").decode("latin-1")
