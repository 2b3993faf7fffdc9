"""Artifacts and blobs over HTTP: streamed both ways, with ranges, verified before visible."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from controller.api.body import PIECE_BYTES, chunks, declared_bytes
from controller.api.collecting import Collector, alive, needed
from controller.api.content import Contents, Retention, Upload
from controller.api.errors import Refused, body_of
from controller.api.stored import Content, PutArtifact, Stored
from controller.records import ARTIFACT, ArtifactRecord
from controller.registry import LiveRegistry
from protocols.errors import Blame

ARTIFACT_MAX_BYTES: Final = 16 << 30
BLOB_MAX_BYTES: Final = 1 << 30
BLOBS_MAX_BYTES: Final = 4 << 30
"""All blobs together; the oldest go first."""
BLOB_MAX_AGE_S: Final = 3600.0
"""No invocation lives longer."""
MAX_UPLOADS: Final = 32
SWEEP_S: Final = 60.0
WRITE_BYTES: Final = PIECE_BYTES
"""What is gathered before a thread writes it."""
WHOLE_BYTES: Final = 4 << 20
"""A content up to this size is read and sent at once."""

Recorder = Callable[[ArtifactRecord, str, str], Awaitable[None]]
"""Makes a record durable and visible, for a tenant and with a cause."""


class Collect(Struct, frozen=True):
    """What collecting artifacts takes."""

    ready: Callable[[], bool]
    """Whether this process knows now of everything that may need one."""
    forget: Callable[[str, str], Awaitable[None]]
    """Strikes the record of an artifact, by its digest, with a cause."""


class Bulk:
    """The cell's store of contents: artifacts stay while they are needed, blobs pass."""

    def __init__(
        self,
        folder: Path,
        registry: LiveRegistry,
        record: Recorder,
        clock_s: Callable[[], float] = time.time,
        collect: "Collect | None" = None,
    ) -> None:
        self.artifacts = Contents(folder / "artifacts", ARTIFACT_MAX_BYTES)
        self.blobs = Contents(folder / "blobs", BLOB_MAX_BYTES, passing=True)
        self.retention = Retention(BLOBS_MAX_BYTES, BLOB_MAX_AGE_S)
        self._registry = registry
        self._record = record
        self._clock_s = clock_s
        self._collect = collect
        self._collector = Collector()
        self._uploads = 0

    def prepare(self) -> None:
        """Make the folders and take stock of what is there. Raises UserError."""
        self.artifacts.prepare()
        self.blobs.prepare()
        for name, size_bytes, since_s in self.blobs.held():
            self.retention.add(name, size_bytes, since_s)

    async def sweep_forever(self) -> None:
        """Remove what is too old or needed no more, until cancelled."""
        while True:
            await self.sweep()
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> None:
        """Remove the blobs that are too old or too many, and artifacts that nobody needs."""
        await self._sweep_blobs()
        if self._collect is not None and self._collect.ready():
            records, held = alive(self._registry.model), self.artifacts.held
            used = await asyncio.to_thread(needed, records)
            there = await asyncio.to_thread(held)
            for name in self._collector.look(there, used, self._clock_s()):
                await self._collect.forget(f"sha256:{name}", "collected")
                await asyncio.to_thread(self.artifacts.remove, name)

    async def _sweep_blobs(self) -> None:
        for name in self.retention.sweep(self._clock_s()):
            await asyncio.to_thread(self.blobs.remove, name)

    async def put_artifact(
        self, request: Request, arguments: PutArtifact, tenant: str, cause: str
    ) -> tuple[ArtifactRecord, bool]:
        """Keep an artifact and record it. Returns its record and whether it is new."""
        size_bytes, new = await self._receive(request, self.artifacts, arguments.hex)
        digest = f"sha256:{arguments.hex}"
        known = self._registry.model.get(ARTIFACT, digest) or ArtifactRecord(digest, size_bytes)
        record = ArtifactRecord(
            digest, size_bytes, arguments.name or known.name, arguments.media or known.media
        )
        if record != self._registry.model.get(ARTIFACT, digest):
            await self._record(record, tenant, cause)
        return record, new

    async def put_blob(self, request: Request, arguments: Content) -> tuple[Stored, bool]:
        """Keep a large value for a while. Returns what is kept and whether it is new."""
        size_bytes, new = await self._receive(request, self.blobs, arguments.hex)
        self.retention.add(arguments.hex, size_bytes, self._clock_s())
        await self._sweep_blobs()
        return Stored(f"sha256:{arguments.hex}", size_bytes), new

    async def get(
        self, contents: Contents, what: str, hex_: str, *, whole: bool = False
    ) -> Response:
        """Return a content, or the range that the request asks for; `whole`: it asks for none.

        Raises Refused (404).
        """
        most_bytes = WHOLE_BYTES if whole else 0
        status, content = await asyncio.to_thread(contents.look, hex_, most_bytes)
        if status is None:
            raise Refused(404, f"there is no {what} sha256:{hex_}", "hex")
        headers = {"etag": f'"{hex_}"', "cache-control": "private, max-age=31536000, immutable"}
        if content is not None:
            headers["accept-ranges"] = "bytes"
            return Response(content, headers=headers, media_type="application/octet-stream")
        return _Content(contents.path(hex_), headers=headers, stat_result=status)

    async def _receive(self, request: Request, contents: Contents, hex_: str) -> tuple[int, bool]:
        if self._uploads >= MAX_UPLOADS:
            raise Refused(
                503,
                f"{MAX_UPLOADS} uploads are under way, try again in a moment",
                blame=Blame.ENVIRONMENT,
            )
        self._uploads += 1
        try:
            size_bytes = declared_bytes(request)
            if size_bytes is not None and size_bytes <= WRITE_BYTES:
                rest = await _gathered(request, contents.max_bytes)
                upload = await asyncio.to_thread(contents.take, hex_, rest)
                return upload.size_bytes, upload.new
            upload = await asyncio.to_thread(contents.receive, hex_, size_bytes)
            try:
                rest = await _copy(request, upload, contents.max_bytes)
                await asyncio.to_thread(upload.end, rest)
            except BaseException:
                await asyncio.to_thread(upload.close)
                raise
        finally:
            self._uploads -= 1
        return upload.size_bytes, upload.new


