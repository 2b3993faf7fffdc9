"""What stays of a model that rests is what its agreed latency needs, also for first requests."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from executor_models import Model
from loop_cell import PATIENCE_S, Loop, running_loop

import tona

pytestmark = pytest.mark.timeout(240)
ONE = np.ones(2, np.float32)
KEEP_MS = 150
ROUNDS = 4
BOUNDS: dict[str, float | None] = {"tight": 20.0, "loose": None}
"""Of the latency, ms: below what a model takes to start, and none."""


def model() -> bytes:
    ends = Model.value("x", 1, "n"), Model.value("y", 1, "n")
    return Model.whole(Model.graph([Model.node("Identity", ["x"], ["y"])], [ends[0]], [ends[1]]))


async def submit(loop: Loop) -> None:
    data = model()
    digest = hashlib.sha256(data).hexdigest()
    put = await loop.http.put(f"/v1/artifacts/{digest}?name=same&media=onnx", content=data)
    put.raise_for_status()
    port = {"dtype": "float32", "shape": [-1]}
    task = {
        "name": "t",
        "executor": "onnx",
        "artifact": {"digest": f"sha256:{digest}", "size_bytes": len(data)},
        "limits": {"memory_bytes": 128 << 20},
        "deviceless": {"keep_alive_ms": KEEP_MS},
        "expected_ms": 1,
        "inputs": {"x": {"from": "request.x", **port}},
        "outputs": {"y": port},
    }
    services: list[dict[str, Any]] = []
    for name, bound in BOUNDS.items():
        one: dict[str, Any] = {"name": name, "kind": "inference", "outputs": {"y": "t.y"}}
        if bound is not None:
            one["sla"] = {"zone": {"latency_ms": {"at_most": bound}}}
        services.append({**one, "tasks": [task]})
    body = {"document": json.dumps({"name": "same", "services": services}), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()


async def kept(loop: Loop, name: str) -> str:
    """Return what stays of a task, once it has been decided."""
    seen = await loop.until(
        f"/v1/tasks/{name}.t/explain", lambda seen: (seen["placement"] or {}).get("options")
    )
    return next(str(one["warmth"]) for one in seen["placement"]["options"] if one["chosen"])


async def test_a_tight_latency_keeps_what_it_needs_and_none_keeps_nothing(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 1, "embedded") as loop:
        await submit(loop)
        await loop.until(
            "/v1/tasks",
            lambda tasks: len(tasks) == 2 and all(one["state"] == "running" for one in tasks),
        )
        stays = {name: await kept(loop, name) for name in BOUNDS}
        assert stays["loose"] == "form"
        assert stays["tight"] in {"process", "instance"}
        async with tona.connect(loop.running.api_url) as client:
            for _ in range(ROUNDS):
                for name in BOUNDS:
                    # Long enough to rest, so that each request is a first one.
                    await asyncio.sleep(2 * KEEP_MS / 1000)
                    answer = await client.invoke(name, {"x": ONE}, deadline_s=PATIENCE_S)
                    assert np.array_equal(np.asarray(answer.outputs["y"]), ONE)
