"""Which values move next: a bounded number at once, the others by how urgent they are."""

from itertools import count

from device_agent.core.queue import Urgency


class Turns:
    """Places of transfers, and the names of those that wait for one; pure."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[str, tuple[Urgency, int]] = {}
        self._arrivals = count()

    def take(self, name: str, urgency: Urgency) -> bool:
        """Take a place; False: there is none, and the name waits."""
        if self._free:
            self._free -= 1
            return True
        self._waiting[name] = urgency, next(self._arrivals)
        return False

    def leave(self, name: str) -> None:
        """Wait no more."""
        self._waiting.pop(name, None)

    def give(self) -> str:
        """Give a place back; the name that has it now, empty: nobody waits."""
        if not self._waiting:
            self._free += 1
            return ""
        first = min(self._waiting, key=self._waiting.__getitem__)
        del self._waiting[first]
        return first
