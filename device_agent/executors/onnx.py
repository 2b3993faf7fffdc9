"""ONNX tasks: each instance a child forked from a warm zygote, killed when it does not stop.

A model is vetted by loading it in a child; the zygote never sees one. The child that vetted a model
at `deploy` is kept for a short while, so that the `start` that follows need not load it again.
"""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Final

import msgspec

from device_agent.executors.calls import Instance, Run, Slots
from device_agent.executors.contract import ConstantFile
from device_agent.executors.link import Link, Reply
from device_agent.executors.process import PROGRAMS, Process, probe
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

CPU: Final = "CPUExecutionProvider"
SPARE_S: Final = 20.0
"""How long the child of a `deploy` waits for its `start`."""
END_TIMEOUT_S: Final = 5.0
"""How long `stop` waits for a killed child to be gone."""


class Child:
    """One forked process: its calls, its stop socket, its model."""

    def __init__(self, executor: "OnnxExecutor", zygote: Process, number: int) -> None:
        """Have the zygote fork. Raises EnvironmentFailure when it does not listen."""
        self.number = number
        self.zygote = zygote
        self.instance: Instance | None = None
        self.unwanted = False
        """We ended it, so its end is no news."""
        self.gone = asyncio.Event()
        self.loaded: Reply | None = None
        calls, its_calls = socket.socketpair()
        stops, its_stops = socket.socketpair()
        try:
            fds = its_calls.fileno(), its_stops.fileno()
            zygote.link.tell({"op": "fork", "child": number}, fds)
        except EnvironmentFailure:
            calls.close()
            stops.close()
            raise
        finally:
            its_calls.close()
            its_stops.close()
        self.stops = Link(stops, lambda: None)
        self.link = Link(calls, lambda: executor.child_hung_up(self))

    def kill(self) -> None:
        """End it by force."""
        self.unwanted = True
        if self.zygote.link.open:
            self.zygote.link.tell({"op": "kill", "child": self.number})
        self.link.close()


