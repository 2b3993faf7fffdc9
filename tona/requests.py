"""The requests of a client: routes, attempts, parts and deadlines; pure, one door.

A request has one id and any number of attempts. It waits for a route (ROUTING), has its large
values stored (UPLOADING), is sent to every node with a step that it feeds (SENT), is known to be in
work there (ACCEPTED), or waits for its next attempt (PAUSED). It is sent again under the same id
with the next attempt number when

* an attempt failed in a way that may be retried: after a pause, or at once when a new route comes;
* a new route runs one of its steps elsewhere: at once, or after `DRAIN_MS` where the node before
  ends what it has begun; or the connection was lost and is back: at once;
* a node has neither answered nor accepted it for `ACCEPT_MS`, doubled with each attempt.

While it is in work its route is looked at after `LOOK_MS`, and ever more seldom.

Nodes know a request by its id and repeat the answer they gave, so asking again does no harm. Of all
answers the first whole one ends the request, exactly once; its deadline does otherwise. What comes
for a request that has ended is counted and dropped.
"""

import zlib
from collections.abc import Callable
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Any, Final

from msgspec import Struct

from protocols.errors import Blame
from protocols.manifest import MAX_PORTS
from protocols.messages.invocation import (
    Blob,
    Failure,
    FailureCode,
    Invoke,
    Plan,
    Result,
    Route,
    Timing,
    Value,
)
from protocols.packing import DEFLATE, pack_all
from protocols.submission import misfit
from tona.events import (
    AskRoute,
    Cancelled,
    Command,
    Event,
    Finish,
    Heard,
    Online,
    SendCancel,
    SendInvoke,
    Submit,
    Unsent,
    Upload,
    Uploaded,
    Wake,
    Woken,
)
from tona.routes import Service

MAX_REQUESTS: Final = 4096
"""Open requests of one client; one more is refused."""
MAX_SERVICES: Final = 256
"""Services whose routes one client follows; one more is refused."""
MAX_ATTEMPTS: Final = 64
ACCEPT_MS: Final = 1000
"""Silence of a node after which a request is sent again; a node accepts after 100 ms."""
ACCEPT_CAP_MS: Final = 8000
LOOK_MS: Final = 1000
LOOK_CAP_MS: Final = 8000
"""A request that is in work has its route looked at within these bounds, and no route is looked at
more often than the first: of a service in another cell no change is told here.
"""
DRAIN_MS: Final = 1000
"""So long a node may take to end what it has begun after its task has gone elsewhere."""
PAUSE_FIRST_MS: Final = 50
PAUSE_CAP_MS: Final = 2000
_MISPLACED: Final = (FailureCode.STALE, FailureCode.NODE_LOST, FailureCode.NOT_READY)
_ELSEWHERE: Final = (*_MISPLACED, FailureCode.SHED, FailureCode.BUSY)
"""Why a node has not begun a request: the next attempt may go to another one."""


class Phase(StrEnum):
    """Where an open request stands; the header tells how it moves."""

    ROUTING = "routing"
    UPLOADING = "uploading"
    SENT = "sent"
    ACCEPTED = "accepted"
    PAUSED = "paused"


_IN_WORK: Final = (Phase.SENT, Phase.ACCEPTED)


class Counters(Struct):
    """What was dropped or done again; every number only grows."""

    late: int = 0
    """Answers to requests that had ended, to attempts that were given up, or of impossible parts.
    """
    stale_routes: int = 0
    retries: int = 0


class _Request(Struct):
    """An open request."""

    id: str
    service: Service
    inputs: dict[str, Value]
    begin_ms: float
    deadline_ms: float
    uploads: bool
    """Whether large inputs still have to be stored."""
    wake_ms: float
    priority: int
    phase: Phase = Phase.ROUTING
    attempt: int = 0
    pauses: int = 0
    looks: int = 0
    """At the route, since a node has accepted it."""
    counted: bool = False
    """Whether it counts against the credit of its route."""
    packed: bool = False
    """Whether packing the inputs was tried."""
    plan: Plan | None = None
    silent: set[str] = set()
    """Nodes that have not accepted the present attempt."""
    parts: dict[tuple[int, int], Result] = {}
    """By attempt and part."""
    last: Failure | None = None


