"""Container tasks: OCI images and root file systems, run by crun or runc under one host process.

Images are unpacked in a process that exits, into a folder by digest that every container of one
shares read-only. The host runs in namespaces of its own, so that no container outlives it; a call
that does not stop takes its container along, and the host only when that does not help.
"""

import asyncio
import os
import platform
import sys
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec
from msgspec import Struct

from device_agent.executors.calls import Instance, Run, Slots
from device_agent.executors.contract import DIGEST_PREFIX
from device_agent.executors.door import PLAIN, ExecutorFailure, Setup, Stats
from device_agent.executors.link import Link, Reply
from device_agent.executors.process import PROGRAMS, Process, no_end, probe
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
from protocols.manifest import ExecutorKind, Interface, Manifest
from protocols.messages.invocation import FailureCode
from protocols.messages.presence import ExecutorInfo

UNPACK_TIMEOUT_S: Final = 300.0
UNPACK_TURN_S: Final = 15.0
"""So long an image keeps others waiting; then it begins anew after them, for twice as long."""
UNPACK_LOOK_S: Final = 0.5
"""How often it is asked whether others wait."""
STATS_TIMEOUT_S: Final = 5.0
STOP_TIMEOUT_S: Final = 6.0
"""How long `stop` waits for the containers of an instance to be gone."""
IMAGES_MAX_BYTES: Final = 8 << 30
"""Of all unpacked images together."""
NOT_UNPACKED: Final = "not unpacked"
"""The host's word for an image that is not in the folder."""


class Bounds(Struct, frozen=True):
    """What one image may take, unpacked."""

    total_bytes: int = 4 << 30
    entries: int = 200_000
    file_bytes: int = 2 << 30


USUAL_BOUNDS: Final = Bounds()


class Found(Struct, frozen=True):
    """What the probe of the host says."""

    runtime: str
    version: str
    security: str
    doubts: tuple[str, ...]


