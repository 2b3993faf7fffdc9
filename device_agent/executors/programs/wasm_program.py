"""An instance: its module, what it is linked with, what it may import, and how it is run.

Its recipe is all that is kept of one that rests; its program is there while it is called.

Two classes of programs. One of the guest ABI `tona-core-1` exports `tona_run` and imports host
functions by leave of its manifest. One of `wasi-1` is a WASI preview 1 command: its one input is
its stdin, its output what it writes to stdout, a second output, if the task has one, stderr. WASI
gives a program clock and random numbers besides, and no file, no socket, no environment.

A program may be linked with modules that somebody else wrote: they are instantiated before it, in
their order, and may import WASI and each other.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import wasmtime
from wasmtime import _bindings as bindings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from device_agent.executors.programs import abi, wasm_engine, wasm_functions, wasm_infer
    from device_agent.executors.programs.memory import Memory
    from device_agent.executors.programs.stream import Header, Refusal, Value, map_file
    from device_agent.executors.programs.wasm_forms import Form
else:
    import abi
    import wasm_engine
    import wasm_functions
    import wasm_infer
    from stream import Refusal, map_file

WASI_MODULE: Final = "wasi_snapshot_preview1"
BEGINNINGS: Final = ("_initialize", wasm_engine.START)
"""What sets a linked module up, called before anything else of it: that of a WASI reactor, or of a
command that is used as a library, as some compilers make them."""
NOT_SUPPORTED: Final = 58
"""WASI's errno for what we leave out."""
NO_SPACE: Final = 51
STDERR_BYTES: Final = 4096
"""Kept of what a WASI command says on stderr where no output takes it."""
INFER: Final = "infer"
"""The group of host functions that `Manifest.infers` grants."""


class Linkers:
    """Linkers by what they let a module import; made once for each combination."""

    def __init__(self, engine: wasmtime.Engine, functions: wasm_functions.Functions) -> None:
        self._engine = engine
        self._functions = functions
        self._made: dict[tuple[frozenset[str], bool], wasmtime.Linker] = {}

    def of(self, granted: frozenset[str], *, wasi: bool) -> wasmtime.Linker:
        """Return the linker with these host functions, and WASI if asked for."""
        linker = self._made.get((granted, wasi))
        if linker is None:
            linker = wasmtime.Linker(self._engine)
            self._functions.define(linker, granted)
            if wasi:
                linker.define_wasi()
                linker.allow_shadowing = True
                # An epoch does not interrupt a host call, so no guest may sleep in one.
                i32 = wasmtime.ValType.i32()
                kind = wasmtime.FuncType([i32] * 4, [i32])
                linker.define_func(WASI_MODULE, "poll_oneoff", kind, lambda *_: NOT_SUPPORTED)
            self._made[granted, wasi] = linker
        return linker


class Recipe:
    """What a `load` asks for."""

    def __init__(self, request: Header, linkers: Linkers, blobs: str) -> None:
        self.form: list[str] = request["form"]
        """Name and fingerprint."""
        self.modules: list[list[str]] = request.get("modules", [])
        """What it is linked with: the name that it imports, name and fingerprint of each."""
        self.inputs: list[str] = [name for name, _, _ in request["inputs"]]
        self.outputs = [(name, dtype, tuple(shape)) for name, dtype, shape in request["outputs"]]
        self.described = b"".join(abi.describe(0, 0, *one) for _, *one in self.outputs)
        """Descriptors of the outputs, as a guest gets them."""
        self.memory_bytes: int = request["memory"]
        self.output_bytes: int = request["limit"]
        self.blobs = blobs
        self.checks: list[Any] = request.get("checks", [])
        self.state: tuple[str, int] | None = None
        """File of its memory and the bound of that in bytes."""
        if "state" in request:
            self.state = request["state"], request["state_bytes"]
        self.constants: list[Any] = request.get("constants", [])
        self.wasi: bool = request["interface"] == wasm_engine.WASI
        self.arguments: list[str] = request.get("arguments", [])
        self.infers = frozenset(request.get("infers", ()))
        self.granted = frozenset(request.get("functions", ())) | ({INFER} if self.infers else set())
        self.calls = bool(self.granted - wasm_functions.PURE)
        """Whether host functions work on something of a call."""
        self.linker = linkers.of(self.granted, wasi=self.wasi or bool(self.modules))

    def check(self, form: Form, libraries: list[tuple[str, Form]]) -> None:
        """Say by name what a module may not import: once, for it is the same form ever after.

        Raises Refusal.
        """
        role = wasm_engine.WASI if self.wasi else abi.NAME
        misfit = form.about.misfits.get(role)
        if misfit:
            raise Refusal("executor", "user", misfit)
        known: dict[str, Form] = {}
        for name, library in libraries:
            _check_imports(f"the linked module {name!r}", library, frozenset(), known, wasi=True)
            known[name] = library
        _check_imports("the module", form, self.granted, known, wasi=self.wasi)

    def limit(self, store: wasm_engine.Store) -> None:
        """Bound what the guest may take; modules linked together have one memory."""
        instances = 1 + len(self.modules)
        store.limit(self.memory_bytes, instances)


