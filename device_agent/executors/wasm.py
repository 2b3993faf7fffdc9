"""Wasm tasks: core modules in host processes, one for each tenant, a fresh store for each call.

Compiled modules lie in a private folder under a seal; one that is missing or broken is compiled
again in a process that exits. A call that does not stop takes its tenant's host with it: the calls
of the same tenant fail as retryable, and its instances load again at their next call.
"""

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from device_agent.executors.calls import Instance, Run, Slots
from device_agent.executors.contract import DIGEST_PREFIX, give_guest, read_guest
from device_agent.executors.door import LINKED, PLAIN, Done, ExecutorFailure, Failed, Setup
from device_agent.executors.hosts import Host, Hosts, OnEvent
from device_agent.executors.link import Link, Reply
from device_agent.executors.process import PROGRAMS, Process, probe
from device_agent.executors.programs.wire import MADE
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
from device_agent.executors.seals import FINGERPRINT, Seals
from protocols.errors import Blame, EnvironmentFailure
from protocols.manifest import ArtifactRef, ExecutorKind, HostFunction, Manifest
from protocols.messages.invocation import FailureCode
from protocols.messages.presence import ExecutorInfo

COMPILE_TIMEOUT_S: Final = 300.0
"""A compiler has one core, or what a busy machine leaves it of one."""
LULL_S: Final = 0.1
"""Without a call: what comes in a burst finds the room of the guest before it."""
LULL_SPARE_S: Final = 0.01
"""So much earlier is no other timer worth."""
MAX_THREADS: Final = 4
"""Calls that one host runs at once, at most."""
FORMS: Final = "forms"
"""The folder in the cache that hosts and compilers are let into; seals lie above it."""
LINKED_ROLE: Final = "library"
"""The role of a module that a program is linked with."""
DONE: Final = "exited with 0"
"""How a process ends that has done what it was for."""
MEMORY_MAX_AGE_S: Final = 90 * 86_400.0
"""How long a memory is kept that no task writes to; it may have moved to another node."""
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
        artifacts: Path,
        cache: Path,
        memories: Path,
        interpreter: str = sys.executable,
        threads: int = 0,
        on_exit: OnExit = no_exit,
    ) -> None:
        """`threads` is how many calls run at once, 0: by cores.

        `artifacts` is where constants lie; `cache`, for compiled modules, and `memories`, for
        what tasks remember, become private folders. Raises EnvironmentFailure when they cannot.
        """
        self._seals = Seals(cache)
        self._cache = cache / FORMS
        super().__init__(blobs, on_exit, (artifacts, self._cache, memories))
        self._memories = memories
        self._interpreter = interpreter
        self._threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._slots = Slots(self._threads)
        self._loading = asyncio.Lock()
        self._keys = 0
        folders = {
            "read": [str(self._cache), str(artifacts)],
            "look": [str(blobs)],
            "write": [str(blobs / MADE), str(memories)],
            "forms": str(self._cache),
            "blobs": str(blobs),
        }
        self._hosts = Hosts(self._start_zygote, folders, self._hung_up, self._report, self._asked)
        self._compiling: dict[str, asyncio.Task[None]] = {}
        self._lull: asyncio.TimerHandle | None = None
        self._answered_s = 0.0
        self._make_cache()
        private_folder(memories)
        _prune(memories)

    def _new_slots(self) -> Slots:
        return self._slots

    async def probe(self) -> ExecutorInfo | None:
        """Say what this executor can do here, or None when it cannot run; never raises."""
        found = await probe(self._interpreter, PROGRAMS / "wasm_zygote.py")
        if found is None:
            return None
        about = msgspec.json.decode(found)
        return ExecutorInfo(self.kind.value, about["version"], security=about["security"])

    async def deploy(self, artifact: Path, manifest: Manifest, setup: Setup = PLAIN) -> None:
        """Check and compile a module into the cache; idempotent. Raises ExecutorFailure."""
        self._host(setup.tenant)
        try:
            await self._compiled(artifact, _hex(manifest.artifact), _role(manifest))
        finally:
            self._settle_down()

    async def _compiled(self, artifact: Path, digest: str, role: str) -> None:
        # What is sealed was vetted when it was made; the host holds it against its fingerprint.
        if self._seals.fingerprint(digest) and (self._cache / f"{digest}.cwasm").exists():
            return
        await self._compile_once(artifact, digest, role)

    async def _compile_once(self, artifact: Path, digest: str, role: str) -> None:
        task = self._compiling.get(digest)
        if task is None:
            task = asyncio.create_task(self._compile(artifact, digest, role))
            self._compiling[digest] = task
            task.add_done_callback(lambda _: self._compiling.pop(digest))
        await asyncio.shield(task)

    async def _compile(self, artifact: Path, digest: str, role: str) -> None:
        try:
            if not self._cache.exists():
                self._make_cache()
        except EnvironmentFailure as error:
            raise failed(FailureCode.EXECUTOR, error.blame, str(error), retryable=True) from None
        compiler = self._compiler(artifact)
        folder = str(self._cache)
        request = {"source": str(artifact), "digest": digest, "folder": folder, "role": role}
        try:
            reply = await asyncio.wait_for(compiler.link.ask(request), COMPILE_TIMEOUT_S)
        except TimeoutError:
            text = f"the module was not compiled after {COMPILE_TIMEOUT_S:.0f} s: make it smaller"
            raise failed(FailureCode.LIMIT, Blame.USER, text) from None
        finally:
            compiler.kill()
        what = "compiling the module: it takes too much memory, or was killed"
        made = check_failure(reply, what)
        if FINGERPRINT.fullmatch(made.form) is None:
            text = "the compiler did not say what it made"
            raise failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, retryable=True)
        try:
            self._seals.put(digest, made.form)
        except EnvironmentFailure as error:
            raise _not_started(error) from None

    def _make_cache(self) -> None:
        """Make what holds compiled modules; raises EnvironmentFailure."""
        self._seals.renew()
        private_folder(self._cache)
        for left in self._cache.glob(".part-*"):
            left.unlink(missing_ok=True)

    def _compiler(self, artifact: Path) -> Host:
        """Return a process to compile in. Raises ExecutorFailure."""
        try:
            return self._hosts.compiler(str(artifact), str(self._cache))
        except EnvironmentFailure as error:
            raise _not_started(error) from None

    async def _launch(self, instance: Instance) -> None:
        host = self._host(instance.setup.tenant)
        self._keys += 1
        instance.key = self._keys
        reply = await self._load(host.link, self._load_frame(instance))
        if reply is not None and reply.fail is not None and reply.fail[2] == UNCOMPILED:
            await self._compile_all(instance)
            reply = await self._load(host.link, self._load_frame(instance))
        loaded = check_failure(reply, f"loading task {instance.task!r}")
        if host.link.open:
            instance.links = [host.link]
            instance.pid = loaded.pid
            self._remark(instance)
            if loaded.gaps:
                instance.remarks["sandbox"] = "; ".join(loaded.gaps)

    def _load_frame(self, instance: Instance) -> dict[str, Any]:
        """Return what a host needs to load an instance; most have little of it: it is short."""
        manifest = instance.manifest
        frame = load_frame(manifest) | {
            "key": instance.key,
            "form": self._form(manifest.artifact),
            "interface": manifest.called,
        }
        if manifest.functions:
            frame["functions"] = manifest.functions
        if manifest.infers:
            frame["infers"] = [one.name for one in manifest.infers]
        if manifest.modules:
            frame["modules"] = [(one.name, *self._form(one.artifact)) for one in manifest.modules]
        if manifest.arguments:
            frame["arguments"] = manifest.arguments
        if instance.constants:
            frame["constants"] = constant_frame(instance.constants)
        memory = self._memory_of(instance)
        if memory:
            frame["state"], frame["state_bytes"] = memory, manifest.limits.state_bytes
        return frame

    def _form(self, artifact: ArtifactRef) -> tuple[str, str]:
        """Return the name of a compiled module and the fingerprint that its file has to have."""
        name = _hex(artifact)
        return name, self._seals.fingerprint(name)

    def _memory_of(self, instance: Instance) -> str:
        """Return the file of an instance's memory; empty when it remembers nothing."""
        setup, limits = instance.setup, instance.manifest.limits
        if not limits.state_bytes or HostFunction.MEMORY not in instance.manifest.functions:
            return ""
        return str(self._memories / (setup.memory or instance.task))

    async def _compile_all(self, instance: Instance) -> None:
        """Compile what the host cannot map: what is whole stays. Raises ExecutorFailure."""
        manifest = instance.manifest
        await self._compile_once(instance.artifact, _hex(manifest.artifact), _role(manifest))
        for one in manifest.modules:
            path = instance.files.get(LINKED + one.name)
            if path is None:
                text = f"the linked module {one.name!r} is not on this node"
                raise failed(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True)
            await self._compile_once(path, _hex(one.artifact), LINKED_ROLE)

    async def _load(self, link: Link, frame: dict[str, object]) -> Reply | None:
        # One at a time: the host has one thread for it beside those of the calls.
        async with self._loading:
            number, answer = link.post(frame)
            await asyncio.wait({answer}, timeout=START_TIMEOUT_S)
            if answer.done():
                return answer.result()
            link.tell({"op": "stop", "id": number})
            await asyncio.wait({answer}, timeout=self.stop_grace_s)
            host = self._hosts.at(link)
            if not answer.done() and host is not None:
                host.kill()
        text = f"the module's start function did not end within {START_TIMEOUT_S:.0f} s"
        raise failed(FailureCode.LIMIT, Blame.USER, text)

    def _host(self, tenant: str) -> Host:
        """Return the host of a tenant, and have another one ready. Raises ExecutorFailure."""
        self._stay()
        self._look_at_folders()
        try:
            host = self._hosts.of(tenant)
            self._hosts.ready()
        except EnvironmentFailure as error:
            raise _not_started(error) from None
        return host

    def _start_zygote(self, on_event: OnEvent) -> Process:
        threads = (str(self._threads),)
        return Process(
            *(self._interpreter, PROGRAMS / "wasm_zygote.py", threads),
            *(self._zygote_ended, on_event),
        )

    def _zygote_ended(self, zygote: Process) -> None:
        self._hosts.forget(zygote)
        self._spawn_task(self._hosts.bury_all(zygote))

    def _hung_up(self, host: Host) -> None:
        """Let go of a host whose socket has ended; its instances load again at their next call."""
        for instance in self._instances.values():
            if host.link in instance.links:
                instance.links = []
                host.lost.append(instance.task)

    def _report(self, host: Host, reason: str) -> None:
        text = f"the Wasm host of tenant {host.tenant!r} {reason}"
        if host.tenant:
            log.warning("%s with %d instances", text, len(host.lost))
        elif reason != DONE:
            log.warning("a Wasm compiler, or a host that nobody used yet, %s", reason)
        for task in host.lost:
            self._on_exit(task, text)

    async def snapshot(self, task: str) -> bytes:
        """Return what an instance remembers; empty when it declares no memory."""
        instance = self._instances.get(task)
        path = self._memory_of(instance) if instance is not None else ""
        return _read(Path(path)) if path else b""

    def recall(self, memory: str) -> bytes:
        """Return what is remembered under a name. Raises ExecutorFailure."""
        return _read(self._memories / memory)

    async def restore(self, task: str, state: bytes) -> None:
        """Have an instance remember what another one does; its next call begins with it.

        Raises ExecutorFailure.
        """
        instance = self._instances.get(task)
        path = self._memory_of(instance) if instance is not None else ""
        if instance is None or not path:
            await super().restore(task, state)
            return
        _replace(Path(path), state)
        self._forget_memory(instance.setup.tenant, path)
        self._unload(instance)

    def _forget_memory(self, tenant: str, path: str) -> None:
        """Have the host of a tenant read a memory anew at its next use."""
        host = self._hosts.bound(tenant)
        if host is not None:
            host.link.tell({"op": "forget", "id": 0, "state": path})

    def _asked(self, host: Host, reply: Reply, body: memoryview) -> None:
        """Hear that a guest wants a model run; what a host makes up is dropped."""
        if reply.infer is None:
            return
        number, name, described = reply.infer
        for instance in self._instances.values():
            for call, run in instance.runs.items() if instance.manifest.infers else ():
                if run.sent is host.link and run.number == number:
                    values = read_guest(described, body)
                    if values is None:
                        text = "the Wasm host described values that cannot be"
                        failure = Failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, False)
                        self.inferred(instance.task, call, failure)
                    else:
                        self.on_infer(call, name, values)
                    return

    def inferred(self, task: str, call: str, result: Done | Failed) -> None:
        """Give a guest what the model gave; one that waits no more is ignored."""
        instance = self._instances.get(task)
        run = instance.runs.get(call) if instance is not None else None
        if run is None or run.sent is None:
            return
        frame: dict[str, Any] = {"op": "inferred", "id": run.number}
        buffers: list[bytes] = []
        if isinstance(result, Done):
            frame["out"], buffers = give_guest(result.outputs)
        else:
            frame["fail"] = (result.code, result.blame, result.text, result.retryable)
        run.sent.tell(frame, buffers=buffers)

    def _freed(self, instance: Instance, link: Link) -> None:
        """Have hosts give back the room of their guests when no call comes for a while."""
        del instance, link
        loop = asyncio.get_running_loop()
        self._answered_s = loop.time()
        if self._lull is None:
            self._lull = loop.call_later(LULL_S, self._rest_hosts)

    def _rest_hosts(self) -> None:
        loop = asyncio.get_running_loop()
        left_s = self._answered_s + LULL_S - loop.time()
        if left_s > LULL_SPARE_S:
            self._lull = loop.call_later(left_s, self._rest_hosts)
            return
        self._lull = None
        self._hosts.lull()

    def _interrupt(self, run: Run) -> None:
        if run.sent is not None:
            run.sent.tell({"op": "stop", "id": run.number})

    def _kill(self, run: Run) -> None:
        host = self._hosts.at(run.sent)
        if host is not None:
            host.kill()

    async def stop(self, task: str) -> None:
        """End an instance and free what it held; unknown ones are ignored."""
        instance = await self._forget(task)
        if instance is None:
            return
        if instance.link is not None and instance.link.open:
            self._unload(instance)
        path = self._memory_of(instance)
        if path and all(self._memory_of(one) != path for one in self._instances.values()):
            self._forget_memory(instance.setup.tenant, path)
        if not any(one.setup.tenant == instance.setup.tenant for one in self._instances.values()):
            self._hosts.release(instance.setup.tenant)
        self._settle_down()

    async def rest(self, task: str, *, keep: bool = False) -> None:
        """As every executor: the host keeps its recipe, so that its next call is as any other.

        A module that is mapped costs next to nothing, so with `keep` it stays.
        """
        instance = self._instances.get(task)
        if instance is None or keep or instance.runs or instance.link is None:
            return
        instance.link.tell({"op": "rest", "id": 0, "key": instance.key})
        instance.memory_bytes = 0

    async def wake(self, task: str) -> None:
        """As every executor; one whose host has lost it is loaded."""
        instance = self._instances.get(task)
        link = instance.link if instance is not None else None
        if instance is not None and link is not None:
            reply = await link.ask({"op": "wake", "key": instance.key})
            if reply is None or reply.fail is None:
                return
            instance.links = []
        await super().wake(task)

    def _unload(self, instance: Instance) -> None:
        if instance.link is not None:
            instance.link.tell({"op": "unload", "id": 0, "key": instance.key})
        instance.links = []

    async def tune(self, task: str, setup: Setup) -> None:
        """Let an instance run so: the core sends so many calls at once, threads are the bound."""
        instance = self._instances.get(task)
        if instance is not None:
            instance.setup = setup
            self._remark(instance)

    def _remark(self, instance: Instance) -> None:
        """Note what one process for all tasks cannot give each."""
        setup = instance.setup
        for one in ("share", "replicas"):
            instance.remarks.pop(one, None)
        if setup.cpu_percent > 0:
            instance.remarks["share"] = (
                "Wasm tasks of a tenant share one process: no share of their own"
            )
        if setup.replicas > self._threads:
            instance.remarks["replicas"] = f"Wasm tasks run {self._threads} calls at once together"

    def _renew(self) -> None:
        self._hosts.end()

    def _shared(self) -> list[int]:
        return self._hosts.pids()

    def _retire(self) -> None:
        self._hosts.retire()

    async def close(self) -> None:
        """End every process of this executor."""
        for task in list(self._instances):
            await self.stop(task)
        if self._lull is not None:
            self._lull.cancel()
        for compiling in list(self._compiling.values()):
            compiling.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExecutorFailure):
                await compiling
        await self._close_shared()


