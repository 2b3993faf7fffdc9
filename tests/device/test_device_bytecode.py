"""Lean byte code: made once, kept in private, and done without where that is not possible."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_agent import bytecode
from device_agent.prepared import interpreter

LOOK = "import device_agent.run as one; print(one.__doc__, one.__cached__)"


def test_the_daemon_loads_what_was_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    cache = tmp_path / "a" / "bytecode"
    earlier = [cache.parent / "lean-cpython-39" / "made-1", cache / "made-1"]
    beside = cache.parent / "another"
    for old in (*earlier, beside):
        old.parent.mkdir(0o700, parents=True, exist_ok=True)
        old.touch()
    options = bytecode.options(cache)
    made = subprocess.run(
        [*interpreter(), *options, "-c", LOOK], check=True, capture_output=True, text=True
    ).stdout.split()
    assert made[0] == "None", "what only people read is not there"
    assert Path(made[1]).is_file()
    assert Path(made[1]).is_relative_to(cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert not [old for old in earlier if old.exists()], "of other versions nothing stays"
    assert beside.exists()
    monkeypatch.setattr(bytecode, "COMPILE_S", 0.0)
    assert bytecode.options(cache) == options, "it is made once"


def test_a_folder_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert bytecode.options(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_without_a_place_or_in_time_the_daemon_runs_as_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert bytecode.options(tmp_path / "file" / "cache") == []
    monkeypatch.setattr(bytecode, "COMPILE_S", 0.001)
    assert bytecode.options(tmp_path / "cache") == []
    assert bytecode.options(None) == []


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    name = Path("tona", f"lean-{sys.implementation.cache_tag}")
    assert bytecode.folder({"HOME": "/h"}) == Path("/h/.cache") / name
    assert bytecode.folder({"HOME": "/h", "XDG_CACHE_HOME": "/c"}) == Path("/c") / name
    assert bytecode.folder({}) is None
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert bytecode.folder(dict(os.environ)) is None
