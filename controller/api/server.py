"""The API as a listening server inside a running event loop (Starlette on uvicorn)."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from ssl import SSLContext
from typing import Final

import uvicorn

from controller.api.app import Api, Doors, is_loopback
from controller.api.peers import PeerProtocol
from controller.registry import LiveRegistry
from protocols.errors import EnvironmentFailure, UserError

MAX_CONNECTIONS: Final = 1024
BACKLOG: Final = 256
TICK_S: Final = 1.0
KEEP_ALIVE_S: Final = 10
"""An idle connection is closed after this: later than the command line stops using it again."""
STOP_TIMEOUT_S: Final = 5
"""How long running requests may take when the server stops."""
UNREAD_TIMEOUT_MS: Final = 60_000
"""A client that takes nothing for so long is gone; the kernel ends its connection."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process belongs to the host."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self.stopping = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        """Tick once a second, for the date header, instead of ten times; stop at once."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self.stopping.wait()
                self.should_exit = True


class ApiServer:
    """Serves the table of operations on one address; port 0 takes a free one."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: LiveRegistry,
        doors: Doors,
        folder: Path,
        ssl: SSLContext | None = None,
    ) -> None:
        if ssl is None and not is_loopback(host):
            raise UserError(
                f"the API would listen on {host} without TLS: make certificates with "
                "'tona ca init' and 'tona ca issue', or listen on 127.0.0.1"
            )
        self._host = host
        self._port = port
        self._registry = registry
        self._ssl = ssl
        self.api = Api(registry, doors, folder, None if ssl else frozenset({host}))
        self._listener: socket.socket | None = None
        self._server: _Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def bind(self) -> tuple[str, int]:
        """Take the address and return it; who connects waits for `start`. Raises UserError."""
        self._listener = self._listen()
        host, port = self._listener.getsockname()[:2]
        return host, port

    async def start(self) -> None:
        """Serve at the address that `bind` took. Raises UserError for an unusable folder."""
        listener = self._listener
        assert listener is not None  # noqa: S101 - bind comes before start
        await asyncio.to_thread(self.api.bulk.prepare)
        config = uvicorn.Config(
            self.api.application,
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
        )
        config.load()
        config.ssl = self._ssl
        self._server = server = _Server(config)
        serving = asyncio.create_task(server.serve([listener]), name="api")
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            listening.cancel()
            raise EnvironmentFailure(f"the API did not start: {serving.exception()}")
        self._tasks = [
            serving,
            asyncio.create_task(self.api.bulk.sweep_forever(), name="sweep"),
            asyncio.create_task(self.api.trusting.renew_forever(), name="trust"),
        ]

    async def stop(self) -> None:
        """End the watches, let running requests finish, and stop listening."""
        if self._listener is not None:
            self._listener.close()
        if self._server is None:
            return
        self._registry.close()
        self._server.stopping.set()
        for one in self._tasks[1:]:
            one.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._server.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                # Before 3.11.5 a TLS transport that has closed itself cannot be aborted twice.
                with suppress(AttributeError):
                    transport.abort()
        self._server = None

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted connections inherit both.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)
            listener.bind((self._host, self._port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise UserError(
                f"the API cannot listen on {self._host}:{self._port} ({error.strerror}): "
                "end what listens there, or choose another port"
            ) from error
        return listener
