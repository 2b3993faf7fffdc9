"""What the kernel says of a process: memory, processor time, children."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

_KIB: Final = 1024
_MB: Final = float(1 << 20)
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_MAPPING: Final = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
_EVERYWHERE: Final = re.compile(r"/(libc\.so|libc-|ld-linux|ld-musl)")
"""The C library and the loader: mapped by nearly every process of every machine."""


class Memory(NamedTuple):
    """Of one process or a sum of several, in MB of 1024 x 1024 bytes, as `ps` counts."""

    lone: float
    """Proportional set size were it the only one of its kind: see `lone_pss`."""
    pss: float
    """As the kernel counts it now, among the other processes of the benchmark."""
    uss: float
    """What the process alone has: the least that its end would give back."""
    rss: float


def memory(pid: int) -> Memory:
    """Return the memory of a process."""
    text = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")
    whole, lone = _sums(text)
    uss = whole["Private_Clean"] + whole["Private_Dirty"]
    return Memory(*(one * _KIB / _MB for one in (lone, whole["Pss"], uss, whole["Rss"])))


def _sums(smaps: str) -> tuple[dict[str, int], int]:
    """Add a process's mappings up, in KiB: by field, and as if it were alone; pure.

    Alone, every page is its own but those of the C library, which it shares as it does now.
    """
    whole = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0)
    lone, everywhere = 0, False
    for line in smaps.splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            everywhere = _EVERYWHERE.search(mapping[1]) is not None
            continue
        name, _, rest = line.partition(":")
        if name in whole:
            size = int(rest.split()[0])
            whole[name] += size
            if name == ("Pss" if everywhere else "Rss"):
                lone += size
    return whole, lone


def children(pid: int) -> list[int]:
    """Return the processes that a process has started; none when it has just ended."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def tree(pid: int) -> list[int]:
    """Return a process and everything below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


def everyone(roots: list[int]) -> list[int]:
    """Return processes and all below them, as far as they live."""
    found: list[int] = []
    for root in roots:
        with suppress(FileNotFoundError, ProcessLookupError):
            found += _tree(root)
    return found


def _tree(pid: int) -> list[int]:
    # A process may end while its children are read: look again, then without them.
    for _ in range(3):
        with suppress(FileNotFoundError, ProcessLookupError):
            return tree(pid)
    return [pid]


def pin(pid: int, core: int) -> None:
    """Have every thread of a process run on one core; those that it starts later follow."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, in seconds: utime + stime."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def cpu_of_all_s(roots: list[int]) -> float:
    """Return the processor time of processes and all below them, the ended ones included."""
    total = 0.0
    for pid in everyone(roots):
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            # utime, stime, and both of the children that were waited for.
            total += sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _TICKS
    return total
