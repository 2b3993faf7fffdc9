"""A device agent without sensors, journal and broker: the daemon's core, workshop and executors."""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.fetch import Fetcher
from device_agent.core import commands, events
from device_agent.core.core import Core
from device_agent.executors.door import Executor
from device_agent.run import log_keeper, make_executor
from device_agent.workshop import Makers, Workshop
from firmware_profiles import load
from protocols import codec
from protocols.manifest import ArtifactRef, ExecutorKind
from protocols.messages import Assign, Result
from protocols.messages.presence import ExecutorInfo, Inventory
from protocols.topics import INVOCATION_MAX_BYTES, Channel

NODE: Final = "node"
REPLY: Final = "tona/1/cell/client/bench/reply"
KINDS: Final = (ExecutorKind.WASM, ExecutorKind.ONNX)
STEP_TIMEOUT_S: Final = 60.0
MANY: Final = 1000


def bench_core() -> Core:
    """Return a core with room for many tasks."""
    inventory = Inventory(
        profile="generic-x86-64",
        arch="x86_64",
        os="linux",
        cpu_count=2,
        memory_bytes=1 << 40,
        disk_bytes=1 << 40,
        executors=tuple(ExecutorInfo(kind.value, "") for kind in KINDS),
        task_memory_bytes=1 << 40,
        max_instances=MANY,
    )
    return Core(node=NODE, agent_version="0", boot_id="bench", inventory=inventory)


class Shell:
    """Does what the core says, as the daemon does; what it would send ends here."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self.folder = folder
        self._core = bench_core()
        self.cache = ArtifactCache(folder / "artifacts", 1 << 30, time.time())
        blobs = BlobFolder(folder / "blobs", 1 << 30, 3600.0)
        self.executors: dict[ExecutorKind, Executor] = {}

        def maker(kind: ExecutorKind) -> Executor:
            made = make_executor(kind, load("generic-x86-64"), blobs.folder, folder)
            self.executors[kind] = made
            return made

        self.workshop = Workshop(
            Makers(
                {kind: lambda _, kind=kind: maker(kind) for kind in KINDS},  # type: ignore[misc]
                lambda: Fetcher(self.cache, blobs, tls=None),
                _no_sources,
                lambda: log_keeper(folder),
            ),
            self.cache,
            blobs,
            self.tell,
            _crash,
        )
        self._queue: deque[events.Event] = deque()
        self._telling = False
        self._timer: asyncio.TimerHandle | None = None
        self._answers: dict[str, asyncio.Future[Result]] = {}
        self._rested: dict[str, asyncio.Event] = {}
        self._ready: dict[str, asyncio.Event] = {}
        self.tell(events.Restored())
        self.tell(events.Connected(1))

    def put(self, data: bytes) -> ArtifactRef:
        """Lay an artifact into the cache."""
        name = hashlib.sha256(data).hexdigest()
        (self.cache.folder / name).write_bytes(data)
        return ArtifactRef(f"sha256:{name}", len(data))

    def tell(self, event: events.Event) -> None:
        """Hand an event to the core and do what it says, in order."""
        if isinstance(event, events.InstanceReady):
            _note(self._ready, event.instance)
        self._queue.append(event)
        if self._telling:
            return
        self._telling = True
        try:
            while self._queue:
                for command in self._core.handle(self._queue.popleft(), self._loop.time() * 1000):
                    self._do(command)
        finally:
            self._telling = False
        due_ms = self._core.next_due_ms
        if self._timer is not None:
            self._timer.cancel()
        if due_ms is not None:
            self._timer = self._loop.call_at(due_ms / 1000, self.tell, events.Tick())

    def _do(self, command: commands.Command) -> None:
        match command:
            case commands.FetchArtifact(digest=digest):
                self.tell(events.ArtifactReady(digest))
            case commands.Reply(body=Result() as result):
                self._answers.pop(result.request).set_result(result)
            case commands.RestInstance(instance=instance):
                self.workshop.doors[type(command)](command)
                _note(self._rested, instance)
            case _:
                door = self.workshop.doors.get(type(command))
                if door is not None:
                    door(command)

    async def assign(self, assign: Assign) -> None:
        """Hold a task and wait until it is ready. Raises TimeoutError."""
        self._received(Channel.COMMAND, codec.encode(_frame(assign), INVOCATION_MAX_BYTES))
        await self._happened(self._ready, assign.task)

    async def _happened(self, what: dict[str, asyncio.Event], task: str) -> None:
        event = what.setdefault(task, asyncio.Event())
        await asyncio.wait_for(event.wait(), STEP_TIMEOUT_S)
        event.clear()

    async def rested(self, task: str) -> None:
        """Wait until an instance holds nothing."""
        await self._happened(self._rested, task)
        # What was told to the executor has to be done: nothing of it answers.
        await asyncio.sleep(0.005)

    async def ask(self, payload: bytes, request: str) -> Result:
        """Hand in a request as it comes from the wire, and wait for its answer."""
        answer = self._answers[request] = self._loop.create_future()
        self._received(Channel.INVOKE, payload)
        return await asyncio.wait_for(answer, STEP_TIMEOUT_S)

    def _received(self, channel: Channel, payload: bytes) -> None:
        frame = codec.decode(payload, INVOCATION_MAX_BYTES)
        self.tell(events.Received(channel, frame.sender, 1, 0, "default", "bench", frame.body))

    async def close(self) -> None:
        """End every executor."""
        if self._timer is not None:
            self._timer.cancel()
        await self.workshop.close()


def _frame(body: object) -> codec.Frame:
    return codec.Frame(codec.VERSION, "bench", 1, 0, "default", "bench", body)  # type: ignore[arg-type]


def payload(body: object) -> bytes:
    """Return a message as the wire carries it."""
    return codec.encode(_frame(body), INVOCATION_MAX_BYTES)


def _note(what: dict[str, asyncio.Event], instance: str) -> None:
    what.setdefault(instance.partition("~")[0], asyncio.Event()).set()


def _no_sources() -> None:  # type: ignore[misc]
    raise NotImplementedError


def _crash(error: BaseException) -> None:
    raise error


@asynccontextmanager
async def running_shell() -> AsyncIterator[Shell]:
    """Run a shell in a folder that goes with it."""
    with TemporaryDirectory(prefix="tona-bench-") as name:
        shell = Shell(Path(name))
        try:
            yield shell
        finally:
            await shell.close()
