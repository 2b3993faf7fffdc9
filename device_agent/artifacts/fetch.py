"""Fetching artifacts and blobs, pushing blobs: the daemon's door to its transfer process.

The process is started by the first transfer and leaves when there was none for `IDLE_EXIT_S`: HTTP
and hashing take memory that an idle daemon must not hold.
"""

import asyncio
import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.shelf import DIGEST_PREFIX, PART_PREFIX, Shelf, hex_of
from device_agent.artifacts.turns import Turns
from device_agent.core.queue import FIRST, LEAST, Urgency
from device_agent.executors.contract import read_failure
from device_agent.executors.door import ExecutorFailure, Failed
from device_agent.executors.link import Reply
from device_agent.executors.process import Process
from protocols.errors import Blame, EnvironmentFailure
from protocols.manifest import ArtifactRef
from protocols.messages.invocation import FailureCode

IDLE_EXIT_S: Final = 5.0
PARALLEL: Final = 4
"""Transfers at once; more wait for their turn."""
NEIGHBOURS_FROM_BYTES: Final = 1 << 20
"""Smaller artifacts come from the store at once: to ask who has them takes as long."""
MAX_TRANSFERS: Final = 256
"""Transfers under way or waiting; one more is refused, but for a memory: few tasks move at once."""
_PROGRAM: Final = Path(__file__).parent / "fetch_child.py"


class TlsFiles(Struct, frozen=True):
    """Whom to trust and who we are, in PEM files."""

    authority: Path
    certificate: Path
    key: Path


class _Transfer(Struct, eq=False):
    """A transfer, in line or under way."""

    task: asyncio.Task[Any]
    urgency: Urgency | None = None
    """Of whom it is most urgent to; None: it waits in no line."""
    begun: bool = False
    wanted: int = 0
    """By so many who wait for it."""
    going: asyncio.Future[None] | None = None
    """Done when its turn has come."""


