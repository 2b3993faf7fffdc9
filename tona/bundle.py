"""A use case whose artifacts are files: which to push, and the document with their digests.

In a document that a person writes, `artifact` may be a path beside it (`modules/decode.wasm`) or a
file of an installed package (`package:rapidocr_onnxruntime/models/x.onnx`). A controller takes only
contents it has, by digest. The document is rewritten in place, so that what the controller has to
say of a line is said of the author's own.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from protocols.errors import UserError

PACKAGE: Final = "package:"
TOML: Final = "toml"
JSON: Final = "json"
_DIGEST: Final = "sha256:"
_CHUNK_BYTES: Final = 1 << 20
DOCUMENT_MAX_BYTES: Final = 2 << 20
"""Above every document that a controller takes."""


class File(Struct, frozen=True):
    """A file to push, before the document that names its digest is submitted."""

    path: Path
    digest: str
    size_bytes: int

    @property
    def name(self) -> str:
        """The name under which people see the artifact."""
        return self.path.name


class Bundled(Struct, frozen=True):
    """A document that a controller takes, and the contents it must have by then."""

    document: str
    notation: str
    """`toml` or `json`."""
    files: tuple[File, ...]


def bundle(path: Path) -> Bundled:
    """Read a document (`.json`, or else TOML) and the files that it names. Raises UserError."""
    notation = JSON if path.suffix == ".json" else TOML
    text = _text(path)
    files = {
        reference: _file(reference, field, path) for reference, field in references(text, notation)
    }
    document, notation = rewrite(text, notation, files)
    unique = {file.digest: file for file in files.values()}
    return Bundled(document, notation, tuple(unique.values()))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(DOCUMENT_MAX_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: {error}") from None
    if len(raw) > DOCUMENT_MAX_BYTES:
        raise UserError(f"{path} is larger than {DOCUMENT_MAX_BYTES} bytes: no use case is")
    if not text.strip():
        raise UserError(f"{path} is empty: write a use case into it, TOML or JSON")
    return text


def references(text: str, notation: str) -> list[tuple[str, str]]:
    """Return the files that a document names, each with the first field that does; pure.

    A document that cannot be parsed names none: its controller says what is wrong with it.
    """
    found: dict[str, str] = {}
    tree = _parse(text, notation)
    for reference, field in _walk(tree, ""):
        found.setdefault(reference, field)
    return list(found.items())


def rewrite(text: str, notation: str, files: Mapping[str, File]) -> tuple[str, str]:
    """Put digests and sizes in the places of files; pure. Returns the document and its notation.

    Every line stays where it is. Where that is not possible (a path with escapes in it), the
    document comes back as JSON.
    """
    if not files:
        return text, notation
    wanted = _replaced(_parse(text, notation), files)
    made = text
    for reference, file in files.items():
        if notation == TOML:
            value = f'{{ digest = "{file.digest}", size_bytes = {file.size_bytes} }}'
        else:
            value = json.dumps({"digest": file.digest, "size_bytes": file.size_bytes})
        quoted = re.escape(reference)
        place = rf"""(["']?artifact["']?\s*[=:]\s*)(?:"{quoted}"|'{quoted}')"""
        # A digest and a number: nothing in it that a template would take for its own.
        made = re.sub(place, rf"\g<1>{value}", made)
    if _parse(made, notation) == wanted:
        return made, notation
    return json.dumps(wanted, indent=1), JSON


def _parse(text: str, notation: str) -> Any:
    try:
        return tomllib.loads(text) if notation == TOML else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _walk(tree: Any, field: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if isinstance(tree, dict):
        for key, value in tree.items():
            here = f"{field}.{key}" if field else str(key)
            if key == "artifact" and isinstance(value, str) and not value.startswith(_DIGEST):
                found.append((value, here))
            else:
                found += _walk(value, here)
    elif isinstance(tree, list):
        for at, value in enumerate(tree):
            found += _walk(value, f"{field}[{at}]")
    return found


def _replaced(tree: Any, files: Mapping[str, File]) -> Any:
    if isinstance(tree, list):
        return [_replaced(one, files) for one in tree]
    if not isinstance(tree, dict):
        return tree
    made = {}
    for key, value in tree.items():
        file = files.get(value) if key == "artifact" and isinstance(value, str) else None
        if file is not None:
            made[key] = {"digest": file.digest, "size_bytes": file.size_bytes}
        else:
            made[key] = _replaced(value, files)
    return made


def _file(reference: str, field: str, document: Path) -> File:
    if reference.startswith(PACKAGE):
        path = _in_package(reference, field)
    else:
        path = document.parent / reference
    check_ends(path)
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with path.open("rb") as content:
            while chunk := content.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
    except OSError as error:
        raise UserError(f"{document}: {field}: {path} cannot be read: {error.strerror}") from None
    return File(path, _DIGEST + digest.hexdigest(), size_bytes)


def check_ends(path: Path) -> None:
    """Refuse what may have no end, such as a device or a pipe. Raises UserError."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is no regular file: an artifact is one")


def _in_package(reference: str, field: str) -> Path:
    package, _, inside = reference.removeprefix(PACKAGE).partition("/")
    # Located, not imported: a package of models may take seconds to load.
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{field}: the package {package!r} is not installed: pip install it")
    folders = [Path(one) for one in spec.submodule_search_locations]
    return next((one / inside for one in folders if (one / inside).exists()), folders[0] / inside)