class Requests:
    """Every open request of a client; `reply_to` is the topic of its answers from now on."""

    def __init__(self, reply_to: str) -> None:
        self.counters = Counters()
        self.reply_to = reply_to
        self._requests: dict[str, _Request] = {}
        self._services: dict[str, Service] = {}
        self._online = False
        self._now_ms = 0.0
        self._out: list[Command] = []
        self._due: list[tuple[float, bool, str]] = []
        """When what is due: a request, or (True) a question for a route. May hold old entries."""
        self._armed_ms: float | None = None
        self._on: dict[type[Struct], Callable[[Any], None]] = {
            Submit: self._submit,
            Heard: self._heard,
            Uploaded: self._uploaded,
            Unsent: self._unsent,
            Cancelled: self._cancelled,
            Online: self._connection,
            Woken: self._woken,
        }

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def services(self) -> tuple[str, ...]:
        """The services whose routes are followed."""
        return tuple(self._services)

    def handle(self, event: Event, now_ms: float) -> list[Command]:
        """Decide on one event. Nothing else changes the state."""
        self._now_ms, self._out = now_ms, []
        self._on[type(event)](event)
        if self._due and (self._armed_ms is None or self._due[0][0] < self._armed_ms):
            self._armed_ms = self._due[0][0]
            self._out.append(Wake(self._armed_ms))
        return self._out

    # From the application.

    def _submit(self, event: Submit) -> None:
        service = self._services.get(event.service)
        if len(self._requests) >= MAX_REQUESTS:
            self._refuse(event.request, f"this client has {MAX_REQUESTS} requests under way")
            return
        if service is None:
            if len(self._services) >= MAX_SERVICES:
                self._refuse(event.request, f"this client follows {MAX_SERVICES} services already")
                return
            service = self._services[event.service] = Service(event.service)
        request = _Request(
            event.request,
            service,
            event.inputs,
            self._now_ms,
            event.deadline_ms,
            event.uploads,
            event.deadline_ms,
            event.priority,
        )
        self._requests[request.id] = request
        service.requests[request.id] = None
        if event.deadline_ms <= self._now_ms:
            self._expire(request)
        elif not service.waiting and service.has_room() and self._usable(service):
            self._start(request)
        else:
            self._wait(request)

    def _refuse(self, request: str, text: str) -> None:
        failure = Failure(FailureCode.BUSY, Blame.USER, text, retryable=True)
        self._out.append(Finish(request, {}, failure, (), 0, ()))

    def _cancelled(self, event: Cancelled) -> None:
        request = self._requests.get(event.request)
        if request is not None:
            self._forget(request)
            steps = request.plan.steps if request.plan is not None else ()
            for node, cell in {(step.node, step.cell) for step in steps}:
                self._out.append(SendCancel(node, request.id, request.service.name, cell))

    # From the shell.

    def _uploaded(self, event: Uploaded) -> None:
        request = self._requests.get(event.request)
        if request is None or request.phase is not Phase.UPLOADING:
            return
        if event.failed:
            text = f"the inputs could not be stored: {event.failed}"
            self._pause(request, _retryable(FailureCode.FETCH, text))
            return
        request.uploads = False
        self._again(request)

    def _unsent(self, event: Unsent) -> None:
        request = self._requests.get(event.request)
        if request is not None and request.phase is Phase.SENT and self._online:
            text = "the connection to the broker takes no more messages"
            self._pause(request, _retryable(FailureCode.BUSY, text))

    def _connection(self, event: Online) -> None:
        self._online = event.connected
        if not event.connected:
            return
        for service in self._services.values():
            # Changes of the route may have been missed too.
            service.refresh_ms = 0.0
            service.ask_at_ms = None
            if service.requests:
                self._ask(service)
        for request in list(self._requests.values()):
            # What was said while the line was down is lost: ask again, nodes repeat themselves.
            if request.phase in _IN_WORK:
                self._again(request)
        for service in self._services.values():
            self._pump(service)

    def _woken(self, _event: Woken) -> None:
        self._armed_ms = None
        while self._due and self._due[0][0] <= self._now_ms:
            at_ms, is_service, name = heappop(self._due)
            if is_service:
                self._ask_again(self._services[name], at_ms)
            elif (request := self._requests.get(name)) is not None and request.wake_ms == at_ms:
                self._overdue(request)
        if len(self._due) > 2 * len(self._requests) + MAX_SERVICES:
            self._due = [one for one in self._due if self._current(one)]
            heapify(self._due)
        while self._due and not self._current(self._due[0]):
            heappop(self._due)

    def _current(self, due: tuple[float, bool, str]) -> bool:
        at_ms, is_service, name = due
        if is_service:
            return self._services[name].ask_at_ms == at_ms
        request = self._requests.get(name)
        return request is not None and request.wake_ms == at_ms

    # From nodes and scheduler.

    def _heard(self, event: Heard) -> None:
        body = event.body
        if isinstance(body, Route):
            self._routed(body, event.sender)
            return
        request = self._requests.get(body.request)
        if request is None or body.attempt > request.attempt:
            self.counters.late += 1
        elif isinstance(body, Result):
            self._answered(request, body)
        elif body.attempt == request.attempt and request.phase is Phase.SENT:
            request.silent.discard(body.node)
            if not request.silent:
                request.phase = Phase.ACCEPTED
                request.looks = 0
                if request.service.holds(request.plan):
                    self._look_later(request)

    def _answered(self, request: _Request, result: Result) -> None:
        failure = result.failure
        if failure is None:
            self._collect(request, result)
        elif not failure.retryable:
            self._finish(request, {}, failure, result.timings)
        elif result.attempt < request.attempt or request.phase not in _IN_WORK:
            self.counters.late += 1
        else:
            if failure.code is FailureCode.FETCH:
                inputs = request.inputs.values()
                request.uploads = any(isinstance(one, Blob) for one in inputs)
            self._pause(request, failure)
            if failure.code in _MISPLACED and request.id in self._requests:
                self._ask(request.service)

    def _collect(self, request: _Request, result: Result) -> None:
        if result.parts == 1:
            self._finish(request, result.outputs, None, result.timings)
            return
        if not result.part < result.parts <= MAX_PORTS:
            self.counters.late += 1
            return
        request.parts[result.attempt, result.part] = result
        whole = [one for (attempt, _), one in request.parts.items() if attempt == result.attempt]
        if len(whole) < result.parts:
            return
        outputs: dict[str, Value] = {}
        # Parts share the steps before their ways part.
        timings: dict[tuple[str, str], Timing] = {}
        for one in whole:
            outputs.update(one.outputs)
            timings.update({(step.task, step.node): step for step in one.timings})
        self._finish(request, outputs, None, tuple(timings.values()))

    def _routed(self, route: Route, source: str) -> None:
        service = self._services.get(route.service)
        before = service.plans if service is not None else ()
        if service is None or not service.learn(route, source, self._now_ms):
            self.counters.stale_routes += 1
            return
        if service.plan is not None and service.plans != before:
            for name in list(service.requests):
                request = self._requests[name]
                sent = request.phase in _IN_WORK or request.phase is Phase.PAUSED
                if not sent or service.holds(request.plan):
                    continue
                if route.drains and request.phase in _IN_WORK:
                    drained_ms = self._now_ms + DRAIN_MS
                    self._wake(request, min(request.deadline_ms, drained_ms))
                else:
                    self._again(request)
        self._pump(service)
        if service.plan is None and service.waiting and service.ask_at_ms is None:
            self._ask(service)

    # The way of a request.

    def _usable(self, service: Service) -> bool:
        """Whether requests can be sent now; asks for a fresh route in good time."""
        if not self._online or service.plan is None or self._now_ms >= service.expires_ms:
            return False
        if self._now_ms >= service.refresh_ms and service.ask_at_ms is None:
            self._ask(service)
        return True

    def _wait(self, request: _Request) -> None:
        service = request.service
        request.phase = Phase.ROUTING
        self._count(request, under_way=False)
        if request.attempt > 0:
            service.waiting.appendleft(request.id)
        else:
            service.waiting.append(request.id)
        self._wake(request, request.deadline_ms)
        if service.ask_at_ms is None and not service.usable(self._now_ms):
            self._ask(service)

    def _pump(self, service: Service) -> None:
        """Start what waits, oldest first, as far as the route and its credit allow."""
        while service.waiting and service.has_room() and self._usable(service):
            request = self._requests.get(service.waiting.popleft())
            if request is not None and request.phase is Phase.ROUTING:
                self._start(request)

    def _start(self, request: _Request) -> None:
        service = request.service
        if text := misfit(service.name, service.names, request.inputs.keys()):
            failure = Failure(FailureCode.BAD_INPUT, Blame.USER, text, retryable=False)
            self._finish(request, {}, failure, ())
            return
        self._count(request, under_way=True)
        if request.uploads:
            request.phase = Phase.UPLOADING
            self._wake(request, request.deadline_ms)
            self._out.append(Upload(request.id, service.blob_urls))
        else:
            self._send(request)

    def _count(self, request: _Request, *, under_way: bool) -> None:
        request.service.under_way += under_way - request.counted
        request.counted = under_way

    def _send(self, request: _Request) -> None:
        service = request.service
        request.attempt += 1
        self.counters.retries += request.attempt > 1
        request.phase = Phase.SENT
        refused = request.last is not None and request.last.code in _ELSEWHERE
        request.plan, entries = service.way(None if refused else request.plan)
        request.silent = {entry.node for entry in entries}
        budget_ms = max(1, int(request.deadline_ms - self._now_ms))
        stood_ms = service.news(self._now_ms)
        if service.encoding == DEFLATE and not request.packed:
            request.packed = True
            request.inputs = pack_all(request.inputs)
        for node, names, cell in entries:
            inputs = request.inputs
            if len(names) < len(inputs):
                inputs = {name: inputs[name] for name in names}
            body = Invoke(
                request.id,
                service.name,
                budget_ms,
                inputs,
                self.reply_to,
                request.attempt,
                request.plan,
                priority=request.priority,
                answer_encoding=DEFLATE,
                stood_ms=stood_ms,
            )
            self._out.append(SendInvoke(node, body, cell))
        patience_ms = min(ACCEPT_MS << min(request.attempt - 1, 8), ACCEPT_CAP_MS)
        self._wake(request, min(request.deadline_ms, self._now_ms + patience_ms))

    def _again(self, request: _Request) -> None:
        """Make the next attempt, now or when a route allows it."""
        if request.attempt >= MAX_ATTEMPTS:
            request.phase = Phase.ACCEPTED
            self._wake(request, request.deadline_ms)
        elif self._usable(request.service):
            self._start(request)
        else:
            self._wait(request)

    def _pause(self, request: _Request, failure: Failure) -> None:
        request.last = failure
        request.pauses += 1
        if max(request.pauses, request.attempt) >= MAX_ATTEMPTS:
            self._finish(request, {}, failure, ())
            return
        request.phase = Phase.PAUSED
        ceiling_ms = min(PAUSE_FIRST_MS << min(request.pauses, 8), PAUSE_CAP_MS)
        # Spread by the request's own name: many that failed together do not come back together.
        draw = zlib.crc32(f"{request.id}/{request.pauses}".encode()) / 2**32
        pause_ms = ceiling_ms * (0.5 + 0.5 * draw)
        self._wake(request, min(request.deadline_ms, self._now_ms + pause_ms))

    def _overdue(self, request: _Request) -> None:
        if self._now_ms >= request.deadline_ms:
            self._expire(request)
        elif request.phase is Phase.ACCEPTED and request.service.holds(request.plan):
            self._look(request)
        elif request.phase in (Phase.PAUSED, Phase.ACCEPTED):
            self._again(request)
        elif request.phase is Phase.SENT:
            # A node that says nothing may be gone: its scheduler knows.
            self._ask(request.service)
            self._again(request)

    def _look(self, request: _Request) -> None:
        """Ask whether a request is in work where it should be."""
        service = request.service
        if self._now_ms - service.looked_ms >= LOOK_MS:
            service.looked_ms = self._now_ms
            self._ask(service)
        request.looks += 1
        self._look_later(request)

    def _look_later(self, request: _Request) -> None:
        wait_ms = min(LOOK_MS << min(request.looks, 8), LOOK_CAP_MS)
        self._wake(request, min(request.deadline_ms, self._now_ms + wait_ms))

    def _expire(self, request: _Request) -> None:
        service = request.service
        asked_ms = round(request.deadline_ms - request.begin_ms)
        what = f"service {service.name!r} gave no answer within {asked_ms} ms"
        code, blame = FailureCode.DEADLINE, Blame.ENVIRONMENT
        if not self._online:
            what += ": there is no connection to the broker"
        elif request.attempt == 0 and service.plan is None:
            code = FailureCode.NO_SERVICE
            what = f"service {service.name!r} is not served: {service.reason}"
        elif request.attempt == 0:
            what += f": it was {request.phase.value}, {service.under_way} others were under way"
        elif request.last is not None:
            what += f"; of {request.attempt} attempts the last that failed: {request.last.text}"
        elif request.phase is Phase.SENT:
            what += f" and {', '.join(sorted(request.silent))} said nothing at all"
        if self._online and request.attempt and service.plan is None:
            what += f"; it is not served now: {service.reason}"
        self._finish(request, {}, Failure(code, blame, what[:2000], retryable=True), ())

    def _finish(
        self,
        request: _Request,
        outputs: dict[str, Value],
        failure: Failure | None,
        timings: tuple[Timing, ...],
    ) -> None:
        service = request.service
        service.ended(request.begin_ms, self._now_ms)
        self._out.append(
            Finish(request.id, outputs, failure, timings, request.attempt, service.blob_urls)
        )
        self._forget(request)

    def _forget(self, request: _Request) -> None:
        service = request.service
        del self._requests[request.id]
        del service.requests[request.id]
        self._count(request, under_way=False)
        if request.phase is Phase.ROUTING and request.id in service.waiting:
            service.waiting.remove(request.id)
        if service.waiting:
            self._pump(service)

    # Time.

    def _wake(self, request: _Request, at_ms: float) -> None:
        request.wake_ms = at_ms
        heappush(self._due, (at_ms, False, request.id))

    def _ask(self, service: Service) -> None:
        if self._online and (service.ask_at_ms is None or service.ask_at_ms <= self._now_ms):
            self._out.append(AskRoute(service.name))
            heappush(self._due, (service.ask(self._now_ms), True, service.name))

    def _ask_again(self, service: Service, at_ms: float) -> None:
        if service.ask_at_ms == at_ms:
            if service.requests:
                self._ask(service)
            if service.ask_at_ms == at_ms:
                service.ask_at_ms = None


def _retryable(code: FailureCode, text: str) -> Failure:
    return Failure(code, Blame.ENVIRONMENT, text, retryable=True)
