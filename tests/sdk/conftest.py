"""Fixtures: a broker of each kind, and a cell on it made of the protocol alone."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from real_brokers import KINDS, Broker
from sdk_cell import Cell


@pytest.fixture(params=KINDS)
async def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    one = Broker(request.param, tmp_path)
    await one.start()
    yield one
    await one.close()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    one = Broker("iotcore", tmp_path)
    await one.start()
    yield one
    await one.close()


@pytest.fixture
async def cell(broker: Broker) -> AsyncIterator[Cell]:
    async with Cell(broker.port) as one:
        yield one
