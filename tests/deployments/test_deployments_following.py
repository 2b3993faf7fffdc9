"""A counter at the edge follows the device that it serves, and counts on."""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import wasmtime
from deployment_identities import NAME, OPERATOR, Identities
from deployment_world import World, running, staying
from loop_cell import PATIENCE_S, chain, echo_module, expecting
from loop_counter import COUNTER, Counting
from real_brokers import MOSQUITTO

import tona
from controller.broker.lease import PortLease
from protocols.transport.tls import client_context, load
from tona.local.place import Place
from tona.testbed.lane import Conditions
from tona.testbed.proxy import CellProxy

pytestmark = pytest.mark.timeout(240)
DEVICE, NEAR, FAR = "ue-1", "ue-3", "ue-2"
"""The device and the first edge node begin in one cell, the other edge node in the other."""
FIRST, SECOND = "du-1", "du-2"
FAR_MS = 10.0
"""To the first edge node, and from it: the way between two gateways of one machine is short."""
TASK = "count.step1"


async def _submit(
    world: World, own: Identities | None = None, beside: int = 100, **policy: Any
) -> None:
    counter = bytes(wasmtime.wat2wasm(COUNTER.format(beside=beside)))
    modules = {"echo": echo_module(), "count": counter}
    if own is not None:
        await own.publish(world, **modules)
    for name, module in modules.items() if own is None else ():
        path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name={name}&media=wasm"
        (await world.http.put(path, content=module)).raise_for_status()
    document: dict[str, Any] = json.loads(chain("count", 2, echo_module(), **policy))
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
    """Whether the device has moved, and the counter has all that it remembers where it is to be."""
    own, edge = sorted(tasks, key=lambda one: str(one["spec"]["task"]))
    whole = not edge["leaving"] and not edge["memory"] and not edge["heir"] and not own["heir"]
    return bool(own["attached"]) and whole and own["scheduler"] == edge["scheduler"]


def _is_far(node: dict[str, Any]) -> bool:
    return float((node["link"] or {}).get("round_trip_ms") or 0.0) >= 2 * FAR_MS


def _moved(one: dict[str, Any]) -> bool:
    return bool(one["event"] == "memory-moved")


@asynccontextmanager
async def _slow() -> AsyncIterator[tuple[int, int]]:
    """Put the first edge node far from its gateway; give the port of that, and where it is met."""
    lease = PortLease("127.0.0.1", 0)
    proxy = CellProxy(FIRST, (NEAR,), random.random)
    proxy.become(NEAR, Conditions(delay_ms=FAR_MS))
    await proxy.start("127.0.0.1", lease.port)
    try:
        yield lease.port, proxy.port
    finally:
        await proxy.stop()
        lease.close()


async def test_a_counter_follows_its_device_and_counts_on(tmp_path: Path) -> None:
    options = (f"--attachment={tmp_path}/{{node}}.json", "--radios=2")
    async with (
        _slow() as (port, slow),
        running(
            tmp_path,
            NAME,
            3,
            options=options,
            places={FIRST: Place(broker_port=port)},
            own_options={NEAR: (f"--broker=127.0.0.1:{slow}",)},
            config=staying(tmp_path),
        ) as world,
    ):
        await _submit(world)
        # The anchor hears of it in the same moment, as it has of the way to the other gateway.
        await world.until(f"/v1/nodes/{NEAR}", _is_far)
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
        seen = await world.get("/v1/handovers")
    assert counting.failures == []
    # No number is told twice, and none is left out but by a call that was repeated.
    assert len(set(counting.told)) == len(counting.told) == counting.sent
    assert max(counting.told) <= counting.sent + counting.again
    assert edge == FAR
    assert any(_moved(one) for one in story)
    said = [one["edge"][TASK] for one in seen if TASK in one["edge"]]
    assert said[0].startswith(f"follows to {FAR}: "), said
    assert said[0].endswith(" ms between them, measured)"), said


async def _checkpoints(world: World) -> float:
    """Return how often the anchor was told what tasks remember."""
    counters = (await world.get("/v1/system"))["counters"]
    return float(sum(n for name, n in counters.items() if name.endswith("_checkpoints")))


async def _heard(world: World, counting: Counting) -> int:
    """Return a number that a checkpoint has which the anchor knows."""
    number, before = max(counting.told), await _checkpoints(world)
    # One of them may have been asked for before that number was counted.
    async with asyncio.timeout(PATIENCE_S):
        while await _checkpoints(world) < before + 2:
            await counting.more(1)
    return number


async def _goes_on_elsewhere(world: World, client: tona.AsyncClient) -> None:
    """Kill the node of the counter while it counts, and hold what the other cell goes on with."""

    def lost(story: list[dict[str, Any]]) -> bool:
        return any(one["event"] == "memory-lost" for one in story)

    [edge] = [one for one in await world.get("/v1/tasks") if one["spec"]["task"] == TASK]
    assert edge["node"] == NEAR
    counting = Counting(client)
    worker = asyncio.create_task(counting.work())
    await counting.more(20)
    known = await _heard(world, counting)
    told = len(counting.told)
    world.deployed._supervisor.kill(NEAR)
    with expecting("the loss of a node"):
        await world.until(f"/v1/tasks/{TASK}/events", lost)
        await counting.more(20)
    counting.stop()
    await worker
    [edge] = [one for one in await world.get("/v1/tasks") if one["spec"]["task"] == TASK]
    assert edge["node"] == FAR
    assert counting.failures == []
    assert min(counting.told[told:]) > known
    story = await world.get(f"/v1/tasks/{TASK}/events")
    [detail] = [one["detail"] for one in story if one["event"] == "memory-lost"]
    assert detail.startswith(f"{NEAR} is lost with what it remembered; it goes on with what was ")


async def test_a_counter_whose_node_is_killed_counts_on_in_another_cell(tmp_path: Path) -> None:
    async with running(tmp_path, NAME, 3, config=staying(tmp_path)) as world:
        await _submit(world, checkpoint_ms=300)
        async with tona.connect(world.seen.api_url) as client:
            await _goes_on_elsewhere(world, client)


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
async def test_a_large_memory_comes_from_the_store_of_the_other_gateway_over_tls(
    tmp_path: Path,
) -> None:
    own = Identities(tmp_path, 3)
    look = client_context(load(own.file(OPERATOR)))
    config = staying(tmp_path)
    async with running(
        tmp_path, NAME, 3, "mosquitto", places=own.places, config=config, verify=look
    ) as world:
        await _submit(world, own, 100_000, checkpoint_ms=300)
        async with tona.connect(own.renewed(world)) as client:
            await _goes_on_elsewhere(world, client)
