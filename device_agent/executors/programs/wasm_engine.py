"""The Wasm engine's settings, what exports each role of a module needs, and lean guest calls.

Compiler and host share this file, for a module runs only in an engine of equal settings.
"""
# ruff: noqa: SLF001 - the C interface lies behind private names of the package, whose range is pinned

from __future__ import annotations

import ctypes
import os
import resource
import struct
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import wasmtime
from wasmtime import _bindings as bindings
from wasmtime._ffi import dll

if TYPE_CHECKING:
    from collections.abc import Callable

    from device_agent.executors.programs import abi
else:
    import abi

STACK_BYTES: Final = 512 * 1024
MAX_MODULES: Final = 5
"""That one guest is made of: a program, and what it is linked with."""
MAX_TABLES: Final = 4
"""Of one module."""
MAX_GUEST_TABLES: Final = 8
"""Of all modules of a guest."""
MAX_TABLE_ELEMENTS: Final = 1 << 17
"""Of one table; room for them counts as memory where the kernel overcommits none."""
GUEST_ADDRESSES: Final = 5 << 30
"""At most so much is reserved for a guest, so that nothing in it has to be checked; no memory."""
KEPT_BYTES: Final = 4 << 20
"""Of a guest's memory that are cleared for the next one instead of given back: a page that is there
costs a tenth of one that the kernel has to find."""
HELD_BYTES: Final = 64 * 1024
"""Of that, what is never given back: the least that a guest has."""
KEPT_TABLE_BYTES: Final = 16 * 1024
MAX_INSTANCE_BYTES: Final = 16 << 20
"""What the engine may take for one module beside memory and tables."""
WASI: Final = "wasi-1"
LINKED_ROLE: Final = "library"
START: Final = "_start"

_NO_FINALIZER: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(0)
_TrapPointer: Final = ctypes.POINTER(bindings.wasm_trap_t)
_OF: Final = bindings.wasmtime_extern.of.offset
"""Where in an export the handle of what it is begins."""
_VALUES: Final = 4
_Values: Final = ctypes.c_uint64 * (2 * _VALUES)
_ARGUMENTS: Final = tuple(struct.Struct("<" + "I12x" * count) for count in range(_VALUES + 1))
_RESULT: Final = struct.Struct("<i")
_I32: Final = 0xFFFFFFFF
_WRITABLE: Final = 0x200
_DONTNEED: Final = 4


def _function(name: str, result: Any, *takes: Any, brief: bool = True) -> Any:
    """Return a function of the engine that takes plain addresses.

    What is `brief` keeps the interpreter: to give it up and ask for it again costs more than the
    call. What may run a guest must not.
    """
    kind = ctypes.PYFUNCTYPE if brief else ctypes.CFUNCTYPE
    return kind(result, *takes)((name, dll))


_at, _size, _number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
_export_get: Final = _function(
    "wasmtime_instance_export_get", ctypes.c_bool, _at, _at, ctypes.c_char_p, _size, _at
)
_call: Final = _function(
    "wasmtime_func_call_unchecked", _at, _at, _at, _at, _size, _at, brief=False
)
_instantiate: Final = _function(
    "wasmtime_instance_pre_instantiate", _at, _at, _at, _at, _at, brief=False
)
_begin: Final = _function("wasmtime_linker_instantiate", _at, _at, _at, _at, _at, _at, brief=False)
_memory_data: Final = _function("wasmtime_memory_data", _at, _at, _at)
_memory_size: Final = _function("wasmtime_memory_data_size", _size, _at, _at)
_limit: Final = _function("wasmtime_store_limiter", None, _at, *(_number,) * 5)
_madvise: Final = ctypes.CFUNCTYPE(ctypes.c_int, _at, _size, ctypes.c_int)(
    ("madvise", ctypes.CDLL(None))
)
_view: Final = ctypes.PYFUNCTYPE(ctypes.py_object, _at, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)


