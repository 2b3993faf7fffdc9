"""Tensors packed for a way that is slower than a processor: deflate (RFC 1951) in zlib's format.

Only what a message may carry at all is packed, so that what is unpacked has the same bound: a peer
cannot make us hold more than `INLINE_MAX_BYTES` for one value, whatever it sends.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import structs

from protocols.errors import MalformedFrame
from protocols.manifest import tensor_bytes
from protocols.messages.invocation import INLINE_MAX_BYTES, Tensor, Value

DEFLATE: Final = "deflate"
LEAST_BYTES: Final = 128
"""A smaller value is not worth the try."""
WORTH: Final = 0.9
"""Packed it has to take at most this share."""
LEVEL: Final = 1


def pack(value: Tensor) -> Tensor:
    """Return a dense tensor packed, or as it is where that saves less than a tenth."""
    size = len(value.data)
    if value.encoding or size < LEAST_BYTES:
        return value
    import zlib  # noqa: PLC0415 - a node packs nothing until it has a slow way

    data = zlib.compress(value.data, LEVEL)
    if len(data) > WORTH * size:
        return value
    return structs.replace(value, data=data, encoding=DEFLATE)


def unpack(value: Tensor) -> Tensor:
    """Return a tensor dense. Raises MalformedFrame when it is not what type and shape say."""
    if not value.encoding:
        return value
    if value.encoding != DEFLATE:
        raise MalformedFrame(f"a tensor is packed as {value.encoding[:16]!r}, known is {DEFLATE}")
    if -1 in value.shape:
        raise MalformedFrame("a packed tensor has no length")
    size = tensor_bytes(value.dtype, value.shape)
    if size > INLINE_MAX_BYTES:
        raise MalformedFrame(f"a packed tensor of {size} bytes, the bound is {INLINE_MAX_BYTES}")
    import zlib  # noqa: PLC0415 - as above

    opened = zlib.decompressobj()
    try:
        # One byte more than there may be tells a longer one without unpacking the rest.
        data = opened.decompress(value.data, size + 1)
    except zlib.error as error:
        raise MalformedFrame(f"a packed tensor cannot be unpacked: {error}") from None
    if len(data) != size or not opened.eof or opened.unused_data:
        raise MalformedFrame(f"a packed tensor does not unpack to the {size} bytes of its shape")
    return structs.replace(value, data=data, encoding="")


def unpack_all(values: dict[str, Value]) -> dict[str, Value]:
    """Return values with every tensor dense: the same map when all are. Raises MalformedFrame."""
    for value in values.values():
        if type(value) is Tensor and value.encoding:
            break
    else:
        return values
    return {
        name: unpack(value) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def pack_all(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return values with every tensor packed that is worth it."""
    return {
        name: pack(value) if isinstance(value, Tensor) else value for name, value in values.items()
    }
