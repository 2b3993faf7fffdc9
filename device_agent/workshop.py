"""The hands of the core: instances, calls and transfers, each told back as an event.

Every command is answered, whatever happens; one asyncio task for each that takes time, and the core
bounds how many there are.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import structs

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.shelf import DIGEST_PREFIX
from device_agent.core import commands, events
from device_agent.executors.door import (
    LINKED,
    Bytes,
    Call,
    Done,
    Executor,
    ExecutorFailure,
    Failed,
    File,
    Setup,
    Value,
)
from device_agent.transfers import Transfers
from protocols.errors import Blame, EnvironmentFailure
from protocols.manifest import ExecutorKind, Manifest
from protocols.messages import invocation

if TYPE_CHECKING:
    from device_agent.artifacts.fetch import Fetcher
    from device_agent.bench import Bench
    from device_agent.logkeeper import LogKeeper
    from device_agent.memories import Memories
    from device_agent.reference import Prover
    from device_agent.sources import Sources

INLINE_TOTAL_BYTES: Final = 128 * 1024
"""Inline outputs of one call together; the largest beyond it go to the blob folder."""
CLOSE_TIMEOUT_S: Final = 5.0

Tell = Callable[[events.Event], None]
OnExit = Callable[[str, str], None]


class Makers(NamedTuple):
    """How to make what is loaded only when it is first needed."""

    executors: Mapping[ExecutorKind, Callable[[OnExit], Executor]]
    fetcher: Callable[[], "Fetcher"]
    sources: Callable[[], "Sources"]
    log: Callable[[], "LogKeeper"]


class Workshop:
    """Carries out what the core wants of executors, cache and blob folder."""

    def __init__(
        self,
        makers: Makers,
        cache: ArtifactCache,
        blobs: BlobFolder,
        tell: Tell,
        crash: Callable[[BaseException], None],
    ) -> None:
        self._makers = makers
        self._executors: dict[ExecutorKind, Executor] = {}
        self._cache = cache
        self._blobs = blobs
        self._tell = tell
        self._crash = crash
        self._kinds: dict[str, Executor] = {}
        self._setups: dict[str, Setup] = {}
        self._pins: dict[str, list[str]] = {}
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bench: Bench | None = None
        self._memories: Memories | None = None
        self._keeper: LogKeeper | None = None
        self._prover: Prover | None = None
        self._proofs: dict[str, tuple[Manifest, float]] = {}
        """Instances with a reference sample, and when it is run again."""
        self._transfers = Transfers(blobs, makers.fetcher, makers.sources, tell, self._spawn)
        self.doors: dict[type, Callable[[Any], object]] = {
            commands.Execute: self._execute,
            commands.ExecuteTogether: self._execute_together,
            commands.ExpectCall: self._expect,
            commands.CancelCall: self._cancel_call,
            commands.Inferred: self._inferred,
            commands.DropValues: self._drop,
            commands.StartInstance: self._start,
            commands.TuneInstance: self._tune,
            commands.RestInstance: self._rest,
            commands.WakeInstance: self._wake,
            commands.StopInstance: self._stop,
            commands.RunCalibration: lambda command: self._spawn(self._calibration(command)),
            commands.EndCalibration: self._end_calibration,
            commands.ReadMemory: lambda command: self._remembering().read(command),
            commands.WriteMemory: lambda command: self._remembering().write(command),
            commands.WriteLog: lambda command: self._tell(self._log().write(command)),
            commands.ReadLog: lambda command: self._spawn(self._read_log(command)),
            **self._transfers.doors,
        }

    def _remembering(self) -> "Memories":
        """Return who moves memories; loaded when a task with memory moves."""
        if self._memories is None:
            from device_agent.memories import Memories  # noqa: PLC0415 - see above

            self._memories = Memories(
                self._kinds, self._executor, self._transfers, self._tell, self._spawn
            )
        return self._memories

    def exited(self, instance: str, reason: str) -> None:
        """Take note that an instance died by itself (the executors' `on_exit`)."""
        if instance in self._kinds:
            self._tell(events.InstanceExited(instance, reason))

    async def look_after(self) -> None:
        """Tell what instances take, and keep the blob folder within its bounds."""
        for instance, executor in list(self._kinds.items()):
            await self._tell_stats(instance, executor)
        await self._prove_again()
        shared = sum(one.shared_bytes() for one in self._executors.values())
        self._tell(events.ExecutorsSized(shared))
        self._transfers.trim()

    async def close(self) -> None:
        """End transfers and executors, within a bound each."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        open_ones: list[Any] = list(self._executors.values())
        if self._transfers.fetching is not None:
            open_ones.append(self._transfers.fetching)
        for closing in (one.close() for one in open_ones):
            try:
                await asyncio.wait_for(closing, CLOSE_TIMEOUT_S)
            except TimeoutError:
                continue

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash(error)

    # Calls.

    def _execute(self, command: commands.Execute) -> None:
        executor = self._kinds.get(command.instance)
        if executor is None:
            self._tell(_gone(command))
            return
        inputs, files = to_executor(command.inputs)
        if files:
            on_result = partial(self._answered_pinned, command.call, files)
        else:
            on_result = partial(self._answered, command.call)
        for digest in files:
            self._blobs.pin(digest)
        if not executor.invoke_now(
            command.instance,
            command.call,
            inputs,
            command.budget_ms,
            on_result,
            command.priority,
        ):
            self._spawn(self._call(executor, command, inputs, files))

    def _execute_together(self, command: commands.ExecuteTogether) -> None:
        instance = command.calls[0].instance
        executor = self._kinds.get(instance)
        calls: list[Call] = []
        pinned: list[str] = []
        for one in command.calls:
            inputs, files = to_executor(one.inputs)
            pinned += files
            done = partial(self._answered_pinned, one.call, files)
            calls.append(Call(one.call, inputs, one.budget_ms, done, one.priority))
        for digest in pinned:
            self._blobs.pin(digest)
        if executor is not None and executor.invoke_together(instance, calls):
            return
        for digest in pinned:
            self._blobs.unpin(digest)
        for one in command.calls:
            self._execute(one)

    def _answered_pinned(self, call: str, files: list[str], result: Done | Failed) -> None:
        for digest in files:
            self._blobs.unpin(digest)
        self._answered(call, result)

    async def _call(
        self,
        executor: Executor,
        command: commands.Execute,
        inputs: dict[str, Value],
        files: list[str],
    ) -> None:
        """Run a call that cannot begin at once; its files are pinned."""
        try:
            result = await executor.invoke(
                command.instance, command.call, inputs, command.budget_ms, command.priority
            )
        finally:
            for digest in files:
                self._blobs.unpin(digest)
        self._answered(command.call, result)

    def _answered(self, call: str, result: Done | Failed) -> None:
        if isinstance(result, Failed):
            failed = events.ExecutorFailed(
                call, result.code, result.blame, result.text, result.retryable
            )
            self._tell(failed)
            return
        try:
            outputs = self._to_wire(result.outputs)
        except OSError as error:
            text = f"the outputs do not fit into {self._blobs.folder}: {error.strerror}"
            code, blame = invocation.FailureCode.EXECUTOR, Blame.ENVIRONMENT
            self._tell(events.ExecutorFailed(call, code, blame, text, retryable=True))
            self._transfers.trim()
            return
        figures = result.run_us, result.calls, result.cpu_us, result.peak_bytes, result.flags
        self._tell(events.ExecutorDone(call, outputs, *figures))

    def _drop(self, command: commands.DropValues) -> None:
        for name in command.names:
            self._blobs.drop(name)

    def _expect(self, command: commands.ExpectCall) -> None:
        executor = self._kinds.get(command.instance)
        if executor is not None:
            executor.expect(command.instance)

    def _cancel_call(self, command: commands.CancelCall) -> None:
        executor = self._kinds.get(command.instance)
        if executor is not None:
            self._spawn(executor.cancel(command.instance, command.call))

    def _infer(self, call: str, name: str, values: list[Value]) -> None:
        """Tell that a guest wants a model run."""
        wire = self._to_wire({str(at): value for at, value in enumerate(values)})
        self._tell(events.Inferring(call, name, tuple(wire.values())))

    def _inferred(self, command: commands.Inferred) -> None:
        executor = self._kinds.get(command.instance)
        if executor is None:
            return
        failure = command.failure
        if failure is None:
            result: Done | Failed = Done(to_executor(command.outputs)[0], 0)
        else:
            result = Failed(failure.code, failure.blame, failure.text, failure.retryable)
        executor.inferred(command.instance, command.call, result)

    def _to_wire(self, outputs: dict[str, Value]) -> dict[str, invocation.Value]:
        """Return outputs as messages carry them; what is too much together becomes files."""
        large = spill(outputs)
        wire: dict[str, invocation.Value] = {}
        files = False
        for name, value in outputs.items():
            if isinstance(value, File):
                files = True
                self._blobs.hold(value.digest)
                wire[name] = invocation.Blob(
                    value.dtype, value.shape, value.digest, value.size_bytes
                )
            elif name in large:
                files = True
                digest = self._blobs.make(value.data)
                self._blobs.hold(digest)
                wire[name] = invocation.Blob(value.dtype, value.shape, digest, len(value.data))
            else:
                wire[name] = invocation.Tensor(value.dtype, value.shape, value.data)
        if files:
            self._transfers.trim()
        return wire

    # The log of calls.

    def _log(self) -> "LogKeeper":
        if self._keeper is None:
            self._keeper = self._makers.log()
        return self._keeper

    async def _read_log(self, command: commands.ReadLog) -> None:
        self._tell(events.LogRead(await self._log().read(command.query), command.cause))

    # Instances.

    def _start(self, command: commands.StartInstance) -> None:
        try:
            executor = self._executor(command.manifest.kind)
        except EnvironmentFailure as error:
            self._tell(events.InstanceFailed(command.instance, str(error), error.blame, True))
            return
        self._kinds[command.instance] = executor
        self._setups[command.instance] = Setup(
            command.threads,
            command.provider,
            command.replicas,
            command.cpu_percent,
            command.priority,
            command.tenant,
            memory=command.task,
            fresh=command.fresh,
        )
        manifest = command.manifest
        digests = [manifest.artifact.digest, *(one.digest for one in manifest.beside)]
        self._pins[command.instance] = digests
        for digest in digests:
            self._cache.pin(digest)
        self._starts[command.instance] = self._spawn(
            self._deploy(executor, command.instance, manifest)
        )

    def _executor(self, kind: ExecutorKind) -> Executor:
        """Return the executor of a kind, made now if need be. Raises EnvironmentFailure."""
        executor = self._executors.get(kind)
        if executor is None:
            maker = self._makers.executors.get(kind)
            if maker is None:
                raise EnvironmentFailure(f"this node has no {kind.value} executor")
            executor = self._executors[kind] = maker(self.exited)
            executor.on_infer = self._infer
        return executor

    async def _prove(self, executor: Executor, instance: str, manifest: Manifest) -> None:
        """Hold a program against its reference sample, where it has one. Raises ExecutorFailure."""
        reference = manifest.reference
        if reference is None:
            return
        from device_agent.reference import Prover  # noqa: PLC0415 - few tasks have one

        if self._prover is None:
            self._prover = Prover(self._blobs, self._cache.path)
        wrong = await self._prover.prove(executor, instance, manifest)
        if wrong is not None:
            await executor.stop(instance)
            raise ExecutorFailure(wrong)
        if reference.every_ms and instance in self._kinds:
            due_s = asyncio.get_running_loop().time() + reference.every_ms / 1000
            self._proofs[instance] = manifest, due_s

    async def _prove_again(self) -> None:
        """Run the reference samples that are due; an instance that fails is lost, and its calls."""
        now_s = asyncio.get_running_loop().time()
        for instance, (manifest, due_s) in list(self._proofs.items()):
            executor = self._kinds.get(instance)
            if executor is None:
                del self._proofs[instance]
            elif now_s >= due_s:
                del self._proofs[instance]
                try:
                    await self._prove(executor, instance, manifest)
                except ExecutorFailure as error:
                    failed = error.failed
                    self._tell(events.InstanceExited(instance, failed.text, failed.blame))

    async def _deploy(self, executor: Executor, instance: str, manifest: Manifest) -> None:
        artifact = self._cache.path(manifest.artifact.digest)
        constants = {one.port: self._cache.path(one.artifact.digest) for one in manifest.constants}
        for one in manifest.modules:
            constants[LINKED + one.name] = self._cache.path(one.artifact.digest)
        try:
            await executor.deploy(artifact, manifest, self._setups[instance])
            # It may have been tuned while it was deployed.
            setup = self._setups[instance]
            await executor.start(instance, artifact, manifest, constants, setup)
            if self._setups[instance] != setup:
                await executor.tune(instance, self._setups[instance])
            await self._prove(executor, instance, manifest)
        except ExecutorFailure as error:
            failed = error.failed
            self._tell(events.InstanceFailed(instance, failed.text, failed.blame, failed.retryable))
            return
        finally:
            self._starts.pop(instance, None)
        self._tell(events.InstanceReady(instance))
        await self._tell_stats(instance, executor)

    async def _tell_stats(self, instance: str, executor: Executor) -> None:
        stats = await executor.stats(instance)
        if stats is not None:
            self._tell(events.InstanceStats(instance, stats.memory_bytes, stats.remark))

    def _tune(self, command: commands.TuneInstance) -> None:
        before = self._setups.get(command.instance)
        if before is not None:
            setup = structs.replace(
                before,
                replicas=command.replicas,
                cpu_percent=command.cpu_percent,
                priority=command.priority,
            )
            self._setups[command.instance] = setup
            if command.instance not in self._starts:
                self._spawn(self._retune(command.instance, setup))

    async def _retune(self, instance: str, setup: Setup) -> None:
        executor = self._kinds.get(instance)
        if executor is not None:
            await executor.tune(instance, setup)
            await self._tell_stats(instance, executor)

    def _rest(self, command: commands.RestInstance) -> None:
        self._spawn(self._settle(command.instance, awake=False, keep=command.keep))

    def _wake(self, command: commands.WakeInstance) -> None:
        self._spawn(self._settle(command.instance, awake=True))

    async def _settle(self, instance: str, *, awake: bool, keep: bool = False) -> None:
        executor = self._kinds.get(instance)
        if executor is not None:
            await (executor.wake(instance) if awake else executor.rest(instance, keep=keep))
            await self._tell_stats(instance, executor)
        if not awake:
            self._tell(events.InstanceRested(instance))

    def _stop(self, command: commands.StopInstance) -> None:
        self._spawn(self._end(command.instance))

    async def _end(self, instance: str) -> None:
        executor = self._kinds.pop(instance, None)
        self._setups.pop(instance, None)
        start = self._starts.pop(instance, None)
        if start is not None:
            start.cancel()
            await asyncio.wait([start])
        if executor is not None:
            await executor.stop(instance)
        for digest in self._pins.pop(instance, ()):
            self._cache.unpin(digest)
        self._tell(events.InstanceStopped(instance))

    async def _calibration(self, command: commands.RunCalibration) -> None:
        """Measure a program; what does that is loaded with the first one."""
        if self._bench is None:
            from device_agent.bench import Bench  # noqa: PLC0415 - few nodes measure much

            self._bench = Bench(self._cache, self._blobs, self._transfers, self._executor)
        self._tell(events.CalibrationEnded(await self._bench.run(command)))

    def _end_calibration(self, command: commands.EndCalibration) -> None:
        if self._bench is not None:
            self._bench.end(command.reason)


def to_executor(values: Mapping[str, invocation.Value]) -> tuple[dict[str, Value], list[str]]:
    """Return the values as executors take them, and the digests of those to be pinned."""
    inputs: dict[str, Value] = {}
    files: list[str] = []
    for name, value in values.items():
        if isinstance(value, invocation.Tensor):
            inputs[name] = Bytes(value.dtype, value.shape, value.data)
        else:
            inputs[name] = File(value.dtype, value.shape, value.digest, value.size_bytes)
            if value.digest.startswith(DIGEST_PREFIX):
                # What was made here is held until it is dropped.
                files.append(value.digest)
    return inputs, files


def spill(outputs: Mapping[str, Value]) -> frozenset[str]:
    """Choose the inline outputs that have to become files: too large, or too much together."""
    sizes = {name: len(one.data) for name, one in outputs.items() if isinstance(one, Bytes)}
    total = sum(sizes.values())
    chosen = set()
    for name, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
        if size <= invocation.INLINE_MAX_BYTES and total <= INLINE_TOTAL_BYTES:
            break
        chosen.add(name)
        total -= size
    return frozenset(chosen)


def _gone(command: commands.Execute) -> events.ExecutorFailed:
    text = f"instance {command.instance} is gone"
    code = invocation.FailureCode.NOT_READY
    return events.ExecutorFailed(command.call, code, Blame.ENVIRONMENT, text, retryable=True)
