"""The use case: the document that a person writes, validated completely before anything runs.

TOML or JSON. A document is first read into the structs of `controller.namo.model`, field by field,
then each service is held against what its tasks need of each other, and the use case against
itself (`controller.namo.checks` and the modules that it calls).
Every problem is told with its line and its field.
"""

import json
import re
import tomllib
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from controller.namo.checks import check_service
from controller.namo.checks_whole import check_use_case
from controller.namo.lines import Path, json_lines, toml_lines
from controller.namo.model import MAX_ALTERNATIVES, MAX_SERVICES, Origin, Service, Trigger, UseCase
from controller.namo.reader import Problems, is_digest, read
from protocols.base import Name
from protocols.errors import UserError

MAX_DOCUMENT_BYTES: Final = 1 << 20
FORMATS: Final = ("toml", "json")
_KEY_PART: Final = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY: Final = re.compile(rf"(?<![\w-]){_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART}){{16}}")
"""A dotted key that no use case needs: the time and memory of `tomllib` grow with its square."""


class DocumentError(UserError):
    """A use case is not valid; `problems` holds one sentence for each."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(("the use case is not valid:", *problems)))
        self.problems = problems


class _Head(Struct, frozen=True):
    """The use case without its services, which are read one by one."""

    name: Name
    services: Annotated[list[Any], Meta(min_length=1, max_length=MAX_SERVICES)]
    tenant: Name | None = None
    description: Annotated[str, Meta(max_length=2048)] = ""
    origin: Origin | None = None
    trigger: Trigger | None = None


def parse(document: str, notation: str) -> tuple[UseCase, str]:
    """Read and validate a use case written in `toml` or `json`.

    Returns it, and the document normalised to JSON. Raises DocumentError with every problem.
    """
    tree, lines = _load(document, notation)
    problems = Problems(lines)
    head = read(_Head, tree, (), problems)
    services: list[Service] = []
    raw_services = tree.get("services")
    read_ones = raw_services[:MAX_SERVICES] if isinstance(raw_services, list) else ()
    for at, raw in enumerate(read_ones):
        path = ("services", at)
        service = read(Service, _unfolded(raw, path, problems), path, problems)
        if service is not None:
            check_service(service, path, problems)
            services.append(service)
    use_case = UseCase(
        head.name if head is not None else "",
        tuple(services),
        head.tenant if head is not None else None,
        head.description if head is not None else "",
        head.origin if head is not None else None,
        head.trigger if head is not None else None,
    )
    check_use_case(use_case, problems)
    if problems.count or head is None:
        raise DocumentError(problems.sentences())
    normalised = msgspec.json.encode(tree).decode()
    _check_length(normalised, "it is, as JSON,")
    return use_case, normalised


def _load(document: str, notation: str) -> tuple[dict[str, Any], dict[Path, int]]:
    if notation not in FORMATS:
        raise DocumentError((f"format {notation!r} is not known: give toml or json",))
    _check_length(document, "it is")
    try:
        if notation == "toml":
            if long := _LONG_KEY.search(document):
                line = document.count("\n", 0, long.start()) + 1
                raise DocumentError((f"line {line}: a key of so many parts is no field here",))
            return tomllib.loads(document), toml_lines(document)
        tree = json.loads(document, parse_constant=_no_constant)
        lines = json_lines(document)
    except tomllib.TOMLDecodeError as error:
        raise DocumentError((f"it is no TOML: {error}",)) from None
    except json.JSONDecodeError as error:
        raise DocumentError((f"line {error.lineno}: it is no JSON: {error.msg}",)) from None
    except ValueError as error:
        raise DocumentError((f"it cannot be read: {error}",)) from None
    except RecursionError:
        raise DocumentError(("it is nested too deeply",)) from None
    if not isinstance(tree, dict):
        raise DocumentError(("the document must be a table (a JSON object)",))
    return tree, lines


def _check_length(text: str, what: str) -> None:
    if len(text) > MAX_DOCUMENT_BYTES:
        raise DocumentError((f"{what} longer than {MAX_DOCUMENT_BYTES} characters",))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _unfolded(service: object, path: Path, problems: Problems) -> object:
    """Write the short forms of a service's tasks out; what is of a wrong type stays as it is."""
    full = _unfolded_tasks(service, path, problems)
    if isinstance(full, dict) and isinstance(full.get("alternatives"), list):
        ways = full["alternatives"][:MAX_ALTERNATIVES]
        rest = full["alternatives"][MAX_ALTERNATIVES:]
        full["alternatives"] = [
            _unfolded_tasks(one, (*path, "alternatives", at), problems)
            for at, one in enumerate(ways)
        ] + rest
    return full


def _unfolded_tasks(way: object, path: Path, problems: Problems) -> object:
    if not isinstance(way, dict) or not isinstance(way.get("tasks"), list):
        return dict(way) if isinstance(way, dict) else way
    tasks = [
        _unfolded_task(task, (*path, "tasks", at), problems) for at, task in enumerate(way["tasks"])
    ]
    return {**way, "tasks": tasks}


def _unfolded_task(task: object, path: Path, problems: Problems) -> object:
    if not isinstance(task, dict):
        return task
    full = _unfolded_program(task, path, problems)
    inputs, variants = task.get("inputs"), task.get("variants")
    reference = task.get("reference")
    if isinstance(reference, dict) and isinstance(reference.get("outputs"), dict):
        where = (*path, "reference", "outputs")
        full["reference"] = {
            **reference,
            "outputs": {
                port: _unfolded_artifact(one, (*where, port), problems)
                if isinstance(one, dict)
                else one
                for port, one in reference["outputs"].items()
            },
        }
    if isinstance(inputs, dict):
        full["inputs"] = {
            port: {"from": one} if isinstance(one, str) else one for port, one in inputs.items()
        }
    if isinstance(variants, list):
        full["variants"] = [
            _unfolded_program(one, (*path, "variants", at), problems)
            if isinstance(one, dict)
            else one
            for at, one in enumerate(variants)
        ]
    return full


def _unfolded_program(table: dict[str, Any], path: Path, problems: Problems) -> dict[str, Any]:
    """Write out the artifact of a task or variant, and those of its constants and modules."""
    full = _unfolded_artifact(table, path, problems)
    for field in ("constants", "modules", "samples"):
        named = table.get(field)
        if isinstance(named, dict):
            full[field] = {
                name: _unfolded_artifact(one, (*path, field, name), problems)
                if isinstance(one, dict)
                else one
                for name, one in named.items()
            }
    return full


def _unfolded_artifact(table: dict[str, Any], path: Path, problems: Problems) -> dict[str, Any]:
    """Join `artifact = "sha256:..."` and `artifact_bytes` to one reference."""
    full = dict(table)
    size = full.pop("artifact_bytes", None)
    if isinstance(full.get("artifact"), str):
        if size is None and is_digest(full["artifact"]):
            problems.add((*path, "artifact"), "its size is missing: give artifact_bytes beside it")
        full["artifact"] = {"digest": full["artifact"], "size_bytes": 0 if size is None else size}
    return full
