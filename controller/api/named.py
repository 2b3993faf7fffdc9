"""Structs as people read them: every field by its name.

On the wire a message is an array; in JSON for people that would be a riddle. For each such struct
a twin is made, with the same fields but written as an object and without a tag. msgspec converts
between the two by attribute, in C.
"""

import types
import typing
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Union

import msgspec
from msgspec import Struct


@cache
def named(type_: Any) -> Any:
    """Return the twin of a type; a type without structs is its own. Types may nest freely."""
    if isinstance(type_, type) and issubclass(type_, Struct):
        return _twin(type_)
    origin, arguments = typing.get_origin(type_), typing.get_args(type_)
    if not arguments or (isinstance(type_, type) and issubclass(type_, Enum)):
        return type_
    if origin is Annotated:
        return Annotated[(named(arguments[0]), *arguments[1:])]
    inner = tuple(one if one is Ellipsis else named(one) for one in arguments)
    if origin in {Union, types.UnionType}:
        return reduce(or_, inner)
    return origin[inner]


def _twin(struct: type[Struct]) -> type[Struct]:
    fields: list[Any] = []
    hints = typing.get_type_hints(struct, include_extras=True)
    for one in msgspec.structs.fields(struct):
        twin = named(hints[one.name])
        if one.default is not msgspec.NODEFAULT:
            default: Any = msgspec.field(name=one.encode_name, default=one.default)
        elif one.default_factory is not msgspec.NODEFAULT:
            default = msgspec.field(name=one.encode_name, default_factory=one.default_factory)
        else:
            default = msgspec.field(name=one.encode_name)
        fields.append((one.name, twin, default))
    return msgspec.defstruct(
        struct.__name__, fields, frozen=True, kw_only=True, namespace={"__doc__": struct.__doc__}
    )


def to_json(value: Any, type_: Any) -> bytes:
    """Return a value of `type_` as JSON with every field by name.

    Raises msgspec.ValidationError when the value is none of that type.
    """
    return msgspec.json.encode(msgspec.convert(value, named(type_), from_attributes=True))


def from_json(payload: bytes, type_: Any) -> Any:
    """Return the value of `type_` that `to_json` wrote. Raises msgspec.DecodeError."""
    value = msgspec.json.decode(payload, type=named(type_))
    return msgspec.convert(value, type_, from_attributes=True)
