"""Holding values against a manifest, on their way into an executor and out of it; pure."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Final

from msgspec import Struct

from device_agent.executors.door import Bytes, Done, Failed, File, Value
from device_agent.executors.link import Reply
from device_agent.executors.programs.wire import MADE
from protocols.errors import Blame
from protocols.manifest import (
    ITEM_BYTES,
    MAX_PORTS,
    ONNX_DTYPE_NUMBER,
    Manifest,
    Port,
    accepts,
    tensor_bytes,
)
from protocols.messages.invocation import INLINE_MAX_BYTES, FailureCode

DIGEST_PREFIX: Final = "sha256:"
FLAGS_LENGTH: Final = 160
_DIGEST: Final = re.compile(r"(?:sha256|made):[0-9a-f]{64}")
_FILE: Final = re.compile(rf"{MADE}/[0-9a-f]{{64}}")
_BY_NUMBER: Final = {number: dtype for dtype, number in ONNX_DTYPE_NUMBER.items()}

Described = tuple[str, int, tuple[int, ...], int, str]
"""A value as it stands in a frame: name, dtype number, shape, bytes, file or empty."""


class ConstantFile(Struct, frozen=True):
    """A constant input: its file and the shape that its size gives."""

    port: Port
    shape: tuple[int, ...]
    size_bytes: int
    path: str


class Contract:
    """A manifest with its constants, prepared for the checks of every call."""

    def __init__(self, manifest: Manifest, constants: dict[str, ConstantFile]) -> None:
        self._takes = [_plan(port) for port in manifest.inputs if port.name not in constants]
        self._gives = [_plan(port) for port in manifest.outputs]
        self._output_bytes = manifest.limits.output_bytes

    def describe(self, inputs: Mapping[str, Value]) -> tuple[list[Described], list[bytes]] | Failed:
        """Check the inputs of a call and describe them for a frame, with the inline ones' bytes."""
        described: list[Described] = []
        inline: list[bytes] = []
        for port, name, number, item_bytes in self._takes:
            value = inputs.get(name)
            if value is None:
                return _bad(f"input {name!r} is missing")
            misfit = _misfit(port, item_bytes, value)
            if misfit:
                return _bad(f"input {name!r} {misfit}")
            if isinstance(value, Bytes):
                described.append((name, number, value.shape, len(value.data), ""))
                inline.append(value.data)
            else:
                file = file_of(value.digest)
                described.append((name, number, value.shape, value.size_bytes, file))
        if len(described) != len(inputs):
            return self._extra(inputs)
        return described, inline

    def _extra(self, inputs: Mapping[str, Value]) -> Failed:
        known = {plan[1] for plan in self._takes}
        extra = ", ".join(sorted(inputs.keys() - known))
        return _bad(f"the task has no input {extra}; it takes {', '.join(sorted(known))}")

    def read(self, reply: Reply, body: memoryview) -> Done | Failed:
        """Turn an executor's answer into a result, held against the manifest."""
        if reply.fail is not None:
            return read_failure(reply.fail)
        outputs = self._outputs(reply, body)
        if isinstance(outputs, str):
            return _wrong_output(outputs)
        peak_bytes = max(reply.mem, reply.peak)
        flags = reply.flags[:FLAGS_LENGTH]
        return Done(outputs, reply.us, reply.calls, reply.cpu, peak_bytes, flags)

    def _outputs(self, reply: Reply, body: memoryview) -> dict[str, Value] | str:
        if len(reply.out) != len(self._gives):
            return f"{len(reply.out)} outputs, not {len(self._gives)}"
        outputs: dict[str, Value] = {}
        at = 0
        for (port, name, number, item_bytes), (called, dtype, shape, size, file) in zip(
            self._gives, reply.out, strict=True
        ):
            fits = shape == port.shape or accepts(port, port.dtype, shape)
            if called != name or dtype != number or not fits:
                return (
                    f"output {called!r} of dtype {dtype} {list(shape)}, "
                    f"the manifest says {name!r} {port.dtype}{list(port.shape)}"
                )
            if size != item_bytes * prod(shape) or size > self._output_bytes:
                return f"output {name!r} of {size} bytes for {list(shape)}"
            if not file:
                outputs[name] = Bytes(port.dtype, shape, bytes(body[at : at + size]))
                at += size
            elif _FILE.fullmatch(file):
                outputs[name] = File(port.dtype, shape, _made(file), size)
            else:
                return f"output {name!r} in no file of its own"
        return outputs if at == len(body) else f"{len(body)} bytes of outputs, not {at}"


