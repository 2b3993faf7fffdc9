"""Models in a control group of their own, where this machine lets one be made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from executor_guests import Shelf, floats
from executor_models import Model

from device_agent.executors.door import Done
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.process import PROGRAMS
from device_agent.executors.programs import container_cgroup as cgroup
from protocols.manifest import Dtype, ExecutorKind, Port

FLOAT = 1
BUDGET_MS = 60_000
SHARE = 0.5


def apart() -> str:
    """Return why no group can be made here."""
    command = [sys.executable, "-s", str(PROGRAMS / "onnx_zygote.py"), "--apart"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def groups_of(pid: int) -> dict[str, str]:
    """Return the group of a process under each controller."""
    lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii").splitlines()
    return {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}


async def test_models_and_workers_are_bounded_together(
    shelf: Shelf, tmp_path: Path, blobs: Path
) -> None:
    if why := apart():
        pytest.skip(why)
    graph = Model.graph(
        [Model.node("Add", ["x", "x"], ["y"])],
        [Model.value("x", FLOAT, "n")],
        [Model.value("y", FLOAT, "n")],
    )
    ports = (Port("x", Dtype.FLOAT32, (-1,)),), (Port("y", Dtype.FLOAT32, (-1,)),)
    task = shelf.task(ExecutorKind.ONNX, Model.whole(graph), *ports)
    onnx = OnnxExecutor(blobs=blobs, empty=tmp_path / "empty", memory_share=SHARE)
    folders = []
    try:
        await onnx.start("t", *task, {})
        assert isinstance(await onnx.invoke("t", "c", {"x": floats(1)}, BUDGET_MS), Done)
        zygote = onnx._models.zygote
        assert zygote is not None
        (child,) = onnx._by_task["t"]
        name = onnx._models._group
        for pid in (zygote.pid, child.pid):
            groups = groups_of(pid)
            group = next(path for key, path in groups.items() if "memory" in key or not key)
            assert group.endswith(f"/{name}"), groups
        root = cgroup.ROOT
        for limit in (f"{root}/memory{group}/memory.limit_in_bytes", f"{root}{group}/memory.max"):
            if Path(limit).exists():
                whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
                assert int(Path(limit).read_text()) == pytest.approx(SHARE * whole, abs=4096)
                folders.append(Path(limit).parent)
        assert folders
    finally:
        await onnx.close()
    assert not any(one.exists() for one in folders), "the group goes with its processes"


async def test_where_no_group_can_be_made_models_run_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cgroup, "ROOT", str(tmp_path))
    folders, why = cgroup.join("tona-test", 1 << 30, 100)
    assert folders == []
    assert "no control group bounds models" in why


@pytest.mark.parametrize("daemon", ["", cgroup.DAEMON])
def test_version_2_makes_the_group_in_the_unit_of_the_daemon(
    daemon: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory pids")
    own = tmp_path / "system.slice" / "tona-agent.service"
    own.mkdir(parents=True)
    monkeypatch.setattr(cgroup, "ROOT", str(tmp_path))
    monkeypatch.setattr(cgroup, "_own", lambda: {"": f"/system.slice/tona-agent.service{daemon}"})
    folders, why = cgroup.join("tona-test", 1 << 30, 100)
    assert (folders, why) == ([str(own / "tona-test")], "")
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (own / "tona-test" / "memory.max").read_text() == str(1 << 30)
    assert (own / "tona-test" / "pids.max").read_text() == "100"
    assert (own / "tona-test" / "cgroup.procs").read_text() == "0"
