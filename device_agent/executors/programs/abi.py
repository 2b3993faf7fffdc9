"""The guest ABI `tona-core-1`: what a core Wasm module exports to be a task.

A module imports nothing and exports

    memory
    tona_alloc(len: i32) -> i32
        `len` bytes of the guest's memory, 16-byte aligned; 0 when there is none.
    tona_run(inputs: i32, n_inputs: i32, outputs: i32, n_outputs: i32) -> i32
        Run once; 0 when it went well, otherwise an error code of the guest's own.
    tona_error() -> i32                                        (optional)
        After an error: the address of a sentence, UTF-8, ended by a zero byte.

`inputs` and `outputs` are arrays of port descriptors of 48 bytes, little-endian:

    u32 data         address of the dense tensor, row-major
    u32 size_bytes   its length
    u32 dtype        number of ONNX `TensorProto.DataType` (1 float32, 2 uint8, 7 int64, ...)
    u32 rank         at most 8
    u32 dims[8]      the rest is 0

Inputs and outputs stand in the order of the manifest; a constant is the value of the input port it
names. The host asks `tona_alloc` once for one block, writes the descriptors and the inputs into it
(each input 16-byte aligned), and owns it: a guest never frees it. The output descriptors come
filled with the manifest's dtype, rank and dims (an axis of any length as 0xffffffff) and data and
size 0; the guest sets data, size_bytes and the dims. Data may lie anywhere in the guest's memory,
inputs included. Every invocation gets an instance of its own, so nothing has to be given back and
nothing is remembered. The host checks every number that the guest wrote.
"""

from __future__ import annotations

import struct
from typing import Final

NAME: Final = "tona-core-1"
PORT: Final = struct.Struct("<12I")
MAX_RANK: Final = 8
ALIGN_BYTES: Final = 16
ANY_LENGTH: Final = 0xFFFFFFFF
ERROR_MAX_BYTES: Final = 512

MEMORY: Final = "memory"
ALLOC: Final = "tona_alloc"
RUN: Final = "tona_run"
ERROR: Final = "tona_error"
PARAMETERS: Final = {ALLOC: 1, RUN: 4, ERROR: 0}
"""How many i32 each function takes; each returns one i32."""
OPTIONAL: Final = frozenset({ERROR})

ITEM_BYTES: Final = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
"""Bytes of an element by its dtype number."""


def align(size: int) -> int:
    """Round up to the next aligned address."""
    return (size + ALIGN_BYTES - 1) & -ALIGN_BYTES


def tensor_bytes(dtype: int, shape: tuple[int, ...]) -> int:
    """Return how many bytes a dense tensor takes."""
    size = ITEM_BYTES[dtype]
    for axis in shape:
        size *= axis
    return size


def describe(data: int, size: int, dtype: int, shape: tuple[int, ...]) -> bytes:
    """Encode a port descriptor; -1 in the shape is any length."""
    dims = [ANY_LENGTH if axis < 0 else axis for axis in shape]
    return PORT.pack(data, size, dtype, len(dims), *dims, *(0,) * (MAX_RANK - len(dims)))
