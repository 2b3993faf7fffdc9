"""The same story in each of the four deployments, on real processes.

Submit a chain, invoke it, kill -9 everything in turn while requests flow, drain, delete.
"""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from deployment_world import World, running, serving
from loop_cell import Stream, expecting

import tona
from tona.local.deployments import DEPLOYMENTS

pytestmark = pytest.mark.timeout(200)
DEADLINE_S = 45.0
NODES = {"cu-dus-ues": 3}
ROAMED = "gnodebs-ues"
"""Has a story of its own, in which nodes go from one to the other."""


@pytest.mark.parametrize("name", [one.name for one in DEPLOYMENTS if one.name != ROAMED])
async def test_every_request_is_answered_once_whatever_is_killed(tmp_path: Path, name: str) -> None:
    nodes = NODES.get(name, 2)
    async with running(tmp_path, name, nodes) as world:
        await world.submit("echo", 2, lost_after_ms=1500)
        async with tona.connect(world.seen.api_url) as client:
            stream = Stream(client, "echo", DEADLINE_S)
            workers = [asyncio.create_task(stream.work()) for _ in range(2)]
            await stream.more(5)
            world.deployed.crash(await serving(world))
            with expecting("killing the device agent"):
                await stream.more(5)
            for process in world.seen.processes:
                world.deployed.crash(process.name)
                with expecting(f"killing {process.name}"):
                    await stream.more(5)
            await world.online(nodes)
            cell = world.deployed.nodes[await serving(world)]
            os.kill(world.children(cell, "embedded_child")[0], signal.SIGKILL)
            with expecting("killing the broker of the cell"):
                await stream.more(5)
            stream.stop()
            await asyncio.gather(*workers)
        assert stream.failures == []
        assert stream.wrong == 0
        assert stream.answered == stream.sent
        await _tells_its_story(world)
        if world.seen.processes[0].name == "core":
            counted = (await world.get("/v1/system"))["counters"]
            assert counted["mqtt_direct_received"] > 0, "the core's TA hears the UEs itself"
        await _drains(world)
        await world.delete("echo")


async def _tells_its_story(world: World) -> None:
    """One view for people: what TA and TS elsewhere said stands in the one API."""
    await world.until(
        "/v1/tasks/echo.step0/events",
        lambda story: {"placed", "running"} <= {one["event"] for one in story},
    )
    await world.until("/v1/tasks", lambda tasks: all(one["state"] == "running" for one in tasks))


async def _drains(world: World) -> None:
    """An operation on a node reaches the TS that holds it, and its effect comes back."""
    await world.online(len(world.deployed.nodes))
    node = max(world.deployed.nodes)
    answer = await world.http.post(f"/v1/nodes/{node}/drain")
    assert answer.json() == {"node": node, "state": "draining"}
    await world.until(f"/v1/nodes/{node}", lambda one: one["state"] == "draining")
