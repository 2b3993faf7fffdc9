"""A scheduler that its anchor has welcomed, with three nodes."""

import pytest
from scheduler_bench import Bench

from protocols.messages import AnchorWelcome


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.anchor(AnchorWelcome("ta-main", 1, 0))
    bench.born("n1", "n2", "n3")
    return bench
