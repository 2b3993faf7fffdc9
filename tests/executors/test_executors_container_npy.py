"""Tensors as `.npy` files: what NumPy writes is read, what we write NumPy reads."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.executors.process import PROGRAMS
from protocols.manifest import ITEM_BYTES, ONNX_DTYPE_NUMBER, Dtype

sys.path.append(str(PROGRAMS))

import container_call
import container_npy as npy

SHAPES = st.lists(st.integers(0, 6), max_size=8).map(tuple)


def saved(array: object) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


@given(st.sampled_from(Dtype), SHAPES)
def test_both_ways_with_numpy(dtype: Dtype, shape: tuple[int, ...]) -> None:
    number = ONNX_DTYPE_NUMBER[dtype]
    array = np.zeros(shape, dtype.value)
    theirs = saved(array)
    assert npy.parse(theirs) == (number, shape, len(theirs) - array.nbytes)
    ours = npy.header(number, shape)
    assert len(ours) % 64 == 0
    read = np.load(io.BytesIO(ours + array.tobytes()))
    assert (read.dtype, read.shape) == (array.dtype, shape)
    assert npy.parse(ours) == (number, shape, len(ours))


def test_the_tables_are_the_manifests() -> None:
    named = {dtype.value: number for dtype, number in ONNX_DTYPE_NUMBER.items()}
    assert named == {name: number for number, name in npy.DTYPE.items()}
    sizes = {ONNX_DTYPE_NUMBER[dtype]: size for dtype, size in ITEM_BYTES.items()}
    assert sizes == container_call.ITEM_BYTES


def raw(text: str) -> bytes:
    return npy.MAGIC + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "its first bytes differ"),
        (b"PNG", "its first bytes differ"),
        (b"\x93NUMPY\x03\x00" + bytes(200), "version 3.0: write version 1.0"),
        (npy.MAGIC + b"\xff\xff", "beyond the file or our bound"),
        (saved(np.array([{}], object)), "holds Python objects"),
        (saved(np.zeros((2, 3), "<f4", order="F")), "Fortran order"),
        (saved(np.zeros(2, ">f4")), "big-endian"),
        (saved(np.zeros(2, "<c8")), "'<c8', which tasks do not have"),
        (saved(np.zeros(2, "<U3")), "'<U3', which tasks do not have"),
        (saved(np.zeros(2, [("a", "<f4")])), "without a plain dtype"),
        (raw("{'descr': '<f4', 'shape': (1,)}"), "without 'fortran_order'"),
        (raw("{'descr': '<f4', 'fortran_order': False}"), "without a 'shape'"),
        (raw("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "without a 'shape'"),
        (raw("{'descr': '<f4', 'fortran_order': False, 'shape': (1,,2)}"), "which is none"),
        (raw("{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 20 + ",)}"), "none"),
    ],
)
def test_what_we_do_not_take_is_told(data: bytes, said: str) -> None:
    with pytest.raises(npy.NotNpy, match=said):
        npy.parse(data)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr':'<f4','fortran_order':False,'shape':(2,3)}",
        '{"shape": (2, 3), "fortran_order": False, "descr": "<f4"}\n',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3,), }     \n",
    ],
)
def test_other_writers_are_read_too(text: str) -> None:
    assert npy.parse(raw(text))[:2] == (1, (2, 3))


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_no_fault(data: bytes) -> None:
    for start in (data, npy.MAGIC + data):
        try:
            npy.parse(start)
        except npy.NotNpy:
            continue