async def _copy(request: Request, upload: Upload, max_bytes: int) -> bytearray:
    """Write a body as it comes, but for its end, which is returned."""
    gathered = bytearray()
    async with aclosing(chunks(request, max_bytes)) as body:
        async for chunk in body:
            gathered = _joined(gathered, chunk)
            if len(gathered) >= WRITE_BYTES:
                await asyncio.to_thread(upload.write, gathered)
                gathered = bytearray()
    return gathered


async def _gathered(request: Request, max_bytes: int) -> bytearray:
    """Return a body whole."""
    gathered = bytearray()
    async for chunk in chunks(request, max_bytes):
        gathered = _joined(gathered, chunk)
    return gathered


def _joined(gathered: bytearray, chunk: bytes | bytearray) -> bytearray:
    """Return what was gathered and what has come, copied only where it must be."""
    if not gathered and isinstance(chunk, bytearray):
        return chunk
    gathered += chunk
    return gathered


class _Reader:
    """What a response needs of an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def read(self, size: int) -> bytes:
        return await asyncio.to_thread(self._file.read, size)

    async def seek(self, at: int) -> int:
        return self._file.seek(at)


class _Content(FileResponse):
    """A file with ranges; where the range is refused, with our kind of body."""

    chunk_size = 1 << 20

    def __init__(self, path: Path, **arguments: Any) -> None:
        super().__init__(path, media_type="application/octet-stream", **arguments)

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator["_Reader"]:  # type: ignore[override]  # all of a file that is used
        # Opened and closed at once, here: a thread that does it may be left behind with the file
        # when its request is cut short.
        with open(self.path, "rb") as file:  # noqa: ASYNC230, PTH123 - takes microseconds
            yield _Reader(file)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def retold(message: Message) -> None:
            nonlocal refused
            if message["type"] != "http.response.start":
                if not refused:
                    await send(message)
                return
            refused = message["status"] >= 400  # noqa: PLR2004 - HTTP's first status of an error
            if not refused:
                await send(message)
                return
            size = self.headers["content-length"]
            error = Refused(
                message["status"],
                f"the range does not lie within the {size} bytes: ask for bytes=FROM-TO",
            )
            headers = {"content-range": f"bytes */{size}"}
            response = Response(body_of(error), error.status, headers, "application/json")
            await response(scope, receive, send)

        await super().__call__(scope, receive, retold)
