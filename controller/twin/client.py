"""A simulated client: asks for routes, sends requests and jobs, repeats both until it is answered.

A request is answered by its deadline or not at all. A job is submitted until it is accepted, then
asked about until its end has come; that end must be one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
from msgspec import Struct

from controller.twin.hands import MARK
from controller.twin.network import Network, topic_at
from controller.twin.world import World
from protocols.codec import VERSION, Frame
from protocols.manifest import Dtype
from protocols.messages import (
    Body,
    Invoke,
    JobAccepted,
    JobEnded,
    JobQuery,
    JobSubmit,
    Result,
    Route,
    RouteRequest,
)
from protocols.messages.invocation import REQUEST, Tensor, Values
from protocols.topics import Channel, Party, Topic, build

RETRY_MS: Final = 250
SILENT_MS: Final = 1000
"""Without an answer for so long it asks where the service is: as `tona.requests` does."""
ROUTE_AGAIN_MS: Final = 500
SUBMIT_AGAIN_MS: Final = 800
ASK_AGAIN_MS: Final = 3000
"""After which a client asks how its job stands."""
CANCEL_EVERY: Final = 17
"""One in so many jobs is cancelled by its client..."""
CANCEL_MS: Final = 60
"""...so soon after it was submitted, and until it has ended."""
DEADLINE_EVERY: Final = 13
DEADLINE_MS: Final = 3000
"""One in so many jobs has a deadline, and may fail by it."""
RUN_MS: Final = 4000
"""What one run of a job may take."""


class Asked(Struct):
    """One request and what became of it."""

    sent_ms: float
    deadline_ms: float
    attempt: int = 1
    answered_ms: float | None = None
    answers: set[bytes] = set()
    """The different answers that came; there may only be one."""
    failure: str = ""


class Job(Struct):
    """One job as its client sees it."""

    submitted_ms: float
    accepted: bool = False
    refused: str = ""
    """Why it was not taken, for good."""
    ended_ms: float | None = None
    failure: str = ""
    parts: dict[int, bytes] = {}
    """The answer, by part."""
    doubled: str = ""
    """What was said after the end and was not the same."""

    @property
    def open(self) -> bool:
        """Whether its client still waits."""
        return self.ended_ms is None and not self.refused


class SimClient:
    """Sends a stream of requests, and jobs, to one service."""

    def __init__(
        self,
        name: str,
        service: str,
        world: World,
        networks: Sequence[Network],
        at: Callable[[], Network | None],
        inputs: Values | None = None,
    ) -> None:
        self._inputs = inputs or {"x": Tensor(Dtype.UINT8, (1,), b"x")}
        self.name = name
        self.service = service
        self.world = world
        self._at = at
        """Where the service is served now, as people know it."""
        self.requests: dict[str, Asked] = {}
        self.jobs: dict[str, Job] = {}
        self._route: Route | None = None
        self._cell = ""
        """Of the route."""
        self._number = 0
        self._doubt = False
        """A failure was seen: the route may be old."""
        for network in networks:
            cell = network.cell
            network.listen(name, build(cell, Party.CLIENT, name, Channel.REPLY), self._hear)
            route = build(cell, Party.SERVICE, service, Channel.ROUTE)
            network.listen(name, route, self._hear_route)
        self._ask_route()

    # Requests.

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
        self._doubt |= (attempt - 1) * RETRY_MS >= SILENT_MS
        plan = self._route.plan if self._route else None
        network = self._at()
        if plan is not None and network is not None:
            entries = {
                step.node: step.cell or network.cell
                for step in plan.steps
                if any(edge.source == REQUEST for edge in step.inputs)
            }
            for node, cell in entries.items():
                invoke = Invoke(
                    request,
                    self.service,
                    max(1, int(asked.deadline_ms - now_ms)),
                    self._inputs,
                    self._reply(network),
                    attempt,
                    plan,
                )
                topic = topic_at(cell, Party.NODE, node, Channel.INVOKE)
                self._publish(network, topic, invoke)
        self.world.after(RETRY_MS, partial(self._try, request, attempt + 1))

    def _ask_route(self) -> None:
        if self._route is None or self._route.plan is None or self._doubt:
            self._doubt = False
            self._knock(lambda reply: RouteRequest(f"{self.name}-route", self.service, reply))
        self.world.after(ROUTE_AGAIN_MS, self._ask_route)

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

    # Jobs.

    def submit(self) -> None:
        """Submit a job and see it through until its end."""
        number = len(self.jobs)
        job = f"{self.name}-job-{number}"
        self.jobs[job] = Job(self.world.now_ms)
        deadline_ms = DEADLINE_MS if number % DEADLINE_EVERY == 1 else 0
        self._submit(job, deadline_ms)
        if number % CANCEL_EVERY == CANCEL_EVERY - 1:
            self.world.after(CANCEL_MS, partial(self._cancel, job))

    def _submit(self, job: str, deadline_ms: int) -> None:
        known = self.jobs[job]
        if known.accepted or not known.open:
            return
        value = Tensor(Dtype.UINT8, (len(MARK),), MARK)
        self._knock(
            lambda reply: JobSubmit(
                job, self.service, {"x": value}, reply, deadline_ms=deadline_ms, run_ms=RUN_MS
            )
        )
        self.world.after(SUBMIT_AGAIN_MS, partial(self._submit, job, deadline_ms))

    def _ask(self, job: str) -> None:
        if self.jobs[job].open:
            self._knock(lambda reply: JobQuery(job, self.service, reply))
            self.world.after(ASK_AGAIN_MS, partial(self._ask, job))

    def _cancel(self, job: str) -> None:
        """Have a job ended, if it is not over; what is not accepted yet is nobody's to end."""
        known = self.jobs[job]
        if known.open:
            if known.accepted:
                self._knock(lambda reply: JobQuery(job, self.service, reply, cancel=True))
            self.world.after(ASK_AGAIN_MS, partial(self._cancel, job))

    def _accepted(self, body: JobAccepted) -> None:
        job = self.jobs.get(body.job)
        if job is None or job.accepted or not job.open:
            return
        if body.accepted:
            job.accepted = True
            self.world.after(ASK_AGAIN_MS, partial(self._ask, body.job))
        elif not body.retryable:
            job.refused = body.reason or "no reason"

    def _ended(self, body: JobEnded) -> None:
        job = self.jobs.get(body.job)
        if job is None:
            return
        said = b"" if body.failure is not None else msgspec.msgpack.encode(body.outputs)
        before = job.parts.setdefault(body.part, said)
        if before != said:
            job.doubled = f"part {body.part} came as {before!r} and as {said!r}"
        if job.ended_ms is None and (body.failure is not None or len(job.parts) == body.parts):
            job.ended_ms = self.world.now_ms
            job.failure = body.failure.text if body.failure is not None else ""

    # The wire.

    def _hear_route(self, topic: Topic, frame: Frame) -> None:
        if not isinstance(frame.body, Route):
            return
        route = frame.body
        known = self._route if topic.cell == self._cell else None
        # A route of another cell counts when the service is served there.
        if known is None or route.epoch >= known.epoch:
            at = self._at()
            if at is None or at.cell == topic.cell:
                self._route, self._cell = route, topic.cell

    def _hear(self, topic: Topic, frame: Frame) -> None:
        match frame.body:
            case Route():
                self._hear_route(topic, frame)
            case Result() as result:
                self._answer(result)
            case JobAccepted() as accepted:
                self._accepted(accepted)
            case JobEnded() as ended:
                self._ended(ended)

    def _reply(self, network: Network) -> str:
        return str(topic_at(network.cell, Party.CLIENT, self.name, Channel.REPLY))

    def _knock(self, say: Callable[[str], Body]) -> None:
        """Say something at the door of the service; it is told where to answer."""
        network = self._at()
        if network is not None:
            door = topic_at(network.cell, Party.SERVICE, self.service, Channel.REQUEST)
            self._publish(network, door, say(self._reply(network)))

    def _publish(self, network: Network, topic: Topic, body: Body) -> None:
        self._number += 1
        frame = Frame(VERSION, self.name, 1, self._number, "default", "client", body)
        network.publish(self.name, topic, frame)
