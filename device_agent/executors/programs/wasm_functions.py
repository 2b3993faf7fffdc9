"""Host functions: what a guest may import from the module `tona`, by its manifest's leave alone.

Addresses and lengths are i32 of the guest's own memory and bounds-checked; nothing here traps.

    log        log(level, address, length) -> 0, or -1
                   level 0 debug, 1 info, 2 warning, 3 error; one line of UTF-8 for the node's log
    clock      clock_ms() -> i64                 since 1970, as the node knows it
               monotonic_us() -> i64             since some moment, never backwards
    random     random(address, length) -> 0, or -1
    memory     memory_get(key, key_length, address, capacity) -> i32
                   length of the value, or -1 when there is none, or -2 for a bad address or key;
                   nothing is written when it is longer than the capacity
               memory_set(key, key_length, address, length) -> 0, or -2
               memory_delete(key, key_length) -> 0, or -2
    infer      has the model of another task run; `wasm_infer` describes it

What a call sets it reads back at once; it is kept when the call ends well, all of it or nothing.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import wasmtime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from device_agent.executors.programs import wasm_engine
    from device_agent.executors.programs.memory import MAX_KEY_BYTES, Changes, Memory
    from device_agent.executors.programs.wasm_engine import Guest
    from device_agent.executors.programs.wasm_infer import Models
else:
    import wasm_engine
    from memory import MAX_KEY_BYTES

MODULE: Final = "tona"
LOG_LINES: Final = 16
"""Of one call; what comes after them is dropped."""
LOG_LINE_BYTES: Final = 512
RANDOM_BYTES: Final = 64 * 1024
"""Of one request for them."""
MISSING: Final = -1
REFUSED: Final = -2
_LEVELS: Final = 4
_SIZE: Final = 0xFFFFFFFF


class Call:
    """What the host functions of one invocation work on."""

    def __init__(self, guest: Guest, memory: Memory | None, models: Models | None = None) -> None:
        self._guest = guest
        self._memory = memory
        self.models = models
        self.changes: Changes = {}
        self._changed_bytes = 0
        self.log: list[tuple[int, str]] = []

    def _view(self, address: int, length: int) -> memoryview | None:
        """Look at the guest's memory; None for what lies outside."""
        address, length = address & _SIZE, length & _SIZE
        memory = self._guest.memory()
        return memory[address : address + length] if address + length <= memory.nbytes else None

    def write_log(self, level: int, address: int, length: int) -> int:
        """Keep a line for the node's log."""
        view = self._view(address, min(length & _SIZE, LOG_LINE_BYTES))
        if view is None:
            return MISSING
        if len(self.log) < LOG_LINES:
            line = bytes(view).decode("utf-8", "replace").replace("\n", " ")
            self.log.append((min(level & _SIZE, _LEVELS - 1), line))
        return 0

    def fill_random(self, address: int, length: int) -> int:
        """Fill memory with random bytes of the system."""
        view = self._view(address, length)
        if view is None or view.nbytes > RANDOM_BYTES:
            return MISSING
        view[:] = os.urandom(view.nbytes)
        return 0

    def _key(self, address: int, length: int) -> bytes | None:
        view = self._view(address, length)
        return bytes(view) if view is not None and 0 < view.nbytes <= MAX_KEY_BYTES else None

    def get(self, key: int, key_length: int, address: int, capacity: int) -> int:
        """Copy a value into the guest's memory."""
        name = self._key(key, key_length)
        if name is None or self._memory is None:
            return REFUSED
        value = self.changes[name] if name in self.changes else self._memory.get(name)
        if value is None:
            return MISSING
        if len(value) <= capacity & _SIZE:
            view = self._view(address, len(value))
            if view is None:
                return REFUSED
            view[:] = value
        return len(value)

    def set(self, key: int, key_length: int, address: int, length: int) -> int:
        """Set a value, to be kept when the call ends well."""
        name, view = self._key(key, key_length), self._view(address, length)
        if name is None or view is None or self._memory is None:
            return REFUSED
        # What one call sets may not be more than the memory holds, whatever it deletes besides.
        grown = self._changed_bytes + len(name) + view.nbytes
        if grown > self._memory.limit_bytes:
            return REFUSED
        self._changed_bytes = grown
        self.changes[name] = bytes(view)
        return 0

    def delete(self, key: int, key_length: int) -> int:
        """Delete a value, to be gone when the call ends well."""
        name = self._key(key, key_length)
        if name is None or self._memory is None:
            return REFUSED
        grown = self._changed_bytes + len(name)
        if grown > self._memory.limit_bytes:
            return REFUSED
        self._changed_bytes = grown
        self.changes[name] = None
        return 0

    def infer(self, *arguments: int) -> int:
        """Have the model of another task run."""
        return REFUSED if self.models is None else self.models.infer(*arguments)


class _Current(threading.local):
    """The call that this thread runs."""

    call: Call | None = None


class Functions:
    """The host functions of one process; a call runs in one thread, which is how they know it."""

    def __init__(self) -> None:
        self._current = _Current()
        self._callbacks: list[Any] = []
        """Kept alive, for linkers know their addresses."""

    def enter(self, call: Call | None) -> None:
        """Run the host functions of this thread for a call."""
        self._current.call = call

    def define(self, linker: wasmtime.Linker, granted: Collection[str]) -> None:
        """Define the functions of these groups."""
        for name, (group, parameters, act) in _FUNCTIONS.items():
            if group in granted:
                self._define(linker, name, parameters, partial(self._act, act, parameters))
        for name, tell in _CLOCKS.items() if "clock" in granted else ():
            self._define(linker, name, None, tell)

    def _define(
        self, linker: wasmtime.Linker, name: str, parameters: int | None, act: Callable[[Any], None]
    ) -> None:
        """Define a function of so many i32 that gives one; None: of none that gives an i64."""
        if parameters is None:
            kind = wasmtime.FuncType([], [wasmtime.ValType.i64()])
        else:
            i32 = wasmtime.ValType.i32()
            kind = wasmtime.FuncType([i32] * parameters, [i32])
        self._callbacks.append(wasm_engine.define(linker, MODULE, name, kind, act))

    def _act(self, act: Callable[..., int], parameters: int, values: Any) -> None:
        call = self._current.call
        # A start function runs before there is a call.
        given = [values[at].i32 for at in range(parameters)] if call is not None else ()
        values[0].i32 = act(call, *given) if call is not None else REFUSED


_FUNCTIONS: Final[dict[str, tuple[str, int, Callable[..., int]]]] = {
    "log": ("log", 3, Call.write_log),
    "random": ("random", 2, Call.fill_random),
    "memory_get": ("memory", 4, Call.get),
    "memory_set": ("memory", 4, Call.set),
    "memory_delete": ("memory", 2, Call.delete),
    "infer": ("infer", 6, Call.infer),
}


def _clock_ms(values: Any) -> None:
    values[0].i64 = time.time_ns() // 1_000_000


def _monotonic_us(values: Any) -> None:
    values[0].i64 = time.monotonic_ns() // 1000


PURE: Final = frozenset({"clock"})
"""Groups whose functions know nothing of a call."""
_CLOCKS: Final = {"clock_ms": _clock_ms, "monotonic_us": _monotonic_us}
GROUPS: Final = {name: group for name, (group, _, _) in _FUNCTIONS.items()} | dict.fromkeys(
    _CLOCKS, "clock"
)
"""The group that each function belongs to."""
