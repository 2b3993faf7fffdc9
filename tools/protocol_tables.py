"""Write the tables of docs/protocol.md anew, between their markers, from the protocol itself.

With `--check` nothing is written, and the exit code says whether the page is stale.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import msgspec
from msgspec.inspect import Field, StructType, type_info

from protocols import base, codec, manifest, sla, topics
from protocols.manifest import ITEM_BYTES, Dtype
from protocols.messages import (
    Body,
    calibration,
    hierarchy,
    host,
    invocation,
    job,
    mobility,
    presence,
    profile,
    quality,
    sense,
    task,
)

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "protocol.md"
MODULES: Final = (
    presence,
    sense,
    task,
    quality,
    calibration,
    profile,
    mobility,
    invocation,
    job,
    hierarchy,
    host,
    manifest,
    sla,
)
UNITS: Final = {
    "_mbit_per_s": "Mbit/s",
    "_bytes_per_s": "bytes per second",
    "_ms": "milliseconds",
    "_us": "microseconds",
    "_bytes": "bytes",
    "_percent": "percent",
    "_dbm": "dBm",
    "_db": "dB",
    "_c": "degrees Celsius",
    "_w": "watts",
}
"""By the end of a field's name, the longer ends first."""
COMMON: Final = {
    "accelerators": "One for each of the machine.",
    "anchor": "Name of the TA.",
    "attempt": "As in Invoke.",
    "bounds": "All of them hold.",
    "correlation": "MQTT 5 correlation data of the client, returned with the answer.",
    "dtype": "Type of the items.",
    "epoch": "Of the assignment.",
    "generation": "Version of the specification.",
    "call": "Names the call.",
    "cell": "Name of the cell.",
    "failure": "As in Result.",
    "inputs": "What it takes.",
    "job": "Identifier of the job.",
    "handover": "Names the handover.",
    "incarnation": "Of the connection.",
    "key": "Which one of its kind.",
    "kind": "Which sort.",
    "manifest": "What runs, and within which limits.",
    "node": "Name of the node.",
    "outputs": "What it gives.",
    "plan": "As in Invoke.",
    "priority": "9 is served first.",
    "reason": "Why, for people.",
    "replicas": "Workers of the task on its node that may run side by side.",
    "request": "As in Invoke.",
    "scheduler": "Name of the TS.",
    "scheduler_epoch": "Grows with every start of that TS.",
    "service": "Name of the service.",
    "shape": "Length of each axis, the slowest first; -1 is any length.",
    "state": "Where it stands.",
    "step": "Name of the step within its service.",
    "task": "Name of the task, unique in the cell.",
}
"""What a field of this name means wherever its own struct says nothing else."""
_HEAD: Final = "| # | field | type | default | meaning |\n|---|---|---|---|---|\n"


def render(page: str) -> str:
    """Return the page with every generated section made anew."""
    return re.sub(
        r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)",
        lambda found: found[1] + _section(found[2]) + found[3],
        page,
        flags=re.DOTALL,
    )


def _section(name: str) -> str:
    if name == "topics":
        return _topics()
    if name == "frame":
        return _fields(codec.Framed[Body], 0)
    if name == "enums":
        return "\n".join(_enum(one) for one in _enums())
    module = next(one for one in MODULES if one.__name__.endswith(f".{name}"))
    return "\n".join(_struct(one) for one in structs(module))


def structs(module: Any) -> list[type[msgspec.Struct]]:
    """Return the messages of a module, then the parts of messages that it defines."""
    own = [
        one
        for one in vars(module).values()
        if isinstance(one, type)
        and issubclass(one, msgspec.Struct)
        and one.__module__ == module.__name__
        and one in _reachable()
    ]
    return sorted(own, key=lambda one: one not in get_args(Body))


def _reachable() -> set[type]:
    """Return every struct and enum that a frame can hold."""
    found: set[type] = set()
    waiting: list[Any] = [type_info(Body)]
    while waiting:
        info = waiting.pop()
        kind = getattr(info, "cls", None)
        if kind is not None and kind not in found:
            found.add(kind)
            waiting += [one.type for one in getattr(info, "fields", ())]
        waiting += getattr(info, "types", ())
        waiting += [
            inner
            for inner in (getattr(info, f"{name}_type", None) for name in ("item", "key", "value"))
            if inner is not None
        ]
    return found


def _enums() -> list[type[Enum]]:
    return sorted(
        (one for one in _reachable() if issubclass(one, Enum)), key=lambda one: one.__name__
    )


# Topics.


