"""What the connection to the broker carries: the kernel's account, and a link that gets narrow."""

import math
import select
import shutil
import socket
import subprocess
import time
from struct import pack_into
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.sensing.delivery import (
    KEPT_MS,
    LOOK_MS,
    Delivery,
    DeliveryMonitor,
    TcpInfo,
    account,
    parse,
)
from protocols.messages import LinkReport

BURST_BYTES = 56 * 1024
BURSTS_MAX = 40
WAIT_S = 60


class Line:
    """An account of our own making; 4 Mbit/s are 500 bytes in a millisecond."""

    def __init__(self) -> None:
        self.info: TcpInfo | None = TcpInfo(0, 0, 900.0)
        self.buffered = 0
        self.now_ms = 0.0
        self.monitor = DeliveryMonitor()
        self.attach()

    def attach(self) -> None:
        self.monitor.attach(lambda: self.info, lambda: self.buffered)

    def write(self, size: int) -> None:
        assert self.monitor.writing(self.now_ms)
        assert self.info is not None
        self.info = self.info._replace(waiting_bytes=self.info.waiting_bytes + size)

    def look(self, ms: float, acked: int) -> bool:
        assert self.info is not None
        self.now_ms += ms
        left = max(0, self.info.waiting_bytes - acked)
        self.info = TcpInfo(self.info.acked_bytes + acked, left, self.info.rate_mbit_per_s)
        return self.monitor.look(self.now_ms)

    def drain(self, bytes_per_ms: int) -> int:
        """Look until there is no need to; return how often."""
        count = 1
        while self.look(LOOK_MS, bytes_per_ms * LOOK_MS):
            count += 1
        return count

    @property
    def told(self) -> Delivery:
        return self.monitor.sample(self.now_ms)


@given(st.binary(max_size=300))
def test_an_account_of_any_length_is_read_or_absent(raw: bytes) -> None:
    found = parse(raw)
    assert (found is None) == (len(raw) < 168)


def test_the_account_is_read_where_the_kernel_puts_it() -> None:
    raw = bytearray(280)
    for kind, at, value in (
        ("=I", 16, 1448), ("=I", 24, 10), ("=Q", 120, 5000), ("=I", 144, 20), ("=Q", 160, 125_000),
    ):  # fmt: skip
        pack_into(kind, raw, at, value)
    assert parse(bytes(raw)) == TcpInfo(5000, 14_500, 1.0)


def test_what_is_no_connection_has_no_account() -> None:
    one, other = socket.socketpair()
    other.close()
    assert account(one) is None
    one.close()
    assert account(one) is None


def test_a_rate_is_what_moves_while_bytes_stand() -> None:
    line = Line()
    line.write(56_000)
    assert line.told == Delivery()
    assert line.drain(500) == 10, "until too little stands to last to the next look"
    assert line.told.mbit_per_s == pytest.approx(4.0)
    line.write(56_000)
    line.drain(250)
    assert line.told.mbit_per_s == pytest.approx(2.0)


def test_what_stands_for_long_is_told_all_the_while() -> None:
    line = Line()
    line.write(1_000_000)
    for _ in range(60):
        assert line.look(LOOK_MS, 500 * LOOK_MS)
    assert line.told.mbit_per_s == pytest.approx(4.0)
    for _ in range(60):
        assert line.look(LOOK_MS, 125 * LOOK_MS)
    assert line.told.mbit_per_s == pytest.approx(1.0)


def test_what_waits_is_told_as_time() -> None:
    line = Line()
    line.write(56_000)
    line.drain(500)
    assert line.info is not None
    line.info = line.info._replace(waiting_bytes=5000)
    line.buffered = 1000
    assert line.told.wait_ms == pytest.approx(12.0)


def test_small_or_late_values_say_nothing() -> None:
    line = Line()
    for _ in range(100):
        line.write(4000)
        assert line.drain(500) == 1
        line.now_ms += 90
    line.write(20_000)
    assert not line.look(LOOK_MS, 20_000)
    line.write(56_000)
    assert not line.look(1000, 56_000), "it is not known when it was through"
    assert line.told == Delivery()


