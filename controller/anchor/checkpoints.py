"""What tasks were last heard to remember, should their node be lost and another cell go on.

Schedulers tell an anchor that has several (`AnchorWelcome.roaming`). It is kept in memory alone: an
anchor that begins anew is told again.
"""

from typing import Final

from msgspec import Struct, structs

from controller.desk import Desk
from protocols.messages import MemoryState

CHECKPOINTS_MAX_BYTES: Final = 64 << 20
"""Of all checkpoints in messages; beyond it no further task has one here."""
CHECKPOINTS_MAX: Final = 16_384
"""Tasks with one; the one that was told of longest ago goes first."""


class _Kept(Struct, frozen=True):
    state: MemoryState
    heard_ms: int
    """When the node has said it."""


class Checkpoints:
    """The newest of each task."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._kept: dict[str, _Kept] = {}
        self._bytes = 0

    def take(self, state: MemoryState) -> None:
        """Keep what a scheduler tells of a task."""
        before = self._kept.get(state.task)
        if before is not None and before.state.epoch > state.epoch:
            return
        heard_ms = self._desk.now_ms - (state.checkpoint_age_ms or 0)
        if state.data is not None or state.store_urls:
            self._keep(state, heard_ms)
        elif before is not None and before.state.digest == state.digest:
            self._keep(structs.replace(before.state, epoch=state.epoch), heard_ms)

    def _keep(self, state: MemoryState, heard_ms: int) -> None:
        self.forget(state.task)
        if self._bytes + _size(state) > CHECKPOINTS_MAX_BYTES:
            return
        if len(self._kept) >= CHECKPOINTS_MAX:
            self.forget(next(iter(self._kept)))
        self._kept[state.task] = _Kept(state, heard_ms)
        self._bytes += _size(state)

    def of(self, task: str) -> MemoryState | None:
        """Return the newest of a task, with its age."""
        kept = self._kept.get(task)
        if kept is None:
            return None
        age_ms = max(0, self._desk.now_ms - kept.heard_ms)
        return structs.replace(kept.state, checkpoint_age_ms=age_ms)

    def forget(self, task: str) -> None:
        """Forget a task that is over, or that somebody else tells of."""
        kept = self._kept.pop(task, None)
        if kept is not None:
            self._bytes -= _size(kept.state)


def _size(state: MemoryState) -> int:
    return len(state.data or b"")
