"""What a process forked from the ONNX zygote becomes: it loads one model and serves it.

It enters the sandbox first; where the model has not been here before, a process that exits vets it
and makes its optimised form, in a sandbox too. A session of one thread on the CPU then makes it the
model's own zygote: it forks the workers that run calls, which share the weights and may not fork.
Any other session starts threads or drives a device: the process that has it runs the calls itself.

Calls come one after another over the worker's first socket. A thread waits on the second one for
`stop`: it sets `terminate`, which ends most runs within a millisecond and costs nothing while
nobody asks for it. Descriptors come that way too.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import (
        onnx_batch,
        onnx_fit,
        onnx_forms,
        onnx_state,
        resting,
        sandbox,
    )
    from device_agent.executors.programs.onnx_program import Model, blame, prepare, usable
    from device_agent.executors.programs.ort_api import CPU
    from device_agent.executors.programs.stream import Answer, Frame, Header, Refusal, Stream
    from device_agent.executors.programs.wire import MADE
    from device_agent.executors.programs.zygote import Control, Zygote
else:
    import onnx_batch
    import onnx_fit
    import onnx_forms
    import onnx_state
    import resting
    import sandbox
    from onnx_program import Model, blame, prepare, usable
    from ort_api import CPU
    from stream import Frame, Header, Refusal, Stream
    from wire import MADE
    from zygote import Control, Zygote

WATCH_STACK_BYTES: Final = 256 * 1024
FORM_ROOM: Final = 5
"""What it takes to load a model and write its form, in sizes of the model: beyond the task's limit,
so that of a model that does not fit it can be said what is enough."""
LIFT_ROOM: Final = 2
"""What a form takes at most to load, in its model's sizes: its weights, and those prepared..."""
RUNTIME_BYTES: Final = 16 << 20
"""... and what the runtime takes beside."""
BLOBS_MODE: Final = 0o710
MADE_MODE: Final = 0o730
FILES_TIMEOUT_S: Final = 10.0
"""Between the frame that asks for descriptors and that which brings them."""
DEVICES: Final = (
    *("nvidia", "nvhost", "nvmap", "nvgpu", "nvsci", "dri", "kfd", "accel", "mali", "dma_heap"),
    *("null", "zero", "full", "random", "urandom"),
)
"""How the names of those begin that a provider other than the CPU's drives."""

DRIVER_BYTES: Final = 8 << 30
"""What a driver and its libraries may take beside the model: most of it is never touched."""
DRIVER_FILES: Final = 1024


def plan(request: Header, form: int = -1) -> sandbox.Plan:
    """Return what the process of a model may do, which may map its open form."""
    chosen, _ = usable(request["providers"])
    common = sandbox.Plan(
        look=(request["blobs"], *([f"/proc/self/fd/{form}"] if form >= 0 else ())),
        write=(f"{request['blobs']}/{MADE}",),
        memory_bytes=request["memory"],
        user=request["user"],
    )
    if chosen:
        found = tuple(f"/dev/{one}" for one in os.listdir("/dev") if one.startswith(DEVICES))
        return common._replace(
            read=None,
            devices=found,
            calls=sandbox.BROAD,
            memory_bytes=request["memory"] + DRIVER_BYTES,
            files=DRIVER_FILES,
        )
    return common._replace(forks=request["forks"])


