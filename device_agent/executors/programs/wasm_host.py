"""Runs calls of one tenant's Wasm instances: a fresh store for each, several at once in threads.

Whichever thread is free reads the next frame and runs it, so a call changes no thread. It lets the
next one read just before the guest begins: until then it would only have to share the interpreter.
Two more threads than calls at once, one of them for a `load`, mean that somebody listens for `stop`
as long as a guest runs. Time is the daemon's business: it says `stop`, an epoch passes, and the
store of that call ends.
"""

from __future__ import annotations

import gc
import os
import select
import threading
import time
from collections import OrderedDict
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import wasmtime

if TYPE_CHECKING:
    import socket

    from device_agent.executors.programs import abi, resting, wasm_engine, wasm_forms
    from device_agent.executors.programs.checks import hold
    from device_agent.executors.programs.memory import Changes, Memory, MemoryFull
    from device_agent.executors.programs.stream import (
        Header,
        Refusal,
        Stream,
        Value,
        to_the_end,
        write_values,
    )
    from device_agent.executors.programs.wasm_functions import Functions
    from device_agent.executors.programs.wasm_inputs import Given, Unread, given, put
    from device_agent.executors.programs.wasm_program import Linkers, Program, Recipe
else:
    import abi
    import resting
    import wasm_engine
    import wasm_forms
    from checks import hold
    from memory import Memory, MemoryFull
    from stream import Refusal, Stream, to_the_end, write_values
    from wasm_functions import Functions
    from wasm_inputs import Unread, given, put
    from wasm_program import Linkers, Program, Recipe

THREAD_STACK_BYTES: Final = 2 << 20
MORE_THREADS: Final = 2
"""Than calls at once: one for a `load`, one that listens."""
MAPPED_MAX: Final = 64
"""Compiled modules that stay mapped; an older one that no instance uses is let go."""
GARBAGE: Final = 500
"""Objects after which garbage is collected between two calls."""
GARBAGE_MAX: Final = 20_000
"""Objects after which it is collected in the middle of one."""
UNCOMPILED: Final = "uncompiled"
"""Text of the refusal after which the daemon compiles and asks again."""


