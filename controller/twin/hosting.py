"""A host of roles on fake time: what `controller.host` does with asyncio, without it.

Commits take a simulated while and may be cut short by a crash: what was not committed is gone, and
nothing that depended on it had left.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Struct

from controller.decider import (
    Answer,
    Called,
    Decider,
    Event,
    Fired,
    Output,
    Received,
    Record,
    Role,
    Send,
    Timer,
    ToRole,
)
from controller.host.routing import received, role_of, topic_of
from controller.twin.world import Network, World
from protocols.codec import VERSION, Frame
from protocols.topics import Channel, Party, Topic, build

COMMIT_MS: Final = 2


class SimStore:
    """The newest state of every record; survives the crash of its host."""

    def __init__(self) -> None:
        self.current: dict[tuple[str, str], Record] = {}
        self.epoch = 0

    def append(self, records: Sequence[Record]) -> None:
        """Take in a committed batch."""
        for record in records:
            if record.value is None:
                self.current.pop((record.kind, record.key), None)
            else:
                self.current[record.kind, record.key] = record


class SimHost:
    """Runs deciders in a simulated process that can be killed and started again."""

    def __init__(
        self,
        name: str,
        cell: str,
        world: World,
        network: Network,
        store: SimStore,
        make: Callable[[int], list[Decider]],
    ) -> None:
        self.name = name
        self.cell = cell
        self.world = world
        self.network = network
        self.store = store
        self.answers: dict[str, Answer] = {}
        self.deciders: dict[str, Decider] = {}
        self.roles: dict[str, Role] = {}
        self.alive = False
        self._make = make
        self._life = 0
        self._events: dict[str, deque[Event]] = {}
        self._held: deque[tuple[str, Output]] = deque()
        self._timers: dict[tuple[str, str], int] = {}
        self._turn_due = False
        self._committing = False
        self._number = 0
        self._calls = 0

    # Life.

    def start(self) -> None:
        """Start the process: restore every role from the store."""
        self.store.epoch += 1
        self._life += 1
        self.alive = True
        deciders = self._make(self.store.epoch)
        self.deciders = {one.name: one for one in deciders}
        self.roles = {one.name: one.role for one in deciders}
        self._events = {name: deque() for name in self.deciders}
        self._held.clear()
        self._timers.clear()
        self._turn_due = self._committing = False
        for channel in (Channel.PRESENCE, Channel.LOAD, Channel.LINK, Channel.STATUS):
            family = build(self.cell, Party.NODE, "any", channel)
            self.network.listen_family(self.name, family, self._hear)
        request = build(self.cell, Party.SERVICE, "any", Channel.REQUEST)
        self.network.listen_family(self.name, request, self._hear)
        records = list(self.store.current.values())
        for name, decider in self.deciders.items():
            self._take(name, decider.restore(records, self.world.now_ms))

    def kill(self) -> None:
        """End the process at once: what was not committed or sent is gone."""
        self.alive = False
        self._life += 1
        self.network.leave(self.name)

    def call(self, operation: str, arguments: Struct) -> str:
        """Hand an operation to its role; the answer appears in `answers` under the result."""
        self._calls += 1
        call = f"call-{self._calls}"
        if not self.alive:
            return call
        wanted = Role.TS if operation.startswith("node.") else Role.NAMO
        role = next(name for name, one in self.roles.items() if one is wanted)
        event = Called(call, operation, arguments, "default", call, self.world.now_ms)
        self.post(role, event)
        return call

    # Turns, as the real host does them.

    def _hear(self, topic: Topic, frame: Frame) -> None:
        role = role_of(topic, self.roles)
        if role is not None:
            self.post(role, received(frame))

    def post(self, role: str, event: Event) -> None:
        """Queue an event for a role."""
        self._events[role].append(event)
        if not self._turn_due:
            self._turn_due = True
            self._later(0, self._turn)

    def _later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something later unless this life of the process is over by then."""
        life = self._life

        def run() -> None:
            if self._life == life:
                action()

        self.world.after(delay_ms, run)

    def _turn(self) -> None:
        self._turn_due = False
        for name, queue in self._events.items():
            if queue:
                batch = list(queue)
                queue.clear()
                self._take(name, self.deciders[name].handle(batch, self.world.now_ms))

    def _take(self, role: str, output: Output) -> None:
        if output.records or any(name == role for name, _ in self._held):
            self._held.append((role, output))
            if not self._committing:
                self._committing = True
                self._later(COMMIT_MS, self._commit)
        else:
            self._let_out(role, output)

    def _commit(self) -> None:
        self._committing = False
        batch = list(self._held)
        self._held.clear()
        self.store.append([record for _, output in batch for record in output.records])
        for role, output in batch:
            self._let_out(role, output)

    def _let_out(self, role: str, output: Output) -> None:
        for timer in output.timers:
            self._set(role, timer)
        for send in output.sends:
            self._send(role, send)
        for answer in output.answers:
            self.answers[answer.call] = answer

    def _set(self, role: str, timer: Timer) -> None:
        key = (role, timer.key)
        self._timers[key] = turn = self._timers.get(key, 0) + 1
        if timer.at_ms is None:
            return

        def fire() -> None:
            if self._timers.get(key) == turn:
                self.post(role, Fired(timer.key))

        self._later(max(0, timer.at_ms - self.world.now_ms), fire)

    def _send(self, role: str, send: Send) -> None:
        if isinstance(send.to, ToRole) and send.to.role in self._events:
            event = Received(role, 0, 0, send.tenant, send.cause, send.body)
            self.post(send.to.role, event)
            return
        topic = topic_of(self.cell, send.to)
        if topic is None:
            return
        self._number += 1
        frame = Frame(VERSION, role, self._life, self._number, send.tenant, send.cause, send.body)
        self.network.publish(self.name, topic, frame)
