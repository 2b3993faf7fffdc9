"""A deployment of real processes, and the ways to look into it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
from loop_cell import Loop

from tona.local.deployed import Deployed, Plan, Seen
from tona.local.deployments import deployment
from tona.local.place import Place

UNDER_WAY: Final = 409
"""The status of an answer that another handover of the node is under way."""


class World(Loop):
    """A running deployment; `get` and `until` speak with the API that people use."""

    def __init__(self, deployed: Deployed, seen: Seen, http: httpx.AsyncClient) -> None:
        super().__init__(deployed, seen, http)  # type: ignore[arg-type] - of a cell only pid is used
        self.deployed = deployed
        self.seen = seen

    async def online(self, count: int) -> None:
        """Wait until so many nodes are online, as the API for people says."""
        await self.until(
            "/v1/fleet", lambda fleet: sum(one["state"] == "online" for one in fleet) == count
        )

    async def hand_over(self, node: str, cell: str) -> None:
        """Have a node handed over, after whatever else moves it; wait until that cell serves it.

        A node that hears little of its cell, as on a loaded machine, may have gone by itself. The
        handover that is under way may be the one that was asked for.
        """
        path, there = f"/v1/nodes/{node}", f"ts-{cell}"
        async with asyncio.timeout(60):
            while True:
                seen = await self.until(path, lambda one: one["state"] == "online")
                if seen["scheduler"] == there:
                    return
                said = await self.http.post(f"{path}/handover", json={"cell": cell})
                assert said.status_code in {200, 400, UNDER_WAY}, said.text
                await asyncio.sleep(0.1)

    async def delete(self, use_case: str) -> None:
        """Delete a use case, and wait until no task of it is anywhere."""
        async with asyncio.timeout(60):
            while True:
                answer = await self.http.delete(f"/v1/usecases/{use_case}")
                if answer.status_code == 200:
                    break
                await asyncio.sleep(0.1)
        await self.until("/v1/tasks", lambda tasks: not tasks)
        await self.until("/v1/fleet", lambda fleet: not any(one["tasks"] for one in fleet))


@asynccontextmanager
async def running(
    folder: Path,
    name: str,
    nodes: int,
    broker: str = "embedded",
    options: tuple[str, ...] = (),
    places: Mapping[str, Place] | None = None,
    own_options: Mapping[str, tuple[str, ...]] | None = None,
    config: str = "",
    verify: ssl.SSLContext | bool = True,
) -> AsyncIterator[World]:
    said: list[str] = []
    plan = Plan(
        folder=folder,
        deployment=deployment(name),
        nodes=nodes,
        broker=broker,
        places=places or {},
        config=config,
        node_options={
            node: (*(one.format(node=node) for one in options), *(own_options or {}).get(node, ()))
            for node in deployment(name).nodes(nodes)
        },
    )
    deployed = Deployed(plan, lambda one, text: said.append(f"{one} {text}"))
    try:
        seen = await deployed.start()
        async with httpx.AsyncClient(base_url=seen.api_url, timeout=60, verify=verify) as http:
            world = World(deployed, seen, http)
            await world.online(nodes)
            yield world
    finally:
        await deployed.stop()


def staying(folder: Path) -> str:
    """Return a configuration by which nodes go where they are sent, and nowhere else."""
    config = folder / "config.toml"
    config.write_text('[mobility]\ndecides = "nobody"\n', encoding="utf-8")
    return str(config)


async def serving(world: World) -> str:
    """Return the node that runs the first task."""
    tasks: list[dict[str, Any]] = await world.until(
        "/v1/tasks", lambda tasks: tasks and all(one["node"] for one in tasks)
    )
    return str(tasks[0]["node"])