def test_a_free_way_is_as_the_kernel_says() -> None:
    line = Line()
    line.write(56_000)
    line.drain(500)
    line.write(56_000)
    assert not line.look(LOOK_MS, 56_000)
    assert line.told.mbit_per_s == 900.0


def test_what_is_through_too_soon_to_see_raises_a_rate() -> None:
    line = Line()
    line.write(56_000)
    line.drain(250)
    line.look(LOOK_MS, 56_000)
    line.write(56_000)
    assert line.drain(2500) == 2
    assert line.told.mbit_per_s == pytest.approx(20.0), "50,000 bytes in 20 ms at least"


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, 0.0, 1e-9, 1e12])
def test_an_absurd_rate_is_no_message(rate: float) -> None:
    link = LinkReport(1, "eth0", "wired", carrier=True, delivery_mbit_per_s=rate)
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(link), type=LinkReport)


def test_a_rate_is_kept_for_a_bounded_time_and_not_over_a_new_connection() -> None:
    line = Line()
    line.write(56_000)
    line.drain(500)
    line.now_ms += KEPT_MS - 50
    assert line.told.mbit_per_s == pytest.approx(4.0)
    line.now_ms += 100
    assert line.told == Delivery()
    line.write(56_000)
    line.drain(500)
    line.attach()
    assert line.told == Delivery()
    line.write(56_000)
    line.look(LOOK_MS, 0)
    line.info = None
    assert not line.monitor.look(line.now_ms)
    assert not line.monitor.writing(line.now_ms)
    assert line.told == Delivery()


def _narrow(name: str, rate: str) -> None:
    words = "qdisc replace dev lo root tbf burst 16k latency 800ms rate"
    command = ["tc", "-n", name, *words.split(), rate]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"needs a kernel with tbf: {made.stderr.decode().strip()}")


def test_the_rate_follows_a_link_that_gets_narrow_and_wide(namespace: Any) -> None:
    if shutil.which("tc") is None:
        pytest.skip("needs the command tc (package iproute2)")
    namespace.ip("link", "set", "lo", "mtu", "1500", "up")
    with namespace.inside(), socket.create_server(("127.0.0.1", 0)) as server:
        line = socket.create_connection(server.getsockname(), timeout=WAIT_S)
        other, _ = server.accept()
    other.settimeout(WAIT_S)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    monitor = DeliveryMonitor()
    monitor.attach(lambda: account(line), lambda: 0)

    def now_ms() -> float:
        return time.monotonic() * 1000

    def settles(low: float, high: float) -> list[float | None]:
        """Send one burst at a time until the rate is between these; return what was seen."""
        seen: list[float | None] = []
        for _ in range(BURSTS_MAX):
            assert monitor.writing(now_ms())
            line.sendall(bytes(BURST_BYTES))
            left, due_ms, wanted = BURST_BYTES, now_ms() + LOOK_MS, True
            while left or wanted:
                wait_s = max(0.0, due_ms - now_ms()) / 1000 if wanted else WAIT_S
                if select.select([other], [], [], wait_s)[0]:
                    left -= len(other.recv(BURST_BYTES))
                if wanted and now_ms() >= due_ms:
                    wanted, due_ms = monitor.look(now_ms()), now_ms() + LOOK_MS
            seen.append(monitor.sample(now_ms()).mbit_per_s)
            if low < (seen[-1] or 0.0) < high:
                break
        return seen

    with line, other:
        assert settles(50.0, float("inf"))[-1], "open"
        for rate in (4.0, 1.0, 16.0):
            _narrow(namespace.name, f"{rate:g}mbit")
            seen = settles(rate / 2, rate * 2)
            assert rate / 2 < (seen[-1] or 0.0) < rate * 2, seen
