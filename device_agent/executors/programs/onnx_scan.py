"""Reads the protobuf of an ONNX model for what must not reach the runtime.

Weights in other files could be files of other tasks. Functions that call functions are expanded
when the model loads, so that 1 kB becomes more nodes than memory holds. Only the fields on the way
to a tensor or a node are entered; the rest is skipped by its length.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

MAX_MODEL_BYTES: Final = (2 << 30) - 1
"""The runtime's own bound."""
MAX_FUNCTIONS: Final = 512
MAX_NODES: Final = 200_000
"""After every function has been expanded; the largest models known have some 20,000."""
_KEY: Final = b"location"
"""Every external tensor names its file under this key."""
_OWN_FORMAT: Final = b"ORTM"
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
_MODEL_FUNCTION: Final = 25
# Where the parts of a name stand: operator, domain, overload; of a function, of a call.
_FUNCTION_NAME: Final = (1, 10, 13)
_NODE_NAME: Final = (4, 7, 8)

_Name = tuple[bytes, ...]


class NotProtobuf(ValueError):
    """The bytes end where a field should go on."""


def misfit(model: bytes) -> str:
    """Say in one sentence why a model must not be loaded; empty when it may.

    Raises NotProtobuf.
    """
    if len(model) > MAX_MODEL_BYTES:
        return f"the model has {len(model)} bytes, {MAX_MODEL_BYTES} at most can be loaded"
    if model[4:8] == _OWN_FORMAT:
        return (
            "the artifact is in ONNX Runtime's own format, which nobody checks: give the ONNX file"
        )
    if _has_external_data(model):
        return "the model keeps weights in other files: save it as one file"
    top = _fields(memoryview(model))
    functions = [value for number, value in top if number == _MODEL_FUNCTION]
    if len(functions) > MAX_FUNCTIONS:
        return f"the model has {len(functions)} functions, {MAX_FUNCTIONS} at most are loaded"
    return _expands([one for one in functions if isinstance(one, memoryview)], model)


def _expands(functions: list[memoryview], model: bytes) -> str:
    """Say why the functions of a model cannot be expanded; empty when they can."""
    if not functions:
        return ""
    bodies = {_name(one, _FUNCTION_NAME): _calls([("function", one)]) for one in functions}
    sizes: dict[_Name, int] = {}
    under_way: set[_Name] = set()

    def size(calls: Counter[_Name]) -> int:
        return sum(times * (1 + expanded(name)) for name, times in calls.items())

    def expanded(name: _Name) -> int:
        if name not in bodies:
            return 0
        if name in under_way:
            return MAX_NODES
        if name not in sizes:
            under_way.add(name)
            sizes[name] = min(MAX_NODES, size(bodies[name]))
            under_way.remove(name)
        return sizes[name]

    # The functions themselves are in the model too: whatever calls none of them weighs nothing.
    main = [("graph", value) for number, value in _fields(memoryview(model)) if number == 7]  # noqa: PLR2004 - the model's graph
    total = size(_calls([one for one in main if isinstance(one[1], memoryview)]))
    total = max(total, *map(expanded, bodies))
    if total < MAX_NODES:
        return ""
    return f"the functions of the model expand to {MAX_NODES} nodes or more: it cannot be loaded"


def _calls(todo: list[tuple[str, int | memoryview]]) -> Counter[_Name]:
    """Count the nodes under these messages, by what they call."""
    found: Counter[_Name] = Counter()
    while todo:
        kind, view = todo.pop()
        if not isinstance(view, memoryview):
            continue
        way = _WAY.get(kind, {})
        if kind == "node":
            found[_name(view, _NODE_NAME)] += 1
        todo += [(way[number], value) for number, value in _fields(view) if number in way]
    return found


def _name(view: memoryview, numbers: tuple[int, ...]) -> _Name:
    """Return operator, domain and overload; the last one of each counts, as protobuf has it."""
    parts = dict(_fields(view))
    found = [parts.get(number, b"") for number in numbers]
    return tuple(bytes(one) if isinstance(one, memoryview) else b"" for one in found)


def _has_external_data(model: bytes) -> bool:
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
