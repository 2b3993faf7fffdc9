"""Fake time, seeded chance and a broker that loses, delays and reorders as told.

Everything that happens is an entry of one heap, ordered by time and then by the order of its
making, so a seed replays the same run to the last step.
"""

import heapq
import random
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from protocols import codec
from protocols.codec import Frame
from protocols.topics import Topic

MAX_STEPS: Final = 50_000_000


class Faults(Struct, frozen=True):
    """How the network of a run misbehaves; shares are of messages."""

    delay_ms: tuple[int, int] = (1, 5)
    drop_share: float = 0.0
    double_share: float = 0.0


class World:
    """The clock, the dice and everything that is still to happen."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_ms = 0
        self.dice = random.Random(seed)  # noqa: S311 - a run must replay from its seed
        self.steps = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._made = 0

    def at(self, when_ms: int, action: Callable[[], None]) -> None:
        """Do something at a time; in the past means now, after what is already due."""
        self._made += 1
        heapq.heappush(self._heap, (max(when_ms, self.now_ms), self._made, action))

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something later."""
        self.at(self.now_ms + delay_ms, action)

    def run_until(self, when_ms: int) -> None:
        """Let time pass."""
        while self._heap and self._heap[0][0] <= when_ms:
            due_ms, _, action = heapq.heappop(self._heap)
            self.now_ms = due_ms
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise RuntimeError(f"seed {self.seed}: the run does not end")
            action()
        self.now_ms = when_ms


Listener = Callable[[Topic, Frame], None]


class Network:
    """A broker of one cell: topics to listeners, with faults; frames pass the real codec."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world = world
        self.faults = faults
        self.messages = 0
        self._listeners: dict[tuple[str, str], Listener] = {}
        """By (who listens, first topic levels): see `listen`."""
        self._exact: dict[str, dict[str, Listener]] = {}
        self._families: dict[tuple[str, str], dict[str, Listener]] = {}
        self._cut: set[str] = set()

    def listen(self, who: str, topic: Topic, listener: Listener) -> None:
        """Deliver a topic to someone."""
        self._exact.setdefault(str(topic), {})[who] = listener

    def listen_family(self, who: str, topic: Topic, listener: Listener) -> None:
        """Deliver every name of a topic's family to someone."""
        family = (topic.party.value, topic.channel.value)
        self._families.setdefault(family, {})[who] = listener

    def leave(self, who: str) -> None:
        """Forget a listener: its connection is gone."""
        for listeners in (*self._exact.values(), *self._families.values()):
            listeners.pop(who, None)

    def cut(self, who: str, *, off: bool) -> None:
        """Partition someone from the broker, both ways, or mend it."""
        if off:
            self._cut.add(who)
        else:
            self._cut.discard(who)

    def publish(self, who: str, topic: Topic, frame: Frame) -> None:
        """Send a frame to everyone who listens, as the faults allow."""
        if who in self._cut:
            return
        payload = codec.encode(frame, topic.rule.max_bytes)
        family = self._families.get((topic.party.value, topic.channel.value), {})
        for listener_name in (*self._exact.get(str(topic), ()), *family):
            self.messages += 1
            dice, faults = self.world.dice, self.faults
            if faults.drop_share and dice.random() < faults.drop_share:
                continue
            copies = 1 + (bool(faults.double_share) and dice.random() < faults.double_share)
            for _ in range(copies):
                delay_ms = dice.randint(*faults.delay_ms)
                self.world.after(
                    delay_ms,
                    lambda name=listener_name: self._deliver(name, topic, payload),  # type: ignore[misc]
                )

    def _deliver(self, who: str, topic: Topic, payload: bytes) -> None:
        if who in self._cut:
            return
        listener = self._exact.get(str(topic), {}).get(who)
        if listener is None:
            family = (topic.party.value, topic.channel.value)
            listener = self._families.get(family, {}).get(who)
        if listener is not None:
            listener(topic, codec.decode(payload, topic.rule.max_bytes))
