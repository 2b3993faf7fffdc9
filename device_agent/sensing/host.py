"""What every Linux machine has: processor, memory, pressure, disk."""

import os
from pathlib import Path
from typing import Final

from msgspec import Struct

from device_agent.sensing.files import KernelFile, open_one
from device_agent.sensing.parsing import clamp
from protocols.messages.sense import Pressure

STAT_BYTES: Final = 64 * 1024
MEMINFO_BYTES: Final = 4096
_KIB: Final = 1024


class Processor:
    """Busy shares from the ticks in /proc/stat; waiting for a disk counts as idle."""

    def __init__(self, root: Path) -> None:
        """Take the first look. Raises OSError when there is no /proc/stat."""
        self._file = KernelFile(root / "proc/stat", STAT_BYTES)
        self._before: dict[bytes, tuple[int, int]] = {}
        self._percent: dict[bytes, float] = {}
        self.read()

    @property
    def count(self) -> int:
        """How many cores are in use by the kernel now."""
        return max(1, len(self._before) - 1)

    def read(self) -> tuple[float, tuple[float, ...]]:
        """Return the mean of all cores and each core in order, since the read before."""
        ticks = _ticks(self._file.read() or b"")
        for name, (total, idle) in ticks.items():
            was_total, was_idle = self._before.get(name, (0, 0))
            passed = total - was_total
            if passed > 0:  # within one tick the last figure stands
                self._percent[name] = clamp(100.0 * (passed - idle + was_idle) / passed)
        if len(ticks) < len(self._before):
            self._percent = {name: self._percent.get(name, 0.0) for name in ticks}
        self._before = ticks
        cores = tuple([self._percent.get(name, 0.0) for name in ticks if name != b"cpu"])
        return self._percent.get(b"cpu", 0.0), cores

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MemoryState(Struct, frozen=True):
    """Memory in bytes; swap is None on a machine that has none."""

    total: int
    available: int
    swap_used: int | None


class Memory:
    """What /proc/meminfo says."""

    def __init__(self, root: Path) -> None:
        """Open the file. Raises OSError when there is no /proc/meminfo."""
        self._file = KernelFile(root / "proc/meminfo", MEMINFO_BYTES)

    def read(self) -> MemoryState:
        """Return the state now."""
        text = self._file.read() or b""
        swap = _kib(text, b"SwapTotal:")
        return MemoryState(
            _kib(text, b"MemTotal:"),
            _kib(text, b"MemAvailable:"),
            swap - _kib(text, b"SwapFree:") if swap else None,
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PressureStall:
    """Pressure stall information, where the kernel keeps it."""

    def __init__(self, root: Path) -> None:
        files = [open_one(root / "proc/pressure" / name) for name in ("cpu", "memory", "io")]
        self._files = [file for file in files if file is not None]
        if len(self._files) < len(files) or self.read() is None:
            self.close()  # not there, or there and switched off

    @property
    def found(self) -> bool:
        """Whether this kernel keeps it."""
        return bool(self._files)

    def read(self) -> Pressure | None:
        """Return the shares of the last 10 s, or None."""
        if not self._files:
            return None
        shares = [_avg10(file.read() or b"") for file in self._files]
        cpu, memory, io = shares
        return None if cpu is None or memory is None or io is None else Pressure(cpu, memory, io)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
        self._files = []


def disk(folder: Path) -> tuple[int, int] | None:
    """Return the size and what is free to us, in bytes, of the file system under a folder."""
    try:
        state = os.statvfs(folder)
    except OSError:
        return None
    return state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize


def _ticks(text: bytes) -> dict[bytes, tuple[int, int]]:
    """Return total and idle ticks of `cpu` and each `cpuN`."""
    end = text.find(b"\nintr")
    ticks: dict[bytes, tuple[int, int]] = {}
    for line in text[:end].split(b"\n") if end >= 0 else text.split(b"\n"):
        if not line.startswith(b"cpu"):
            break
        words = line.split()
        # user nice system idle iowait irq softirq steal; guest times are part of user and nice
        fields = [int(word) for word in words[1:9]]
        ticks[words[0]] = (sum(fields), fields[3] + (fields[4] if len(fields) > 4 else 0))  # noqa: PLR2004 - iowait came with Linux 2.6
    return ticks


def _kib(text: bytes, name: bytes) -> int:
    start = text.find(name)
    if start < 0:
        return 0
    words = text[start + len(name) : start + len(name) + 32].split(None, 1)
    return int(words[0]) * _KIB if words and words[0].isdigit() else 0


def _avg10(text: bytes) -> float | None:
    start = text.find(b"avg10=")
    if start < 0:
        return None
    try:
        return clamp(float(text[start + 6 : start + 16].split(None, 1)[0]))
    except (ValueError, IndexError):
        return None
