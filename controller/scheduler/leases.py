"""The leave of an anchor to act on: a scheduler that it cannot reach any more rests in time.

A lease runs from when it was asked for, by the asker's clock, and the anchor counts it from when it
has answered, which is later: so a task is never granted elsewhere while this scheduler still acts.
An anchor in the same process dies with us and needs none.
"""

from typing import Final

from msgspec import Struct

from controller.decider import ToRole
from controller.desk import Desk
from protocols.messages import Lease, LeaseRequest

LEASE_MS: Final = 5000
"""After its last leave a scheduler acts on for so long."""
ASK_MS: Final = 1000
ASKED_MAX: Final = 16
"""Questions that may still be answered; an older answer would be over anyway."""


class _Leave(Struct):
    asked: dict[int, int] = {}
    """When each question was asked, by its number."""
    until_ms: int = 0
    due_ms: int = 0


class Leases:
    """Asks every anchor that is `elsewhere` for leave, again and again."""

    def __init__(self, desk: Desk, elsewhere: tuple[str, ...]) -> None:
        self._desk = desk
        self._leaves = {anchor: _Leave() for anchor in elsewhere}
        self._number = 0

    def hold(self, anchor: str) -> bool:
        """Whether we may act on tasks of an anchor."""
        leave = self._leaves.get(anchor)
        return leave is None or self._desk.now_ms < leave.until_ms

    def granted(self, anchor: str, lease: Lease) -> bool:
        """Take in an anchor's leave; returns whether we may act again and might not before."""
        leave = self._leaves.get(anchor)
        asked_ms = leave.asked.pop(lease.number, None) if leave is not None else None
        if leave is None or asked_ms is None:
            return False
        rested = self._desk.now_ms >= leave.until_ms
        leave.until_ms = max(leave.until_ms, asked_ms + LEASE_MS)
        return rested and self._desk.now_ms < leave.until_ms

    def sweep(self) -> None:
        """Ask where that is due."""
        for anchor, leave in self._leaves.items():
            if self._desk.now_ms >= leave.due_ms:
                self._ask(anchor, leave)

    def begin(self) -> None:
        """Ask at once: we have begun, or a link has."""
        for anchor, leave in self._leaves.items():
            self._ask(anchor, leave)

    def _ask(self, anchor: str, leave: _Leave) -> None:
        self._number += 1
        leave.asked[self._number] = self._desk.now_ms
        if len(leave.asked) > ASKED_MAX:
            del leave.asked[next(iter(leave.asked))]
        leave.due_ms = self._desk.now_ms + ASK_MS
        self._desk.tell(ToRole(anchor), LeaseRequest(self._number), "lease")
