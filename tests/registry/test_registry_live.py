import asyncio

from controller.decider import Record, View
from controller.records import ARTIFACT, FLEET, ArtifactRecord
from controller.registry import LiveRegistry, Registry


async def test_a_change_wakes_those_who_wait_for_its_kind_and_no_others() -> None:
    live = LiveRegistry(Registry("e"))
    record = Record(ARTIFACT, "d", ArtifactRecord("d", 1), "c")
    artifacts = [asyncio.create_task(live.changed(ARTIFACT)) for _ in range(3)]
    fleet = asyncio.create_task(live.changed(FLEET))
    await asyncio.sleep(0)
    live.apply([record])
    async with asyncio.timeout(60):
        await asyncio.gather(*artifacts)
    assert not fleet.done()
    live.apply(views=[View(FLEET, "n", None)])
    async with asyncio.timeout(60):
        await fleet
    assert live.model.revision == 2


async def test_closing_wakes_everybody_and_nobody_waits_again() -> None:
    live = LiveRegistry(Registry("e"))
    waiting = asyncio.create_task(live.changed(FLEET))
    await asyncio.sleep(0)
    live.close()
    async with asyncio.timeout(60):
        await waiting
        await live.changed(FLEET)
    assert live.closed