class ContainerExecutor(RemoteExecutor):
    """Runs containers; `door.Executor` is the contract."""

    kind = ExecutorKind.CONTAINER
    # Long, for a runtime may be at work on a slow disk, and the host takes all containers along.
    stop_grace_s = 5.0

    def __init__(
        self,
        *,
        blobs: Path,
        images: Path,
        runtime: str = "",
        interpreter: str = sys.executable,
        bounds: Bounds = USUAL_BOUNDS,
        images_max_bytes: int = IMAGES_MAX_BYTES,
        on_exit: OnExit = no_exit,
    ) -> None:
        """`images` becomes the private folder of unpacked images; `runtime` is crun or runc.

        An empty `runtime` is looked for. Raises EnvironmentFailure when the folder cannot be made.
        """
        super().__init__(blobs, on_exit)
        self.doubts: tuple[str, ...] = ()
        """Why a runtime that is installed does not serve, after a probe; for people."""
        self._images = images
        self._runtime = runtime
        self._interpreter = interpreter
        self._bounds = bounds
        self._images_max_bytes = images_max_bytes
        self._prefix = f"tona-{crc32(os.fsencode(images.absolute())):08x}"
        self._unpacking = asyncio.Lock()
        self._to_unpack = 0
        """Images that wait for that."""
        self._keys = 0
        self._host: Process | None = None
        self._granted: dict[Instance, int] = {}
        """Slots that an instance has been given."""
        _make_private(images)

    def _new_slots(self) -> Slots:
        return Slots(1)

    async def probe(self) -> ExecutorInfo | None:
        """Really run a container; None when none can run here, `doubts` say why; never raises."""
        about = await probe(self._interpreter, PROGRAMS / "container_host.py", self._arguments())
        if about is None:
            return None
        found = msgspec.json.decode(about, type=Found)
        self.doubts = found.doubts
        if not found.runtime:
            return None
        version = f"{found.runtime} {found.version}".strip()
        return ExecutorInfo(self.kind.value, version, security=found.security)

    def _arguments(self) -> tuple[str, ...]:
        return self._runtime, self._prefix, str(self._images)

    async def deploy(self, artifact: Path, manifest: Manifest, setup: Setup = PLAIN) -> None:
        """Unpack an image if it is not there; idempotent. Raises ExecutorFailure."""
        del setup
        self._running_host()
        try:
            if not self._is_unpacked(_hex(manifest)):
                await self._unpack(artifact, _hex(manifest))
        finally:
            self._settle_down()

    def _is_unpacked(self, digest: str) -> bool:
        return (self._images / digest / "about.json").exists()

    def _order(self, artifact: Path, digest: str) -> dict[str, object]:
        """Return the frame that has an image unpacked."""
        return {
            "artifact": str(artifact.absolute()),
            "digest": digest,
            "images": str(self._images),
            "machine": platform.machine(),
            "bounds": msgspec.structs.astuple(self._bounds),
            "cache": self._images_max_bytes,
            "keep": sorted({_hex(one.manifest) for one in self._instances.values()}),
        }

    async def _unpack(self, artifact: Path, digest: str) -> None:
        turn_s, over = UNPACK_TURN_S, False
        while not over:
            self._to_unpack += 1
            try:
                # One at a time: the disk sets the pace, and leftovers can be told from work.
                await self._unpacking.acquire()
            finally:
                self._to_unpack -= 1
            try:
                over = await self._unpack_for(artifact, digest, turn_s)
            finally:
                self._unpacking.release()
            turn_s *= 2

    async def _unpack_for(self, artifact: Path, digest: str, turn_s: float) -> bool:
        """Unpack an image; False when it has taken so long and others wait.

        Raises ExecutorFailure.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        unpacker = self._spawn("container_unpack.py", ())
        answer = asyncio.ensure_future(unpacker.link.ask(self._order(artifact, digest)))
        try:
            while not (await asyncio.wait((answer,), timeout=UNPACK_LOOK_S))[0]:
                took_s = loop.time() - began_s
                if took_s >= UNPACK_TIMEOUT_S:
                    text = f"the image was not unpacked after {took_s:.0f} s: make it smaller"
                    raise failed(FailureCode.LIMIT, Blame.USER, text)
                if took_s >= turn_s and self._to_unpack:
                    return False
            reply = await answer
        finally:
            answer.cancel()
            unpacker.kill()
            await unpacker.end()
        check_failure(reply, "unpacking the image: it takes too much memory, or was killed")
        return True

    def _spawn(self, program: str, arguments: tuple[str, ...]) -> Process:
        on_end = self._host_ended if program == "container_host.py" else no_end
        try:
            return Process(
                self._interpreter, PROGRAMS / program, arguments, on_end, self._host_says
            )
        except EnvironmentFailure as error:
            raise failed(
                FailureCode.EXECUTOR, Blame.ENVIRONMENT, str(error), retryable=True
            ) from None

    async def _launch(self, instance: Instance) -> None:
        host = self._running_host()
        self._keys += 1
        instance.key = self._keys
        manifest, digest = instance.manifest, _hex(instance.manifest)
        frame = load_frame(manifest) | {
            "blobs": str(self._blobs),
            "key": instance.key,
            "constants": constant_frame(instance.constants),
            "digest": digest,
            "interface": (manifest.called or Interface.ONCE).value,
            "arguments": manifest.arguments,
            **_share(instance.setup),
        }
        reply = await self._ask(host.link, dict(frame))
        if reply is not None and reply.fail is not None and reply.fail[2] == NOT_UNPACKED:
            await self._unpack(instance.artifact, digest)
            reply = await self._ask(host.link, dict(frame))
        loaded = check_failure(reply, f"loading task {instance.task!r}")
        if not host.link.open:
            return
        instance.links = [host.link]
        instance.pid = host.pid
        self._remark(instance, loaded)
        self._grant(instance)

    async def _ask(self, link: Link, frame: dict[str, object]) -> Reply | None:
        try:
            return await asyncio.wait_for(link.ask(frame), START_TIMEOUT_S)
        except TimeoutError:
            self._drop_host()
        text = f"the container was not there after {START_TIMEOUT_S:.0f} s"
        raise failed(FailureCode.LIMIT, Blame.ENVIRONMENT, text, retryable=True)

    def _remark(self, instance: Instance, reply: Reply) -> None:
        instance.remarks.pop("limits", None)
        if reply.note:
            instance.remarks["limits"] = reply.note

    def _grant(self, instance: Instance) -> None:
        """Let as many calls run at once as there are containers."""
        wanted = max(1, instance.setup.replicas)
        for _ in range(self._granted.get(instance, 1), wanted):
            instance.slots.release()
        for _ in range(wanted, self._granted.get(instance, 1)):
            instance.slots.shrink()
        self._granted[instance] = wanted

    def _running_host(self) -> Process:
        self._stay()
        self._look_at_folders()
        if self._host is None:
            self._host = self._spawn("container_host.py", self._arguments())
        return self._host

    def _host_says(self, event: Reply) -> None:
        if event.exit is None:
            return
        key, reason = event.exit
        for instance in list(self._instances.values()):
            if instance.key == key:
                log.warning("task %s: %s", instance.task, reason)
                self._on_exit(instance.task, reason)

    def _host_ended(self, host: Process) -> None:
        if self._host is host:
            lost = self._drop_host()
            self._spawn_task(self._report(host, lost))

    async def _report(self, host: Process, lost: list[Instance]) -> None:
        reason = f"the container host {await host.exited()}"
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
        host.link.close()
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
        self._granted.pop(instance, None)
        link = instance.link
        if link is not None and link.open:
            try:
                await asyncio.wait_for(
                    link.ask({"op": "unload", "key": instance.key}), STOP_TIMEOUT_S
                )
            except TimeoutError:
                log.error("the container host did not end task %s, it is killed", task)
                if self._host is not None and self._host.link is link:
                    self._drop_host()
        self._settle_down()

    async def tune(self, task: str, setup: Setup) -> None:
        """Let an instance have so many containers with such a share, without a restart."""
        instance = self._instances.get(task)
        if instance is None:
            return
        instance.setup = setup
        link = instance.link
        if link is None:
            return
        frame = {"op": "tune", "key": instance.key, **_share(setup)}
        try:
            reply = check_failure(await self._ask(link, frame), f"tuning task {task!r}")
        except ExecutorFailure as error:
            # The others serve on; a tuning or the next load tries again.
            instance.remarks["replicas"] = str(error)
            log.warning("task %s: %s", task, error)
            return
        instance.remarks.pop("replicas", None)
        self._remark(instance, reply)
        self._grant(instance)

    async def stats(self, task: str) -> Stats | None:
        """Say what the containers of an instance take now; None when there is none."""
        instance = self._instances.get(task)
        if instance is not None and instance.link is not None:
            frame = {"op": "stats", "key": instance.key}
            try:
                reply = await asyncio.wait_for(instance.link.ask(frame), STATS_TIMEOUT_S)
            except TimeoutError:
                reply = None
            if reply is not None and reply.fail is None:
                if instance.manifest.called is Interface.SERVE:
                    instance.memory_bytes = reply.mem
                self._remark(instance, reply)
        return await super().stats(task)

    def _unload(self, instance: Instance) -> None:
        if instance.link is not None and instance.link.open:
            instance.link.post({"op": "unload", "key": instance.key})
        instance.links = []

    def _shared(self) -> list[int]:
        """Return the host's two processes; what containers take is told by the host."""
        if self._host is None:
            return []
        return [self._host.pid, *children_of(self._host.pid)]

    def _renew(self) -> None:
        self._drop_host()

    def _retire(self) -> None:
        self._drop_host()

    async def close(self) -> None:
        """End every process of this executor."""
        for task in list(self._instances):
            await self.stop(task)
        await self._close_shared()


def children_of(pid: int) -> list[int]:
    """Return the children of a process of one thread."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(one) for one in text.split()]


def _share(setup: Setup) -> dict[str, object]:
    return {
        "percent": setup.cpu_percent,
        "priority": setup.priority,
        "replicas": max(1, setup.replicas),
    }


def _hex(manifest: Manifest) -> str:
    return manifest.artifact.digest.removeprefix(DIGEST_PREFIX)


def _make_private(folder: Path) -> None:
    """Create the folder of unpacked images. Raises EnvironmentFailure."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise EnvironmentFailure(
            f"cannot make a private folder for images at {folder}: {error.strerror}"
        ) from None
