"""What comes to this node and leaves it beside messages: artifacts, large values, sources.

Every command is answered, whatever happens.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from device_agent.artifacts.blobs import BlobFolder
from device_agent.core import commands, events
from device_agent.core.queue import FIRST
from device_agent.executors.door import ExecutorFailure
from protocols.errors import EnvironmentFailure
from protocols.manifest import ArtifactRef
from protocols.messages import invocation
from protocols.messages.presence import Trust

if TYPE_CHECKING:
    from device_agent.artifacts.fetch import Fetcher
    from device_agent.sources import Reading, Sources

TRIM_EVERY_S: Final = 2.0
READERS_MAX: Final = 8
"""Sources that are read at once; one that hangs keeps its place, the others go on."""

log = logging.getLogger("tona.node")


class Transfers:
    """Carries out what the core wants of stores, blob folder and sources.

    `fetcher` and `sources` make what is loaded only when it is first needed.
    """

    def __init__(
        self,
        blobs: BlobFolder,
        fetcher: "Callable[[], Fetcher]",
        sources: "Callable[[], Sources]",
        tell: Callable[[events.Event], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._blobs = blobs
        self._make_fetcher = fetcher
        self._make_sources = sources
        self._tell = tell
        self._spawn = spawn
        self.fetching: Fetcher | None = None
        """None: nothing was transferred yet."""
        self._sources: Sources | None = None
        self._reading: set[tuple[str, str]] = set()
        """Services and inputs whose source is being read, or waits to be: once each."""
        self._unread: deque[commands.ReadSource] = deque()
        self._readers = 0
        self._trimmed_s = 0.0
        self._moves: dict[tuple[str, bool], list[asyncio.Task[None]]] = {}
        """Who waits for a value, by its digest and whether it is pushed."""
        self.doors: dict[type, Callable[[Any], object]] = {
            commands.CheckTrust: lambda command: spawn(self._check_trust(command)),
            commands.FetchArtifact: lambda command: spawn(self._fetch_artifact(command)),
            commands.FetchBlob: self._fetch_blob,
            commands.PushBlob: self._push_blob,
            commands.LeaveBlob: self._leave_blob,
            # In a task, as the transfer: one that was asked for just before is known by then.
            commands.HurryBlob: lambda command: spawn(self._hurry_blob(command)),
            commands.StoreValue: lambda command: spawn(self._store_value(command)),
            commands.ReadSource: self._read_source,
        }

    def store(self, data: bytes) -> str:
        """Lay bytes into the blob folder; return their digest. Raises OSError."""
        from hashlib import sha256  # noqa: PLC0415 - rare: outputs are small, or files already

        digest = f"sha256:{sha256(data).hexdigest()}"
        part = self._blobs.part(digest)
        try:
            part.write_bytes(data)
            part.replace(self._blobs.path(digest))
        except OSError:
            part.unlink(missing_ok=True)
            raise
        return digest

    def trim(self) -> None:
        """Keep the blob folder within its bounds."""
        now_s = time.time()
        if not 0 <= now_s - self._trimmed_s < TRIM_EVERY_S:
            self._trimmed_s = now_s
            try:
                self._blobs.trim(now_s)
            except EnvironmentFailure as error:
                log.warning("%s", error)

    async def artifact(self, ref: ArtifactRef, urls: tuple[str, ...]) -> None:
        """Have an artifact in the cache. Raises ExecutorFailure."""
        await self._fetcher().fetch_artifact(ref, list(urls))

    def _fetcher(self) -> "Fetcher":
        if self.fetching is None:
            self.fetching = self._make_fetcher()
        return self.fetching

    async def _fetch_artifact(self, command: commands.FetchArtifact) -> None:
        ref = ArtifactRef(command.digest, command.size_bytes)
        try:
            await self._fetcher().fetch_artifact(ref, list(command.urls), command.tenant)
        except ExecutorFailure as error:
            failed = error.failed
            self._tell(
                events.ArtifactFailed(
                    command.digest, failed.text, failed.blame, failed.retryable, command.tenant
                )
            )
        else:
            self._tell(events.ArtifactReady(command.digest, command.tenant))

    async def _check_trust(self, command: commands.CheckTrust) -> None:
        try:
            root, expires_s = await self._fetcher().check_trust(list(command.urls))
        except ExecutorFailure as error:
            log.warning("%s", error.failed.text)
            trust = Trust(problem=error.failed.text[:1000])
        else:
            trust = Trust(root, expires_s)
        self._tell(events.TrustChecked(trust))

    def _fetch_blob(self, command: commands.FetchBlob) -> None:
        if self._blobs.has(command.digest, command.size_bytes):
            self._have(command.digest)
        else:
            self._move((command.digest, False), self._get_blob(command))

    def _push_blob(self, command: commands.PushBlob) -> None:
        self._move((command.digest, True), self._bring_blob(command))

    def _leave_blob(self, command: commands.LeaveBlob) -> None:
        waiting = self._moves.get((command.digest, command.pushing))
        if waiting:
            waiting.pop().cancel()

    async def _hurry_blob(self, command: commands.HurryBlob) -> None:
        if self.fetching is not None:
            self.fetching.hurry_blob(command.digest, command.urgency, pushing=command.pushing)

    def _move(self, key: tuple[str, bool], work: Coroutine[Any, Any, None]) -> None:
        def done(task: asyncio.Task[None]) -> None:
            if task in waiting:
                waiting.remove(task)
            if not waiting and self._moves.get(key) is waiting:
                del self._moves[key]

        waiting = self._moves.setdefault(key, [])
        task = self._spawn(work)
        waiting.append(task)
        task.add_done_callback(done)

    async def _get_blob(self, command: commands.FetchBlob) -> None:
        try:
            await self._fetcher().fetch_blob(
                command.digest, command.size_bytes, list(command.urls), command.urgency
            )
        except ExecutorFailure as error:
            self._tell(events.BlobFailed(command.digest, error.failed.text))
        else:
            self._have(command.digest)

    def _have(self, digest: str) -> None:
        # A pin renews the time of last use, so that `trim` leaves the file to the call that waits.
        self._blobs.pin(digest)
        self._blobs.unpin(digest)
        self._tell(events.BlobReady(digest))

    async def get(self, digest: str, size_bytes: int, urls: tuple[str, ...]) -> Path:
        """Have a memory in the blob folder; return its file. Raises ExecutorFailure."""
        if not self._blobs.has(digest, size_bytes):
            await self._fetcher().fetch_blob(digest, size_bytes, list(urls), FIRST)
        return self._blobs.path(digest)

    async def push(self, digest: str, urls: tuple[str, ...]) -> None:
        """Bring a memory to the cell's store. Raises ExecutorFailure."""
        await self._fetcher().push_blob(digest, list(urls), FIRST)
        self.trim()

    async def _bring_blob(self, command: commands.PushBlob) -> None:
        try:
            named = await self._fetcher().push_blob(
                command.digest, list(command.urls), command.urgency
            )
        except ExecutorFailure as error:
            self._tell(events.BlobFailed(command.digest, error.failed.text, pushing=True))
        else:
            self._tell(events.BlobPushed(command.digest, named))

    async def _store_value(self, command: commands.StoreValue) -> None:
        value = command.value
        try:
            digest = self.store(value.data)
            await self._fetcher().push_blob(digest, list(command.urls))
        except OSError as error:
            text = f"the value does not fit into {self._blobs.folder}: {error.strerror}"
            self._tell(events.StoreFailed(command.key, text))
        except ExecutorFailure as error:
            self._tell(events.StoreFailed(command.key, error.failed.text))
        else:
            blob = invocation.Blob(value.dtype, value.shape, digest, len(value.data))
            self._tell(events.Stored(command.key, blob))

    # Sources.

    def _read_source(self, command: commands.ReadSource) -> None:
        """Read in a thread that neither the loop nor the end of the process waits for."""
        key = command.service, command.input
        if key in self._reading:
            text = f"source {command.name!r} is still being read"
            self._tell(events.SourceFailed(*key, text))
            return
        self._reading.add(key)
        self._unread.append(command)
        self._read_next()

    def _read_next(self) -> None:
        if not self._unread or self._readers >= READERS_MAX:
            return
        if self._sources is None:
            self._sources = self._make_sources()
        self._readers += 1
        command = self._unread.popleft()
        work = self._sources, command, asyncio.get_running_loop()
        thread = threading.Thread(target=self._reader, args=work, name="source", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._have_read(command, EnvironmentFailure(f"no thread to read in: {error}"))

    def _reader(
        self,
        sources: "Sources",
        command: commands.ReadSource,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Read and tell the loop; the thread's outermost edge."""
        found: Reading | BaseException | None
        try:
            found = sources.read(command)
        except Exception as error:  # noqa: BLE001 - the loop judges it
            found = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(self._have_read, command, found)

    def _have_read(
        self, command: commands.ReadSource, found: "Reading | BaseException | None"
    ) -> None:
        service, name = command.service, command.input
        self._readers -= 1
        self._reading.discard((service, name))
        self._read_next()
        try:
            if isinstance(found, BaseException):
                raise found
            value = self._value(found, command.inline_bytes) if found is not None else None
        except (EnvironmentFailure, OSError) as error:
            cursor = getattr(error, "cursor", "")
            self._tell(events.SourceFailed(service, name, str(error), cursor))
            return
        cursor = found.cursor if found is not None else ""
        self._tell(events.SourceRead(service, name, value, cursor))

    def _value(self, found: "Reading", inline_bytes: int) -> invocation.Value:
        """Return what a source gave as a message carries it."""
        if len(found.data) <= inline_bytes:
            return invocation.Tensor(found.dtype, found.shape, found.data)
        digest = self.store(found.data)
        self.trim()
        return invocation.Blob(found.dtype, found.shape, digest, len(found.data))
