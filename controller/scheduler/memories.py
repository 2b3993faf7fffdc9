"""What tasks remember: brought along when they move, asked for now and then lest a node is lost.

A move. The copy that is prepared awaits the memory of the one that serves (`Copy.origin`). First it
is given what that remembers now, while requests go on. When the route has switched and the old node
has ended the last run, the rest follows; until then requests wait at the new node. The old node
says nothing as final before its assignment is buried there, and the new one runs nothing before it
has journalled that it has everything: so no two ever write, and whoever dies in between, one node
has it all. Nothing here is kept over a restart: what a copy still awaits its node tells.

From another cell (`EnvelopeGrant.origin`) it comes the same way, by the anchor and the scheduler
there; the route switches when the anchor says that the task has arrived.

A loss. When the node with the memory is lost, its successor goes on with the newest copy that was
heard of, here or by the anchor in another cell, and the task's story says how old that is.
"""

from typing import Final

from msgspec import Struct, structs

from controller.decider import ToNode, ToRole
from controller.desk import Desk
from controller.scheduler.copies import Copy, CopyState, TaskEntry
from controller.scheduler.nodes import AWAY, NodeTable
from controller.scheduler.table import TaskTable
from protocols.messages import MemoryRequest, MemoryState, TaskEvent
from protocols.messages.hierarchy import NodeState
from protocols.messages.task import MEMORY_INLINE_BYTES, Origin

ASK_AGAIN_MS: Final = 500
"""A memory that was asked for or given is asked for or given again after this."""
COPY_MAX_MS: Final = 5000
"""So long a move waits for the first copy; then requests wait for all of it."""
WAIT_MAX_MS: Final = 45_000
"""So long requests wait for a memory: as long as a node has to end its runs, and to be heard."""
STORE_MS: Final = 1_800_000
"""A checkpoint in the cell's store is brought there anew after this: it is not kept for ever."""
TELL_MS: Final = 30_000
"""An anchor hears this often that a checkpoint is as it was."""
LENT_MAX: Final = 1024
"""Memories that other cells ask for; the oldest is forgotten, and asked for again."""
STORES_MAX: Final = 4
"""Stores of this cell that another one is told of."""
KEPT_MAX_BYTES: Final = 64 << 20
"""Of all checkpoints in messages; beyond it a task keeps the older one that it has, if any."""
NO_ROOM: Final = "a newer one has no room"


class _Way(Struct):
    """A memory on its way to one copy."""

    epoch: int
    """Of the copy."""
    since_ms: int
    """When the copy was ready for it; since the route has switched: when that was."""
    final: bool = False
    """Whether the route has switched, so that the rest is to follow."""
    heard_ms: int = 0
    """Since when the node that has it is there and has not said it."""
    asked_ms: int = -(10**12)
    copied: MemoryState | None = None
    """The first copy, as it was passed on."""
    rest: MemoryState | None = None
    """What is to be taken in last."""
    moved_bytes: int = 0
    over: bool = False
    """Whether there is nobody to take a first copy from."""
    lost: str = ""
    """Why it is not what the task remembered last."""
    lost_ms: int = 0
    """When it was given up."""
    missed_ms: int | None = None
    """Since when it is said that a node of another cell cannot say it."""
    checkpoint: MemoryState | None = None
    """What the anchor knows of the memory of another cell's node."""
    checkpoint_ms: int = 0
    """When the node has said that."""


class _Kept(Struct):
    """The newest that was heard of a task's memory where it runs."""

    asked_ms: int = -(10**12)
    state: MemoryState | None = None
    """The whole: in its data, or in the cell's store."""
    heard_ms: int = 0
    stored_ms: int = 0
    told: tuple[str, int, str | None] | None = None
    """Anchor that was told, epoch and digest."""
    told_ms: int = 0
    anew: bool = False
    """Whether all of it is asked for next: what was said does not follow on `state`."""


class _Lent(Struct):
    """A memory that another cell asks for."""

    anchor: str
    request: MemoryRequest
    """To be repeated when the task has ended: only what follows on what was said is asked for."""


