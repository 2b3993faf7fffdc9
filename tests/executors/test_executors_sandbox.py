"""The sandbox, by processes that really try to get out of it."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from device_agent.executors.process import PROGRAMS

sys.path.insert(0, str(PROGRAMS))

import sandbox
import sandbox_filter

REFUSED = {"PermissionError", "OSError"}
pytestmark = pytest.mark.skipif(
    sandbox.landlock_version() == 0, reason="this kernel has no Landlock"
)


def attempt(tmp_path: Path, **plan: Any) -> list[dict[str, Any]]:
    """Let a process try everything; what it and the one that it forked tell."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (tmp_path / "secret").write_bytes(b"of another task")
    asked = {"write": [str(blobs)]} | plan
    trials = Path(__file__).with_name("executor_trials.py")
    done = subprocess.run(
        [sys.executable, "-s", str(trials), str(PROGRAMS), json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "secret").read_bytes() == b"of another task"
    assert {one.name for one in tmp_path.iterdir()} == {"blobs", "secret"}
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(told: dict[str, Any], *, but: tuple[str, ...] = ()) -> None:
    tried = told["tried"]
    must = {name: how for name, how in tried.items() if name.startswith("may ")}
    assert set(must.values()) == {"done"}, must
    free = {name for name, how in tried.items() if how == "done"} - set(must)
    assert free == set(but)


def test_a_process_that_computes_keeps_its_blobs_and_threads_alone(tmp_path: Path) -> None:
    (told,) = attempt(tmp_path)
    assert (told["strong"], told["gaps"]) == (True, [])
    check(told)


def test_what_may_fork_forks_what_may_not(tmp_path: Path) -> None:
    told, zygote = attempt(tmp_path, forks=True)
    check(told)
    assert zygote["zygote forks"]
    if sandbox.landlock_version() >= 6:
        assert zygote["zygote signals the agent"] == "PermissionError"


def test_a_process_with_a_device_reads_and_says_so(tmp_path: Path) -> None:
    (told,) = attempt(tmp_path, read=None, devices=["/dev/null"], calls=sandbox.BROAD)
    assert not told["strong"]
    assert "may read the files" in told["gaps"][0]
    # It may read what its user may, and nothing else of all that.
    read = (
        "read /etc/passwd",
        "read a neighbour",
        "read by /proc",
        "list blobs",
        "list outside",
        "open a local socket",
    )
    tried = told["tried"]
    check(told, but=tuple(name for name in read if tried[name] == "done"))


def test_a_path_that_is_named_can_be_read(tmp_path: Path) -> None:
    (told,) = attempt(tmp_path, read=["/etc", str(tmp_path / "absent")])
    check(told, but=("read /etc/passwd",))


def test_what_it_may_look_at_is_read_by_name_and_neither_listed_nor_changed(tmp_path: Path) -> None:
    (told,) = attempt(tmp_path, look=[str(tmp_path)])
    check(told, but=("read a neighbour",))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_becomes_the_user_that_was_configured(tmp_path: Path) -> None:
    (told,) = attempt(tmp_path, user="nobody")
    assert told["user"] == pwd.getpwnam("nobody").pw_uid
    tried = told["tried"]
    assert {how for name, how in tried.items() if not name.startswith("may ")} <= REFUSED


def test_a_user_that_the_machine_does_not_know_is_nobodys(tmp_path: Path) -> None:
    (told,) = attempt(tmp_path, user="no-such-user")
    assert (told["user"], told["gaps"]) == (os.geteuid(), [])
    check(told)


def test_what_the_kernel_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "landlock_version", lambda: 0)
    with pytest.raises(sandbox_filter.Refused, match="no Landlock"):
        sandbox._confine_files(sandbox.Plan(), [])
    monkeypatch.setattr(sandbox_filter, "ARCHES", {})
    with pytest.raises(sandbox_filter.Refused, match="no filter for"):
        sandbox_filter.put_in_force([])


