"""Real things around a real daemon: broker, store, scheduler and client, each small."""

import asyncio
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from protocols import topics
from protocols.messages import Birth, Welcome
from protocols.topics import Channel, Party, Speaker
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

CELL: Final = "cell"
NODE: Final = "node-r"
LONG_S: Final = 60
ROOT: Final = Path(__file__).parents[2]
T = TypeVar("T")

ECHO: Final = """
(module
  (memory (export "memory") 4)
  (global $top (mut i32) (i32.const 1024))
  (func (export "tona_alloc") (param $n i32) (result i32)
    (global.set $top (i32.add (global.get $top) (i32.and (i32.add (local.get $n) (i32.const 15))
                                                         (i32.const -16))))
    (i32.sub (global.get $top) (i32.and (i32.add (local.get $n) (i32.const 15)) (i32.const -16))))
  (func (export "tona_run") (param $in i32) (param i32) (param $out i32) (param i32) (result i32)
    (i32.store (local.get $out) (i32.load (local.get $in)))
    (i32.store offset=4 (local.get $out) (i32.load offset=4 (local.get $in)))
    (i32.store offset=16 (local.get $out) (i32.load offset=16 (local.get $in)))
    (i32.const 0)))
"""


async def until(ready: Callable[[], T], timeout_s: float = LONG_S) -> T:
    """Wait for something true that no event tells of, and return it."""
    async with asyncio.timeout(timeout_s):
        while not (found := ready()):  # noqa: ASYNC110 - another process owns the event
            await asyncio.sleep(0.02)
    return found


class Store:
    """The cell's store over HTTP, in memory."""

    def __init__(self) -> None:
        contents: dict[str, bytes] = {}
        self.contents = contents

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                data = contents.get(self.path.rpartition("/")[2])
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def do_PUT(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                contents[hashlib.sha256(data).hexdigest()] = data
                self.send_response(201)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.contents[name] = data
        return f"sha256:{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Peer:
    """A scheduler or a client: a session, and everything it has heard."""

    def __init__(self, name: str, speaker: Speaker, port: int, filters: list[str]) -> None:
        self.heard: list[Inbound] = []
        self._news = asyncio.Event()
        self._connected = asyncio.Event()
        self._incarnation = 0
        self.welcoming = ""
        self.session = Session(
            Settings(host="127.0.0.1", port=port, identity=name, speaker=speaker, cell=CELL),
            subscriptions=filters,
            on_message=self._hear,
            on_connected=lambda _: self._connected.set(),
            on_disconnected=lambda _: self._connected.clear(),
            next_incarnation=self._next,
        )
        self._task = asyncio.create_task(self.session.run())

    def _next(self) -> int:
        self._incarnation += 1
        return self._incarnation

    def _hear(self, inbound: Inbound) -> None:
        self.heard.append(inbound)
        if isinstance(inbound.frame.body, Birth) and self.welcoming:
            welcome = Welcome("ts", 1, inbound.frame.incarnation, store_urls=(self.welcoming,))
            self.command(welcome)
        self._news.set()

    def command(self, body: Any, channel: Channel = Channel.COMMAND) -> None:
        topic = topics.build(CELL, Party.NODE, NODE, channel)
        assert self.session.send(topic, body, cause="test")

    async def connected(self) -> None:
        async with asyncio.timeout(LONG_S):
            await self._connected.wait()

    async def expect(
        self, kind: type[T], matches: Callable[[T], bool] = lambda _: True, after: int = 0
    ) -> T:
        """Wait for a message of a kind, among those heard from the number `after` on."""
        async with asyncio.timeout(LONG_S):
            while True:
                for one in self.heard[after:]:
                    body = one.frame.body
                    if isinstance(body, kind) and matches(body):
                        return body
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        await self.session.close()
        await self._task


def node_filters() -> list[str]:
    spoken = (Channel.PRESENCE, Channel.LOAD, Channel.LINK, Channel.STATUS)
    return [topics.wildcard(CELL, Party.NODE, one) for one in spoken]


class Agent:
    """The real daemon as a child process."""

    def __init__(self, folder: Path, port: int, **environment: str) -> None:
        self.folder = folder
        self._port = port
        self._environment = environment
        self.process: asyncio.subprocess.Process | None = None
        self._log = folder.with_name(f"{folder.name}.log")
        self._said = 0
        """Where in the log the words of this process begin."""

    async def start(self, *more: str) -> None:
        options = {"node": NODE, "cell": CELL, "broker": f"127.0.0.1:{self._port}"}
        flags = [f"--{name}={value}" for name, value in options.items()]
        with self._log.open("ab") as log:
            self._said = log.tell()
            self.process = await run_agent(
                *flags, f"--data={self.folder}", *more, said=log, **self._environment
            )

    async def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, wait for the end; return the exit code and what was said."""
        assert self.process is not None
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> tuple[int, str]:
        assert self.process is not None
        async with asyncio.timeout(LONG_S):
            code = await self.process.wait()
        self.process = None
        return code, self._log.read_bytes()[self._said :].decode()

    async def close(self) -> None:
        if self.process is not None:
            await self.stop(signal.SIGKILL)


async def run_agent(
    *flags: str, said: IO[bytes] | int = asyncio.subprocess.PIPE, **environment: str
) -> asyncio.subprocess.Process:
    """Start `python -m device_agent` with nothing but these in its environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "device_agent", *flags),
        cwd=ROOT,
        env=kept | environment,
        stderr=said,
    )
