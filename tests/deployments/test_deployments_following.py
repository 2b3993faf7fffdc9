"""A counter at the edge follows the device that it serves, and counts on."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from deployment_world import World, running
from loop_cell import chain, echo_module, expecting
from loop_counter import COUNTER, Counting

import tona

pytestmark = pytest.mark.timeout(120)
DEVICE, NEAR, FAR = "ue-1", "ue-3", "ue-2"
"""The device and the first edge node begin in one cell, the other edge node in the other."""
FIRST, SECOND = "du-1", "du-2"
TASK = "count.step1"


async def _submit(world: World) -> None:
    counter = bytes(wasmtime.wat2wasm(COUNTER.format(beside=100)))
    for name, module in (("echo", echo_module()), ("count", counter)):
        path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name={name}&media=wasm"
        (await world.http.put(path, content=module)).raise_for_status()
    document: dict[str, Any] = json.loads(chain("count", 2, echo_module()))
    [service] = document["services"]
    own, edge = service["tasks"]
    own["nodes"], edge["nodes"], service["spares"] = [DEVICE], [NEAR, FAR], 0
    digest = f"sha256:{hashlib.sha256(counter).hexdigest()}"
    edge["artifact"] = {"digest": digest, "size_bytes": len(counter)}
    edge["functions"], edge["limits"]["state_bytes"] = ["memory"], 1 << 20
    body = {"document": json.dumps(document), "format": "json"}
    (await world.http.post("/v1/usecases", json=body)).raise_for_status()
    await world.until(
        "/v1/tasks",
        lambda tasks: len(tasks) == 2 and all(one["state"] == "running" for one in tasks),
    )


async def test_a_counter_follows_its_device_and_counts_on(tmp_path: Path) -> None:
    options = (f"--attachment={tmp_path}/{{node}}.json", "--radios=2")
    async with running(tmp_path, "cu-dus-ues", 3, options=options) as world:
        await _submit(world)
        follow = tmp_path / f"{DEVICE}.json"
        async with tona.connect(world.seen.api_url, follow=follow) as client:
            counting = Counting(client)
            workers = [asyncio.create_task(counting.work()) for _ in range(2)]
            for cell, edge in ((SECOND, FAR), (FIRST, NEAR)):
                await counting.more(20)
                path = f"/v1/nodes/{DEVICE}/handover"
                (await world.http.post(path, json={"cell": cell})).raise_for_status()
                with expecting(f"the handover to {cell}"):
                    await world.until(
                        "/v1/tasks",
                        lambda tasks, edge=edge: any(
                            one["spec"]["task"] == TASK
                            and one["node"] == edge
                            and not one["leaving"]
                            and not one["memory"]
                            for one in tasks
                        ),
                    )
                    await counting.more(20)
            counting.stop()
            await asyncio.gather(*workers)
        story = await world.get(f"/v1/tasks/{TASK}/events")
        [*_, seen] = await world.get("/v1/handovers")
    assert counting.failures == []
    assert sorted(counting.told) == list(range(1, counting.sent + 1)), "each number once"
    assert sum(one["event"] == "memory-moved" for one in story) == 2
    assert seen["edge"][TASK].startswith(f"follows to {FAR}: ")
