"""Large values over HTTP: a few threads with kept connections to the cell's store.

The standard library's client is enough: a value is one PUT or one GET by digest, and what arrives
is checked against it.
"""

import asyncio
import hashlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Lock
from typing import Final, TypeVar
from urllib.parse import urlsplit

from protocols.errors import EnvironmentFailure
from tona.values import Content

THREADS: Final = 4
"""That send, and as many that fetch: what comes in does not wait for what has yet to begin."""
IDLE_MAX: Final = 8
"""Connections kept open, over all stores."""
ROUNDS: Final = 2
"""Tries at every address of the store; a kept connection may have been closed by the server."""
TIMEOUT_S: Final = 10.0
"""For each read and write on a connection."""
BLOB_MAX_BYTES: Final = 1 << 30
TEXT_MAX_BYTES: Final = 300
_OK: Final = range(200, 300)

_R = TypeVar("_R")

log = logging.getLogger("tona")


class Store:
    """Puts and gets values by digest; one for each client. `tls` is for https addresses."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tona-store")
        self._getting = ThreadPoolExecutor(THREADS, thread_name_prefix="tona-fetch")
        self._idle: list[tuple[str, HTTPConnection]] = []
        self._in_use: set[socket.socket] = set()
        self._closed = False
        self._lock = Lock()

    async def run(self, work: Callable[..., _R], *arguments: object) -> _R:
        """Run something that blocks in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def put(self, urls: Sequence[str], digest: str, content: Content) -> None:
        """Store a value. Raises EnvironmentFailure."""
        await self.run(self._request, "PUT", urls, _path(digest), content)

    async def put_all(self, urls: Sequence[str], contents: Mapping[str, Content]) -> None:
        """Store values by their digests, side by side. Raises EnvironmentFailure."""
        puts = [asyncio.ensure_future(self.put(urls, *one)) for one in contents.items()]
        try:
            await asyncio.gather(*puts)
        finally:
            for one in puts:
                one.cancel()

    async def get(self, urls: Sequence[str], digest: str, size_bytes: int) -> bytes:
        """Fetch a value and check it. Raises EnvironmentFailure."""
        if size_bytes > BLOB_MAX_BYTES:
            raise EnvironmentFailure(f"a value of {size_bytes} bytes, at most {BLOB_MAX_BYTES}")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._getting, self._get, urls, digest, size_bytes)

    async def text(self, url: str, path: str) -> bytes:
        """Fetch a document. Raises EnvironmentFailure."""
        return await self.run(self._request, "GET", (url,), path, None)

    def close(self) -> None:
        """Close every connection and give up what is under way.

        What only connects ends within `TIMEOUT_S`: there is no socket yet that could be shut down.
        """
        for threads in (self._threads, self._getting):
            threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            if self._in_use:
                log.info("transfers of large values given up: %d", len(self._in_use))
            for one in self._in_use:
                # The plain socket's: that of TLS pulls its state from under whoever reads.
                with suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)
            for _, connection in self._idle:
                connection.close()
            self._idle.clear()

    def _get(self, urls: Sequence[str], digest: str, size_bytes: int) -> bytes:
        content = self._request("GET", urls, _path(digest), None, size_bytes)
        found = "sha256:" + hashlib.sha256(content).hexdigest()
        if found != digest:
            raise EnvironmentFailure(f"the store gave {found} for {digest}")
        return content

    def _request(
        self,
        method: str,
        urls: Sequence[str],
        path: str,
        content: Content | None,
        max_bytes: int = BLOB_MAX_BYTES,
    ) -> bytes:
        told = "the cell has no store for large values"
        for url in [*urls] * ROUNDS:
            connection = self._take(url)
            try:
                with self._using(connection):
                    # A store that refuses a value says so before it has read it all.
                    with suppress(BrokenPipeError, ConnectionResetError):
                        connection.request(method, path, body=content)
                    response = connection.getresponse()
                    answer = _read(response, max_bytes)
            except (OSError, HTTPException) as error:
                connection.close()
                self._drop(url)
                told = f"{url}: {error or type(error).__name__}"
                continue
            except BaseException:
                connection.close()
                raise
            self._give_back(url, connection, response)
            if response.status in _OK:
                return answer
            text = answer[:TEXT_MAX_BYTES].decode(errors="replace")
            told = f"{url}{path} answers {response.status}: {text}"
        raise EnvironmentFailure(told)

    @contextmanager
    def _using(self, connection: HTTPConnection) -> Iterator[None]:
        """Connect, and let `close` reach what goes on. Raises EnvironmentFailure once closed."""
        if connection.sock is None:
            connection.connect()
        # Kept by itself: a connection lets go of it when an answer's head says that it is the last.
        used = connection.sock
        with self._lock:
            self._check_open()
            self._in_use.add(used)
        try:
            yield
        finally:
            with self._lock:
                self._in_use.discard(used)

    def _check_open(self) -> None:
        if self._closed:
            raise EnvironmentFailure("the client was closed while a value was on its way")

    def _take(self, url: str) -> HTTPConnection:
        with self._lock:
            self._check_open()
            for at, (key, connection) in enumerate(self._idle):
                if key == url:
                    del self._idle[at]
                    return connection
        parts = urlsplit(url)
        if parts.scheme == "https":
            return HTTPSConnection(
                parts.hostname or "", parts.port, timeout=TIMEOUT_S, context=self._tls
            )
        return HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)

    def _drop(self, url: str) -> None:
        """Keep no connection to an address where one has failed: they were left idle together."""
        with self._lock:
            for key, connection in self._idle:
                if key == url:
                    connection.close()
            self._idle = [one for one in self._idle if one[0] != url]

    def _give_back(self, url: str, connection: HTTPConnection, response: HTTPResponse) -> None:
        with self._lock:
            kept = not response.will_close and not self._closed
            if kept and len(self._idle) < IDLE_MAX:
                self._idle.append((url, connection))
                return
        connection.close()


def _read(response: HTTPResponse, max_bytes: int) -> bytes:
    if response.length is not None and response.length > max_bytes:
        raise HTTPException(f"{response.length} bytes announced, at most {max_bytes} expected")
    content = response.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise HTTPException(f"more than {max_bytes} bytes sent")
    if response.length:
        # To read so many bytes takes an end that came too early for the end.
        raise HTTPException(f"the answer ended {response.length} bytes too early")
    return content


def _path(digest: str) -> str:
    return f"/v1/blobs/{digest.removeprefix('sha256:')}"
