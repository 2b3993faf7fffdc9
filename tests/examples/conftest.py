"""Puts the helpers of this folder on the path (tests are no package); real things as fixtures."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from examples_world import WAIT_S, Bench, Cell, Connect, Program, Start

from controller.broker.embedded import EmbeddedBroker
from controller.config import Config
from controller.gateway import Gateway


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a Python program in the test's folder."""
    running: list[Program] = []

    async def begin(*arguments: object) -> Program:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *map(str, arguments),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        running.append(Program(process))
        return running[-1]

    yield begin
    for one in running:
        if one.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                one.process.kill()
        await one.process.communicate()


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    """A controller with its embedded broker, in this process."""
    gateway = Gateway(Config(data=str(tmp_path / "cell"), api_port=0, broker_port=0))
    try:
        running = await gateway.start()
        async with httpx.AsyncClient(base_url=running.api_url, timeout=WAIT_S) as http:
            yield Cell(running, http)
    finally:
        await gateway.stop()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    one = EmbeddedBroker("127.0.0.1", 0, tmp_path / "broker")
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
def connect() -> Connect:
    """Give a bench at a broker that hears some filters."""

    @contextlib.asynccontextmanager
    async def made(address: str, *filters: str) -> AsyncIterator[Bench]:
        host, _, port = address.rpartition(":")
        version = aiomqtt.ProtocolVersion.V5
        async with aiomqtt.Client(host, int(port), protocol=version) as mqtt:
            for one in filters:
                await mqtt.subscribe(one, 1)
            yield Bench(mqtt)

    return made
