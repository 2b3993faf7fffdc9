"""Where child programs look for modules: in the library, then beside themselves, nowhere else."""

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import device_agent
from device_agent.executors.process import PROGRAMS
from device_agent.logkeeper import LogKeeper
from protocols.messages.profile import AuditQuery

AGENT = Path(device_agent.__file__).parent
ARTIFACTS = AGENT / "artifacts"
CHILDREN = {
    PROGRAMS / "onnx_zygote.py": [PROGRAMS],
    PROGRAMS / "wasm_zygote.py": [PROGRAMS],
    PROGRAMS / "container_host.py": [PROGRAMS],
    PROGRAMS / "container_unpack.py": [PROGRAMS],
    ARTIFACTS / "fetch_child.py": [PROGRAMS, ARTIFACTS],
    ARTIFACTS / "share_child.py": [PROGRAMS],
}
"""Programs that are started by their path, and the folders of their modules."""
LOOK = """
import json, runpy, sys
program, first = sys.argv[1:]
if first:
    sys.path.insert(0, first)
sys.argv[:] = [program]
try:
    runpy.run_path(program, run_name="__main__")
except IndexError:
    print(json.dumps(sys.path))
"""
"""Prints where a program looks that ends for want of arguments, which is all that it does."""
IMPORT = """
import json, runpy, sys
program, *folders = sys.argv[1:]
sys.path += folders
before = sys.path[:]
runpy.run_path(program, run_name="imported")
print(json.dumps([before, sys.path]))
"""
STARTS = re.compile(r"sys\.executable,([^)\]]*?)\"-[mc]\"")


def test_every_program_that_is_started_by_its_path_is_known() -> None:
    begins = 'if __name__ == "__main__":'
    found = [*PROGRAMS.glob("*.py"), *ARTIFACTS.glob("*.py")]
    assert {one for one in found if begins in one.read_text()} == CHILDREN.keys()


@pytest.mark.parametrize("safe", [False, True], ids=["as started", "PYTHONSAFEPATH"])
@pytest.mark.parametrize("program", CHILDREN, ids=lambda one: one.stem)
def test_the_library_comes_before_our_modules(program: Path, safe: bool, tmp_path: Path) -> None:
    # The interpreter puts a script's folder first, or nothing.
    first = "" if safe else str(program.parent)
    ended = subprocess.run(
        [sys.executable, "-P", "-s", "-c", LOOK, str(program), first],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not ended.returncode, ended.stderr
    path = [Path(one).resolve() for one in json.loads(ended.stdout)]
    ours = CHILDREN[program]
    assert path[-len(ours) :] == ours
    library = path[: -len(ours)]
    assert not [one for one in library if one.is_relative_to(AGENT) or one == tmp_path]
    known = [Path(one).resolve() for one in sys.path if one]
    assert set(library) <= set(known), "all that the daemon's own interpreter looks into"


@pytest.mark.parametrize("program", CHILDREN, ids=lambda one: one.stem)
def test_whoever_imports_one_keeps_its_own_path(program: Path, tmp_path: Path) -> None:
    folders = [str(program.parent), *map(str, CHILDREN[program]), str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-P", "-s", "-c", IMPORT, str(program), *folders],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not ended.returncode, ended.stderr
    before, after = json.loads(ended.stdout)
    assert after == before


def test_no_module_of_theirs_has_a_name_of_the_library() -> None:
    taken = sys.stdlib_module_names | packages_distributions().keys()
    for program, folders in CHILDREN.items():
        text = "".join(one.read_text() for folder in folders for one in folder.glob("*.py"))
        named = {one.stem for folder in folders for one in folder.glob("*.py")}
        used = {one for one in named if re.search(rf"^ +(import|from) {one}\b", text, re.MULTILINE)}
        assert used, program
        assert not used & taken


def test_whoever_starts_a_module_leaves_the_current_folder_out() -> None:
    found = 0
    for package in ("device_agent", "controller", "tona"):
        for file in (AGENT.parent / package).rglob("*.py"):
            for said in STARTS.finditer(file.read_text()):
                found += 1
                assert '"-P"' in said[1], f"{file}: {said[0]}"
    assert found


async def test_the_log_is_not_read_by_what_lies_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = LogKeeper(tmp_path / "calls")
    (tmp_path / "msgspec.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    try:
        page = await keeper.read(AuditQuery("1", "t"))
    finally:
        keeper.close()
    assert page.problem == ""
