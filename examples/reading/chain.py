"""The reading chain as data: `usecase.toml` with its artifacts found, hashed and typed.

Everything is derived from that one file. A client submits `Chain.document` after it has pushed
`Chain.files`; the reference runner and the tests take the steps from `Chain.order`.

    python examples/reading/chain.py              the document with digests, as JSON
    python examples/reading/chain.py characters   write characters.txt anew from the model
"""

import hashlib
import importlib.util
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from controller.namo.decompose import order_of
from controller.namo.usecase import parse
from protocols.errors import UserError
from protocols.messages.hierarchy import ServiceOrder

HERE: Final = Path(__file__).resolve().parent
USE_CASE: Final = HERE / "usecase.toml"
CHARACTERS: Final = HERE / "characters.txt"
RECOGNISER: Final = "package:rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
PACKAGE: Final = "package:"
METADATA_PROPS: Final = 14
"""Field number in ONNX `ModelProto`; its entries hold a key (1) and a value (2)."""
LENGTH_DELIMITED: Final = 2
FIXED_BYTES: Final = {1: 8, 5: 4}


class Chain(NamedTuple):
    """A use case ready to be submitted."""

    document: str
    """JSON, artifacts by digest."""
    order: ServiceOrder
    """Its one service: tasks in topological order, with manifests and edges."""
    files: dict[str, Path]
    """Where each artifact lies, by digest."""


def load(path: Path = USE_CASE, way: str = "main") -> Chain:
    """Read a use case of one service, done one of its ways, and find its artifacts.

    Raises UserError.
    """
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    files: dict[str, Path] = {}
    for table in _artifact_tables(tree):
        file = find_artifact(table["artifact"], path.parent)
        data = file.read_bytes()
        table["artifact"] = f"sha256:{hashlib.sha256(data).hexdigest()}"
        table["artifact_bytes"] = len(data)
        files[table["artifact"]] = file
    use_case, document = parse(json.dumps(tree), "json")
    service = use_case.services[0]
    ways = {one.name: one for one in service.ways()}
    if way not in ways:
        raise UserError(f"{path}: there is no way {way!r}, but {', '.join(ways)}")
    return Chain(document, order_of(service, ways[way], use_case.name, generation=1), files)


def _artifact_tables(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if isinstance(tree.get("artifact"), str):
            yield tree
        for value in list(tree.values()):
            yield from _artifact_tables(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _artifact_tables(value)


def find_artifact(reference: str, folder: Path) -> Path:
    """Find a file by path from `folder`, or by `package:NAME/PATH`. Raises UserError.

    The package is located, not imported: only its files are needed.
    """
    if not reference.startswith(PACKAGE):
        path = folder / reference
    else:
        package, _, inside = reference.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{reference}: the Python package {package} is not installed")
        path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise UserError(f"{reference}: there is no file {path}")
    return path


def character_table(model: Path) -> str:
    """Return the recogniser's characters from the model's metadata, one a line.

    Line k is class k + 1, for class 0 is CTC's blank; the last class is the space, which the
    metadata leaves out. Raises UserError.
    """
    names = onnx_metadata(model.read_bytes()).get("character")
    if names is None:
        raise UserError(f"{model} has no metadata 'character': it is no PP-OCR recogniser")
    return "\n".join((*names.split("\n"), " "))


def onnx_metadata(model: bytes) -> dict[str, str]:
    """Return `metadata_props` of a serialised ONNX model."""
    found: dict[str, str] = {}
    for number, value in proto_fields(memoryview(model)):
        if number == METADATA_PROPS:
            entry = {key: bytes(text).decode() for key, text in proto_fields(value)}
            found[entry.get(1, "")] = entry.get(2, "")
    return found


def proto_fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Walk the length-delimited fields of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == LENGTH_DELIMITED:
            size, at = _varint(message, at)
            yield number, message[at : at + size]
            at += size
        elif wire in FIXED_BYTES:
            at += FIXED_BYTES[wire]
        elif wire == 0:
            _, at = _varint(message, at)
        else:
            raise UserError("the model is no ONNX file: its protobuf is damaged")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:  # noqa: PLR2004 - a varint has at most 64 bits
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the top bit says that more follows
            return value, at
        shift += 7
    raise UserError("the model is no ONNX file: its protobuf is damaged")


def main(arguments: list[str]) -> int:
    """Print the document, or write the table of characters."""
    if arguments == ["characters"]:
        CHARACTERS.write_text(character_table(find_artifact(RECOGNISER, HERE)), encoding="utf-8")
    elif arguments:
        print(__doc__, file=sys.stderr)
        return 2
    else:
        print(load().document)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
