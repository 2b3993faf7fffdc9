"""What a model says is held against its task's document, and a version that lies is put away."""

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
from controller.scheduler.anomalies import FAILURES, HISTORY_MIN

pytestmark = pytest.mark.timeout(240)
ONE = np.ones(2, np.float32)


def model(*node: Any) -> bytes:
    ends = Model.value("x", 1, "n"), Model.value("y", 1, "n")
    return Model.whole(Model.graph([Model.node(*node)], [ends[0]], [ends[1]]))


GOOD = model("Identity", ["x"], ["y"])
BAD = model("Add", ["x", "x"], ["y"])
"""Says twice what it is given: more than the task may ever say."""


async def order(loop: Loop, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    put = await loop.http.put(f"/v1/artifacts/{digest}?name=sure&media=onnx", content=data)
    put.raise_for_status()
    port = {"dtype": "float32", "shape": [-1]}
    task = {
        "name": "t",
        "executor": "onnx",
        "artifact": {"digest": f"sha256:{digest}", "size_bytes": len(data)},
        "limits": {"memory_bytes": 128 << 20},
        "inputs": {"x": {"from": "request.x", **port}},
        "outputs": {"y": port},
        "checks": {"y": {"at_least": 0, "at_most": 1, "finite": True}},
        "quarantine": "auto",
    }
    service = {"name": "sure", "kind": "inference", "outputs": {"y": "t.y"}, "tasks": [task]}
    body = {"document": json.dumps({"name": "sure", "services": [service]}), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
    return f"sha256:{digest}"


async def test_a_model_that_says_too_much_goes_back_to_the_one_before(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 1, "embedded") as loop:
        old = await order(loop, GOOD)
        await loop.until("/v1/tasks", lambda tasks: [one["state"] for one in tasks] == ["running"])
        refused: set[str] = set()
        good = asyncio.Event()
        async with tona.connect(loop.running.api_url) as client:

            async def ask() -> None:
                try:
                    answer = await client.invoke("sure", {"x": ONE}, deadline_s=PATIENCE_S)
                except tona.InvocationError as error:
                    refused.add(str(error))
                else:
                    assert np.array_equal(np.asarray(answer.outputs["y"]), ONE), "never a bad one"
                    good.set()

            def known(stats: Any) -> bool:
                return any(one["calls"] >= HISTORY_MIN for one in stats["versions"])

            stopped = False

            async def work() -> None:
                while not stopped:
                    await ask()

            working = asyncio.create_task(work())
            await loop.until("/v1/tasks/sure.t/stats", known)
            new = await order(loop, BAD)
            task = await loop.until("/v1/tasks/sure.t", lambda task: new in task["quarantined"])
            assert task["spec"]["manifest"]["artifact"]["digest"] == old
            good.clear()
            await asyncio.wait_for(good.wait(), PATIENCE_S)
            stopped = True
            await working
            assert any("above 1, the declared most" in one for one in refused), refused
            stats = await loop.get("/v1/tasks/sure.t/stats")
            flags = next(one["flags"] for one in stats["versions"] if one["digest"] == new)
            assert FAILURES in flags
            audit = await loop.get("/v1/tasks/sure.t/audit?verdict=check-failed")
            assert {one["digest"] for one in audit["calls"]} == {new}