def _topics() -> str:
    lines = [
        "| topic | publishes | subscribes | QoS | a frame has at most |",
        "|---|---|---|---|---|",
    ]
    for (party, channel), rule in topics.TABLE.items():
        name = f"{topics.ROOT}/CELL/{party.value}/{party.value.upper()}/{channel.value}"
        owner = f"the {party.value} itself"
        speaks = [owner] * rule.owner_publishes + [f"any {one.value}" for one in rule.publishers]
        hears = [owner] * rule.owner_subscribes + [f"any {one.value}" for one in rule.subscribers]
        lines.append(
            f"| `{name}` | {', '.join(speaks)} | {', '.join(hears)} | {rule.qos} "
            f"| {rule.max_bytes} bytes |"
        )
    return "\n".join(lines) + "\n"


# Structs.


def _struct(kind: type[msgspec.Struct]) -> str:
    tag = kind.__struct_config__.tag
    said = f"Tag `{tag}`. " if tag else ""
    return f"#### {kind.__name__}\n\n{said}{_line(kind.__doc__)}\n\n{_fields(kind, bool(tag))}"


def _fields(kind: type[msgspec.Struct], first: int) -> str:
    told = dict(_docstrings(kind))
    info = type_info(kind)
    assert isinstance(info, StructType)  # noqa: S101 - what a struct's type is
    rows = (
        f"| {at} | `{one.name}` | {_type(one.type)} | {_default(one)} "
        f"| {_meaning(one.name, told.get(one.name, ''))} |\n"
        for at, one in enumerate(info.fields, first)
    )
    return _HEAD + "".join(rows)


def _docstrings(kind: type) -> Iterator[tuple[str, str]]:
    """Yield the fields of a class that have a docstring."""
    (node,) = ast.parse(inspect.getsource(get_origin(kind) or kind)).body
    assert isinstance(node, ast.ClassDef)  # noqa: S101 - what the source of a class is
    for one, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(one, ast.AnnAssign)
            and isinstance(one.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            yield one.target.id, _line(str(after.value.value))


def _meaning(name: str, told: str) -> str:
    unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
    said = told or COMMON.get(name, "")
    return " ".join(one for one in (said, f"In {unit}." if unit else "") if one)


def _default(one: Field) -> str:
    if one.required:
        return "needed"
    value = one.default if one.default is not msgspec.NODEFAULT else one.default_factory()
    return f"`{msgspec.json.encode(value).decode()}`"


def _type(info: Any) -> str:  # noqa: C901, PLR0911, PLR0912 - one arm for each type
    match info:
        case msgspec.inspect.NoneType():
            return "null"
        case msgspec.inspect.StructType(cls=cls) | msgspec.inspect.EnumType(cls=cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case msgspec.inspect.UnionType(types=types):
            if len(types) == len(get_args(Body)):
                return "any message"
            return " or ".join(_type(one) for one in types)
        case msgspec.inspect.VarTupleType(item_type=item):
            return f"list{_length(info)} of {_type(item)}"
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return f"map{_length(info)} from {_type(key)} to {_type(value)}"
        case msgspec.inspect.LiteralType(values=values):
            return " or ".join(f"`{one}`" for one in values)
        case msgspec.inspect.StrType(pattern=base.NAME_PATTERN):
            return "name"
        case msgspec.inspect.StrType(min_length=1, max_length=64):
            return "label"
        case msgspec.inspect.StrType(pattern=str()):
            return "digest"
        case msgspec.inspect.StrType():
            return f"string{_length(info)}"
        case msgspec.inspect.BytesType():
            return f"bytes{_length(info)}"
        case msgspec.inspect.IntType(ge=0, le=9007199254740992):
            return "count"
        case msgspec.inspect.IntType(ge=None, le=None):
            return "int"
        case msgspec.inspect.IntType(ge=least, le=most):
            return f"int {least} to {most}"
        case msgspec.inspect.FloatType(ge=None, gt=None):
            return "float"
        case msgspec.inspect.FloatType(ge=least, gt=above, le=most):
            low = f"float above {above:.10g}" if least is None else f"float {least:.10g}"
            return low if most is None else f"{low} to {most:.10g}"
        case msgspec.inspect.BoolType():
            return "bool"
    raise TypeError(f"no words for {info}")


def _length(info: Any) -> str:
    least, most = info.min_length, info.max_length
    said = [f"at least {least}"] if least else []
    said += [f"at most {most}"] if most else []
    return f" ({', '.join(said)})" if said else ""


def _enum(kind: type[Enum]) -> str:
    values = ", ".join(
        f"`{one.value}` ({ITEM_BYTES[one]})" if isinstance(one, Dtype) else f"`{one.value}`"
        for one in kind
    )
    told = " In brackets: bytes of one item." if kind is Dtype else ""
    return f"#### {kind.__name__}\n\n{_line(kind.__doc__)}{told}\n\n{values}\n"


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> int:
    """Write the page, or with `--check` only look at it."""
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if old == new:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE.name} is stale: run python tools/protocol_tables.py")
        return 1
    PAGE.write_text(new, encoding="utf-8")
    print(f"{PAGE.name} is written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