class OnnxExecutor(RemoteExecutor):
    """Runs ONNX tasks; `door.Executor` is the contract."""

    kind = ExecutorKind.ONNX
    stop_grace_s = 0.5

    def __init__(
        self,
        *,
        blobs: Path,
        empty: Path,
        interpreter: str = sys.executable,
        providers: tuple[str, ...] = (CPU,),
        threads: int = 1,
        on_exit: OnExit = no_exit,
    ) -> None:
        """`empty` becomes the children's working folder, `providers` the choice of this node.

        Raises EnvironmentFailure when there are files in `empty`.
        """
        super().__init__(blobs, on_exit)
        self._empty = empty
        self._interpreter = interpreter
        self._providers = providers
        self._threads = threads
        self._zygote: Process | None = None
        self._children: dict[int, Child] = {}
        self._by_task: dict[str, Child] = {}
        self._forks = 0
        self._spare: tuple[Manifest, Child] | None = None
        self._spare_timer: asyncio.TimerHandle | None = None
        _make_empty(empty)

    def _new_slots(self) -> Slots:
        return Slots(1)

    async def probe(self) -> ExecutorInfo | None:
        """Say what this executor can do here, or None when it cannot run; never raises."""
        found = await probe(self._interpreter, PROGRAMS / "onnx_zygote.py")
        if found is None:
            return None
        about = msgspec.json.decode(found)
        usable = [one for one in (*self._providers, CPU) if one in about["providers"]]
        return ExecutorInfo(self.kind.value, about["version"], tuple(dict.fromkeys(usable)))

    def provider(self, task: str) -> tuple[str, str]:
        """Return which provider runs a task, and why not the wanted one; empty: nothing to say."""
        child = self._by_task.get(task)
        if child is None or child.loaded is None:
            return "", ""
        return child.loaded.providers[0], child.loaded.note

    async def deploy(self, artifact: Path, manifest: Manifest) -> None:
        """Load the model in a child and hold it against the manifest; idempotent.

        Raises ExecutorFailure.
        """
        if self._spare is not None and self._spare[0] == manifest:
            return
        if any(one.manifest == manifest and one.link for one in self._instances.values()):
            return
        try:
            child = await self._load(artifact, manifest)
        except BaseException:
            self._settle_down()
            raise
        self._drop_spare()
        self._spare = (manifest, child)
        loop = asyncio.get_running_loop()
        self._spare_timer = loop.call_later(SPARE_S, self._drop_spare)

    async def _launch(self, instance: Instance) -> None:
        if self._spare is not None and self._spare[0] == instance.manifest:
            child = self._take_spare()
        else:
            child = await self._load(instance.artifact, instance.manifest)
        try:
            if instance.constants:
                await self._bind(child, instance.constants)
            if not child.link.open:
                check_failure(None, f"loading task {instance.task!r}")
        except BaseException:
            child.kill()
            raise
        child.instance = instance
        self._by_task[instance.task] = child
        instance.link = child.link
        instance.pid = child.loaded.pid if child.loaded is not None else 0

    async def _load(self, artifact: Path, manifest: Manifest) -> Child:
        child = self._fork()
        frame = load_frame(manifest, self._blobs) | {
            "path": str(artifact),
            "providers": manifest.providers or self._providers,
            "threads": self._threads,
        }
        try:
            reply = await asyncio.wait_for(child.link.ask(frame), START_TIMEOUT_S)
            what = "loading the model: it took too much, or was killed"
            if not child.zygote.link.open:
                what = f"starting ONNX Runtime under {self._interpreter}; the log says why"
            child.loaded = check_failure(reply, what)
        except TimeoutError:
            child.kill()
            text = f"the model did not load within {START_TIMEOUT_S:.0f} s: make it smaller"
            raise failed(FailureCode.LIMIT, Blame.USER, text) from None
        except BaseException:
            child.kill()
            raise
        if child.loaded.note:
            log.warning("model %s: %s", manifest.artifact.digest, child.loaded.note)
        return child

    async def _bind(self, child: Child, constants: dict[str, ConstantFile]) -> None:
        frame = {"op": "bind", "constants": constant_frame(constants)}
        try:
            reply = await asyncio.wait_for(child.link.ask(frame), START_TIMEOUT_S)
        except TimeoutError:
            reply = None
        check_failure(reply, "mapping its constants")

    def _fork(self) -> Child:
        try:
            if self._zygote is None:
                self._zygote = Process(
                    self._interpreter,
                    PROGRAMS / "onnx_zygote.py",
                    (str(self._empty),),
                    self._zygote_ended,
                    self._zygote_says,
                )
            self._forks += 1
            child = Child(self, self._zygote, self._forks)
        except EnvironmentFailure as error:
            raise failed(
                FailureCode.EXECUTOR, Blame.ENVIRONMENT, str(error), retryable=True
            ) from None
        self._stay()
        self._children[child.number] = child
        return child

    def _take_spare(self) -> Child:
        if self._spare_timer is not None:
            self._spare_timer.cancel()
        spare, self._spare, self._spare_timer = self._spare, None, None
        if spare is None:
            raise LookupError("no spare child")
        return spare[1]

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._take_spare().kill()
            self._settle_down()

    def child_hung_up(self, child: Child) -> None:
        """Forget a child whose socket has ended; the zygote will say how it went."""
        child.stops.close()
        instance = child.instance
        if instance is not None and instance.link is child.link:
            instance.link = None
            del self._by_task[instance.task]
        if self._spare is not None and self._spare[1] is child:
            self._take_spare()

    def _zygote_says(self, event: Reply) -> None:
        if event.exit is not None:
            number, reason = event.exit
            child = self._children.pop(number, None)
            if child is not None:
                self._bury(child, reason)

    def _bury(self, child: Child, reason: str) -> None:
        child.link.close()
        child.gone.set()
        if child.instance is not None and not child.unwanted:
            log.warning("the process of task %s %s", child.instance.task, reason)
            self._on_exit(child.instance.task, f"its process {reason}")

    def _zygote_ended(self, zygote: Process) -> None:
        """Bury its children: the kernel kills them when their zygote dies."""
        if self._zygote is zygote:
            self._zygote = None
        self._spawn_task(self._bury_all(zygote))

    async def _bury_all(self, zygote: Process) -> None:
        await zygote.end()
        reason = f"went with the ONNX zygote, which {await zygote.exited()}"
        for number, child in list(self._children.items()):
            if child.zygote is zygote:
                del self._children[number]
                self._bury(child, reason)

    def _interrupt(self, run: Run) -> None:
        child = self._by_task.get(run.instance.task)
        if child is not None and child.link is run.sent:
            child.stops.tell({"id": run.number})

    def _kill(self, run: Run) -> None:
        child = self._by_task.get(run.instance.task)
        if child is not None and child.link is run.sent:
            child.kill()

    async def stop(self, task: str) -> None:
        """End an instance and free what it held; unknown ones are ignored."""
        child = self._by_task.get(task)
        await self._forget(task)
        if child is not None:
            child.kill()
            try:
                await asyncio.wait_for(child.gone.wait(), END_TIMEOUT_S)
            except TimeoutError:
                log.error("the ONNX zygote did not end a child, it is killed")
                child.zygote.kill()
        self._settle_down()

    def _idle(self) -> bool:
        return not self._instances and self._spare is None

    def _retire(self) -> None:
        if self._zygote is not None:
            self._zygote.link.close()

    def _memory_bytes(self, instance: Instance) -> int:
        """Read the proportional set size of the child."""
        try:
            rollup = Path(f"/proc/{instance.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            return 0
        found = [line for line in rollup.splitlines() if line.startswith("Pss:")]
        return int(found[0].split()[1]) * 1024 if found else 0

    async def close(self) -> None:
        """End every process of this executor."""
        for task in list(self._instances):
            await self.stop(task)
        self._drop_spare()
        await self._close_shared()


def _make_empty(folder: Path) -> None:
    """Create the folder that children run in. Raises EnvironmentFailure."""
    try:
        folder.mkdir(mode=0o500, parents=True, exist_ok=True)
        left = next(folder.iterdir(), None)
    except OSError as error:
        raise EnvironmentFailure(f"cannot make the folder {folder}: {error.strerror}") from None
    if left is not None:
        raise EnvironmentFailure(f"the folder {folder} must be empty, it holds {left.name!r}")
