"""The host of roles: batches events, commits records, then lets the outputs out.

Theory of operation. Events wait in one queue per role; a turn hands each role its batch. An output
without records leaves at once. One with records waits for the commit, and so does everything that
the same role says after it, so that nobody hears of what a crash could take back. Outputs that
gather while a commit runs share the next one (group commit). What a role has merely learnt takes
its place among the commits, and nothing waits for it. Roles in one host speak by calls, to those in
other processes over links.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from msgspec import structs

from controller.decider import (
    Answer,
    Called,
    Carry,
    Decider,
    Event,
    Fired,
    Linked,
    Output,
    Received,
    Record,
    Role,
    Send,
    Timer,
    ToRole,
    View,
)
from controller.host.linker import Linker
from controller.host.links import Hand, Up
from controller.records import STORY, StoryRecord
from controller.store import Fenced, Store
from protocols.errors import EnvironmentFailure, TonaBug
from protocols.messages.mobility import CellPoint
from protocols.topics import Channel

MAX_EVENTS: Final = 100_000
"""Messages that may wait for one role; one more is dropped and counted. Timers, calls and the
words of other roles are never dropped: nobody repeats them, and each has a bound of its own.
"""
MAX_HELD: Final = 100_000
"""Outputs that may wait for a commit; a store that refuses for so long ends the host."""
MAX_CALLS: Final = 1000
ROUNDS_MAX: Final = 8
"""Times that the roles of a host hear each other in one turn, before the wire is heard again."""
LEARN_S: Final = 0.1
"""What was merely learnt is gathered for so long, unless something else is committed before."""
COMMIT_RETRY_S: Final = 0.5
"""Pause before a refused commit is tried again; nothing is promised meanwhile."""


NOBODY: Final = ""
"""Whose outputs nobody's wait for."""
_SERVING: Final = {
    "node": Role.TS,
    "node.handover": Role.TA,
    "job": Role.TA,
    "task.audit": Role.TS,
    "task.quarantine": Role.TA,
}
"""By the whole of an operation's name, or its first word."""


class Wire(Protocol):
    """Where messages to other processes go."""

    def __call__(self, send: Send, sender: str) -> bool:
        """Send a message of a role; False when the wire cannot take it now."""
        ...


class Carrier(Protocol):
    """Who carries messages of a cell to other cells."""

    def reach(self, cells: Sequence[CellPoint]) -> None:
        """Carry to these cells from now on."""
        ...

    def carry(self, carry: Carry) -> None:
        """Carry after a node that has left."""
        ...

    def follow(self, topics: Sequence[tuple[str, Channel]]) -> None:
        """Bring this of other cells from now on: service and channel of each."""
        ...


class ReadModel(Protocol):
    """Who shows people what is there."""

    def apply(self, records: Iterable[Record], views: Iterable[View]) -> None:
        """Take in what has become durable, and what is only seen."""
        ...


def monotonic_ms() -> int:
    """Return the clock that every lease and timer stands on."""
    return time.monotonic_ns() // 1_000_000


