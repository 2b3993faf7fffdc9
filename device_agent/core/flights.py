"""The requests of this node's feeds: a client in small, by the rules of `docs/protocol.md`.

A request is sent to every node with a step that it feeds, to this one without the wire. It is sent
again under the same id when a node says nothing, when the plan moves a step, after a failure that
may be retried and a pause; it ends with the first whole answer, another failure, or its deadline.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeGuard

import msgspec
from msgspec import Struct, field

from device_agent.core.commands import Forward, LeaveBlob, PushBlob
from device_agent.core.events import Received
from device_agent.core.turn import Turn
from device_agent.core.values import MESSAGE_MAX_BYTES, blobs, cell_in, inline_bytes
from protocols.errors import Blame, MalformedFrame
from protocols.manifest import MAX_PORTS
from protocols.messages.invocation import (
    REQUEST,
    Accepted,
    Failure,
    FailureCode,
    Invoke,
    Plan,
    Result,
    Timing,
    Value,
)
from protocols.packing import DEFLATE, unpack_all
from protocols.topics import Channel

ACCEPT_MS: Final = 1_000
"""Silence of a node after which a request is sent again; a node accepts after 100 ms."""
ACCEPT_MAX_MS: Final = 8_000
PAUSE_FIRST_MS: Final = 100
PAUSE_MAX_MS: Final = 2_000
ATTEMPTS_MAX: Final = 64


class Flight(Struct, eq=False):
    """One request on its way."""

    id: str
    service: str
    plan: Plan
    inputs: dict[str, Value]
    deadline_ms: float
    budget_ms: int
    priority: int
    cause: str
    tenant: str
    attempt: int = 0
    pauses: int = 0
    paused: bool = False
    silent: set[str] = field(default_factory=set)
    """Nodes that have not accepted the present attempt."""
    pushing: set[str] = field(default_factory=set)
    """Large inputs that the cell's store does not have yet, by digest."""
    parts: dict[int, Result] = field(default_factory=dict)
    """Of the present attempt."""


Ended = Callable[[Flight, Result], None]
Local = Callable[[Received, Invoke], None]


