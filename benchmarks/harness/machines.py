"""Machines that a benchmark sets up: one whose load it dictates, one whose link it cuts."""

import asyncio
import ctypes
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from device_agent.sensing.netlink import LinkMonitor

_CLONE_NEWNET: Final = 0x40000000
_STAT: Final = "cpu  {0:020d} 0 0 {1:020d} 0 0 0 0 0 0\ncpu0 {0:020d} 0 0 {1:020d} 0 0 0 0 0 0\n"
_TICKS: Final = 1000
"""Passed between two looks at the load, as far as the sampler can see."""


class Load:
    """A /proc/stat of our own making, for one process and its children."""

    def __init__(self, folder: Path, cpu_percent: float) -> None:
        self._path = folder / "stat"
        # The first look finds the mean since the boot.
        self._busy = round(_TICKS * cpu_percent / 100)
        self._idle = _TICKS - self._busy
        self._path.write_text(self._text(), encoding="ascii")
        self._file = os.open(self._path, os.O_WRONLY)

    def _text(self) -> str:
        return _STAT.format(self._busy, self._idle) + f"intr 0\nctxt 0\nbtime {int(time.time())}\n"

    def set(self, cpu_percent: float) -> int:
        """Have the processor so busy from now on; return the monotonic time in nanoseconds."""
        self._busy += round(_TICKS * cpu_percent / 100)
        self._idle += round(_TICKS * (100 - cpu_percent) / 100)
        now_ns = time.monotonic_ns()
        os.pwrite(self._file, self._text().encode(), 0)
        return now_ns

    def around(self, command: list[str]) -> list[str]:
        """Return the command, run where this is /proc/stat. Needs unshare and the right to it."""
        inner = (
            f"mount --bind {shlex.quote(str(self._path))} /proc/stat && exec {shlex.join(command)}"
        )
        user = [] if os.geteuid() == 0 else ["--map-root-user"]
        return [_tool("unshare"), *user, "--mount", "/bin/sh", "-c", inner]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def can_unshare() -> bool:
    """Whether a process may have a /proc/stat of its own here."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    tool = shutil.which("unshare")
    if tool is None:
        return False
    tried = "mount --bind /etc/hostname /proc/stat"
    command = [tool, *user, "--mount", "/bin/sh", "-c", tried]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _tool(name: str) -> str:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    assert found is not None, f"{name} is not installed"
    return found


class Island:
    """A network namespace with two ways to its host: one for TCP, and one that gets cut.

    What looks the way to the host up is told `cut0`, which loses its carrier when its other end
    is taken down. TCP goes over another veth pair by a rule, so that a report of the cut can
    leave: a node with two ways, of which the one that counts fails.
    """

    def __init__(self) -> None:
        self.name = f"tona-{os.getpid()}"
        self._outer = f"tb{os.getpid() % 10**8}"
        net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.host, self._inside, self._cut = f"{net}.1", f"{net}.2", f"{net}.130"
        self._net = net

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Build it, and take it down again."""
        _ip("netns", "add", self.name)
        try:
            self._build()
            yield
        finally:
            _ip("netns", "del", self.name)

    def _build(self) -> None:
        inside = ("-n", self.name)
        _ip("link", "add", self._outer, "type", "veth", "peer", "name", "way0", "netns", self.name)
        _ip("addr", "add", f"{self.host}/25", "dev", self._outer)
        _ip("link", "set", self._outer, "up")
        _ip(*inside, "link", "add", "cut0", "type", "veth", "peer", "name", "cut1")
        _ip(*inside, "link", "set", "cut1", "up")
        addresses = {"way0": f"{self._inside}/25", "cut0": f"{self._cut}/25"}
        for interface, address in addresses.items():
            _ip(*inside, "addr", "add", address, "dev", interface)
            _ip(*inside, "link", "set", interface, "up")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "route", "add", f"{self.host}/32", "dev", "cut0")
        way = ("dev", "way0", "src", self._inside, "table", "100")
        _ip(*inside, "route", "add", f"{self._net}.0/25", *way)
        _ip(*inside, "rule", "add", "ipproto", "tcp", "lookup", "100")

    def around(self, command: list[str]) -> list[str]:
        """Return the command, run on the island."""
        return [_tool("ip"), "netns", "exec", self.name, *command]

    def carrier(self, *, on: bool) -> None:
        """Give the interface its carrier, or take it away."""
        _ip("-n", self.name, "link", "set", "cut1", "up" if on else "down")

    def narrow(self, mbit_per_s: float) -> None:
        """Have the way of TCP from the island carry so much, and hold what is too much back."""
        rate = ("rate", f"{mbit_per_s * 1000:.0f}kbit", "burst", "16k", "latency", "800ms")
        _run("tc", "-n", self.name, "qdisc", "replace", "dev", "way0", "root", "tbf", *rate)

    def widen(self) -> None:
        """Have the way of TCP carry what it can again."""
        _run("tc", "-n", self.name, "qdisc", "replace", "dev", "way0", "root", "pfifo")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator["asyncio.Queue[tuple[int, bool]]"]:
        """Yield a queue of the kernel's words on the carrier: when a bare listener had them."""
        monitor = _inside(self.name, LinkMonitor)
        queue: asyncio.Queue[tuple[int, bool]] = asyncio.Queue()

        def read() -> None:
            now_ns = time.monotonic_ns()
            for change in monitor.read():
                if change.after is not None and change.after.name == "cut0":
                    queue.put_nowait((now_ns, change.after.carrier))

        loop = asyncio.get_running_loop()
        loop.add_reader(monitor.fileno(), read)
        try:
            yield queue
        finally:
            loop.remove_reader(monitor.fileno())
            monitor.close()


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(tool: str, *arguments: str) -> None:
    subprocess.run([_tool(tool), *arguments], check=True)


def _inside(name: str, make: Callable[[], LinkMonitor]) -> LinkMonitor:
    """Make something in a network namespace; its sockets stay there. Only a thread goes in."""
    made: list[LinkMonitor] = []

    def work() -> None:
        handle = os.open(f"/var/run/netns/{name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) == 0:
                made.append(make())
        finally:
            os.close(handle)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made, f"cannot enter the network namespace {name}"
    return made[0]
