"""A user's profile, checked completely: every problem in one run, each with line and field.

msgspec stops at the first problem. So what it names is taken out, or made harmless, and the rest is
checked again, until nothing is left to say.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from firmware_profiles.catalog import document, names
from firmware_profiles.profile import (
    Accelerator,
    AcceleratorKind,
    Limits,
    Match,
    Parse,
    Pci,
    Profile,
    Source,
)

MAX_PROBLEMS: Final = 100
MAX_FILE_BYTES: Final = 256 * 1024
LIVE: Final = ("/sys/", "/proc/")
HERE: Final = "./"

Key = str | int
Trail = tuple[Key, ...]

_HARMLESS: Final[dict[Key, Any]] = {
    "name": "x",
    "title": "x",
    "providers": ["xExecutionProvider"],
    "arch": ["x"],
    "vendor": 0,
    "kind": "gpu",
    "at": ["/sys/x"],
    "path": "/sys/x",
}
"""Stands in for a required field that is missing or wrong, once it has been reported."""
_SHAPES: Final[dict[str, Any]] = {
    "": Profile,
    "accelerator": Accelerator,
    "limits": Limits,
    "match": Match,
    "pci": Pci,
}
"""The struct behind the last name of a trail; every other name is that of sources."""
_AT = re.compile(r" - at `\$?([^`]*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_NAMED = re.compile(r"(unknown|missing required) field `([^`]+)`")
_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNMENT = re.compile(r"^\s*([A-Za-z0-9_.\"'-]+)\s*=")


class _Problem(msgspec.Struct, frozen=True):
    trail: Trail
    text: str


def check(path: Path) -> tuple[Profile | None, list[str]]:
    """Return the file's profile, and its problems as `FILE:LINE: FIELD: what is wrong`."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode("utf-8")
        if len(text) > MAX_FILE_BYTES:
            return None, [f"{path}: larger than {MAX_FILE_BYTES} bytes: this is no profile"]
        written = tomllib.loads(text)
    except OSError as error:
        return None, [f"{path}: cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return None, [f"{path}: is not UTF-8 text"]
    except tomllib.TOMLDecodeError as error:
        return None, [f"{path}: is not TOML: {error}"]
    profile, problems = _check_document(written)
    placed = sorted((_line(text, one.trail), _spell(one.trail), one.text) for one in problems)
    return profile, [f"{path}:{line}: {where}: {what}" for line, where, what in placed]


def _check_document(written: dict[str, Any]) -> tuple[Profile | None, list[_Problem]]:
    problems: list[_Problem] = []
    base = written.pop("base", None)
    if base is not None:
        if base not in names():
            problems.append(_Problem(("base",), f"there is no profile {base!r}{_near(base)}"))
        else:
            below = document(base)
            del below["match"]
            limits = written.get("limits", {})
            if isinstance(limits, dict):
                written["limits"] = below.get("limits", {}) | limits
            written = below | written
    profile: Profile | None = None
    while profile is None and len(problems) < MAX_PROBLEMS:
        try:
            profile = msgspec.convert(written, Profile)
        except msgspec.ValidationError as error:
            problems.append(_take_out(written, str(error)))
    if profile is not None:
        problems.extend(_meaning(profile))
    return profile, problems


def _take_out(written: dict[str, Any], message: str) -> _Problem:
    """Say what msgspec found, and change the document so that it is not found again."""
    place = _AT.search(message)
    trail: Trail = ()
    if place is not None:
        steps = _STEP.findall(place.group(1))
        trail = tuple(name or int(index) for name, index in steps)
        message = message[: place.start()]
    named = _NAMED.search(message)
    if named is not None and named.group(1) == "unknown":
        name = named.group(2)
        del _at(written, trail)[name]
        return _Problem((*trail, name), f"there is no such field{_near_field(trail, name)}")
    if named is not None:
        name = named.group(2)
        _at(written, trail)[name] = _HARMLESS[name]
        return _Problem((*trail, name), "has to be given")
    _replace(written, trail)
    return _Problem(trail, _plain(message, trail))


def _plain(message: str, trail: Trail) -> str:
    if message.startswith("Invalid enum value"):
        choices: Any = Parse if trail[-1] == "parse" else AcceleratorKind
        return f"{message.removeprefix('Invalid enum value ')} is none of {', '.join(choices)}"
    if "matching regex" in message:
        return "has to be 1 to 64 letters, digits, dots, dashes or underscores, no blank"
    return message.replace("`", "").replace("Expected", "expected")


def _replace(written: dict[str, Any], trail: Trail) -> None:
    parent = _at(written, trail[:-1])
    key = trail[-1]
    if isinstance(parent, list):
        parent.pop(int(key))
        if not parent:
            _replace(written, trail[:-1])
    elif key in _HARMLESS and not (key == "kind" and "vendor" in parent):
        parent[key] = _HARMLESS[key]
    else:
        del parent[key]


def _at(written: Any, trail: Trail) -> Any:
    for key in trail:
        written = written[key]
    return written


def _meaning(profile: Profile) -> Iterator[_Problem]:
    """Check what types cannot say."""
    for index, provider in enumerate(profile.providers):
        yield from _provider(("providers", index), provider)
    if profile.interpreter and not profile.interpreter.startswith("/"):
        yield _Problem(("interpreter",), "has to be an absolute path such as /usr/bin/python3")
    for name in ("temperature", "throttled", "power", "battery"):
        for index, source in enumerate(getattr(profile, name)):
            yield from _source((name, index), source, inside=False)
    for index, accelerator in enumerate(profile.accelerators):
        yield from _accelerator(("accelerator", index), accelerator)


def _accelerator(trail: Trail, one: Accelerator) -> Iterator[_Problem]:
    for index, provider in enumerate(one.providers):
        yield from _provider((*trail, "providers", index), provider)
    for index, pattern in enumerate(one.at):
        yield from _path((*trail, "at", index), pattern, inside=False)
    if not one.at:
        yield _Problem((*trail, "at"), "has to name at least one folder")
    if one.nvml and one.kind != "gpu":
        yield _Problem((*trail, "nvml"), "only a gpu is read through NVML")
    for name in ("load", "memory_used", "memory_total", "temperature", "power"):
        for index, source in enumerate(getattr(one, name)):
            yield from _source((*trail, name, index), source, inside=True)


def _source(trail: Trail, source: Source, *, inside: bool) -> Iterator[_Problem]:
    yield from _path((*trail, "path"), source.path, inside=inside)
    if not abs(source.scale) > 0 or abs(source.scale) == float("inf"):
        yield _Problem((*trail, "scale"), "has to be a number other than 0")
    if source.parse is Parse.RAILS and not source.rails:
        yield _Problem((*trail, "rails"), "has to name the labels to add up")
    if source.parse is Parse.MASK and not source.mask:
        yield _Problem((*trail, "mask"), "has to have a bit set")
    for name in source.where:
        if name.startswith("/") or ".." in name.split("/"):
            yield _Problem((*trail, "where"), f"{name} has to be the name of a file beside path")


def _path(trail: Trail, path: str, *, inside: bool) -> Iterator[_Problem]:
    if ".." in path.split("/"):
        yield _Problem(trail, "may not go up with '..'")
    elif not path.startswith((*LIVE, HERE) if inside else LIVE):
        ending = ", or with ./ for the folder of `at`" if inside else ""
        yield _Problem(trail, f"has to start with /sys/ or /proc/{ending}")


def _provider(trail: Trail, name: str) -> Iterator[_Problem]:
    if not name.endswith("ExecutionProvider"):
        yield _Problem(trail, f"{name} is no ONNX execution provider: their names end so")


def _near_field(trail: Trail, name: str) -> str:
    last = next((key for key in reversed(trail) if isinstance(key, str)), "")
    shape: Any = _SHAPES.get(last, Source)
    return _near(name, [one.encode_name for one in msgspec.structs.fields(shape)])


def _near(name: object, known: list[str] | None = None) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only when there is something to suggest

    close = get_close_matches(str(name), known if known is not None else list(names()), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _spell(trail: Trail) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in trail)
    return text.lstrip(".") or "the file"


def _line(text: str, trail: Trail) -> int:
    """Return the line of the field, or of the nearest thing around it that has a line."""
    best, deepest = 1, 0
    table: Trail = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        here: Trail = ()
        if header := _HEADER.match(line):
            table = tuple(header.group(2).split("."))
            if header.group(1) == "[[":
                table = (*table, counts.get(header.group(2), 0))
                counts[header.group(2)] = int(table[-1]) + 1
            here = table
        elif assignment := _ASSIGNMENT.match(line):
            here = (*table, *assignment.group(1).split("."))
        if len(here) > deepest and trail[: len(here)] == here:
            best, deepest = number, len(here)
    return best