def _prune(memories: Path) -> None:
    """Delete what tasks remembered that were not here for long."""
    oldest_s = time.time() - MEMORY_MAX_AGE_S
    for one in memories.iterdir():
        with contextlib.suppress(OSError):
            if one.stat().st_mtime < oldest_s:
                one.unlink()


def _not_started(error: EnvironmentFailure) -> ExecutorFailure:
    return failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, str(error), retryable=True)


def _read(path: Path) -> bytes:
    """Read a memory; empty when nothing was remembered yet. Raises ExecutorFailure."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _no_memory(path, error) from None


def _replace(path: Path, state: bytes) -> None:
    """Write a memory in one step. Raises ExecutorFailure."""
    part = path.with_name(f"{path.name}.restored")
    try:
        part.write_bytes(state)
        part.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise _no_memory(path, error) from None


def _no_memory(path: Path, error: OSError) -> ExecutorFailure:
    text = f"the task's memory {path}: {error.strerror}"
    return failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, retryable=True)


def _hex(artifact: ArtifactRef) -> str:
    return artifact.digest.removeprefix(DIGEST_PREFIX)


def _role(manifest: Manifest) -> str:
    return manifest.called.value if manifest.called is not None else ""


def private_folder(folder: Path) -> None:
    """Create a folder that only its owner can enter. Raises EnvironmentFailure."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot make a private folder at {folder}: {error.strerror}"
        ) from None
