"""Values between an application and the wire: bytes, text, numpy arrays and plain tensors.

numpy is used when it is installed and not asked for otherwise. A value is copied at most once.
"""

import hashlib
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from msgspec import Struct

from protocols import packing
from protocols.errors import Blame, MalformedFrame
from protocols.manifest import Dtype, tensor_bytes
from protocols.messages import invocation as wire
from protocols.messages.invocation import INLINE_MAX_BYTES, Timing
from protocols.topics import valid_name
from tona.errors import InvocationError, bad_input, error_of

np: Any
try:
    np = import_module("numpy")
except ImportError:  # an extra
    np = None

INLINE_TOTAL_MAX_BYTES: Final = 96 * 1024
"""Inline values of one request; the largest beyond go through the cell's store."""
AXES_MAX: Final = 8
AXIS_MAX: Final = 2**31 - 1
"""What a shape on the wire may have."""
_ARRAYS: Final = () if np is None else (np.ndarray, np.generic)
_LITTLE: Final = {} if np is None else {one: np.dtype(one.value).newbyteorder("<") for one in Dtype}
_DTYPES: Final = {little: one for one, little in _LITTLE.items()}

Content = bytes | memoryview


class Tensor(Struct, frozen=True):
    """A dense array in row-major order, little-endian; what there is without numpy."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes


class Result(Struct, frozen=True):
    """The answer to a request: numpy arrays (read-only views), or `Tensor` without numpy."""

    outputs: dict[str, Any]
    timings: tuple[Timing, ...] = ()
    """Where the time went, in microseconds by task and node."""
    attempts: int = 1
    elapsed_ms: float = 0.0
    """From the call to the answer, as this client saw it."""
    index: int = 0
    """In a stream, the place of the input that this answers."""

    def __getitem__(self, name: str) -> Any:
        return self.outputs[name]

    def data(self, name: str) -> bytes:
        """Return the bytes of an output."""
        value = self.outputs[name]
        return value.data if isinstance(value, Tensor) else value.tobytes()

    def text(self, name: str) -> str:
        """Return an output of UTF-8 bytes as text."""
        return self.data(name).decode()


def pack(inputs: Mapping[str, Any]) -> tuple[dict[str, wire.Value], dict[str, Content]]:
    """Turn an application's inputs into wire values.

    Returns them, and by digest the contents that are too large to travel in the message. Raises
    BadInput.
    """
    plain = {name: _plain(name, value) for name, value in inputs.items()}
    for name, (_, shape, _) in plain.items():
        _check_shape(name, shape)
    sizes = {name: len(data) for name, (_, _, data) in plain.items()}
    large = _too_large(sizes) if sum(sizes.values()) > INLINE_MAX_BYTES else ()
    values: dict[str, wire.Value] = {}
    contents: dict[str, Content] = {}
    for name, (dtype, shape, data) in plain.items():
        if name in large:
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            contents[digest] = data
            values[name] = wire.Blob(dtype, shape, digest, len(data))
        else:
            values[name] = wire.Tensor(dtype, shape, bytes(data))
    return values, contents


def _too_large(sizes: Mapping[str, int]) -> set[str]:
    """Return the names of the values that cannot travel in the message, the largest first."""
    large = {name for name, size in sizes.items() if size > INLINE_MAX_BYTES}
    inline = sum(sizes.values()) - sum(sizes[name] for name in large)
    for name in sorted(sizes.keys() - large, key=sizes.__getitem__, reverse=True):
        if inline <= INLINE_TOTAL_MAX_BYTES:
            break
        large.add(name)
        inline -= sizes[name]
    return large


def is_large(inputs: Mapping[str, Any]) -> bool:
    """Whether packing these inputs takes longer than an event loop should be held up."""
    return any(
        getattr(one, "nbytes", 0) > INLINE_MAX_BYTES
        or (isinstance(one, bytes | bytearray | str) and len(one) > INLINE_MAX_BYTES)
        or (isinstance(one, Tensor) and len(one.data) > INLINE_MAX_BYTES)
        for one in inputs.values()
    )


def dense(value: wire.Tensor) -> Any:
    """Turn a tensor of an answer into what an application works with. Raises TaskFailed."""
    try:
        plain = packing.unpack(value)
    except MalformedFrame as error:
        raise _unreadable(f"the answer cannot be read: {error}") from None
    return unpack(plain.dtype, plain.shape, plain.data)


def _unreadable(text: str) -> InvocationError:
    code = wire.FailureCode.EXECUTOR
    return error_of(wire.Failure(code, Blame.PEER, text, retryable=False))


def unpack(dtype: Dtype, shape: tuple[int, ...], data: bytes) -> Any:
    """Turn the bytes of a value into what an application works with. Raises TaskFailed."""
    if min(shape, default=0) < 0 or tensor_bytes(dtype, shape) != len(data):
        text = f"the answer is no {dtype.value}{list(shape)}: it has {len(data)} bytes"
        raise _unreadable(text)
    if np is None:
        return Tensor(dtype, shape, data)
    return np.frombuffer(data, _LITTLE[dtype]).reshape(shape)


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Refuse what every node would drop without a word. Raises BadInput."""
    if len(shape) > AXES_MAX or not all(0 <= axis <= AXIS_MAX for axis in shape):
        raise bad_input(
            f"input {name!r} has the shape {list(shape)}: give at most {AXES_MAX} axes "
            f"from 0 to {AXIS_MAX}"
        )


def _plain(name: str, value: Any) -> tuple[Dtype, tuple[int, ...], Content]:
    if not valid_name(name):
        raise bad_input(f"{name!r} cannot name an input")
    match value:
        case bytes():
            return Dtype.UINT8, (len(value),), value
        case str():
            try:
                data = value.encode()
            except UnicodeEncodeError:
                raise bad_input(f"input {name!r} has a lone surrogate: it is no text") from None
            return Dtype.UINT8, (len(data),), data
        case bytearray() | memoryview():
            data = bytes(value)
            return Dtype.UINT8, (len(data),), data
        case Tensor() | wire.Tensor():
            return _from_tensor(name, value)
    if np is not None and isinstance(value, _ARRAYS):
        return _from_array(name, np.asarray(value))
    raise bad_input(
        f"input {name!r} is of type {type(value).__name__}: "
        "give bytes, text, a numpy array or a tona.Tensor"
    )


def _from_tensor(name: str, value: Tensor | wire.Tensor) -> tuple[Dtype, tuple[int, ...], Content]:
    if isinstance(value, wire.Tensor):
        try:
            value = packing.unpack(value)
        except MalformedFrame as error:
            raise bad_input(f"input {name!r}: {error}") from None
    size = tensor_bytes(value.dtype, value.shape)
    if size != len(value.data):
        raise bad_input(
            f"input {name!r}: {value.dtype} {list(value.shape)} takes {size} bytes, "
            f"{len(value.data)} were given"
        )
    return value.dtype, tuple(value.shape), value.data


def _from_array(name: str, array: Any) -> tuple[Dtype, tuple[int, ...], Content]:
    little = array.dtype.newbyteorder("<")
    dtype = _DTYPES.get(little)
    if dtype is None:
        known = ", ".join(one.value for one in Dtype)
        raise bad_input(f"input {name!r} has elements of type {little}: give one of {known}")
    if little != array.dtype:
        array = array.astype(little)
    shape = tuple(array.shape)
    if array.nbytes <= INLINE_MAX_BYTES:
        return dtype, shape, array.tobytes()
    return dtype, shape, memoryview(np.ascontiguousarray(array)).cast("B")