def engine(guests: int) -> wasmtime.Engine:
    """Return an engine with the settings of this project, for so many guests at once."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.max_wasm_stack = STACK_BYTES
    config.parallel_compilation = False
    # Tables for native debuggers; to register them is a third of what mapping a module costs.
    bindings.wasmtime_config_native_unwind_info_set(config.ptr(), False)
    # Data is copied into a fresh memory: to map its image costs more than most modules have.
    bindings.wasmtime_config_memory_init_cow_set(config.ptr(), False)
    _pool(config, guests)
    return wasmtime.Engine(config)


def lacking(guests: int) -> str:
    """Say in one sentence why there is no room for so many guests; empty when there is."""
    needed, allowed = guests * GUEST_ADDRESSES, resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed == resource.RLIM_INFINITY or allowed >= needed:
        return ""
    return (
        f"{needed >> 30} GiB of addresses (not of memory) are reserved for guests, and it may have "
        f"{allowed >> 20} MiB: lift that limit (ulimit -v, LimitAS=), a cgroup bounds memory"
    )


def _pool(config: wasmtime.Config, guests: int) -> None:
    """Have room for guests mapped once, for whichever comes next."""
    modules = guests * MAX_MODULES
    bounds = {
        "total_memories": guests,
        "total_core_instances": modules,
        "total_tables": guests * MAX_GUEST_TABLES,
        "total_gc_heaps": guests,
        "total_stacks": 0,
        "max_tables_per_module": MAX_TABLES,
        "table_elements": MAX_TABLE_ELEMENTS,
        "max_core_instance_size": MAX_INSTANCE_BYTES,
        # The room that was left last is taken first, whoever it was.
        "max_unused_warm_slots": 0,
        "linear_memory_keep_resident": KEPT_BYTES,
        "table_keep_resident": KEPT_TABLE_BYTES,
    }
    pool = bindings.wasmtime_pooling_allocation_config_new()
    for name, value in bounds.items():
        getattr(bindings, f"wasmtime_pooling_allocation_config_{name}_set")(pool, value)
    bindings.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    bindings.wasmtime_pooling_allocation_config_delete(pool)


def misfits(module: wasmtime.Module, role: str) -> str:
    """Say in one sentence why a module's exports are not those of its role; empty when they are.

    Roles: `tona-core-1` and `wasi-1` of a program, `library` of what it is linked with.
    """
    exports = {one.name: one.type for one in module.exports}
    if role == LINKED_ROLE:
        return "" if exports else "the module exports nothing that a program could use"
    if not isinstance(exports.get(abi.MEMORY), wasmtime.MemoryType):
        return f"the module exports no memory named {abi.MEMORY!r}"
    if role == WASI:
        kind = exports.get(START)
        started = isinstance(kind, wasmtime.FuncType) and not kind.params and not kind.results
        return "" if started else f"the module exports no {START!r}, as a WASI command does"
    return next(filter(None, map(partial(_misfit, exports), abi.PARAMETERS)), "")


def _misfit(exports: dict[str, Any], name: str) -> str:
    """Say what is wrong with one function of the guest ABI; empty: nothing."""
    kind, parameters = exports.get(name), abi.PARAMETERS[name]
    if kind is None and name in abi.OPTIONAL:
        return ""
    if not isinstance(kind, wasmtime.FuncType):
        return f"the module exports no function {name!r}; see {abi.NAME}"
    taken = [str(one) for one in kind.params]
    given = [str(one) for one in kind.results]
    if taken != ["i32"] * parameters or given != ["i32"]:
        return f"{name!r} must take {parameters} i32 and return one; see {abi.NAME}"
    return ""


class Store(wasmtime.Store):
    """A store that knows where it is."""

    def __init__(self, on: wasmtime.Engine) -> None:
        super().__init__(on)
        self.address: int = ctypes.addressof(self.ptr().contents)
        self.context: int = ctypes.addressof(self._context().contents)

    def limit(self, memory_bytes: int, modules: int) -> None:
        """Bound what a guest of so many modules may take; they have one memory."""
        tables = min(MAX_GUEST_TABLES, MAX_TABLES * modules)
        _limit(self.address, memory_bytes, MAX_TABLE_ELEMENTS, modules, tables, 1)


def instantiate(pre: wasmtime.InstancePre, store: Store) -> bindings.wasmtime_instance_t:
    """Make an instance in a store. Raises wasmtime.Trap and wasmtime.WasmtimeError."""
    instance, trap = bindings.wasmtime_instance_t(), _TrapPointer()
    error = _instantiate(pre.ptr(), store.context, ctypes.byref(instance), ctypes.byref(trap))
    if error or trap:
        _raise(error, trap)
    return instance


def begin(
    linker: wasmtime.Linker, module: wasmtime.Module, store: Store
) -> bindings.wasmtime_instance_t:
    """Make the first instance of a module, where nothing is prepared for more; raises as above."""
    instance, trap = bindings.wasmtime_instance_t(), _TrapPointer()
    error = _begin(
        *(linker.ptr(), store.context, module.ptr()), ctypes.byref(instance), ctypes.byref(trap)
    )
    if error or trap:
        _raise(error, trap)
    return instance


def _raise(error: int | None, trap: Any) -> None:
    if error:
        pointer = ctypes.cast(error, ctypes.POINTER(bindings.wasmtime_error_t))
        raise wasmtime.WasmtimeError._from_ptr(pointer)
    raise wasmtime.Trap._from_ptr(trap)


class Guest:
    """One instance in a store of its own, called through the C interface.

    The package's own `Func` looks the function's type up at every call; types are checked once,
    when the module is compiled, so a call costs 4 us instead of 40.
    """

    def __init__(self, store: Store, instance: bindings.wasmtime_instance_t) -> None:
        self._store = store
        self._instance = ctypes.byref(instance)
        self._context = store.context
        self._memory = self._export(abi.MEMORY)
        self.room: int = _memory_data(self._context, self._memory)
        """Where its memory lies as long as it lives: in the pool nothing has to move to grow."""

    def _export(self, name: str) -> Any:
        """Return the address of an export's handle. Raises KeyError."""
        item = bindings.wasmtime_extern_t()
        text = name.encode()
        if not _export_get(self._context, self._instance, text, len(text), ctypes.byref(item)):
            raise KeyError(name)
        return ctypes.byref(item, _OF)

    def has(self, name: str) -> bool:
        """Whether the guest exports this name."""
        try:
            self._export(name)
        except KeyError:
            return False
        return True

    def call(self, name: str, *arguments: int) -> int:
        """Call a function of the ABI. Raises wasmtime.Trap or wasmtime.WasmtimeError."""
        values, trap = _Values(), _TrapPointer()
        _ARGUMENTS[len(arguments)].pack_into(values, 0, *[one & _I32 for one in arguments])
        error = _call(self._context, self._export(name), values, _VALUES, ctypes.byref(trap))
        if error or trap:
            _raise(error, trap)
        result: int = _RESULT.unpack_from(values)[0]
        return result

    def memory(self) -> memoryview:
        """Return the guest's memory as it is now; a call may grow it."""
        size = _memory_size(self._context, self._memory)
        found: memoryview = _view(self.room, size, _WRITABLE)
        return found


