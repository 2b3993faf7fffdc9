"""A simulated node's journal: what `device_agent.journal` keeps, without a disk.

A transaction is whole or nothing there, as in SQLite with full synchronisation; so it is here: a
crash in the middle of a write leaves all of it or none of it.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from device_agent.core.commands import Change, Forget, ForgetFeed, Keep, KeepFeed, KeepPlace, Place
from device_agent.core.events import Restored
from protocols.messages import Assign, Feed

INCARNATION_BLOCK: Final = 1000
JOURNALLED: Final = (Keep, Forget, KeepFeed, ForgetFeed, KeepPlace)
"""The commands that are durable before what follows them is done."""


class DiskFull(Exception):
    """The disk takes nothing now; nothing of this write is kept."""


class SimJournal:
    """Outlives its node's crashes."""

    def __init__(self) -> None:
        self.full = False
        self.place: Place | None = None
        self._assigns: dict[str, Assign] = {}
        self._older: dict[str, Assign] = {}
        self._tombstones: dict[str, int] = {}
        self._feeds: dict[str, Feed] = {}
        self._next: int | None = None

    def restored(self, incarnation: int) -> Restored:
        """Return what was kept, to a process whose connections count from an incarnation."""
        return Restored(
            tuple(self._assigns.values()),
            tuple(self._tombstones.items()),
            tuple(self._feeds.values()),
            incarnation,
            self.place,
            tuple(self._older.values()),
        )

    def reserve(self, unix_ms: int) -> int:
        """Reserve a block of incarnations and return the number they begin above."""
        if self.full:
            raise DiskFull
        first = unix_ms if self._next is None else self._next
        self._next = first + INCARNATION_BLOCK
        return first

    def write(self, changes: Iterable[Change]) -> None:
        """Make changes durable, all or none. Raises DiskFull."""
        if self.full:
            raise DiskFull
        for change in changes:
            match change:
                case Keep(assign=assign, older=older):
                    self._assigns[assign.task] = assign
                    self._older.pop(assign.task, None)
                    if older is not None:
                        self._older[assign.task] = older
                    self._tombstones.pop(assign.task, None)
                case Forget(task=task, epoch=epoch):
                    self._assigns.pop(task, None)
                    self._older.pop(task, None)
                    self._tombstones.pop(task, None)
                    self._tombstones[task] = epoch
                case KeepFeed(feed=feed):
                    self._feeds[feed.service] = feed
                case ForgetFeed(service=service):
                    self._feeds.pop(service, None)
                case KeepPlace(place=place):
                    self.place = place

    def epoch(self, task: str) -> int:
        """Return the highest epoch that is kept for a task; 0 when there is none."""
        assign = self._assigns.get(task)
        return assign.epoch if assign is not None else self._tombstones.get(task, 0)


def subjects(changes: Iterable[Change]) -> Iterator[tuple[str, int]]:
    """Yield the tasks and epochs that changes speak of."""
    for change in changes:
        if isinstance(change, Keep):
            yield change.assign.task, change.assign.epoch
        elif isinstance(change, Forget):
            yield change.task, change.epoch


def changes_of(commands: Iterable[object]) -> list[Change]:
    """Return those commands that go into the journal."""
    return [one for one in commands if isinstance(one, Change)]
