"""Compiles one Wasm module into the private cache, in a process that ends.

Compiling has no deadline and leaves memory behind, so it gets a process of its own, a memory cap
and a daemon that has it killed when it takes too long.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import wasmtime

if TYPE_CHECKING:
    import socket

    from device_agent.executors.programs import wasm_engine, wasm_forms
    from device_agent.executors.programs.stream import Header, Refusal, Stream
else:
    import wasm_engine
    import wasm_forms
    from stream import Refusal, Stream


def compile_module(request: Header, on: wasmtime.Engine) -> str:
    """Check and compile a module, named by its hex digest; its fingerprint. Raises Refusal."""
    source, digest, folder = request["source"], request["digest"], request["folder"]
    with open(source, "rb") as file:
        code = file.read()
    if hashlib.sha256(code).hexdigest() != digest:
        raise Refusal("executor", "environment", f"artifact {source} is not what its digest says")
    if not code.startswith(b"\0asm"):
        raise Refusal("executor", "user", "the artifact is no Wasm module: its first bytes differ")
    try:
        module = wasmtime.Module(on, code)
    except wasmtime.WasmtimeError as error:
        reason = " ".join(str(error).split())
        raise Refusal("executor", "user", f"the module does not compile: {reason}") from None
    misfit = wasm_engine.misfits(module, request["role"])
    if misfit:
        raise Refusal("executor", "user", misfit)
    try:
        return wasm_forms.write(folder, digest, module)
    except OSError as error:
        raise Refusal(
            "executor",
            "environment",
            f"cannot write the compiled module into {folder}: {error.strerror}",
            retryable=True,
        ) from None


def answer(request: Header, engine: wasmtime.Engine) -> Header:
    """Serve a request: `source`, `digest` (hex), `folder` and `role` in, `fail` or `form` out."""
    try:
        fingerprint = compile_module(request, engine)
    except Refusal as refusal:
        return {"id": request["id"], "fail": refusal.answer}
    except (OSError, MemoryError) as error:
        return {"id": request["id"], "fail": ["executor", "environment", repr(error), True]}
    return {"id": request["id"], "form": fingerprint}


def serve(sock: socket.socket, engine: wasmtime.Engine) -> None:
    """Take one request from the socket and answer it."""
    stream = Stream(sock)
    frame = stream.receive()
    if frame is not None:
        stream.send(answer(frame[0], engine))
