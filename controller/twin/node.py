"""A simulated node: the device agent's own core, its connection, its journal and its death.

It does what the daemon does: commands after a journal entry wait until that is durable, a node
without a connection tries again with jitter, the broker publishes its will. Executors and sensors
are in `controller.twin.hands`.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

from msgspec import Struct

from controller.twin.checkers import Checkers
from controller.twin.hands import Hands, Shape
from controller.twin.journal import JOURNALLED, DiskFull, SimJournal, changes_of, subjects
from controller.twin.network import Network, parsed, topic_at
from controller.twin.world import Clock, World
from device_agent.core import commands, events
from device_agent.core.core import Core
from protocols.codec import VERSION, Frame
from protocols.messages import Body, Death, Probe, Status
from protocols.topics import TABLE, Channel, Party, Topic, build

WRITE_MS: Final = 1
"""What a journal write takes."""
TORN_SHARE: Final = 0.5
"""Of the crashes within a write, those that leave nothing of it."""
WILL_MS: Final = 5
START_AGAIN_MS: Final = 1000
"""A daemon that cannot open its journal is started again after this."""
CONNECT_AGAIN_MS: Final = (100, 600)


class CrashPoint(Struct, frozen=True):
    """Where a process is to die: at its next durable step."""

    when: str
    """`before` the write, `after` it and before what depends on it, or `torn` within it."""
    down_ms: int

    def lost(self, dice: Random) -> bool:
        """Whether what was to be written is gone."""
        return self.when == "before" or (self.when == "torn" and dice.random() < TORN_SHARE)


class SimNode:
    """One device: a core that can be killed, restarted and cut off."""

    journal_first = True
    """The order that protects: False lets words out before what they rest on is durable."""

    def __init__(
        self,
        name: str,
        world: World,
        network: Network,
        shape: Shape,
        checkers: Checkers,
        clock: Clock,
    ) -> None:
        self.name = name
        self.world = world
        self.network = network
        self.clock = clock
        self.journal = SimJournal()
        self.checkers = checkers
        self.hands = Hands(self, shape)
        self.alive = False
        self.connected = False
        self.wanted = True
        """Whether it shall run: a node that ended in order stays down until it is started."""
        self.crash: CrashPoint | None = None
        self.lag_ms = 0
        """How late it handles what it hears: a slow consumer."""
        self._inbox: deque[tuple[float, events.Event]] = deque()
        self._incarnation = 0
        self._life = 0
        self._number = 0
        self._wake_ms: float | None = None
        self._unwritten: list[commands.Command] = []
        self._core: Core | None = None
        self._topics = {
            channel: build(network.cell, Party.NODE, name, channel)
            for channel in Channel
            if (Party.NODE, channel) in TABLE
        }

    @property
    def core(self) -> Core:
        """The running core. Raises RuntimeError when there is none."""
        if self._core is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._core

    @property
    def incarnation(self) -> int:
        """Of the last connection."""
        return self._incarnation

    # Life.

    def start(self) -> None:
        """Boot: restore the journal, connect; nothing when it runs already."""
        if self.alive or not self.wanted:
            return
        self._life += 1
        try:
            self._incarnation = self.journal.reserve(self.clock.unix_ms)
        except DiskFull:
            self.later(START_AGAIN_MS, self.start)
            return
        self.alive = True
        self._wake_ms = None
        self._unwritten.clear()
        self._inbox.clear()
        self.hands.begin()
        self.world.note(f"{self.name} starts")
        self._core = self.make_core()
        self.checkers.node_started(self.name)
        self.tell(self.journal.restored(self._incarnation))
        self._connect()

    def make_core(self) -> Core:
        """Return a core without memory."""
        return Core(
            node=self.name,
            agent_version="sim",
            boot_id=f"boot-{self._life}",
            inventory=self.hands.inventory,
            cell=self.network.cell,
        )

    def kill(self) -> None:
        """End the process at once; the broker says its will."""
        if not self.alive:
            return
        self.world.note(f"{self.name} dies")
        self._end()
        self._hang_up(WILL_MS)

    def crash_now(self, down_ms: int) -> None:
        """Die, and be started again."""
        self.kill()
        self.world.after(down_ms, self.start)

    def shut_down(self) -> None:
        """Ask the daemon to end in order."""
        if self.alive:
            self.tell(events.ShutDown("asked to"))

    def _end(self) -> None:
        self._core, self.alive = None, False
        self._life += 1
        self.crash = None

    def later(self, delay_ms: float, action: Callable[[], None]) -> None:
        """Do something later unless this life is over by then."""
        self.world.after(delay_ms, partial(self._unless_over, self._life, action))

    def _unless_over(self, life: int, action: Callable[[], None]) -> None:
        if life == self._life:
            action()

    # The connection.

    def _connect(self) -> None:
        if not self.alive or self.connected:
            return
        if not self.network.reachable(self.name):
            self.later(self.world.dice.randint(*CONNECT_AGAIN_MS), self._connect)
            return
        self.connected = True
        self._incarnation += 1
        self._number = 0
        for channel in (Channel.COMMAND, Channel.INVOKE):
            self.network.listen(self.name, self._topics[channel], self._hear)
        self.tell(events.Connected(self._incarnation, self.world.dice.random()))

    def lose_connection(self, will_ms: int | None = WILL_MS) -> None:
        """Have the connection end under a living node; it connects again."""
        if self.connected:
            self._hang_up(will_ms)
            if self.alive:
                self.tell(events.Disconnected("the connection was lost"))
                self.later(self.world.dice.randint(*CONNECT_AGAIN_MS), self._connect)

    def _hang_up(self, will_ms: int | None) -> None:
        """Leave the broker, which publishes the will; None: it does not."""
        if self.connected:
            self.connected = False
            self.network.leave(self.name)
            if will_ms is not None:
                self.will(will_ms)

    def will(self, delay_ms: int) -> None:
        """Have the broker publish the will of the newest connection, whatever became of it."""
        death = partial(self._say_will, self._incarnation)
        self.world.after(delay_ms, death)

    def _say_will(self, incarnation: int) -> None:
        frame = Frame(
            VERSION, self.name, incarnation, 0, "default", "will", Death("the connection was lost")
        )
        self.network.publish(self.name, self._topics[Channel.PRESENCE], frame, by_broker=True)

    # Events in, commands out.

    def _hear(self, topic: Topic, frame: Frame) -> None:
        self._take_in(topic, frame, "")

    def _take_in(self, topic: Topic, frame: Frame, cell: str) -> None:
        event = events.Received(
            topic.channel,
            frame.sender,
            frame.incarnation,
            frame.number,
            frame.tenant,
            frame.cause,
            frame.body,
            cell=cell,
        )
        if not self.lag_ms and not self._inbox:
            self.tell(event)
            return
        self._inbox.append((self.world.now_ms + self.lag_ms, event))
        if len(self._inbox) == 1:
            self.later(self.lag_ms, self._take_late)

    def _hear_service(self, topic: Topic, frame: Frame) -> None:
        self.tell(events.Published(topic.name, topic.channel, frame.body))

    def _take_late(self) -> None:
        _, event = self._inbox.popleft()
        if self._inbox:
            self.later(max(0, self._inbox[0][0] - self.world.now_ms), self._take_late)
        self.tell(event)

    def tell(self, event: events.Event) -> None:
        """Hand the core an event and do what it answers."""
        core = self._core
        if core is None:
            return
        for command in core.handle(event, self.clock.now_ms):
            waits = bool(self._unwritten) and self.journal_first
            if waits or isinstance(command, JOURNALLED):
                if not self._unwritten:
                    self.later(WRITE_MS, self._write)
                self._unwritten.append(command)
            else:
                self.act(command)
        if self._core is not None:
            due_ms = self._core.next_due_ms
            if due_ms is not None and (self._wake_ms is None or due_ms < self._wake_ms):
                self._wake_ms = due_ms
                self.later(self.clock.wait_ms(due_ms), partial(self._tick, due_ms))

    def _tick(self, due_ms: float) -> None:
        if self._wake_ms == due_ms:
            self._wake_ms = None
            self.tell(events.Tick())

    def _write(self) -> None:
        """Make the changes of this turn durable, then do what waited for that."""
        waited, self._unwritten = self._unwritten, []
        changes = changes_of(waited)
        point, self.crash = self.crash, None
        if point is not None and self._lost_in(point):
            self.crash_now(point.down_ms)
            return
        refused: list[tuple[str, int]] = []
        try:
            self.journal.write(changes)
        except DiskFull:
            refused = list(subjects(changes))
            for task, epoch in refused:
                self.checkers.unwritten(self.name, task, epoch)
        else:
            self.checkers.journalled(self.name, changes)
        if point is not None:
            self.crash_now(point.down_ms)
            return
        for command in waited:
            if not isinstance(command, JOURNALLED):
                self.act(command)
        for task, epoch in refused:
            self.tell(events.JournalFailed(task, epoch, "the disk is full"))

    def _lost_in(self, point: CrashPoint) -> bool:
        self.checkers.counts[f"crash {point.when} journal"] += 1
        return point.lost(self.world.dice)

    def act(self, command: commands.Command) -> None:
        """Do what a command says: speech here, work in the hands."""
        match command:
            case commands.Attach() | commands.Serve() | commands.Renew() | commands.Detach():
                self._move(command)
            case commands.Follow(service=service, channel=channel):
                topic = build(self.network.cell, Party.SERVICE, service, channel)
                self.network.listen(self.name, topic, self._hear_service)
            case commands.Unfollow(service=service, channel=channel):
                topic = build(self.network.cell, Party.SERVICE, service, channel)
                self.network.unlisten(self.name, topic)
            case commands.Exit():
                self.later(0, self._exit)
            case _:
                if not self._spoken(command):
                    self.hands.act(command)

    def _move(self, command: commands.Command) -> None:
        """Ignore what it has no radio for: it has one attachment, which its shell keeps."""

    def _spoken(self, command: commands.Command) -> bool:
        """Say what a command says; returns whether it is speech."""
        here = self.network.cell
        match command:
            case commands.Say(channel=channel, body=body, cause=cause, cell=cell):
                if isinstance(body, Status):
                    self.checkers.announced(self.name, body, self.journal.epoch(body.task))
                if not isinstance(body, Probe):
                    topic = topic_at(cell or here, Party.NODE, self.name, channel)
                    self._say_at(topic, body, cause)
            case commands.Forward(node=node, body=body, cause=cause, cell=cell):
                topic = topic_at(cell or here, Party.NODE, node, Channel.INVOKE)
                self._say_at(topic, body, cause)
            case commands.Reply(topic=text, body=body, cause=cause):
                self._say_at(parsed(text), body, cause)
            case commands.Publish(service=service, body=body, cause=cause):
                self._say_at(build(here, Party.SERVICE, service, Channel.OUTPUT), body, cause)
            case _:
                return False
        return True

    def _exit(self) -> None:
        self._end()
        self._hang_up(None)

    def _say_at(self, topic: Topic, body: Body, cause: str) -> None:
        if not self.connected:
            return
        self._number += 1
        frame = Frame(
            VERSION, self.name, self._incarnation, self._number, "default", cause[:128], body
        )
        self.network.publish(self.name, topic, frame)
