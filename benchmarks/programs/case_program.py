"""A whole case in one process, as a program without any platform does it: bare metal.

    python -I -S case_program.py FOLDER CASE WHEN [PACKAGES] < INPUTS > OUTPUTS

Everything is loaded at the start where WHEN is `at-once`, else with the first inputs. FOLDER holds
what `benchmarks.case_study.native` has made: the guests of the steps compiled for this machine, the
optimised models, the tables; PACKAGES are where ONNX Runtime's library lies and what speaks to it,
the device agent's `ort_api.py`. Inputs and outputs are frames of named tensors. Only what the case
needs is imported. The four cameras of `surround` go over two threads, so does ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import ort_api

PORT: Final = struct.Struct("<12I")
HEAD: Final = struct.Struct("<I")
TENSOR: Final = struct.Struct("<BBB8IQ")
"""Length of the name, dtype number, rank, dims, bytes; then the name, then the bytes."""
RANK_MAX: Final = 8
FLOAT32, UINT8, INT32 = 1, 2, 6
ITEM_BYTES: Final = {FLOAT32: 4, UINT8: 1, INT32: 4}
SIDES: Final = ("front", "back", "left", "right")
SESSION_THREADS: Final = 2
SESSION: Final = {
    "session.load_model_format": "ORT",
    # Weights are pages of the file, which processes share, as those of the platform do.
    "session.use_memory_mapped_ort_model": "1",
    "session.use_ort_model_bytes_for_initializers": "1",
    # Threads that spin for work take the processor from the other process.
    "session.intra_op.allow_spinning": "0",
}
AT_ONCE: Final = "at-once"

Tensor = tuple[int, tuple[int, ...], Any]
"""dtype number, shape, bytes or a view of them."""
Tensors = dict[str, Tensor]


def write_tensors(out: BinaryIO, tensors: Tensors) -> None:
    """Write a frame."""
    parts = [HEAD.pack(len(tensors))]
    for name, (dtype, shape, data) in tensors.items():
        view = memoryview(data).cast("B")
        dims = (*shape, *(0,) * (RANK_MAX - len(shape)))
        raw = name.encode()
        parts += [TENSOR.pack(len(raw), dtype, len(shape), *dims, view.nbytes), raw, view]
    out.writelines(parts)
    out.flush()


def read_tensors(source: BinaryIO) -> Tensors | None:
    """Read a frame; None at the end."""
    head = source.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    found: Tensors = {}
    for _ in range(HEAD.unpack(head)[0]):
        length, dtype, rank, *dims, size = TENSOR.unpack(source.read(TENSOR.size))
        name = source.read(length).decode()
        found[name] = (dtype, tuple(dims[:rank]), source.read(size))
    return found


class Native:
    """A guest as a shared library; its outputs live until its next call."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._alloc = self._library.tona_alloc
        self._alloc.restype = ctypes.c_uint32
        self._run = self._library.tona_run
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)

    def __call__(self, inputs: list[Tensor], n_outputs: int) -> list[Tensor]:
        """Run once. Raises RuntimeError when the guest refuses."""
        if not self._library.native_begin():
            raise RuntimeError("no memory below 2 GB")
        ports = self._alloc(PORT.size * (len(inputs) + n_outputs))
        table = b""
        for dtype, shape, data in inputs:
            view = memoryview(data).cast("B")
            at = self._alloc(max(1, view.nbytes))
            if view.readonly:
                ctypes.memmove(at, bytes(view), view.nbytes)
            else:
                source = (ctypes.c_ubyte * view.nbytes).from_buffer(view)
                ctypes.memmove(at, source, view.nbytes)
            dims = (*shape, *(0,) * (RANK_MAX - len(shape)))
            table += PORT.pack(at, view.nbytes, dtype, len(shape), *dims)
        ctypes.memmove(ports, table, len(table))
        outputs = ports + len(table)
        code = self._run(ports, len(inputs), outputs, n_outputs)
        if code:
            raise RuntimeError(f"a guest ended with {code}")
        return [_output(outputs + PORT.size * index) for index in range(n_outputs)]


def _output(at: int) -> Tensor:
    data, size, dtype, rank, *dims = PORT.unpack(ctypes.string_at(at, PORT.size))
    view = memoryview((ctypes.c_ubyte * size).from_address(data)).cast("B")
    return dtype, tuple(dims[:rank]), view


