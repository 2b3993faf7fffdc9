"""What tasks remember in a run: every change that was made is there in the end, once.

A run of a task with memory adds a number of its own to the memory of its node. What a scheduler has
given up, saying so, is not missed; nor is what a deleted service remembered.
"""

import struct
from typing import Final

from msgspec import Struct

_NUMBER: Final = struct.Struct("<Q")


class _Added(Struct, frozen=True):
    node: str
    epoch: int


class Remembered:
    """Every change of every memory."""

    def __init__(self) -> None:
        self._added: dict[str, dict[int, _Added]] = {}
        self._given_up: dict[str, int] = {}
        """Up to which epoch what a task remembered was given up."""
        self._count = 0
        self.lost = 0
        """Memories that a scheduler has given up."""

    def add(self, task: str, node: str, epoch: int) -> bytes:
        """Note a change, made by a run on a node; return what it adds to the memory there."""
        self._count += 1
        self._added.setdefault(task, {})[self._count] = _Added(node, epoch)
        return _NUMBER.pack(self._count)

    def give_up(self, task: str, epoch: int) -> None:
        """Take note that a task goes on without what was last remembered up to an epoch."""
        self.lost += 1
        self._given_up[task] = max(epoch, self._given_up.get(task, 0))

    def over(self, service: str = "") -> None:
        """Miss nothing of a service that is deleted; of none, when all that is known is lost."""
        for task, added in self._added.items():
            if not service or task.startswith(f"{service}."):
                before = self._given_up.get(task, 0)
                self._given_up[task] = max(before, *(one.epoch for one in added.values()))

    def amiss(self, task: str, memory: bytes) -> str:
        """Return what is wrong with what a task remembers in the end; empty: nothing."""
        found = [one for (one,) in _NUMBER.iter_unpack(memory)]
        if len(set(found)) < len(found):
            return f"{task} remembers something twice"
        after = self._given_up.get(task, -1)
        added = self._added.get(task, {})
        needed = {number for number, one in added.items() if one.epoch > after}
        missing = sorted(needed - set(found))
        if missing:
            one = added[missing[0]]
            return (
                f"{task} has forgotten {len(missing)} of {len(added)} changes, "
                f"the first of {one.node} under epoch {one.epoch}"
            )
        return ""
