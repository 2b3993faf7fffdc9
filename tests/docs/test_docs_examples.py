"""What the pages show is true: examples are valid, commands run, tables and links are whole."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from controller import config
from controller.namo import model
from controller.namo.usecase import DocumentError, parse
from firmware_profiles import names
from protocols import qoais
from protocols.manifest import Limits
from protocols.messages.hierarchy import Demand
from protocols.messages.task import LostPolicy
from tona.bundle import bundle

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "benchmarks/README.md")
PICTURE = "skimage/data/page.png"
START_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 240
# The pages' 30 s are a user's; beside other tests a request may take longer.
BUSY_DEADLINE_S = 200
STRUCTS = {
    one.__name__: one
    for one in (
        model.UseCase,
        model.Service,
        model.Agreement,
        model.Range,
        model.Task,
        model.Input,
        model.Output,
        model.Constant,
        model.Variant,
        model.Leeway,
        model.Deviceless,
        model.Zoned,
        model.Source,
        model.Alternative,
        model.Trigger,
        model.Threshold,
        Limits,
        Demand,
        LostPolicy,
    )
}


class Block(NamedTuple):
    """A marked block of a page, and the block without a mark that may follow it."""

    code: str
    after: str


class Step(NamedTuple):
    """A command of a console block and what it prints."""

    arguments: list[str]
    printed: str


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, mark: str) -> list[Block]:
    fence = r"```\w+\n(.*?)```"
    found = re.findall(
        rf"<!-- checked: {mark} -->\n{fence}(?:\n\n```text\n(.*?)```)?", page(name), re.DOTALL
    )
    assert found, f"{name} has no block that is checked as {mark!r}"
    return [Block(*one) for one in found]


def steps(block: Block) -> list[Step]:
    parts = re.split(r"^\$ tona ", block.code, flags=re.MULTILINE)
    assert parts[0] == ""
    made = (part.partition("\n") for part in parts[1:])
    return [Step(command.split(), printed) for command, _, printed in made]


def table(text: str) -> list[list[str]]:
    """Return the cells of the first table of a text, without its head."""
    lines = text[text.index("|") :].split("\n\n", maxsplit=1)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines[2:]]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder as a clone looks to the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


# Documents that a person writes.


def submitted(desk: Path, document: str) -> str:
    path = desk / "document.toml"
    path.write_text(document, encoding="utf-8")
    made = bundle(path)
    use_case, _ = parse(made.document, made.notation)
    return use_case.name


def test_the_use_case_is_valid(desk: Path) -> None:
    (block,) = blocks("docs/usecases.md", "use case")
    assert submitted(desk, block.code) == "picture-size"


@pytest.mark.parametrize("block", blocks("docs/usecases.md", "refused"))
def test_a_wrong_use_case_is_refused_in_these_words(desk: Path, block: Block) -> None:
    with pytest.raises(DocumentError) as refused:
        submitted(desk, block.code)
    assert list(refused.value.problems) == block.after.splitlines()


def test_the_zone_is_one() -> None:
    (block,) = blocks("docs/usecases.md", "zone")
    sla = tomllib.loads(block.code)["services"]["sla"]
    bounds = msgspec.convert(sla, model.Agreement).all_bounds()
    for one in bounds:
        qoais.check(one)
    assert len(bounds) == 3


def test_the_controllers_files_are_valid(tmp_path: Path) -> None:
    read = []
    for block in blocks("docs/hardware.md", "controller"):
        path = tmp_path / "controller.toml"
        path.write_text(block.code, encoding="utf-8")
        read.append(config.read(path, {}, {}))
    assert [one.cell for one in read] == ["cell", "hall", "yard"]
    assert {(one.broker, one.listening_port()) for one in read} == {("mosquitto", 8883)}
    assert all(one.secured for one in read)


# Tables.


@pytest.mark.parametrize("name", STRUCTS)
def test_a_table_of_fields_is_the_struct(name: str) -> None:
    _, found, text = page("docs/usecases.md").partition(f"<!-- fields: {name} -->\n")
    assert found
    told = {row[0].strip("`"): row[2] for row in table(text)}
    fields = {one.encode_name: one for one in msgspec.structs.fields(STRUCTS[name])}
    assert told.keys() == fields.keys()
    for field, one in fields.items():
        assert (told[field] == "needed") == one.required, field
        if isinstance(one.default, bool | int | float):
            assert told[field] == str(one.default).lower(), field


def test_the_table_of_indicators_is_the_catalogue() -> None:
    told = table(page("docs/usecases.md").partition("<!-- indicators -->\n")[2])
    assert told == [
        [
            f"`{one.name}`",
            one.category,
            one.dimension or "-",
            bound(one),
            one.share,
            "all" if len(one.kinds) == len(qoais.ServiceKind) else ", ".join(one.kinds),
            "yes" if one.paper else "-",
            one.how,
        ]
        for one in qoais.INDICATORS.values()
    ]


def bound(one: qoais.Indicator) -> str:
    if not one.quantitative:
        return f"`level`: {', '.join(one.levels)}"
    side = "at_most" if one.direction is qoais.Direction.LOWER else "at_least"
    return f"`{side}`, in {one.unit}"


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    wanted = [*project["dependencies"], *page("requirements/models.in").splitlines()]
    wanted += [one for extra in project["optional-dependencies"].values() for one in extra]
    plain = {re.split(r"[\[<>=!~;# ]", one)[0] for one in wanted} - {"", "tona-edge"}
    cells = {cell for line in page("docs/dependencies.md").splitlines() for cell in cells_of(line)}
    assert plain - cells == set()


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")] if line.startswith("|") else []


def test_every_board_has_its_line() -> None:
    text = page("docs/hardware.md").partition("## Boards")[2].partition("\n## ")[0]
    assert {row[0].strip("`") for row in table(text)} == set(names())


# Links.


def written() -> list[Path]:
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


@pytest.mark.parametrize("path", written(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in titles}


# Commands.


def environment(home: Path, **more: str) -> dict[str, str]:
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TONA_", "XDG_")) and name != "NO_COLOR"
    }
    return {**own, "HOME": str(home), "COLUMNS": "400", "PYTHONPATH": str(ROOT), **more}


def run(arguments: list[str], folder: Path, env: dict[str, str]) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0, f"{arguments}: {ended.stderr}"
    return ended.stdout


def command(step: Step) -> list[str]:
    patient = [f"--deadline={BUSY_DEADLINE_S}"] if step.arguments[0] == "invoke" else []
    return ["-m", "tona", *step.arguments, *patient]


def test_identities_are_made_as_the_page_shows(tmp_path: Path) -> None:
    (block,) = blocks("docs/hardware.md", "trust")
    for step in steps(block):
        printed = run(["-m", "tona", *step.arguments], tmp_path, environment(tmp_path))
        assert printed.replace(str(tmp_path), "/var/lib/tona") == step.printed


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], str]]:
    """Run `tona up` as the README says; gives a desk, its environment and the URL of the API."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package scikit-image, whose page is read, is not installed")
    desk = tmp_path_factory.mktemp("desk")
    (desk / "examples").symlink_to(ROOT / "examples")
    picture = Path(spec.submodule_search_locations[0]).parent / PICTURE
    (desk / "page.png").write_bytes(picture.read_bytes())
    (use_case,) = blocks("docs/usecases.md", "use case")
    (desk / "size.toml").write_text(use_case.code, encoding="utf-8")
    command = [sys.executable, "-m", "tona", "up", "--json", "--api-port=0", f"--data={desk}/data"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, cwd=desk, env=environment(desk), text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = msgspec.json.decode(process.stdout.readline())["api_url"]
            yield desk, environment(desk, TONA_API=url), url
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.xdist_group("docs")
@pytest.mark.timeout(300)
def test_the_example_prints_what_the_page_shows(cell: tuple[Path, dict[str, str], str]) -> None:
    desk, env, _ = cell
    for block in blocks("docs/usecases.md", "output"):
        for step in steps(block):
            printed = run(command(step), desk, env)
            assert [line.rstrip() for line in printed.splitlines()] == step.printed.splitlines()


@pytest.mark.xdist_group("docs")
@pytest.mark.timeout(600)
def test_the_readmes_commands_and_its_program_run(cell: tuple[Path, dict[str, str], str]) -> None:
    desk, env, url = cell
    (commands,) = blocks("README.md", "commands")
    printed = {step.arguments[0]: run(command(step), desk, env) for step in steps(commands)}
    assert "markers of the coins" in printed["invoke"]
    (program,) = blocks("README.md", "python")
    code = program.code.replace("http://127.0.0.1:8600", url)
    assert url in code
    code = code.replace("deadline_s=30", f"deadline_s={BUSY_DEADLINE_S}")
    assert str(BUSY_DEADLINE_S) in code
    assert "markers of the coins" in run(["-c", code], desk, env)
    (program,) = blocks("docs/usecases.md", "publish")
    assert not run(["-c", program.code.replace("http://127.0.0.1:8600", url)], desk, env)