def read_guest(
    described: Sequence[tuple[int, tuple[int, ...], int, str]], body: memoryview
) -> list[Value] | None:
    """Return what a guest feeds to a model; None where a host says what cannot be."""
    values: list[Value] = []
    at = 0
    for number, shape, size, file in described[: MAX_PORTS + 1]:
        dtype = _BY_NUMBER.get(number)
        if (
            dtype is None
            or any(one < 0 for one in shape)
            or size != ITEM_BYTES[dtype] * prod(shape)
        ):
            return None
        if not file:
            values.append(Bytes(dtype, shape, bytes(body[at : at + size])))
            at += size
        elif _FILE.fullmatch(file):
            values.append(File(dtype, shape, _made(file), size))
        else:
            return None
    return values if at == len(body) and len(values) <= MAX_PORTS else None


def give_guest(outputs: Mapping[str, Value]) -> tuple[list[Any], list[bytes]]:
    """Describe what a model gave for the guest that waits for it, with the inline bytes."""
    described: list[Any] = []
    inline: list[bytes] = []
    for one in outputs.values():
        number = ONNX_DTYPE_NUMBER[one.dtype]
        if isinstance(one, Bytes):
            described.append((number, one.shape, len(one.data), ""))
            inline.append(one.data)
        else:
            described.append((number, one.shape, one.size_bytes, file_of(one.digest)))
    return described, inline


def file_of(digest: str) -> str:
    """Return the file of a large value in the blob folder."""
    kind, _, name = digest.partition(":")
    return f"{MADE}/{name}" if kind == MADE else name


def _made(file: str) -> str:
    return file.replace("/", ":")


def files_of(reply: Reply) -> list[str]:
    """Return the files of the blob folder that an answer names."""
    return [one[4] for one in reply.out if _FILE.fullmatch(one[4])]


def _misfit(port: Port, item_bytes: int, value: Value) -> str:
    shape = value.shape
    if value.dtype != port.dtype or not (shape == port.shape or accepts(port, value.dtype, shape)):
        return f"is {value.dtype}{list(shape)}, the task takes {port.dtype}{list(port.shape)}"
    size = len(value.data) if isinstance(value, Bytes) else value.size_bytes
    if size != item_bytes * prod(shape):
        return f"has {size} bytes, which is no {value.dtype}{list(shape)}"
    if isinstance(value, Bytes):
        if size > INLINE_MAX_BYTES:
            return f"has {size} bytes: more than {INLINE_MAX_BYTES} go as a file"
    elif _DIGEST.fullmatch(value.digest) is None:
        return f"has no valid digest: {value.digest[:80]!r}"
    return ""


def _plan(port: Port) -> tuple[Port, str, int, int]:
    """Look up what is the same for every call: hashing an enum costs as much as a check."""
    return port, port.name, ONNX_DTYPE_NUMBER[port.dtype], ITEM_BYTES[port.dtype]


def _bad(text: str) -> Failed:
    return Failed(FailureCode.BAD_INPUT, Blame.USER, text, retryable=False)


def _wrong_output(text: str) -> Failed:
    return Failed(FailureCode.EXECUTOR, Blame.USER, f"the task gave {text}", retryable=False)


def read_failure(fail: tuple[str, str, str, bool]) -> Failed:
    """Turn the failure in an executor's answer into ours."""
    code, blame, text, retryable = fail
    try:
        return Failed(FailureCode(code), Blame(blame), text[:2048], retryable)
    except ValueError:
        return _wrong_output(f"an unknown failure {code[:40]!r}: {text[:500]}")


def fit_constant(port: Port, size_bytes: int, path: str) -> ConstantFile | str:
    """Find the shape of a constant from its size; a sentence when there is none."""
    known = tensor_bytes(port.dtype, tuple(axis for axis in port.shape if axis != -1))
    unknown = port.shape.count(-1)
    if unknown == 0:
        axis = 0
        fits = size_bytes == known
    elif unknown == 1 and known:
        axis, rest = divmod(size_bytes, known)
        fits = rest == 0
    else:
        return f"constant {port.name!r} needs a shape with at most one axis of any length"
    if not fits:
        return (
            f"constant {port.name!r} has {size_bytes} bytes, "
            f"which is no {port.dtype}{list(port.shape)}"
        )
    shape = tuple(axis if one == -1 else one for one in port.shape)
    return ConstantFile(port, shape, size_bytes, path)
