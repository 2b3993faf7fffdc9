"""What a task runs: artifact, named inputs and outputs, limits. Shared by every layer."""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta

from protocols.base import Count, Digest, Name, Part, Shape, Text

MAX_PORTS: Final = 16
MAX_CONSTANTS: Final = 8
MAX_MODULES: Final = 4
MAX_ARGUMENTS: Final = 64
MAX_INFERS: Final = 8
MAX_VALUES: Final = 64
REFERENCE_MAX_BYTES: Final = 256 * 1024
"""Of an expected output: it is compared item by item."""
MAX_STATE_BYTES: Final = 16 << 20
MAX_THREADS: Final = 64
MAX_BATCH: Final = 1024
ANY: Final = -1
"""As an axis of a shape: of any length."""


class ExecutorKind(StrEnum):
    """The kinds of task executor."""

    WASM = "wasm"
    ONNX = "onnx"
    CONTAINER = "container"


class Interface(StrEnum):
    """How an executor calls a program; which of them a kind knows stands in `INTERFACES`."""

    CORE = "tona-core-1"
    """A Wasm module with the exports of the guest ABI."""
    WASI = "wasi-1"
    """A Wasm command of WASI preview 1: the inputs on stdin, the output from stdout."""
    ONCE = "once"
    """A container that is started for each invocation."""
    SERVE = "serve"
    """A container that answers one invocation after another."""


class HostFunction(StrEnum):
    """What a Wasm guest may import, each by the manifest's leave alone."""

    LOG = "log"
    CLOCK = "clock"
    RANDOM = "random"
    MEMORY = "memory"
    """Key-value memory that outlives an invocation, within `Limits.state_bytes`."""


INTERFACES: Final = {
    ExecutorKind.WASM: (Interface.CORE, Interface.WASI),
    ExecutorKind.ONNX: (),
    ExecutorKind.CONTAINER: (Interface.ONCE, Interface.SERVE),
}
"""The interfaces of each kind; the first one is meant where none is named."""


class Dtype(StrEnum):
    """Element types of a tensor; the numbers are those of ONNX `TensorProto.DataType`."""

    FLOAT32 = "float32"
    UINT8 = "uint8"
    INT8 = "int8"
    UINT16 = "uint16"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"
    FLOAT16 = "float16"
    FLOAT64 = "float64"
    UINT32 = "uint32"
    UINT64 = "uint64"


ONNX_DTYPE_NUMBER: Final = {
    Dtype.FLOAT32: 1,
    Dtype.UINT8: 2,
    Dtype.INT8: 3,
    Dtype.UINT16: 4,
    Dtype.INT16: 5,
    Dtype.INT32: 6,
    Dtype.INT64: 7,
    Dtype.BOOL: 9,
    Dtype.FLOAT16: 10,
    Dtype.FLOAT64: 11,
    Dtype.UINT32: 12,
    Dtype.UINT64: 13,
}
ITEM_BYTES: Final = {
    Dtype.FLOAT32: 4,
    Dtype.UINT8: 1,
    Dtype.INT8: 1,
    Dtype.UINT16: 2,
    Dtype.INT16: 2,
    Dtype.INT32: 4,
    Dtype.INT64: 8,
    Dtype.BOOL: 1,
    Dtype.FLOAT16: 2,
    Dtype.FLOAT64: 8,
    Dtype.UINT32: 4,
    Dtype.UINT64: 8,
}


class Port(Part, frozen=True):
    """A named tensor that a task takes or gives; -1 in the shape is any length."""

    name: Name
    """How plans and the task's program call it."""
    dtype: Dtype
    shape: Shape


class ArtifactRef(Part, frozen=True):
    """An artifact by its content; where it lies is the cell's business."""

    digest: Digest
    """SHA-256 of its bytes."""
    size_bytes: Count


class Constant(Part, frozen=True):
    """An input that is the same for every invocation: a table, a dictionary, weights."""

    port: Name
    """The input that it fills."""
    artifact: ArtifactRef
    """Its bytes are the value, dense and little-endian."""


class Limits(Part, frozen=True):
    """What one invocation may take; more is refused or killed."""

    memory_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 40)] = 256 << 20
    """Of a Wasm guest, or of the process that runs a model."""
    deadline_ms: Annotated[int, Meta(ge=1, le=3_600_000)] = 10_000
    """Of one run."""
    output_bytes: Annotated[int, Meta(ge=1, le=1 << 40)] = 64 << 20
    """Of all outputs together."""
    queue: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Invocations that may wait; of one more and these, whoever is worth least is shed."""
    state_bytes: Annotated[int, Meta(ge=0, le=MAX_STATE_BYTES)] = 0
    """Of what it remembers between invocations, keys and values; 0: it remembers nothing."""


class LinkedModule(Part, frozen=True):
    """A Wasm module whose exports the program imports under a name."""

    name: Name
    """The import's module name."""
    artifact: ArtifactRef
    """The module; it may import WASI and the modules before it."""


class Carry(Part, frozen=True):
    """What a model remembers: an output of one run is an input of the next."""

    output: Name
    """A port of the model that is no output of the task."""
    input: Name
    """The port that it fills; zeros at the first run."""


class Infer(Part, frozen=True):
    """A task whose model a Wasm guest may run."""

    name: Name
    """How the guest calls it: the step's name in the service."""
    task: Name
    """The ONNX task, on the same node."""


