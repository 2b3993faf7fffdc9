"""Fixtures: a broker of each kind, peers that are stopped at the end."""

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from real_brokers import KINDS, Broker
from transport_peers import Peer


@pytest.fixture(params=KINDS)
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    one = Broker(request.param, tmp_path)
    await one.start()
    yield one
    await one.close()


@pytest.fixture
async def peer() -> AsyncIterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(*args: Any, **kwargs: Any) -> Peer:
        made.append(Peer(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        await one.stop()
