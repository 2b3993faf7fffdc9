"""What tasks were last heard to remember, should their node be lost and another cell go on.

Schedulers tell an anchor that has several (`AnchorWelcome.roaming`). One that has no room here
leaves the older one, marked (`reason`). They are durable, each a little behind what is known: a
task's is written seldom, and so much in a second of all; whose turn it is waits in line.
"""

from collections.abc import Container
from typing import Final

from msgspec import Struct, structs

from controller.desk import Desk
from controller.records import CHECKPOINT, CheckpointRecord
from protocols.messages import MemoryState

CHECKPOINTS_MAX_BYTES: Final = 64 << 20
"""Of all checkpoints in messages; beyond it a task keeps the older one that it has here, if any."""
CHECKPOINTS_MAX: Final = 16_384
"""Tasks with one; the one that was told of longest ago goes first."""
DURABLE_MS: Final = 30_000
"""A task's is written this often at most."""
DURABLE_BYTES_PER_S: Final = 64_000
"""So much is written of all tasks."""
DURABLE_BURST_BYTES: Final = 1 << 20
"""So much at once, after a time in which there was less to write."""
RECORD_BYTES: Final = 512
"""What a record takes beside its data."""
NO_ROOM: Final = "a newer one has no room"


class _Kept(Struct):
    state: MemoryState
    heard_ms: int
    """When the node has said it."""
    durable: str | None = None
    """Digest of the one that is durable."""
    durable_ms: int = -(10**12)
    """When that was written."""


class Checkpoints:
    """The newest of each task."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._kept: dict[str, _Kept] = {}
        self._bytes = 0
        self._line: dict[str, None] = {}
        """Tasks whose newest is to be written, the first to come first."""
        self._room_bytes = DURABLE_BURST_BYTES
        """What may be written now."""
        self._room_ms = 0
        """When that was so."""

    def restore(self, record: CheckpointRecord) -> None:
        """Take in a durable one; where the wall clock is not known it counts as heard now."""
        state, unix_ms = record.state, self._desk.unix_ms
        known = bool(unix_ms and record.heard_unix_ms)
        age_ms = max(0, unix_ms - record.heard_unix_ms) if known else 0
        self._kept[state.task] = _Kept(state, self._desk.now_ms - age_ms, state.digest)
        self._bytes += _size(state)

    def restored(self, tasks: Container[str]) -> None:
        """Forget the durable ones that are of no task any more, and what is too much."""
        for task in [one for one in self._kept if one not in tasks]:
            self.forget(task)
        while self._bytes > CHECKPOINTS_MAX_BYTES:
            self.forget(next(iter(self._kept)))

    def take(self, state: MemoryState) -> bool:
        """Keep what a scheduler tells of a task; return whether it had room."""
        before = self._kept.get(state.task)
        if before is not None and before.state.epoch > state.epoch:
            return True
        heard_ms, room = self._desk.now_ms - (state.checkpoint_age_ms or 0), True
        if state.data is not None or state.store_urls:
            room = self._keep(state, heard_ms)
        elif before is not None and before.state.digest == state.digest:
            again = structs.replace(before.state, epoch=state.epoch, reason=state.reason)
            self._keep(again, heard_ms)
        self._write(state.task)
        return room

    def _keep(self, state: MemoryState, heard_ms: int) -> bool:
        kept = self._kept.get(state.task)
        had = _size(kept.state) if kept is not None else 0
        if self._bytes - had + _size(state) > CHECKPOINTS_MAX_BYTES:
            if kept is not None:
                kept.state = structs.replace(kept.state, reason=NO_ROOM)
            return False
        if kept is None:
            if len(self._kept) >= CHECKPOINTS_MAX:
                self.forget(next(iter(self._kept)))
            kept = _Kept(state, heard_ms)
        else:
            del self._kept[state.task]
            kept.state, kept.heard_ms = state, heard_ms
        self._kept[state.task] = kept
        self._bytes += _size(state) - had
        return True

    def of(self, task: str) -> MemoryState | None:
        """Return the newest of a task, with its age; its `reason` says that a newer one is not."""
        kept = self._kept.get(task)
        if kept is None:
            return None
        age_ms = max(0, self._desk.now_ms - kept.heard_ms)
        return structs.replace(kept.state, checkpoint_age_ms=age_ms)

    def forget(self, task: str) -> None:
        """Forget a task that is over, or that somebody else tells of."""
        kept = self._kept.pop(task, None)
        self._line.pop(task, None)
        if kept is None:
            return
        self._bytes -= _size(kept.state)
        if kept.durable is not None:
            self._desk.keep(CHECKPOINT, task, None, "checkpoint")

    def _write(self, task: str) -> None:
        """Have a task stand in line if its newest is to be durable, and write what may be."""
        kept, now_ms = self._kept.get(task), self._desk.now_ms
        due = kept is not None and now_ms - kept.durable_ms >= DURABLE_MS
        if kept is not None and due and kept.durable != kept.state.digest:
            self._line.setdefault(task)
        gained_bytes = (now_ms - self._room_ms) * DURABLE_BYTES_PER_S // 1000
        self._room_bytes = min(DURABLE_BURST_BYTES, self._room_bytes + gained_bytes)
        self._room_ms = now_ms
        while self._line and self._room_bytes > 0:
            first = next(iter(self._line))
            del self._line[first]
            self._make_durable(self._kept[first])

    def _make_durable(self, kept: _Kept) -> None:
        now_ms, unix_ms = self._desk.now_ms, self._desk.unix_ms
        heard_unix_ms = unix_ms - (now_ms - kept.heard_ms) if unix_ms else 0
        record = CheckpointRecord(kept.state, heard_unix_ms)
        self._desk.learn(CHECKPOINT, kept.state.task, record, "checkpoint")
        kept.durable, kept.durable_ms = kept.state.digest, now_ms
        self._room_bytes -= _size(kept.state) + RECORD_BYTES


def _size(state: MemoryState) -> int:
    return len(state.data or b"")
