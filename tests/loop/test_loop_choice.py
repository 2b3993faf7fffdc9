"""A step with two forms on real processes: measured while it serves, it ends on the fast one."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from executor_models import Model
from loop_cell import PATIENCE_S, Loop, Stream, running_loop

import tona

pytestmark = pytest.mark.timeout(240)

SLOW = """
(module
  (memory (export "memory") 64)
  (global $top (mut i32) (i32.const 1024))
  (func (export "tona_alloc") (param $size i32) (result i32) (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top
      (i32.and (i32.add (i32.add (global.get $top) (local.get $size)) (i32.const 15))
               (i32.const -16)))
    (local.get $at))
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32) (local $left i32)
    (local.set $left (i32.const 30000000))
    (loop $again
      (i32.store (i32.const 64) (local.get $left))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (memory.copy (local.get $out) (local.get $in) (i32.const 48))
    (i32.const 0)))
"""


def slow_module() -> bytes:
    return bytes(wasmtime.wat2wasm(SLOW))


def fast_model() -> bytes:
    ends = Model.value("x", 2, "n"), Model.value("y", 2, "n")
    graph = Model.graph([Model.node("Identity", ["x"], ["y"])], [ends[0]], [ends[1]])
    return Model.whole(graph)


async def submit(loop: Loop, **more: Any) -> None:
    """Submit a step whose author takes its slow form for the fast one."""
    files = {"wasm": slow_module(), "onnx": fast_model()}
    refs = {
        kind: {"digest": "sha256:" + hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for kind, data in files.items()
    }
    for kind, data in files.items():
        path = f"/v1/artifacts/{hashlib.sha256(data).hexdigest()}?name=echo&media={kind}"
        (await loop.http.put(path, content=data)).raise_for_status()
    port = {"dtype": "uint8", "shape": [-1]}
    task = {
        "name": "turn",
        "executor": "wasm",
        "artifact": refs["wasm"],
        "expected_ms": 1,
        "limits": {"memory_bytes": 64 << 20},
        "inputs": {"x": {"from": "request.x", **port}},
        "outputs": {"y": port},
        "variants": [
            {"name": "graph", "executor": "onnx", "artifact": refs["onnx"], "expected_ms": 90}
        ],
        **more,
    }
    service = {"name": "echo", "kind": "computing", "outputs": {"y": "turn.y"}, "tasks": [task]}
    document = json.dumps({"name": "echo", "services": [service]})
    body = {"document": document, "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()


async def test_a_step_ends_on_its_fast_form_and_no_request_fails(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 2, "embedded") as loop:
        await submit(loop)
        await loop.until("/v1/tasks", lambda all_: all_ and all_[0]["state"] == "running")
        async with tona.connect(loop.running.api_url) as client:
            stream = Stream(client, "echo", PATIENCE_S)
            working = asyncio.create_task(stream.work())
            await loop.until("/v1/tasks", lambda all_: all_[0]["variant"] == "graph")
            await stream.more(20)
            stream.stop()
            await working
        assert (stream.failures, stream.wrong) == ([], 0)
        seen = await loop.get("/v1/tasks/echo.turn/explain")
        options = seen["placement"]["options"]
        here = {
            one["variant"]: one for one in options if one["node"] == seen["placement"]["chosen"][0]
        }
        assert here["graph"]["chosen"]
        assert {one["source"] for one in here.values()} == {"measured"}
        assert here[""]["run_ms"] > here["graph"]["run_ms"]
        assert here[""]["why"].startswith("costs ")
