"""Files of a use case into digests, with every line in its place."""

import hashlib
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.namo.usecase import DocumentError, parse
from protocols.errors import UserError
from tona.bundle import File, bundle, references, rewrite

DOCUMENT = """
name = "u"
[[services]]
name = "s"
kind = "computing"
outputs.y = "a.y"
[[services.tasks]]
name = "a"
executor = "wasm"
artifact = "modules/a.wasm"   # built by make
inputs.x = { from = "request.x", dtype = "uint8", shape = [-1] }
outputs.y = { dtype = "uint8", shape = [-1] }
constants.t = { artifact = 'modules/a.wasm', dtype = "uint8", shape = [4] }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "a.wasm").write_bytes(b"wasm")
    return tmp_path


def test_a_document_is_bundled_and_valid(folder: Path) -> None:
    path = folder / "u.toml"
    path.write_text(DOCUMENT, encoding="utf-8")
    bundled = bundle(path)
    (file,) = bundled.files
    assert (file.name, file.size_bytes) == ("a.wasm", 4)
    assert file.digest == "sha256:" + hashlib.sha256(b"wasm").hexdigest()
    assert "# built by make" in bundled.document
    use_case, _ = parse(bundled.document, bundled.notation)
    task = use_case.services[0].tasks[0]
    assert (task.artifact.digest, task.artifact.size_bytes) == (file.digest, 4)
    assert task.constants["t"].artifact == task.artifact


def test_a_bundled_document_keeps_the_lines_of_its_author(folder: Path) -> None:
    path = folder / "u.toml"
    path.write_text(DOCUMENT.replace("shape = [4]", "shape = 4"), encoding="utf-8")
    bundled = bundle(path)
    line = 1 + DOCUMENT[: DOCUMENT.index("constants.t")].count("\n")
    with pytest.raises(DocumentError, match=f"line {line}, services"):
        parse(bundled.document, bundled.notation)


def test_json_is_bundled_too(folder: Path) -> None:
    path = folder / "u.json"
    path.write_text(json.dumps(tomllib.loads(DOCUMENT), indent=1), encoding="utf-8")
    bundled = bundle(path)
    assert bundled.notation == "json"
    assert parse(bundled.document, "json")[0].services[0].tasks[0].artifact.size_bytes == 4
    assert bundled.document.count("\n") == path.read_text().count("\n")


def test_a_file_of_a_package_is_found_without_importing_it(tmp_path: Path) -> None:
    path = tmp_path / "u.toml"
    path.write_text('artifact = "package:hypothesis/py.typed"', encoding="utf-8")
    (file,) = bundle(path).files
    assert file.path.name == "py.typed"


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("none.wasm", r"u.toml: a.artifact: .*none.wasm cannot be read: No such file"),
        ("package:no_such_package/x", "a.artifact: the package 'no_such_package' is not installed"),
        ("package:hypothesis/none", "none cannot be read"),
        ("package:../x", "is not installed"),
    ],
)
def test_a_file_that_is_not_there_is_named_with_its_field(
    tmp_path: Path, reference: str, text: str
) -> None:
    path = tmp_path / "u.toml"
    path.write_text(f'[a]\nartifact = "{reference}"', encoding="utf-8")
    with pytest.raises(UserError, match=text):
        bundle(path)


def test_digests_and_broken_documents_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        bundle(tmp_path / "none.toml")
    for text in ('artifact = "sha256:00"', "not toml at all", "#"):
        path = tmp_path / "u.toml"
        path.write_text(text, encoding="utf-8")
        bundled = bundle(path)
        assert (bundled.document, bundled.notation, bundled.files) == (text, "toml", ())


names = st.text("a\"'\\ü {}=#.\n", min_size=1, max_size=8)


@given(st.lists(names, min_size=1, max_size=4, unique=True), st.booleans())
def test_a_rewritten_document_says_what_it_said_with_digests(
    paths: list[str], as_json: bool
) -> None:
    tree = {"tasks": [{"name": one, "artifact": one, "other": one} for one in paths]}
    if as_json:
        text, notation = json.dumps(tree), "json"
    else:
        quoted = [json.dumps(one) for one in paths]
        rows = [f"{{ name = {one}, artifact = {one}, other = {one} }}" for one in quoted]
        text, notation = f"tasks = [\n{','.join(rows)}\n]", "toml"
    assert [one for one, _ in references(text, notation)] == paths
    files = {one: File(Path(one), f"sha256:{at}", at) for at, one in enumerate(paths)}
    document, made = rewrite(text, notation, files)
    back = tomllib.loads(document) if made == "toml" else json.loads(document)
    assert back == {
        "tasks": [
            {
                "name": one,
                "artifact": {"digest": files[one].digest, "size_bytes": files[one].size_bytes},
                "other": one,
            }
            for one in paths
        ]
    }
