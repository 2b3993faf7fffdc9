"""A broker of one cell that loses, doubles, delays and reorders as told, and can be cut off.

Frames of one sender reach one listener in order unless the weather reorders. Most are handed over
as they are; a sample passes the real codec, so that what cannot be said shows.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final

from msgspec import Struct

from controller.twin.world import World
from protocols import codec
from protocols.codec import Frame
from protocols.topics import Channel, Party, Topic, build, parse

TOPICS_KEPT: Final = 4096
CODEC_SAMPLE: Final = 16
"""One in so many frames passes the codec."""

topic_at = lru_cache(TOPICS_KEPT)(build)
"""As `protocols.topics.build`, which checks names each time."""
parsed = lru_cache(TOPICS_KEPT)(parse)

Listener = Callable[[Topic, Frame], None]
_Key = tuple[str, Party, str, Channel]


class Weather(Struct, frozen=True):
    """How the network misbehaves now; shares are of deliveries."""

    delay_ms: tuple[float, float] = (1.0, 5.0)
    drop_share: float = 0.0
    double_share: float = 0.0
    reorder: bool = False


class Network:
    """Topics to listeners."""

    def __init__(self, world: World, cell: str, calm: Weather, sample: int = 1) -> None:
        self.world = world
        self.cell = cell
        self.calm = calm
        """The weather without faults."""
        self.weather = calm
        self.messages = 0
        self.dropped = self.doubled = self.reordered = 0
        self.seen: Callable[[Topic, Frame], None] = lambda *_: None
        """Told of every frame that is published."""
        self.down = False
        """Whether the broker is dead."""
        self.mute: set[str] = set()
        """Whose words do not reach the broker."""
        self.deaf: set[str] = set()
        """Whom the broker's words do not reach, on any of their connections `NAME/...`."""
        self.parted: set[frozenset[str]] = set()
        """Pairs that do not reach each other, and everybody else."""
        self._sample = sample
        self._exact: dict[_Key, dict[str, Listener]] = {}
        self._families: dict[tuple[str, Party, Channel], dict[str, Listener]] = {}
        self._last_ms: dict[tuple[str, str], float] = {}

    def listen(self, who: str, topic: Topic, listener: Listener) -> None:
        """Deliver a topic to someone."""
        key = (topic.cell, topic.party, topic.name, topic.channel)
        self._exact.setdefault(key, {})[who] = listener

    def listen_filter(self, who: str, text: str, listener: Listener) -> None:
        """Deliver what matches a filter: one topic, or every name of a family."""
        cell, party, name, channel = text.split("/")[2:]
        if name == "+":
            family = (cell, Party(party), Channel(channel))
            self._families.setdefault(family, {})[who] = listener
        else:
            self.listen(who, build(cell, Party(party), name, Channel(channel)), listener)

    def unlisten(self, who: str, topic: Topic) -> None:
        """Deliver a topic to someone no longer."""
        key = (topic.cell, topic.party, topic.name, topic.channel)
        self._exact.get(key, {}).pop(who, None)

    def leave(self, who: str) -> None:
        """Forget a listener: its connection is gone."""
        for listeners in (*self._exact.values(), *self._families.values()):
            listeners.pop(who, None)

    def reachable(self, who: str) -> bool:
        """Whether someone can connect now."""
        return not (self.down or who in self.mute or who in self.deaf)

    def reaches_all(self, who: str) -> bool:
        """Whether someone reaches the broker, and everybody there."""
        return who not in self.mute | self.deaf and not any(who in pair for pair in self.parted)

    def publish(self, who: str, topic: Topic, frame: Frame, *, by_broker: bool = False) -> None:
        """Send a frame to everyone who listens, as the weather allows."""
        if self.down or (who in self.mute and not by_broker):
            return
        frame = self._coded(topic, frame)
        self.seen(topic, frame)
        exact, family = self._who_listens(topic)
        dice, weather, world = self.world.dice, self.weather, self.world
        for name in (*exact, *family):
            self.messages += 1
            if weather.drop_share and dice.random() < weather.drop_share:
                world.note(f"drop {who}>{name} {topic.channel}")
                self.dropped += 1
                continue
            copies = 1 + (bool(weather.double_share) and dice.random() < weather.double_share)
            self.doubled += copies - 1
            for _ in range(copies):
                low, high = weather.delay_ms
                due_ms = world.now_ms + low + dice.random() * (high - low)
                last_ms = self._last_ms.get((who, name), 0)
                self.reordered += weather.reorder and due_ms < last_ms
                due_ms = due_ms if weather.reorder else max(due_ms, last_ms)
                self._last_ms[who, name] = max(due_ms, last_ms)
                world.at(due_ms, partial(self._deliver, who, name, topic, frame))

    def _who_listens(self, topic: Topic) -> tuple[dict[str, Listener], dict[str, Listener]]:
        """Return who listens to a topic by name, and who to all of its family."""
        exact = self._exact.get((topic.cell, topic.party, topic.name, topic.channel), {})
        return exact, self._families.get((topic.cell, topic.party, topic.channel), {})

    def _coded(self, topic: Topic, frame: Frame) -> Frame:
        """Return a frame as it comes out of the codec, for every so manieth one."""
        if self.messages % self._sample:
            return frame
        most = topic.rule.max_bytes
        return codec.decode(codec.encode(frame, most), most)

    def _deliver(self, sender: str, who: str, topic: Topic, frame: Frame) -> None:
        name = who.partition("/")[0]
        if self.down or name in self.deaf or frozenset((sender, name)) in self.parted:
            return
        exact, family = self._who_listens(topic)
        listener = exact.get(who) or family.get(who)
        if listener is None:
            return
        body = frame.body
        self.world.note(f"{frame.sender}>{who} {type(body).__name__} {topic.name} {frame.number}")
        if self.world.traced:
            self.world.explain(repr(body)[:600])
        listener(topic, frame)
