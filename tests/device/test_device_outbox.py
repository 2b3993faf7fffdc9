"""A real daemon with one radio: what it reads and publishes while attached nowhere is not lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from device_roam import EAGER, Cells, statuses
from device_world import ECHO, NODE, Store

from protocols import topics
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port
from protocols.messages import Assign, Feed, Result
from protocols.messages.invocation import REQUEST, Edge, Plan, Step
from protocols.messages.quality import Sink, SinkKind, Source, SourceKind
from protocols.messages.task import InstanceState
from protocols.topics import Channel, Party, Speaker
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

OUTPUT = topics.anywhere(Party.SERVICE, "s", Channel.OUTPUT)
STEP = Step("echo", NODE, 1, (Edge("x", REQUEST, "x"),), ("y",))
CAMERA = Source("x", SourceKind.SENSOR, "camera", Dtype.UINT8, (-1,), rate_per_s=50.0)
FED = Feed(
    "s",
    1,
    Plan("s", 1, (STEP,), (Edge("y", "echo", "y"),)),
    (CAMERA,),
    (Sink("y", SinkKind.TOPIC),),
    budget_ms=10_000,
)


@pytest.fixture
async def world(tmp_path: Path, store: Store) -> AsyncIterator[Cells]:
    one = Cells(tmp_path, store)
    await one.start()
    yield one
    await one.close()


class Listener:
    """Hears the outputs of a service at the broker of one cell, also those brought there."""

    def __init__(self, world: Cells, cell: str) -> None:
        self._world = world
        self.heard: Counter[int] = Counter()
        """How often, by the number of the value."""
        port = world.cells[cell].broker.port
        self.session = Session(
            Settings(
                host="127.0.0.1",
                port=port,
                identity="listener",
                speaker=Speaker.CLIENT,
                cell=cell,
                backoff=EAGER,
            ),
            subscriptions=[OUTPUT],
            on_message=self._hear,
            on_connected=lambda _: None,
            on_disconnected=lambda _: None,
            next_incarnation=lambda: 1,
        )
        self._running = asyncio.create_task(self.session.run())

    def _hear(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        assert isinstance(body, Result)
        self.heard[int(body.request.rpartition("-")[2])] += 1
        self._world.news.set()

    async def more(self, count: int = 20) -> None:
        enough = len(self.heard) + count
        await self._world.wait(lambda: len(self.heard) >= enough)

    def whole(self) -> bool:
        """Whether nothing is missing between the first and the last."""
        return sorted(self.heard) == list(range(min(self.heard), max(self.heard) + 1))

    async def close(self) -> None:
        await self.session.close()
        await self._running


async def serve(world: Cells, folder: Path) -> None:
    """Start a daemon whose link takes 100 ms to switch, with a camera that feeds its task."""
    wasmtime = pytest.importorskip("wasmtime")
    code = bytes(wasmtime.wat2wasm(ECHO))
    (folder / "camera").write_bytes(b"picture")
    config = folder / "node.toml"
    config.write_text(f'[sensors.camera]\npath = "{folder / "camera"}"\n', encoding="utf-8")
    switch = folder / "switch"
    switch.write_text("#!/bin/sh\nexec sleep 0.1\n", encoding="utf-8")
    switch.chmod(0o755)
    await world.agent.start("--cell=a", "--radios=1", f"--switch={switch}", f"--config={config}")
    await world.wait(lambda: world.where == "a")
    manifest = Manifest(
        ExecutorKind.WASM,
        ArtifactRef(world.store.put(code), len(code)),
        (Port("x", Dtype.UINT8, (-1,)),),
        (Port("y", Dtype.UINT8, (-1,)),),
    )
    world.cells["a"].say(Assign("echo", "s", 1, 1, manifest))
    await world.wait(lambda: any(one.state is InstanceState.READY for one in statuses(world)))
    world.cells["a"].say(FED)


async def test_nothing_is_lost_while_a_single_radio_is_nowhere(
    world: Cells, tmp_path: Path
) -> None:
    world.cells["b"].lines.follow([("s", Channel.OUTPUT)])
    await world.cells["b"].connected()
    listener = Listener(world, "b")
    await serve(world, tmp_path)
    await listener.more()
    for target in ("b", "a"):
        times = await world.times(await world.hand_over(target))
        assert times.apart_ms >= 100
        await listener.more()
    assert listener.whole(), sorted(listener.heard)
    assert set(listener.heard.values()) == {1}, "an orderly farewell leaves no doubt"
    # What was said last to a cell that has died reaches nobody from there.
    world.cells["a"].broker.pause()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await listener.more(1000)
    await world.cells["a"].broker.kill()
    await world.wait(lambda: world.where == "b")
    await listener.more()
    assert listener.whole(), sorted(listener.heard)
    await listener.close()