class Worker:
    """The loop of a process that runs calls, and the call that is under way."""

    def __init__(self, model: Model, sock: socket.socket, stops: socket.socket) -> None:
        self._sock = sock
        self._stream = Stream(sock)
        self._control = Control(stops)
        self._stops = Stream(self._control)
        self._files: SimpleQueue[list[int]] = SimpleQueue()
        """Descriptors that came with a frame, until a call asks for them."""
        self._current: tuple[tuple[int, ...], Any] = ((), None)
        """Numbers and options of the calls under way, changed together."""
        self._early: set[int] = set()
        """Calls that were stopped before they were read."""
        self._model = model

    def serve(self) -> None:
        """Serve frames until the daemon hangs up."""
        threading.stack_size(WATCH_STACK_BYTES)
        threading.Thread(target=self._watch, daemon=True).start()
        rested, expected, lull = False, False, resting.Lull()
        resting.huge_pages(on=True)
        while True:
            if not (rested or self._stream.has_rest()) and lull.begins(self._sock, expected):
                resting.huge_pages(on=False)
                self._model.rest()
                rested = True
            frame = self._stream.receive()
            if frame is None:
                return
            if rested:
                resting.huge_pages(on=True)
                rested = False
            expected = frame[0]["op"] == "expect"
            if expected:
                self._model.occupy()
                continue
            lull.heard()
            if frame[0].get("more"):
                self._serve_together(frame)
            else:
                self._serve(frame)
            lull.answered()
            if not (self._stream.has_rest() or resting.readable(self._sock)):
                self._model.vacate()

    def _serve(self, frame: Frame) -> None:
        began, spent = time.perf_counter_ns(), time.process_time_ns()
        header, body = frame
        options = self._options((header["id"],))
        try:
            answer, buffers = self._answer(header, body, options)
            answer |= _figures(began, spent, 1)
        except Refusal as refusal:
            answer, buffers = {"fail": refusal.answer}, []
        except MemoryError as error:
            answer, buffers = {"fail": blame(error, "no memory").answer}, []
        self._stream.send({"id": header["id"], **answer}, buffers)

    def _serve_together(self, first: Frame) -> None:
        """Answer calls by one run, or one by one where it fails."""
        frames = [first]
        while frames[-1][0]["more"]:
            frame = self._stream.receive()
            if frame is None:
                return
            frames.append(frame)
        began, spent = time.perf_counter_ns(), time.process_time_ns()
        options = self._options(tuple(header["id"] for header, _ in frames))
        try:
            answers = onnx_batch.run(self._model, frames, options)
        except onnx_batch.Apart:
            for frame in frames:
                self._serve(frame)
            return
        for (header, _), (answer, buffers) in zip(frames, answers):  # noqa: B905 - as many
            figures = _figures(began, spent, len(frames))
            self._stream.send({"id": header["id"], **answer, **figures}, buffers)

    def _options(self, numbers: tuple[int, ...]) -> Any:
        """Return the options of a run, by which it can be stopped from now on."""
        options = self._model.runtime.options()
        self._current = numbers, options
        for number in tuple(self._early):
            if number in numbers:
                options.terminate()
            if number <= numbers[-1]:
                self._early.discard(number)
        return options

    def _answer(self, header: Header, body: memoryview, options: Any) -> Answer:
        if header["op"] == "invoke":
            described, inline = self._model.run(header, body, options)
            flags = {"flags": self._model.flags} if self._model.flags else {}
            return {"out": described, **flags}, inline
        # They come over the other socket, so that reading a call need not look for any.
        handles = self._files.get(timeout=FILES_TIMEOUT_S) if header["files"] else []
        self._model.bind(header["constants"], handles)
        note = ""
        if header["state"]:
            memory = onnx_state.Memory(handles[-1], header["state"])
            note = self._model.carried.bind(memory, strict=header["strict"])
        return {"pid": os.getpid(), "note": note}, []

    def _watch(self) -> None:
        while True:
            frame = self._stops.receive()
            if frame is None:
                return
            if frame[0]["op"] == "files":
                self._files.put(self._control.take())
                continue
            # Noted before it is looked for: it may be read at this moment.
            self._early.add(frame[0]["id"])
            numbers, options = self._current
            if frame[0]["id"] in numbers:
                options.terminate()


