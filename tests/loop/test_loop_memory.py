"""A counter that moves between nodes under steady load, while everything around it is killed."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import wasmtime
from loop_cell import PATIENCE_S, Loop, chain, expecting, running_loop
from loop_counter import COUNTER, Counting

import tona

pytestmark = pytest.mark.timeout(300)
AGAIN_S = 0.2
SMALL, LARGE = 100, 100_000
"""Bytes beside the counter: what fits into messages, and what goes through the cell's store."""
MOVES = 3
KILLS = (("source", 0.0), ("target", 0.05), ("controller", 0.02))
"""Who is killed how long after a move has begun: at other steps of it each."""


async def submit(loop: Loop, beside: int, **policy: Any) -> None:
    module = bytes(wasmtime.wat2wasm(COUNTER.format(beside=beside)))
    document: dict[str, Any] = json.loads(chain("count", 1, module, **policy))
    [task] = document["services"][0]["tasks"]
    task["functions"] = ["memory"]
    task["limits"]["state_bytes"] = 1 << 20
    path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name=count&media=wasm"
    (await loop.http.put(path, content=module)).raise_for_status()
    body = {"document": json.dumps(document), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
    await loop.until("/v1/tasks", lambda tasks: [one["state"] for one in tasks] == ["running"])


async def where(loop: Loop) -> str:
    [task] = await loop.until("/v1/tasks", lambda tasks: bool(tasks and tasks[0]["node"]))
    return str(task["node"])


async def move(loop: Loop, here: str) -> str:
    """Empty the node of the counter, whoever is killed meanwhile; return which has it then."""
    end_s = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            await loop.http.post(f"/v1/nodes/{here}/drain")
        [task] = await loop.get("/v1/tasks")
        if task["node"] not in ("", here) and task["state"] == "running":
            return str(task["node"])
        assert asyncio.get_running_loop().time() < end_s, f"it stays on {here}: {task}"
        await asyncio.sleep(AGAIN_S)


async def resume(loop: Loop, node: str) -> None:
    (await loop.http.post(f"/v1/nodes/{node}/resume")).raise_for_status()
    await loop.until(
        "/v1/fleet",
        lambda fleet: any(one["node"] == node and one["state"] == "online" for one in fleet),
    )


@pytest.mark.parametrize("beside", [SMALL, LARGE])
async def test_a_counter_moves_and_counts_on(tmp_path: Path, beside: int) -> None:
    async with running_loop(tmp_path, 2, "embedded") as loop:
        await submit(loop, beside)
        async with tona.connect(loop.running.api_url) as client:
            counting = Counting(client)
            workers = [asyncio.create_task(counting.work()) for _ in range(3)]
            await counting.more(10)
            for _ in range(MOVES):
                here = await where(loop)
                assert await move(loop, here) != here
                await counting.more(20)
                await resume(loop, here)
            counting.stop()
            await asyncio.gather(*workers)
        [task] = await loop.get("/v1/tasks")
        story = await loop.get(f"/v1/tasks/{task['spec']['task']}/events")
    assert counting.failures == []
    assert len(counting.told) == counting.sent
    assert sorted(counting.told) == list(range(1, counting.sent + 1)), "each number once"
    assert sum(one["event"] == "memory-moved" for one in story) == MOVES


async def test_nothing_that_was_acknowledged_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 2, "embedded") as loop:
        # A node that is killed comes back with its disk; its task waits for it.
        await submit(loop, SMALL, replace=False)
        async with tona.connect(loop.running.api_url) as client:
            counting = Counting(client)
            workers = [asyncio.create_task(counting.work()) for _ in range(3)]
            await counting.more(10)
            for victim, pause_s in KILLS:
                here = await where(loop)
                [other] = [one for one in ("node-1", "node-2") if one != here]
                name = {"source": here, "target": other}.get(victim, victim)
                await loop.http.post(f"/v1/nodes/{here}/drain")
                await asyncio.sleep(pause_s)
                os.kill(loop.cell.pid(name), signal.SIGKILL)
                with expecting(f"killing the {victim}"):
                    assert await move(loop, here) == other
                    await counting.more(20)
                await resume(loop, here)
            counting.stop()
            await asyncio.gather(*workers)
    assert counting.failures == []
    assert len(counting.told) == counting.sent
    # A call whose answer was lost in a kill has counted twice: no number is told twice, none falls.
    assert len(set(counting.told)) == len(counting.told)
    assert max(counting.told) >= counting.sent
