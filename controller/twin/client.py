"""A simulated client: asks for a route, sends requests, repeats them until they are answered."""

from functools import partial
from typing import Final

import msgspec
from msgspec import Struct

from controller.twin.world import Network, World
from protocols.codec import VERSION, Frame
from protocols.manifest import Dtype
from protocols.messages import Body, Invoke, Result, Route, RouteRequest
from protocols.messages.invocation import REQUEST, Tensor
from protocols.topics import Channel, Party, Topic, build

RETRY_MS: Final = 250
ROUTE_AGAIN_MS: Final = 500


class Asked(Struct):
    """One request and what became of it."""

    sent_ms: int
    deadline_ms: int
    attempt: int = 1
    answered_ms: int | None = None
    answers: set[bytes] = set()
    """The different answers that came; there may only be one."""
    failure: str = ""


class SimClient:
    """Sends a stream of requests to one service."""

    def __init__(self, name: str, cell: str, service: str, world: World, network: Network) -> None:
        self.name = name
        self.cell = cell
        self.service = service
        self.world = world
        self.network = network
        self.requests: dict[str, Asked] = {}
        self._route: Route | None = None
        self._number = 0
        self._doubt = False
        """A failure was seen: the route may be old."""
        self._reply = build(cell, Party.CLIENT, name, Channel.REPLY)
        network.listen(name, self._reply, self._hear)
        network.listen(name, build(cell, Party.SERVICE, service, Channel.ROUTE), self._hear)
        self._ask_route()

    def request(self, budget_ms: int) -> None:
        """Send one request and see it through until its deadline."""
        request = f"{self.name}-{len(self.requests)}"
        now_ms = self.world.now_ms
        self.requests[request] = Asked(now_ms, now_ms + budget_ms)
        self._try(request, 1)

    def _try(self, request: str, attempt: int) -> None:
        asked = self.requests[request]
        now_ms = self.world.now_ms
        if asked.answered_ms is not None or attempt < asked.attempt or now_ms >= asked.deadline_ms:
            return
        asked.attempt = attempt
        plan = self._route.plan if self._route else None
        if plan is not None:
            value = Tensor(Dtype.UINT8, (1,), b"x")
            for node in sorted(
                {
                    step.node
                    for step in plan.steps
                    if any(edge.source == REQUEST for edge in step.inputs)
                }
            ):
                invoke = Invoke(
                    request,
                    self.service,
                    asked.deadline_ms - now_ms,
                    {"x": value},
                    str(self._reply),
                    attempt,
                    plan,
                )
                self._publish(build(self.cell, Party.NODE, node, Channel.INVOKE), invoke)
        self.world.after(RETRY_MS, partial(self._try, request, attempt + 1))

    def _ask_route(self) -> None:
        if self._route is None or self._route.plan is None or self._doubt:
            self._doubt = False
            ask = RouteRequest(f"{self.name}-route", self.service, str(self._reply))
            self._publish(build(self.cell, Party.SERVICE, self.service, Channel.REQUEST), ask)
        self.world.after(ROUTE_AGAIN_MS, self._ask_route)

    def _hear(self, _topic: Topic, frame: Frame) -> None:
        match frame.body:
            case Route() as route:
                if self._route is None or route.epoch >= self._route.epoch:
                    self._route = route
            case Result() as result:
                self._answer(result)

    def _answer(self, result: Result) -> None:
        asked = self.requests.get(result.request)
        if asked is None or self.world.now_ms > asked.deadline_ms:
            return
        if result.failure is not None:
            asked.failure = result.failure.text
            self._doubt = True
            return
        asked.answers.add(msgspec.msgpack.encode(result.outputs))
        if asked.answered_ms is None:
            asked.answered_ms = self.world.now_ms

    def _publish(self, topic: Topic, body: Body) -> None:
        self._number += 1
        frame = Frame(VERSION, self.name, 1, self._number, "default", "client", body)
        self.network.publish(self.name, topic, frame)