def _figures(began: int, spent: int, calls: int) -> Header:
    """Return what a run has taken since: of the processor what falls to one of its calls."""
    return {
        "us": (time.perf_counter_ns() - began) // 1000,
        "cpu": (time.process_time_ns() - spent) // 1000 // calls,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def serve(sock: socket.socket, stops: socket.socket) -> None:
    """Load the model that the first frame names, and serve it until the daemon hangs up."""
    stream = Stream(sock)
    frame = stream.receive()
    if frame is None:
        return
    request = frame[0]
    try:
        model, kept, forks = _load(request)
    except Refusal as refusal:
        stream.send({"id": request["id"], "fail": refusal.answer})
        return
    except MemoryError as error:
        stream.send({"id": request["id"], "fail": blame(error, "no memory").answer})
        return
    answer = {
        "id": request["id"],
        "pid": os.getpid(),
        "providers": model.session.providers,
        "note": model.note,
        "forks": forks,
        "gaps": kept.gaps,
    }
    if not forks:
        stream.send(answer)
        Worker(model, sock, stops).serve()
        return
    stops.close()
    gc.collect()
    resting.give_back(model.code, model.weights)
    gc.freeze()

    def become(_header: Header, socks: list[socket.socket]) -> None:
        sandbox.never_fork()
        Worker(model, *socks).serve()

    zygote = Zygote(sock, become)
    stream.send(answer)
    zygote.serve()


def _load(request: Header) -> tuple[Model, sandbox.Kept, bool]:
    """Enter the sandbox and load the model; whether its process may fork. Raises Refusal."""
    path, asked_s = request["path"], time.monotonic()
    # Opened before the sandbox, for nothing can be opened by name in it, and read after.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        blobs = (
            _for_another(request) if any(sandbox.identity(request["user"])) else request["blobs"]
        )
        threads = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Refusal("executor", "environment", f"{path}: {error.strerror}") from None
    form = -1
    if not usable(request["providers"])[0]:
        form = onnx_forms.form_of(request, handle, lambda form: _make(request, handle, form))
    prepare(request)
    planned = plan(request, form)
    maps, file = resting.maps(), _name_of(form)
    # A driver and its libraries cannot be loaded twice.
    spare = _sizes(LIFT_ROOM, handle) if planned.calls == sandbox.FEW else 0
    kept = sandbox.enter(planned._replace(spare_bytes=spare))

    def within() -> Model:
        return Model(request, os.dup(handle), blobs, os.dup(form) if form >= 0 else form)

    model = onnx_fit.load(request["memory"], within, asked_s)
    os.close(handle)
    if form >= 0:
        os.close(form)
    model.code, model.weights = resting.mapped(maps, file)
    on_cpu = model.session.providers == (CPU,)
    # A provider that has not taken the model has perhaps left threads, and its sandbox forks none.
    forks = planned.forks and on_cpu and len(os.listdir(threads)) == 1
    os.close(threads)
    return model, kept, forks


def _name_of(form: int) -> str:
    """Return the name of an open form's file; empty where it has none."""
    return os.readlink(f"/proc/self/fd/{form}") if form >= 0 and os.fstat(form).st_nlink else ""


def _sizes(count: int, handle: int) -> int:
    """Return what may be taken beyond a task's limit: so many sizes of an open model, and more."""
    return count * os.fstat(handle).st_size + RUNTIME_BYTES


def _make(request: Header, handle: int, form: int) -> bool:
    """Vet the model and write its optimised form, in the sandbox. Raises Refusal."""
    room = request["memory"] + _sizes(FORM_ROOM, handle)
    sandbox.enter(plan(request)._replace(forks=False, look=(), write=(), memory_bytes=room))
    return Model(request, handle, "", form, make=True).made


def _for_another(request: Header) -> str:
    """Open the blob folder to the models' own user; return a name that needs no way to it.

    Nobody else of that group passes the folders above, which are the agent's alone.
    """
    group = sandbox.identity(request["user"])[1]
    for one, mode in ((request["blobs"], BLOBS_MODE), (f"{request['blobs']}/{MADE}", MADE_MODE)):
        os.chown(one, -1, group)
        os.chmod(one, mode)
    folder = os.open(request["blobs"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"/proc/self/fd/{folder}"
