"""The air on loopback: a proxy before each cell's broker, with a pair of lanes for each node.

Who connects is seen in the first packet. What would be lost comes later, as on a TCP connection,
and a link that goes down ends its connections. Whoever is no node that moves passes untouched.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from protocols.transport.packets import MalformedPacket
from tona.testbed.connecting import CONNECT_MAX_BYTES, NoConnect, client_id
from tona.testbed.lane import Conditions, Lane

CHUNK_BYTES: Final = 16_384
WAITING_MAX: Final = 64
"""Chunks of one direction of a connection that are on their way; then the sender waits."""
FIRST_PACKET_S: Final = 10.0
LOOPBACK: Final = "127.0.0.1"
BESIDE: Final = "client-"
"""How the name of a client beside a node begins."""


class LoopbackLink:
    """A node's link to a cell: two lanes, and the connections that go over it."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self.from_node, self.to_node = Lane(chance), Lane(chance)
        self.up = False
        self._writers: set[asyncio.StreamWriter] = set()

    def become(self, now: Conditions) -> None:
        """Have other conditions; connections over a link that is down end at once."""
        self.up = now.up
        self.from_node.become(now, now.up_mbit_per_s)
        self.to_node.become(now, now.down_mbit_per_s)
        if not now.up:
            for writer in list(self._writers):
                writer.transport.abort()

    def holds(self, *writers: asyncio.StreamWriter) -> None:
        """Take note of a connection's two ends."""
        self._writers.update(writers)

    def drops(self, *writers: asyncio.StreamWriter) -> None:
        """Forget them."""
        self._writers.difference_update(writers)


class CellProxy:
    """Listens for one cell; `start` names the broker behind it."""

    def __init__(self, cell: str, nodes: tuple[str, ...], chance: Callable[[], float]) -> None:
        """Take a free port. Raises OSError."""
        self.cell = cell
        self.links = {node: LoopbackLink(chance) for node in nodes}
        self._socket = socket.create_server((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]
        self._behind = ("", 0)
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> None:
        """Let connections through to a broker."""
        self._behind = (host, port)
        self._server = await asyncio.start_server(self._accepted, sock=self._socket)

    def become(self, node: str, now: Conditions) -> None:
        """Change the link of a node."""
        self.links[node].become(now)

    async def stop(self) -> None:
        """End every connection, and listen no more; safe before `start`."""
        if self._server is None:
            self._socket.close()
            return
        self._server.close()
        for one in self._open:
            one.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, NoConnect, MalformedPacket, TimeoutError):
            pass
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, who = b"", None
        async with asyncio.timeout(FIRST_PACKET_S):
            while who is None:
                more = await reader.read(CONNECT_MAX_BYTES)
                if not more:
                    return
                first += more
                who = client_id(first)
        link = self.links.get(node_of(who))
        if link is not None and not link.up:
            return
        behind = await asyncio.open_connection(*self._behind)
        for one in (writer, behind[1]):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if link is not None:
                link.holds(writer, behind[1])
            async with asyncio.TaskGroup() as group:
                from_node = link.from_node if link is not None else None
                to_node = link.to_node if link is not None else None
                group.create_task(_carry(reader, behind[1], from_node, first))
                group.create_task(_carry(behind[0], writer, to_node, b""))
        except* OSError:
            pass
        finally:
            if link is not None:
                link.drops(writer, behind[1])
            behind[1].transport.abort()


def node_of(client: str) -> str:
    """Return over whose link a client comes: the node's own, or that of the client beside it.

    A session appends a hyphen and some letters to its name.
    """
    return client.rpartition("-")[0].removeprefix(BESIDE)


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lane: Lane | None, first: bytes
) -> None:
    """Carry one direction until its end; raises OSError then, so that the other ends too."""
    clock = asyncio.get_running_loop().time
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING_MAX)

    async def deliver() -> None:
        while True:
            due_ms, data = await waiting.get()
            pause_s = due_ms / 1000 - clock()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        data = first
        while not delivery.done():
            now_ms = clock() * 1000
            due_ms = lane.bytes(len(data), now_ms) if lane is not None else now_ms
            if due_ms is None:
                break
            if data:
                await waiting.put((due_ms, data))
            data = await reader.read(CHUNK_BYTES)
            if not data:
                break
        raise ConnectionResetError
    finally:
        delivery.cancel()
        with suppress(asyncio.CancelledError, OSError):
            await delivery
