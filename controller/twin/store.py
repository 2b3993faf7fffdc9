"""A simulated store: the newest state of every record; survives the crash of its hosts.

A commit is whole or nothing, as in the real one; a torn commit is one or the other.
"""

from collections.abc import Sequence

from controller.decider import Record
from controller.records import TASK, TaskRecord
from controller.twin.checkers import Checkers


class StoreFull(Exception):
    """The disk takes nothing now; nothing of this append is stored."""


class SimStore:
    """Records by kind and key."""

    def __init__(self, checkers: Checkers) -> None:
        self.current: dict[tuple[str, str], Record] = {}
        self.tasks: dict[str, TaskRecord] = {}
        """Those of the records that are tasks: they are looked at often."""
        self.epoch = 0
        self.full = False
        self._checkers = checkers

    def append(self, records: Sequence[Record]) -> None:
        """Make a batch durable. Raises StoreFull."""
        if self.full:
            raise StoreFull
        for record in records:
            key = (record.kind, record.key)
            before = self.current.get(key)
            self._checkers.recorded(before.value if before else None, record)
            if record.value is None:
                self.current.pop(key, None)
                self.tasks.pop(record.key if record.kind == TASK else "", None)
            else:
                self.current[key] = record
                if isinstance(record.value, TaskRecord):
                    self.tasks[record.key] = record.value

    def lose(self) -> None:
        """Lose everything."""
        self.current.clear()
        self.tasks.clear()
