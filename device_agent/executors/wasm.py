"""Wasm tasks: core modules of the ABI `tona-core-1` in one host process, a fresh store a call.

Compiled modules lie in a private folder under a seal; one that is missing or broken is compiled
again in a process that exits. A call that does not stop takes the host with it: its neighbours'
calls fail as retryable, and every instance loads again at its next call.
"""

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from device_agent.executors.calls import Instance, Run, Slots
from device_agent.executors.contract import DIGEST_PREFIX
from device_agent.executors.door import PLAIN, ExecutorFailure, Setup
from device_agent.executors.link import Link, Reply
from device_agent.executors.process import PROGRAMS, OnEnd, Process, no_end, probe
from device_agent.executors.remote import (
    START_TIMEOUT_S,
    OnExit,
    RemoteExecutor,
    check_failure,
    constant_frame,
    failed,
    load_frame,
    log,
    no_exit,
)
from protocols.errors import Blame, EnvironmentFailure
from protocols.manifest import ExecutorKind, Manifest
from protocols.messages.invocation import FailureCode
from protocols.messages.presence import ExecutorInfo

COMPILE_TIMEOUT_S: Final = 120.0
MAX_THREADS: Final = 4
"""Calls that one host runs at once, at most."""
KEY_BYTES: Final = 32
UNCOMPILED: Final = "uncompiled"
"""The host's word for a module that is not in the cache as it should be."""


