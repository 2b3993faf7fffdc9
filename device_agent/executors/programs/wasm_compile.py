"""Compiles one Wasm module into the private cache and exits.

Compiling has no deadline and leaves memory behind, so it gets a process, a memory cap and a parent
that kills it when it takes too long.

    wasm_compile.py SOCKET_FD PARENT_PID
"""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import sys
from typing import TYPE_CHECKING, Final

import wasmtime

if TYPE_CHECKING:
    from device_agent.executors.programs import wasm_engine
    from device_agent.executors.programs.stream import Header, Refusal, Stream, die_with_parent
else:
    import wasm_engine
    from stream import Header, Refusal, Stream, die_with_parent

MEMORY_BYTES: Final = 2 << 30


def compile_module(source: str, digest: str, folder: str) -> None:
    """Check, compile and seal a module, named by its hex digest. Raises Refusal."""
    with open(source, "rb") as file:
        code = file.read()
    if hashlib.sha256(code).hexdigest() != digest:
        raise Refusal("executor", "environment", f"artifact {source} is not what its digest says")
    on = wasm_engine.engine()
    if wasm_engine.map_compiled(on, folder, digest) is not None:
        return
    if not code.startswith(b"\0asm"):
        raise Refusal("executor", "user", "the artifact is no Wasm module: its first bytes differ")
    try:
        module = wasmtime.Module(on, code)
    except wasmtime.WasmtimeError as error:
        reason = " ".join(str(error).split())
        raise Refusal("executor", "user", f"the module does not compile: {reason}") from None
    misfit = wasm_engine.misfits(module)
    if misfit:
        raise Refusal("executor", "user", misfit)
    store(folder, digest, bytes(module.serialize()))


def store(folder: str, name: str, compiled: bytes) -> None:
    """Put a compiled module and its seal into the cache, each in one step. Raises Refusal."""
    try:
        seal = wasm_engine.seal(wasm_engine.read_key(folder), name, compiled)
        for suffix, data in (("cwasm", compiled), ("seal", seal)):
            part = f"{folder}/.part-{os.getpid()}-{suffix}"
            with open(part, "wb") as file:
                file.write(data)
            os.rename(part, f"{folder}/{name}.{suffix}")
    except OSError as error:
        raise Refusal(
            "executor",
            "environment",
            f"cannot write the compiled module into {folder}: {error.strerror}",
            retryable=True,
        ) from None


def answer(request: Header) -> Header:
    """Serve one request: `source`, `digest` (hex) and `folder` in, `fail` or nothing out."""
    try:
        compile_module(request["source"], request["digest"], request["folder"])
    except Refusal as refusal:
        return {"id": request["id"], "fail": refusal.answer}
    except (OSError, MemoryError) as error:
        return {"id": request["id"], "fail": ["executor", "environment", repr(error), True]}
    return {"id": request["id"]}


def main(arguments: list[str]) -> int:
    """Take one request from the socket, answer it and leave."""
    die_with_parent(int(arguments[2]))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with socket.socket(fileno=int(arguments[1])) as sock:
        stream = Stream(sock)
        frame = stream.receive()
        if frame is not None:
            stream.send(answer(frame[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
