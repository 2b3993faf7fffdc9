"""A use case is changed and deleted while requests flow: no request pays for it."""

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest
from loop_cell import Stream, chain, echo_module, running_loop

import tona

pytestmark = pytest.mark.timeout(180)


async def test_a_use_case_grows_and_goes_while_requests_flow(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 2, "embedded") as loop:
        before = await loop.submit("echo", 1)
        async with tona.connect(loop.running.api_url) as client:
            stream = Stream(client, "echo", 30.0)
            workers = [asyncio.create_task(stream.work()) for _ in range(3)]
            await stream.more(20)
            after = await loop.submit("echo", 3)
            await stream.more(20)
            stream.stop()
            await asyncio.gather(*workers)
        assert stream.failures == []
        assert stream.wrong == 0
        assert {one["generation"] for one in after} == {2}
        events = [one["event"] for one in await loop.get("/v1/tasks/echo.step0/events")]
        assert "modified" in events
        assert before[0]["node"] == after[0]["node"], "a healthy task stays where it is"
        (await loop.http.delete("/v1/usecases/echo")).raise_for_status()
        await loop.until("/v1/tasks", lambda tasks: tasks == [])
        await loop.until("/v1/fleet", lambda fleet: all(one["tasks"] == [] for one in fleet))


async def test_a_large_value_goes_from_node_to_node(tmp_path: Path) -> None:
    module = echo_module()
    digest = hashlib.sha256(module).hexdigest()
    async with running_loop(tmp_path, 2, "embedded") as loop:
        path = f"/v1/artifacts/{digest}?name=echo&media=wasm"
        (await loop.http.put(path, content=module)).raise_for_status()
        document = json.loads(chain("echo", 2, module))
        for at, task in enumerate(document["services"][0]["tasks"]):
            task["nodes"] = [f"node-{at + 1}"]
        body = {"document": json.dumps(document), "format": "json"}
        (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
        await loop.until(
            "/v1/tasks",
            lambda tasks: len(tasks) == 2 and all(one["state"] == "running" for one in tasks),
        )
        large = os.urandom(300_000)
        async with tona.connect(loop.running.api_url) as client:
            result = await client.invoke("echo", {"x": large}, deadline_s=60)
        assert bytes(result.outputs["y"]) == large
        assert [one.node for one in result.timings] == ["node-1", "node-2"]


async def test_what_cannot_run_waits_and_says_why(tmp_path: Path) -> None:
    module = echo_module()
    digest = hashlib.sha256(module).hexdigest()
    async with running_loop(tmp_path, 1, "embedded") as loop:
        path = f"/v1/artifacts/{digest}?name=echo&media=wasm"
        (await loop.http.put(path, content=module)).raise_for_status()
        document = chain("echo", 1, module)
        document = document.replace('"executor": "wasm"', '"executor": "wasm", "nodes": ["pi-9"]')
        body = {"document": document, "format": "json"}
        (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
        await loop.until("/v1/usecases/echo", lambda one: one["state"] == "waiting")
        told = await loop.get("/v1/tasks/echo.step0/explain")
        assert "is not among the nodes that the task names" in str(told)
        refused = [
            one for one in await loop.get("/v1/tasks/echo.step0/events") if one["layer"] == "namo"
        ]
        assert refused, "NAMO answers an escalation with a refusal"
