"""A cell made of the protocol alone: a scheduler that gives routes, nodes that answer, a store.

Nodes do what `behave` says: it gets an invocation and returns the messages for the client.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final, Self

from protocols import topics
from protocols.manifest import Dtype
from protocols.messages import Accepted, Cancel, Invoke, Result, Route, RouteRequest
from protocols.messages.invocation import Blob, Edge, Plan, Step, Tensor, Timing, Value
from protocols.topics import Channel, Party, Speaker
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

CELL: Final = "c1"
PATIENCE_S: Final = 60

Behaviour = Callable[[Invoke], list[Accepted | Result]]


class Peer:
    """A session with its task."""

    def __init__(
        self, port: int, name: str, speaker: Speaker, hears: str, act: Callable[[Inbound], None]
    ) -> None:
        self._ready = asyncio.Event()
        self.session = Session(
            Settings(host="127.0.0.1", port=port, identity=name, speaker=speaker, cell=CELL),
            subscriptions=[hears],
            on_message=act,
            on_connected=lambda _: self._ready.set(),
            on_disconnected=lambda _: self._ready.clear(),
            next_incarnation=lambda: self.session.incarnation + 1,
        )

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.session.run())
        await self.connected()
        return self

    async def connected(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._ready.wait()

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        await self._task


class Node:
    """A node that answers as it is told, by default with its first input as `y`."""

    def __init__(self, port: int, name: str) -> None:
        self.name = name
        self.behave: Behaviour = self.echo
        self.heard: list[Invoke] = []
        self.cancelled: list[str] = []
        self.news = asyncio.Event()
        inbox = str(topics.build(CELL, Party.NODE, name, Channel.INVOKE))
        self.peer = Peer(port, name, Speaker.NODE, inbox, self._act)

    def echo(self, invoke: Invoke) -> list[Accepted | Result]:
        return [self.answer(invoke, {"y": next(iter(invoke.inputs.values()))})]

    def answer(self, invoke: Invoke, outputs: dict[str, Value], **more: Any) -> Result:
        timings = (Timing("s.t", self.name, 3, 40),)
        return Result(invoke.request, invoke.attempt, outputs, None, timings, **more)

    def accept(self, invoke: Invoke) -> Accepted:
        return Accepted(invoke.request, invoke.attempt, self.name)

    def say(self, invoke: Invoke, body: Accepted | Result) -> None:
        self.peer.session.send(topics.parse(invoke.reply_to), body, cause=invoke.request)

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                self.news.clear()
                await self.news.wait()

    def _act(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        if isinstance(body, Invoke):
            self.heard.append(body)
            for said in self.behave(body):
                self.say(body, said)
        elif isinstance(body, Cancel):
            self.cancelled.append(body.request)
        self.news.set()


class Cell:
    """Broker, scheduler, nodes `n1` and `n2`, and the controller's HTTP side."""

    def __init__(self, port: int) -> None:
        self.n1, self.n2 = Node(port, "n1"), Node(port, "n2")
        self.routes: dict[str, Route] = {}
        self.asked = 0
        self.blobs: dict[str, bytes] = {}
        self.system: Any = {"cell": CELL, "broker": f"mqtt://127.0.0.1:{port}", "version": "1"}
        asks = topics.wildcard(CELL, Party.SERVICE, Channel.REQUEST)
        self._scheduler = Peer(port, "ts-main", Speaker.CONTROLLER, asks, self._act)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.place("s", "n1")

    def place(self, service: str, *nodes: str, names: tuple[str, ...] = ("x",)) -> Route:
        """Let a service run on nodes from now on: one task on each, all fed by the request."""
        epoch = self.routes[service].epoch + 1 if service in self.routes else 1
        edges = tuple(Edge(one, "request", one) for one in names)
        steps = tuple(
            Step(f"{service}.t{at}", node, epoch, edges, ("y",)) for at, node in enumerate(nodes)
        )
        outputs = tuple(Edge(f"y{at}", one.task, "y") for at, one in enumerate(steps))
        plan = Plan(service, epoch, steps, outputs) if steps else None
        reason = "" if plan else "no node fits"
        route = Route(service, epoch, plan, 30_000, 0, (self.url,), reason, names)
        self.routes[service] = route
        return route

    def publish(self, service: str) -> None:
        topic = topics.build(CELL, Party.SERVICE, service, Channel.ROUTE)
        self._scheduler.session.send(topic, self.routes[service], cause="change")

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        serve = self._server.serve_forever
        Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True).start()
        for one in (self._scheduler, self.n1.peer, self.n2.peer):
            await self._stack.enter_async_context(one)
        return self

    async def connected(self) -> None:
        for one in (self._scheduler, self.n1.peer, self.n2.peer):
            await one.connected()

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        self._server.shutdown()
        self._server.server_close()

    def _act(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        if isinstance(body, RouteRequest):
            self.asked += 1
            route = self.routes.get(body.service)
            if route is None:
                reason = f"there is no service {body.service!r}"
                route = Route(body.service, 0, None, 30_000, reason=reason)
            self._scheduler.session.send(
                topics.parse(body.reply_to), route, cause=inbound.frame.cause
            )


def _handler(cell: Cell) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/v1/system":
                self._answer(200, json.dumps(cell.system).encode())
            elif (blob := cell.blobs.get(self.path.rpartition("/")[2])) is not None:
                self._answer(200, blob)
            else:
                self._answer(404, b"not here")

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            digest = self.path.rpartition("/")[2]
            if digest == hashlib.sha256(content).hexdigest():
                cell.blobs[digest] = content
                self._answer(201, b"")
            else:
                self._answer(400, b"another digest")

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def tensor(data: bytes) -> Tensor:
    return Tensor(Dtype.UINT8, (len(data),), data)


def blob(data: bytes) -> Blob:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return Blob(Dtype.UINT8, (len(data),), digest, len(data))
