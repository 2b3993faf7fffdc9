"""ONNX tasks: each instance a child forked from a warm zygote, killed when it does not stop.

A model is vetted by loading it in a child; the zygote never sees one. The child that vetted a model
at `deploy` is kept for a short while, so that the `start` that follows need not load it again.
"""

import asyncio
import sys
import zlib
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from device_agent.executors.calls import Instance, Run, Slots
from device_agent.executors.children import Child, Recipe, pss_bytes
from device_agent.executors.contract import ConstantFile
from device_agent.executors.door import PLAIN, ExecutorFailure, Setup
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
from device_agent.executors.share import apply, share_of, usable_cores
from protocols.errors import Blame, EnvironmentFailure
from protocols.manifest import ExecutorKind, Manifest
from protocols.messages.invocation import FailureCode
from protocols.messages.presence import ExecutorInfo

CPU: Final = "CPUExecutionProvider"
SPARE_S: Final = 20.0
"""How long the child of a `deploy` waits for its `start`."""
END_TIMEOUT_S: Final = 5.0
"""How long `stop` waits for a killed child to be gone."""


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
        self._by_task: dict[str, list[Child]] = {}
        self._forks = 0
        self._spare: tuple[Recipe, Child] | None = None
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
        for child in self._by_task.get(task, ()):
            if child.loaded is not None:
                return child.loaded.providers[0], child.loaded.note
        return "", ""

    def _recipe(self, manifest: Manifest, setup: Setup) -> Recipe:
        providers = (setup.provider,) if setup.provider else manifest.providers or self._providers
        return Recipe(manifest, setup.threads or self._threads, tuple(providers))

    async def deploy(self, artifact: Path, manifest: Manifest, setup: Setup = PLAIN) -> None:
        """Load the model in a child and hold it against the manifest; idempotent.

        Raises ExecutorFailure.
        """
        recipe = self._recipe(manifest, setup)
        if self._spare is not None and self._spare[0] == recipe:
            return
        if any(
            one.links and self._recipe(one.manifest, one.setup) == recipe
            for one in self._instances.values()
        ):
            return
        try:
            child = await self._load(artifact, recipe)
        except BaseException:
            self._settle_down()
            raise
        self._drop_spare()
        self._spare = (recipe, child)
        loop = asyncio.get_running_loop()
        self._spare_timer = loop.call_later(SPARE_S, self._drop_spare)

    async def _launch(self, instance: Instance) -> None:
        child = await self._worker(instance)
        self._join(instance, child)
        instance.pid = child.loaded.pid if child.loaded is not None else 0
        self._share(instance)
        self._fill(instance)

    async def _worker(self, instance: Instance) -> Child:
        """Return a child that is ready to serve an instance. Raises ExecutorFailure."""
        recipe = self._recipe(instance.manifest, instance.setup)
        if self._spare is not None and self._spare[0] == recipe:
            child = self._take_spare()
        else:
            child = await self._load(instance.artifact, recipe)
        try:
            if instance.constants:
                await self._bind(child, instance.constants)
            if not child.link.open:
                check_failure(None, f"loading task {instance.task!r}")
        except BaseException:
            child.kill()
            raise
        return child

    def _join(self, instance: Instance, child: Child) -> None:
        child.instance = instance
        self._by_task.setdefault(instance.task, []).append(child)
        instance.links.append(child.link)
        if child.loaded is not None and child.loaded.note:
            instance.remarks["provider"] = child.loaded.note

    def _fill(self, instance: Instance) -> None:
        """Have as many children as the setup says, in the background."""
        if instance.links and len(instance.links) < instance.setup.replicas:
            self._spawn_task(self._grow(instance))

    async def _grow(self, instance: Instance) -> None:
        if instance.growing:
            return
        instance.growing = True
        instance.remarks.pop("replicas", None)
        try:
            while self._lacks(instance):
                child = await self._worker(instance)
                if not self._lacks(instance):
                    child.kill()
                    return
                self._join(instance, child)
                self._share(instance)
                instance.slots.release()
        except ExecutorFailure as error:
            # The others serve on; a tuning or the next loss of a child tries again.
            text = f"{len(instance.links)} of {instance.setup.replicas} workers: {error}"
            instance.remarks["replicas"] = text
            log.warning("task %s: %s", instance.task, text)
        finally:
            instance.growing = False

    def _lacks(self, instance: Instance) -> bool:
        """Whether an instance runs and is to have more children."""
        here = self._instances.get(instance.task) is instance
        return here and 0 < len(instance.links) < instance.setup.replicas

    def _share(self, instance: Instance) -> None:
        """Give the processes of an instance their share of the machine."""
        setup = instance.setup
        first = zlib.crc32(instance.task.encode())
        share = share_of(setup.cpu_percent, setup.priority, usable_cores(), first)
        children = self._by_task.get(instance.task, ())
        pids = [one.loaded.pid for one in children if one.loaded is not None]
        instance.remarks["share"] = apply(share, pids)
        if not instance.remarks["share"]:
            del instance.remarks["share"]

    async def tune(self, task: str, setup: Setup) -> None:
        """Let an instance have so many children with such a share, without a restart."""
        instance = self._instances.get(task)
        if instance is None:
            return
        instance.setup = structs.replace(
            setup, threads=instance.setup.threads, provider=instance.setup.provider
        )
        instance.remarks.pop("replicas", None)
        for child in list(self._by_task.get(task, ())):
            if len(instance.links) > max(1, setup.replicas) and not child.link.pending:
                child.kill()
        self._share(instance)
        self._fill(instance)

    def _freed(self, instance: Instance, link: Link) -> None:
        """End a child that is one too many, now that its call is over."""
        if len(instance.links) > max(1, instance.setup.replicas) and not link.pending:
            for child in self._by_task.get(instance.task, ()):
                if child.link is link:
                    child.kill()
                    return

    async def _load(self, artifact: Path, recipe: Recipe) -> Child:
        child = self._fork()
        manifest = recipe.manifest
        frame = load_frame(manifest, self._blobs) | {
            "path": str(artifact),
            "providers": recipe.providers,
            "threads": recipe.threads,
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
            child = Child(self._zygote, self._forks, self._child_hung_up)
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

    def _child_hung_up(self, child: Child) -> None:
        """Forget a child whose socket has ended; the zygote will say how it went."""
        child.stops.close()
        instance = child.instance
        if instance is not None and child.link in instance.links:
            instance.links.remove(child.link)
            left = self._by_task[instance.task]
            left.remove(child)
            if left:
                # The slot of the last one stays: its next call loads the instance again.
                instance.slots.shrink()
                if len(left) < instance.setup.replicas and child.unwanted:
                    self._fill(instance)
            else:
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
        child = self._serving(run)
        if child is not None:
            child.stops.tell({"id": run.number})

    def _kill(self, run: Run) -> None:
        child = self._serving(run)
        if child is not None:
            child.kill()

    def _serving(self, run: Run) -> Child | None:
        """Return the child that has a call."""
        children = self._by_task.get(run.instance.task, ())
        return next((one for one in children if one.link is run.sent), None)

    async def stop(self, task: str) -> None:
        """End an instance and free what it held; unknown ones are ignored."""
        children = list(self._by_task.get(task, ()))
        await self._forget(task)
        for child in children:
            child.kill()
        for child in children:
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
        """Read the proportional set size of the children together."""
        children = self._by_task.get(instance.task, ())
        return sum(pss_bytes(one.loaded.pid) for one in children if one.loaded is not None)

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
