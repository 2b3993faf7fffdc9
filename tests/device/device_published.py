"""A node that goes from cell to cell while others publish what it takes in: seeded, on fake time.

The node's core, the relays and what gateways keep are the production's; brokers and time are the
twin's. Schedulers are reduced to what they say of an arrival: welcome, feeds, what is followed.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Final

from device_harness import INVENTORY, NODE, assign, chain, manifest, tensor
from msgspec import Struct, structs

from controller.host.missed import KEPT_MS, Late, Lately
from controller.host.relay import FOLLOWED, Relay
from controller.twin.network import Network, Weather, topic_at
from controller.twin.world import Clock, World
from device_agent.core import commands, events
from device_agent.core.core import Core
from protocols.codec import VERSION, Frame
from protocols.manifest import Dtype
from protocols.messages import (
    Birth,
    Body,
    CatchUp,
    Death,
    Feed,
    HandoverCommand,
    HandoverComplete,
    Invoke,
    LinkReport,
    Neighbours,
    Welcome,
)
from protocols.messages.mobility import CellPoint
from protocols.messages.quality import Source, SourceKind
from protocols.topics import Channel, Party, Topic, build

CELLS: Final = ("a", "b", "c")
HEARD_MS: Final = 500
"""Who is attached so long has been handed what was kept, however the brokers of a run delay."""


class Shape(Struct, frozen=True):
    """What a run draws from."""

    handovers: int = 20
    stay_ms: tuple[float, float] = (50, 5000)
    switch_ms: tuple[float, float] = (10, 600)
    delay_ms: tuple[float, float] = (1, 50)
    """Of brokers; the upper bound of each is drawn anew every five handovers."""
    scheduler_ms: tuple[float, float] = (5, 500)
    """Until a scheduler does its next thing."""
    period_ms: tuple[float, float] = (20, 200)
    topics: int = 3
    lost_share: float = 0.0
    """Of the handovers, those that a lost link begins."""
    deaf_ms: tuple[float, float] = (0, 5000)
    """So long nothing comes before a lost link is noticed."""
    radios: int = 1
    double_share: float = 0.0
    restart_share: float = 0.0
    """Of the stays, those in which a gateway begins anew."""
    restarts: str = "next"
    """Which one: `next`, where the node is, or `any`."""
    settle_ms: float = 15_000


def point(cell: str) -> CellPoint:
    return CellPoint(cell, f"ts-{cell}", (f"mqtt://127.0.0.1:{ord(cell)}",), (f"http://{cell}",))


class Gateway:
    """What `controller.lines` does with published values, and a scheduler's few words."""

    def __init__(self, play: "Play", cell: str) -> None:
        self.play, self.cell = play, cell
        self.clock = Clock.drawn(play.world, 0.01)
        self.here = False
        self.number = 0
        self.highest = 0
        self.begin()
        presence = f"tona/1/{cell}/node/+/{Channel.PRESENCE}"
        play.brokers[cell].listen_filter(f"ts-{cell}", presence, self._born)

    @property
    def now_ms(self) -> int:
        return int(self.clock.now_ms)

    def begin(self) -> None:
        self.relay, self.lately = Relay(self.cell), Lately(self.cell)
        self.relay.reach(CELLS)
        self.follow()

    def restart(self) -> None:
        """Lose what is in memory; the scheduler's records stand."""
        self.relay = Relay(self.cell)
        for broker in self.play.brokers.values():
            broker.leave(f"gw-{self.cell}")
        self.play.soon(self.begin)

    def follow(self) -> None:
        """Follow what nodes here take in, as the scheduler knows."""
        self.relay.follow(self.play.followed if self.here else (), self.now_ms)
        self._subscribe()
        due_ms = self.relay.due_ms
        if due_ms is not None:
            self.play.world.after(self.clock.wait_ms(due_ms), self._expire)

    def _expire(self) -> None:
        if self.relay.expire(self.now_ms):
            self._subscribe()

    def _subscribe(self) -> None:
        for cell, broker in self.play.brokers.items():
            self.play.way(partial(self._stand, self.relay, cell, broker))

    def _stand(self, relay: Relay, cell: str, broker: Network) -> None:
        if relay is not self.relay:
            return
        own = cell == self.cell
        who, hear = f"gw-{self.cell}", self._hear if own else partial(self._away, cell)
        broker.leave(who)
        for text in self.relay.filters() if own else self.relay.filters_at(cell):
            broker.listen_filter(who, text, hear)

    def _hear(self, topic: Topic, frame: Frame) -> None:
        onward = self.relay.onward(topic, frame.body)
        if onward is not None:
            self.play.brokers[onward.cell].publish(f"gw-{self.cell}/out", onward, frame)
        elif topic.cell == self.cell and topic.channel in FOLLOWED:
            self._hand(self.lately.keep(topic, frame, self.now_ms))
        elif topic.channel is Channel.CATCHUP and isinstance(frame.body, CatchUp):
            followed = self.relay.followed
            self._hand(self.lately.asked(topic.name, frame.body, followed, self.now_ms))

    def _away(self, cell: str, topic: Topic, frame: Frame) -> None:
        if self.relay.brings(topic, cell):
            self.play.brokers[self.cell].publish(f"gw-{self.cell}/out", topic, frame)
            self._hand(self.lately.keep(topic, frame, self.now_ms))

    def _hand(self, values: list[Late]) -> None:
        for one in values:
            topic = topic_at(one.cell, Party.NODE, one.node, Channel.MISSED)
            frame = Frame(VERSION, f"ts-{self.cell}", 1, 0, one.tenant, one.cause, one.body)
            self.play.brokers[one.cell].publish(f"gw-{self.cell}/out", topic, frame)

    # The scheduler.

    def say(self, body: Body) -> None:
        topic = topic_at(self.cell, Party.NODE, NODE, Channel.COMMAND)
        frame = Frame(VERSION, f"ts-{self.cell}", 1, 0, "default", "test", body)
        self.play.brokers[self.cell].publish(f"ts-{self.cell}", topic, frame)

    def _born(self, _: Topic, frame: Frame) -> None:
        body = frame.body
        if isinstance(body, Birth) and frame.incarnation >= self.highest:
            self.highest = frame.incarnation
            self.play.soon(partial(self._welcome, frame.incarnation, body))
        elif isinstance(body, Death) and frame.incarnation >= self.highest:
            self.play.soon(partial(self._left, frame.incarnation))

    def _welcome(self, incarnation: int, birth: Birth) -> None:
        if incarnation != self.highest:
            return
        self.say(Welcome(f"ts-{self.cell}", 7, incarnation, 1000, 1000))
        self.number += 1
        others = tuple(point(one) for one in CELLS if one != self.cell)
        self.say(Neighbours(self.number, others))
        handover = birth.arrival.handover if birth.arrival is not None else ""
        self.play.soon(partial(self._settle, incarnation, handover))

    def _settle(self, incarnation: int, handover: str) -> None:
        if incarnation != self.highest:
            return
        self.here = True
        for feed in self.play.feeds(self.number):
            self.say(feed)
        self.follow()
        self.say(HandoverComplete(handover, incarnation))

    def _left(self, incarnation: int) -> None:
        if incarnation >= self.highest:
            self.highest = incarnation + 1
            self.here = False
            self.follow()


