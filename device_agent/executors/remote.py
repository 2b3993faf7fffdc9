"""The path of a call that every executor shares: slot, instance, frame, answer or deadline.

A call first takes a slot (calls beyond the slots wait, in order, up to the manifest's queue), then
makes sure that its instance runs, then is one frame there and one back. The deadline settles the
caller at once; the slot stays taken until the executor has answered `stop`, or was killed because
it did not within `stop_grace_s`.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from msgspec import structs

from device_agent.executors.calls import Deadlines, Instance, Run, Slots
from device_agent.executors.contract import (
    ConstantFile,
    Described,
    files_of,
    fit_constant,
    read_failure,
)
from device_agent.executors.door import (
    PLAIN,
    USUAL,
    Call,
    Done,
    ExecutorFailure,
    Failed,
    OnInfer,
    OnResult,
    Setup,
    Stats,
    Value,
    no_infer,
)
from device_agent.executors.folders import Folders
from device_agent.executors.link import Link, Reply
from device_agent.executors.process import pss_bytes
from device_agent.executors.programs.wire import MADE
from protocols.errors import Blame
from protocols.manifest import ONNX_DTYPE_NUMBER, ExecutorKind, Manifest, Port
from protocols.messages.invocation import FailureCode

START_TIMEOUT_S: Final = 60.0
"""How long a process may take to start, or an artifact to load."""
IDLE_EXIT_S: Final = 60.0
"""How long the shared process of an executor stays without an instance."""

OnExit = Callable[[str, str], None]
"""Called with task and reason when an instance died by itself; its next call starts it again."""

LEVELS: Final = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
"""Of a program's own lines."""

log = logging.getLogger("tona.executors")


def no_exit(task: str, reason: str) -> None:
    """Ignore that an instance died."""
    del task, reason


def failed(
    code: FailureCode, blame: Blame, text: str, *, retryable: bool = False
) -> ExecutorFailure:
    """Make the error that carries a failure."""
    return ExecutorFailure(Failed(code, blame, text, retryable))


def _port(port: Port) -> tuple[str, int, tuple[int, ...]]:
    return port.name, ONNX_DTYPE_NUMBER[port.dtype], port.shape


def load_frame(manifest: Manifest) -> dict[str, Any]:
    """Return what every executor needs to load an instance."""
    frame = {
        "op": "load",
        "inputs": [_port(one) for one in manifest.inputs],
        "outputs": [_port(one) for one in manifest.outputs],
        "memory": manifest.limits.memory_bytes,
        "limit": manifest.limits.output_bytes,
    }
    if manifest.checks:
        frame["checks"] = [structs.astuple(one) for one in manifest.checks]
    return frame


def constant_frame(constants: dict[str, ConstantFile]) -> list[Described]:
    """Return constants as a frame describes them: name, dtype, shape, bytes, path."""
    return [
        (name, ONNX_DTYPE_NUMBER[one.port.dtype], one.shape, one.size_bytes, one.path)
        for name, one in constants.items()
    ]


