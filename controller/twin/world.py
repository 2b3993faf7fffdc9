"""Fake time, seeded chance, and the clocks of machines that do not agree.

Everything that happens is an entry of one heap, ordered by time and then by the order of its
making, so a seed replays the same run to the last step; a hash over what happened proves it.
"""

import heapq
import random
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

MAX_STEPS: Final = 50_000_000
UNIX_MS: Final = 1_790_000_000_000
"""What a wall clock that is right shows when a run begins."""

MARGIN_MS: Final = 0.001

Tell = Callable[[str], None]


class World:
    """The time, the dice and everything that is still to happen."""

    def __init__(self, seed: int, trace: Tell | None = None) -> None:
        self.seed = seed
        self.now_ms = 0.0
        self.dice = random.Random(seed)  # noqa: S311 - a run must replay from its seed
        self.steps = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0
        self._hash = blake2b(digest_size=8)
        self._trace = trace

    @property
    def traced(self) -> bool:
        """Whether somebody reads what is noted."""
        return self._trace is not None

    def at(self, when_ms: float, action: Callable[[], None]) -> None:
        """Do something at a time; in the past means now, after what is already due."""
        self._made += 1
        heapq.heappush(self._heap, (max(when_ms, self.now_ms), self._made, action))

    def after(self, delay_ms: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._made += 1
        heapq.heappush(self._heap, (self.now_ms + delay_ms, self._made, action))

    def run_until(self, when_ms: float) -> None:
        """Let time pass. Raises RuntimeError when a run does not end."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= when_ms:
            self.now_ms, _, action = pop(heap)
            self.steps += 1
            action()
        self.now_ms = when_ms
        if self.steps > MAX_STEPS:
            raise RuntimeError(f"seed {self.seed}: the run does not end")

    def note(self, text: str) -> None:
        """Put something that happened into the hash, and into the trace where there is one."""
        self._hash.update(f"{self.now_ms:.3f} {text}\n".encode())
        if self._trace is not None:
            self._trace(f"{self.now_ms:>11.3f} {text}")

    def explain(self, text: str) -> None:
        """Put more into the trace than the hash needs."""
        if self._trace is not None:
            self._trace(f"{'':>11}   {text}")

    @property
    def fingerprint(self) -> str:
        """Return the hash of what has happened so far."""
        return self._hash.hexdigest()


class Clock:
    """The clocks of one machine: a monotonic one that starts anywhere and a wall clock."""

    def __init__(self, world: World, offset_ms: int = 0, rate: float = 1.0) -> None:
        self._world = world
        self._offset_ms = offset_ms
        self._rate = rate
        """Its milliseconds in one of the world's."""
        self._wall_ms = 0

    @classmethod
    def drawn(cls, world: World, skew: float) -> "Clock":
        """Return a clock that starts anywhere and is wrong by up to `skew`."""
        dice = world.dice
        return cls(world, dice.randint(0, 10**9), 1.0 + dice.uniform(-skew, skew))

    @property
    def now_ms(self) -> float:
        """The monotonic clock."""
        return self._offset_ms + self._world.now_ms * self._rate

    @property
    def unix_ms(self) -> int:
        """The wall clock."""
        return max(0, UNIX_MS + self._wall_ms + int(self._world.now_ms))

    def jump(self, to_unix_ms: int) -> None:
        """Set the wall clock; the monotonic one does not notice."""
        self._wall_ms = to_unix_ms - UNIX_MS - int(self._world.now_ms)

    def wait_ms(self, until_ms: float) -> float:
        """Return the world's milliseconds until the monotonic clock has reached a time."""
        # A little more than exact: whoever is woken must not find that it is too early.
        return max(0.0, (until_ms - self.now_ms) / self._rate + MARGIN_MS)
