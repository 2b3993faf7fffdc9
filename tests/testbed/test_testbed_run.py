"""A short run on loopback: a node is handed over while its client asks, and nothing is lost."""

import asyncio
from pathlib import Path

import pytest

from tona.testbed.bed import Bed, hold
from tona.testbed.choices import Ask, By
from tona.testbed.loopback import LoopbackGround
from tona.testbed.plan import Spec
from tona.testbed.run import Given, Run
from tona.testbed.traces import Sample, Window

pytestmark = pytest.mark.timeout(180)
MOVE_S = 6.0


def sample(at_s: float, cell: str) -> Sample:
    return Sample(at_s, cell, -90.0, -9.0, 10.0, 12, neighbour_rsrp_dbm=-93.0)


class Stage:
    def __init__(self) -> None:
        self.passed = 0

    def step(self, text: str) -> None:
        pass

    def advanced(self) -> None:
        self.passed += 1


async def test_a_node_is_handed_over_while_its_client_asks(tmp_path: Path) -> None:
    spec = Spec(cells=2, nodes=1)
    moving = Window("drive", (sample(0, "a"), sample(1, "b")), moves=True, length_s=MOVE_S)
    steady = Window("drive", (sample(0, "b"),), moves=False, length_s=1.0)
    given = Given({"ue-1": [moving, steady]}, Ask.DEVICE, 20.0, By.TRACE)
    lock, stage, died = hold(tmp_path), Stage(), list[str]()

    def told(name: str, what: str) -> None:
        died.append(f"{name} {what}")

    run = Run(Bed(LoopbackGround(spec, tmp_path), tmp_path, told), given, told, stage)
    try:
        async with asyncio.timeout(150):
            await run.run()
    finally:
        await run.stop()
        lock.close()
    assert died == []
    assert stage.passed == 2
    phase = run.phase()
    assert phase.whole
    found = phase.verdicts["two_radios"]
    assert found.sent > 50
    assert (found.answered, found.lost, found.doubled) == (found.sent, 0, 0), phase.reasons
    assert (found.handovers, found.failed) == (1, 0), phase.reasons
    assert found.handover.windows == found.steady.windows == 1
