"""Compiled modules as they lie in the device's cache: native code, and what is known about it.

The engine does not check what it maps, so a file is mapped only when its fingerprint is the one
that the daemon tells, who alone keeps them. What the engine would have to be asked about a module
at every start stands behind the code as JSON, with its length as the last four bytes.
"""
# ruff: noqa: SLF001 - the C interface lies behind private names of the package, whose range is pinned

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import struct
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import wasmtime
from wasmtime import _bindings as bindings
from wasmtime._ffi import dll

if TYPE_CHECKING:
    from device_agent.executors.programs import abi, wasm_engine
else:
    import abi
    import wasm_engine

ROLES: Final = (abi.NAME, wasm_engine.WASI, wasm_engine.LINKED_ROLE)
SMALL_BYTES: Final = 256 * 1024
"""A smaller file is read: to map it would cost more than to copy it."""
_LENGTH: Final = struct.Struct("<I")
_Module: Final = ctypes.POINTER(bindings.wasmtime_module_t)
_take: Final = ctypes.CFUNCTYPE(
    ctypes.POINTER(bindings.wasmtime_error_t),
    *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p),
)(("wasmtime_module_deserialize", dll))


class About(NamedTuple):
    """What the engine was asked about a module when it was compiled."""

    misfits: dict[str, str]
    """Why its exports are not those of a role, for the roles that they are not of."""
    imports: list[list[str]]
    """Module and name of each."""
    exports: list[str]


class Form:
    """A compiled module."""

    def __init__(self, module: wasmtime.Module, text: bytes) -> None:
        self.module = module
        self._text = text

    @cached_property
    def about(self) -> About:
        """What is known about it, read when it is first asked for: few starts do."""
        return About(**json.loads(self._text))


def write(folder: str, name: str, module: wasmtime.Module) -> str:
    """Put a compiled module into the cache in one step; its fingerprint. Raises OSError."""
    about = {
        "misfits": {role: why for role in ROLES if (why := wasm_engine.misfits(module, role))},
        "imports": [(one.module, one.name or "") for one in module.imports],
        "exports": [one.name for one in module.exports],
    }
    text = json.dumps(about, separators=(",", ":")).encode()
    data = bytes(module.serialize()) + text + _LENGTH.pack(len(text))
    part = f"{folder}/.part-{os.getpid()}"
    with open(part, "wb") as file:
        file.write(data)
    os.rename(part, f"{folder}/{name}.cwasm")
    return hashlib.sha256(data).hexdigest()


def read(on: wasmtime.Engine, folder: str, name: str, fingerprint: str) -> Form | None:
    """Map a compiled module; None when there is none, or it is another, or for another engine."""
    try:
        handle = os.open(f"{folder}/{name}.cwasm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        if size <= SMALL_BYTES:
            data = os.pread(handle, size, 0)
            if hashlib.sha256(data).hexdigest() != fingerprint:
                return None
            return _form(_deserialize(on, data), data)
        with mmap.mmap(handle, 0, prot=mmap.PROT_READ) as mapped:
            if hashlib.sha256(mapped).hexdigest() != fingerprint:
                return None
            # Through the descriptor: what is mapped is the file that was just looked at.
            path = f"/proc/self/fd/{handle}"
            return _form(wasmtime.Module.deserialize_file(on, path), mapped)
    except (OSError, ValueError, wasmtime.WasmtimeError):
        return None
    finally:
        os.close(handle)


def _form(module: wasmtime.Module, data: bytes | mmap.mmap) -> Form:
    size = len(data) - _LENGTH.size
    (length,) = _LENGTH.unpack(data[size:])
    return Form(module, data[size - length : size])


def _deserialize(on: wasmtime.Engine, data: bytes) -> wasmtime.Module:
    """Map a module from memory, without the copy that the package makes. Raises WasmtimeError."""
    found = _Module()
    error = _take(on.ptr(), data, len(data), ctypes.byref(found))
    if error:
        raise wasmtime.WasmtimeError._from_ptr(error)
    return wasmtime.Module._from_ptr(found)
