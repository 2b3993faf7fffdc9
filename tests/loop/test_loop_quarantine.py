"""A new version that behaves unlike the old one gives way to it, on real processes."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from loop_cell import ECHO, PATIENCE_S, Loop, Stream, chain, echo_module, running_loop

import tona
from controller.scheduler.anomalies import CPU, HISTORY_MIN, MEMORY

pytestmark = pytest.mark.timeout(240)
GREEDY = ECHO.replace(
    "(memory.copy",
    """(drop (memory.grow (i32.const 256)))
    (local.set $m (i32.const 2000000))
    (loop $more (br_if $more (local.tee $m (i32.sub (local.get $m) (i32.const 1)))))
    (memory.copy""",
)
"""Echoes too, and takes four times the memory and two million turns for it."""


async def submit(loop: Loop, module: bytes) -> str:
    """Have a version ordered, and return its digest."""
    document: dict[str, Any] = json.loads(chain("echo", 1, module))
    document["services"][0]["tasks"][0]["quarantine"] = "auto"
    digest = hashlib.sha256(module).hexdigest()
    path = f"/v1/artifacts/{digest}?name=echo&media=wasm"
    (await loop.http.put(path, content=module)).raise_for_status()
    await _order(loop, document)
    return f"sha256:{digest}"


async def running(loop: Loop, digest: str) -> dict[str, Any]:
    """Wait until a version has run, and the task with it."""
    await loop.until("/v1/tasks", lambda tasks: [one["state"] for one in tasks] == ["running"])
    stats: dict[str, Any] = await loop.until(
        "/v1/tasks/echo.step0/stats",
        lambda stats: any(
            one["digest"] == digest and one["calls"] >= HISTORY_MIN for one in stats["versions"]
        ),
    )
    return stats


async def _declares(loop: Loop, client: tona.AsyncClient, old: str) -> None:
    """Have outputs held against what a newer document declares of them."""
    module = bytes(wasmtime.wat2wasm(ECHO.replace("48", "0x30")))
    document: dict[str, Any] = json.loads(chain("echo", 1, module))
    [task] = document["services"][0]["tasks"]
    artifacts = {}
    for name, data in (("in", b"abc"), ("out", b"xyz")):
        digest = hashlib.sha256(data).hexdigest()
        (await loop.http.put(f"/v1/artifacts/{digest}", content=data)).raise_for_status()
        artifacts[name] = {"digest": f"sha256:{digest}", "size_bytes": len(data)}
    one = {"dtype": "uint8", "shape": [3]}
    task["samples"] = {"x": {"artifact": artifacts["in"], **one}}
    task["reference"] = {"outputs": {"y": {"artifact": artifacts["out"], "shape": [3]}}}
    await _order(loop, document)
    await loop.until("/v1/tasks/echo.step0", lambda one: "differ from" in one["reason"])
    answer = await client.invoke("echo", {"x": b"as before"}, deadline_s=PATIENCE_S)
    assert bytes(answer.outputs["y"]) == b"as before", "what is wrong never serves"
    del task["reference"]
    task["checks"] = {"y": {"form": "json"}}
    await _order(loop, document)
    await _serves(loop)
    with pytest.raises(tona.InvocationError, match="output 'y' is no JSON"):
        await client.invoke("echo", {"x": b"{"}, deadline_s=PATIENCE_S)
    answer = await client.invoke("echo", {"x": b"{}"}, deadline_s=PATIENCE_S)
    assert bytes(answer.outputs["y"]) == b"{}"
    audit = await loop.get("/v1/tasks/echo.step0/audit?verdict=check-failed")
    assert [one["reason"] for one in audit["calls"]] == ["output 'y' is no JSON document"]
    await submit(loop, echo_module())
    assert (await _serves(loop))["spec"]["manifest"]["artifact"]["digest"] == old


async def _order(loop: Loop, document: dict[str, Any]) -> None:
    body = {"document": json.dumps(document), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()


async def _serves(loop: Loop) -> Any:
    """Wait until the newest generation serves."""
    return await loop.until(
        "/v1/tasks/echo.step0", lambda one: one["served"] == one["generation"] and not one["reason"]
    )


async def test_a_greedy_version_gives_way_to_the_one_before(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 1, "embedded") as loop:
        old = await submit(loop, echo_module())
        await loop.until("/v1/tasks", lambda tasks: [one["state"] for one in tasks] == ["running"])
        async with tona.connect(loop.running.api_url) as client:
            stream = Stream(client, "echo", PATIENCE_S)
            work = asyncio.create_task(stream.work())
            await running(loop, old)
            new = await submit(loop, bytes(wasmtime.wat2wasm(GREEDY)))
            task = await loop.until("/v1/tasks/echo.step0", lambda task: new in task["quarantined"])
            assert task["spec"]["manifest"]["artifact"]["digest"] == old
            await loop.until("/v1/tasks/echo.step0", lambda task: task["state"] == "running")
            await stream.more(20)
            stream.stop()
            await work
            assert (stream.failures, stream.wrong) == ([], 0)
            events = await loop.get("/v1/tasks/echo.step0/events")
            assert "goes back" in [one["event"] for one in events]
            stats = await loop.get("/v1/tasks/echo.step0/stats")
            flags = next(one["flags"] for one in stats["versions"] if one["digest"] == new)
            assert {CPU, MEMORY} & flags.keys()
            await _declares(loop, client, old)
            # Neither is left: whoever asks is told why.
            body = {"version": old, "reason": "it is wrong too"}
            await loop.http.post("/v1/tasks/echo.step0/quarantine", json=body)
            with pytest.raises(tona.InvocationError, match="it is wrong too"):
                await client.invoke("echo", {"x": b"?"}, deadline_s=10)
            body = {"version": old, "release": True}
            await loop.http.post("/v1/tasks/echo.step0/quarantine", json=body)
            answer = await client.invoke("echo", {"x": b"!"}, deadline_s=PATIENCE_S)
            assert bytes(answer.outputs["y"]) == b"!"
