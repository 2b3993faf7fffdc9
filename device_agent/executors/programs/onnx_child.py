"""One ONNX model in a process of its own: loads it, holds it against the manifest, runs calls.

The zygote forks and calls `serve`; numpy and onnxruntime are loaded already. Calls come one after
another over the first socket. A thread waits on the second one for `stop`: it sets `terminate`,
which ends most runs within a millisecond and costs nothing while nobody asks for it.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from device_agent.executors.programs.onnx_external import NotProtobuf, has_external_data
    from device_agent.executors.programs.stream import (
        Header,
        Refusal,
        Stream,
        Value,
        map_file,
        read_values,
        write_values,
    )
else:
    from onnx_external import NotProtobuf, has_external_data
    from stream import Header, Refusal, Stream, Value, map_file, read_values, write_values

CPU: Final = "CPUExecutionProvider"
ERRORS_ONLY: Final = 3
WATCH_STACK_BYTES: Final = 256 * 1024
MAX_FOLDED_BYTES: Final = 8 << 20
"""A larger constant is not computed at load: folding can take over 15 s."""

NUMPY: Final = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}
ORT_TYPE: Final = {
    1: "tensor(float)",
    2: "tensor(uint8)",
    3: "tensor(int8)",
    4: "tensor(uint16)",
    5: "tensor(int16)",
    6: "tensor(int32)",
    7: "tensor(int64)",
    9: "tensor(bool)",
    10: "tensor(float16)",
    11: "tensor(double)",
    12: "tensor(uint32)",
    13: "tensor(uint64)",
}


def cap_memory(more_bytes: int) -> None:
    """Let the private data of this process grow by so much and no further.

    The address space cannot be the measure: runtimes reserve far more than they use.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        have = next(int(line.split()[1]) for line in file if line.startswith("VmData"))
    limit = have * 1024 + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def array(value: Value) -> Any:
    """Look at a value's bytes as an array, copied only when they lie at an odd address."""
    _, dtype, shape, view = value
    found: Any = np.ndarray(shape, NUMPY[dtype], view)
    return found if found.flags.aligned else found.copy()


def ports(described: list[list[Any]], have: list[Any], role: str) -> None:
    """Hold the manifest's ports of one role against the model's. Raises Refusal."""
    by_name = {one.name: one for one in have}
    for name, dtype, shape in described:
        port = by_name.get(name)
        if port is None:
            known = ", ".join(by_name)
            raise _mismatch(f"the model has no {role} {name!r}, it has {known}")
        if port.type != ORT_TYPE[dtype]:
            raise _mismatch(f"{role} {name!r} is {port.type}, the manifest says {ORT_TYPE[dtype]}")
        axes = list(port.shape or ())
        if axes and len(axes) != len(shape):
            raise _mismatch(f"{role} {name!r} has {len(axes)} axes, the manifest {len(shape)}")
        for axis, (mine, wanted) in enumerate(zip(axes, shape)):  # noqa: B905 - equal above
            # An output may be promised loosely; an input of any length must be any in the model.
            loose = wanted == -1 and role == "output"
            if isinstance(mine, int) and mine >= 0 and mine != wanted and not loose:
                raise _mismatch(
                    f"{role} {name!r} has length {mine} at axis {axis}, the manifest {wanted}"
                )
    if role == "input":
        missing = [one.name for one in have if one.name not in {name for name, _, _ in described}]
        if missing:
            raise _mismatch(f"the manifest names no input {', '.join(missing)} of the model")


def _mismatch(text: str) -> Refusal:
    return Refusal("executor", "user", text)


