"""Deviceless tasks on real processes: no request fails, however long nobody has asked."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from loop_cell import ECHO, PATIENCE_S, Loop, chain, echo_module, running_loop

import tona

pytestmark = pytest.mark.timeout(240)
ROUNDS = 5
KEEP_MS = 150
TURNS = """
    (local.set $left (i32.const 20000000))
    (loop $more (br_if $more
      (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))"""


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


async def test_a_task_whose_node_is_full_is_served_on_another_one_too(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 2, "embedded") as loop:
        await submit_slow(loop)
        async with tona.connect(loop.running.api_url) as client:
            nodes: set[str] = set()
            busy = True

            async def work() -> None:
                while busy:
                    answer = await client.invoke("slow", {"x": b"x"}, deadline_s=PATIENCE_S)
                    nodes.update(one.node for one in answer.timings)

            workers = [asyncio.create_task(work()) for _ in range(6)]
            await until(lambda: len(nodes) > 1)
            busy = False
            await asyncio.gather(*workers)
            await loop.until(
                "/v1/tasks/slow.step0/events",
                lambda story: {"wider", "narrower"} <= {one["event"] for one in story},
            )
            await client.invoke("slow", {"x": b"x"}, deadline_s=PATIENCE_S)


async def until(good: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not good():  # noqa: ASYNC110 - other processes own the event
            await asyncio.sleep(0.05)


async def submit_slow(loop: Loop) -> None:
    """Submit a task that takes its time."""
    copying = "(memory.copy (local.get $out)"
    text = ECHO.replace("(result i32)\n    (memory", "(result i32) (local $left i32)\n    (memory")
    module = bytes(wasmtime.wat2wasm(text.replace(copying, f"{TURNS} {copying}")))
    document: dict[str, Any] = json.loads(chain("slow", 1, module))
    document["services"][0]["tasks"][0]["deviceless"] = {"keep_alive_ms": KEEP_MS}
    path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name=slow&media=wasm"
    (await loop.http.put(path, content=module)).raise_for_status()
    body = {"document": json.dumps(document), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
    await loop.until("/v1/tasks", lambda tasks: [one["state"] for one in tasks] == ["running"])
