"""A container task through a whole cell of real processes, and a cell where nothing runs one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_cell import PATIENCE_S, Loop, below, running_loop

import tona
from device_agent.executors.process import PROGRAMS

sys.path.append(str(Path(__file__).parents[1] / "executors"))

from container_guests import FLAGS, PYTHON, Image, layout_tar, rootfs_tar
from executor_guests import Shelf

pytestmark = pytest.mark.timeout(240)


def works_here() -> bool:
    command = [sys.executable, "-s", str(PROGRAMS / "container_host.py"), "--probe", ""]
    said = subprocess.run([*command, "tona-loop", ""], capture_output=True, check=True).stdout
    return bool(json.loads(said)["runtime"])


def alive(pid: int) -> bool:
    """Whether a process is there, one that nobody has reaped apart."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def document(image: Image) -> str:
    port = {"dtype": "float32", "shape": [-1]}
    steps: list[dict[str, Any]] = [
        {
            "name": interface,
            "executor": "container",
            "interface": interface,
            "artifact": {"digest": image[1].digest, "size_bytes": image[1].size_bytes},
            "arguments": [interface, "echo"],
            "limits": {"memory_bytes": 64 << 20, "deadline_ms": 30_000},
            "inputs": {"x": {"from": source, **(port if at == 0 else {})}},
            "outputs": {"y": port},
        }
        for at, (interface, source) in enumerate([("serve", "request.x"), ("once", "serve.y")])
    ]
    service = {"name": "boxed", "kind": "computing", "outputs": {"y": "once.y"}, "tasks": steps}
    return json.dumps({"name": "boxed", "services": [service]})


async def submit(loop: Loop, image: Image) -> None:
    path = f"/v1/artifacts/{image[0].name}?name=guest&media=container"
    (await loop.http.put(path, content=image[0].read_bytes())).raise_for_status()
    body = {"document": document(image), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()


def make_image(folder: Path) -> Image:
    config = {"Entrypoint": [PYTHON, *FLAGS, "/guest.py"]}
    return Shelf(folder).put(layout_tar([rootfs_tar()], config, compressed=True))


async def test_containers_serve_a_request_and_come_back_when_their_host_dies(
    tmp_path: Path,
) -> None:
    if not works_here():
        pytest.skip("no container runtime can run here")
    image = make_image(tmp_path)
    async with running_loop(tmp_path / "cell", 1, "embedded") as loop:
        await submit(loop, image)
        await loop.until(
            "/v1/tasks",
            lambda tasks: len(tasks) == 2 and all(one["state"] == "running" for one in tasks),
        )
        async with tona.connect(loop.running.api_url) as client:

            async def ask(*values: float) -> list[float]:
                given = np.array(values, np.float32)
                answer = await client.invoke("boxed", {"x": given}, deadline_s=PATIENCE_S)
                return np.asarray(answer.outputs["y"]).tolist()

            assert await ask(1.5, 2.5) == [1.5, 2.5]
            host = loop.children("node-1", "container_host")[0]
            os.kill(host, signal.SIGKILL)
            assert await ask(3.5) == [3.5]
            assert host not in loop.children("node-1", "container_host")

            # A daemon that is killed takes host and containers along; the next one has its own.
            left = loop.children("node-1", "container_host")
            left += [one for pid in left for one in below(pid)]
            os.kill(loop.cell.pid("node-1"), signal.SIGKILL)
            assert await ask(5.5) == [5.5]
            assert not [pid for pid in left if alive(pid)]


async def test_without_a_runtime_the_reason_is_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("crun", "runc"):
        broken = tmp_path / name
        broken.write_text("#!/bin/sh\nexit 3\n", encoding="ascii")
        broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    image = make_image(tmp_path)
    async with running_loop(tmp_path / "cell", 1, "embedded") as loop:
        await submit(loop, image)
        fleet = json.dumps(await loop.get("/v1/fleet"))
        assert "crun is installed but cannot start a container here: crun create gave 3" in fleet
        await loop.until(
            "/v1/usecases", lambda cases: "has no container executor (1)" in json.dumps(cases)
        )
