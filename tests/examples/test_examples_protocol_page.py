"""docs/protocol.md: its tables are fresh, and read every golden frame by themselves."""

import json
import math
import re
import runpy
from pathlib import Path
from typing import Any, get_args

import msgpack
import pytest

from protocols import topics
from protocols.messages import Body
from protocols.messages.invocation import FailureCode

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
GOLDEN = dict(
    line.split()
    for line in (ROOT / "tests" / "protocols" / "golden.txt")
    .read_text(encoding="ascii")
    .splitlines()
)
TAGS = {kind.__struct_config__.tag for kind in get_args(Body)}


def rows(text: str) -> list[list[str]]:
    """Return the cells of every line of a table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [one for one in cells if not re.fullmatch(r"#|-+\|.*", one[0])]


class Reader:
    """Reads frames with nothing but what the page says."""

    def __init__(self, page: str) -> None:
        page = page.replace("<!-- end -->", "")
        frame = page.partition("## The frame")[2].partition("\n## ")[0]
        self.frame = rows(frame)[:7]
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: dict[str, str] = {}
        self.enums: dict[str, list[str]] = {}
        for part in page.split("\n#### ")[1:]:
            name, _, text = part.partition("\n")
            text = text.partition("\n## ")[0].partition("\n### ")[0]
            if tag := re.search(r"Tag `([a-z-]+)`", text):
                self.tags[tag[1]] = name
            if "| # |" in text:
                self.tables[name] = rows(text)
            else:
                last = text.strip().rpartition("\n")[2]
                self.enums[name] = re.findall(r"`([^`]+)`", last)

    def read(self, payload: bytes) -> str:
        """Check a frame position by position; return the tag of its message."""
        frame = msgpack.unpackb(payload)
        *head, body = frame
        self._fields("the frame", self.frame[:6], head, 0)
        self._tagged(body, set(self.tags))
        return str(body[0])

    def _tagged(self, value: list[Any], allowed: set[str]) -> None:
        tag, *values = value
        assert tag in allowed
        self._fields(self.tags[tag], self.tables[self.tags[tag]], values, 1)

    def _fields(self, what: str, table: list[list[str]], values: list[Any], first: int) -> None:
        assert len(values) == len(table), what
        for at, (row, value) in enumerate(zip(table, values, strict=True), first):
            position, name, kind, default, meaning = row
            assert int(position) == at, (what, name)
            assert meaning, (what, name)
            assert self.fits(kind, value), (what, name, kind, value)
            if default != "needed":
                assert self.fits(kind, self.default(kind, default)), (what, name, default)

    def default(self, kind: str, cell: str) -> Any:
        value = json.loads(cell.strip("`"))
        return value.encode() if isinstance(value, str) and kind.startswith("bytes") else value

    def fits(self, kind: str, value: Any) -> bool:
        """Whether a value is of a type of the page."""
        if kind.startswith("list"):
            inner, least, most = bounded(kind, "list", " of ")
            return (
                isinstance(value, list)
                and least <= len(value) <= most
                and all(self.fits(inner, one) for one in value)
            )
        if kind.startswith("map"):
            keys = "label" if " from label to " in kind else "string"
            inner, _, most = bounded(kind, "map", f" from {keys} to ")
            return (
                isinstance(value, dict)
                and len(value) <= most
                and all(self.fits(keys, key) for key in value)
                and all(self.fits(inner, one) for one in value.values())
            )
        if " or " in kind:
            kinds = kind.split(" or ")
            if value is None:
                return "null" in kinds
            return any(self.fits(one, value) for one in kinds if one != "null")
        if link := re.fullmatch(r"\[(\w+)\]\(#(\w+)\)", kind):
            assert link[2] == link[1].lower()
            return self._named(link[1], value)
        return self._plain(kind, value)

    def _named(self, name: str, value: Any) -> bool:
        if name in self.enums:
            return value in self.enums[name]
        tag = next((tag for tag, one in self.tags.items() if one == name), None)
        if tag is None:
            self._fields(name, self.tables[name], value, 0)
        elif value[0] != tag:
            return False
        else:
            self._tagged(value, {tag})
        return True

    def _plain(self, kind: str, value: Any) -> bool:  # noqa: C901, PLR0911 - one arm for each type
        number = isinstance(value, int | float) and not isinstance(value, bool)
        bounds = [float(one) for one in re.findall(r"(?<![a-z])-?\d+(?:\.\d+)?(?:e\+\d+)?", kind)]
        if kind.startswith("`"):
            return bool(value == kind.strip("`"))
        match kind.split(maxsplit=1)[0]:
            case "null":
                return value is None
            case "name":
                return isinstance(value, str) and topics.valid_name(value)
            case "label":
                return isinstance(value, str) and 1 <= len(value) <= 64
            case "digest":
                return bool(re.fullmatch("sha256:[0-9a-f]{64}", value))
            case "count":
                return type(value) is int and 0 <= value <= 2**53
            case "bool":
                return isinstance(value, bool)
            case "string":
                return isinstance(value, str) and len(value) <= (bounds or [math.inf])[0]
            case "bytes":
                return isinstance(value, bytes) and len(value) <= bounds[0]
            case "int":
                return type(value) is int and (not bounds or bounds[0] <= value <= bounds[1])
            case "float":
                low, high = [*bounds, *(-math.inf, math.inf)[len(bounds) :]]
                above = low < value if "above" in kind else low <= value
                return number and above and value <= high
        raise AssertionError(f"the page does not explain the type {kind!r}")


def bounded(kind: str, outer: str, joint: str) -> tuple[str, int, float]:
    """Take `list (at least A, at most B) of X` apart: X, A, B."""
    length = r"(?: \((?:at least (\d+))?(?:, )?(?:at most (\d+))?\))?"
    found = re.fullmatch(f"{outer}{length}{joint}(.*)", kind)
    assert found is not None, kind
    return found[3], int(found[1] or 0), float(found[2] or math.inf)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(PAGE)


def test_the_generated_tables_are_fresh() -> None:
    render = runpy.run_path(str(ROOT / "tools" / "protocol_tables.py"))["render"]
    assert render(PAGE) == PAGE, "run python tools/protocol_tables.py"


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_golden_frame_is_what_the_page_says(name: str, reader: Reader) -> None:
    assert reader.read(bytes.fromhex(GOLDEN[name])) == name.rpartition("-")[0]


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_what_a_least_frame_leaves_out_has_the_default_of_the_page(
    tag: str, reader: Reader
) -> None:
    _, *values = msgpack.unpackb(bytes.fromhex(GOLDEN[f"{tag}-least"]))[6]
    for (_, name, kind, default, _), value in zip(
        reader.tables[reader.tags[tag]], values, strict=True
    ):
        if default != "needed":
            assert reader.default(kind, default) == value, name


def test_a_wrong_frame_is_seen_by_the_reader(reader: Reader) -> None:
    frame = msgpack.unpackb(bytes.fromhex(GOLDEN["load-full"]))
    for at, wrong in ((1, -1), (2, 101.0), (4, "7"), (8, [1.0, 2.0]), (10, 1)):
        body = list(frame[6])
        body[at] = wrong
        with pytest.raises((AssertionError, TypeError)):
            reader.read(msgpack.packb([*frame[:6], body]))


def test_every_message_has_its_topic_and_every_code_its_line() -> None:
    where = rows(PAGE.partition("## Which message goes where")[2].partition("\n## ")[0])[1:]
    assert {one[1].strip("`") for one in where} == TAGS
    for message, _, cell, *_ in where:
        for topic in re.findall(r"`([^`]+)`", cell):
            party, _, channel = topic.split("/")
            assert (topics.Party(party), topics.Channel(channel)) in topics.TABLE, message
    errors = PAGE.partition("## Errors")[2].partition("\n## ")[0]
    codes = {one[0].strip("`") for one in rows(errors)[1:]}
    assert codes == {one.value for one in FailureCode}


def test_every_link_of_the_page_leads_somewhere() -> None:
    heads = {
        re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-")
        for one in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("https://"):
            continue
        if target.startswith("#"):
            assert target[1:] in heads, target
        else:
            assert (ROOT / "docs" / target).exists(), target


def test_the_example_in_hexadecimal_is_the_example() -> None:
    text, hex_ = re.findall(r"```\n(\[.+\])\n([0-9a-f ]+)\n```", PAGE)[0]
    assert msgpack.packb(json.loads(text)) == bytes.fromhex(hex_)
