"""Plain data to typed structs, every problem at once: what a person gets for a wrong document.

msgspec stops at the first problem; a person wants all of them. So structs and containers are walked
here, and msgspec judges each leaf. The struct definitions stay the only description of what is
allowed.
"""

import math
import re
import types
import typing
from collections.abc import Sized
from enum import Enum
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import fields

from controller.namo.lines import Path, locate
from protocols.submission import near
from protocols.topics import NAME_PATTERN

STEP_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$(?!\n)"
"""A task's name within its service: without a dot, for `task.port` names a port."""
DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$(?!\n)"
MAX_PROBLEMS: Final = 20
"""More are counted, not told."""
MAX_PLACE: Final = 200
MAX_TEXT: Final = 600
"""Characters of a problem's place and text that are told."""
MAX_QUOTED: Final = 80
"""Characters of a value or key that are repeated."""

_HALF: Final = re.compile("[\ud800-\udfff]")
_S = TypeVar("_S", bound=Struct)


class _Wrong(Enum):
    """Stands for a value that was not valid and has been told."""

    WRONG = "wrong"


_WRONG: Final = _Wrong.WRONG
_PATTERNS: Final = {
    NAME_PATTERN: "a name: letters, digits, '.', '_' and '-', first a letter or digit, at most 64",
    STEP_PATTERN: "a task's name: letters, digits, '_' and '-', first a letter or digit, up to 48",
    DIGEST_PATTERN: "a digest 'sha256:...'; a file is pushed and replaced by its digest "
    "by 'tona usecase submit'",
}


class Problems:
    """Collects what is wrong with a document: where and what to do."""

    def __init__(self, lines: dict[Path, int]) -> None:
        self._lines = lines
        self._told: list[tuple[int, str]] = []
        self.count = 0

    def add(self, path: Path, text: str) -> None:
        """Note one problem of the field at `path`; `text` is a sentence without its place."""
        self.count += 1
        if not self.full:
            line = locate(self._lines, path)
            where = f"line {line}, " if line is not None else ""
            place = _printable(written(path)[:MAX_PLACE])
            self._told.append((line or 0, f"{where}{place}: {_printable(text[:MAX_TEXT])}"))

    @property
    def full(self) -> bool:
        """Whether one more problem would only be counted."""
        return len(self._told) >= MAX_PROBLEMS

    def sentences(self) -> tuple[str, ...]:
        """Return a sentence for each problem in the order of lines, and one for the untold."""
        told = tuple(text for _, text in sorted(self._told, key=lambda one: one[0]))
        more = self.count - len(told)
        return (*told, f"and {more} more problems") if more else told


def _printable(text: str) -> str:
    """Write control characters as escapes: a document must not move a reader's cursor."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}...")


def is_digest(text: str) -> bool:
    """Whether this is the digest of an artifact, rather than a file's path."""
    return re.match(DIGEST_PATTERN, text) is not None


def written(path: Path) -> str:
    """Write a path the way people do: `services[0].tasks[2].inputs.image`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the document"


def read(kind: type[_S], value: object, path: Path, problems: Problems) -> _S | None:
    """Read a struct from a table; on any problem, each is noted and None returned."""
    found = _struct(kind, value, path, problems)
    return None if found is _WRONG else typing.cast("_S", found)


def _struct(kind: type[Struct], value: object, path: Path, problems: Problems) -> object:
    if not isinstance(value, dict):
        problems.add(path, f"expected a table, got {_what(value)}")
        return _WRONG
    known = {field.encode_name: field for field in fields(kind)}
    for key in value:
        if key not in known:
            hint = "" if problems.full else near(key, known)
            problems.add((*path, key), f"there is no field {_quoted(key)} here{hint}")
    given: dict[str, object] = {}
    for key, field in known.items():
        if key in value:
            given[field.name] = _any(field.type, value[key], (*path, key), problems)
        elif field.required:
            problems.add(path, f"the field {key!r} is missing")
            given[field.name] = _WRONG
    return _WRONG if _WRONG in given.values() else kind(**given)


def _any(annotation: Any, value: object, path: Path, problems: Problems) -> object:
    bare, metas = _strip(_without_none(annotation) if value is not None else annotation)
    origin = typing.get_origin(bare)
    if isinstance(bare, type) and issubclass(bare, Struct):
        return _struct(bare, value, path, problems)
    if origin is tuple and isinstance(value, list):
        if not _sized(value, metas, path, problems):
            return _WRONG
        element = typing.get_args(bare)[0]
        items = [_any(element, item, (*path, at), problems) for at, item in enumerate(value)]
        return _WRONG if _WRONG in items else tuple(items)
    if origin is dict and isinstance(value, dict):
        if not _sized(value, metas, path, problems):
            return _WRONG
        of_key, of_value = typing.get_args(bare)
        keys = [_leaf(of_key, key, (*path, key), problems) for key in value]
        table = {key: _any(of_value, one, (*path, key), problems) for key, one in value.items()}
        return _WRONG if _WRONG in (*keys, *table.values()) else table
    return _leaf(annotation, value, path, problems)


def _leaf(annotation: Any, value: object, path: Path, problems: Problems) -> object:
    bare, metas = _strip(_without_none(annotation))
    unfit = _unfit(value)
    if unfit:
        problems.add(path, unfit)
        return _WRONG
    try:
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        problems.add(path, _sentence(bare, metas, value, str(error)))
        return _WRONG


def _unfit(value: object) -> str:
    """Return why a value cannot be kept as JSON and read again; empty: it can."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, got {value}"
    if isinstance(value, str) and _HALF.search(value):
        return "the text holds half of a surrogate pair, which is no character"
    return ""


def _sentence(bare: Any, metas: tuple[Meta, ...], value: object, error: str) -> str:
    for meta in metas:
        if meta.pattern in _PATTERNS and isinstance(value, str):
            return f"{_quoted(value)} is not {_PATTERNS[meta.pattern]}"
    if isinstance(bare, type) and issubclass(bare, Enum) and isinstance(value, str):
        options = [str(one.value) for one in bare]
        return f"{_quoted(value)} is none of {', '.join(options)}{near(value, options)}"
    wanted = error.partition(" - at ")[0].replace("`", "")
    got = "" if ", got " in wanted else f", got {_what(value)}"
    return wanted[:1].lower() + wanted[1:] + got


def _sized(value: Sized, metas: tuple[Meta, ...], path: Path, problems: Problems) -> bool:
    for meta in metas:
        if meta.max_length is not None and len(value) > meta.max_length:
            problems.add(path, f"{len(value)} entries, at most {meta.max_length} are allowed")
            return False
        if meta.min_length is not None and len(value) < meta.min_length:
            problems.add(path, f"{len(value)} entries, at least {meta.min_length} must be given")
            return False
    return True


def _without_none(annotation: Any) -> Any:
    """Return what a field that may be absent holds when it is there."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    inner = [one for one in typing.get_args(annotation) if one is not types.NoneType]
    return inner[0] if len(inner) == 1 else annotation


def _strip(annotation: Any) -> tuple[Any, tuple[Meta, ...]]:
    if typing.get_origin(annotation) is not typing.Annotated:
        return annotation, ()
    bare, *rest = typing.get_args(annotation)
    return bare, tuple(one for one in rest if isinstance(one, Meta))


def _what(value: object) -> str:
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return repr(value)[:60]
