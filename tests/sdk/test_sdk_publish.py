"""Programs publish values on the inputs of a service, with the bounds of the rest of the SDK."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from real_brokers import Broker
from sdk_cell import CELL, PATIENCE_S, Cell, Peer

import tona
from protocols import topics
from protocols.messages import Invoke
from protocols.messages.invocation import Blob
from protocols.topics import Channel, Party, Speaker
from protocols.transport.session import Inbound
from tona.client import AsyncClient
from tona.target import at_cell


class Node:
    """Hears what is published for a service."""

    def __init__(self, port: int) -> None:
        self.heard: asyncio.Queue[Inbound] = asyncio.Queue()
        topic = str(topics.build(CELL, Party.SERVICE, "s", Channel.INPUT))
        self.peer = Peer(port, "feeder", Speaker.NODE, topic, self.heard.put_nowait)

    async def hear(self) -> tuple[Inbound, Invoke]:
        async with asyncio.timeout(PATIENCE_S):
            inbound = await self.heard.get()
        assert isinstance(inbound.frame.body, Invoke)
        return inbound, inbound.frame.body


@pytest.fixture
async def node(broker: Broker, cell: Cell) -> AsyncIterator[Node]:
    del cell
    one = Node(broker.port)
    async with one.peer:
        yield one


async def test_a_program_publishes_values_each_under_a_name_of_its_own(
    cell: Cell, node: Node
) -> None:
    async with tona.connect(cell.url, tenant="acme", agent="planner") as client:
        names = [await client.publish("s", {"x": text}) for text in ("one", "two")]
        for name, text in zip(names, (b"one", b"two"), strict=True):
            inbound, body = await node.hear()
            assert (body.request, body.service, body.agent) == (name, "s", "planner")
            assert body.inputs["x"].data == text  # type: ignore[union-attr]
            assert (body.reply_to, body.plan) == ("", None)
            assert (inbound.frame.tenant, inbound.frame.cause) == ("acme", name)
    assert len(set(names)) == 2


async def test_a_blocking_client_publishes_and_large_values_go_to_the_store(
    cell: Cell, node: Node
) -> None:
    image = np.zeros(300_000, np.uint8)

    def work() -> str:
        with tona.connect_blocking(cell.url) as client:
            return client.publish("s", {"x": image}, deadline_s=PATIENCE_S)

    name = await asyncio.to_thread(work)
    _, body = await node.hear()
    assert body.request == name
    value = body.inputs["x"]
    assert isinstance(value, Blob)
    assert cell.blobs[value.digest.removeprefix("sha256:")] == image.tobytes()


async def test_what_is_published_without_a_connection_waits_for_one(
    broker: Broker, node: Node
) -> None:
    client = AsyncClient(at_cell(CELL, "127.0.0.1", broker.port))
    await client.open()
    try:
        await broker.kill()
        async with asyncio.timeout(PATIENCE_S):
            while client._connected.is_set() or node.peer._ready.is_set():  # noqa: ASYNC110 - what no callback tells
                await asyncio.sleep(0.005)
        with pytest.raises(tona.DeadlineExceeded, match="nothing was published"):
            await client.publish("s", {"x": "late"}, deadline_s=0.05)
        waiting = asyncio.create_task(client.publish("s", {"x": "kept"}, deadline_s=PATIENCE_S))
        await asyncio.sleep(0)
        assert not waiting.done()
        await broker.start()
        # QoS 0: who is not there when it is said does not hear it.
        await waiting
        await node.peer.connected()
        await client.publish("s", {"x": "heard"}, deadline_s=PATIENCE_S)
        while (await node.hear())[1].inputs["x"].data != b"heard":  # type: ignore[union-attr]
            pass
    finally:
        await client.close()


async def test_what_cannot_be_published_is_told(cell: Cell) -> None:
    async with tona.connect(cell.url) as client:
        for service, inputs, deadline_s, why in (
            ("a/b", {"x": "1"}, 1.0, "cannot name a service"),
            ("s", {"x": 7}, 1.0, "is of type int"),
            ("s", {"x": "1"}, 0.0, "deadline_s is 0"),
        ):
            with pytest.raises(tona.BadInput, match=why):
                await client.publish(service, inputs, deadline_s=deadline_s)
    with pytest.raises(tona.ClientClosed):
        await client.publish("s", {"x": "1"})


async def test_a_full_connection_refuses(
    cell: Cell, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    del node
    host, port = "127.0.0.1", int(cell.system["broker"].rpartition(":")[2])
    client = AsyncClient(at_cell(CELL, host, port))
    await client.open()
    try:
        monkeypatch.setattr(client._attachment, "send", lambda *_, **__: False)
        with pytest.raises(tona.Refused, match="no more messages"):
            await client.publish("s", {"x": "1"})
    finally:
        await client.close()
