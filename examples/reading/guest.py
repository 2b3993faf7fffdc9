"""Run a guest of the ABI "tona-core-1" in this process: numpy arrays in, numpy arrays out."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import wasmtime

PORT: Final = struct.Struct("<12I")
DTYPES: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("<f4"),
    2: np.dtype("u1"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
}
NUMBERS: Final = {dtype: number for number, dtype in DTYPES.items()}
MAX_RANK: Final = 8
ALIGN_BYTES: Final = 16
MAX_ERROR_BYTES: Final = 512

Array = np.ndarray[Any, np.dtype[Any]]


class GuestError(Exception):
    """The guest refused its input; the text is the guest's own sentence."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Guest:
    """A compiled guest. Each call gets an instance of its own, as under the device agent."""

    def __init__(self, path: Path, memory_bytes: int = 1 << 30) -> None:
        self._engine = wasmtime.Engine()
        self._module = wasmtime.Module(self._engine, path.read_bytes())
        self._memory_bytes = memory_bytes
        self.used_bytes = 0
        """How large the instance of the last call had grown."""

    @property
    def imports(self) -> int:
        """How many imports the module asks for; a guest has none."""
        return len(self._module.imports)

    def __call__(self, inputs: Sequence[Array], n_outputs: int) -> list[Array]:
        """Run once on tensors in manifest order. Raises GuestError, or wasmtime.Trap."""
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=self._memory_bytes)
        exports = wasmtime.Instance(store, self._module, []).exports(store)
        memory: Any = exports["memory"]

        def call(name: str, *arguments: int) -> int:
            function: Any = exports[name]
            return int(function(store, *arguments)) & 0xFFFFFFFF

        def room(size: int) -> int:
            address = call("tona_alloc", max(size, 1))
            if address == 0:
                raise GuestError(-1, f"the guest has no room for {size} bytes")
            return address

        table = room(PORT.size * (len(inputs) + n_outputs))
        for index, array in enumerate(inputs):
            address = room(array.nbytes)
            memory.write(store, np.ascontiguousarray(array).tobytes(), address)
            dims = (*array.shape, *(0,) * (MAX_RANK - array.ndim))
            port = PORT.pack(address, array.nbytes, NUMBERS[array.dtype], array.ndim, *dims)
            memory.write(store, port, table + PORT.size * index)
        outputs = table + PORT.size * len(inputs)
        code = call("tona_run", table, len(inputs), outputs, n_outputs)
        self.used_bytes = int(memory.data_len(store))
        view = memoryview(memory.get_buffer_ptr(store)).cast("B")
        if code:
            at = call("tona_error")
            sentence = bytes(view[at : at + MAX_ERROR_BYTES]).partition(b"\0")[0]
            raise GuestError(code, sentence.decode())
        return [_output(view, outputs + PORT.size * index) for index in range(n_outputs)]


def _output(view: memoryview, at: int) -> Array:
    data, size, number, rank, *dims = PORT.unpack_from(view, at)
    flat = np.frombuffer(view[data : data + size], DTYPES[number])
    return flat.reshape(dims[:rank]).copy()