def run(code: list[tuple[int, int, int, int]], arch: int, number: int, first: int) -> int:
    """Interpret a filter as the kernel does, for one call."""
    data = {0: number, 4: arch, 16: first}
    at = accumulator = 0
    while True:
        op, yes, no, value = code[at]
        at += 1
        if op == 0x06:
            return value
        if op == 0x20:
            accumulator = data[value]
            continue
        tests = {
            0x15: accumulator == value,
            0x45: bool(accumulator & value),
            0x35: accumulator >= value,
        }
        at += yes if tests[op] else no


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
@pytest.mark.parametrize("calls", [sandbox.FEW, sandbox.BROAD])
@pytest.mark.parametrize("forks", [False, True])
def test_the_filters_of_every_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, column: int, calls: str, forks: bool
) -> None:
    monkeypatch.setattr(sandbox_filter, "machine", lambda: machine)
    arch = sandbox_filter.ARCHES[machine][0]
    code = sandbox_filter.confining(calls, forks=forks)
    allow, denied, unknown = 0x7FFF0000, 0x00050001, 0x00050026

    def answer(number: int, first: int = 0) -> int:
        return run(code, arch, number, first)

    assert run(code, 0x40000003, 1, 0) == 0x80000000, "another architecture"
    for name, numbers in sandbox_filter.COMPUTING.items():
        if numbers[column] >= 0:
            assert answer(numbers[column]) == allow, name
    for name, numbers in sandbox_filter.DANGEROUS.items():
        if numbers[column] >= 0:
            assert answer(numbers[column], first=2) == denied, name
    clone, thread, new_user = sandbox_filter.CLONE[column], 0x10F00, 0x10000000
    assert answer(clone, thread) == allow
    assert answer(clone, new_user | thread) == denied
    assert answer(clone, 0x8000 | thread) == denied
    assert answer(clone, 0x01200011) == (allow if forks else denied)
    assert answer(435) == unknown, "clone3"
    assert answer(sandbox_filter.PRLIMIT[column], 0) == allow
    assert answer(sandbox_filter.PRLIMIT[column], 17) == denied
    assert answer(sandbox_filter.KILL[column]) == (allow if forks else denied)
    assert answer(9999) == (unknown if calls == sandbox.FEW else allow)
    if machine == "x86_64":
        assert answer(0x40000000 | 39) == unknown, "x32"


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_that_takes_forks_back(
    monkeypatch: pytest.MonkeyPatch, machine: str, column: int
) -> None:
    monkeypatch.setattr(sandbox_filter, "machine", lambda: machine)
    arch = sandbox_filter.ARCHES[machine][0]
    code = sandbox_filter.without_forks()
    allow, denied = 0x7FFF0000, 0x00050001

    def answer(number: int, first: int = 0) -> int:
        return run(code, arch, number, first)

    for name, numbers in sandbox_filter.FORKING.items():
        assert answer(numbers[column]) == denied, name
    assert answer(sandbox_filter.CLONE[column], 0x01200011) == denied
    assert answer(sandbox_filter.CLONE[column], 0x10F00) == allow
    assert answer(sandbox_filter.PRCTL[column], 15) == allow
    assert answer(sandbox_filter.PRCTL[column], 1) == denied
    assert answer(sandbox_filter.TGKILL[column], os.getpid()) == allow
    assert answer(sandbox_filter.TGKILL[column], 1) == denied


def test_no_call_is_allowed_and_dangerous() -> None:
    for column in (0, 1):
        few = {one[column] for one in sandbox_filter.COMPUTING.values()} - {-1}
        dangerous = {one[column] for one in sandbox_filter.DANGEROUS.values()} - {-1}
        forking = {one[column] for one in sandbox_filter.FORKING.values()} - {-1}
        assert not few & dangerous
        assert not forking & (few | dangerous)
        for table in (sandbox_filter.COMPUTING, sandbox_filter.DANGEROUS):
            numbers = [one[column] for one in table.values() if one[column] >= 0]
            assert len(numbers) == len(set(numbers))