class Flights:
    """Every request of this node's feeds. `local` takes those that begin here, `ended` hears."""

    def __init__(self, turn: Turn, local: Local, ended: Ended) -> None:
        self._turn = turn
        self._local = local
        self._ended = ended
        self._flights: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def send(self, flight: Flight) -> None:
        """Begin a request; large inputs go to the cell's store first if other nodes need them."""
        self._flights[flight.id] = flight
        elsewhere = any(node != self._turn.node for node in entries(flight.plan))
        large = blobs(flight.inputs) if elsewhere else {}
        if not large:
            self._send(flight)
            return
        flight.pushing = set(large)
        self._wake(flight, flight.deadline_ms)
        urls, urgency = self._turn.store_urls, (-flight.priority, flight.deadline_ms)
        for digest, size_bytes in large.items():
            self._turn.out.append(PushBlob(digest, size_bytes, urls, flight.cause, urgency))

    def blob_pushed(self, digest: str) -> None:
        """Send what waited for this value last."""
        for flight in list(self._flights.values()):
            if digest in flight.pushing:
                flight.pushing.discard(digest)
                if not flight.pushing:
                    self._send(flight)

    def blob_failed(self, digest: str, text: str) -> None:
        """Try again after a while what needs this value in the store."""
        for flight in list(self._flights.values()):
            if digest in flight.pushing:
                failure = Failure(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True)
                self._failed(flight, Result(flight.id, flight.attempt, {}, failure))

    def move(self, service: str, plan: Plan | None) -> None:
        """Follow a new plan: what runs elsewhere now is sent again."""
        for flight in list(self._flights.values()):
            if flight.service == service and plan is not None and flight.plan != plan:
                moved = places(flight.plan) != places(plan)
                flight.plan = plan
                if not covers(plan, flight.inputs):
                    self._give_up(flight, "the service takes other inputs now")
                elif moved and not flight.pushing and not flight.paused:
                    self._send(flight)

    def connected(self) -> None:
        """Send again what other nodes may not have heard, or answered in vain."""
        for flight in list(self._flights.values()):
            elsewhere = any(step.node != self._turn.node for step in flight.plan.steps)
            if elsewhere and not flight.pushing and not flight.paused:
                self._send(flight)

    def heard(self, body: Accepted | Result) -> None:
        """Take in what a node says of a request."""
        flight = self._flights.get(body.request)
        if flight is not None and _whole(body) and body.attempt <= flight.attempt:
            self._collect(flight, body)
        elif flight is None or body.attempt != flight.attempt or flight.paused:
            self._turn.counts["feed late"] += 1
        elif isinstance(body, Accepted):
            flight.silent.discard(body.node)
            if not flight.silent:
                self._wake(flight, flight.deadline_ms)
        elif body.failure is not None:
            self._failed(flight, body)
        else:
            self._collect(flight, body)

    def on_timer(self, name: str) -> None:
        """Send again, or give up."""
        flight = self._flights.get(name)
        if flight is None:
            return
        if self._turn.now_ms < flight.deadline_ms:
            flight.paused = False
            if flight.pushing:
                self.send(flight)
            else:
                self._send(flight)
            return
        text = f"no answer within {flight.budget_ms} ms, at the attempt {flight.attempt}"
        failure = Failure(FailureCode.DEADLINE, Blame.ENVIRONMENT, text, retryable=False)
        self._end(flight, Result(flight.id, flight.attempt, {}, failure))

    def drop(self, service: str) -> int:
        """Forget the requests of a service that is fed no longer; return how many."""
        gone = [one for one in self._flights.values() if one.service == service]
        for flight in gone:
            self._forget(flight)
        return len(gone)

    def _send(self, flight: Flight) -> None:
        turn = self._turn
        nodes = entries(flight.plan)
        if any(node != turn.node and not _fits(flight, nodes[node]) for node in nodes):
            self._give_up(flight, f"its inputs take more than a message, {MESSAGE_MAX_BYTES} bytes")
            return
        if flight.attempt:
            turn.counts["said again"] += 1
        flight.attempt += 1
        flight.paused = False
        flight.parts.clear()
        flight.silent = set(nodes)
        patience_ms = min(ACCEPT_MS << min(flight.attempt - 1, 8), ACCEPT_MAX_MS)
        again = flight.attempt < ATTEMPTS_MAX
        self._wake(flight, turn.now_ms + patience_ms if again else flight.deadline_ms)
        budget_ms = max(1, int(flight.deadline_ms - turn.now_ms))
        for node, names in nodes.items():
            invoke = Invoke(
                flight.id,
                flight.service,
                budget_ms,
                {name: flight.inputs[name] for name in names},
                turn.inbox,
                flight.attempt,
                flight.plan,
                priority=flight.priority,
                answer_encoding=DEFLATE,
            )
            if node != turn.node:
                cell = cell_in(flight.plan, node)
                turn.out.append(Forward(node, invoke, flight.cause, flight.tenant, cell))
                continue
            event = Received(
                Channel.INVOKE, node, 0, 0, flight.tenant, flight.cause, invoke, turn.inbox
            )
            self._local(event, invoke)

    def _collect(self, flight: Flight, result: Result) -> None:
        self._turn.answered()
        if not result.part < result.parts <= MAX_PORTS:
            self._turn.counts["foreign message"] += 1
            return
        try:
            flight.parts[result.part] = _dense(result)
        except MalformedFrame as error:
            failure = Failure(FailureCode.EXECUTOR, Blame.PEER, str(error), retryable=False)
            self._end(flight, Result(flight.id, flight.attempt, {}, failure))
            return
        if len(flight.parts) < result.parts and result.parts > 1:
            return
        outputs: dict[str, Value] = {}
        timings: dict[tuple[str, str], Timing] = {}
        for one in flight.parts.values():
            outputs.update(one.outputs)
            timings.update({(step.task, step.node): step for step in one.timings})
        whole = Result(flight.id, flight.attempt, outputs, None, tuple(timings.values()))
        self._end(flight, whole)

    def _failed(self, flight: Flight, result: Result) -> None:
        failure = result.failure
        flight.pauses += 1
        tries = max(flight.pauses, flight.attempt)
        if failure is None or not failure.retryable or tries >= ATTEMPTS_MAX:
            self._end(flight, result)
            return
        self._leave(flight)
        flight.paused = True
        wait_ms = min(PAUSE_FIRST_MS << min(flight.pauses - 1, 8), PAUSE_MAX_MS)
        self._wake(flight, self._turn.now_ms + self._turn.spread(wait_ms))

    def _give_up(self, flight: Flight, text: str) -> None:
        failure = Failure(FailureCode.BAD_INPUT, Blame.USER, text, retryable=False)
        self._end(flight, Result(flight.id, flight.attempt, {}, failure))

    def _end(self, flight: Flight, result: Result) -> None:
        self._forget(flight)
        self._ended(flight, result)

    def _leave(self, flight: Flight) -> None:
        """Have it wait for pushes no more; `pushing` tells that it must ask for them again."""
        if not flight.paused:
            self._turn.out += [LeaveBlob(digest, pushing=True) for digest in flight.pushing]

    def _forget(self, flight: Flight) -> None:
        self._leave(flight)
        del self._flights[flight.id]
        self._turn.timers.cancel(("flight", flight.id))

    def _wake(self, flight: Flight, at_ms: float) -> None:
        self._turn.timers.set(("flight", flight.id), min(at_ms, flight.deadline_ms))


def _whole(body: Accepted | Result) -> TypeGuard[Result]:
    """Whether outputs are all of an answer: then it does not matter which attempt it was."""
    return isinstance(body, Result) and body.failure is None and body.parts == 1


def _dense(result: Result) -> Result:
    """Return a result with dense outputs. Raises MalformedFrame."""
    return Result(
        result.request,
        result.attempt,
        unpack_all(result.outputs),
        None,
        result.timings,
        result.part,
        result.parts,
    )


def entries(plan: Plan) -> dict[str, list[str]]:
    """Return the nodes with a step that a request feeds, and the inputs that their steps need."""
    wanted: dict[str, list[str]] = {}
    for step in plan.steps:
        fed = [edge.source_port for edge in step.inputs if edge.source == REQUEST]
        if fed or not step.inputs:
            names = wanted.setdefault(step.node, [])
            names += [name for name in fed if name not in names]
    return wanted


def covers(plan: Plan, item: Mapping[str, Value]) -> bool:
    """Whether an item has every input that the plan takes."""
    return all(name in item for names in entries(plan).values() for name in names)


def _fits(flight: Flight, names: list[str]) -> bool:
    """Whether these inputs and the plan go into one message."""
    inline = inline_bytes({name: flight.inputs[name] for name in names})
    return inline + len(msgspec.msgpack.encode(flight.plan)) <= MESSAGE_MAX_BYTES


def places(plan: Plan) -> set[tuple[str, str, int]]:
    """Return what of a plan says where its steps run."""
    return {(step.task, step.node, step.epoch) for step in plan.steps}
