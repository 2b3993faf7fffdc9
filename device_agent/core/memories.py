"""What tasks remember, when they move: said to whoever asks, taken in before anything runs.

An instance that awaits a memory is ready, and lets its requests wait. It may be given copies of it
meanwhile; the final one is journalled as taken in before the first request runs, so that neither a
crash nor a late word makes it go back. What is said as final comes from a task that is buried here:
under its epoch nothing can run any more.
"""

from hashlib import sha256

from msgspec import structs

from device_agent.core.commands import Keep, ReadMemory, Say, WriteMemory
from device_agent.core.events import MemoryRead, MemoryWritten
from device_agent.core.instances import Held, Instance
from device_agent.core.tasks import Tasks
from device_agent.core.turn import Turn
from device_agent.core.workers import Workers
from protocols.messages.task import (
    MEMORY_INLINE_BYTES,
    InstanceState,
    MemoryRequest,
    MemoryState,
)
from protocols.topics import Channel


class Memories:
    """The memories that leave this node and come to it."""

    def __init__(self, turn: Turn, tasks: Tasks, workers: Workers) -> None:
        self._turn = turn
        self._tasks = tasks
        self._workers = workers
        self._leaving: set[str] | None = None
        """Tasks whose memory is read for the last time, as the node ends; None: it does not."""

    def last_words(self) -> bool:
        """Say once what the tasks of a node that ends remember; return whether that is under way.

        Their runs have ended: whoever goes on with them elsewhere has it all.
        """
        if self._leaving is None:
            self._leaving = set()
            for task, held in self._tasks.held.items():
                assign = held.assign
                if assign.manifest.remembers and assign.origin is None and not held.released:
                    self._leaving.add(task)
                    asked = MemoryRequest(task, assign.epoch, assign.manifest.kind)
                    self._turn.out.append(ReadMemory(asked, "", self._turn.store_urls, "end"))
        return bool(self._leaving)

    def asked(self, request: MemoryRequest, cause: str) -> None:
        """Have a memory read, if it is here and as it is meant."""
        held = self._tasks.held.get(request.task)
        name = ""
        if held is not None:
            serving = held.serving(request.epoch, self._turn.now_ms)
            if held.released or serving is None or serving.awaits is not None:
                self._turn.counts["memory not ready"] += 1
                return
            name = serving.name
        elif request.epoch > self._tasks.tombstones.get(request.task, -1):
            self._turn.counts["memory unknown"] += 1
            return
        self._turn.out.append(ReadMemory(request, name, self._turn.store_urls, cause))

    def read(self, event: MemoryRead) -> None:
        """Say what was read, unless what was to be final has begun anew meanwhile."""
        state = event.state
        if self._leaving is not None and state.task in self._leaving:
            self._leaving.discard(state.task)
            state = structs.replace(state, final=False)
        if not (state.final and state.task in self._tasks.held):
            self._turn.out.append(Say(Channel.STATUS, state, "memory"))

    def given(self, state: MemoryState, cause: str) -> None:
        """Take in what a task shall remember, if it waits for that."""
        held, instance = self._waiting(state)
        if held is None or instance is None:
            self._turn.counts["memory not awaited"] += 1
            self._tasks.tell(state.task, cause)
        elif instance.state is InstanceState.READY:
            urls = tuple(dict.fromkeys((*state.store_urls, *self._turn.store_urls)))
            self._turn.out.append(WriteMemory(instance.name, state, urls, cause))

    def written(self, event: MemoryWritten) -> None:
        """Go on with what has come."""
        state = event.state
        held, instance = self._waiting(state)
        if held is None or instance is None or instance.name != event.instance:
            return
        if event.text:
            instance.remembers, instance.remark = "", f"its memory: {event.text}"
        elif not state.final:
            instance.remembers = state.digest or ""
        else:
            held.assign = structs.replace(held.assign, origin=None)
            self._turn.out.append(Keep(held.assign, "memory"))
            for one in (held.coming, held.current):
                if one is not None and one.awaits is not None:
                    one.awaits, one.remembers = None, ""
                    self._workers.next(one)
        self._tasks.tell(state.task, "memory")

    def _waiting(self, state: MemoryState) -> tuple[Held | None, Instance | None]:
        """Return the instance that waits for a memory."""
        held = self._tasks.held.get(state.task)
        for one in (held.coming, held.current) if held is not None and not held.released else ():
            if one is not None and one.awaits is not None and one.awaits.epoch == state.epoch:
                return held, one
        return None, None


def tell_of(said: MemoryState, whole: bytes, request: MemoryRequest) -> MemoryState:
    """Return how a memory is told of: what follows on what is known, all, or by digest alone."""
    known = request.known_bytes
    begins = bool(known) and digest_of(whole[:known]) == request.known
    rest = whole[known:] if begins else whole
    return structs.replace(
        said,
        digest=digest_of(whole),
        size_bytes=len(whole),
        data=rest if len(rest) <= MEMORY_INLINE_BYTES else None,
        after_bytes=known if begins and len(rest) <= MEMORY_INLINE_BYTES else 0,
    )


def digest_of(data: bytes) -> str:
    """Return the digest of bytes as messages name it."""
    return f"sha256:{sha256(data).hexdigest()}"


def whole_of(state: MemoryState, base: bytes) -> bytes:
    """Return a memory that came in a message, over what was given before."""
    return base[: state.after_bytes] + (state.data or b"")
