"""Runs calls of Wasm instances, each call in a fresh store, several at once in threads.

    wasm_host.py SOCKET_FD PARENT_PID THREADS      serve frames until the daemon hangs up
    wasm_host.py --probe                           print the version as JSON

Whichever thread is free reads the next frame and runs it, so a call changes no thread. Two more
threads than calls at once, one of them for a `load`, mean that somebody always listens for `stop`.
Time is the daemon's business: it says `stop`, an epoch passes, and the store of that call ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

import wasmtime

if TYPE_CHECKING:
    from device_agent.executors.programs import abi, wasm_engine
    from device_agent.executors.programs.stream import (
        Header,
        Refusal,
        Stream,
        Value,
        die_with_parent,
        map_file,
        read_values,
        write_values,
    )
else:
    import abi
    import wasm_engine
    from stream import (
        Header,
        Refusal,
        Stream,
        Value,
        die_with_parent,
        map_file,
        read_values,
        write_values,
    )

THREAD_STACK_BYTES: Final = 2 << 20
MAX_TABLES: Final = 4
MAX_TABLE_ELEMENTS: Final = 1 << 20
UNCOMPILED: Final = "uncompiled"
"""Text of the refusal after which the daemon compiles and asks again."""


class Instance:
    """A loaded module with what its calls share."""

    def __init__(self, request: Header, pre: wasmtime.InstancePre) -> None:
        self.pre = pre
        self.inputs: list[str] = [name for name, _, _ in request["inputs"]]
        self.outputs = [(name, dtype, tuple(shape)) for name, dtype, shape in request["outputs"]]
        self.memory_bytes: int = request["memory"]
        self.output_bytes: int = request["limit"]
        self.blobs: str = request["blobs"]
        self.constants: dict[str, Value] = {
            name: (name, dtype, tuple(shape), map_file(path, size))
            for name, dtype, shape, size, path in request["constants"]
        }


def place(guest: wasm_engine.Guest, values: list[Value], instance: Instance) -> tuple[int, int]:
    """Put descriptors and inputs into the guest; addresses of both arrays. Raises Refusal."""
    first = abi.align(abi.PORT.size * (len(values) + len(instance.outputs)))
    at = first
    starts = []
    for _, _, _, view in values:
        starts.append(at)
        at = abi.align(at + view.nbytes)
    if at > instance.memory_bytes:
        raise Refusal(
            "limit", "user", f"the inputs take {at} bytes, the task's {instance.memory_bytes}"
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
    ports += [abi.describe(0, 0, dtype, shape) for _, dtype, shape in instance.outputs]
    head = b"".join(ports)
    memory[base : base + len(head)] = head
    for start, (_, _, _, view) in zip(starts, values):  # noqa: B905 - as above
        memory[base + start : base + start + view.nbytes] = view
    return base, base + abi.PORT.size * len(values)


def take(memory: memoryview, at: int, instance: Instance) -> list[Value]:
    """Read the outputs that the guest described at this address. Raises Refusal."""
    values: list[Value] = []
    for index, (name, dtype, shape) in enumerate(instance.outputs):
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


class Host:
    """All instances of this process and the threads that run their calls."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = Stream(sock)
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._engine = wasm_engine.engine()
        self._linker = wasmtime.Linker(self._engine)
        self._instances: dict[int, Instance] = {}
        self._stopped: dict[int, bool] = {}
        """The calls under way, and whether each is to stop."""
        self._stopper = wasm_engine.new_stopper(self._stopped)

    def serve(self) -> None:
        """Serve frames until the daemon hangs up, then end the process, or loudly at a bug."""
        try:
            self._serve()
        except OSError:
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a thread's edge: half a host would hang its calls
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)

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
                    continue
                if header["op"] == "unload":
                    self._instances.pop(header["key"], None)
                    continue
                self._stopped[number] = False
            with contextlib.ExitStack() as after:
                answer, buffers = self._answer(header, body, after)
                del self._stopped[number]
                with self._writing:
                    self._stream.send(answer, buffers)

    def _answer(
        self, header: Header, body: memoryview, after: contextlib.ExitStack
    ) -> tuple[Header, list[memoryview]]:
        number: int = header["id"]
        try:
            if header["op"] == "load":
                self._load(header)
                return {"id": number, "pid": os.getpid()}, []
            return self._invoke(header, body, after)
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

    def _load(self, request: Header) -> None:
        module = wasm_engine.map_compiled(self._engine, request["folder"], request["digest"])
        if module is None:
            raise Refusal("executor", "environment", UNCOMPILED)
        instance = Instance(request, self._linker.instantiate_pre(module))
        # One instance on trial, so that a module too large for its limit fails here.
        with self._store(instance, request["id"]) as store:
            wasm_engine.Guest(store, instance.pre)
        self._instances[request["key"]] = instance

    def _store(self, instance: Instance, number: int) -> wasmtime.Store:
        store = wasmtime.Store(self._engine)
        store.set_limits(instance.memory_bytes, MAX_TABLE_ELEMENTS, 1, MAX_TABLES, 1)
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
        began = time.perf_counter_ns()
        number: int = header["id"]
        instance = self._instances.get(header["key"])
        if instance is None:
            raise Refusal("not-ready", "environment", "the instance is not loaded", retryable=True)
        given = {value[0]: value for value in read_values(header["in"], body, instance.blobs)}
        given.update(instance.constants)
        values = [given[name] for name in instance.inputs]
        guest = wasm_engine.Guest(after.enter_context(self._store(instance, number)), instance.pre)
        inputs, outputs = place(guest, values, instance)
        code = guest.call(abi.RUN, inputs, len(values), outputs, len(instance.outputs))
        if code:
            raise complaint(guest, code)
        memory = guest.memory()
        found = take(memory, outputs, instance)
        described, inline = write_values(found, instance.blobs, instance.output_bytes)
        spent_us = (time.perf_counter_ns() - began) // 1000
        return {"id": number, "us": spent_us, "out": described, "mem": memory.nbytes}, inline


def probe() -> int:
    """Print what the daemon's inventory wants to know."""
    from importlib.metadata import version  # noqa: PLC0415 - the host itself never needs it

    print(json.dumps({"version": version("wasmtime"), "providers": []}))
    return 0


def main(arguments: list[str]) -> int:
    """Serve with as many calls at once as the daemon asked for."""
    if arguments[1] == "--probe":
        return probe()
    die_with_parent(int(arguments[2]))
    threading.stack_size(THREAD_STACK_BYTES)
    host = Host(socket.socket(fileno=int(arguments[1])))
    for _ in range(int(arguments[3]) + 1):
        threading.Thread(target=host.serve, daemon=True).start()
    host.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