def place(guest: wasm_engine.Guest, values: list[Given], recipe: Recipe) -> tuple[int, int]:
    """Put descriptors and inputs into the guest; addresses of both arrays. Raises Refusal."""
    first = abi.align(abi.PORT.size * (len(values) + len(recipe.outputs)))
    at = first
    starts = []
    for _, _, _, view in values:
        starts.append(at)
        at = abi.align(at + view.nbytes)
    if at > recipe.memory_bytes:
        raise Refusal(
            "limit", "user", f"the inputs take {at} bytes, the task's {recipe.memory_bytes}"
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
    head = b"".join((*ports, recipe.described))
    memory[base : base + len(head)] = head
    for start, (_, _, _, view) in zip(starts, values):  # noqa: B905 - as above
        put(view, memory[base + start : base + start + view.nbytes])
    return base, base + abi.PORT.size * len(values)


def take(memory: memoryview, at: int, recipe: Recipe) -> list[Value]:
    """Read the outputs that the guest described at this address. Raises Refusal."""
    values: list[Value] = []
    for index, (name, dtype, shape) in enumerate(recipe.outputs):
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


def written(recipe: Recipe, streams: tuple[bytearray, ...]) -> list[Value]:
    """Give what a WASI command wrote the shape of its outputs. Raises Refusal."""
    values: list[Value] = []
    for stream, (name, dtype, shape) in zip(streams, recipe.outputs):  # noqa: B905 - one may lack
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


class Folders(NamedTuple):
    """Where a host finds compiled modules, and large values."""

    forms: str
    blobs: str


class Thread(threading.local):
    """What each thread has for itself."""

    call = 0
    """The number of the call that it runs."""
    store: wasm_engine.Store | None = None
    """For its next call: nobody has used it, and nobody waits for it."""


class Reading:
    """The right to read frames, which one thread has at a time.

    A lock would wake another thread at each call, which then wants the interpreter when the call
    needs it most. Here the others are woken when there is something to read.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.stream = Stream(sock)
        self._sock = sock
        self._rest = os.eventfd(1, os.EFD_CLOEXEC)
        """Always readable: whoever is let wait for it is woken, for what was read too much."""
        self._epoll = select.epoll()
        self._epoll.register(self._rest, 0)
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLONESHOT)

    def take(self) -> None:
        """Wait until there is something to read, and for the right to do it."""
        self._epoll.poll(maxevents=1)

    def give(self) -> None:
        """Let whoever is woken next read on."""
        source = self._rest if self.stream.has_rest() else self._sock
        self._epoll.modify(source, select.EPOLLIN | select.EPOLLONESHOT)


class Turn:
    """One frame on its way through a thread: what it holds until its answer is sent."""

    def __init__(self, number: int, reading: Reading) -> None:
        self.number = number
        self.store: wasm_engine.Store | None = None
        """Lives until the answer is sent, for that reads its memory."""
        self._reading: Reading | None = reading

    def read_on(self) -> None:
        """Let another thread read the next frame."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.give()

    def close(self) -> None:
        """Let go of everything."""
        self.read_on()
        if self.store is not None:
            self.store.close()


class Host:
    """All instances of this process and the threads that run their calls."""

    def __init__(
        self,
        sock: socket.socket,
        engine: wasmtime.Engine,
        folders: Folders,
        gaps: tuple[str, ...],
    ) -> None:
        self._folders = folders
        self._gaps = gaps
        self._reading = Reading(sock)
        self._stream = self._reading.stream
        self._writing = threading.Lock()
        self._engine = engine
        self._functions = Functions()
        self._linkers = Linkers(engine, self._functions)
        self._recipes: dict[int, Recipe] = {}
        """Of every instance that is loaded, whether it rests or not."""
        self._programs: dict[int, Program] = {}
        self._forms: OrderedDict[tuple[str, str], wasm_forms.Form] = OrderedDict()
        self._memories: dict[str, Memory] = {}
        self._rooms: set[int] = set()
        """Where guests have had their memory."""
        self._stopped: dict[int, bool] = {}
        """The calls under way, and whether each is to stop."""
        self._asking: dict[int, SimpleQueue[tuple[Header, memoryview] | None]] = {}
        """The calls that wait for a model."""
        self._thread = Thread()
        self._stopper = wasm_engine.new_stopper(lambda: self._stopped.get(self._thread.call, False))

    def serve(self) -> None:
        """Serve frames until the daemon hangs up, then end the process."""
        to_the_end(self._serve)

    def _serve(self) -> None:
        while True:
            self._reading.take()
            header, body = self._next_call()
            number: int = header["id"]
            self._stopped[number] = False
            turn = Turn(number, self._reading)
            answer, buffers = self._answer(header, body, turn)
            del self._stopped[number]
            with self._writing:
                self._stream.send(answer, buffers)
            turn.close()
            # Now, for an answer need not wait for it.
            self._let_go()
            self._thread.store = self._thread.store or self._new_store()
            if gc.get_count()[0] > GARBAGE:
                gc.collect(1)

    def _next_call(self) -> tuple[Header, memoryview]:
        """Read the next frame that wants an answer, and do what those before it say."""
        while True:
            frame = self._stream.receive()
            if frame is None:
                os._exit(0)
            header, body = frame
            match header["op"]:
                case "invoke" | "load" | "wake":
                    return frame
                case "stop":
                    number: int = header["id"]
                    if number in self._stopped:
                        self._stopped[number] = True
                        self._engine.increment_epoch()
                        self._tell_asking(number, None)
                case "inferred":
                    self._tell_asking(header["id"], (header, body))
                case "rest" | "lull":
                    self._programs.pop(header.get("key", 0), None)
                    self._give_back(heap=header["op"] == "lull")
                case "unload":
                    self._recipes.pop(header["key"], None)
                    self._programs.pop(header["key"], None)
                case "forget":
                    self._forget(header["state"])

    def _give_back(self, *, heap: bool) -> None:
        """Hold no memory for guests, nor free `heap`, if none runs.

        Nobody begins while this thread reads. What is being cleared meanwhile is kept until the
        next time.
        """
        if not self._stopped:
            for room in tuple(self._rooms):
                wasm_engine.give_back(room)
            if heap:
                resting.give_back()

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
        self, header: Header, body: memoryview, turn: Turn
    ) -> tuple[Header, list[memoryview]]:
        number = turn.number
        try:
            if header["op"] == "invoke":
                return self._invoke(header, body, turn)
            if header["op"] == "load":
                self._load(header, turn)
            else:
                self._program(header["key"])
            return {"id": number, "pid": os.getpid(), "gaps": self._gaps}, []
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

    def _program(self, key: int) -> Program:
        """Return the program of an instance, made now if it has rested. Raises NotLoaded."""
        program = self._programs.get(key)
        if program is None:
            recipe = self._recipes.get(key)
            if recipe is None:
                raise NotLoaded("the instance is not loaded")
            try:
                program = self._make(recipe)
            except (Refusal, wasmtime.WasmtimeError) as error:
                raise NotLoaded(f"the instance is not loaded: {error}") from None
            self._programs[key] = program
        return program

    def _load(self, request: Header, turn: Turn) -> None:
        recipe = Recipe(request, self._linkers, self._folders.blobs)
        program = self._make(recipe, new=True)
        program.link()
        # One instance on trial, so that a module too large for its limit fails here.
        store = self._store(recipe, turn)
        if recipe.wasi:
            program.command(store, memoryview(b""))
        program.guest(store)
        key = request["key"]
        self._recipes[key], self._programs[key] = recipe, program

    def _make(self, recipe: Recipe, *, new: bool = False) -> Program:
        """Return a program; what is `new` is looked at. Raises Refusal."""
        form = self._map(*recipe.form)
        libraries = [(name, self._map(*one)) for name, *one in recipe.modules]
        if new:
            recipe.check(form, libraries)
        memory = self._remember(*recipe.state) if recipe.state is not None else None
        return Program(recipe, form, libraries, memory)

    def _map(self, digest: str, fingerprint: str) -> wasm_forms.Form:
        """Return a compiled module; its fingerprint is checked when it is mapped, which is once."""
        key = digest, fingerprint
        form = self._forms.get(key) or wasm_forms.read(self._engine, self._folders.forms, *key)
        if form is None:
            raise Refusal("executor", "environment", UNCOMPILED)
        self._forms[key] = form
        self._forms.move_to_end(key)
        return form

    def _let_go(self) -> None:
        """Let go of the modules that were used longest ago, beyond the bound."""
        while len(self._forms) > MAPPED_MAX:
            try:
                self._forms.popitem(last=False)
            except KeyError:
                return

    def _remember(self, path: str, limit_bytes: int) -> Memory:
        """Open a task's memory, or take the one that another generation of the task has open."""
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

    def _new_store(self) -> wasm_engine.Store:
        store = wasm_engine.Store(self._engine)
        wasm_engine.watch(store, self._stopper)
        return store

    def _store(self, recipe: Recipe, turn: Turn) -> wasm_engine.Store:
        """Return a fresh store for a guest that begins at once: another thread listens from now."""
        mine = self._thread
        store = turn.store = mine.store or self._new_store()
        mine.store, mine.call = None, turn.number
        recipe.limit(store)
        turn.read_on()
        return store

    def _invoke(
        self, header: Header, body: memoryview, turn: Turn
    ) -> tuple[Header, list[memoryview]]:
        began, spent = time.perf_counter_ns(), time.thread_time_ns()
        program = self._program(header["key"])
        recipe = program.recipe
        found: dict[str, Given] = given(header["in"], body, recipe.blobs) | program.constants
        values = [found[name] for name in recipe.inputs]
        store = self._store(recipe, turn)
        run = self._run_command if recipe.wasi else self._run_guest
        made, answer = run(program, store, values, turn.number)
        if recipe.checks and (flags := hold(made, recipe.checks)):
            answer["flags"] = flags
        described, inline = write_values(made, recipe.blobs, recipe.output_bytes)
        took_us = (time.perf_counter_ns() - began) // 1000
        cpu_us = (time.thread_time_ns() - spent) // 1000
        return {"id": turn.number, "us": took_us, "cpu": cpu_us, "out": described, **answer}, inline

    def _run_guest(
        self, program: Program, store: wasm_engine.Store, values: list[Given], number: int
    ) -> tuple[list[Value], Header]:
        """Run a program of the guest ABI: its outputs, and what else is answered."""
        guest = program.guest(store)
        self._rooms.add(guest.room)
        call = program.call(guest, partial(self._infer, number))
        self._functions.enter(call)
        inputs, outputs = place(guest, values, program.recipe)
        models = call.models if call is not None else None
        try:
            count = len(program.recipe.outputs)
            code = guest.call(abi.RUN, inputs, len(values), outputs, count)
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
        return take(memory, outputs, program.recipe), answer

    def _run_command(
        self, program: Program, store: wasm_engine.Store, values: list[Given], number: int
    ) -> tuple[list[Value], Header]:
        """Run a WASI command: what it wrote, and what else is answered."""
        del number
        stdin = values[0][3]
        mapped = stdin.mapped() if isinstance(stdin, Unread) else stdin
        out, err = program.command(store, mapped)
        guest = program.guest(store)
        self._rooms.add(guest.room)
        try:
            guest.call(wasm_engine.START)
        except wasmtime.ExitTrap as end:
            if end.code:
                raise said_no(end.code, err) from None
        return written(program.recipe, (out, err)), {"mem": guest.memory().nbytes}

    def run(self, threads: int) -> None:
        """Serve with so many calls at once; ends the process."""
        threading.stack_size(THREAD_STACK_BYTES)
        gc.set_threshold(GARBAGE_MAX)
        for _ in range(threads + MORE_THREADS - 1):
            threading.Thread(target=self.serve, daemon=True).start()
        self.serve()
