"""A testbed of real processes: it stands, is taken down, and nothing of it outlives its owner."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tona.testbed.space import missing

pytestmark = pytest.mark.timeout(120)

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NO_NETWORKS = bool(missing()) or shutil.which("mosquitto", path=PATH) is None
"""Then the same is tried on loopback."""
TONA = [sys.executable, "-m", "tona", "testbed"]


def tona(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [*TONA, words[0], "--data", str(folder), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def standing(mode: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [*TONA, "up", "--cells=1", "--nodes=1", f"--mode={mode}", f"--data={folder}"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            line = owner.stdout.readline()
            assert line, "it did not stand"
            yield owner, json.loads(line)
        finally:
            owner.kill()


def below(pid: int) -> set[int]:
    found: set[int] = set()
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text(encoding="ascii").split()):
                found |= {child} | below(child)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has just ended
    return found


def namespaces(pids: set[int]) -> set[str]:
    found = set()
    for pid in pids:
        try:
            found.add(str(Path(f"/proc/{pid}/ns/net").readlink()))
        except OSError:
            continue
    return found


@contextmanager
def kept(pids: set[int]) -> Iterator[None]:
    """Hold the namespaces of processes, so that no new one of anybody else gets their numbers."""
    with ExitStack() as stack:
        for pid in pids:
            with suppress(OSError):
                stack.enter_context(Path(f"/proc/{pid}/ns/net").open("rb"))
        yield


def until(done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end_s, "it did not come about"
        time.sleep(0.02)


def gone(pids: set[int]) -> bool:
    def dead(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state.split()[0] == "Z"

    return all(dead(pid) for pid in pids)


def test_nothing_outlives_an_owner_that_is_killed(tmp_path: Path) -> None:
    mode = "loopback" if NO_NETWORKS else "netns"
    with ExitStack() as stack, standing(mode, tmp_path) as (owner, line):
        assert [one["name"] for one in line["seen"]["nodes"]] == ["edge-du-1", "ue-1"]
        # Backhaul, both gateways and the node; the node is told nothing of until it enters its own.
        spaces = 4 if mode == "netns" else 0
        until(lambda: len(namespaces(below(owner.pid)) - namespaces({os.getpid()})) == spaces)
        children = below(owner.pid)
        stack.enter_context(kept(children))
        held = namespaces(children) - namespaces({os.getpid()})
        # Controllers, their brokers, both nodes.
        assert len(children) >= 6
        seen = tona("status", "--json", folder=tmp_path)
        assert json.loads(seen.stdout)["pid"] == owner.pid
        refused = tona("up", folder=tmp_path)
        assert refused.returncode == 3
        assert f"process {owner.pid}" in refused.stderr
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        until(lambda: gone(children))
        everyone = {int(one.name) for one in Path("/proc").iterdir() if one.name.isdecimal()}
        assert not held & namespaces(everyone)
    assert tona("status", folder=tmp_path).returncode == 2
    assert (tmp_path / "run").is_dir(), "logs of the dead stay until somebody clears them away"
    assert tona("down", folder=tmp_path).stdout == "a testbed that had died is cleared away\n"
    assert [one.name for one in tmp_path.iterdir()] == ["lock"]


def test_it_is_taken_down_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with standing("loopback", tmp_path) as (owner, _):
        command = ["exec", "--", sys.executable, "-m", "tona", "fleet", "status"]
        # It stands when its processes do: what nodes say comes to the CU after that.
        until(lambda: "ue-1" in tona(*command, folder=tmp_path).stdout)
        # As it stands in what `up` prints, whatever the caller's PATH.
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        listed = tona("exec", "--", "tona", "fleet", "status", folder=tmp_path)
        assert listed.returncode == 0, listed.stderr
        children = below(owner.pid)
        assert tona("down", folder=tmp_path).stdout == "the testbed has ended\n"
        assert owner.wait(timeout=60) == 0
        until(lambda: gone(children))
    assert [one.name for one in tmp_path.iterdir()] == ["lock"]
    assert tona("down", folder=tmp_path).stdout == f"there is no testbed in {tmp_path}\n"


def test_one_that_a_run_measures_is_ended_by_force_alone(tmp_path: Path) -> None:
    traces, folder = tmp_path / "traces", tmp_path / "bed"
    traces.mkdir()
    cells = [7] * 20 + [8] * 40
    rows = [f"2020.01.01_10.00.{at:02d},{cell},-90,10,-95" for at, cell in enumerate(cells)]
    text = "\n".join(["Timestamp,RAWCELLID,RSRP,CQI,NRxRSRP", *rows])
    (traces / "drive.csv").write_text(text, encoding="ascii")
    command = [*TONA, "run", "--cells=2", "--nodes=1", "--mode=loopback", "--radios=2"]
    command += ["--make-before-break", f"--traces={traces}", f"--data={folder}"]
    with (tmp_path / "said").open("w") as said, subprocess.Popen(command, stdout=said) as owner:
        try:
            until((folder / "testbed.json").exists)
            refused = tona("down", folder=folder)
            assert refused.returncode == 3
            assert f"`tona testbed run` (process {owner.pid}) measures" in refused.stderr
            assert "--force" in refused.stderr
            assert json.loads(tona("status", "--json", folder=folder).stdout)["pid"] == owner.pid
            children = below(owner.pid)
            assert tona("down", "--force", folder=folder).stdout == "the testbed has ended\n"
            assert owner.wait(timeout=60) == 130
            until(lambda: gone(children))
        finally:
            owner.kill()
    assert [one.name for one in folder.iterdir()] == ["lock"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give its rights away")
def test_who_may_not_make_networks_is_told_what_it_needs(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    drop = (
        "import os, sys; from tona.testbed import space; os.setuid(65534); "
        "sys.stdout.write(space.missing())"
    )
    said = subprocess.run([sys.executable, "-c", drop], capture_output=True, text=True, check=False)
    assert "ermi" in said.stdout, said.stderr
