"""What tasks remember, on its way from node to node: read and written here, small or by digest.

A node that waits for a memory keeps the copy that it was given first until the whole has come, so
that only what follows has to be moved while requests wait. Loaded when a task with memory moves.
"""

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, structs

from device_agent.core import commands, events
from device_agent.core.memories import digest_of, tell_of, whole_of
from device_agent.executors.door import Executor, ExecutorFailure
from protocols.errors import EnvironmentFailure
from protocols.manifest import MAX_STATE_BYTES, ExecutorKind
from protocols.messages.task import MemoryState

if TYPE_CHECKING:
    from device_agent.transfers import Transfers


WHOLE_MAX_BYTES: Final = 2 * MAX_STATE_BYTES
"""Of a memory that is fetched: what the largest limit allows, and as much again for its keys."""


class _Writing(Struct):
    """What one instance is given."""

    now: commands.WriteMemory | None = None
    next: commands.WriteMemory | None = None
    """The newest that came meanwhile."""
    whole_epoch: int = -1
    """Under which the newest final one was remembered that it has; it may await another later."""


class Memories:
    """Carries out `ReadMemory` and `WriteMemory`."""

    def __init__(
        self,
        executors: dict[str, Executor],
        executor: Callable[[ExecutorKind], Executor],
        transfers: "Transfers",
        tell: Callable[[events.Event], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._executors = executors
        """By instance."""
        self._executor = executor
        self._transfers = transfers
        self._tell = tell
        self._spawn = spawn
        self._bases: dict[str, bytes] = {}
        """By instance that waits: what it was given last."""
        self._writings: dict[str, _Writing] = {}
        """By instance."""

    def read(self, command: commands.ReadMemory) -> None:
        """Say what a task remembers."""
        self._spawn(self._read(command))

    def write(self, command: commands.WriteMemory) -> None:
        """Have an instance remember what it is given, one state after the other.

        What is said again while it is fetched counts once; nothing more is written of an epoch
        whose final one it has, for the instance may have run and would go back.
        """
        for gone in self._writings.keys() - self._executors.keys():
            del self._writings[gone]
        one = self._writings.setdefault(command.instance, _Writing())
        newest = one.next or one.now
        if command.state.epoch <= one.whole_epoch or (
            newest is not None and newest.state == command.state
        ):
            return
        if one.now is not None:
            one.next = command
            return
        one.now = command
        self._spawn(self._write(one))

    async def _read(self, command: commands.ReadMemory) -> None:
        request = command.request
        said = MemoryState(request.task, request.epoch, final=not command.instance)
        try:
            whole = await self._remembered(command)
            said = tell_of(said, whole, request)
            if said.data is None:
                self._transfers.store(whole)
                await self._transfers.push(str(said.digest), command.urls)
        except ExecutorFailure as error:
            said = structs.replace(said, digest=None, data=None, reason=error.failed.text[:1000])
        except (OSError, EnvironmentFailure) as error:
            said = structs.replace(said, digest=None, data=None, reason=str(error)[:1000])
        self._tell(events.MemoryRead(said))

    async def _remembered(self, command: commands.ReadMemory) -> bytes:
        if not command.instance:
            return self._executor(command.request.kind).recall(command.request.task)
        executor = self._executors.get(command.instance)
        if executor is None:
            raise EnvironmentFailure("the instance has just ended")
        return await executor.snapshot(command.instance)

    async def _write(self, one: _Writing) -> None:
        while one.now is not None:
            command, text = one.now, ""
            try:
                await self._restore(command.instance, command)
            except ExecutorFailure as error:
                text = error.failed.text or "it failed"
            except (OSError, EnvironmentFailure) as error:
                text = str(error) or "it failed"
            if command.state.final and not text:
                one.whole_epoch = command.state.epoch
            one.now, one.next = one.next, None
            if one.now is not None and one.now.state.epoch <= one.whole_epoch:
                one.now = None
            self._tell(events.MemoryWritten(command.instance, command.state, text[:1000]))

    async def _restore(self, name: str, command: commands.WriteMemory) -> None:
        state, executor = command.state, self._executors.get(name)
        if executor is None:
            raise EnvironmentFailure("the instance has just ended")
        if state.digest is None:
            self._bases.pop(name, None)
            return
        if state.size_bytes > WHOLE_MAX_BYTES:
            raise EnvironmentFailure(f"{state.size_bytes} bytes are more than a task may remember")
        if state.data is None:
            path = await self._transfers.get(state.digest, state.size_bytes, command.urls)
            whole = path.read_bytes()
        else:
            whole = whole_of(state, self._bases.get(name, b""))
        if digest_of(whole) != state.digest:
            raise EnvironmentFailure("it is not what follows on what was given before")
        await executor.restore(name, whole)
        self._bases = {one: base for one, base in self._bases.items() if one in self._executors}
        if state.final:
            self._bases.pop(name, None)
        else:
            self._bases[name] = whole