class Fetcher:
    """Moves content between this node and the cell's stores.

    With a folder of trust an artifact comes, and is said to be there, only when it is signed for
    its tenant by somebody who may.
    """

    def __init__(
        self,
        cache: ArtifactCache,
        blobs: BlobFolder,
        *,
        tls: TlsFiles | None = None,
        trust: Path | None = None,
        node: str = "",
        interpreter: str = sys.executable,
    ) -> None:
        self._cache = cache
        self._blobs = blobs
        self._tls = [str(tls.authority), str(tls.certificate), str(tls.key)] if tls else None
        self._trust = trust
        self._node = node
        self._interpreter = interpreter
        self._process: Process | None = None
        self._transfers: dict[str, _Transfer] = {}
        self._turns = Turns[_Transfer](PARALLEL)
        self._idle: asyncio.TimerHandle | None = None
        self._ends: set[asyncio.Task[None]] = set()

    async def fetch_artifact(
        self, ref: ArtifactRef, urls: list[str], tenant: str = "default"
    ) -> Path:
        """Return the verified artifact, fetched from the first base URL that has it.

        Raises ExecutorFailure. Pin the digest before other fetches may need its room.
        """
        if not self._cache.verified(ref.digest, ref.size_bytes, tenant):
            work = partial(self._artifact, tenant)
            # The digest last: `_get` knows by it what is being gathered.
            await self._join(f"artifact {tenant} {ref.digest}", work, ref, urls)
        return self._cache.path(ref.digest)

    async def check_trust(self, urls: list[str]) -> tuple[int, int]:
        """Bring what this node trusts up to date; what is signed no more starts no more.

        Returns root's version and the expiry of the newest timestamp in seconds since 1970. Raises
        ExecutorFailure.
        """
        request = {"op": "trust", "trust": self._asked("", urls), "tls": self._tls}
        try:
            reply = await self._say(request)
        finally:
            if not self._transfers:
                # Nothing follows: an idle node does not hold the process that it was for.
                self._leave()
        root, expires, struck = reply.trust or (0, 0, [])
        for target in struck:
            self._cache.strike(target)
        return root, expires

    async def fetch_blob(
        self, digest: str, size_bytes: int, urls: list[str], urgency: Urgency = LEAST
    ) -> Path:
        """Return the value's file, fetched from the first base URL that has it.

        Raises ExecutorFailure.
        """
        ref = ArtifactRef(digest, size_bytes)
        if not self._blobs.has(digest, size_bytes):
            await self._value(_named(digest), self._blob, ref, urls, urgency)
        return self._blobs.path(digest)

    async def push_blob(self, digest: str, urls: list[str], urgency: Urgency = LEAST) -> str:
        """Put a value of this node into the first of the cell's stores that takes it.

        Returns its digest, which what was made here gets now. Raises ExecutorFailure.
        """
        ref = ArtifactRef(digest, 0)
        self._blobs.pin(digest)
        try:
            named: str = await self._value(
                _named(digest, pushing=True), self._push, ref, urls, urgency
            )
        finally:
            self._blobs.unpin(digest)
        return named

    def hurry_blob(self, digest: str, urgency: Urgency, *, pushing: bool = False) -> None:
        """Have a value that waits to be fetched, or pushed, be as urgent as this, if it is not."""
        transfer = self._transfers.get(_named(digest, pushing=pushing))
        if transfer is not None:
            self._hurry(transfer, urgency)

    def _hurry(self, transfer: _Transfer, urgency: Urgency) -> None:
        if transfer.urgency is not None:
            transfer.urgency = min(transfer.urgency, urgency)
            self._turns.hurry(transfer, urgency)

    async def close(self) -> None:
        """Give up what is under way and end the process."""
        for transfer in list(self._transfers.values()):
            transfer.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExecutorFailure):
                await transfer.task
        self._leave()
        while self._ends:
            await asyncio.gather(*self._ends)

    async def _value(
        self, name: str, work: Any, ref: ArtifactRef, urls: list[str], urgency: Urgency
    ) -> Any:
        """Move a value when it is the most urgent of those that wait."""

        async def in_turn(ref: ArtifactRef, urls: list[str]) -> Any:
            transfer = self._transfers[name]
            await self._place(transfer)
            transfer.begun = True
            try:
                return await work(ref, urls)
            finally:
                self._give_place()

        return await self._join(name, in_turn, ref, urls, urgency)

    async def _place(self, transfer: _Transfer) -> None:
        """Wait for a place."""
        transfer.going = going = asyncio.get_running_loop().create_future()
        if self._turns.take(transfer, transfer.urgency or LEAST):
            return
        try:
            await going
        except asyncio.CancelledError:
            self._turns.leave(transfer)
            if not going.cancelled():
                self._give_place()
            raise

    def _give_place(self) -> None:
        """Let the most urgent of those that wait go on."""
        while transfer := self._turns.give():
            if transfer.going is not None and not transfer.going.done():
                transfer.going.set_result(None)
                return

    async def _join(
        self,
        name: str,
        work: Any,
        ref: ArtifactRef,
        urls: list[str],
        urgency: Urgency | None = None,
    ) -> Any:
        """Do a transfer, or wait for the same one that is under way.

        One with an urgency waits in line, and leaves it with the last of those who want it.
        """
        transfer = self._transfers.get(name)
        if transfer is None:
            if len(self._transfers) >= MAX_TRANSFERS and urgency != FIRST:
                raise _failed(f"{MAX_TRANSFERS} transfers wait already")
            work_begun = asyncio.create_task(work(ref, urls))
            transfer = _Transfer(work_begun, urgency, begun=urgency is None)
            self._transfers[name] = transfer
            transfer.task.add_done_callback(partial(self._finished, name))
        elif urgency is not None:
            self._hurry(transfer, urgency)
        transfer.wanted += 1
        try:
            return await asyncio.shield(transfer.task)
        finally:
            transfer.wanted -= 1
            if not transfer.begun and not transfer.wanted:
                self._forget(name, transfer.task)
                transfer.task.cancel()

    def _forget(self, name: str, task: asyncio.Task[Any]) -> None:
        transfer = self._transfers.get(name)
        if transfer is not None and transfer.task is task:
            del self._transfers[name]

    def _finished(self, name: str, task: asyncio.Task[Any]) -> None:
        self._forget(name, task)
        if not task.cancelled():
            # Whoever waited may be gone; the failure was theirs to hear.
            task.exception()
        if not self._transfers and self._process is not None and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE_EXIT_S, self._leave)

    async def _artifact(self, tenant: str, ref: ArtifactRef, urls: list[str]) -> None:
        self._check(ref.digest)
        await self._after_others(ref.digest)
        trust = self._asked(f"{tenant}/{hex_of(ref.digest)}", urls)
        bases = [f"{base}/v1/artifacts" for base in urls]
        if self._cache.has(ref.digest, ref.size_bytes):
            # Nothing but what lies here may be in use: it is only looked at, and room is not made.
            await self._ask("get", self._cache, ref, bases, trust)
        else:
            await self._get(self._cache, ref, bases, trust, neighbours=True)
        self._cache.mark_verified(ref.digest, tenant)

    async def _after_others(self, digest: str) -> None:
        """Wait for those who gather the same content for other tenants, and came before."""
        for name, transfer in list(self._transfers.items()):
            if transfer.task is asyncio.current_task():
                return
            if name.startswith("artifact ") and name.endswith(digest):
                await asyncio.wait([transfer.task])

    def _asked(self, target: str, urls: list[str]) -> dict[str, Any] | None:
        if self._trust is None:
            return None
        return {"folder": str(self._trust), "target": target, "urls": urls}

    async def _blob(self, ref: ArtifactRef, urls: list[str]) -> None:
        self._check(ref.digest)
        await self._get(self._blobs, ref, [f"{base}/v1/blobs" for base in urls])

    async def _push(self, ref: ArtifactRef, urls: list[str]) -> str:
        # Whoever asked may leave before it has ended.
        self._blobs.pin(ref.digest)
        try:
            return await self._put(ref, [f"{base}/v1/blobs" for base in urls])
        finally:
            self._blobs.unpin(ref.digest)

    async def _put(self, ref: ArtifactRef, bases: list[str]) -> str:
        if ref.digest.startswith(DIGEST_PREFIX):
            self._check(ref.digest)
            await self._ask("put", self._blobs, ref, bases)
            return ref.digest
        request = {
            "op": "put",
            "hex": "",
            "urls": [f"{base}/" for base in bases],
            "path": str(self._blobs.path(ref.digest)),
            "folder": str(self._blobs.folder),
            "tls": self._tls,
        }
        return DIGEST_PREFIX + (await self._say(request)).digest

    async def _get(
        self,
        shelf: Shelf,
        ref: ArtifactRef,
        bases: list[str],
        trust: dict[str, Any] | None = None,
        *,
        neighbours: bool = False,
    ) -> None:
        try:
            # What other transfers gather must not be taken from under them.
            busy = frozenset(PART_PREFIX + name[-64:] for name in self._transfers)
            shelf.make_room(max(0, ref.size_bytes - shelf.gathered(ref.digest)), busy=busy)
        except EnvironmentFailure as error:
            raise _failed(str(error)) from None
        neighbours = neighbours and ref.size_bytes >= NEIGHBOURS_FROM_BYTES
        await self._ask("get", shelf, ref, bases, trust, neighbours=neighbours)

    async def _ask(
        self,
        op: str,
        shelf: Shelf,
        ref: ArtifactRef,
        bases: list[str],
        trust: dict[str, Any] | None = None,
        *,
        neighbours: bool = False,
    ) -> None:
        name = hex_of(ref.digest)
        request = {
            "op": op,
            "hex": name,
            "size": ref.size_bytes,
            "urls": [f"{base}/{name}" for base in bases],
            "path": str(shelf.path(ref.digest)),
            "part": str(shelf.part(ref.digest)),
            "tls": self._tls,
            "trust": trust,
            "neighbours": f"?but={self._node}" if neighbours else "",
        }
        await self._say(request)

    async def _say(self, request: dict[str, Any]) -> Reply:
        reply = await self._running().link.ask(request)
        if reply is None:
            what = request.get("hex", "")[:12]
            raise _failed(f"the transfer process ended during {request['op']} {what}".rstrip())
        if reply.fail is not None:
            raise ExecutorFailure(read_failure(reply.fail))
        return reply

    def _running(self) -> Process:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._process is None:
            try:
                arguments = (str(PARALLEL),)
                self._process = Process(self._interpreter, _PROGRAM, arguments, self._ended)
            except EnvironmentFailure as error:
                raise _failed(str(error)) from None
        return self._process

    def _ended(self, process: Process) -> None:
        if self._process is process:
            self._process = None
        task = asyncio.create_task(process.end())
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    def _leave(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._process is not None:
            self._process.link.close()

    @staticmethod
    def _check(digest: str) -> None:
        try:
            hex_of(digest)
        except EnvironmentFailure as error:
            raise _failed(str(error)) from None


def _named(digest: str, *, pushing: bool = False) -> str:
    return f"{'push' if pushing else 'blob'} {digest}"


def _failed(text: str) -> ExecutorFailure:
    return ExecutorFailure(Failed(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True))
