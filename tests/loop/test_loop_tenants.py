"""Two tenants on one node: processes of their own; what a task remembers outlives all of them."""

import asyncio
import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
import wasmtime
from loop_cell import PATIENCE_S, Loop, running_loop

import tona

pytestmark = pytest.mark.timeout(240)
COUNTER = """(module
  (import "tona" "memory_get" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "tona" "memory_set" (func $set (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4) (data (i32.const 8) "n")
  (func (export "tona_alloc") (param $size i32) (result i32) (i32.const 4096))
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32)
    (drop (call $get (i32.const 8) (i32.const 1) (i32.const 16) (i32.const 4)))
    (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
    (drop (call $set (i32.const 8) (i32.const 1) (i32.const 16) (i32.const 4)))
    (i32.store (local.get $out) (i32.const 16))
    (i32.store offset=4 (local.get $out) (i32.const 4))
    (i32.const 0)))"""


def counting(tenant: str, module: bytes) -> str:
    task = {
        "name": "count",
        "executor": "wasm",
        "artifact": {
            "digest": "sha256:" + hashlib.sha256(module).hexdigest(),
            "size_bytes": len(module),
        },
        "functions": ["memory"],
        "limits": {"memory_bytes": 32 << 20, "state_bytes": 1024},
        "inputs": {"x": {"from": "request.x", "dtype": "uint8", "shape": [-1]}},
        "outputs": {"y": {"dtype": "int32", "shape": [1]}},
    }
    service = {"name": tenant, "kind": "computing", "outputs": {"y": "count.y"}, "tasks": [task]}
    return json.dumps({"name": tenant, "tenant": tenant, "services": [service]})


async def submit(loop: Loop, *tenants: str) -> None:
    module = bytes(wasmtime.wat2wasm(COUNTER))
    path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name=count&media=wasm"
    (await loop.http.put(path, content=module)).raise_for_status()
    for tenant in tenants:
        body = {"document": counting(tenant, module), "format": "json"}
        (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
    await loop.until(
        "/v1/tasks",
        lambda tasks: (
            len(tasks) == len(tenants) and all(one["state"] == "running" for one in tasks)
        ),
    )


async def test_tenants_are_apart_and_remember_through_kills(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 1, "embedded") as loop:
        await submit(loop, "alice", "bob")
        async with tona.connect(loop.running.api_url) as client:

            async def count(tenant: str) -> int:
                answer = await client.invoke(tenant, {"x": b"x"}, deadline_s=PATIENCE_S)
                return int.from_bytes(bytes(answer.outputs["y"]), "little")

            assert [await count("alice") for _ in range(3)] == [1, 2, 3]
            assert [await count("bob") for _ in range(2)] == [1, 2]

            # The zygote, a host for each tenant, and one that is blank.
            zygote, *hosts = loop.children("node-1", "wasm_zygote")
            assert len(hosts) == 3
            os.kill(hosts[0], signal.SIGKILL)
            counts = await asyncio.gather(count("alice"), count("bob"))
            # A call that dies with its host is sent again: it may have counted before.
            assert counts[0] in (4, 5)
            assert counts[1] in (3, 4)

            before = {tenant: await count(tenant) for tenant in ("alice", "bob")}
            os.kill(loop.cell.pid("node-1"), signal.SIGKILL)
            after = {tenant: await count(tenant) for tenant in ("alice", "bob")}
            assert all(after[one] - before[one] in (1, 2) for one in before), (before, after)
            assert zygote not in loop.children("node-1", "wasm_zygote")
