"""Finds weights that an ONNX model keeps in other files, by reading its protobuf.

Such a model could reach files of other tasks, so it is refused. Only the fields on the way to a
tensor are entered; the rest is skipped by its length.
"""

from __future__ import annotations

from typing import Final

_KEY: Final = b"location"
"""Every external tensor names its file under this key."""
_EXTERNAL: Final = 1
_TENSOR: Final = "tensor"

# message -> field number -> message of that field; a tensor is looked at, not entered.
_WAY: Final = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {
        5: _TENSOR,
        6: "graph",
        10: _TENSOR,
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: _TENSOR, 2: _TENSOR},
}
_TENSOR_EXTERNAL_DATA: Final = 13
_TENSOR_DATA_LOCATION: Final = 14


class NotProtobuf(ValueError):
    """The bytes end where a field should go on."""


def has_external_data(model: bytes) -> bool:
    """Whether any tensor of the model lies in another file. Raises NotProtobuf."""
    if _KEY not in model:
        return False
    todo = [("model", memoryview(model))]
    while todo:
        kind, view = todo.pop()
        way = _WAY.get(kind, {})
        for number, value in _fields(view):
            if kind == _TENSOR:
                if number == _TENSOR_EXTERNAL_DATA or (
                    number == _TENSOR_DATA_LOCATION and value == _EXTERNAL
                ):
                    return True
            elif number in way and isinstance(value, memoryview):
                todo.append((way[number], value))
    return False


def _fields(view: memoryview) -> list[tuple[int, int | memoryview]]:
    found: list[tuple[int, int | memoryview]] = []
    at = 0
    end = len(view)
    while at < end:
        tag, at = _varint(view, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(view, at)
            found.append((number, value))
        elif wire_type == 2:  # noqa: PLR2004 - length-delimited, in protobuf's own numbering
            size, at = _varint(view, at)
            found.append((number, view[at : at + size]))
            at += size
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
        else:
            raise NotProtobuf(f"wire type {wire_type}")
        if at > end:
            raise NotProtobuf("a field is cut off")
    return found


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= len(view):
            break
        byte = view[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, at + index + 1
    raise NotProtobuf("a number is cut off")