class RemoteExecutor:
    """What executors in processes of their own have in common."""

    kind: ClassVar[ExecutorKind]
    stop_grace_s: ClassVar[float]
    """How long a call may go on after `stop` before its process is killed."""

    def __init__(
        self, blobs: Path, on_exit: OnExit = no_exit, folders: Sequence[Path] = ()
    ) -> None:
        """`folders` are those that its processes are let into beside `blobs`."""
        self._blobs = blobs
        self._folders = Folders((blobs, blobs / MADE, *folders))
        self._on_exit = on_exit
        self.on_infer: OnInfer = no_infer
        self._instances: dict[str, Instance] = {}
        self._kills: dict[Run, asyncio.TimerHandle] = {}
        self._deadlines = Deadlines(self._expire)
        self._background: set[asyncio.Task[None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None

    async def _launch(self, instance: Instance) -> None:
        """Load an instance and set its link. Raises ExecutorFailure."""
        raise NotImplementedError

    def _interrupt(self, run: Run) -> None:
        """Ask the executor to stop a call that it has."""
        raise NotImplementedError

    def _kill(self, run: Run) -> None:
        """End the process of a call that did not stop."""
        raise NotImplementedError

    def _new_slots(self) -> Slots:
        raise NotImplementedError

    def _idle(self) -> bool:
        """Whether the shared process serves nothing."""
        return not self._instances

    def _retire(self) -> None:
        """End the shared process."""
        raise NotImplementedError

    def _stay(self) -> None:
        """Keep the shared process, there is work for it."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _settle_down(self) -> None:
        """End the shared process in a while, if nothing comes."""
        if self._idle() and self._idle_timer is None:
            loop = asyncio.get_running_loop()
            self._idle_timer = loop.call_later(IDLE_EXIT_S, self._leave)

    def _leave(self) -> None:
        self._idle_timer = None
        if self._idle():
            self._retire()

    def _spawn_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _close_shared(self) -> None:
        """End the shared process now and wait for everything under way."""
        self._folders.close()
        self._deadlines.close()
        self._stay()
        self._retire()
        while self._background:
            await asyncio.gather(*self._background)

    async def start(
        self,
        task: str,
        artifact: Path,
        manifest: Manifest,
        constants: dict[str, Path],
        setup: Setup = PLAIN,
    ) -> None:
        """Make an instance ready to be invoked; one of the same task is replaced.

        Raises ExecutorFailure.
        """
        await self.stop(task)
        fitted = _fit_constants(manifest, constants)
        instance = Instance(task, artifact, manifest, fitted, self._new_slots(), setup)
        instance.files = constants
        self._instances[task] = instance
        try:
            await self._ready(instance)
        except BaseException:
            if self._instances.get(task) is instance:
                await self.stop(task)
            raise

    async def _ready(self, instance: Instance) -> None:
        if instance.links:
            return
        instance.resting = False
        if instance.starting is None:
            instance.starting = asyncio.create_task(self._launch(instance))
            instance.starting.add_done_callback(lambda task: _started(instance, task))
        # Shielded: the start serves every call that waits for it, not only this one.
        await asyncio.shield(instance.starting)

    async def invoke(
        self,
        task: str,
        call: str,
        inputs: dict[str, Value],
        budget_ms: int,
        priority: int = USUAL,
    ) -> Done | Failed:
        """Run one call; never raises but when its caller is cancelled."""
        instance = self._instances.get(task)
        if instance is None:
            return _not_here(task)
        described = instance.contract.describe(inputs)
        if isinstance(described, Failed):
            return described
        run = Run(instance, priority)
        if instance.runs.setdefault(call, run) is not run:
            text = f"call {call[:80]!r} of task {task!r} is under way already"
            return Failed(FailureCode.BUSY, Blame.PEER, text, retryable=False)
        self._bound(run, budget_ms)
        try:
            await self._run(run, *described)
        except asyncio.CancelledError:
            self._stop_run(run)
            raise
        finally:
            run.forget_due()
            del instance.runs[call]
        result = run.result or _not_here(task)
        instance.count(result)
        return result

    def invoke_now(
        self,
        task: str,
        call: str,
        inputs: dict[str, Value],
        budget_ms: int,
        on_result: OnResult,
        priority: int = USUAL,
    ) -> bool:
        """Send a call if nothing is in its way; False, and nothing done, when `invoke` has to.

        A warm call takes this path: no task of the loop, and no turn of it, stands between the
        request and the executor, nor between its answer and `on_result`. So does a cold one where
        the executor keeps a process for it.
        """
        instance = self._instances.get(task)
        if instance is None or call in instance.runs:
            return False
        described = instance.contract.describe(inputs)
        if isinstance(described, Failed) or not instance.slots.take():
            return False
        link = instance.link
        if link is None:
            instance.slots.release()
            return False
        run = self._begin(instance, Call(call, inputs, budget_ms, on_result, priority))
        self._send(run, link, *described)
        self._bound(run, budget_ms)
        return True

    def _begin(self, instance: Instance, call: Call) -> Run:
        """Take a call in; `_bound` lets its budget run."""

        def settled(result: Done | Failed) -> None:
            del instance.runs[call.name]
            instance.count(result)
            call.on_result(result)

        run = instance.runs[call.name] = Run(instance, call.priority, settled)
        return run

    def _bound(self, run: Run, budget_ms: int) -> None:
        """Let the budget of a call run: after it was sent, for nothing waits for that."""
        limit_ms = min(budget_ms, run.instance.manifest.limits.deadline_ms)
        self._deadlines.set(run, limit_ms / 1000, budget_ms)
        run.until_s = asyncio.get_running_loop().time() + budget_ms / 1000

    def invoke_together(self, task: str, calls: Sequence[Call]) -> bool:
        """Begin calls in one run; False, and nothing done, where each has to go by itself."""
        del task, calls
        return False

    async def _run(self, run: Run, described: list[Described], inline: list[bytes]) -> None:
        """Bring a run to its result, or leave it without when its instance went."""
        instance = run.instance
        if not instance.slots.take() and not await self._queue(run):
            return
        if not instance.links:
            await self._wake(run)
        link = instance.link
        if run.result is not None or link is None:
            instance.slots.release()
            return
        self._send(run, link, described, inline)
        await run.wait()

    def _send(
        self,
        run: Run,
        link: Link,
        described: list[Described],
        inline: list[bytes],
        **more: Any,
    ) -> None:
        header: dict[str, Any] = {"op": "invoke", "key": run.instance.key, "in": described, **more}
        run.sent = link
        run.number = link.request(header, inline, partial(self._answered, run))

    async def _queue(self, run: Run) -> bool:
        """Wait for a slot in the task's queue; whether the run has it."""
        instance = run.instance
        if instance.waiting >= instance.manifest.limits.queue:
            text = f"task {instance.task!r}: {instance.waiting} calls wait already"
            run.settle(Failed(FailureCode.BUSY, Blame.ENVIRONMENT, text, retryable=True))
            return False
        instance.waiting += 1
        try:
            return await instance.slots.wait(run)
        finally:
            instance.waiting -= 1

    async def _wake(self, run: Run) -> None:
        """Start the instance again, for as long as the call may wait for it."""
        await self._wait_for(run, self._ready(run.instance))

    async def _wait_for(self, run: Run, work: Coroutine[None, None, None]) -> None:
        """Have done what a run that has its slot needs first, for as long as it may wait."""
        ready = asyncio.create_task(work)
        ready.add_done_callback(lambda _: run.go_on())
        try:
            await run.wait()
        except asyncio.CancelledError:
            run.instance.slots.release()
            raise
        finally:
            if not ready.done():
                ready.cancel()
        if ready.done() and not ready.cancelled():
            error = ready.exception()
            if isinstance(error, ExecutorFailure):
                run.settle(error.failed)
            elif error is not None:
                raise error

    def _freed(self, instance: Instance, link: Link) -> None:
        """Take note that a process has answered a call and has no other of it."""

    def _answered(self, run: Run, reply: Reply | None, body: memoryview) -> None:
        link, run.sent = run.sent, None
        kill = self._kills.pop(run, None)
        if kill is not None:
            kill.cancel()
        instance = run.instance
        if reply is not None and link is not None:
            self._freed(instance, link)
        run.together.discard(run)
        if not run.together:
            instance.slots.release()
        elif all(one.result is not None for one in run.together):
            self._stop_run(next(iter(run.together)))
        if reply is None:
            text = f"the executor process of task {instance.task!r} ended during the call"
            lost = Failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, retryable=True)
            run.settle(lost)
            return
        if reply.unloaded:
            instance.links = [one for one in instance.links if one is not link]
        instance.pid = reply.pid or instance.pid
        instance.memory_bytes = max(instance.memory_bytes, reply.mem)
        if reply.fail is not None and reply.fail[1] == Blame.ENVIRONMENT:
            self._look_at_folders()
        for level, line in reply.log:
            log.log(LEVELS[min(level, len(LEVELS) - 1)], "task %s: %s", instance.task, line)
        result = instance.contract.read(reply, body)
        if not run.settle(result) or isinstance(result, Failed):
            self._discard(reply)

    def _discard(self, reply: Reply) -> None:
        """Delete what was made for nobody."""
        for file in files_of(reply):
            with contextlib.suppress(OSError):
                (self._blobs / file).unlink()

    def expect(self, task: str) -> None:
        """Nothing to do here."""

    def inferred(self, task: str, call: str, result: Done | Failed) -> None:
        """Give a guest what the model gave; there are no guests here."""
        del task, call, result

    def _look_at_folders(self) -> None:
        """End the processes that were let into folders which are not there any more."""
        if self._folders.remade():
            log.warning("a folder of the executors was made anew: their processes begin anew")
            self._renew()

    def _renew(self) -> None:
        """End every process that holds a program; the next calls start others."""
        raise NotImplementedError

    def _expire(self, run: Run, budget_ms: int) -> None:
        self._overrun(run, _late(run.instance, budget_ms))

    def _overrun(self, run: Run, why: Failed) -> None:
        if run.settle(why):
            self._stop_run(run)

    def _stop_run(self, run: Run) -> None:
        """Have the executor give up a call that nobody waits for, by force after a grace."""
        if any(one is not run and one.result is None for one in run.together):
            # The executor's run goes on for them.
            return
        loop = asyncio.get_running_loop()
        for one in run.together:
            if one.sent is not None and one not in self._kills:
                self._interrupt(one)
                self._kills[one] = loop.call_later(self.stop_grace_s, self._force, one)

    def _force(self, run: Run) -> None:
        self._kills.pop(run, None)
        if run.sent is not None:
            log.warning("task %s did not stop, its process is killed", run.instance.task)
            self._kill(run)

    def _unload(self, instance: Instance) -> None:
        """Have the executor hold nothing of an instance without calls."""
        raise NotImplementedError

    async def rest(self, task: str, *, keep: bool = False) -> None:
        """Have an instance hold nothing until its next call or `wake`; one with calls stays.

        `keep`: nothing but the process that has loaded its program, where there is one.
        """
        instance = self._instances.get(task)
        if instance is None or instance.runs or instance.starting is not None:
            return
        # What has kept its process so far may give that up as well.
        if instance.links or not (keep or instance.resting):
            instance.resting = not keep
            self._unload(instance)
            instance.memory_bytes = 0

    async def wake(self, task: str) -> None:
        """Make a resting instance ready; what stands in the way its next call will tell."""
        instance = self._instances.get(task)
        if instance is not None:
            with contextlib.suppress(ExecutorFailure):
                await self._ready(instance)

    async def cancel(self, task: str, call: str) -> None:
        """Stop a call that nobody waits for any more; unknown ones are ignored."""
        instance = self._instances.get(task)
        run = instance.runs.get(call) if instance is not None else None
        if run is not None:
            self._overrun(
                run,
                Failed(
                    FailureCode.CANCELLED, Blame.USER, "the call was cancelled", retryable=False
                ),
            )

    async def _forget(self, task: str) -> Instance | None:
        """Take an instance out and answer its calls."""
        instance = self._instances.pop(task, None)
        if instance is None:
            return None
        if instance.starting is not None:
            instance.starting.cancel()
        stopped = Failed(
            FailureCode.NOT_READY, Blame.ENVIRONMENT, f"task {task!r} was stopped", retryable=True
        )
        for run in list(instance.runs.values()):
            self._overrun(run, stopped)
        return instance

    async def stop(self, task: str) -> None:
        """End an instance and free what it held; unknown ones are ignored."""
        raise NotImplementedError

    async def snapshot(self, task: str) -> bytes:
        """Return the declared state of an instance: neither kind declares any yet."""
        del task
        return b""

    def recall(self, memory: str) -> bytes:
        """Return the state that is kept under a name: none is."""
        del memory
        return b""

    async def restore(self, task: str, state: bytes) -> None:
        """Take over state; there is none to take. Raises ExecutorFailure when there is some."""
        if state:
            raise failed(
                FailureCode.EXECUTOR, Blame.PEER, f"task {task!r} declares no state to restore"
            )

    async def stats(self, task: str) -> Stats | None:
        """Say what an instance takes; None when there is none."""
        instance = self._instances.get(task)
        if instance is None:
            return None
        remark = "; ".join(instance.remarks.values())
        return Stats(self._memory_bytes(instance), instance.calls, instance.failures, remark)

    def shared_bytes(self) -> int:
        """Return the memory (PSS) of its processes that belong to no one task."""
        return sum(map(pss_bytes, self._shared()))

    def _shared(self) -> list[int]:
        """Return those processes."""
        raise NotImplementedError

    def _memory_bytes(self, instance: Instance) -> int:
        return instance.memory_bytes


def _started(instance: Instance, task: asyncio.Task[None]) -> None:
    instance.starting = None
    if not task.cancelled():
        task.exception()


def _fit_constants(manifest: Manifest, constants: dict[str, Path]) -> dict[str, ConstantFile]:
    ports = {port.name: port for port in manifest.inputs}
    fitted: dict[str, ConstantFile] = {}
    for one in manifest.constants:
        port, path = ports.get(one.port), constants.get(one.port)
        if port is None:
            raise failed(
                FailureCode.EXECUTOR, Blame.USER, f"constant {one.port!r} names no input port"
            )
        if path is None:
            text = f"constant {one.port!r} is not on this node"
            raise failed(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True)
        try:
            size = path.stat().st_size
        except OSError as error:
            text = f"constant {one.port!r}: {error.strerror}"
            raise failed(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True) from None
        fit = fit_constant(port, size, str(path))
        if isinstance(fit, str):
            raise failed(FailureCode.EXECUTOR, Blame.USER, fit)
        fitted[one.port] = fit
    return fitted


def _not_here(task: str) -> Failed:
    return Failed(
        FailureCode.NOT_READY,
        Blame.ENVIRONMENT,
        f"task {task!r} has no instance here",
        retryable=True,
    )


def _late(instance: Instance, budget_ms: int) -> Failed:
    limit_ms = instance.manifest.limits.deadline_ms
    if budget_ms < limit_ms:
        text = f"the request's time was over after {budget_ms} ms in task {instance.task!r}"
        return Failed(FailureCode.DEADLINE, Blame.ENVIRONMENT, text, retryable=False)
    text = f"task {instance.task!r} took longer than the {limit_ms} ms that its manifest allows"
    return Failed(FailureCode.DEADLINE, Blame.USER, text, retryable=False)


def check_failure(reply: Reply | None, what: str) -> Reply:
    """Return a good answer to a request that is no call. Raises ExecutorFailure."""
    if reply is None:
        text = f"the executor process ended while {what}"
        raise failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, retryable=True)
    if reply.fail is not None:
        raise ExecutorFailure(read_failure(reply.fail))
    return reply
