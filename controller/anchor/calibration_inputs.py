"""What a calibration runs a program with: its author's samples, else zeros of several sizes."""

from typing import Final

from protocols.manifest import Manifest, Port, tensor_bytes
from protocols.messages.calibration import CalibrationInput
from protocols.messages.hierarchy import TaskSpec

LISTS: Final = (16, 256, 16_384)
"""Lengths of the one axis that is open until a request comes."""
PICTURES: Final = (64, 512, 1024)
"""Lengths of each of several such axes."""
BATCHED: Final = 4
"""Axes of a value whose first one counts its parts: one is enough."""
BYTES_MAX: Final = 32 << 20
MEMORY_PART: Final = 8
"""Of a program's memory, its inputs take one such part at most."""


def runs_of(spec: TaskSpec, manifest: Manifest) -> tuple[tuple[CalibrationInput, ...], ...]:
    """Return the inputs of each run of a calibration, smallest first."""
    samples = {one.port: one for one in spec.samples}
    constant = {one.port for one in manifest.constants}
    ports = [one for one in manifest.inputs if one.name not in constant]
    is_open = any(-1 in port.shape for port in ports if port.name not in samples)
    runs: list[tuple[CalibrationInput, ...]] = []
    most = min(BYTES_MAX, manifest.limits.memory_bytes // MEMORY_PART)
    for size in range(len(LISTS)) if is_open else (1,):
        run = tuple(samples.get(port.name) or _made(port, size, manifest.batch) for port in ports)
        if not runs or sum(tensor_bytes(one.dtype, one.shape) for one in run) <= most:
            runs.append(run)
    return tuple(runs)


def _made(port: Port, size: int, batch: int) -> CalibrationInput:
    """Return a value of zeros; `size` counts from the smallest."""
    shape = port.shape
    if (batch or len(shape) == BATCHED) and shape[0] < 0:
        shape = (1, *shape[1:])
    length = (PICTURES if shape.count(-1) > 1 else LISTS)[size]
    return CalibrationInput(
        port.name, port.dtype, tuple(length if one < 0 else one for one in shape)
    )