class Program:
    """What the calls of an instance share."""

    def __init__(
        self,
        recipe: Recipe,
        form: Form,
        libraries: list[tuple[str, Form]],
        memory: Memory | None,
    ) -> None:
        self.recipe = recipe
        self.memory = memory
        self._form = form
        self._libraries = libraries
        self._pre: wasmtime.InstancePre | None = None
        self._begun = False
        self.constants: dict[str, Value] = {
            name: (name, dtype, tuple(shape), map_file(path, size))
            for name, dtype, shape, size, path in recipe.constants
        }

    def link(self) -> None:
        """Prepare for many guests. Raises Refusal when its imports are of other types."""
        try:
            if not self._libraries:
                self._pre = self.recipe.linker.instantiate_pre(self._form.module)
        except wasmtime.WasmtimeError as error:
            raise Refusal("executor", "user", f"the module does not link: {_say(error)}") from None

    def guest(self, store: wasm_engine.Store) -> wasm_engine.Guest:
        """Instantiate the program. Raises wasmtime.Trap, wasmtime.WasmtimeError and Refusal."""
        if self._libraries:
            return wasm_engine.Guest(store, self._linked(store))
        if self._pre is None and self._begun:
            # The first guest after a rest may well be the only one before the next.
            self.link()
        self._begun = True
        if self._pre is not None:
            return wasm_engine.Guest(store, wasm_engine.instantiate(self._pre, store))
        found = wasm_engine.begin(self.recipe.linker, self._form.module, store)
        return wasm_engine.Guest(store, found)

    def _linked(self, store: wasm_engine.Store) -> Any:
        """Instantiate what it is linked with, then the program."""
        if not self.recipe.wasi:
            store.set_wasi(wasmtime.WasiConfig())
        made: dict[str, wasmtime.Instance] = {}
        for name, library in self._libraries:
            instance = made[name] = self._instantiate(store, library, made)
            _begin(store, instance.exports(store))
        return self._instantiate(store, self._form, made)._instance  # noqa: SLF001 - as there

    def _instantiate(
        self, store: wasmtime.Store, form: Form, made: dict[str, wasmtime.Instance]
    ) -> wasmtime.Instance:
        found: list[Any] = []
        for module, name in form.about.imports:
            if module in made:
                found.append(made[module].exports(store)[name])
            else:
                found.append(self.recipe.linker.get(store, module, name))
        try:
            return wasmtime.Instance(store, form.module, found)
        except wasmtime.WasmtimeError as error:
            if "memory" in str(error) and "count" in str(error):
                text = "linked modules share one memory: import that of the library"
                raise Refusal("executor", "user", text) from None
            raise

    def call(self, guest: wasm_engine.Guest, ask: wasm_infer.Ask) -> wasm_functions.Call | None:
        """Return what host functions work on during one call; None when there are none."""
        recipe = self.recipe
        if not recipe.calls:
            return None
        models = None
        if recipe.infers:
            models = wasm_infer.Models(guest, recipe.infers, recipe.blobs, ask)
        return wasm_functions.Call(guest, self.memory, models)

    def command(self, store: wasmtime.Store, stdin: memoryview) -> tuple[bytearray, bytearray]:
        """Give a store stdin and arguments; what it writes to stdout and stderr gathers there."""
        config = wasmtime.WasiConfig()
        config.argv = ["program", *self.recipe.arguments]
        _set_stdin(config, stdin)
        out, err = bytearray(), bytearray()
        room = self.recipe.output_bytes

        def write(data: bytes) -> int:
            if len(out) + len(data) > room:
                return -NO_SPACE
            out.extend(data)
            return len(data)

        def complain(data: bytes) -> int:
            limit = room if len(self.recipe.outputs) > 1 else STDERR_BYTES
            err.extend(data[: max(0, limit - len(err))])
            return len(data)

        config.stdout_custom = write
        config.stderr_custom = complain
        store.set_wasi(config)
        return out, err


def _begin(store: wasmtime.Store, exports: Mapping[str, object]) -> None:
    """Set a linked module up. Raises wasmtime.Trap, wasmtime.WasmtimeError and Refusal."""
    for name in BEGINNINGS:
        begin = exports.get(name)
        if isinstance(begin, wasmtime.Func):
            try:
                begin(store)
            except wasmtime.ExitTrap as end:
                if end.code:
                    text = f"a linked module's {name} ended with exit code {end.code}"
                    raise Refusal("executor", "user", text) from None
            return


def _check_imports(
    what: str,
    form: Form,
    granted: frozenset[str],
    known: dict[str, Form],
    *,
    wasi: bool,
) -> None:
    """Raise Refusal for the first import that nothing provides."""
    for module, name in form.about.imports:
        full = f"{module}.{name}"
        if module in known:
            if name not in known[module].about.exports:
                raise Refusal(
                    "executor", "user", f"{what} imports {full}, which that module does not export"
                )
        elif module == wasm_functions.MODULE and name in wasm_functions.GROUPS:
            group = wasm_functions.GROUPS[name]
            if group not in granted:
                wanted = f"functions name {group!r}" if group != INFER else "infers name models"
                raise Refusal("executor", "user", f"{what} imports {full}: let the task's {wanted}")
        elif not (wasi and module == WASI_MODULE):
            raise Refusal("executor", "user", f"{what} imports {full}, which nothing provides")


def _set_stdin(config: wasmtime.WasiConfig, data: memoryview) -> None:
    """Let a command read these bytes; they are copied once, into the engine's own buffer."""
    content = bindings.wasm_byte_vec_t()
    bindings.wasm_byte_vec_new_uninitialized(ctypes.byref(content), data.nbytes)
    if data.nbytes:
        address = ctypes.addressof(content.data.contents)
        memoryview((ctypes.c_ubyte * data.nbytes).from_address(address)).cast("B")[:] = data
    # It takes the buffer over.
    bindings.wasi_config_set_stdin_bytes(config.ptr(), ctypes.byref(content))


def _say(error: Exception) -> str:
    return " ".join(str(error).split())
