"""Which values move next: a bounded number at once, the others by how urgent they are.

Each turn of so many goes to whoever has waited longest: what is least urgent comes as well.
"""

from itertools import count
from typing import Final, Generic, TypeVar

from device_agent.core.queue import FIRST, Urgency

Key = TypeVar("Key")
OLDEST_EVERY: Final = 16
"""One turn of so many goes to the oldest: who waits has at most so many turns before it for each
that came before it. A memory of a moving task goes before that one too."""


class Turns(Generic[Key]):
    """Places of transfers, and those that wait for one; pure."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[Key, tuple[Urgency, int]] = {}
        self._arrivals = count()
        self._since_oldest = 0
        """Turns that went by urgency."""

    def take(self, key: Key, urgency: Urgency) -> bool:
        """Take a place; False: there is none, and it waits."""
        if self._free:
            self._free -= 1
            return True
        self._waiting[key] = urgency, next(self._arrivals)
        return False

    def hurry(self, key: Key, urgency: Urgency) -> None:
        """Have one that waits be as urgent as this, if it is not already; its arrival stays."""
        if key in self._waiting:
            known, arrival = self._waiting[key]
            self._waiting[key] = min(known, urgency), arrival

    def leave(self, key: Key) -> None:
        """Wait no more."""
        self._waiting.pop(key, None)

    def give(self) -> Key | None:
        """Give a place back; who has it now, None: nobody waits."""
        if not self._waiting:
            self._free += 1
            return None
        first = min(self._waiting, key=self._waiting.__getitem__)
        self._since_oldest += 1
        if self._since_oldest >= OLDEST_EVERY and self._waiting[first][0] != FIRST:
            self._since_oldest = 0
            first = next(iter(self._waiting))
        del self._waiting[first]
        return first
