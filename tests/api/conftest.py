import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct

from controller.api.app import Doors
from controller.api.metrics import Metric
from controller.api.operations import SystemInfo
from controller.api.server import ApiServer
from controller.decider import Answer, Record, View
from controller.records import ARTIFACT, FLEET, NODE, ArtifactRecord, NodeRecord, NodeView
from controller.registry import LiveRegistry, Registry
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Accelerator, Inventory

INVENTORY = Inventory("generic", "x86_64", "linux", 4, 1 << 30, 1 << 40, (Accelerator("gpu", "x"),))


class Cell:
    """A host as the API sees it: what it was asked, and what it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = LiveRegistry(Registry("e", log_length=1000))
        self.calls: list[tuple[str, Struct, str, str]] = []
        self.answer: Any = Answer("")
        self.causes: list[str] = []
        self.sick = ""
        self.starting = ""
        doors = Doors(
            self.call,
            self.record,
            self.info,
            self.metrics,
            lambda: self.sick,
            starting=lambda: self.starting,
        )
        self.server = ApiServer("127.0.0.1", 0, self.registry, doors, folder)
        self.address = ("", 0)

    async def call(self, operation: str, arguments: Struct, tenant: str, cause: str) -> Answer:
        self.calls.append((operation, arguments, tenant, cause))
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, asyncio.Event):
            await self.answer.wait()
        return self.answer

    async def record(self, record: ArtifactRecord, tenant: str, cause: str) -> None:
        assert tenant == "default"
        self.causes.append(cause)
        self.registry.apply([Record(ARTIFACT, record.digest, record, cause)])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - files and sockets have no event to wait on
                await asyncio.sleep(0.01)

    def info(self) -> SystemInfo:
        return SystemInfo("lab", "1.2.3", ("namo", "ta"), "mqtt://127.0.0.1:1883", 7, {"sent": 3})

    def metrics(self) -> list[Metric]:
        return [Metric("tona_nodes", "Nodes by state.", {(("state", "online"),): 2})]

    def see_node(self, name: str, state: NodeState = NodeState.ONLINE, silent_ms: int = 0) -> None:
        view = NodeView(name, state, "ts-main", INVENTORY, silent_ms=silent_ms)
        self.registry.apply(views=[View(FLEET, name, view)])

    def lose_node(self, name: str) -> None:
        self.registry.apply(views=[View(FLEET, name, None)])

    def know_node(self, name: str) -> None:
        record = NodeRecord(name, "1.0", "boot", INVENTORY)
        self.registry.apply([Record(NODE, name, record, "c")])


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    one = Cell(tmp_path / "contents")
    one.address = one.server.bind()
    await one.server.start()
    yield one
    async with asyncio.timeout(60):
        await one.server.stop()


@pytest.fixture
async def http(cell: Cell) -> AsyncIterator[httpx.AsyncClient]:
    base = f"http://127.0.0.1:{cell.address[1]}"
    # An empty context: reading the authorities of the web would cost more than the test.
    verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with httpx.AsyncClient(
        base_url=base, timeout=60, trust_env=False, verify=verify
    ) as client:
        yield client