class Memories:
    """Moves and keeps what the tasks of a cell remember."""

    def __init__(
        self, desk: Desk, nodes: NodeTable, table: TaskTable, store_urls: tuple[str, ...] = ()
    ) -> None:
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._store_urls = store_urls[:STORES_MAX]
        self._ways: dict[str, _Way] = {}
        self._kept: dict[str, _Kept] = {}
        self._kept_bytes = 0
        self._lent: dict[tuple[str, str], _Lent] = {}
        """By node and task."""
        self._roaming: set[str] = set()
        """Anchors that may place their tasks in other cells too."""

    def welcomed(self, anchor: str, *, roaming: bool) -> None:
        """Have an anchor told of checkpoints, anew where it was told, if it has other cells."""
        self._roaming.discard(anchor)
        if roaming:
            self._roaming.add(anchor)
        for kept in self._kept.values():
            kept.told = None

    # What the mover asks.

    def origin(self, entry: TaskEntry, node: str) -> Origin | None:
        """Return whose memory a new copy on a node has to wait for."""
        if not entry.grant.spec.manifest.remembers:
            return None
        current, grant = entry.current, entry.grant
        if current is not None:
            home = current.origin or Origin(current.node, current.epoch)
        elif grant.origin is not None:
            home = grant.origin
        elif grant.current_node and grant.current_epoch:
            home = Origin(grant.current_node, grant.current_epoch)
        else:
            return None
        return home if home.node != node else None

    def prepared(self, entry: TaskEntry) -> bool:
        """Whether a copy that is ready may take over: it has a first copy, or none is to be had."""
        coming, current = entry.coming, entry.current
        if coming is None or coming.origin is None:
            return True
        serves = current is not None and current.state is CopyState.READY
        if not serves or current is None or current.node != coming.origin.node:
            return True
        return self._copied(entry, coming)

    def arrived(self, entry: TaskEntry) -> bool:
        """Whether the copy here may take over from one in another cell, as `prepared`."""
        current = entry.current
        if not entry.grant.arriving or current is None or current.origin is None:
            return True
        return self._copied(entry, current)

    def _copied(self, entry: TaskEntry, copy: Copy) -> bool:
        way = self._ways.get(entry.task)
        if way is None or way.epoch != copy.epoch:
            return False
        copied = way.copied is not None and way.copied.digest == copy.remembers
        return copied or way.over or self._desk.now_ms - way.since_ms >= COPY_MAX_MS

    def binds(self, entry: TaskEntry) -> bool:
        """Whether a task has to stay where it is, until all that it remembers is there."""
        current = entry.current
        if current is None or current.origin is None:
            return False
        way = self._ways.get(entry.task)
        if entry.wanted == current.origin.node and (way is None or way.rest is None):
            # Back to where all of it still is.
            return False
        lives = current.state in (CopyState.READY, CopyState.ASSIGNED)
        return lives and self._nodes.state(current.node) is not NodeState.LOST

    # What is heard.

    def told(self, node: str, state: MemoryState, cause: str) -> None:
        """Take in what a node says that a task remembers."""
        # No node says where another one is to fetch, nor what only roles say to each other.
        state = structs.replace(state, store_urls=(), checkpoint_age_ms=None)
        lent = self._lent.get((node, state.task))
        if lent is not None and lent.request.epoch == state.epoch:
            known, known_bytes = state.digest or "", state.size_bytes
            lent.request = structs.replace(lent.request, known=known, known_bytes=known_bytes)
            self._desk.tell(ToRole(lent.anchor), self._found(state), cause)
        entry = self._table.tasks.get(state.task)
        if entry is None:
            return
        waiting, way = _waiting(entry), self._ways.get(state.task)
        if (
            waiting is not None
            and waiting.origin == Origin(node, state.epoch)
            and way is not None
            and way.epoch == waiting.epoch
        ):
            self._arrived(entry, waiting, way, state, cause)
        current = entry.current
        if current is not None and (current.node, current.epoch) == (node, state.epoch):
            self._keep(entry, state)

    def ended(self, node: str, task: str, cause: str) -> None:
        """Ask at once: a node has ended what was asked for."""
        lent = self._lent.get((node, task))
        if lent is not None:
            self._desk.tell(ToNode(node), lent.request, cause)
        entry, way = self._table.tasks.get(task), self._ways.get(task)
        if entry is None or way is None or not way.final:
            return
        waiting = _waiting(entry)
        if waiting is not None and waiting.origin is not None and waiting.origin.node == node:
            way.asked_ms = -(10**12)
            self._table.mark(entry, cause)

    # From cell to cell.

    def lend(self, anchor: str, request: MemoryRequest, cause: str) -> None:
        """Ask a node for a memory that another cell awaits."""
        key = request.node, request.task
        self._lent.pop(key, None)
        if len(self._lent) >= LENT_MAX:
            del self._lent[next(iter(self._lent))]
        asked = structs.replace(request, node="")
        self._lent[key] = _Lent(anchor, asked)
        self._desk.tell(ToNode(request.node), asked, cause)

    def _found(self, state: MemoryState) -> MemoryState:
        """Return a memory of this cell as another one can have it."""
        apart = state.digest is not None and state.data is None
        return structs.replace(state, store_urls=self._store_urls) if apart else state

    def came(self, state: MemoryState, cause: str) -> None:
        """Take in what a task remembers in another cell."""
        entry = self._table.tasks.get(state.task)
        waiting = _waiting(entry) if entry is not None else None
        if entry is not None and waiting is not None and waiting.origin is not None:
            home = waiting.origin
            if not self._far(entry, home) or home.epoch != state.epoch:
                return
            way = self._way(entry, waiting)
            if state.checkpoint_age_ms is not None:
                way.checkpoint = state
                way.checkpoint_ms = self._desk.now_ms - state.checkpoint_age_ms
            else:
                self._arrived(entry, waiting, way, state, cause)

    def _far(self, entry: TaskEntry, origin: Origin) -> bool:
        """Whether a memory is in another cell, where its node has not come here meanwhile."""
        away = self._nodes.state(origin.node) in AWAY
        return away and origin == entry.grant.origin

    def _arrived(
        self, entry: TaskEntry, copy: Copy, way: _Way, state: MemoryState, cause: str
    ) -> None:
        if state.digest is None or way.final != state.final:
            # It has ended there already: whoever is prepared takes over and asks for all of it.
            way.over = way.over or (state.final and not way.final)
            if state.final and way.missed_ms is None:
                way.missed_ms = self._desk.now_ms
            self._table.mark(entry, cause)
            return
        if not _follows(copy, way, state):
            return
        if way.final:
            way.rest = state
        else:
            way.copied = state
        self._pass_on(copy, way, state, cause)

    def _pass_on(self, copy: Copy, way: _Way, state: MemoryState, cause: str) -> None:
        way.moved_bytes += len(state.data) if state.data is not None else state.size_bytes
        way.asked_ms = self._desk.now_ms
        self._desk.tell(ToNode(copy.node), state, cause)

    # What is due.

    def sweep(self) -> None:
        """Ask for what was not said, and for checkpoints."""
        now_ms = self._desk.now_ms
        for task, way in self._ways.items():
            if now_ms - way.asked_ms >= ASK_AGAIN_MS and task in self._table.tasks:
                self._table.mark(self._table.tasks[task], "sweep")
        for task in [one for one in self._kept if one not in self._table.tasks]:
            self._drop(task)
        for task, kept in self._kept.items():
            entry = self._table.tasks[task]
            if kept.told is None:
                self._tell(entry, kept)
            every_ms = entry.grant.spec.policy.checkpoint_ms
            if every_ms and now_ms - kept.asked_ms >= every_ms:
                self._ask_checkpoint(entry, kept)

    def step(self, entry: TaskEntry, cause: str) -> None:
        """Bring the memory of a task closer to where it is awaited."""
        if not entry.grant.spec.manifest.remembers:
            return
        self._kept.setdefault(entry.task, _Kept(asked_ms=self._desk.now_ms))
        copy = _waiting(entry)
        if copy is None or copy.origin is None:
            self._settled(entry, cause)
            return
        way = self._way(entry, copy)
        if way.final and self._gone(entry, copy.origin, way):
            self._give_up(entry, copy, copy.origin, way, cause)
        elif way.lost and self._desk.now_ms - way.lost_ms >= WAIT_MAX_MS and _apart(way):
            self._begin_without(entry, copy, way, cause)
        elif self._desk.now_ms - way.asked_ms >= ASK_AGAIN_MS and (
            way.final or not (self.prepared(entry) and self.arrived(entry))
        ):
            self._ask(entry, copy, copy.origin, way, cause)

    def _way(self, entry: TaskEntry, copy: Copy) -> _Way:
        way, now_ms = self._ways.get(entry.task), self._desk.now_ms
        if way is None or way.epoch != copy.epoch:
            way = self._ways[entry.task] = _Way(copy.epoch, now_ms)
        if copy is entry.current and not way.final and not entry.grant.arriving:
            way.final, way.asked_ms = True, now_ms
            way.since_ms = way.heard_ms = now_ms
            if copy.origin and not self._table.releases.waits(copy.origin.node, entry.task):
                way.asked_ms = -(10**12)
        return way

    def _gone(self, entry: TaskEntry, origin: Origin, way: _Way) -> bool:
        """Whether a memory has to be given up: as the policy says for a node that is lost."""
        policy, now_ms = entry.grant.spec.policy, self._desk.now_ms
        if way.lost:
            return False
        if self._far(entry, origin):
            if way.missed_ms is not None and (not policy.replace or way.rest is not None):
                way.heard_ms = now_ms
            missed_ms = now_ms - way.missed_ms if way.missed_ms is not None else -1
            silent = now_ms - way.heard_ms >= WAIT_MAX_MS
            return silent or (policy.replace and missed_ms >= policy.lost_after_ms)
        if self._nodes.state(origin.node) is not NodeState.LOST:
            return now_ms - way.heard_ms >= WAIT_MAX_MS
        if way.rest is not None or not policy.replace:
            way.heard_ms = now_ms
            return False
        slot = self._nodes.slots.get(origin.node)
        silent_ms = now_ms - way.since_ms
        if slot is not None:
            silent_ms = self._nodes.silent_ms(slot, now_ms)
        return silent_ms >= policy.lost_after_ms

    def _ask(self, entry: TaskEntry, copy: Copy, origin: Origin, way: _Way, cause: str) -> None:
        """Ask for a memory, or pass on again what was not taken in."""
        if way.rest is not None and (way.lost or _follows(copy, way, way.rest)):
            self._pass_on(copy, way, way.rest, cause)
            return
        known, size_bytes = "", 0
        if way.final and way.copied is not None and way.copied.digest == copy.remembers:
            known, size_bytes = copy.remembers, way.copied.size_bytes
        way.asked_ms = self._desk.now_ms
        kind = entry.grant.spec.manifest.kind
        request = MemoryRequest(entry.task, origin.epoch, kind, known, size_bytes)
        if self._far(entry, origin):
            asked = structs.replace(request, node=origin.node, checkpoint=self._wanted(way))
            self._desk.tell(ToRole(entry.anchor), asked, cause, entry.tenant)
        else:
            self._desk.tell(ToNode(origin.node), request, cause)

    def _wanted(self, way: _Way) -> str | None:
        """Return which checkpoint an anchor need not say; None: all of it may come yet."""
        if way.checkpoint is not None:
            return way.checkpoint.digest
        late = way.final and self._desk.now_ms - way.heard_ms >= ASK_AGAIN_MS
        return "" if late else None

    def _give_up(self, entry: TaskEntry, copy: Copy, origin: Origin, way: _Way, cause: str) -> None:
        """Have a copy go on with the newest that was heard of a memory which is lost."""
        kept, now_ms = self._kept.get(entry.task), self._desk.now_ms
        state, heard_ms = way.checkpoint, way.checkpoint_ms
        if kept is not None and kept.state is not None and kept.state.epoch == origin.epoch:
            state, heard_ms = kept.state, kept.heard_ms
        way.lost_ms = now_ms
        way.lost = f"{origin.node} is lost with what it remembered"
        if state is not None:
            way.lost += f"; it goes on with what was known {now_ms - heard_ms} ms before"
            way.lost += f" ({state.reason})" if state.reason else ""
        elif copy.remembers:
            way.lost += "; it goes on with the copy that was made for the move"
        else:
            way.lost += "; nothing of it is known"
        if state is None or state.digest == copy.remembers:
            state = MemoryState(entry.task, origin.epoch)
        way.rest = structs.replace(
            state, epoch=origin.epoch, final=True, reason=way.lost, checkpoint_age_ms=None
        )
        self._pass_on(copy, way, way.rest, cause)

    def _begin_without(self, entry: TaskEntry, copy: Copy, way: _Way, cause: str) -> None:
        """Have a copy begin with what it has: no store gives what is known of the memory."""
        way.lost += ", which no store has given; it begins " + (
            "with the copy that was made for the move" if copy.remembers else "with nothing"
        )
        epoch = way.rest.epoch if way.rest is not None else 0
        way.rest = MemoryState(entry.task, epoch, final=True, reason=way.lost)
        self._pass_on(copy, way, way.rest, cause)

    def _settled(self, entry: TaskEntry, cause: str) -> None:
        way, current = self._ways.get(entry.task), entry.current
        if way is None or (current is not None and current.epoch == way.epoch and current.origin):
            return
        del self._ways[entry.task]
        if current is None or current.epoch != way.epoch or not way.final:
            return
        took_ms = self._desk.now_ms - way.since_ms
        detail = way.lost or (
            f"{way.moved_bytes} bytes came along to {current.node}, requests waited {took_ms} ms"
        )
        event = "memory-lost" if way.lost else "memory-moved"
        told = TaskEvent(entry.task, event, detail[:1000])
        self._desk.tell(ToRole(entry.anchor), told, cause, entry.tenant)

    # Checkpoints.

    def _ask_checkpoint(self, entry: TaskEntry, kept: _Kept) -> None:
        current, now_ms = entry.current, self._desk.now_ms
        serves = current is not None and current.state is CopyState.READY
        if current is None or not serves or current.origin or entry.task in self._ways:
            return
        known, size_bytes, state = "", 0, kept.state
        stored = now_ms - kept.stored_ms < STORE_MS
        if (
            state is not None
            and not kept.anew
            and state.epoch == current.epoch
            and (stored or state.data is not None)
        ):
            known, size_bytes = state.digest or "", state.size_bytes
        kept.asked_ms = now_ms
        kind = entry.grant.spec.manifest.kind
        request = MemoryRequest(entry.task, current.epoch, kind, known, size_bytes)
        self._desk.tell(ToNode(current.node), request, "checkpoint")

    def _keep(self, entry: TaskEntry, state: MemoryState) -> None:
        kept = self._kept.get(entry.task)
        if kept is None or state.digest is None:
            return
        have = kept.state
        if have is not None and have.digest == state.digest and have.epoch == state.epoch:
            kept.state, kept.heard_ms = structs.replace(have, reason=""), self._desk.now_ms
            kept.anew = False
            self._tell(entry, kept)
            return
        whole = state
        if state.after_bytes:
            data = b""
            if have is not None and have.data is not None and have.size_bytes == state.after_bytes:
                data = have.data + (state.data or b"")
            if not data or len(data) > MEMORY_INLINE_BYTES:
                # What it follows on is another one, or both are too large for a message: all of it
                # is asked for next, and what is known stays until it is there.
                kept.anew, kept.asked_ms = True, -(10**12)
                return
            whole = structs.replace(state, data=data, after_bytes=0)
        if self._kept_bytes - _weight(have) + _weight(whole) > KEPT_MAX_BYTES:
            if have is not None:
                kept.state = structs.replace(have, reason=NO_ROOM)
                self._tell(entry, kept)
            return
        self._kept_bytes += _weight(whole) - _weight(have)
        kept.state, kept.heard_ms, kept.anew = whole, self._desk.now_ms, False
        if whole.data is None:
            kept.stored_ms = self._desk.now_ms
        self._tell(entry, kept)

    def _tell(self, entry: TaskEntry, kept: _Kept) -> None:
        """Have an anchor of several cells know it: the task may go on in another one."""
        state, now_ms = kept.state, self._desk.now_ms
        if state is None or entry.anchor not in self._roaming:
            return
        told = entry.anchor, state.epoch, state.digest
        known = kept.told == told
        if known and now_ms - kept.told_ms < TELL_MS:
            return
        kept.told, kept.told_ms = told, now_ms
        said = structs.replace(state, data=None) if known else self._found(state)
        said = structs.replace(said, final=False, checkpoint_age_ms=now_ms - kept.heard_ms)
        self._desk.tell(ToRole(entry.anchor), said, "checkpoint", entry.tenant)

    def _drop(self, task: str) -> None:
        self._kept_bytes -= _weight(self._kept.pop(task).state)
        self._ways.pop(task, None)


def _weight(state: MemoryState | None) -> int:
    """Return what a checkpoint takes here."""
    return len(state.data or b"") if state is not None else 0


def _waiting(entry: TaskEntry) -> Copy | None:
    """Return the copy of a task that is ready but for its memory; the one that serves first."""
    for copy in (entry.current, entry.coming):
        if copy is not None and copy.origin is not None and copy.state is CopyState.READY:
            return copy
    return None


def _follows(copy: Copy, way: _Way, state: MemoryState) -> bool:
    """Whether a copy has what this follows on: it is whole, or the first copy was taken in."""
    copied = way.copied
    return not state.after_bytes or (
        copied is not None
        and copied.digest == copy.remembers
        and copied.size_bytes == state.after_bytes
    )


def _apart(way: _Way) -> bool:
    """Whether what a copy is given lies in a store, of which nothing may be left either."""
    rest = way.rest
    return rest is not None and rest.digest is not None and rest.data is None
