"""The air of a node that keeps its address: one radio, many gateways, nothing lost between them."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tona.testbed import shim
from tona.testbed.air import Air, Become, Link
from tona.testbed.lane import DOWN, Conditions
from tona.testbed.plan import RADIO

HOSTS = {"du-1": "10.90.1.1", "du-2": "10.90.2.1"}
UP = Conditions()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[tuple[str, str], socket.socket]]:
    """Return what is plugged into each device, by space and name."""
    far: dict[tuple[str, str], socket.socket] = {}
    near = []

    def device(space: str, name: str) -> int:
        ours, far[space, name] = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        near.append(ours)
        return ours.fileno()

    monkeypatch.setattr(shim, "device", device)
    monkeypatch.setattr(shim, "_carry", lambda *_, **__: None)
    yield far
    for one in (*near, *far.values()):
        one.close()


def packet(to: str, content: bytes) -> bytes:
    return bytes(16) + socket.inet_aton(to) + content


async def received(end: socket.socket) -> bytes:
    end.setblocking(False)
    async with asyncio.timeout(60):
        return await asyncio.get_running_loop().sock_recv(end, 4096)


async def test_what_is_sent_while_the_radio_switches_waits_and_any_gateway_is_reached(
    ends: dict[tuple[str, str], socket.socket],
) -> None:
    made = tuple(Link("ue-1", cell, "node", cell, host) for cell, host in HOSTS.items())
    links = shim.links(Air(made, ""), lambda: 0.5)
    assert len(set(links.values())) == 1, "one radio"
    radio = links["ue-1", "du-1"]
    node, cells = ends["node", RADIO], {cell: ends[cell, "ue-1"] for cell in HOSTS}
    radio.become(Become("ue-1", "du-2", DOWN))
    radio.become(Become("ue-1", "du-1", UP))
    node.send(packet(HOSTS["du-2"], b"to the other one"))
    node.send(packet("10.90.0.1", b"beyond"))
    assert (await received(cells["du-2"]))[20:] == b"to the other one"
    assert (await received(cells["du-1"]))[20:] == b"beyond"
    cells["du-2"].send(packet("10.90.200.11", b"from the other one"))
    assert (await received(node))[20:] == b"from the other one"
    radio.become(Become("ue-1", "du-1", DOWN))
    node.send(packet(HOSTS["du-1"], b"meanwhile"))
    cells["du-1"].send(packet("10.90.200.11", b"the other way"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await received(cells["du-1"])
    radio.become(Become("ue-1", "du-2", UP, after_ms=1))
    radio.become(Become("ue-1", "du-2", DOWN))
    node.send(packet("10.90.0.1", b"from its new cell"))
    assert (await received(cells["du-1"]))[20:] == b"meanwhile"
    assert (await received(node))[20:] == b"the other way"
    assert (await received(cells["du-2"]))[20:] == b"from its new cell"


async def test_a_radio_without_a_cell_has_lost_its_link(
    ends: dict[tuple[str, str], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    carriers: asyncio.Queue[bool] = asyncio.Queue()
    monkeypatch.setattr(shim, "_carry", lambda _, *, carrier: carriers.put_nowait(carrier))
    monkeypatch.setattr(shim, "HELD_MS", 1.0)
    made = tuple(Link("ue-1", cell, "node", cell, host) for cell, host in HOSTS.items())
    radio = shim.links(Air(made, ""), lambda: 0.5)["ue-1", "du-1"]
    radio.become(Become("ue-1", "du-1", UP))
    radio.become(Become("ue-1", "du-1", DOWN))
    async with asyncio.timeout(60):
        assert [await carriers.get() for _ in range(3)] == [False, True, False]
    radio.become(Become("ue-1", "du-2", UP))
    assert await carriers.get()
    ends["node", RADIO].send(packet(HOSTS["du-1"], b"again"))
    assert (await received(ends["du-1", "ue-1"]))[20:] == b"again"
