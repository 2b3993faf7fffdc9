"""Many more resting functions on one small node than would fit awake: no request fails."""

import asyncio
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from loop_cell import PATIENCE_S, Loop, echo_module, running_loop

import tona
from device_agent.sensing.machine import memory_limit
from tona.local import cell
from tona.local.cell import node_command

pytestmark = pytest.mark.timeout(240)
FUNCTIONS = 200
A_DOCUMENT = 10
FIT = 6
"""So many of them have room at once."""
REQUESTS = 150
SIDE_BY_SIDE = 12


def machine_bytes() -> int:
    line = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()[0]
    total = int(line.split()[1]) * 1024
    return min(total, memory_limit(Path("/")) or total)


@pytest.fixture
def limit_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A board that gives tasks a hundredth of its memory; returns what a function may take."""
    board = tmp_path / "small.toml"
    board.write_text(
        'name = "small"\ntitle = "a small node"\nproviders = ["CPUExecutionProvider"]\n'
        "[limits]\ntask_memory_share = 0.01\nmax_instances = 8\n"
    )

    def command(*about: Any) -> list[str]:
        return [*node_command(*about), f"--profile={board}"]

    monkeypatch.setattr(cell, "node_command", command)
    return int(machine_bytes() * 0.01) // FIT


def document(name: str, first: int, module: bytes, limit_bytes: int) -> str:
    port = {"dtype": "uint8", "shape": [-1]}
    artifact = {
        "digest": "sha256:" + hashlib.sha256(module).hexdigest(),
        "size_bytes": len(module),
    }
    task: dict[str, Any] = {
        "name": "t",
        "executor": "wasm",
        "artifact": artifact,
        "limits": {"memory_bytes": limit_bytes},
        "deviceless": {},
        "inputs": {"x": {"from": "request.x", **port}},
        "outputs": {"y": port},
    }
    services = [
        {"name": f"f{at}", "kind": "computing", "outputs": {"y": "t.y"}, "tasks": [task]}
        for at in range(first, first + A_DOCUMENT)
    ]
    return json.dumps({"name": name, "services": services})


async def submit(loop: Loop, limit_bytes: int) -> None:
    module = echo_module()
    path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name=echo&media=wasm"
    (await loop.http.put(path, content=module)).raise_for_status()
    for first in range(0, FUNCTIONS, A_DOCUMENT):
        text = document(f"u{first}", first, module, limit_bytes)
        body = {"document": text, "format": "json"}
        (await loop.http.post("/v1/usecases", json=body)).raise_for_status()

    def all_run(tasks: list[dict[str, Any]]) -> bool:
        running = sum(one["state"] == "running" for one in tasks)
        return running == len(tasks) == FUNCTIONS

    await loop.until("/v1/tasks", all_run)


async def test_two_hundred_functions_share_a_node_by_turns(
    tmp_path: Path, limit_bytes: int
) -> None:
    dice = Random(1)
    async with running_loop(tmp_path, 1, "embedded") as loop:
        await submit(loop, limit_bytes)
        [node] = await loop.get("/v1/fleet")
        have = node["inventory"]["task_memory_bytes"]
        assert node["reserved_bytes"] <= have
        assert node["promised_bytes"] > FUNCTIONS // FIT * have
        side_by_side = asyncio.Semaphore(SIDE_BY_SIDE)
        async with tona.connect(loop.running.api_url) as client:

            async def ask(at: int) -> None:
                async with side_by_side:
                    name = f"f{dice.randrange(FUNCTIONS)}"
                    text = f"{name} {at}".encode()
                    answer = await client.invoke(name, {"x": text}, deadline_s=PATIENCE_S)
                    assert bytes(answer.outputs["y"]) == text

            await asyncio.gather(*(ask(at) for at in range(REQUESTS)))
        tasks = await loop.get("/v1/tasks")
        assert [one["state"] for one in tasks] == ["running"] * FUNCTIONS
