"""ONNX tasks: each instance a child forked from a warm zygote, killed when it does not stop.

`models.py` says which processes there are. What loaded a model at `deploy` is kept for a while, so
that the `start` that follows need not load it again. What a model remembers between calls lies in a
file of its task, which outlives its processes.
"""

import asyncio
import contextlib
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import structs

from device_agent.executors.calls import Instance, Run, Slots
from device_agent.executors.children import Child, Recipe
from device_agent.executors.contract import ConstantFile, Described
from device_agent.executors.door import PLAIN, Call, ExecutorFailure, Failed, Setup
from device_agent.executors.link import Link
from device_agent.executors.models import Models
from device_agent.executors.process import PROGRAMS, probe, pss_bytes
from device_agent.executors.programs.onnx_state import Memory
from device_agent.executors.remote import (
    START_TIMEOUT_S,
    OnExit,
    RemoteExecutor,
    check_failure,
    constant_frame,
    failed,
    log,
    no_exit,
)
from device_agent.executors.share import apply, share_of, usable_cores
from protocols.errors import Blame, EnvironmentFailure, TonaBug
from protocols.manifest import ExecutorKind, Manifest
from protocols.messages.invocation import FailureCode
from protocols.messages.presence import ExecutorInfo

CPU: Final = "CPUExecutionProvider"
USER: Final = "tona-sandbox"
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
        memories: Path | None = None,
        forms: Path | None = None,
        user: str = USER,
        memory_share: float = 0.0,
        on_exit: OnExit = no_exit,
    ) -> None:
        """`empty` becomes the children's working folder, `providers` the choice of this node.

        What models remember lies in `memories`, their optimised forms in `forms`; both become
        private folders, beside `empty` if not told otherwise. Where the daemon is root and the
        machine has a `user` of this name, models run as that one. Above 0, `memory_share` of the
        machine's memory is what all of them may take together, where control groups can be made.

        Raises EnvironmentFailure when there are files in `empty`.
        """
        super().__init__(blobs, on_exit)
        self._empty = empty
        self._interpreter = interpreter
        self._providers = providers
        self._threads = threads
        self._memories = memories or empty.parent / "memories"
        forms = forms or empty.parent / "optimised"
        frame = {"blobs": str(blobs), "cache": str(forms), "user": user}
        self._models = Models(
            interpreter,
            empty,
            frame,
            self._used,
            self._hung_up,
            self._died,
            self._settle_down,
            memory_share,
        )
        self._by_task: dict[str, list[Child]] = {}
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
        return ExecutorInfo(
            self.kind.value,
            about["version"],
            tuple(dict.fromkeys(usable)),
            security=about["security"],
        )

    def provider(self, task: str) -> tuple[str, str]:
        """Return which provider runs a task, and why not the wanted one; empty: nothing to say."""
        for child in self._by_task.get(task, ()):
            if child.loaded is not None:
                return child.loaded.providers[0], child.loaded.note
        return "", ""

    def _recipe(self, manifest: Manifest, setup: Setup) -> Recipe:
        providers = (setup.provider,) if setup.provider else manifest.providers or self._providers
        threads = setup.threads or manifest.threads or self._threads
        return Recipe(manifest, threads, tuple(providers), setup.tenant)

    def _recipe_of(self, instance: Instance) -> Recipe:
        return self._recipe(instance.manifest, instance.setup)

    def _used(self) -> set[Recipe]:
        return {
            self._recipe_of(one)
            for one in self._instances.values()
            if not (one.resting or one.setup.fresh)
        }

    async def deploy(self, artifact: Path, manifest: Manifest, setup: Setup = PLAIN) -> None:
        """Load the model in a sandboxed process and hold it against the manifest; idempotent.

        Raises ExecutorFailure.
        """
        recipe = self._recipe(manifest, setup)
        if any(one.links and self._recipe_of(one) == recipe for one in self._instances.values()):
            return
        if setup.fresh:
            # Its start loads it, and lets go of it.
            return
        self._stay()
        try:
            await self._models.load(artifact, recipe)
            self._models.release(recipe)
        finally:
            self._settle_down()

    async def _launch(self, instance: Instance) -> None:
        self._stay()
        self._look_at_folders()
        child = await self._worker(instance)
        if instance.setup.fresh:
            child.kill()
            instance.slots = Slots(self._workers(instance))
            return
        self._join(instance, child)
        instance.pid = child.pid
        self._share(instance)
        self._fill(instance)

    async def _worker(self, instance: Instance) -> Child:
        """Return a process that is ready to serve an instance. Raises ExecutorFailure."""
        load = self._models.once if instance.setup.fresh else self._models.worker
        child = await load(instance.artifact, self._recipe_of(instance))
        try:
            memory = self._memory_of(instance)
            try:
                note = await self._bind(child, instance.constants, memory)
            finally:
                if memory is not None:
                    memory.close()
        except BaseException:
            child.kill()
            raise
        if note:
            instance.remarks["state"] = note
        return child

    async def _bind(
        self,
        child: Child,
        constants: dict[str, ConstantFile],
        memory: Memory | None,
        *,
        strict: bool = False,
    ) -> str:
        """Give a worker its constants and its state, opened here; what it says of the state.

        Raises ExecutorFailure.
        """
        opened: list[int] = []
        try:
            try:
                for one in constants.values():
                    opened.append(os.open(one.path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                text = f"constant {one.path}: {error.strerror}"
                raise failed(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True) from None
            handles = (*opened, memory.handle) if memory is not None else tuple(opened)
            if handles and child.stops.open:
                child.stops.tell({"op": "files"}, handles)
        except EnvironmentFailure as error:
            raise failed(
                FailureCode.EXECUTOR, Blame.ENVIRONMENT, str(error), retryable=True
            ) from None
        finally:
            for handle in opened:
                os.close(handle)
        frame = {
            "op": "bind",
            "files": len(handles),
            "constants": constant_frame(constants),
            "state": memory.state_bytes if memory is not None else 0,
            "strict": strict,
        }
        try:
            reply = await child.ask(frame, START_TIMEOUT_S)
        except TimeoutError:
            reply = None
        found = check_failure(reply, "starting a worker of the model")
        child.pid = found.pid
        return found.note

    def invoke_together(self, task: str, calls: Sequence[Call]) -> bool:
        """Begin calls in one run; False, and nothing done, where each has to go by itself."""
        instance = self._instances.get(task)
        if instance is None or not instance.manifest.batch or (link := instance.link) is None:
            return False
        described = [instance.contract.describe(one.inputs) for one in calls]
        fit = [one for one in described if not isinstance(one, Failed)]
        known = any(one.name in instance.runs for one in calls)
        if len(fit) < len(calls) or known or not instance.slots.take():
            return False
        runs = [self._begin(instance, one) for one in calls]
        together = set(runs)
        for left, run, what in zip(range(len(runs) - 1, -1, -1), runs, fit, strict=True):
            run.together = together
            self._send(run, link, *what, more=left)
        for run, one in zip(runs, calls, strict=True):
            self._bound(run, one.budget_ms)
        return True

    def expect(self, task: str) -> None:
        """Have the process that would run a call take the memory for it, if it runs none."""
        instance = self._instances.get(task)
        link = instance.link if instance is not None else None
        if link is not None and not link.pending:
            link.tell({"op": "expect", "id": 0})

    async def _run(self, run: Run, described: list[Described], inline: list[bytes]) -> None:
        if not run.instance.setup.fresh:
            await super()._run(run, described, inline)
        elif run.instance.slots.take() or await self._queue(run):
            await self._run_fresh(run, described, inline)

    async def _run_fresh(self, run: Run, described: list[Described], inline: list[bytes]) -> None:
        """Run a call that has its slot in a process that loads the model for it, and then ends."""
        instance = run.instance
        loaded: list[Child] = []

        async def load() -> None:
            loaded.append(await self._worker(instance))

        try:
            await self._wait_for(run, load())
        except asyncio.CancelledError:
            for child in loaded:
                child.kill()
            raise
        if run.result is not None or not loaded or not loaded[0].link.open:
            for child in loaded:
                child.kill()
            instance.slots.release()
            return
        self._join(instance, loaded[0])
        self._share(instance)
        self._send(run, loaded[0].link, described, inline)
        await run.wait()

    def _join(self, instance: Instance, child: Child) -> None:
        child.instance = instance
        self._by_task.setdefault(instance.task, []).append(child)
        if not instance.setup.fresh:
            # No other call finds a way to a process that is there for one.
            instance.links.append(child.link)
        if child.loaded is not None and child.loaded.note:
            instance.remarks["provider"] = child.loaded.note
        if child.loaded is not None and child.loaded.gaps:
            instance.remarks["sandbox"] = "; ".join(child.loaded.gaps)

    def _fill(self, instance: Instance) -> None:
        """Have as many children as the setup says, in the background."""
        if instance.links and len(instance.links) < self._workers(instance):
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
            text = f"{len(instance.links)} of {self._workers(instance)} workers: {error}"
            instance.remarks["replicas"] = text
            log.warning("task %s: %s", instance.task, text)
        finally:
            instance.growing = False

    def _workers(self, instance: Instance) -> int:
        """Return how many processes an instance is to have."""
        # Whoever remembers runs one call after another: each continues the one before.
        return 1 if instance.manifest.carries else max(1, instance.setup.replicas)

    def _lacks(self, instance: Instance) -> bool:
        """Whether an instance runs and is to have more children."""
        here = self._instances.get(instance.task) is instance
        return here and 0 < len(instance.links) < self._workers(instance)

    def _share(self, instance: Instance) -> None:
        """Give the processes of an instance their share of the machine."""
        setup = instance.setup
        first = zlib.crc32(instance.task.encode())
        share = share_of(setup.cpu_percent, setup.priority, usable_cores(), first)
        children = self._by_task.get(instance.task, ())
        pids = [one.pid for one in children]
        instance.remarks["share"] = apply(share, pids)
        if not instance.remarks["share"]:
            del instance.remarks["share"]

    def _renew(self) -> None:
        for children in list(self._by_task.values()):
            for child in list(children):
                child.kill()
        self._models.end()

    def _unload(self, instance: Instance) -> None:
        """End its workers; the model stays for a while, as after any last use."""
        for child in list(self._by_task.get(instance.task, ())):
            child.kill()
        self._models.release(self._recipe_of(instance))

    async def tune(self, task: str, setup: Setup) -> None:
        """Let an instance have so many children with such a share, without a restart."""
        instance = self._instances.get(task)
        if instance is None:
            return
        before = instance.setup
        instance.setup = structs.replace(
            setup,
            threads=before.threads,
            provider=before.provider,
            tenant=before.tenant,
            memory=before.memory,
            fresh=before.fresh,
        )
        instance.remarks.pop("replicas", None)
        if before.fresh:
            for _ in range(before.replicas, setup.replicas):
                instance.slots.release()
            for _ in range(setup.replicas, before.replicas):
                instance.slots.shrink()
        for child in list(self._by_task.get(task, ())):
            if len(instance.links) > self._workers(instance) and not child.link.pending:
                child.kill()
        self._share(instance)
        self._fill(instance)

    def _freed(self, instance: Instance, link: Link) -> None:
        """End a child that is one too many, now that its call is over."""
        many = len(instance.links) > self._workers(instance) and not link.pending
        if instance.setup.fresh or many:
            for child in self._by_task.get(instance.task, ()):
                if child.link is link:
                    child.kill()
                    return

    def _hung_up(self, child: Child) -> None:
        """Forget a process whose socket has ended; whoever forked it will say how it went."""
        child.stops.close()
        instance = child.instance
        left = self._by_task.get(instance.task, []) if instance is not None else []
        if instance is not None and child in left:
            left.remove(child)
            fresh = child.link not in instance.links
            if not fresh:
                instance.links.remove(child.link)
            if left and not fresh:
                # The slot of the last one stays: its next call loads the instance again.
                instance.slots.shrink()
                if len(left) < self._workers(instance) and child.unwanted:
                    self._fill(instance)
            if not left:
                del self._by_task[instance.task]

    def _died(self, child: Child, reason: str) -> None:
        if child.instance is not None:
            log.warning("the process of task %s %s", child.instance.task, reason)
            self._on_exit(child.instance.task, f"its process {reason}")

    def _interrupt(self, run: Run) -> None:
        child = self._serving(run)
        if child is not None:
            child.stops.tell({"op": "stop", "id": run.number})

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
        instance = await self._forget(task)
        for child in children:
            child.kill()
        for child in children:
            try:
                await asyncio.wait_for(child.gone.wait(), END_TIMEOUT_S)
            except TimeoutError:
                log.error("the ONNX zygote did not end a child, it is killed")
                if self._models.zygote is not None:
                    self._models.zygote.kill()
        if instance is not None:
            self._models.release(self._recipe_of(instance))
        self._settle_down()

    def _shared(self) -> list[int]:
        return [self._models.zygote.pid] if self._models.zygote is not None else []

    def _idle(self) -> bool:
        return not self._instances and self._models.idle

    def _retire(self) -> None:
        self._models.retire()

    def _memory_bytes(self, instance: Instance) -> int:
        """Return what the workers take, and their part of the process that holds the model."""
        recipe = self._recipe_of(instance)
        children = self._by_task.get(instance.task, ())
        own = sum(pss_bytes(one.pid) for one in children)
        model = self._models.loaded.get(recipe)
        if model is None:
            return own
        users = sum(self._recipe_of(one) == recipe for one in self._instances.values())
        return own + pss_bytes(model.pid) // max(1, users)

    # State.

    def _memory_of(self, instance: Instance, suffix: str = "") -> Memory | None:
        """Open what an instance remembers; None when it declares nothing.

        Raises ExecutorFailure.
        """
        manifest = instance.manifest
        if not manifest.carries:
            return None
        try:
            self._memories.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Memory.at(self._state_path(instance) + suffix, manifest.limits.state_bytes)
        except OSError as error:
            text = f"what task {instance.task!r} remembers: {error.strerror}"
            raise failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, retryable=True) from None

    def _state_path(self, instance: Instance) -> str:
        return str(self._memories / (instance.setup.memory or instance.task))

    async def snapshot(self, task: str) -> bytes:
        """Return what an instance remembers; empty when it remembers nothing yet.

        Raises ExecutorFailure.
        """
        instance = self._instances.get(task)
        memory = self._memory_of(instance) if instance is not None else None
        if memory is None:
            return b""
        try:
            return memory.read()
        except TimeoutError as error:
            text = f"task {task!r}: {error}"
            raise failed(FailureCode.BUSY, Blame.ENVIRONMENT, text, retryable=True) from None
        finally:
            memory.close()

    def recall(self, memory: str) -> bytes:
        """Return what is remembered under a name. Raises ExecutorFailure."""
        try:
            kept = Memory.kept(str(self._memories / memory))
        except FileNotFoundError:
            return b""
        except (OSError, ValueError) as error:
            text = f"what was remembered as {memory!r}: {error}"
            raise failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, retryable=True) from None
        try:
            return kept.read()
        except TimeoutError as error:
            text = f"what was remembered as {memory!r}: {error}"
            raise failed(FailureCode.BUSY, Blame.ENVIRONMENT, text, retryable=True) from None
        finally:
            kept.close()

    async def restore(self, task: str, state: bytes) -> None:
        """Have an instance remember what another one does; a call under way is not disturbed.

        Raises ExecutorFailure.
        """
        instance = self._instances.get(task)
        if instance is None or not instance.manifest.carries:
            await super().restore(task, state)
            return
        await self._ready(instance)
        path, suffix = self._state_path(instance), ".restored"
        memory = self._memory_of(instance, suffix)
        if memory is None:
            raise TonaBug(f"task {task} has lost what its manifest carries")
        try:
            memory.write(state)
            for child in list(self._by_task.get(task, ())):
                await self._bind(child, {}, memory, strict=True)
            os.replace(path + suffix, path)  # noqa: PTH105 - a path of ours, as `Memory` has it
        except ValueError as error:
            text = f"task {task!r}: {error}"
            raise failed(FailureCode.LIMIT, Blame.PEER, text) from None
        except OSError as error:
            text = f"what task {task!r} remembers: {error.strerror}"
            raise failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, retryable=True) from None
        finally:
            memory.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + suffix)  # noqa: PTH108 - as above

    async def close(self) -> None:
        """End every process of this executor."""
        for task in list(self._instances):
            await self.stop(task)
        await self._models.close()
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
