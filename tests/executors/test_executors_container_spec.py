"""What a runtime is told, in each of the ways that a machine may allow."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from device_agent.executors.process import PROGRAMS

sys.path.append(str(PROGRAMS))

import container_cgroup
import container_runtime
import container_spec as spec


def config(*, users: bool = True, cgroups: bool = True, swap: bool = True) -> dict[str, Any]:
    box = spec.Box("/usr/bin/crun", users=users, cgroups=cgroups, swap=swap)
    wanted = spec.Wanted(
        "/run/tona/images/x",
        ["/program", "argument"],
        env=["A=b"],
        cwd="/w",
        inputs="/run/tona/1/in",
        outputs="/run/tona/1/out",
        memory_bytes=1 << 20,
        host_id=1234,
        group="/tona-x/1",
    )
    return spec.config(box, wanted)


@pytest.mark.parametrize("users", [True, False])
@pytest.mark.parametrize("cgroups", [True, False])
def test_the_essentials_hold_in_every_way(users: bool, cgroups: bool) -> None:
    told = config(users=users, cgroups=cgroups)
    process, linux = told["process"], told["linux"]
    assert process["noNewPrivileges"] is True
    assert set(map(tuple, process["capabilities"].values())) == {()}
    assert told["root"]["readonly"] is True
    spaces = {one["type"] for one in linux["namespaces"]}
    assert spaces >= {"pid", "network", "ipc", "uts", "mount", "cgroup"}
    assert not any("path" in one for one in linux["namespaces"])
    writable = {
        one["destination"]
        for one in told["mounts"]
        if "ro" not in one["options"] and one["type"] != "proc"
    }
    assert writable == {"/dev", "/dev/shm", "/tmp", "/tona/out"}  # noqa: S108 - inside
    assert all({"nosuid"} <= set(one["options"]) for one in told["mounts"])
    assert process["args"] == ["/program", "argument"]
    assert process["env"] == [spec.PATH, spec.HOME, "A=b"]
    # Nobody is root on the machine, whichever way.
    if users:
        assert (process["user"]["uid"], linux["uidMappings"][0]["hostID"]) == (0, 1234)
    else:
        assert process["user"] == {"uid": 1234, "gid": 1234}


def test_bounds_are_control_groups_or_rlimits() -> None:
    grouped, alone = config(), config(cgroups=False)
    assert grouped["linux"]["resources"]["memory"] == {"limit": 1 << 20, "swap": 1 << 20}
    assert grouped["linux"]["cgroupsPath"] == "/tona-x/1"
    assert "swap" not in config(swap=False)["linux"]["resources"]["memory"]
    assert "resources" not in alone["linux"]
    limits = {one["type"]: one["hard"] for one in alone["process"]["rlimits"]}
    assert limits == {
        "RLIMIT_NOFILE": 1024,
        "RLIMIT_CORE": 0,
        "RLIMIT_DATA": 1 << 20,
        "RLIMIT_NPROC": 256,
    }


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "armv7l", "riscv64"])
def test_the_smallest_program_is_one(machine: str, tmp_path: Path) -> None:
    program = container_runtime.smallest_program(machine)
    assert program.startswith(b"\x7fELF")
    assert len(program) < 200
    if machine == platform.machine():
        path = tmp_path / "program"
        path.write_bytes(program)
        path.chmod(0o755)
        code = subprocess.run([path], check=False).returncode
        assert code == container_runtime.TRIAL_CODE


def test_a_machine_that_we_do_not_know_has_no_program() -> None:
    assert container_runtime.smallest_program("pdp11") is None


def test_groups_are_removed_by_our_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_cgroup, "ROOT", str(tmp_path))
    for one in ("memory/tona-a/t1-1-1", "memory/tona-a/t2-1-1", "memory/tona-b/x", "cpu/tona-a/t1"):
        (tmp_path / one).mkdir(parents=True)
    container_cgroup.sweep("tona-a", "t1")
    assert sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")) == [
        "cpu",
        "memory",
        "memory/tona-a",
        "memory/tona-a/t2-1-1",
        "memory/tona-b",
        "memory/tona-b/x",
    ]
    container_cgroup.sweep("tona-a")
    assert not (tmp_path / "memory/tona-a").exists()
    assert (tmp_path / "memory/tona-b/x").exists()
