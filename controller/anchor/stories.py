"""What happened to each task, for people: bounded, and kept for a while after its end."""

from collections.abc import Collection
from typing import Final

from controller.desk import Desk
from controller.records import STORY, STORY_LENGTH, StoryRecord
from protocols.errors import Blame

MAX_OVER: Final = 512
"""Tasks that are over and whose stories are still kept for people."""
DETAIL_LENGTH: Final = 2000


class Stories:
    """The stories of all tasks; every entry is a record."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._numbers: dict[str, int] = {}
        self._last: dict[str, str] = {}
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
        """Add an entry; the oldest one makes room for it."""
        number = self._numbers.get(task, 0)
        self._numbers[task] = number + 1
        detail = detail[:DETAIL_LENGTH]
        self._last[task] = f"{layer} {event} {detail}"[:200]
        record = StoryRecord(task, number, layer, event, detail, cause, blame)
        self._desk.keep(STORY, f"{task}/{number % STORY_LENGTH}", record, cause)

    def begins(self, task: str) -> None:
        """Keep the story of a task that lives, again."""
        self._over.pop(task, None)

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
        return f"{self._numbers.get(task, 0)} entries, last: {self._last.get(task, 'none')}"

    def _forget(self, task: str, cause: str) -> None:
        del self._over[task]
        self._last.pop(task, None)
        for slot in range(min(STORY_LENGTH, self._numbers.pop(task, 0))):
            self._desk.keep(STORY, f"{task}/{slot}", None, cause)
