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
SECOND = "du-2"
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


def _arrived(tasks: list[dict[str, Any]]) -> bool:
    """Whether the device has moved, and the counter has all that it remembers where it is to be.

    Busy machines have nodes seek another cell by themselves: then the edge node may have come along
    or the new cell has none.
    """
    own, edge = sorted(tasks, key=lambda one: str(one["spec"]["task"]))
    whole = not edge["leaving"] and not edge["memory"] and not edge["heir"] and not own["heir"]
    near = own["scheduler"] == edge["scheduler"]
    stays = edge["following"].startswith("stays")
    return bool(own["attached"]) and whole and (near or stays)


def _moved(one: dict[str, Any]) -> bool:
    return bool(one["event"] == "memory-moved")


async def test_a_counter_follows_its_device_and_counts_on(tmp_path: Path) -> None:
    options = (f"--attachment={tmp_path}/{{node}}.json", "--radios=2")
    async with running(tmp_path, "cu-dus-ues", 3, options=options) as world:
        await _submit(world)
        follow = tmp_path / f"{DEVICE}.json"
        async with tona.connect(world.seen.api_url, follow=follow) as client:
            counting = Counting(client)
            workers = [asyncio.create_task(counting.work()) for _ in range(2)]
            await counting.more(20)
            await world.hand_over(DEVICE, SECOND)
            with expecting("the handover"):
                tasks = await world.until("/v1/tasks", _arrived)
                await counting.more(20)
            counting.stop()
            await asyncio.gather(*workers)
        edge = next(one["node"] for one in tasks if one["spec"]["task"] == TASK)
        story = await world.get(f"/v1/tasks/{TASK}/events")
        [*_, seen] = await world.get("/v1/handovers")
    assert counting.failures == []
    # No number is told twice, and none is left out but by a call that was repeated.
    assert len(set(counting.told)) == len(counting.told) == counting.sent
    assert max(counting.told) <= counting.sent + counting.again
    if edge == FAR:
        assert any(_moved(one) for one in story)
        assert seen["edge"][TASK].startswith(f"follows to {FAR}: ")
