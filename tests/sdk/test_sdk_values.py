"""Values of an application and of the wire, with and without numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tona
from protocols.manifest import Dtype
from protocols.messages.invocation import INLINE_MAX_BYTES, Blob, Tensor
from tona import values


def one_way(value: object) -> Tensor:
    (packed,) = values.pack({"x": value})[0].values()
    assert isinstance(packed, Tensor)
    return packed


@pytest.mark.parametrize(
    ("value", "packed"),
    [
        (b"ab", Tensor(Dtype.UINT8, (2,), b"ab")),
        (bytearray(b"ab"), Tensor(Dtype.UINT8, (2,), b"ab")),
        (memoryview(b"abcd")[::2], Tensor(Dtype.UINT8, (2,), b"ac")),
        ("ü", Tensor(Dtype.UINT8, (2,), b"\xc3\xbc")),
        (tona.Tensor(Dtype.INT16, (1, 2), b"abcd"), Tensor(Dtype.INT16, (1, 2), b"abcd")),
        (Tensor(Dtype.INT16, (2,), b"abcd"), Tensor(Dtype.INT16, (2,), b"abcd")),
        (np.int32(-2), Tensor(Dtype.INT32, (), b"\xfe\xff\xff\xff")),
        (np.array([[1, 2]], ">u2"), Tensor(Dtype.UINT16, (1, 2), b"\x01\0\x02\0")),
        (np.array([[1, 2], [3, 4]], "u1").T, Tensor(Dtype.UINT8, (2, 2), b"\x01\x03\x02\x04")),
    ],
)
def test_a_value_is_packed_as_dense_little_endian_rows(value: object, packed: Tensor) -> None:
    assert one_way(value) == packed


@pytest.mark.parametrize("dtype", list(Dtype))
def test_every_element_type_comes_back(dtype: Dtype) -> None:
    array = np.array([[0, 1], [1, 0]], dtype.value)
    packed = one_way(array)
    back = values.unpack(packed.dtype, packed.shape, packed.data)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    with pytest.raises(ValueError, match="read-only"):
        back[0, 0] = 1


def test_without_numpy_there_are_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "np", None)
    value = tona.Tensor(Dtype.FLOAT32, (1,), b"1234")
    packed = one_way(value)
    assert values.unpack(packed.dtype, packed.shape, packed.data) == value
    assert tona.Result({"y": value}).data("y") == b"1234"
    with pytest.raises(tona.BadInput, match="is of type ndarray"):
        values.pack({"x": np.zeros(1)})


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"x": [1]}, "input 'x' is of type list: give bytes, text, a numpy array"),
        ({"x": np.array(["a"])}, "input 'x' has elements of type <U1: give one of float32"),
        ({"x": np.array([1j])}, "elements of type complex128"),
        ({"a b": b""}, "'a b' cannot name an input"),
        ({"x": tona.Tensor(Dtype.INT16, (2,), b"a")}, r"int16 \[2\] takes 4 bytes, 1 were given"),
    ],
)
def test_what_cannot_be_sent_is_said_so(inputs: dict[str, object], text: str) -> None:
    with pytest.raises(tona.BadInput, match=text):
        values.pack(inputs)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 200_000)))
def test_what_stays_inline_always_fits_a_message(sizes: dict[str, int]) -> None:
    packed, contents = values.pack({name: bytes(size) for name, size in sizes.items()})
    inline = [len(one.data) for one in packed.values() if isinstance(one, Tensor)]
    assert sum(inline) <= values.INLINE_TOTAL_MAX_BYTES
    assert all(size <= INLINE_MAX_BYTES for size in inline)
    stored = {one.digest: one.size_bytes for one in packed.values() if isinstance(one, Blob)}
    assert {digest: len(content) for digest, content in contents.items()} == stored
    if sum(sizes.values()) <= INLINE_MAX_BYTES:
        assert not stored
    assert values.is_large({name: bytes(size) for name, size in sizes.items()}) == any(
        size > INLINE_MAX_BYTES for size in sizes.values()
    )


def test_an_array_that_is_large_is_not_copied_when_it_is_dense() -> None:
    array = np.arange(100_000, dtype=np.float32)
    packed, contents = values.pack({"x": array})
    (content,) = contents.values()
    assert isinstance(content, memoryview)
    assert np.shares_memory(np.frombuffer(content, np.float32), array)
    assert isinstance(packed["x"], Blob)
    _, strided = values.pack({"x": array[::2]})
    assert bytes(*strided.values()) == array[::2].tobytes()


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((1,) * 9, np.uint8),
        np.zeros((0, 2**31), np.uint8),
        tona.Tensor(Dtype.UINT8, (-1, -1), b"a"),
    ],
)
def test_a_shape_that_nodes_would_drop_is_refused_here(value: object) -> None:
    with pytest.raises(tona.BadInput, match="at most 8 axes from 0 to 2147483647"):
        values.pack({"x": value})


def test_half_a_character_is_no_text() -> None:
    with pytest.raises(tona.BadInput, match="lone surrogate"):
        values.pack({"x": "\ud800"})
