"""What processes of one controller do for each other beside their roles: show and call.

Theory of operation. Each process has a *desk*: an end of links of its own, named after one of its
roles, so that what people watch never delays what roles say. The desk mirrors what its process
shows to the process of NAMO, whose API people use, and tells every anchor which cell it serves.
An operation that is served elsewhere goes to the desk there and is answered within a deadline;
operations are idempotent, so one that was under way when a link broke is said again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from controller.decider import Answer, Record, View
from controller.host.link import IDLE_MS
from controller.host.linker import Linker
from controller.host.links import Hand, Up
from controller.records import CELL
from controller.registry import LiveRegistry
from controller.registry.mirror import EVERY_MS, KINDS, Outgoing, change
from protocols.errors import Blame, EnvironmentFailure, TonaError
from protocols.messages import Mirror, RemoteAnswer, RemoteCall
from protocols.messages.host import BODY_MAX_BYTES

CALL_TIMEOUT_S: Final = 10.0
CALLS_MAX: Final = 1000
"""Under way at once, each way."""
SLICE: Final = 64
"""Rows that are shown at once; the others of a pace follow, so that roles are heard in between."""
SLICE_S: Final = 0.02
WAITING_MAX: Final = 500
WAITING_MAX_BYTES: Final = 4 << 20
"""What may wait on a link before the mirror pauses."""
AWAY_MS: Final = 3 * IDLE_MS
"""A process that was not heard for so long is away, and so is what it says of nodes."""
_PREFIX: Final = "desk-"

Serve = Callable[[str, Any, str, str], Awaitable[Answer]]
"""Has an operation of this process done: its name, arguments, tenant, cause."""
Types = Callable[[str], tuple[type[Struct], Any] | None]
"""The types of an operation's arguments and result; None: there is no such operation."""


def desk_of(role: str) -> str:
    """Return the desk of the process that runs a role."""
    return _PREFIX + role


def role_at(desk: str) -> str:
    """Return the role that a desk is named after."""
    return desk.removeprefix(_PREFIX)


class _Waiting(Struct):
    desk: str
    body: RemoteCall
    tenant: str
    cause: str
    answer: "asyncio.Future[RemoteAnswer]"


