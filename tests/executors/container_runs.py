"""Container executors of the tests: which runtimes work here, calls, a look behind the host."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from container_guests import floats

from device_agent.executors.container import ContainerExecutor
from device_agent.executors.door import Done, Failed, Value
from device_agent.executors.process import PROGRAMS
from protocols.manifest import Dtype, Limits, Manifest, Port

BUDGET_MS = 60_000
LOOK = (Port("y", Dtype.UINT8, (-1,)),)
ROOMY = Limits(memory_bytes=256 << 20, deadline_ms=30_000)
CGROUP = Path("/sys/fs/cgroup")


@cache
def runtimes() -> dict[str, dict[str, object]]:
    """Which runtimes can run a container here, and what the program says of each."""
    found = {}
    for name in ("crun", "runc"):
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if path is not None:
            command = [sys.executable, "-s", str(PROGRAMS / "container_host.py"), "--probe", path]
            said = subprocess.run(
                [*command, f"tona-try-{os.getpid()}", ""], capture_output=True, check=True
            )
            about = json.loads(said.stdout)
            if about["runtime"]:
                found[path] = about
    return found


RUNTIME = next(iter(runtimes()), "")
ISOLATED = RUNTIME and runtimes()[RUNTIME]["security"] == "strong"
needs_runtime = pytest.mark.skipif(not RUNTIME, reason="no container runtime can run here")
bounded = pytest.mark.skipif(not ISOLATED, reason="no control groups for containers here")


def groups(executor: ContainerExecutor) -> list[Path]:
    return [*CGROUP.glob(executor._prefix), *CGROUP.glob(f"*/{executor._prefix}")]


async def ready(
    containers: ContainerExecutor, artifact: Path, manifest: Manifest, name: str = "t"
) -> None:
    await containers.deploy(artifact, manifest)
    await containers.start(name, artifact, manifest, {})


async def ask(
    containers: ContainerExecutor, value: Value | None = None, call: str = "c", name: str = "t"
) -> Done | Failed:
    return await containers.invoke(name, call, {"x": value or floats(1.5, 2.5)}, BUDGET_MS)


def may_bind_oom_score() -> bool:
    """Whether we have CAP_SYS_RESOURCE, which root may lack."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(effective, 16) >> 24 & 1)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(one) for one in text.split()]


def first_process(containers: ContainerExecutor) -> int:
    """The host's process 1, whose death takes every container along."""
    return children(containers._host.pid)[0]
