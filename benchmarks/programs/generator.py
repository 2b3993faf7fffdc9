"""A fleet of raw sockets: each connects, says its birth, and sends load reports at a given rate.

    python -m benchmarks.programs.generator HOST PORT CONNECTIONS

Answers `[cell, rate, seconds]` when the packets of that run are made, and `null` with what was
sent, once it has been: one report a message, one message a system call, each from the next
connection in turn. What the broker says to the fleet is read and thrown away.
"""

import asyncio
import resource
import selectors
import socket
import sys
import time
from typing import Any, Final

from benchmarks.harness.lines import say, serve
from protocols import codec, topics
from protocols.codec import Frame
from protocols.messages import Birth, Body, LoadReport
from protocols.messages.presence import ExecutorInfo, Inventory
from protocols.messages.sense import Pressure
from protocols.topics import Channel, Party
from protocols.transport import packets

KEEPALIVE_S: Final = 3600
TICK_S: Final = 0.005
READ_BYTES: Final = 1 << 16
CELLS: Final = ("cell", "bare")
INVENTORY: Final = Inventory(
    "generic-x86-64",
    "x86_64",
    "linux",
    4,
    8 << 30,
    1 << 40,
    executors=(ExecutorInfo("wasm", "1"),),
    task_memory_bytes=4 << 30,
)
MARGIN_FILES: Final = 100


class Fleet:
    """All connections of this process."""

    def __init__(self, host: str, port: int, count: int) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + MARGIN_FILES), hard))
        self.names = [f"node-{number}" for number in range(count)]
        self._selector = selectors.DefaultSelector()
        self._lines = [self._connect(host, port, name) for name in self.names]
        self._number = 0
        self._turn = 0
        self._work: list[tuple[socket.socket, bytes]] = []
        self._rate = 1.0

    def _connect(self, host: str, port: int, name: str) -> socket.socket:
        line = socket.create_connection((host, port), timeout=30)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.sendall(packets.connect(name, KEEPALIVE_S, READ_BYTES, None))
        answer = line.recv(READ_BYTES)
        assert answer[0] == packets.CONNACK
        assert answer[3] == 0
        birth = Birth("0", f"boot-{name}", INVENTORY)
        # QoS 0, so that nothing has to be acknowledged: the broker is next door.
        line.sendall(_packet("cell", name, 0, Channel.PRESENCE, birth))
        line.setblocking(False)
        self._selector.register(line, selectors.EVENT_READ, line)
        return line

    def prepare(self, cell: str, rate: float, seconds: float) -> int:
        """Make the packets of a run; return how many they are."""
        self._work = [self._next(cell) for _ in range(int(rate * seconds))]
        self._rate = rate
        return len(self._work)

    def run(self) -> dict[str, float]:
        """Send what was prepared at its rate; return how many were sent and how long it took."""
        work, rate, count = self._work, self._rate, len(self._work)
        began = time.perf_counter()
        late_s, sent, waits = 0.0, 0, 0
        while sent < count:
            now = time.perf_counter() - began
            due = min(count, int(now * rate) + 1)
            while sent < due:
                line, packet = work[sent]
                waits += _send(line, packet)
                sent += 1
            self._drain()
            rest_s = sent / rate - (time.perf_counter() - began)
            late_s = max(late_s, -rest_s)
            if rest_s > 0:
                time.sleep(min(rest_s, TICK_S))
        return {"sent": sent, "took_s": time.perf_counter() - began, "late_s": late_s}

    def _next(self, cell: str) -> tuple[socket.socket, bytes]:
        turn = self._turn
        self._turn = (turn + 1) % len(self._lines)
        self._number += 1
        report = LoadReport(
            sampled_ms=self._number,
            cpu_percent=20.0 + self._number % 7,
            cores_percent=(21.5, 20.25, 19.0, 22.75),
            memory_used_bytes=3 << 30,
            memory_available_bytes=(5 << 30) + 4096 * (self._number % 100),
            disk_free_bytes=200 << 30,
            pressure=Pressure(0.5, 0.0, 0.25),
            temperature_c=51.5,
            throttled=False,
        )
        packet = _packet(cell, self.names[turn], self._number, Channel.LOAD, report)
        return self._lines[turn], packet

    def _drain(self) -> None:
        for key, _ in self._selector.select(0):
            if not key.data.recv(READ_BYTES):
                raise RuntimeError("the broker has closed a connection of the fleet")


def _send(line: socket.socket, packet: bytes) -> int:
    """Send a packet whole; return whether the line was full meanwhile."""
    try:
        sent = line.send(packet)
    except BlockingIOError:
        sent = 0
    if sent == len(packet):
        return 0
    line.setblocking(True)
    line.sendall(packet[sent:])
    line.setblocking(False)
    return 1


def _packet(cell: str, node: str, number: int, channel: Channel, body: Body) -> bytes:
    topic = topics.build(cell, Party.NODE, node, channel)
    frame = Frame(codec.VERSION, node, 1, number, "default", "bench", body)
    payload = codec.encode(frame, topic.rule.max_bytes)
    return packets.publish(packets.text(str(topic).encode()), payload, 0, b"\x00")


async def main() -> None:
    """Connect the fleet, then send as told."""
    host, port, count = sys.argv[1:]
    fleet = Fleet(host, int(port), int(count))

    async def run(question: Any) -> dict[str, float] | int:
        return fleet.run() if question is None else fleet.prepare(*question)

    say({})
    await serve(run)


if __name__ == "__main__":
    asyncio.run(main())