class Case:
    """What is loaded once: libraries, models, tables."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def _native(self, name: str, copy: int = 0) -> Native:
        return Native(f"{self._folder}/{name}.{copy}.so")

    def _table(self, name: str, dtype: int, *tail: int) -> Tensor:
        with open(f"{self._folder}/{name}", "rb") as file:  # noqa: PTH123 - pathlib takes 5 ms
            data = file.read()
        rows = len(data) // ITEM_BYTES[dtype]
        for axis in tail:
            rows //= axis
        return dtype, (rows, *tail), data

    @cached_property
    def _runtime(self) -> ort_api.Runtime:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        if not TYPE_CHECKING:
            import ort_api  # noqa: PLC0415 - a case without a model does without it
        return ort_api.Runtime()

    def _session(self, name: str) -> ort_api.Session:
        path = f"{self._folder}/{name}.ort"
        return self._runtime.session(path, SESSION_THREADS, ["CPUExecutionProvider"], SESSION)


class Plates(Case):
    """Number plates in a photo."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._detect, self._recognise = self._session("detect"), self._session("recognise")
        names = "decode", "glance", "crop", "text", "plate"
        self._decode, self._glance, self._crop, self._text, self._plate = map(self._native, names)
        self._characters = self._table("characters.txt", UINT8)
        self._forms = self._table("forms.txt", UINT8)

    def __call__(self, inputs: Tensors) -> Tensors:
        """Read one."""
        image, size = self._decode([inputs["file"]], 2)
        (x,) = self._glance([image], 1)
        seen = _infer(self._detect, x)
        crops, boxes, count, _ = self._crop([image, seen, size], 4)
        told = _infer(self._recognise, crops)
        text, scores, index = self._text([told, count, self._characters], 3)
        plate, score, box = self._plate([text, scores, index, boxes, self._forms], 3)
        return {"plate": plate, "score": score, "box": box}


def _infer(session: ort_api.Session, *values: Tensor) -> Tensor:
    names = [one.name for one in session.inputs]
    feeds = dict(zip(names, values, strict=True))
    (found,) = session.run([one.name for one in session.outputs], feeds)
    return found


class Traffic(Case):
    """The speeds of the next hour."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._forecast = self._session("forecast")
        self._recent, self._outlook = self._native("recent"), self._native("outlook")
        self._stations = self._table("stations.f32", FLOAT32, 2)

    def __call__(self, inputs: Tensors) -> Tensors:
        """Forecast one."""
        x, when = self._recent([inputs["speeds"], inputs["minute"], self._stations], 2)
        told = _infer(self._forecast, x, when)
        mph, level = self._outlook([told, self._stations], 2)
        return {"mph": mph, "level": level}


class Surround(Case):
    """The view from above."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._decoders = [self._native("decode", copy) for copy in range(len(SIDES))]
        self._projectors = [self._native("project", copy) for copy in range(len(SIDES))]
        self._fuse = self._native("fuse")
        self._cameras = [self._table(f"{side}.camera", FLOAT32) for side in SIDES]
        from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - for this case alone

        self._threads = ThreadPoolExecutor(os.cpu_count())

    def __call__(self, inputs: Tensors) -> Tensors:
        """Look at one instant."""
        files = [inputs[side] for side in SIDES]
        patches = list(self._threads.map(self._look, range(len(SIDES)), files))
        (view,) = self._fuse(patches, 1)
        return {"view": view}

    def _look(self, side: int, file: Tensor) -> Tensor:
        image, _ = self._decoders[side]([file], 2)
        return self._projectors[side]([image, self._cameras[side]], 1)[0]


CASES: Final[dict[str, type[Plates | Traffic | Surround]]] = {
    "plates": Plates,
    "traffic": Traffic,
    "surround": Surround,
}


def main() -> None:
    """Serve frames until there is none: one for a process per request."""
    folder, case, when, *packages = sys.argv[1:]
    sys.path += packages
    made = CASES[case](folder) if when == AT_ONCE else None
    while (inputs := read_tensors(sys.stdin.buffer)) is not None:
        made = made or CASES[case](folder)
        write_tensors(sys.stdout.buffer, made(inputs))


if __name__ == "__main__":
    main()
