"""A host of roles on fake time: what `controller.host` does with asyncio, without it.

Commits take a simulated while and may be cut short by a crash: what was not committed is gone, and
nothing that depended on it had left. Roles of other processes are reached over the production's
links, whose frames cross the simulated network as everything else does.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Final

from msgspec import Struct

from controller.config import Config
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
    Role,
    Send,
    Timer,
    ToInvoke,
    ToNode,
    ToRole,
    ToTopic,
)
from controller.host import links
from controller.host.host import COMMIT_RETRY_S, NOBODY, ROUNDS_MAX
from controller.host.relay import Relay
from controller.host.routing import (
    heard_directly,
    inboxes,
    received,
    role_of,
    subscriptions,
    topic_of,
)
from controller.roles import deciders, elsewhere
from controller.twin.checkers import Checkers
from controller.twin.network import TOPICS_KEPT, Network, parsed, topic_at
from controller.twin.node import CrashPoint
from controller.twin.store import SimStore, StoreFull
from controller.twin.world import Clock, World
from protocols.codec import VERSION, Frame
from protocols.errors import UnknownTopic
from protocols.messages import Linking
from protocols.topics import Channel, Party, Topic

TURN_MS: Final = 0.5
"""From an event to the turn that handles it, with all that has come meanwhile."""
COMMIT_MS: Final = 2.0
COMMIT_AGAIN_MS: Final = COMMIT_RETRY_S * 1000
OPENING_BITS: Final = 20
"""Openings of links within one life of a process, as in the real one."""


_topic_of = lru_cache(TOPICS_KEPT)(topic_of)


class Places(Struct, frozen=True):
    """The brokers that a process is connected to."""

    home: Network
    uplink: Network
    """Where the roles of several processes meet."""
    direct: Mapping[str, Network]
    """Those whose nodes its TA hears itself, by cell."""
    cells: Mapping[str, Network] = {}
    """All there are, by cell: the relay carries to those in reach."""

    def all(self) -> list[Network]:
        """Return each once."""
        found = [self.home, self.uplink, *self.direct.values()]
        return list({one.cell: one for one in found}.values())


class SimHost:
    """Runs deciders in a simulated process that can be killed and started again."""

    record_first = True
    """The order that protects: False lets words out before their records are durable."""

    def __init__(
        self,
        config: Config,
        world: World,
        places: Places,
        store: SimStore,
        checkers: Checkers,
        clock: Clock,
    ) -> None:
        self.name = config.name
        self.config = config
        self.world = world
        self.places = places
        self.network = places.home
        self.store = store
        self.checkers = checkers
        self.clock = clock
        self.answers: dict[str, Answer] = {}
        self.deciders: dict[str, Decider] = {}
        self.roles: dict[str, Role] = {}
        self.alive = False
        self.crash: CrashPoint | None = None
        self.lag_ms = 0
        """How late it handles what has come: a slow consumer."""
        self._life = 0
        self._events: dict[str, deque[Event]] = {}
        self._held: deque[tuple[str, Output]] = deque()
        self._holding: dict[str, int] = {}
        """How many outputs of a role are held, by role."""
        self._timers: dict[tuple[str, str], int] = {}
        self._turn_due = False
        self._committing = False
        self._number = 0
        self._calls = 0
        self.relay = Relay(places.home.cell)
        self.overhear: Callable[[str, Send], None] = lambda *_: None
        """Told of every word of a role before it leaves; the process may die of it."""
        self._links = links.Links(1)
        self._links_due_ms: int | None = None
        self._cells: dict[str, str] = {}
        """Of nodes that were heard directly."""

    # Life.

    def start(self) -> None:
        """Start the process: restore every role from the store; nothing when it runs already."""
        if self.alive:
            return
        self.store.epoch += 1
        self._life += 1
        self.alive = True
        self.world.note(f"{self.name} starts")
        broker_url = f"mqtt://127.0.0.1/{self.config.cell}"
        made = deciders(self.config, self.store.epoch, (), broker_url=broker_url)
        self.deciders = {one.name: one for one in made}
        self.roles = {one.name: one.role for one in made}
        self._events = {name: deque() for name in self.deciders}
        self._holding = dict.fromkeys((*self.deciders, NOBODY), 0)
        self._held.clear()
        self._timers.clear()
        self._turn_due = self._committing = False
        opening = self.store.epoch << OPENING_BITS | self.world.dice.randrange(1 << 19)
        self._links, self._links_due_ms = links.Links(opening), None
        self._subscribe()
        records = list(self.store.current.values())
        anchors = self.config.anchors or (self.config.ta,)
        for name, decider in self.deciders.items():
            self.checkers.role_started(name, self.roles[name], records, anchors)
            self._take(name, decider.restore(records, int(self.clock.now_ms)))
        for own, peer in elsewhere(self.config):
            self._link(links.Open(own, peer))

    def _subscribe(self) -> None:
        home, uplink = self.places.home, self.places.uplink
        for text in subscriptions(home.cell, self.roles):
            home.listen_filter(self.name, text, self._hear)
        for text in inboxes(uplink.cell, self.roles):
            uplink.listen_filter(self.name, text, self._hear_link)
        self.relay = Relay(home.cell)
        for cell, network in self.places.direct.items():
            for text in heard_directly(cell):
                network.listen_filter(f"{self.name}/ta", text, self._hear_directly)

    def kill(self) -> None:
        """End the process at once: what was not committed or sent is gone."""
        if not self.alive:
            return
        self.world.note(f"{self.name} dies")
        self.alive = False
        self._life += 1
        self.crash = None
        for network in self.places.all():
            network.leave(self.name)
            network.leave(f"{self.name}/ta")
            network.leave(f"{self.name}/relay")

    def crash_now(self, down_ms: int) -> None:
        """Die, and be started again."""
        self.kill()
        self.world.after(down_ms, self.start)

    def call(self, operation: str, arguments: Struct) -> str:
        """Hand an operation to its role; the answer appears in `answers` under the result."""
        self._calls += 1
        call = f"call-{self._calls}"
        wanted = Role.TS if operation.startswith("node.") else Role.NAMO
        role = next((name for name, one in self.roles.items() if one is wanted), None)
        if self.alive and role is not None:
            event = Called(call, operation, arguments, "default", call, self.clock.unix_ms)
            self.post(role, event)
        return call

    # What comes.

    def _hear(self, topic: Topic, frame: Frame) -> None:
        role = role_of(topic, self.roles)
        if role is not None:
            self.post(role, received(frame))

    def _hear_directly(self, topic: Topic, frame: Frame) -> None:
        role = next((name for name, one in self.roles.items() if one is Role.TA), None)
        if role is not None:
            self._cells[topic.name] = topic.cell
            self.post(role, received(frame))

    def _hear_link(self, topic: Topic, frame: Frame) -> None:
        if isinstance(frame.body, Linking):
            self._link(links.Hear(topic.name, frame.sender, frame.body))

    def wired(self) -> None:
        """Take note that a broker is reached again."""
        if self.alive:
            self._link(links.Wired())

    def _link(self, event: links.Event) -> None:
        """Tell the links something and do what they answer."""
        now_ms = int(self.clock.now_ms)
        for command in self._links.handle(event, now_ms):
            match command:
                case links.Dispatch(own=own, frame=frame):
                    cell = self.places.uplink.cell
                    topic = topic_at(cell, Party.ROLE, frame.receiver, Channel.INBOX)
                    self._number += 1
                    wrapped = Frame(
                        VERSION, own, self._life, self._number, "default", "link", frame
                    )
                    self.places.uplink.publish(self.name, topic, wrapped)
                case links.Hand(own=own, peer=peer, tenant=tenant, cause=cause, body=body):
                    self.post(own, Received(peer, 0, 0, tenant, cause, body))
                case links.Up(own=own, peer=peer):
                    self.post(own, Linked(peer))
        due_ms = self._links.due_ms
        if due_ms is not None and (self._links_due_ms is None or due_ms < self._links_due_ms):
            self._links_due_ms = due_ms
            self._later(self.clock.wait_ms(due_ms), partial(self._link_due, due_ms))

    def _link_due(self, due_ms: int) -> None:
        if self._links_due_ms == due_ms:
            self._links_due_ms = None
            self._link(links.Due())

    # Turns, as the real host does them.

    def post(self, role: str, event: Event) -> None:
        """Queue an event for a role."""
        self._events[role].append(event)
        if not self._turn_due:
            self._turn_due = True
            self._later(TURN_MS + self.lag_ms, self._turn)

    def _later(self, delay_ms: float, action: Callable[[], None]) -> None:
        """Do something later unless this life of the process is over by then."""
        self.world.after(delay_ms, partial(self._unless_over, self._life, action))

    def _unless_over(self, life: int, action: Callable[[], None]) -> None:
        if self._life == life:
            action()

    def _turn(self) -> None:
        now_ms = int(self.clock.now_ms)
        for _ in range(ROUNDS_MAX):
            for name, queue in self._events.items():
                if queue:
                    batch = list(queue)
                    queue.clear()
                    output = self.deciders[name].handle(batch, now_ms)
                    self.checkers.decided(self.deciders[name], batch, output)
                    self._take(name, output)
            if not any(self._events.values()):
                break
        self._turn_due = any(self._events.values())
        if self._turn_due:
            self._later(TURN_MS, self._turn)

    def _take(self, role: str, output: Output) -> None:
        self.checkers.hurried(output)
        for send in output.early:
            self._send(role, send)
        if output.carries:
            self._carry(output.carries)
        if output.learnt:
            self._hold(NOBODY, Output(records=output.learnt))
        if output.records or self._holding[role]:
            self._hold(role, output)
            if not self.record_first:
                self._let_out(role, output)
        else:
            self._let_out(role, output)

    def _hold(self, role: str, output: Output) -> None:
        self._holding[role] += 1
        self._held.append((role, output))
        if not self._committing:
            self._committing = True
            self._later(COMMIT_MS, self._commit)

    def _commit(self) -> None:
        """Make what has gathered durable, then let it out; a crash may come before or after."""
        batch = list(self._held)
        records = [record for _, output in batch for record in output.records]
        point, self.crash = self.crash, None
        if point is not None and self._lost_in(point):
            self.crash_now(point.down_ms)
            return
        try:
            self.store.append(records)
        except StoreFull:
            self.crash = point
            self._later(COMMIT_AGAIN_MS, self._commit)
            return
        if point is not None:
            self.crash_now(point.down_ms)
            return
        self._committing = False
        self._held.clear()
        self._holding = dict.fromkeys((*self.deciders, NOBODY), 0)
        for role, output in batch:
            if self.record_first:
                self._let_out(role, output)

    def _lost_in(self, point: CrashPoint) -> bool:
        self.checkers.counts[f"crash {point.when} commit"] += 1
        return point.lost(self.world.dice)

    def _let_out(self, role: str, output: Output) -> None:
        self.checkers.said(output)
        for timer in output.timers:
            self._set(role, timer)
        if output.reach is not None:
            self.relay.reach(one.cell for one in output.reach)
            self._carry(())
        for send in output.sends:
            self._send(role, send)
            if not self.alive:
                return
        for answer in output.answers:
            self.answers[answer.call] = answer

    def _set(self, role: str, timer: Timer) -> None:
        key = (role, timer.key)
        self._timers[key] = turn = self._timers.get(key, 0) + 1
        if timer.at_ms is not None:
            self._later(self.clock.wait_ms(timer.at_ms), partial(self._fire, key, turn))

    def _fire(self, key: tuple[str, str], turn: int) -> None:
        if self._timers.get(key) == turn:
            role, name = key
            self.post(role, Fired(name))

    # What leaves.

    def _carry(self, carries: Sequence[Carry]) -> None:
        """Carry to other cells as `controller.lines` does."""
        for carry in carries:
            self.relay.carry(carry, int(self.clock.now_ms))
        for text in self.relay.filters():
            self.places.home.listen_filter(f"{self.name}/relay", text, self._hear_foreign)

    def _hear_foreign(self, topic: Topic, frame: Frame) -> None:
        self.relay.expire(int(self.clock.now_ms))
        onward = self.relay.onward(topic, frame.body)
        network = self.places.cells.get(onward.cell) if onward is not None else None
        if onward is not None and network is not None:
            network.publish(self.name, onward, frame)

    def _send(self, role: str, send: Send) -> None:
        self.overhear(role, send)
        if not self.alive:
            return
        if isinstance(send.to, ToRole):
            peer = send.to.role
            if self.world.traced:
                self.world.explain(f"{role} to {peer}: {send.body!r}"[:600])
            if peer in self._events:
                self.post(peer, Received(role, 0, 0, send.tenant, send.cause, send.body))
            else:
                self._link(links.Say(role, peer, send.tenant, send.cause, send.body))
            return
        network = self._network_of(role, send)
        topic = _topic_of(network.cell, send.to) if network is not None else None
        if network is None or topic is None:
            return
        self._number += 1
        frame = Frame(VERSION, role, self._life, self._number, send.tenant, send.cause, send.body)
        network.publish(self.name, topic, frame)

    def _network_of(self, role: str, send: Send) -> Network | None:
        """Return at which broker a message is said, as `controller.lines` chooses."""
        home, direct = self.places.home, self.places.direct
        match send.to:
            case ToNode(node=node) | ToInvoke(node=node, cell="") if self.roles[role] is Role.TA:
                return direct.get(self._cells.get(node, ""), home)
            case ToInvoke(cell=cell) if cell:
                return self._network_at(cell)
            case ToTopic(topic=text):
                return self._network_at(_cell_of(text))
        return home

    def _network_at(self, cell: str) -> Network | None:
        home = self.places.home
        reached = self.places.cells.get(cell) if cell in self.relay.cells else None
        return home if cell == home.cell else reached or self.places.direct.get(cell)


def _cell_of(topic: str) -> str:
    try:
        return parsed(topic).cell
    except UnknownTopic:
        return ""