class Node:
    """The core, and the attachments that it asks for."""

    def __init__(self, play: "Play") -> None:
        self.play = play
        self.clock = Clock.drawn(play.world, 0.01)
        self.core = Core(
            node=NODE,
            agent_version="0",
            boot_id="b",
            inventory=INVENTORY,
            cell="a",
            radios=play.shape.radios,
        )
        self.serving = "a"
        self.incarnation = 0
        self.lines: dict[str, int] = {}
        """Incarnation of the connection with each cell; 0: it is tried."""
        self.follows: set[tuple[str, Channel]] = set()
        self.taken: Counter[str] = Counter()
        self._wake_ms: float | None = None

    def tell(self, event: events.Event) -> None:
        todo: list[events.Event] = [event]
        while todo:
            for command in self.core.handle(todo.pop(0), self.clock.now_ms):
                todo += self._do(command)
        due_ms = self.core.next_due_ms
        if due_ms is not None and (self._wake_ms is None or due_ms < self._wake_ms):
            self._wake_ms = due_ms
            self.play.world.after(self.clock.wait_ms(due_ms), partial(self._tick, due_ms))

    def _tick(self, due_ms: float) -> None:
        if self._wake_ms == due_ms:
            self._wake_ms = None
            self.tell(events.Tick())

    def _do(self, command: commands.Command) -> list[events.Event]:
        match command:
            case commands.FetchArtifact(one, tenant=tenant):
                return [events.ArtifactReady(one, tenant)]
            case commands.StartInstance():
                return [events.InstanceReady(command.instance)]
            case commands.Execute():
                self.taken[command.inputs["x"].data.decode()] += 1  # type: ignore[union-attr]
                return [events.ExecutorDone(command.call, {"y": tensor(b"ok")}, 1)]
            case commands.ExecuteTogether(calls):
                return [one for call in calls for one in self._do(call)]
            case commands.Follow(service, channel):
                self.follows.add((service, channel))
            case commands.Say():
                self._say(command)
            case _:
                self._move(command)
        return []

    def _move(self, command: commands.Command) -> None:
        match command:
            case commands.Attach(cell):
                self.attach(cell)
            case commands.Detach(cell, after_ms):
                self.play.world.after(after_ms, partial(self.detach, cell, self.lines.get(cell)))
            case commands.Serve(cell):
                self.serving = cell
            case commands.Renew(cell):
                self.lose(cell)
            case _:
                pass

    def _say(self, command: commands.Say) -> None:
        cell = command.cell or self.serving
        via = cell if self.lines.get(cell) else self.serving
        if self.lines.get(via):
            topic = topic_at(cell, Party.NODE, NODE, command.channel)
            frame = Frame(VERSION, NODE, self.lines[via], 0, "default", "", command.body)
            self.play.brokers[via].publish(NODE, topic, frame)

    @property
    def seeks(self) -> bool:
        """Whether it is on its way to another cell."""
        roams = self.core.attached._mobility
        return roams is not None and roams._seek is not None

    def attach(self, cell: str) -> None:
        self.lines[cell] = 0
        switch_ms = self.play.draw(self.play.shape.switch_ms)
        self.play.world.after(switch_ms, partial(self._connect, cell))

    def _connect(self, cell: str) -> None:
        if self.lines.get(cell) != 0:
            return
        broker = self.play.brokers[cell]
        broker.deaf.discard(NODE)
        self.incarnation += 1
        incarnation = self.lines[cell] = self.incarnation
        for channel in (Channel.COMMAND, Channel.MISSED):
            topic = topic_at(cell, Party.NODE, NODE, channel)
            broker.listen(NODE, topic, partial(self._hear, cell, incarnation))
        for service, channel in self.play.followed:
            for where in CELLS:
                topic = topic_at(where, Party.SERVICE, service, channel)
                broker.listen(NODE, topic, partial(self._published, cell, incarnation))
        self.tell(events.Connected(incarnation, 0.5, cell))
        trip_ms = sum(broker.weather.delay_ms) / 2
        link = LinkReport(0, "eth0", "wired", carrier=True, round_trip_ms=trip_ms)
        self.tell(events.LinkSampled(link))

    def detach(self, cell: str, incarnation: int | None) -> None:
        if self.lines.get(cell) == incarnation:
            self.lines.pop(cell, None)
            self.play.brokers[cell].leave(NODE)

    def lose(self, cell: str) -> bool:
        """Have the connection with a cell end; its session tries again. Return whether it was."""
        incarnation = self.lines.get(cell)
        if not incarnation:
            return False
        self.lines[cell] = 0
        broker = self.play.brokers[cell]
        broker.leave(NODE)
        frame = Frame(VERSION, NODE, incarnation, 0, "default", "will", Death("lost"))
        broker.publish(NODE, topic_at(cell, Party.NODE, NODE, Channel.PRESENCE), frame)
        self.tell(events.Disconnected("gone", cell))
        self.play.world.after(self.play.draw((500, 3000)), partial(self._connect, cell))
        return True

    def _hear(self, cell: str, incarnation: int, topic: Topic, frame: Frame) -> None:
        if self.lines.get(cell) == incarnation:
            said = frame.sender, frame.incarnation, 0, "default", "", frame.body
            self.tell(events.Received(topic.channel, *said, cell=cell))

    def _published(self, cell: str, incarnation: int, topic: Topic, frame: Frame) -> None:
        if self.lines.get(cell) == incarnation and (topic.name, topic.channel) in self.follows:
            self.tell(events.Published(topic.name, topic.channel, frame.body, cell, frame.sender))


