"""Arguments of an operation out of path, query and body, and into them again. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from controller.api.errors import Refused
from controller.api.operation import Operation, Transfer
from protocols.submission import near

_IN_PATH: Final = re.compile(r"\{(\w+)\}")
_AT: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]*)`")
_MISSING: Final = re.compile(r"missing required field `([^`]*)`")


class Request(Struct, frozen=True):
    """What a client sends for an operation."""

    method: str
    path: str
    """With the query; begins with `/v1/`."""
    body: bytes | None
    """JSON, or None."""


def path_names(operation: Operation) -> tuple[str, ...]:
    """Return the arguments that stand in the path."""
    return tuple(_IN_PATH.findall(operation.path))


def takes_body(operation: Operation) -> bool:
    """Whether arguments stand in a JSON body: what changes something says there what it wants."""
    return (
        operation.method == "POST"
        and operation.transfer is Transfer.JSON
        and len(path_names(operation)) < len(operation.arguments.__struct_fields__)
    )


def parse(
    operation: Operation,
    path: Mapping[str, str],
    query: Iterable[tuple[str, str]],
    body: bytes,
) -> Struct:
    """Return the validated arguments of a request. Raises Refused (400), one sentence."""
    given: dict[str, Any] = {}
    for name, value in query:
        if name in given:
            raise Refused(400, f"{name!r} is given twice", name)
        given[name] = value
    if takes_body(operation):
        if given:
            name = next(iter(given))
            raise Refused(400, f"{name!r} belongs into the JSON body, not into the query", name)
        given = _decode(body)
    elif body:
        raise Refused(400, f"{operation.name} takes no body")
    for name in path:
        if name in given:
            raise Refused(400, f"{name!r} stands in the path already", name)
    try:
        # Lax only for texts of path and query: a body has types of its own.
        return msgspec.convert({**given, **path}, operation.arguments, strict=takes_body(operation))
    except msgspec.ValidationError as error:
        raise sentence(operation, str(error)) from None


def build(operation: Operation, arguments: Struct) -> Request:
    """Return the request that `parse` takes apart to these arguments."""
    texts = {
        name: value
        for name, value in msgspec.to_builtins(arguments).items()
        if value is not None and value != ""
    }
    in_path = {name: quote(str(texts.pop(name)), safe="") for name in path_names(operation)}
    path = operation.path.format(**in_path)
    if takes_body(operation):
        return Request(operation.method, path, msgspec.json.encode(texts))
    query = urlencode({name: _text(value) for name, value in texts.items()})
    return Request(operation.method, f"{path}?{query}" if query else path, None)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decode(body: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise Refused(400, "the body is no JSON object")
    return decoded


def sentence(operation: Operation, complaint: str) -> Refused:
    """Turn msgspec's complaint into a sentence that names the argument."""
    known = [one.encode_name for one in msgspec.structs.fields(operation.arguments)]
    if found := _UNKNOWN.search(complaint):
        name = found[1]
        hint = near(name, known) or f"; it takes {', '.join(known) or 'none'}"
        return Refused(400, f"{operation.name} has no argument {name!r}{hint}", name)
    if found := _MISSING.search(complaint):
        return Refused(400, f"{operation.name} needs {found[1]!r}", found[1])
    where = _AT.search(complaint)
    field = where[1] if where else ""
    text = _expected(operation, field) or _AT.sub("", complaint).replace("`", "")
    return Refused(400, f"{field or operation.name}: {text[0].lower()}{text[1:]}", field)


def _expected(operation: Operation, field: str) -> str:
    """Return what may stand in an argument, where its type says so in words or in a list."""
    _, components = msgspec.json.schema_components([operation.arguments])
    own = components[operation.arguments.__name__].get("properties", {}).get(field, {})
    for one in (own, *own.get("anyOf", ())):
        choices = components.get(one.get("$ref", "").rpartition("/")[2], {}).get("enum")
        if choices:
            return f"expected one of {', '.join(choices)}"
        if "pattern" in one and "description" in one:
            return f"expected {one['description']}"
    return ""
