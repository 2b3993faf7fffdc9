"""Pictures made smaller by leaving rows and columns out: plain slicing, no numpy."""

from protocols.manifest import ITEM_BYTES, Dtype, tensor_bytes

Shape = tuple[int, ...]
_PLAIN = 2
_BATCH = 4


def decimate(dtype: Dtype, shape: Shape, data: bytes, step: int) -> tuple[Shape, bytes]:
    """Keep every `step`-th row and column, from the first on, of HxW, HxWxC or NxHxWxC.

    Returns the new shape and bytes. What has another number of axes, or bytes that its shape does
    not tell, stays as it is.
    """
    if step <= 1 or not _PLAIN <= len(shape) <= _BATCH or tensor_bytes(dtype, shape) != len(data):
        return shape, data
    lead = shape[:1] if len(shape) == _BATCH else ()
    height, width, *rest = shape[len(lead) :]
    pixel = ITEM_BYTES[dtype]
    for axis in rest:
        pixel *= axis
    # Without data the axes mean nothing: one may be of any length beside another that is 0.
    row_bytes, pictures = width * pixel, (lead[0] if lead else 1) if data else 0
    rows = [
        _columns(data[start : start + row_bytes], pixel, step)
        for picture in range(pictures)
        for start in range(
            picture * height * row_bytes, (picture + 1) * height * row_bytes, step * row_bytes
        )
    ]
    small = (*lead, -(-height // step), -(-width // step), *rest)
    return small, b"".join(rows)


def _columns(row: bytes, pixel: int, step: int) -> bytes:
    """Keep every `step`-th pixel of a row."""
    if pixel == 1:
        return row[::step]
    count = -(-len(row) // (pixel * step))
    if pixel > count:
        return b"".join(row[at : at + pixel] for at in range(0, len(row), pixel * step))
    kept = bytearray(count * pixel)
    for offset in range(pixel):
        kept[offset::pixel] = row[offset :: pixel * step]
    return bytes(kept)
