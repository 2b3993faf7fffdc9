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
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import msgspec

from controller.child import READY_PREFIX
from tona.local.inside import inside
from tona.testbed.air import MESSAGE_MAX_BYTES, Air, Become, Link
from tona.testbed.lane import DOWN, Lane
from tona.testbed.plan import RADIO

PACKET_MAX_BYTES: Final = 65_536
NICENESS: Final = -10
BATCH: Final = 64
"""Packets of one device before another one is looked at."""
HELD_MS: Final = 300.0
"""So long a radio may be between two cells; then its link is lost."""
HELD_MAX: Final = 1024
"""Packets that are kept meanwhile, each way; the oldest make room."""
_TUNSETIFF: Final = 0x400454CA
_TUNSETCARRIER: Final = 0x400454E2
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_DESTINATION: Final = slice(16, 20)
"""Of a packet of IPv4."""


def device(space: str, name: str) -> int:
    """Return a descriptor of a TUN device that is there already. Raises OSError."""
    with inside(space):
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        wanted = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(handle, _TUNSETIFF, wanted)
    return handle


class Way:
    """One direction of a link: reads devices, writes the one that `sink` names when its lane says.

    While it is held, what comes waits.
    """

    def __init__(self, sources: Sequence[int], sink: Callable[[bytes], int], lane: Lane) -> None:
        self.lane = lane
        self._sink = sink
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._kept: deque[bytes] | None = None
        self._loop = asyncio.get_running_loop()
        self._armed = False
        for one in sources:
            self._loop.add_reader(one, self._read, one)

    def hold(self) -> None:
        """Keep what comes from now on."""
        if self._kept is None:
            self._kept = deque(maxlen=HELD_MAX)

    def release(self) -> None:
        """Let what was kept, and what comes, into the lane."""
        kept, self._kept = self._kept, None
        for packet in kept or ():
            self._take(packet, self._loop.time() * 1000)
        self._go()

    def _read(self, source: int) -> None:
        now_ms = self._loop.time() * 1000
        for _ in range(BATCH):
            try:
                packet = os.read(source, PACKET_MAX_BYTES)
            except BlockingIOError:
                break
            if self._kept is not None:
                self._kept.append(packet)
            else:
                self._take(packet, now_ms)
        self._go()

    def _take(self, packet: bytes, now_ms: float) -> None:
        due_ms = self.lane.packet(len(packet), now_ms)
        if due_ms is not None:
            self._waiting.append((due_ms, packet))

    def _go(self) -> None:
        if self._waiting and not self._armed:
            self._write()

    def _write(self) -> None:
        self._armed = False
        now_ms = self._loop.time() * 1000
        while self._waiting and self._waiting[0][0] <= now_ms:
            packet = self._waiting.popleft()[1]
            # A packet that the other side cannot take is lost, as any other may be.
            with contextlib.suppress(OSError):
                os.write(self._sink(packet), packet)
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
        self._from_node = Way([node_end], lambda _: cell_end, Lane(chance))
        self._to_node = Way([cell_end], lambda _: node_end, Lane(chance))
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
            _carry(end, carrier=carrier)


class RadioShim:
    """The links of a node with one radio and one address, of which one carries at a time.

    What leaves the node reaches the gateway that it is addressed to, or else that of the cell of
    the moment; what comes from any gateway reaches the node. While the radio goes from one cell to
    the next both sides keep what they send, as cells do (data forwarding, TS 36.300).
    """

    def __init__(self, links: Sequence[Link], chance: Callable[[], float]) -> None:
        """Hold all devices. Raises OSError."""
        self._at = links[0].cell
        self._node_end = device(links[0].node_space, RADIO)
        self._cell_ends = {one.cell: device(one.cell_space, one.node) for one in links}
        self._gateways = {socket.inet_aton(one.host): self._cell_ends[one.cell] for one in links}
        self._from_node = Way([self._node_end], self._towards, Lane(chance))
        self._to_node = Way([*self._cell_ends.values()], lambda _: self._node_end, Lane(chance))
        self._up = False
        self._coming: asyncio.TimerHandle | None = None
        """Until the radio is at its next cell."""
        self._lost: asyncio.TimerHandle | None = None
        """Until its link is lost, while it is nowhere."""
        _carry(self._node_end, carrier=False)

    def become(self, said: Become) -> None:
        """Have the radio at a cell, now or later, or leave the one where it is."""
        now = said.conditions
        if now.up and said.after_ms:
            self._leave()
            self._forget()
            loop = asyncio.get_running_loop()
            self._coming = loop.call_later(said.after_ms / 1000, self._arrive, said)
        elif now.up:
            self._arrive(said)
        elif said.cell == self._at:
            self._leave()

    def _arrive(self, said: Become) -> None:
        self._forget()
        now, self._at = said.conditions, said.cell
        self._from_node.lane.become(now, now.up_mbit_per_s)
        self._to_node.lane.become(now, now.down_mbit_per_s)
        self._rise()

    def _forget(self) -> None:
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None

    def _leave(self) -> None:
        if not self._up:
            return
        self._up = False
        self._from_node.hold()
        self._to_node.hold()
        self._lost = asyncio.get_running_loop().call_later(HELD_MS / 1000, self._gone)

    def _rise(self) -> None:
        if self._up:
            return
        self._up = True
        if self._lost is None:
            _carry(self._node_end, carrier=True)
        else:
            self._lost.cancel()
            self._lost = None
        self._from_node.release()
        self._to_node.release()

    def _gone(self) -> None:
        """Have no link: what was kept is lost, and the node sees it."""
        self._lost = None
        for one in (self._from_node, self._to_node):
            one.lane.become(DOWN, 1.0)
            one.release()
        _carry(self._node_end, carrier=False)

    def _towards(self, packet: bytes) -> int:
        own = self._cell_ends[self._at]
        return self._gateways.get(packet[_DESTINATION], own)


def _carry(end: int, *, carrier: bool) -> None:
    fcntl.ioctl(end, _TUNSETCARRIER, struct.pack("I", carrier))


def links(air: Air, chance: Callable[[], float]) -> dict[tuple[str, str], LinkShim | RadioShim]:
    """Return who carries each link, by node and cell. Raises OSError."""
    made: dict[tuple[str, str], LinkShim | RadioShim] = {}
    for node, each in groupby(air.links, key=lambda one: one.node):
        together = list(each)
        whole = RadioShim(together, chance) if together[0].host else None
        made |= {(node, one.cell): whole or LinkShim(one, chance) for one in together}
    return made


class Shim:
    """Every link, and the socket at which changes are heard."""

    def __init__(self, air: Air) -> None:
        """Hold every device. Raises OSError."""
        chance = random.Random(air.seed).random  # noqa: S311 - losses are no secret
        self._links = links(air, chance)
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
    # Air is not late because machines compute; without the right it is all the same.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    try:
        air = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Air)
        asyncio.run(run(air))
    except (OSError, msgspec.DecodeError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")


if __name__ == "__main__":
    main()