class Host:
    """Runs deciders: `restore`, then `run`, which returns only when it must stop."""

    def __init__(
        self,
        deciders: Sequence[Decider],
        store: Store,
        owner_epoch: int,
        read_model: ReadModel,
        wire: Wire,
        now_ms: Callable[[], int] = monotonic_ms,
        linker: Linker | None = None,
    ) -> None:
        self.carrier: Carrier | None = None
        """Set before `restore` where there are other cells."""
        self.deciders = {one.name: one for one in deciders}
        self.roles: dict[str, Role] = {one.name: one.role for one in deciders}
        self.counters = {"events": 0, "events_dropped": 0, "unsent": 0, "commits": 0}
        self._store = store
        self._owner_epoch = owner_epoch
        self._read_model = read_model
        self._wire = wire
        self._now_ms = now_ms
        self._linker = linker
        self._events: dict[str, deque[Event]] = {one.name: deque() for one in deciders}
        self._held: deque[tuple[str, Output]] = deque()
        self._holding: dict[str, int] = dict.fromkeys((*self.deciders, NOBODY), 0)
        self._timers: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._calls: dict[str, asyncio.Future[Answer]] = {}
        self._call_number = 0
        self.last_failure = ""
        self._turn_due = False
        self._restored = False
        self._commit_wake = asyncio.Event()
        self._learning: asyncio.TimerHandle | None = None
        self._failure: asyncio.Future[None] | None = None

    # From outside.

    def post(self, role: str, event: Event) -> None:
        """Queue a message from outside for a role of this host."""
        if len(self._events[role]) >= MAX_EVENTS:
            self.counters["events_dropped"] += 1
        else:
            self._queue(role, event)

    def handed(self, hand: Hand) -> None:
        """Queue what a role in another process said; the link keeps it within bounds."""
        if hand.own in self._events:
            event = Received(hand.peer, 0, 0, hand.tenant, hand.cause, hand.body)
            self._queue(hand.own, event)

    def linked(self, up: Up) -> None:
        """Tell a role that a link has begun anew."""
        if up.own in self._events:
            self._queue(up.own, Linked(up.peer))

    def _queue(self, role: str, event: Event) -> None:
        self._events[role].append(event)
        # What comes before the roles have their memory back waits for it.
        if self._restored and not self._turn_due:
            self._wake()

    def _wake(self) -> None:
        self._turn_due = True
        asyncio.get_running_loop().call_soon(self._turn)

    async def call(
        self, operation: str, arguments: Any, tenant: str = "default", cause: str = ""
    ) -> Answer:
        """Hand an operation to the role that serves it and wait for its durable answer."""
        wanted = serving(operation)
        role = next((name for name, one in self.roles.items() if one is wanted), None)
        if role is None:
            raise TonaBug(f"no role of this host serves {operation!r}")
        if len(self._calls) >= MAX_CALLS:
            raise EnvironmentFailure("too many operations at once; try again in a moment")
        self._call_number += 1
        call = f"call-{self._call_number}"
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[call] = future
        unix_ms = time.time_ns() // 1_000_000
        self._queue(role, Called(call, operation, arguments, tenant, cause or call, unix_ms))
        try:
            return await future
        finally:
            del self._calls[call]

    def restore(self, records: Sequence[Record]) -> None:
        """Show people what is durable, and give every role its memory back."""
        self._read_model.apply(records, ())
        for name, decider in self.deciders.items():
            self._take(name, decider.restore(records, self._now_ms()))

    async def run(self) -> None:
        """Serve until cancelled.

        Raises Fenced, EnvironmentFailure, or whatever bug a role has tripped over.
        """
        self._failure = asyncio.get_running_loop().create_future()
        committer = asyncio.ensure_future(self._commit_forever())
        try:
            self._restored = True
            self._turn()
            done, _ = await asyncio.wait(
                {committer, self._failure}, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                one.result()
        finally:
            for timer in self._timers.values():
                timer.cancel()
            if self._learning is not None:
                self._learning.cancel()
            committer.cancel()
            self._failure.cancel()
            for future in self._calls.values():
                future.cancel()
            await asyncio.gather(committer, return_exceptions=True)

    # A turn.

    def _turn(self) -> None:
        # What the roles of this host say to each other meanwhile is heard in the same turn.
        self._turn_due = True
        now_ms = self._now_ms()
        try:
            for _ in range(ROUNDS_MAX):
                for name, queue in self._events.items():
                    if queue:
                        batch = list(queue)
                        queue.clear()
                        self.counters["events"] += len(batch)
                        self._take(name, self.deciders[name].handle(batch, now_ms))
                if not any(self._events.values()):
                    break
            self._turn_due = False
            if any(self._events.values()):
                self._wake()
        except Exception as bug:  # noqa: BLE001 - a role cut short is a bug of ours, whatever it raised
            if self._failure is not None and not self._failure.done():
                self._failure.set_exception(bug)

    def _take(self, role: str, output: Output) -> None:
        """Let an output out, or hold it until its records, or those before it, are durable."""
        for send in output.early:
            self._send(role, send)
        if self.carrier is not None:
            for carry in output.carries:
                self.carrier.carry(carry)
        if output.records:
            output.records = [_dated(record) for record in output.records]
        if output.learnt:
            # Before what this output or a later one makes durable of the same things.
            self._hold(NOBODY, Output(records=output.learnt))
            self._learn_soon()
        if output.records or self._holding[role]:
            self._hold(role, output)
            self._commit_wake.set()
        else:
            self._let_out(role, output)

    def _hold(self, role: str, output: Output) -> None:
        if len(self._held) >= MAX_HELD:
            raise EnvironmentFailure(f"the store has taken nothing for long: {self.last_failure}")
        self._holding[role] += 1
        self._held.append((role, output))

    def _learn_soon(self) -> None:
        if self._learning is None:
            loop = asyncio.get_running_loop()
            self._learning = loop.call_later(LEARN_S, self._commit_wake.set)

    def _let_out(self, role: str, output: Output) -> None:
        if output.records or output.views:
            self._read_model.apply(output.records, output.views)
        for timer in output.timers:
            self._set(role, timer)
        if self.carrier is not None and output.reach is not None:
            self.carrier.reach(output.reach)
        if self.carrier is not None and output.follows is not None:
            self.carrier.follow(output.follows)
        for send in output.sends:
            self._send(role, send)
        for answer in output.answers:
            future = self._calls.get(answer.call)
            if future is not None and not future.done():
                future.set_result(answer)

    def _send(self, role: str, send: Send) -> None:
        if isinstance(send.to, ToRole) and send.to.role in self._events:
            event = Received(role, 0, 0, send.tenant, send.cause, send.body)
            self._queue(send.to.role, event)
        elif isinstance(send.to, ToRole) and self._linker is not None:
            self._linker.say(role, send.to.role, send.tenant, send.cause, send.body)
        elif not self._wire(send, role):
            # Whoever has promised something repeats it; the wire promises nothing.
            self.counters["unsent"] += 1

    def _set(self, role: str, timer: Timer) -> None:
        old = self._timers.pop((role, timer.key), None)
        if old is not None:
            old.cancel()
        if timer.at_ms is not None:
            delay_s = max(0, timer.at_ms - self._now_ms()) / 1000
            self._timers[role, timer.key] = asyncio.get_running_loop().call_later(
                delay_s, self._fire, role, timer.key
            )

    def _fire(self, role: str, key: str) -> None:
        self._timers.pop((role, key), None)
        self._queue(role, Fired(key))

    # Commits.

    async def _commit_forever(self) -> None:
        while True:
            await self._commit_wake.wait()
            self._commit_wake.clear()
            if self._learning is not None:
                self._learning.cancel()
                self._learning = None
            while self._held:
                batch = list(self._held)
                records = [record for _, output in batch for record in output.records]
                if records:
                    await self._commit(records)
                for role, output in batch:
                    self._held.popleft()
                    self._holding[role] -= 1
                    self._let_out(role, output)
                if not any(self._holding[role] for role in self.deciders):
                    # What has been learnt meanwhile is gathered again.
                    break

    async def _commit(self, records: list[Record]) -> None:
        while True:
            try:
                await self._store.append(self._owner_epoch, None, records)
            except Fenced:
                raise
            except EnvironmentFailure as failure:
                self.counters["commit_failures"] = self.counters.get("commit_failures", 0) + 1
                self.last_failure = str(failure)
                await asyncio.sleep(COMMIT_RETRY_S)
            else:
                self.counters["commits"] += 1
                self.last_failure = ""
                return


def _dated(record: Record) -> Record:
    """Return an entry of a story with the wall clock's time, for people."""
    value = record.value
    if record.kind == STORY and isinstance(value, StoryRecord) and not value.unix_ms:
        dated = structs.replace(value, unix_ms=time.time_ns() // 1_000_000)
        return structs.replace(record, value=dated)
    return record


def serving(operation: str) -> Role:
    """Return which role serves an operation: nodes the TS, jobs the TA, all else NAMO."""
    return _SERVING.get(operation) or _SERVING.get(operation.partition(".")[0], Role.NAMO)
