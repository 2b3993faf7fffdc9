"""A sensor of a node that goes from cell to cell feeds a service, whose outputs feed another."""

import asyncio
import json
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import pytest
from deployment_world import World, running, staying
from loop_cell import PATIENCE_S, chain, echo_module, expecting

import tona
from protocols.messages import Result
from protocols.messages.invocation import Tensor
from protocols.topics import Channel, Party, Speaker, anywhere
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

pytestmark = pytest.mark.timeout(240)
ROAMS, STAYS = "ue-1", "ue-3"
CELLS: Final = ("du-1", "du-2")
PACE_S: Final = 0.1
HANDOVERS: Final = 4
"""There and back, so often: not at each one the cell that is left says something of the feed."""
SWITCH_S: Final = 0.4
"""What the link to another cell takes to come up."""


class Listener:
    """Hears the outputs of services at the broker of each cell."""

    def __init__(self, world: World) -> None:
        self.heard: dict[str, list[tuple[str, str]]] = {}
        """By service: the request and in which cell its output was published first."""
        self.values: Counter[bytes] = Counter()
        self._news = asyncio.Event()
        filters = [anywhere(Party.SERVICE, one, Channel.OUTPUT) for one in ("eye", "mirror")]
        self._sessions = [
            Session(
                self._settings(world, cell),
                subscriptions=filters,
                on_message=lambda inbound, cell=cell: self._hear(inbound, cell),
                on_connected=lambda _: self._news.set(),
                on_disconnected=lambda _: None,
                next_incarnation=count(1).__next__,
            )
            for cell in CELLS
        ]
        self._running = [asyncio.create_task(one.run()) for one in self._sessions]

    @staticmethod
    def _settings(world: World, cell: str) -> Settings:
        at = urlsplit(world.deployed._brokers[cell])
        host, port = at.hostname or "", at.port or 0
        return Settings(
            host=host, port=port, identity="listener", speaker=Speaker.CLIENT, cell=cell
        )

    def _hear(self, inbound: Inbound, cell: str) -> None:
        body = inbound.frame.body
        # What is said in a cell anew, and not brought there.
        if isinstance(body, Result) and inbound.topic.cell == cell:
            self.heard.setdefault(inbound.topic.name, []).append((body.request, cell))
            self.values.update(one.data for one in body.outputs.values() if isinstance(one, Tensor))
            self._news.set()

    async def until(self, condition: Any) -> None:
        """Wait until enough was heard."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self._news.wait()
                self._news.clear()

    def of(self, service: str) -> list[tuple[str, str]]:
        return self.heard.get(service, [])

    async def close(self) -> None:
        await asyncio.gather(*(one.close() for one in self._sessions))
        await asyncio.gather(*self._running)


class Publisher:
    """Publishes ten values a second, each another, on the input of a service."""

    def __init__(self, client: tona.AsyncClient, service: str) -> None:
        self.said: list[bytes] = []
        self._client = client
        self._service = service
        self._stop = asyncio.Event()
        self._running = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        while not self._stop.is_set():
            value = np.full(8, len(self.said), np.float32)
            await self._client.publish(self._service, {"x": value})
            self.said.append(value.tobytes())
            with suppress(TimeoutError):
                async with asyncio.timeout(PACE_S):
                    await self._stop.wait()

    async def end(self) -> None:
        self._stop.set()
        await self._running


async def _submit(world: World, name: str, source: dict[str, Any], node: str = STAYS) -> None:
    document = json.loads(chain(name, 1, echo_module()))
    [service] = document["services"]
    [task] = service["tasks"]
    port = {"dtype": "float32", "shape": [8]}
    task["nodes"], service["spares"] = [node], 0
    task["inputs"] = {"x": {"from": "request.x", **port}}
    task["outputs"] = {"y": port}
    service["sources"], service["sinks"] = {"x": source}, {"y": "topic"}
    body = {"document": json.dumps(document), "format": "json"}
    (await world.http.post("/v1/usecases", json=body)).raise_for_status()


async def test_a_sensor_that_roams_feeds_services_of_another_cell(tmp_path: Path) -> None:
    async with running(tmp_path, "cu-dus-ues", 3, config=staying(tmp_path)) as world:
        # The first one brings the module.
        await world.submit("echo", 1)
        eye = {"kind": "sensor", "name": "load", "nodes": [ROAMS], "rate_per_s": 20}
        await _submit(world, "eye", eye)
        await _submit(world, "mirror", {"kind": "topic", "name": "eye.y", "rate_per_s": 1000})
        listener = Listener(world)
        with expecting("the first outputs"):
            await listener.until(lambda: len(listener.of("mirror")) > 10)
        # What was said before the mirror listened, and what is under way.
        unmirrored = len(listener.of("eye")) - len(listener.of("mirror"))
        for cell in (CELLS[1], CELLS[0], CELLS[1]):
            await world.hand_over(ROAMS, cell)
            before = len(listener.of("eye")), len(listener.of("mirror"))
            with expecting(f"what is fed from {cell}"):
                await listener.until(
                    lambda cell=cell, before=before: (
                        sum(one == cell for _, one in listener.of("eye")[before[0] :]) > 20
                        and len(listener.of("mirror")) > before[1] + 20
                    )
                )
        said = len(listener.of("eye"))
        with expecting("the last ones mirrored"):
            await listener.until(lambda: len(listener.of("mirror")) >= said - unmirrored)
        await listener.close()
    seen = Counter(request for request, _ in listener.of("eye"))
    assert set(seen.values()) == {1}, "no output twice"
    numbers = sorted(int(one.rpartition("-")[2]) for one in seen)
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "and none lost"
    assert {cell for _, cell in listener.of("mirror")} == {CELLS[0]}
    mirrored = Counter(request for request, _ in listener.of("mirror"))
    assert set(mirrored.values()) == {1}


async def test_one_radio_misses_nothing_of_what_its_service_takes_in(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    switch.write_text(f"#!/bin/sh\nsleep {SWITCH_S}\n", encoding="utf-8")
    switch.chmod(0o755)
    roams = {ROAMS: ("--radios=1", f"--switch={switch}")}
    async with (
        running(tmp_path, "cu-dus-ues", 3, own_options=roams, config=staying(tmp_path)) as world,
        tona.connect(world.seen.api_url) as client,
    ):
        # The first one brings the module.
        await world.submit("echo", 1)
        source = {"kind": "topic", "name": "mirror.x", "rate_per_s": 1000}
        await _submit(world, "mirror", source, ROAMS)
        listener = Listener(world)
        publisher = Publisher(client, "mirror")
        with expecting("the first outputs"):
            await listener.until(lambda: len(listener.of("mirror")) > 10)
        for cell in HANDOVERS * (CELLS[1], CELLS[0]):
            await world.hand_over(ROAMS, cell)
            before = len(listener.of("mirror"))
            with expecting(f"what is said in {cell}"):
                await listener.until(
                    lambda cell=cell, before=before: (
                        sum(one == cell for _, one in listener.of("mirror")[before:]) > 20
                    )
                )
        await publisher.end()
        with expecting("the last one"):
            await listener.until(lambda: publisher.said[-1] in listener.values)
        await listener.close()
    first = min(map(publisher.said.index, listener.values))
    assert [one for one in publisher.said[first:] if one not in listener.values] == []
    assert set(listener.values.values()) == {1}, "none twice"
