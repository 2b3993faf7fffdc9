"""Holding values against a manifest, on their way into an executor and out of it; pure."""

import re
from typing import Final

from msgspec import Struct

from device_agent.executors.door import Bytes, Done, Failed, File, Value
from device_agent.executors.link import Reply
from protocols.errors import Blame
from protocols.manifest import ONNX_DTYPE_NUMBER, Manifest, Port, accepts, tensor_bytes
from protocols.messages.invocation import INLINE_MAX_BYTES, FailureCode

DIGEST_PREFIX: Final = "sha256:"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_DTYPE_OF: Final = {number: dtype for dtype, number in ONNX_DTYPE_NUMBER.items()}

Described = tuple[str, int, tuple[int, ...], int, str]
"""A value as it stands in a frame: name, dtype number, shape, bytes, hex digest or empty."""


class ConstantFile(Struct, frozen=True):
    """A constant input: its file and the shape that its size gives."""

    port: Port
    shape: tuple[int, ...]
    size_bytes: int
    path: str


def _misfit(port: Port, value: Value) -> str:
    if not accepts(port, value.dtype, value.shape):
        return f"is {value.dtype}{list(value.shape)}, the task takes {port.dtype}{list(port.shape)}"
    size = len(value.data) if isinstance(value, Bytes) else value.size_bytes
    wanted = tensor_bytes(value.dtype, value.shape)
    if size != wanted:
        return f"has {size} bytes, {value.dtype}{list(value.shape)} takes {wanted}"
    if isinstance(value, Bytes):
        if size > INLINE_MAX_BYTES:
            return f"has {size} bytes: more than {INLINE_MAX_BYTES} go as a file"
    elif _DIGEST.fullmatch(value.digest) is None:
        return f"has no valid digest: {value.digest[:80]!r}"
    return ""


def describe_inputs(
    manifest: Manifest, constants: dict[str, ConstantFile], inputs: dict[str, Value]
) -> tuple[list[Described], list[bytes]] | Failed:
    """Check the inputs of a call and describe them for a frame, with the inline ones' bytes."""
    described: list[Described] = []
    inline: list[bytes] = []
    for port in manifest.inputs:
        name = port.name
        if name in constants:
            continue
        value = inputs.get(name)
        if value is None:
            return _bad(f"input {name!r} is missing")
        misfit = _misfit(port, value)
        if misfit:
            return _bad(f"input {name!r} {misfit}")
        number = ONNX_DTYPE_NUMBER[value.dtype]
        if isinstance(value, Bytes):
            described.append((name, number, value.shape, len(value.data), ""))
            inline.append(value.data)
        else:
            digest = value.digest[len(DIGEST_PREFIX) :]
            described.append((name, number, value.shape, value.size_bytes, digest))
    if len(described) != len(inputs):
        known = {port.name for port in manifest.inputs} - constants.keys()
        extra = ", ".join(sorted(inputs.keys() - known))
        return _bad(f"the task has no input {extra}; it takes {', '.join(sorted(known))}")
    return described, inline


def _bad(text: str) -> Failed:
    return Failed(FailureCode.BAD_INPUT, Blame.USER, text, retryable=False)


def read_reply(manifest: Manifest, reply: Reply, body: memoryview) -> Done | Failed:
    """Turn an executor's answer into a result, held against the manifest."""
    if reply.fail is not None:
        return read_failure(reply.fail)
    outputs = _read_outputs(manifest, reply, body)
    return _wrong_output(outputs) if isinstance(outputs, str) else Done(outputs, reply.us)


def _read_outputs(manifest: Manifest, reply: Reply, body: memoryview) -> dict[str, Value] | str:
    outputs: dict[str, Value] = {}
    at = 0
    if len(reply.out) != len(manifest.outputs):
        return f"{len(reply.out)} outputs, not {len(manifest.outputs)}"
    for port, (name, number, shape, size, digest) in zip(manifest.outputs, reply.out, strict=True):
        dtype = _DTYPE_OF.get(number)
        if name != port.name or dtype is None or not accepts(port, dtype, shape):
            return (
                f"output {name!r} {dtype}{list(shape)}, "
                f"the manifest says {port.name!r} {port.dtype}{list(port.shape)}"
            )
        if size != tensor_bytes(dtype, shape) or size > manifest.limits.output_bytes:
            return f"output {name!r} of {size} bytes"
        if digest:
            if _HEX.fullmatch(digest) is None:
                return f"output {name!r} without a digest"
            outputs[name] = File(dtype, shape, DIGEST_PREFIX + digest, size)
        else:
            outputs[name] = Bytes(dtype, shape, bytes(body[at : at + size]))
            at += size
    if at != len(body):
        return f"{len(body)} bytes of outputs, not {at}"
    return outputs


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
