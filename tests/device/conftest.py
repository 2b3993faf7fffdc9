"""Puts the harness of this folder on the path (tests are no package); real things as fixtures."""

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from device_world import Agent, Peer, Store, node_filters
from real_brokers import Broker

from protocols.topics import Speaker


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    one = Broker("mosquitto", tmp_path)
    await one.start()
    yield one
    await one.close()


@pytest.fixture
def store() -> Iterator[Store]:
    one = Store()
    yield one
    one.close()


@pytest.fixture
async def scheduler(broker: Broker, store: Store) -> AsyncIterator[Peer]:
    one = Peer("ts", Speaker.CONTROLLER, broker.port, node_filters())
    one.welcoming = store.url
    await one.connected()
    yield one
    await one.close()


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[Peer]:
    one = Peer("app", Speaker.CLIENT, broker.port, ["tona/1/cell/client/app/reply"])
    await one.connected()
    yield one
    await one.close()


@pytest.fixture
async def agent(broker: Broker, tmp_path: Path) -> AsyncIterator[Agent]:
    one = Agent(tmp_path / "data", broker.port)
    yield one
    await one.close()


@pytest.fixture
async def agents() -> AsyncIterator[Callable[[Agent], Agent]]:
    made: list[Agent] = []

    def keep(one: Agent) -> Agent:
        made.append(one)
        return one

    yield keep
    for one in made:
        await one.close()
