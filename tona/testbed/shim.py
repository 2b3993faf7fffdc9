"""The air between nodes and gateways: packets from one TUN device to another, late or never.

    python -m tona.testbed.shim AIR.json

A process of its own, which knows nothing but `Air`. The devices are there and stay when it dies;
it says `ready` when it holds them all. Where a link is not up both devices lose their carrier.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from controller.child import READY_PREFIX
from tona.local.inside import inside
from tona.testbed.air import MESSAGE_MAX_BYTES, Air, Become, Link
from tona.testbed.lane import Lane

PACKET_MAX_BYTES: Final = 65_536
BATCH: Final = 64
"""Packets of one device before another one is looked at."""
_TUNSETIFF: Final = 0x400454CA
_TUNSETCARRIER: Final = 0x400454E2
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000


def device(space: str, name: str) -> int:
    """Return a descriptor of a TUN device that is there already. Raises OSError."""
    with inside(space):
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        wanted = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(handle, _TUNSETIFF, wanted)
    return handle


class Way:
    """One direction of a link: reads one device, writes the other when the lane says so."""

    def __init__(self, source: int, sink: int, lane: Lane) -> None:
        self.lane = lane
        self._source, self._sink = source, sink
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._loop = asyncio.get_running_loop()
        self._armed = False
        self._loop.add_reader(source, self._read)

    def _read(self) -> None:
        now_ms = self._loop.time() * 1000
        for _ in range(BATCH):
            try:
                packet = os.read(self._source, PACKET_MAX_BYTES)
            except BlockingIOError:
                break
            due_ms = self.lane.packet(len(packet), now_ms)
            if due_ms is not None:
                self._waiting.append((due_ms, packet))
        if self._waiting and not self._armed:
            self._write()

    def _write(self) -> None:
        self._armed = False
        now_ms = self._loop.time() * 1000
        while self._waiting and self._waiting[0][0] <= now_ms:
            # A packet that the other side cannot take is lost, as any other may be.
            with contextlib.suppress(OSError):
                os.write(self._sink, self._waiting.popleft()[1])
        if self._waiting:
            self._armed = True
            self._loop.call_at(self._waiting[0][0] / 1000, self._write)


class LinkShim:
    """Both directions of one link."""

    def __init__(self, link: Link, chance: Callable[[], float]) -> None:
        """Hold the two devices. Raises OSError."""
        self._ends = (
            device(link.node_space, link.cell),
            device(link.cell_space, link.node),
        )
        node_end, cell_end = self._ends
        self._from_node = Way(node_end, cell_end, Lane(chance))
        self._to_node = Way(cell_end, node_end, Lane(chance))
        self._carrier = True
        self._carry(carrier=False)

    def become(self, said: Become) -> None:
        """Have other conditions."""
        now = said.conditions
        self._from_node.lane.become(now, now.up_mbit_per_s)
        self._to_node.lane.become(now, now.down_mbit_per_s)
        self._carry(carrier=now.up)

    def _carry(self, *, carrier: bool) -> None:
        if carrier == self._carrier:
            return
        self._carrier = carrier
        for end in self._ends:
            fcntl.ioctl(end, _TUNSETCARRIER, struct.pack("I", carrier))


class Shim:
    """Every link, and the socket at which changes are heard."""

    def __init__(self, air: Air) -> None:
        """Hold every device. Raises OSError."""
        chance = random.Random(air.seed).random  # noqa: S311 - losses are no secret
        self._links = {(one.node, one.cell): LinkShim(one, chance) for one in air.links}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        Path(air.socket).unlink(missing_ok=True)
        self._socket.bind(air.socket)
        self._hear = msgspec.json.Decoder(Become)
        asyncio.get_running_loop().add_reader(self._socket, self._heard)

    def _heard(self) -> None:
        for _ in range(BATCH):
            try:
                said = self._hear.decode(self._socket.recv(MESSAGE_MAX_BYTES))
            except BlockingIOError:
                return
            except msgspec.DecodeError as error:
                print(f"not understood: {error}", file=sys.stderr)  # noqa: T201 - the log
                continue
            link = self._links.get((said.node, said.cell))
            if link is not None:
                link.become(said)


async def run(air: Air) -> None:
    """Carry packets for ever. Raises OSError."""
    shim = Shim(air)
    sys.stdout.write(f"{READY_PREFIX}{len(air.links)}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().create_future()
    del shim


def main() -> None:
    """Read the air, carry packets until killed."""
    try:
        air = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Air)
        asyncio.run(run(air))
    except (OSError, msgspec.DecodeError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")


if __name__ == "__main__":
    main()
