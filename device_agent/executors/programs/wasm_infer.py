"""`infer`: a guest has the model of another task run in the middle of its own call.

    infer(name, name_length, inputs, n_inputs, outputs, n_outputs) -> i32

`name` is that of a task which the manifest's `infers` names. `inputs` and `outputs` are arrays of
the port descriptors of `abi`, in the order of that task's manifest, constants left out. An output's
`data` is where the host puts it and `size_bytes` how much there is room for; with a `data` of 0 the
host asks `tona_alloc` for it. Descriptors come back as those of `tona_run`'s inputs. The answer:

     0  every output is in its place
    -1  no such task is named
    -2  a descriptor or an address is wrong, or `tona_alloc` called `infer`
    -3  an output has no room: nothing was written but what each takes
    -4  the model failed, or takes or gives something else
    -5  not now: it is busy or not here, or the time is over; another try may help

A guest that ends with an error, or traps, after a run that failed is answered with that failure.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import wasmtime

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from device_agent.executors.programs import abi
    from device_agent.executors.programs.stream import (
        Header,
        Refusal,
        map_file,
        remove,
        write_value,
    )
    from device_agent.executors.programs.wasm_engine import Guest
    from device_agent.executors.programs.wire import INLINE_MAX_BYTES, MAX_BODY_BYTES

    Ask = Callable[[str, list[Any], list[memoryview]], tuple[Header, memoryview] | None]
    """Has the daemon run a task with these values; None: the guest's own call is over."""
else:
    import abi
    from stream import Refusal, map_file, remove, write_value
    from wire import INLINE_MAX_BYTES, MAX_BODY_BYTES

UNKNOWN: Final = -1
REFUSED: Final = -2
NO_ROOM: Final = -3
FAILED: Final = -4
AGAIN: Final = -5
MAX_PORTS: Final = 16
MAX_NAME_BYTES: Final = 64
_SIZE: Final = 0xFFFFFFFF

Tensor = tuple[int, "tuple[int, ...]", memoryview]
"""Dtype number, shape, bytes."""


class Wrong(Exception):
    """The guest gave what cannot be followed."""


class Models:
    """What `infer` of one invocation works on."""

    def __init__(self, guest: Guest, names: Collection[str], blobs: str, ask: Ask) -> None:
        self._guest = guest
        self._names = names
        self._blobs = blobs
        self._ask = ask
        self._busy = False
        self.failure: list[Any] | None = None
        """Why the last run gave nothing: code, blame, text, whether another try may help."""

    def infer(
        self, name: int, name_length: int, inputs: int, n_inputs: int, outputs: int, n_outputs: int
    ) -> int:
        """Run a task's model with tensors of the guest's memory, and put its outputs there."""
        if self._busy:
            return REFUSED
        self._busy = True
        try:
            at, count = outputs & _SIZE, n_outputs & _SIZE
            self._ports(at, count)
            wanted = self._name(name & _SIZE, name_length & _SIZE)
            if wanted not in self._names:
                return UNKNOWN
            values = self._values(inputs & _SIZE, n_inputs & _SIZE)
            found = self._run(wanted, values)
            return found if isinstance(found, int) else self._place(found, at, count)
        except Wrong:
            return REFUSED
        except Refusal as refusal:
            self.failure = refusal.answer
            return AGAIN
        finally:
            self._busy = False

    def _name(self, at: int, length: int) -> str:
        memory = self._guest.memory()
        if length > MAX_NAME_BYTES or at + length > memory.nbytes:
            raise Wrong
        return bytes(memory[at : at + length]).decode("utf-8", "replace")

    def _ports(self, at: int, count: int) -> list[tuple[int, ...]]:
        """Read an array of descriptors. Raises Wrong."""
        memory = self._guest.memory()
        if count > MAX_PORTS or at + count * abi.PORT.size > memory.nbytes:
            raise Wrong
        return [abi.PORT.unpack_from(memory, at + one * abi.PORT.size) for one in range(count)]

    def _values(self, at: int, count: int) -> list[Tensor]:
        """Return the tensors that the guest describes here. Raises Wrong."""
        values: list[Tensor] = []
        memory = self._guest.memory()
        for data, size, dtype, rank, *dims in self._ports(at, count):
            shape = tuple(dims[:rank])
            if rank > abi.MAX_RANK or dtype not in abi.ITEM_BYTES:
                raise Wrong
            if size != abi.tensor_bytes(dtype, shape) or data + size > memory.nbytes:
                raise Wrong
            values.append((dtype, shape, memory[data : data + size]))
        return values

    def _run(self, name: str, values: list[Tensor]) -> list[Tensor] | int:
        """Return the outputs of a task, or a code. Raises Refusal and Wrong."""
        described: list[Any] = []
        inline: list[memoryview] = []
        with contextlib.ExitStack() as after:
            room = MAX_BODY_BYTES
            for dtype, shape, view in values:
                file = ""
                if view.nbytes > min(room, INLINE_MAX_BYTES):
                    file = write_value(view, self._blobs)
                    after.callback(remove, f"{self._blobs}/{file}")
                else:
                    room -= view.nbytes
                    inline.append(view)
                described.append([dtype, shape, view.nbytes, file])
            answer = self._ask(name, described, inline)
        if answer is None:
            return AGAIN
        header, body = answer
        self.failure = header.get("fail")
        if self.failure is not None:
            return AGAIN if self.failure[3] else FAILED
        return self._read(header["out"], body)

    def _read(self, described: list[list[Any]], body: memoryview) -> list[Tensor]:
        """Return the outputs that the daemon describes. Raises Refusal."""
        found: list[Tensor] = []
        start = 0
        for dtype, shape, size, file in described:
            if file:
                view = map_file(f"{self._blobs}/{file}", size)
            else:
                view = body[start : start + size]
                start += size
            found.append((dtype, tuple(shape), view))
        return found

    def _place(self, found: list[Tensor], at: int, count: int) -> int:
        """Write outputs and their descriptors into the guest's memory. Raises Wrong."""
        if len(found) != count:
            self.failure = None
            return FAILED
        given = [(data, room) for data, room, *_ in self._ports(at, count)]
        fits = all(
            data == 0 or view.nbytes <= room
            for (data, room), (_, _, view) in zip(given, found)  # noqa: B905 - as long as each other
        )
        starts = [
            data if data or not fits else self._take(view.nbytes)
            for (data, _), (_, _, view) in zip(given, found)  # noqa: B905 - as above
        ]
        # Anew: to take memory may have moved it.
        memory = self._guest.memory()
        for start, (_, _, view) in zip(starts, found):  # noqa: B905 - as above
            if start + view.nbytes > memory.nbytes and fits:
                raise Wrong
        ports = b""
        for start, (dtype, shape, view) in zip(starts, found):  # noqa: B905 - as above
            if fits:
                memory[start : start + view.nbytes] = view
            ports += abi.describe(start, view.nbytes, dtype, shape)
        memory[at : at + len(ports)] = ports
        return 0 if fits else NO_ROOM

    def _take(self, size: int) -> int:
        """Have the guest make room. Raises Wrong."""
        if not size:
            return 0
        try:
            start = self._guest.call(abi.ALLOC, size) & _SIZE
        except (wasmtime.Trap, wasmtime.WasmtimeError):
            raise Wrong from None
        if start == 0 or start % abi.ALIGN_BYTES:
            raise Wrong
        return start