class Neighbours:
    """The desk of one process; lives on one event loop."""

    def __init__(
        self, own: str, linker: Linker, registry: LiveRegistry, serve: Serve, types: Types
    ) -> None:
        self.own = own
        """A role of this process, after which its desk is named."""
        self.counters = {"calls_out": 0, "calls_in": 0, "calls_late": 0, "mirrored": 0}
        self._linker = linker
        self._registry = registry
        self._serve = serve
        self._types = types
        self._shown: dict[str, Outgoing] = {}
        self._left: dict[str, int] = {}
        """By desk: how many rows the present pace has left to show."""
        self._waiting: dict[str, _Waiting] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sources: dict[tuple[str, str], bool] = {}
        """Who mirrors here, by the two ends of the link, and whether it is away."""
        self._watching: asyncio.TimerHandle | None = None
        self._awaited: set[str] = set()
        """Desks that have not shown everything since our start."""
        self._patience: asyncio.TimerHandle | None = None
        registry.followers.append(self._changed)

    def show_to(self, role: str, *, everything: bool) -> None:
        """Show the process of a role what is here, or only which cell this is."""
        self._shown[desk_of(role)] = Outgoing(self._registry.model, KINDS if everything else [CELL])
        self._linker.open(desk_of(self.own), desk_of(role))

    def wait_for(self, roles: Iterable[str]) -> None:
        """Be starting until the processes of these roles have shown everything, or are away."""
        self._awaited = {desk_of(role) for role in roles}
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(AWAY_MS / 1000, self._awaited.clear)

    def starting(self) -> str:
        """Return in a sentence what is not shown here yet; empty: this process is ready."""
        if not self._awaited:
            return ""
        roles = ", ".join(one.removeprefix(_PREFIX) for one in sorted(self._awaited))
        return f"this controller is starting and has not heard {roles} yet: ask again in a moment"

    def close(self) -> None:
        """End everything that is under way."""
        for timer in (self._timer, self._watching, self._patience):
            if timer is not None:
                timer.cancel()
        for task in self._serving:
            task.cancel()
        for one in self._waiting.values():
            one.answer.cancel()

    # What links bring.

    def up(self, up: Up) -> None:
        """Begin anew with a desk."""
        outgoing = self._shown.get(up.peer)
        if outgoing is not None:
            outgoing.begin()
            self._flush()
        for one in self._waiting.values():
            if one.desk == up.peer:
                self._say(one.desk, one.body, one.tenant, one.cause)

    def hand(self, hand: Hand) -> None:
        """Take what a desk said; what is none of its business is not heard."""
        match hand.body:
            case Mirror():
                self._sources.setdefault((hand.own, hand.peer), False)
                if self._watching is None:
                    self._watch()
                self._mirrored(hand.peer, hand.body)
            case RemoteCall() as call:
                if len(self._serving) < CALLS_MAX:
                    task = asyncio.get_running_loop().create_task(self._serve_call(hand, call))
                    self._serving.add(task)
                    task.add_done_callback(self._serving.discard)
            case RemoteAnswer() as answer:
                waiting = self._waiting.get(answer.call)
                if waiting is not None and not waiting.answer.done():
                    waiting.answer.set_result(answer)

    # Mirrors.

    def _mirrored(self, source: str, mirror: Mirror) -> None:
        merger = self._registry.merger
        self.counters["mirrored"] += 1
        if mirror.first:
            merger.begin(source)
        if not mirror.kind:
            if not mirror.first:
                self._registry.show(merger.end(source))
                self._awaited.discard(source)
            return
        shown = change(mirror)
        if shown is not None:
            self._registry.show(merger.merge(source, [shown]))

    def _watch(self) -> None:
        for (own, peer), was in list(self._sources.items()):
            silent_ms = self._linker.silent_ms(own, peer)
            away = silent_ms >= AWAY_MS
            if away != was:
                self._sources[own, peer] = away
                role = peer.removeprefix(_PREFIX)
                reason = f"the process of {role} is silent: it may be down" if away else ""
                self._registry.show(self._registry.merger.away(peer, reason))
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(AWAY_MS / 3000, self._watch)

    def _changed(self, changes: Sequence[Record | View]) -> None:
        due = [one.changed(changes) for one in self._shown.values()]
        if any(due) and self._timer is None:
            self._later()

    def _later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_MS / 1000, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._left = {desk: outgoing.pending for desk, outgoing in self._shown.items()}
        self._slice()

    def _slice(self) -> None:
        """Show some rows of what was there to show when this pace began."""
        for desk, left in self._left.items():
            self._left[desk] = left - self._show(desk, self._shown[desk], min(SLICE, left))
        if any(left > 0 for left in self._left.values()):
            self._timer = asyncio.get_running_loop().call_later(SLICE_S, self._slice)
        elif any(one.waiting for one in self._shown.values()):
            self._later()
        else:
            self._timer = None

    def _show(self, desk: str, outgoing: Outgoing, most: int) -> int:
        """Show up to so many rows; return how many less are left of this pace."""
        waiting, waiting_bytes = self._linker.links.waiting(desk_of(self.own), desk)
        room = 0 if waiting_bytes >= WAITING_MAX_BYTES else max(0, WAITING_MAX - waiting)
        for mirror in outgoing.take(min(most, room)):
            self._say(desk, mirror, "default", "mirror")
        return most if room >= most else self._left[desk]

    def _say(self, desk: str, body: Mirror | RemoteCall, tenant: str, cause: str) -> None:
        self._linker.say(desk_of(self.own), desk, tenant, cause, body)

    # Calls.

    async def call(
        self, role: str, operation: str, arguments: Struct, tenant: str, cause: str
    ) -> Answer:
        """Have an operation done by the process of a role, and return its answer."""
        types = self._types(operation)
        packed = msgspec.msgpack.encode(arguments)
        if types is None or len(packed) > BODY_MAX_BYTES:
            return Answer(cause, error=f"{operation} is too large", blame=Blame.USER)
        if len(self._waiting) >= CALLS_MAX:
            raise EnvironmentFailure("too many operations at once; try again in a moment")
        self._number += 1
        self.counters["calls_out"] += 1
        call = f"{self.own}/{self._number}"
        future: asyncio.Future[RemoteAnswer] = asyncio.get_running_loop().create_future()
        body = RemoteCall(call, operation, packed)
        self._waiting[call] = _Waiting(desk_of(role), body, tenant, cause, future)
        try:
            self._say(desk_of(role), body, tenant, cause)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await future
        except TimeoutError:
            self.counters["calls_late"] += 1
            return Answer(call, error=_away(role), blame=Blame.ENVIRONMENT)
        finally:
            del self._waiting[call]
        if answer.error:
            return Answer(call, error=answer.error, blame=answer.blame, busy=answer.busy)
        try:
            return Answer(call, msgspec.msgpack.decode(answer.value, type=types[1]))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return Answer(call, error=f"{role} is of another version", blame=Blame.ENVIRONMENT)

    async def _serve_call(self, hand: Hand, call: RemoteCall) -> None:
        self.counters["calls_in"] += 1
        answer = await self._answer(hand, call)
        self._linker.say(hand.own, hand.peer, hand.tenant, hand.cause, answer)

    async def _answer(self, hand: Hand, call: RemoteCall) -> RemoteAnswer:
        types = self._types(call.operation)
        if types is None:
            return RemoteAnswer(
                call.call, error=f"{call.operation!r} is not known here", blame=Blame.USER
            )
        try:
            arguments = msgspec.msgpack.decode(call.arguments, type=types[0])
            answer = await self._serve(call.operation, arguments, hand.tenant, hand.cause)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return RemoteAnswer(call.call, error=f"wrong arguments: {error}", blame=Blame.USER)
        except TonaError as error:
            return RemoteAnswer(call.call, error=str(error), blame=error.blame)
        if answer.error:
            return RemoteAnswer(
                call.call, error=answer.error[:2048], blame=answer.blame, busy=answer.busy
            )
        value = msgspec.msgpack.encode(answer.value)
        if len(value) > BODY_MAX_BYTES:
            return RemoteAnswer(call.call, error="the answer is too large", blame=Blame.USER)
        return RemoteAnswer(call.call, value)


def _away(role: str) -> str:
    return (
        f"{role} did not answer within {CALL_TIMEOUT_S:.0f} s: its process may be down; "
        "asking again does no harm"
    )