def blame(error: Exception, what: str) -> Refusal:
    """Sort an error of the runtime into a refusal."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate memory" in text:
        return Refusal("limit", "user", f"{what}: the task's memory limit is too small")
    return Refusal("executor", "user", f"{what}: {text}")


class Model:
    """A loaded session and what its calls need."""

    def __init__(self, request: Header) -> None:
        self.blobs: str = request["blobs"]
        self.limit: int = request["limit"]
        self.constants: dict[str, Any] = {}
        self.outputs: list[str] = [name for name, _, _ in request["outputs"]]
        self.numbers: list[int] = [dtype for _, dtype, _ in request["outputs"]]
        self.note = ""
        self.session = self._open(request)
        ports(request["inputs"], self.session.get_inputs(), "input")
        ports(request["outputs"], self.session.get_outputs(), "output")

    def _open(self, request: Header) -> Any:
        path = request["path"]
        try:
            # From bytes, in an empty folder: nothing beside the model can be read.
            with open(path, "rb") as file:
                model = file.read()
        except OSError as error:
            raise Refusal("executor", "environment", f"{path}: {error.strerror}") from None
        try:
            external = has_external_data(model)
        except NotProtobuf as error:
            raise Refusal("executor", "user", f"the artifact is no ONNX model: {error}") from None
        if external:
            raise Refusal(
                "executor", "user", "the model keeps weights in other files: save it as one file"
            )
        wanted = [one for one in request["providers"] if one != CPU]
        absent = [one for one in wanted if one not in onnxruntime.get_available_providers()]
        if absent:
            self.note = f"not in this build of ONNX Runtime: {', '.join(absent)}"
        usable = [one for one in wanted if one not in absent]
        if usable:
            try:
                session = self._session(model, request, [*usable, CPU])
            except Exception as error:  # noqa: BLE001 - the runtime raises a dozen types
                self.note = f"{', '.join(usable)} failed, CPU instead: {error}"[:500]
            else:
                if session.get_providers()[0] not in usable:
                    self.note = f"{', '.join(usable)} did not take the model, CPU instead"
                return session
        try:
            return self._session(model, request, [CPU])
        except Exception as error:  # noqa: BLE001 - the runtime raises a dozen types
            raise blame(error, "the model does not load") from None

    def _session(self, model: bytes, request: Header, providers: list[str]) -> Any:
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False
        options.intra_op_num_threads = request["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY + 1
        options.add_session_config_entry(
            "optimization.constant_folding_max_output_size_in_bytes", str(MAX_FOLDED_BYTES)
        )
        session = onnxruntime.InferenceSession(model, options, providers=providers)
        # The Python wrapper keeps the bytes for a second try with other providers: ours is above.
        session.disable_fallback()
        session._model_bytes = b""  # noqa: SLF001 - there is no public way to let them go
        return session

    def bind(self, constants: list[list[Any]]) -> None:
        """Map the inputs that are the same for every call. Raises Refusal."""
        for name, dtype, shape, size, path in constants:
            view = map_file(path, size)
            self.constants[name] = array((name, dtype, tuple(shape), view))

    def run(self, header: Header, body: memoryview, options: Any) -> tuple[Any, list[memoryview]]:
        """Run one call; described outputs and the inline ones. Raises Refusal."""
        feeds = {value[0]: array(value) for value in read_values(header["in"], body, self.blobs)}
        feeds.update(self.constants)
        try:
            found = self.session.run(self.outputs, feeds, options)
        except Exception as error:  # noqa: BLE001 - the runtime raises a dozen types
            if options.terminate:
                raise Refusal("deadline", "user", "the call was stopped") from None
            raise blame(error, "the model failed") from None
        values: list[Value] = []
        for name, number, one in zip(self.outputs, self.numbers, found):  # noqa: B905 - as many
            flat = np.ascontiguousarray(one).reshape(-1).view(np.uint8)
            values.append((name, number, one.shape, flat.data))
        return write_values(values, self.blobs, self.limit)


class Child:
    """The loop of one child and the call that is under way."""

    def __init__(self, sock: socket.socket, stops: socket.socket) -> None:
        self._stream = Stream(sock)
        self._stops = Stream(stops)
        self._current: tuple[int, Any] = (0, None)
        """Number and options of the call under way, changed together."""
        self._model: Model | None = None

    def serve(self) -> None:
        """Serve frames until the daemon hangs up."""
        threading.stack_size(WATCH_STACK_BYTES)
        threading.Thread(target=self._watch, daemon=True).start()
        while True:
            frame = self._stream.receive()
            if frame is None:
                return
            began = time.perf_counter_ns()
            header, body = frame
            self._current = header["id"], onnxruntime.RunOptions()
            try:
                answer, buffers = self._answer(header, body)
                answer["us"] = (time.perf_counter_ns() - began) // 1000
            except Refusal as refusal:
                answer, buffers = {"fail": refusal.answer}, []
            except MemoryError as error:
                answer, buffers = {"fail": blame(error, "no memory").answer}, []
            self._stream.send({"id": header["id"], **answer}, buffers)

    def _answer(self, header: Header, body: memoryview) -> tuple[Header, list[memoryview]]:
        if header["op"] == "load":
            cap_memory(header["memory"])
            self._model = Model(header)
            providers = self._model.session.get_providers()
            return {"pid": os.getpid(), "providers": providers, "note": self._model.note}, []
        if self._model is None:
            raise Refusal("not-ready", "environment", "no model is loaded", retryable=True)
        if header["op"] == "bind":
            self._model.bind(header["constants"])
            return {}, []
        described, inline = self._model.run(header, body, self._current[1])
        return {"out": described}, inline

    def _watch(self) -> None:
        while True:
            frame = self._stops.receive()
            if frame is None:
                return
            number, options = self._current
            if frame[0]["id"] == number:
                options.terminate = True