def give_back(room: int) -> None:
    """Let the kernel have what is kept of a guest's memory for the next one, that of nobody now.

    All of it is zero since its guest has gone, and is zero when it is looked for again.
    """
    _madvise(room + HELD_BYTES, KEPT_BYTES - HELD_BYTES, _DONTNEED)


def define(
    linker: wasmtime.Linker,
    module: str,
    name: str,
    kind: wasmtime.FuncType,
    act: Callable[[Any], None],
) -> Any:
    """Define a host function; return what must live as long as the linker.

    `act` takes the raw values, the arguments first, and puts the result into the first one. The
    package's own `define_func` looks types up at every call, which takes ten times as long.
    """

    def call(_env: Any, _caller: Any, values: Any, _count: int) -> int:
        try:
            act(values)
        except BaseException:  # noqa: BLE001 - C cannot raise, and half a host would hang its calls
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)
        return 0

    callback = bindings.wasmtime_func_unchecked_callback_t(call)
    where, what = module.encode(), name.encode()
    error = bindings.wasmtime_linker_define_func_unchecked(
        linker.ptr(), where, len(where), what, len(what), kind.ptr(), callback, None, _NO_FINALIZER
    )
    if error:
        raise wasmtime.WasmtimeError._from_ptr(error)
    return callback


def new_stopper(stopped: Callable[[], bool]) -> tuple[Any, Any]:
    """Return the callback that every store asks at a new epoch, and a finalizer that does nothing.

    Keep the first alive as long as any store: it stops the guest of whose thread `stopped` is true.
    """
    types = bindings._wasmtime_store_epoch_deadline_callback.argtypes

    def ask(_context: Any, _env: Any, delta: Any, kind: Any) -> int:
        if stopped():
            error = bindings.wasmtime_error_new(b"stopped")
            return ctypes.cast(error, ctypes.c_void_p).value or 0
        delta[0] = 1
        kind[0] = 0
        return 0

    return types[1](ask), types[3]()


def watch(store: wasmtime.Store, stopper: tuple[Any, Any]) -> None:
    """Let an epoch reach this store; one that passes before its guest begins only asks in vain."""
    store.set_epoch_deadline(1)
    bindings.wasmtime_store_epoch_deadline_callback(store.ptr(), stopper[0], None, stopper[1])