class Form(StrEnum):
    """What an output of bytes is to be."""

    TEXT = "text"
    """UTF-8."""
    JSON = "json"


class Check(Part, frozen=True):
    """What an output must keep, held in the executor's process."""

    output: Name
    """The port that is looked at."""
    at_least: float | None = None
    """Of every item; NaN keeps no bound."""
    at_most: float | None = None
    """The same."""
    values: Annotated[tuple[float, ...], Meta(max_length=MAX_VALUES)] = ()
    """The items that there may be; empty: any."""
    finite: bool = False
    """Whether infinite items are refused too."""
    items_at_least: Count = 0
    """How many items there are."""
    items_at_most: Count | None = None
    """The same."""
    form: Form | None = None
    """What its bytes are; null: any."""
    refuse: bool = True
    """Whether a call that breaks it fails; else it is only flagged."""


class Sample(Part, frozen=True):
    """The value of one port in an example."""

    port: Name
    """Whose value it is."""
    shape: Shape
    """Without -1."""
    artifact: ArtifactRef
    """Its bytes, dense and little-endian."""


class Reference(Part, frozen=True):
    """An example that a program has to answer as expected before it serves anybody."""

    inputs: Annotated[tuple[Sample, ...], Meta(max_length=MAX_PORTS)]
    """One for each input that is no constant."""
    outputs: Annotated[tuple[Sample, ...], Meta(min_length=1, max_length=MAX_PORTS)]
    """What is expected; outputs without a sample are not looked at."""
    tolerance: Annotated[float, Meta(ge=0)] = 0.0
    """By how much an item may differ: of its own size, and of 1 where it is smaller."""
    every_ms: Annotated[int, Meta(ge=0, le=30 * 86_400_000)] = 3_600_000
    """How often it is run again; 0: never."""


class Manifest(Part, frozen=True):
    """What a task executor needs to know to run a task."""

    kind: ExecutorKind
    """Which executor runs it."""
    artifact: ArtifactRef
    """The program or model."""
    inputs: Annotated[tuple[Port, ...], Meta(max_length=MAX_PORTS)]
    """Constants among them."""
    outputs: Annotated[tuple[Port, ...], Meta(min_length=1, max_length=MAX_PORTS)]
    limits: Limits = Limits()
    """Of one run."""
    constants: Annotated[tuple[Constant, ...], Meta(max_length=MAX_CONSTANTS)] = ()
    """Inputs that no edge of a plan feeds."""
    providers: tuple[str, ...] = ()
    """ONNX execution providers the author insists on, best first; empty: the node's choice."""
    interface: Interface | None = None
    """How the program is called; null: the first that its kind knows."""
    functions: Annotated[tuple[HostFunction, ...], Meta(max_length=8)] = ()
    """What a Wasm guest may import beside its modules."""
    modules: Annotated[tuple[LinkedModule, ...], Meta(max_length=MAX_MODULES)] = ()
    """Wasm modules that the program is linked with, in this order."""
    arguments: Annotated[tuple[Text, ...], Meta(max_length=MAX_ARGUMENTS)] = ()
    """Of the command line of a WASI command or a container."""
    carries: Annotated[tuple[Carry, ...], Meta(max_length=MAX_PORTS)] = ()
    """What an ONNX model remembers between invocations."""
    batch: Annotated[int, Meta(ge=0, le=MAX_BATCH)] = 0
    """Most rows of one run of a model whose ports, constants apart, have rows as their first axis:
    invocations that wait may share a run. 0: each has its own."""
    infers: Annotated[tuple[Infer, ...], Meta(max_length=MAX_INFERS)] = ()
    """Tasks of the same service that a Wasm guest may run in the middle of its own run."""
    threads: Annotated[int, Meta(ge=0, le=MAX_THREADS)] = 0
    """Of one run of a model, as long as nobody tunes it; 0: the node's choice."""
    checks: Annotated[tuple[Check, ...], Meta(max_length=MAX_PORTS)] = ()
    """What its outputs must keep."""
    reference: Reference | None = None
    """What it has to answer as expected; null: nothing."""

    @property
    def beside(self) -> tuple[ArtifactRef, ...]:
        """The artifacts that it needs beside the program itself."""
        proof = self.reference
        samples = () if proof is None else (*proof.inputs, *proof.outputs)
        files: tuple[Constant | LinkedModule | Sample, ...]
        files = (*self.constants, *self.modules, *samples)
        return tuple(one.artifact for one in files)

    @property
    def remembers(self) -> bool:
        """Whether runs leave something to later ones: its memory moves with the task."""
        keyed = self.limits.state_bytes > 0 and HostFunction.MEMORY in self.functions
        return keyed or bool(self.carries)

    @property
    def called(self) -> Interface | None:
        """How the program is called; None where its kind knows one way alone."""
        return self.interface or next(iter(INTERFACES[self.kind]), None)


def tensor_bytes(dtype: Dtype, shape: tuple[int, ...]) -> int:
    """Return how many bytes a dense tensor takes; the shape has no -1."""
    size = ITEM_BYTES[dtype]
    for axis in shape:
        size *= axis
    return size


def accepts(port: Port, dtype: Dtype, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this type and shape fits the port."""
    if port.dtype != dtype or len(port.shape) != len(shape):
        return False
    return port.shape == shape or all(
        want in (ANY, have) for want, have in zip(port.shape, shape, strict=True)
    )