class WasmExecutor(RemoteExecutor):
    """Runs Wasm tasks; `door.Executor` is the contract."""

    kind = ExecutorKind.WASM
    # Long, for it hits the neighbours: large outputs may be on their way to the disk.
    stop_grace_s = 2.0

    def __init__(
        self,
        *,
        blobs: Path,
        cache: Path,
        interpreter: str = sys.executable,
        threads: int = 0,
        on_exit: OnExit = no_exit,
    ) -> None:
        """`cache` becomes a private folder; `threads` is how many calls run at once, 0: by cores.

        Raises EnvironmentFailure when the folder cannot be made private.
        """
        super().__init__(blobs, on_exit)
        self._cache = cache
        self._interpreter = interpreter
        self._threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._slots = Slots(self._threads)
        self._loading = asyncio.Lock()
        self._keys = 0
        self._host: Process | None = None
        self._compiling: dict[str, asyncio.Task[None]] = {}
        _make_private(cache)

    def _new_slots(self) -> Slots:
        return self._slots

    async def probe(self) -> ExecutorInfo | None:
        """Say what this executor can do here, or None when it cannot run; never raises."""
        found = await probe(self._interpreter, PROGRAMS / "wasm_host.py")
        if found is None:
            return None
        about = msgspec.json.decode(found)
        return ExecutorInfo(kind=self.kind.value, version=about["version"])

    async def deploy(self, artifact: Path, manifest: Manifest, setup: Setup = PLAIN) -> None:
        """Check and compile a module into the cache; idempotent. Raises ExecutorFailure."""
        del setup
        self._running_host()
        try:
            await self._compiled(artifact, _hex(manifest))
        finally:
            self._settle_down()

    async def _compiled(self, artifact: Path, digest: str) -> None:
        # A whole pair was vetted when it was made; the host holds it against its seal.
        if all((self._cache / f"{digest}{one}").exists() for one in (".cwasm", ".seal")):
            return
        await self._compile_once(artifact, digest)

    async def _compile_once(self, artifact: Path, digest: str) -> None:
        task = self._compiling.get(digest)
        if task is None:
            task = asyncio.create_task(self._compile(artifact, digest))
            self._compiling[digest] = task
            task.add_done_callback(lambda _: self._compiling.pop(digest))
        await asyncio.shield(task)

    async def _compile(self, artifact: Path, digest: str) -> None:
        if not (self._cache / "key").exists():
            _make_private_again(self._cache)
        compiler = self._spawn("wasm_compile.py", (), no_end)
        request = {"source": str(artifact), "digest": digest, "folder": str(self._cache)}
        try:
            reply = await asyncio.wait_for(compiler.link.ask(request), COMPILE_TIMEOUT_S)
        except TimeoutError:
            text = f"the module was not compiled after {COMPILE_TIMEOUT_S:.0f} s: make it smaller"
            raise failed(FailureCode.LIMIT, Blame.USER, text) from None
        finally:
            compiler.kill()
            await compiler.end()
        check_failure(reply, "compiling the module: it takes too much memory, or was killed")

    def _spawn(self, program: str, arguments: tuple[str, ...], on_end: OnEnd) -> Process:
        try:
            return Process(self._interpreter, PROGRAMS / program, arguments, on_end)
        except EnvironmentFailure as error:
            raise failed(
                FailureCode.EXECUTOR, Blame.ENVIRONMENT, str(error), retryable=True
            ) from None

    async def _launch(self, instance: Instance) -> None:
        host = self._running_host()
        self._keys += 1
        instance.key = self._keys
        frame = load_frame(instance.manifest, self._blobs) | {
            "key": instance.key,
            "constants": constant_frame(instance.constants),
            "folder": str(self._cache),
            "digest": _hex(instance.manifest),
        }
        reply = await self._load(host.link, dict(frame))
        if reply is not None and reply.fail is not None and reply.fail[2] == UNCOMPILED:
            await self._compile_once(instance.artifact, _hex(instance.manifest))
            reply = await self._load(host.link, dict(frame))
        loaded = check_failure(reply, f"loading task {instance.task!r}")
        if host.link.open:
            instance.links = [host.link]
            instance.pid = loaded.pid
            self._remark(instance)

    async def _load(self, link: Link, frame: dict[str, object]) -> Reply | None:
        # One at a time: the host has one thread for it beside those of the calls.
        async with self._loading:
            number, answer = link.post(frame)
            await asyncio.wait({answer}, timeout=START_TIMEOUT_S)
            if answer.done():
                return answer.result()
            link.tell({"op": "stop", "id": number})
            await asyncio.wait({answer}, timeout=self.stop_grace_s)
            if not answer.done() and self._host is not None and self._host.link is link:
                self._drop_host()
        text = f"the module's start function did not end within {START_TIMEOUT_S:.0f} s"
        raise failed(FailureCode.LIMIT, Blame.USER, text)

    def _running_host(self) -> Process:
        self._stay()
        if self._host is None:
            self._host = self._spawn("wasm_host.py", (str(self._threads),), self._host_ended)
        return self._host

    def _host_ended(self, host: Process) -> None:
        if self._host is host:
            lost = self._drop_host()
            self._spawn_task(self._report(host, lost))

    async def _report(self, host: Process, lost: list[Instance]) -> None:
        reason = f"the Wasm host {await host.exited()}"
        log.warning("%s with %d instances", reason, len(lost))
        for instance in lost:
            self._on_exit(instance.task, reason)

    def _drop_host(self) -> list[Instance]:
        """End the host, if there is one; the instances that it held."""
        host, self._host = self._host, None
        if host is None:
            return []
        lost = [one for one in self._instances.values() if host.link in one.links]
        for instance in lost:
            instance.links = []
        host.kill()
        self._spawn_task(host.end())
        return lost

    def _interrupt(self, run: Run) -> None:
        if run.sent is not None:
            run.sent.tell({"op": "stop", "id": run.number})

    def _kill(self, run: Run) -> None:
        if self._host is not None and self._host.link is run.sent:
            self._drop_host()

    async def stop(self, task: str) -> None:
        """End an instance and free what it held; unknown ones are ignored."""
        instance = await self._forget(task)
        if instance is None:
            return
        if instance.link is not None and instance.link.open:
            instance.link.tell({"op": "unload", "id": 0, "key": instance.key})
        self._settle_down()

    async def tune(self, task: str, setup: Setup) -> None:
        """Let an instance run so: the core sends so many calls at once, threads are the bound."""
        instance = self._instances.get(task)
        if instance is not None:
            instance.setup = setup
            self._remark(instance)

    def _remark(self, instance: Instance) -> None:
        """Note what one process for all tasks cannot give each."""
        setup = instance.setup
        instance.remarks.clear()
        if setup.cpu_percent > 0:
            instance.remarks["share"] = "Wasm tasks share one process: no share of their own"
        if setup.replicas > self._threads:
            instance.remarks["replicas"] = f"Wasm tasks run {self._threads} calls at once together"

    def _retire(self) -> None:
        self._drop_host()

    async def close(self) -> None:
        """End every process of this executor."""
        for task in list(self._instances):
            await self.stop(task)
        for compiling in list(self._compiling.values()):
            compiling.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExecutorFailure):
                await compiling
        await self._close_shared()


def _hex(manifest: Manifest) -> str:
    return manifest.artifact.digest.removeprefix(DIGEST_PREFIX)


def _make_private_again(folder: Path) -> None:
    """Renew a cache that somebody has cleared away. Raises ExecutorFailure."""
    try:
        _make_private(folder)
    except EnvironmentFailure as error:
        raise failed(FailureCode.EXECUTOR, error.blame, str(error), retryable=True) from None


def _make_private(folder: Path) -> None:
    """Create the cache of compiled modules and its key. Raises EnvironmentFailure."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        for left in folder.glob(".part-*"):
            left.unlink()
        with contextlib.suppress(FileExistsError):
            key = os.open(folder / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(key, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot make a private folder for compiled modules at {folder}: {error.strerror}"
        ) from None
