"""A guest that runs a model in the middle of its own call, on real processes that are killed."""

import asyncio
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wasmtime
from executor_guests import GUEST
from executor_models import Model
from loop_cell import PATIENCE_S, Loop, running_loop

import tona

pytestmark = pytest.mark.timeout(240)
ROUNDS = 4

IMPORT = '(import "tona" "infer" (func $infer (param i32 i32 i32 i32 i32 i32) (result i32)))'
# Gives what the model "net" gives for its own input.
BODY = """(local $code i32)
  (i32.store (i32.const 16) (i32.const 0x0074656e))
  (local.set $code (call $infer (i32.const 16) (i32.const 3)
    (local.get $in) (i32.const 1) (i32.const 256) (i32.const 1)))
  (memory.copy (local.get $out) (i32.const 256) (i32.const 48))
  (local.get $code)"""


def artifacts() -> tuple[bytes, bytes]:
    """Return a guest and the model that it runs, which doubles its input."""
    guest = GUEST.format(imports=IMPORT, pages="2", extra="", body=BODY)
    node = Model.node("Add", ["a", "a"], ["b"])
    ports = [Model.value("a", 1, "n")], [Model.value("b", 1, "n")]
    return bytes(wasmtime.wat2wasm(guest)), Model.whole(Model.graph([node], *ports))


def document(guest: bytes, model: bytes) -> dict[str, Any]:
    port = {"dtype": "float32", "shape": [-1]}

    def task(name: str, executor: str, data: bytes, **fields: Any) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        artifact = {"digest": digest, "size_bytes": len(data)}
        return {"name": name, "executor": executor, "artifact": artifact} | fields

    tasks = [
        task(
            "guest",
            "wasm",
            guest,
            infers=["net"],
            inputs={"x": {"from": "request.x", **port}},
            outputs={"y": port},
        ),
        task(
            "net",
            "onnx",
            model,
            inputs={"a": {"from": "infer", **port}},
            outputs={"b": port},
            deviceless={"keep_alive_ms": 100},
        ),
    ]
    service = {"name": "s", "kind": "inference", "outputs": {"y": "guest.y"}, "tasks": tasks}
    return {"name": "u", "services": [service]}


async def submit(loop: Loop) -> None:
    guest, model = artifacts()
    for data, media in ((guest, "wasm"), (model, "onnx")):
        path = f"/v1/artifacts/{hashlib.sha256(data).hexdigest()}?name=a&media={media}"
        (await loop.http.put(path, content=data)).raise_for_status()
    body = {"document": json.dumps(document(guest, model)), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()


async def test_a_guest_infers_whatever_is_killed(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 2, "embedded") as loop:
        await submit(loop)
        tasks = await loop.until(
            "/v1/tasks",
            lambda tasks: len(tasks) == 2 and all(one["state"] == "running" for one in tasks),
        )
        (node,) = {one["node"] for one in tasks}
        async with tona.connect(loop.running.api_url) as client:

            async def ask(number: int) -> None:
                x = np.arange(number, number + 3, dtype=np.float32)
                answer = await client.invoke("s", {"x": x}, deadline_s=PATIENCE_S)
                np.testing.assert_array_equal(answer.outputs["y"], x + x)

            await asyncio.gather(*map(ask, range(6)))
            for at in range(ROUNDS):
                word = ("onnx_zygote", "wasm_zygote")[at % 2]
                asked = [asyncio.create_task(ask(10 * at + one)) for one in range(6)]
                # The first process is the zygote; behind it, models, workers and hosts.
                for pid in loop.children(node, word)[1:]:
                    os.kill(pid, signal.SIGKILL)
                await asyncio.gather(*asked)
            # A large tensor goes the same way, and comes back.
            x = np.arange(100_000, dtype=np.float32)
            answer = await client.invoke("s", {"x": x}, deadline_s=PATIENCE_S)
            np.testing.assert_array_equal(answer.outputs["y"], x + x)
