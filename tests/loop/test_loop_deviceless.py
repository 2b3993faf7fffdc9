"""Deviceless tasks on real processes: no request fails, however long nobody has asked."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from loop_cell import PATIENCE_S, Loop, chain, echo_module, running_loop

import tona

pytestmark = pytest.mark.timeout(240)
ROUNDS = 5
KEEP_MS = 150


async def submit(loop: Loop) -> None:
    """Submit a chain of two echoes that both rest when nobody asks."""
    module = echo_module()
    document: dict[str, Any] = json.loads(chain("echo", 2, module))
    for task in document["services"][0]["tasks"]:
        task["deviceless"] = {"keep_alive_ms": KEEP_MS}
    path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name=echo&media=wasm"
    (await loop.http.put(path, content=module)).raise_for_status()
    body = {"document": json.dumps(document), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
    await loop.until(
        "/v1/tasks",
        lambda tasks: len(tasks) == 2 and all(one["state"] == "running" for one in tasks),
    )


async def test_first_requests_after_zero_are_served(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 2, "embedded") as loop:
        await submit(loop)
        async with tona.connect(loop.running.api_url) as client:
            for at in range(ROUNDS):
                burst = [
                    client.invoke("echo", {"x": f"{at} {one}".encode()}, deadline_s=PATIENCE_S)
                    for one in range(6)
                ]
                for one, answer in enumerate(await asyncio.gather(*burst)):
                    assert bytes(answer.outputs["y"]) == f"{at} {one}".encode()
                # Long enough to rest: the very time that the task has asked for, and more.
                await asyncio.sleep(3 * KEEP_MS / 1000)
        tasks = await loop.get("/v1/tasks")
        assert [one["state"] for one in tasks] == ["running", "running"]
