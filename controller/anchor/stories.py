"""What happened to each task, for people: bounded, and kept for a while after its end."""

from collections.abc import Collection
from typing import Final

from msgspec import structs

from controller.desk import Desk
from controller.records import STORY, STORY_LENGTH, StoryRecord
from protocols.errors import Blame

MAX_OVER: Final = 512
"""Tasks that are over and whose stories are still kept for people."""
DETAIL_LENGTH: Final = 2000
FIRST_KEPT: Final = 16
"""Entries from the beginning of a story that no later one pushes out."""


class Stories:
    """The stories of all tasks; every entry is a record."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._numbers: dict[str, int] = {}
        self._last: dict[str, tuple[StoryRecord, int]] = {}
        """By task: the newest entry, and how often that was told in a row."""
        self._over: dict[str, None] = {}
        """Tasks that are over, oldest first."""

    def restore(self, record: StoryRecord) -> None:
        """Take in a durable entry."""
        self._numbers[record.task] = max(self._numbers.get(record.task, 0), record.number + 1)

    def restored(self, living: Collection[str]) -> None:
        """Know which tasks live, once all entries are taken in."""
        self._over = dict.fromkeys(sorted(self._numbers.keys() - living))

    def tell(
        self,
        task: str,
        layer: str,
        event: str,
        detail: str,
        cause: str,
        blame: Blame | None = None,
    ) -> None:
        """Add an entry, or count one that was told just before; of the later ones the oldest goes.

        What begins the story stays.
        """
        number = self._numbers.get(task, 0)
        record = StoryRecord(task, number, layer, event, detail[:DETAIL_LENGTH], cause, blame)
        last, times = self._last.get(task, (None, 0))
        if (
            last is not None
            and structs.replace(record, number=last.number, cause=last.cause) == last
        ):
            self._last[task] = last, times + 1
            detail = f"{last.detail} ({times + 1} times)".strip()
            record = structs.replace(last, detail=detail, cause=cause)
        else:
            self._numbers[task] = number + 1
            self._last[task] = record, 1
        self._desk.keep(STORY, f"{task}/{_slot(record.number)}", record, cause)

    def begins(self, task: str) -> None:
        """Keep the story of a task that lives, again."""
        self._over.pop(task, None)

    def length(self, task: str) -> int:
        """Return how many entries a story has had."""
        return self._numbers.get(task, 0)

    def goes_on(self, task: str, length: int) -> None:
        """Go on with a story of which another anchor has told so many entries."""
        self._numbers[task] = max(self._numbers.get(task, 0), length)
        self.begins(task)

    def ends(self, task: str, cause: str) -> None:
        """Keep the story of a task that is over until too many newer ones are."""
        self._over[task] = None
        if len(self._over) > MAX_OVER:
            self._forget(next(iter(self._over)), cause)

    def over(self) -> tuple[str, ...]:
        """Return the tasks that are over and not yet forgotten, oldest first."""
        return tuple(self._over)

    def tale(self, task: str) -> str:
        """Return in one line how far a task has come, for the report of a bug."""
        last, _ = self._last.get(task, (None, 0))
        told = "none" if last is None else f"{last.layer} {last.event} {last.detail}"[:200]
        return f"{self._numbers.get(task, 0)} entries, last: {told}"

    def _forget(self, task: str, cause: str) -> None:
        del self._over[task]
        self._last.pop(task, None)
        for slot in range(min(STORY_LENGTH, self._numbers.pop(task, 0))):
            self._desk.keep(STORY, f"{task}/{slot}", None, cause)


def _slot(number: int) -> int:
    """Return where an entry is kept: the first ones for good, the others in turn."""
    if number < FIRST_KEPT:
        return number
    return FIRST_KEPT + (number - FIRST_KEPT) % (STORY_LENGTH - FIRST_KEPT)
