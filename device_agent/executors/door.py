"""The one door of every task executor, as the daemon sees it.

The daemon imports neither numpy nor onnxruntime nor wasmtime: executors are processes of their own
behind a socket pair, and values of any size stay outside the daemon's memory when they are blobs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Final, Protocol

from msgspec import Struct

from protocols.errors import Blame
from protocols.manifest import Dtype, ExecutorKind, Manifest
from protocols.messages.invocation import FailureCode
from protocols.messages.presence import ExecutorInfo
from protocols.messages.quality import PRIORITY_DEFAULT


class Bytes(Struct, frozen=True):
    """A small value, in memory."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes


class File(Struct, frozen=True):
    """A large value, in the node's blob folder."""

    dtype: Dtype
    shape: tuple[int, ...]
    digest: str
    """`sha256:...`, or `made:...` and a name where an executor made it and it has not left yet."""
    size_bytes: int


Value = Bytes | File


class Done(Struct, frozen=True):
    """The outputs of a call."""

    outputs: dict[str, Value]
    run_us: int
    """From taking the call to having the outputs, inside the executor."""
    calls: int = 1
    """That the same run has answered."""
    cpu_us: int | None = None
    """Processor time of the call; None: not measured."""
    peak_bytes: int = 0
    """Most memory of its process during the call; 0: not measured."""
    flags: str = ""
    """Which check the outputs have broken, where that only flags them."""


class Failed(Struct, frozen=True):
    """Why a call gave no outputs."""

    code: FailureCode
    blame: Blame
    text: str
    retryable: bool


class Setup(Struct, frozen=True):
    """How an instance runs; threads and provider stand for its life, the rest can be tuned."""

    threads: int = 0
    """Inside one run of a model; 0: the executor's choice."""
    provider: str = ""
    """ONNX execution provider; empty: as the manifest or the node says."""
    replicas: int = 1
    """Calls that run side by side."""
    cpu_percent: float = 0.0
    """Share of the node's cores for its workers together, of one core; 0: no bound."""
    priority: int = PRIORITY_DEFAULT
    """Among the tasks of the node."""
    tenant: str = "default"
    """Whose program it is; no process runs programs of two."""
    memory: str = ""
    """The name under which its memory is kept between instances; empty: it has none."""
    fresh: bool = False
    """Whether a model is loaded for each run, and let go of with it."""


LINKED: Final = "module:"
"""Before the name of a linked module among the files of an instance, beside the constants."""
PLAIN: Final = Setup()
USUAL: Final = 2 * PRIORITY_DEFAULT
"""Priority of a call whose task and request have the usual one."""


OnResult = Callable[[Done | Failed], None]
OnInfer = Callable[[str, str, "list[Value]"], None]
"""Called with a call, the name of a task that its guest wants run, and that task's inputs."""


def no_infer(call: str, name: str, values: "list[Value]") -> None:
    """Ignore that a guest wants a model run."""
    del call, name, values


class Call(Struct, frozen=True):
    """One of several calls that are begun together; as the arguments of `invoke_now`."""

    name: str
    inputs: dict[str, Value]
    budget_ms: int
    on_result: OnResult
    priority: int = USUAL


class Stats(Struct, frozen=True):
    """What an instance takes and has done."""

    memory_bytes: int
    calls: int
    failures: int
    remark: str = ""
    """What of its setup it does not get here, for people."""


class ExecutorFailure(Exception):
    """Deploying or starting failed; `failed` says why and by whose blame."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.text)
        self.failed = failed


class Executor(Protocol):
    """One kind of task executor on this node. Instances are named by their task."""

    kind: ClassVar[ExecutorKind]
    on_infer: OnInfer
    """Who is told that a guest wants a model run, set by the daemon; `inferred` answers."""

    async def probe(self) -> ExecutorInfo | None:
        """Say what this executor can do here, or None when it cannot run; never raises."""
        ...

    async def deploy(self, artifact: Path, manifest: Manifest, setup: Setup = PLAIN) -> None:
        """Verify and prepare (compile, vet) an artifact; idempotent. Raises ExecutorFailure."""
        ...

    async def start(
        self,
        task: str,
        artifact: Path,
        manifest: Manifest,
        constants: dict[str, Path],
        setup: Setup = PLAIN,
    ) -> None:
        """Make an instance ready to be invoked. Raises ExecutorFailure.

        `constants` has the file of each port, and that of a linked module under `LINKED` and name.
        """
        ...

    async def tune(self, task: str, setup: Setup) -> None:
        """Let an instance run so without a restart; `stats` says what it does not get."""
        ...

    async def invoke(
        self,
        task: str,
        call: str,
        inputs: dict[str, Value],
        budget_ms: int,
        priority: int = USUAL,
    ) -> Done | Failed:
        """Run one call; never raises. Past its budget the call is stopped, by force if need be.

        Of calls that wait for the same worker the one with the highest priority goes first.
        """
        ...

    def invoke_now(
        self,
        task: str,
        call: str,
        inputs: dict[str, Value],
        budget_ms: int,
        on_result: OnResult,
        priority: int = USUAL,
    ) -> bool:
        """Begin a call that nothing stands in the way of; False, and nothing done, for others.

        `on_result` is called once, later; no task of the loop lies on the way. For the others
        there is `invoke`.
        """
        ...

    def invoke_together(self, task: str, calls: Sequence[Call]) -> bool:
        """Begin calls in one run; False, and nothing done, where each has to go by itself.

        Each is answered, cancelled and late as if it ran alone.
        """
        ...

    def expect(self, task: str) -> None:
        """Be told that a call comes in a moment; whether it comes is not said."""
        ...

    def inferred(self, task: str, call: str, result: Done | Failed) -> None:
        """Give a guest what the model gave; one that waits no more is ignored."""
        ...

    async def rest(self, task: str, *, keep: bool = False) -> None:
        """Have an instance hold nothing until its next call or `wake`; one with calls stays.

        `keep`: nothing but the process that has loaded its program, where there is one.
        """
        ...

    async def wake(self, task: str) -> None:
        """Make a resting instance ready; what stands in the way its next call will tell."""
        ...

    async def cancel(self, task: str, call: str) -> None:
        """Stop a call that nobody waits for any more; unknown ones are ignored."""
        ...

    async def stop(self, task: str) -> None:
        """End an instance and free what it held; unknown ones are ignored."""
        ...

    async def stats(self, task: str) -> Stats | None:
        """Say what an instance takes; None when there is none."""
        ...

    def shared_bytes(self) -> int:
        """Return the memory (PSS) of its processes that belong to no one task."""
        ...

    async def snapshot(self, task: str) -> bytes:
        """Return the declared state of an instance; empty when it declares none."""
        ...

    def recall(self, memory: str) -> bytes:
        """Return the declared state that is kept under a name, of no instance any more.

        Empty when there is none. Raises ExecutorFailure.
        """
        ...

    async def restore(self, task: str, state: bytes) -> None:
        """Take over the declared state of another instance of the task."""
        ...

    async def close(self) -> None:
        """End every process of this executor."""
        ...
