"""The example that a program has to answer as expected: run at its start, and now and then again.

Loaded where a manifest has one. The executor runs it like any call, at the lowest priority; what it
gives is compared here, item by item, for expected outputs are small (`REFERENCE_MAX_BYTES`).
"""

import shutil
import struct
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Final

from device_agent.artifacts.blobs import BlobFolder
from device_agent.executors.door import Bytes, Done, Executor, Failed, File, Value
from protocols.errors import Blame
from protocols.manifest import (
    ITEM_BYTES,
    REFERENCE_MAX_BYTES,
    Dtype,
    Manifest,
    Port,
    Reference,
    Sample,
)
from protocols.messages.invocation import INLINE_MAX_BYTES, FailureCode

LOWEST: Final = 0
CALL: Final = "reference"
FORMATS: Final = {
    Dtype.FLOAT32: "f",
    Dtype.UINT8: "B",
    Dtype.INT8: "b",
    Dtype.UINT16: "H",
    Dtype.INT16: "h",
    Dtype.INT32: "i",
    Dtype.INT64: "q",
    Dtype.BOOL: "?",
    Dtype.FLOAT16: "e",
    Dtype.FLOAT64: "d",
    Dtype.UINT32: "I",
    Dtype.UINT64: "Q",
}


class Prover:
    """Runs examples; `path` tells where an artifact lies."""

    def __init__(self, blobs: BlobFolder, path: Callable[[str], Path]) -> None:
        self._blobs = blobs
        self._path = path

    async def prove(self, executor: Executor, instance: str, manifest: Manifest) -> Failed | None:
        """Return why a program does not agree with its example; None: it does."""
        reference = manifest.reference
        if reference is None:
            return None
        pinned: list[str] = []
        try:
            ports = {one.name: one for one in (*manifest.inputs, *manifest.outputs)}
            inputs = {
                one.port: self._value(one, ports[one.port].dtype, pinned)
                for one in reference.inputs
            }
            budget_ms = manifest.limits.deadline_ms
            result = await executor.invoke(instance, CALL, inputs, budget_ms, LOWEST)
            if isinstance(result, Failed):
                text = f"the reference sample fails: {result.text}"[:1000]
                return Failed(result.code, result.blame, text, result.retryable)
            try:
                wrong = self._compared(reference, result, ports)
            finally:
                for one in result.outputs.values():
                    if isinstance(one, File):
                        self._blobs.drop(one.digest)
        except OSError as error:
            text = f"the reference sample cannot be read: {error.strerror}"
            return Failed(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True)
        finally:
            for digest in pinned:
                self._blobs.unpin(digest)
        return Failed(FailureCode.CHECK, Blame.USER, wrong, retryable=False) if wrong else None

    def _value(self, sample: Sample, dtype: Dtype, pinned: list[str]) -> Value:
        """Return an input as executors take it; a large one as a file. Raises OSError."""
        size, digest = sample.artifact.size_bytes, sample.artifact.digest
        if size <= INLINE_MAX_BYTES:
            return Bytes(dtype, sample.shape, self._path(digest).read_bytes())
        self._blobs.pin(digest)
        pinned.append(digest)
        if not self._blobs.has(digest, size):
            part = self._blobs.part(digest)
            try:
                shutil.copyfile(self._path(digest), part)
                part.replace(self._blobs.path(digest))
            finally:
                part.unlink(missing_ok=True)
        return File(dtype, sample.shape, digest, size)

    def _compared(self, reference: Reference, result: Done, ports: dict[str, Port]) -> str:
        for one in reference.outputs:
            wanted = self._path(one.artifact.digest).read_bytes()
            found = result.outputs[one.port]
            given = self._bytes(found)
            if found.shape != one.shape or len(given) != len(wanted):
                return (
                    f"output {one.port!r} of the reference sample is {list(found.shape)}, "
                    f"{list(one.shape)} is expected"
                )
            form = FORMATS[ports[one.port].dtype]
            off, worst = compare(form, given, wanted, reference.tolerance)
            if off:
                items = len(wanted) // ITEM_BYTES[ports[one.port].dtype]
                return (
                    f"{off} of {items} items of output {one.port!r} differ from the reference by "
                    f"more than {reference.tolerance:g}, at most by {worst:.3g}"
                )
        return ""

    def _bytes(self, value: Value) -> bytes:
        if isinstance(value, Bytes):
            return value.data
        with self._blobs.path(value.digest).open("rb") as content:
            return content.read(REFERENCE_MAX_BYTES + 1)


def compare(form: str, given: bytes, wanted: bytes, tolerance: float) -> tuple[int, float]:
    """Return how many items differ by more than a tolerance, and by how much at most."""
    off, worst = 0, 0.0
    for (one,), (other,) in zip(
        struct.iter_unpack(f"<{form}", given), struct.iter_unpack(f"<{form}", wanted), strict=True
    ):
        if one == other or (isinstance(one, float) and isnan(one) and isnan(other)):
            continue
        distance = abs(one - other) / max(1.0, abs(other))
        # What is no number is off whatever is tolerated.
        if not distance <= tolerance:
            off += 1
            worst = max(worst, float("inf") if isnan(distance) else distance)
    return off, worst
