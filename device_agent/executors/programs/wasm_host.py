"""Runs calls of one tenant's Wasm instances: a fresh store for each, several at once in threads.

Whichever thread is free reads the next frame and runs it, so a call changes no thread. Two more
threads than calls at once, one of them for a `load`, mean that somebody always listens for `stop`.
Time is the daemon's business: it says `stop`, an epoch passes, and the store of that call ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

import wasmtime

if TYPE_CHECKING:
    import socket

    from device_agent.executors.programs import abi, wasm_engine
    from device_agent.executors.programs.memory import Changes, Memory, MemoryFull
    from device_agent.executors.programs.stream import (
        Header,
        Refusal,
        Stream,
        Value,
        read_values,
        to_the_end,
        write_values,
    )
    from device_agent.executors.programs.wasm_functions import Functions
    from device_agent.executors.programs.wasm_program import Linkers, Program
else:
    import abi
    import wasm_engine
    from memory import Memory, MemoryFull
    from stream import Refusal, Stream, read_values, to_the_end, write_values
    from wasm_functions import Functions
    from wasm_program import Linkers, Program

THREAD_STACK_BYTES: Final = 2 << 20
MAPPED_MAX: Final = 64
"""Compiled modules that stay mapped; an older one that no instance uses is let go."""
COMING_S: Final = 10.0
"""How long a call waits for the one before it to load their program."""
UNCOMPILED: Final = "uncompiled"
"""Text of the refusal after which the daemon compiles and asks again."""


def place(guest: wasm_engine.Guest, values: list[Value], program: Program) -> tuple[int, int]:
    """Put descriptors and inputs into the guest; addresses of both arrays. Raises Refusal."""
    first = abi.align(abi.PORT.size * (len(values) + len(program.outputs)))
    at = first
    starts = []
    for _, _, _, view in values:
        starts.append(at)
        at = abi.align(at + view.nbytes)
    if at > program.memory_bytes:
        raise Refusal(
            "limit", "user", f"the inputs take {at} bytes, the task's {program.memory_bytes}"
        )
    base = guest.call(abi.ALLOC, at) & 0xFFFFFFFF
    if base == 0:
        raise Refusal("limit", "user", f"the guest has no memory for {at} bytes of input")
    memory = guest.memory()
    if base % abi.ALIGN_BYTES or base + at > memory.nbytes:
        raise Refusal("executor", "user", f"{abi.ALLOC} gave {base:#x}, not {at} aligned bytes")
    ports = [
        abi.describe(base + start, view.nbytes, dtype, shape)
        for start, (_, dtype, shape, view) in zip(starts, values)  # noqa: B905 - same loop made both
    ]
    ports += [abi.describe(0, 0, dtype, shape) for _, dtype, shape in program.outputs]
    head = b"".join(ports)
    memory[base : base + len(head)] = head
    for start, (_, _, _, view) in zip(starts, values):  # noqa: B905 - as above
        memory[base + start : base + start + view.nbytes] = view
    return base, base + abi.PORT.size * len(values)


def take(memory: memoryview, at: int, program: Program) -> list[Value]:
    """Read the outputs that the guest described at this address. Raises Refusal."""
    values: list[Value] = []
    for index, (name, dtype, shape) in enumerate(program.outputs):
        data, size, have, rank, *dims = abi.PORT.unpack_from(memory, at + index * abi.PORT.size)
        given = tuple(dims[:rank])
        fits = rank == len(shape) and all(
            want in (-1, axis)
            for want, axis in zip(shape, given)  # noqa: B905 - ranks are equal
        )
        if have != dtype or not fits:
            raise Refusal(
                "executor",
                "user",
                f"output {name!r} came as dtype {have} {given if rank <= abi.MAX_RANK else rank}, "
                f"the manifest says dtype {dtype} {shape}",
            )
        if size != abi.tensor_bytes(dtype, given) or data + size > memory.nbytes:
            raise Refusal(
                "executor",
                "user",
                f"output {name!r} of {given} claims {size} bytes at {data:#x} of {memory.nbytes}",
            )
        values.append((name, dtype, given, memory[data : data + size]))
    return values


def complaint(guest: wasm_engine.Guest, code: int) -> Refusal:
    """Return what the guest says of its error."""
    text = f"the guest ended with error {code}"
    if guest.has(abi.ERROR):
        at = guest.call(abi.ERROR) & 0xFFFFFFFF
        sentence = bytes(guest.memory()[at : at + abi.ERROR_MAX_BYTES]).split(b"\0")[0]
        if sentence:
            text += f": {sentence.decode('utf-8', 'replace')}"
    return Refusal("executor", "user", text)


def commit(memory: Memory | None, changes: Changes) -> None:
    """Keep what a call has set. Raises Refusal; then nothing of it is kept."""
    if memory is None or not changes:
        return
    try:
        memory.commit(changes)
    except MemoryFull as full:
        raise Refusal("limit", "user", f"the task's memory would take {full}") from None
    except OSError as error:
        raise Refusal(
            "executor",
            "environment",
            f"the task's memory cannot be written: {error.strerror}",
            retryable=True,
        ) from None


def said_no(code: int, stderr: bytearray) -> Refusal:
    """Return what a WASI command says of its exit code."""
    lines = bytes(stderr).decode("utf-8", "replace").strip().splitlines()
    text = f"the program ended with exit code {code}"
    return Refusal("executor", "user", f"{text}: {lines[-1]}" if lines else text)


def written(program: Program, streams: tuple[bytearray, ...]) -> list[Value]:
    """Give what a WASI command wrote the shape of its outputs. Raises Refusal."""
    values: list[Value] = []
    for stream, (name, dtype, shape) in zip(streams, program.outputs):  # noqa: B905 - one may lack
        known = abi.tensor_bytes(dtype, tuple(axis for axis in shape if axis != -1))
        axis, rest = divmod(len(stream), known) if known else (0, 1)
        if rest or shape.count(-1) > 1 or (-1 not in shape and axis != 1):
            text = f"output {name!r} is {len(stream)} bytes, which is no dtype {dtype} {shape}"
            raise Refusal("executor", "user", text)
        given = tuple(axis if one == -1 else one for one in shape)
        values.append((name, dtype, given, memoryview(stream)))
    return values


class NotLoaded(Refusal):
    """A call of an instance that is not here."""

    def __init__(self, text: str) -> None:
        super().__init__("not-ready", "environment", text, retryable=True)


class Host:
    """All instances of this process and the threads that run their calls."""

    def __init__(self, sock: socket.socket, engine: wasmtime.Engine, gaps: tuple[str, ...]) -> None:
        self._stream = Stream(sock)
        self._gaps = gaps
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._engine = engine
        self._functions = Functions()
        self._linkers = Linkers(engine, self._functions)
        self._programs: dict[int, Program] = {}
        self._modules: OrderedDict[str, wasmtime.Module] = OrderedDict()
        self._memories: dict[str, Memory] = {}
        self._coming: dict[int, threading.Event] = {}
        """Programs that a call under way loads."""
        self._stopped: dict[int, bool] = {}
        """The calls under way, and whether each is to stop."""
        self._asking: dict[int, SimpleQueue[tuple[Header, memoryview] | None]] = {}
        """The calls that wait for a model."""
        self._stopper = wasm_engine.new_stopper(self._stopped)

    def serve(self) -> None:
        """Serve frames until the daemon hangs up, then end the process."""
        to_the_end(self._serve)

    def _serve(self) -> None:
        while True:
            with self._reading:
                frame = self._stream.receive()
                if frame is None:
                    os._exit(0)
                header, body = frame
                number: int = header["id"]
                if header["op"] == "stop":
                    if number in self._stopped:
                        self._stopped[number] = True
                        self._engine.increment_epoch()
                        self._tell_asking(number, None)
                    continue
                if header["op"] == "inferred":
                    self._tell_asking(number, (header, body))
                    continue
                if header["op"] == "unload":
                    self._programs.pop(header["key"], None)
                    continue
                if header["op"] == "forget":
                    self._forget(header["state"])
                    continue
                self._stopped[number] = False
                if "load" in header:
                    # Before anybody reads on: the next frame may be a call that waits for it.
                    self._coming[header["key"]] = threading.Event()
            with contextlib.ExitStack() as after:
                answer, buffers = self._answer(header, body, after)
                del self._stopped[number]
                with self._writing:
                    self._stream.send(answer, buffers)

    def _tell_asking(self, number: int, answer: tuple[Header, memoryview] | None) -> None:
        asking = self._asking.get(number)
        if asking is not None:
            asking.put(answer)

    def _infer(
        self, number: int, name: str, described: list[Any], inline: list[memoryview]
    ) -> tuple[Header, memoryview] | None:
        """Have the daemon run the model of another task; None when the call is to stop.

        It answers always: when the model does, when the time is over, or by hanging up.
        """
        asking = self._asking[number] = SimpleQueue()
        try:
            # A `stop` that came before is known here; a later one finds the queue.
            if self._stopped[number]:
                return None
            with self._writing:
                self._stream.send({"id": 0, "infer": [number, name, described]}, inline)
            return asking.get()
        except OSError:
            os._exit(0)
        finally:
            del self._asking[number]

    def _answer(
        self, header: Header, body: memoryview, after: contextlib.ExitStack
    ) -> tuple[Header, list[memoryview]]:
        number: int = header["id"]
        try:
            if header["op"] == "load":
                self._load(header)
                return {"id": number, "pid": os.getpid(), "gaps": self._gaps}, []
            return self._invoke(header, body, after)
        except NotLoaded as missing:
            # Whoever tries again finds the daemon loading it with more care.
            return {"id": number, "unloaded": True, "fail": missing.answer}, []
        except Refusal as refusal:
            return {"id": number, "fail": refusal.answer}, []
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            return {"id": number, "fail": self._explain(number, error)}, []

    def _explain(self, number: int, error: Exception) -> list[Any]:
        if self._stopped[number]:
            return Refusal("deadline", "user", "the call was stopped").answer
        reason = str(error).strip().rsplit("\n", 1)[-1].strip()
        code = "limit" if "limit" in reason or "call stack" in reason else "executor"
        return Refusal(code, "user", f"the guest failed: {reason}").answer

    def _program(self, header: Header) -> Program:
        """Return the program of a call, loaded now if the call brings what it takes.

        Raises NotLoaded.
        """
        key: int = header["key"]
        if "load" in header:
            try:
                self._programs[key] = self._link(header["load"])
            except (Refusal, wasmtime.WasmtimeError) as error:
                raise NotLoaded(f"the instance is not loaded: {error}") from None
            finally:
                self._coming.pop(key).set()
        else:
            coming = self._coming.get(key)
            if coming is not None:
                coming.wait(COMING_S)
        program = self._programs.get(key)
        if program is None:
            raise NotLoaded("the instance is not loaded")
        return program

    def _load(self, request: Header) -> None:
        program = self._link(request)
        # One instance on trial, so that a module too large for its limit fails here.
        with self._store(program, request["id"]) as store:
            if program.wasi:
                program.command(store, memoryview(b""))
            program.guest(store)
        self._programs[request["key"]] = program

    def _link(self, request: Header) -> Program:
        """Return what a `load` asks for. Raises Refusal."""
        module = self._map(request["folder"], request["digest"])
        libraries = [
            (name, self._map(request["folder"], digest)) for name, digest in request["modules"]
        ]
        memory = self._remember(request["state"], request["state_bytes"])
        return Program(request, module, libraries, self._linkers, memory)

    def _map(self, folder: str, digest: str) -> wasmtime.Module:
        """Return a compiled module; its seal is checked when it is mapped, which is once."""
        module = self._modules.get(digest) or wasm_engine.map_compiled(self._engine, folder, digest)
        if module is None:
            raise Refusal("executor", "environment", UNCOMPILED)
        self._modules[digest] = module
        self._modules.move_to_end(digest)
        while len(self._modules) > MAPPED_MAX:
            self._modules.popitem(last=False)
        return module

    def _remember(self, path: str, limit_bytes: int) -> Memory | None:
        """Open a task's memory, or take the one that another generation of the task has open."""
        if not path:
            return None
        memory = self._memories.get(path)
        if memory is None:
            try:
                memory = self._memories[path] = Memory(path, limit_bytes)
            except OSError as error:
                raise Refusal(
                    "executor",
                    "environment",
                    f"the task's memory {path}: {error.strerror}",
                    retryable=True,
                ) from None
        memory.limit_bytes = limit_bytes
        return memory

    def _forget(self, path: str) -> None:
        """Close a memory that is to be written by others."""
        memory = self._memories.pop(path, None)
        if memory is not None:
            memory.close()

    def _store(self, program: Program, number: int) -> wasmtime.Store:
        store = wasmtime.Store(self._engine)
        program.limit(store)
        wasm_engine.watch(store, number, self._stopper)
        # The epoch of an earlier `stop` has passed; that of a later one reaches this store.
        if self._stopped[number]:
            store.close()
            raise Refusal("deadline", "user", "the call was stopped")
        return store

    def _invoke(
        self, header: Header, body: memoryview, after: contextlib.ExitStack
    ) -> tuple[Header, list[memoryview]]:
        """Run one call; the store lives until its answer is sent, for that reads its memory."""
        began, spent = time.perf_counter_ns(), time.thread_time_ns()
        number: int = header["id"]
        program = self._program(header)
        given = {value[0]: value for value in read_values(header["in"], body, program.blobs)}
        given.update(program.constants)
        values = [given[name] for name in program.inputs]
        store = after.enter_context(self._store(program, number))
        run = self._run_command if program.wasi else self._run_guest
        found, answer = run(program, store, values, number)
        described, inline = write_values(found, program.blobs, program.output_bytes)
        took_us = (time.perf_counter_ns() - began) // 1000
        cpu_us = (time.thread_time_ns() - spent) // 1000
        return {"id": number, "us": took_us, "cpu": cpu_us, "out": described, **answer}, inline

    def _run_guest(
        self, program: Program, store: wasmtime.Store, values: list[Value], number: int
    ) -> tuple[list[Value], Header]:
        """Run a program of the guest ABI: its outputs, and what else is answered."""
        guest = program.guest(store)
        call = program.call(guest, partial(self._infer, number))
        self._functions.enter(call)
        inputs, outputs = place(guest, values, program)
        models = call.models if call is not None else None
        try:
            code = guest.call(abi.RUN, inputs, len(values), outputs, len(program.outputs))
            if code:
                raise complaint(guest, code)
        except (Refusal, wasmtime.Trap, wasmtime.WasmtimeError) as error:
            # What made the guest give up says more than the guest does.
            if models is None or models.failure is None or self._stopped[number]:
                raise
            code, blame, text, again = models.failure
            why = str(error).strip().rsplit("\n", 1)[-1].strip()
            raise Refusal(code, blame, f"{text} ({why})", retryable=again) from None
        memory = guest.memory()
        answer: Header = {"mem": memory.nbytes}
        if call is not None:
            commit(program.memory, call.changes)
            answer["log"] = call.log
        return take(memory, outputs, program), answer

    def _run_command(
        self, program: Program, store: wasmtime.Store, values: list[Value], number: int
    ) -> tuple[list[Value], Header]:
        """Run a WASI command: what it wrote, and what else is answered."""
        del number
        out, err = program.command(store, values[0][3])
        guest = program.guest(store)
        try:
            guest.call(wasm_engine.START)
        except wasmtime.ExitTrap as end:
            if end.code:
                raise said_no(end.code, err) from None
        return written(program, (out, err)), {"mem": guest.memory().nbytes}

    def run(self, threads: int) -> None:
        """Serve with so many calls at once; ends the process."""
        threading.stack_size(THREAD_STACK_BYTES)
        for _ in range(threads + 1):
            threading.Thread(target=self.serve, daemon=True).start()
        self.serve()