class Play:
    """One run."""

    def __init__(self, seed: int, shape: Shape, trace: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, trace)
        self.shape = shape
        self.dice = self.world.dice
        self.brokers = {one: Network(self.world, one, Weather(), sample=64) for one in CELLS}
        self._weather()
        self.services = [f"s{one}" for one in range(shape.topics)]
        self.followed = [(one, Channel.INPUT) for one in self.services]
        self.gateways = {one: Gateway(self, one) for one in CELLS}
        self.node = Node(self)
        self.said: dict[str, float] = {}
        """By value: when it was published."""
        self.begin_ms = 0.0
        self.heard: list[tuple[float, float]] = []
        """From when until when the node was attached without a break, after a handover."""
        self._publishing = True

    def draw(self, between: tuple[float, float]) -> float:
        """Draw a time; short ones are as likely as long ones."""
        low, high = between
        return low * (high / low) ** self.dice.random() if low > 0 else self.dice.uniform(low, high)

    def soon(self, action: Callable[[], None]) -> None:
        self.world.after(self.draw(self.shape.scheduler_ms), action)

    def way(self, action: Callable[[], None]) -> None:
        self.world.after(self.draw(self.shape.delay_ms), action)

    def _weather(self) -> None:
        low, high = self.shape.delay_ms
        for broker in self.brokers.values():
            most = self.draw((low, high)) if high > low else high
            broker.weather = Weather((low, max(low, most)), double_share=self.shape.double_share)

    def feeds(self, number: int) -> list[Feed]:
        """Return what a scheduler tells the node of its services."""
        source = Source("x", SourceKind.TOPIC, "", Dtype.UINT8, (-1,), rate_per_s=1e5)
        return [
            Feed(
                one,
                number,
                chain((f"t-{one}", NODE, 1), service=one),
                (structs.replace(source, name=f"{one}.x"),),
                budget_ms=60_000,
            )
            for one in self.services
        ]

    def _publish(self, service: str, cell: str) -> None:
        if not self._publishing:
            return
        name = f"{service}-{len(self.said)}"
        self.said[name] = self.world.now_ms
        body = Invoke(name, service, 1000, {"x": tensor(name.encode())})
        frame = Frame(VERSION, "app", 1, 0, "default", name, body)
        topic = build(cell, Party.SERVICE, service, Channel.INPUT)
        self.brokers[cell].publish("app", topic, frame)
        self.world.after(self.draw(self.shape.period_ms), partial(self._publish, service, cell))

    def until(self, condition: Callable[[], bool], most_ms: float = 60_000) -> None:
        end_ms = self.world.now_ms + most_ms
        while not condition():
            self.world.run_until(self.world.now_ms + 5)
            if self.world.now_ms > end_ms:
                raise AssertionError("the node does not come")

    def pass_by(self, ms: float) -> None:
        self.world.run_until(self.world.now_ms + ms)

    def there(self) -> bool:
        node, presence = self.node, self.node.core.presence
        here = node.lines.get(node.serving)
        return presence.welcomed and presence.incarnation == here and not node.seeks

    def run(self) -> None:
        """Go from cell to cell, then wait for the last value."""
        self.node.tell(events.Restored())
        self.node.attach("a")
        self.until(self.there)
        self.until(lambda: self.gateways["a"].here)
        self.pass_by(3000)
        for one in self.services:
            task = assign(f"t-{one}", of=manifest(f"m{one}", queue=64))
            self.gateways["a"].say(structs.replace(task, service=one))
        self.pass_by(5000)
        for service in self.services:
            cell = self.dice.choice(CELLS)
            self._publish(service, cell)
        self.pass_by(3000)
        self.begin_ms = self.world.now_ms
        for number in range(self.shape.handovers):
            if number % 5 == 0:
                self._weather()
            self._go()
            came_ms = self.world.now_ms
            if self.dice.random() < self.shape.restart_share:
                own = self.node.serving
                cell = own if self.shape.restarts == "next" else self.dice.choice(CELLS)
                self.gateways[cell].restart()
            self.pass_by(self.draw(self.shape.stay_ms))
            self.heard.append((came_ms, self.world.now_ms))
        came_ms = self.world.now_ms
        self.pass_by(self.shape.settle_ms)
        self._publishing = False
        self.pass_by(self.shape.settle_ms)
        self.heard.append((came_ms, self.world.now_ms))

    def _go(self) -> None:
        here, node = self.node.serving, self.node
        before = node.incarnation
        if self.dice.random() < self.shape.lost_share:
            self.brokers[here].deaf.add(NODE)
            self.pass_by(self.dice.uniform(*self.shape.deaf_ms))
            self.brokers[here].deaf.discard(NODE)
            lost = node.lose(here)
        else:
            lost = True
            target = self.dice.choice([one for one in CELLS if one != here])
            for number in range(20):
                if node.incarnation > before:
                    break
                name, attachment = f"h{before}.{number}", node.core.presence.incarnation
                self.gateways[node.serving].say(
                    HandoverCommand(name, NODE, point(target), attachment)
                )
                if self.dice.random() < self.shape.lost_share / 2:
                    self.brokers[here].deaf.add(NODE)
                    self.pass_by(self.draw((10, 1000)))
                    self.brokers[here].deaf.discard(NODE)
                    node.lose(here)
                self.pass_by(self.draw((50, 3000)))
        self.until(lambda: (node.incarnation > before or not lost) and self.there(), 120_000)

    def missing(self) -> list[str]:
        """Return what was published since the first handover, was kept, and did not come."""
        return [
            name
            for name, at_ms in self.said.items()
            if at_ms >= self.begin_ms and not self.node.taken[name] and self._due(at_ms)
        ]

    def _due(self, at_ms: float) -> bool:
        """Whether the node was attached for a while before gateways gave a value up."""
        until_ms = at_ms + KEPT_MS - HEARD_MS
        return any(min(end, until_ms) - max(begin, at_ms) >= HEARD_MS for begin, end in self.heard)

    def twice(self) -> list[str]:
        """Return what was taken more than once."""
        return [name for name, times in self.node.taken.items() if times > 1]
