"""Control groups of containers and models, in either layout of the kernel's.

A runtime makes the group of a container and sets its bounds; reading it, its share of the
processor and removing it are ours, so that no runtime has to be started for them.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

ROOT: Final = "/sys/fs/cgroup"
DAEMON: Final = "/agent"
"""The group of the daemon in its unit (`DelegateSubgroup`)."""
PERIOD_US: Final = 100_000
QUOTA_MIN_US: Final = 1000
"""The kernel takes no less."""
SHARES: Final = 1024
"""Of a usual process, in version 1; a weight of 100 in version 2."""
WEIGHT: Final = 1.25
"""One step of niceness; a step of priority is two, as for processes."""
PRIORITY_USUAL: Final = 5


def controllers() -> list[str]:
    """Return where groups are made: each hierarchy of version 1, or the one of version 2."""
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        return [ROOT]
    try:
        paths = [f"{ROOT}/{name}" for name in sorted(os.listdir(ROOT))]
    except OSError:
        return []
    return [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]


def counts_swap() -> bool:
    """Whether swap can be bounded, and there is any."""
    v1 = f"{ROOT}/memory/memory.memsw.limit_in_bytes"
    if not os.path.exists(f"{ROOT}/cgroup.controllers"):
        return os.path.exists(v1)
    with contextlib.suppress(OSError), open("/proc/swaps", encoding="ascii") as file:
        return len(file.readlines()) > 1
    return False


def remove(group: str) -> None:
    """Remove a group under each controller; its processes are gone. One that is not is left."""
    for one in controllers():
        with contextlib.suppress(OSError):
            os.rmdir(f"{one}{group}")


def sweep(prefix: str, token: str = "") -> None:
    """Remove groups that are left under our own name, and nobody else's; those in use stay.

    With a token those of one host alone.
    """
    for one in controllers():
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{one}/{prefix}"):
                if name.startswith(token):
                    with contextlib.suppress(OSError):
                        os.rmdir(f"{one}/{prefix}/{name}")
            os.rmdir(f"{one}/{prefix}")


def memory_bytes(group: str, *, peak: bool) -> int:
    """Return how much memory a group takes, or has taken at most; 0 when it is not known."""
    names = ("memory.peak", "memory.current") if peak else ("memory.current",)
    v1 = "memory.max_usage_in_bytes" if peak else "memory.usage_in_bytes"
    paths = [f"{ROOT}{group}/{name}" for name in names]
    for path in (*paths, f"{ROOT}/memory{group}/{v1}"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            return int(file.read())
    return 0


def cpu_us(group: str) -> int | None:
    """Return the processor time that a group has taken; None when it is not known."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"{ROOT}{group}/cpu.stat", encoding="ascii") as file:
            counts = dict(line.split() for line in file)
        if "usage_usec" in counts:
            return int(counts["usage_usec"])
    path = f"{ROOT}/cpuacct{group}/cpuacct.usage"
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        return int(file.read()) // 1000
    return None


def ran_out_of_memory(group: str) -> bool:
    """Whether the kernel has killed something in a group for its memory."""
    for path in (f"{ROOT}{group}/memory.events", f"{ROOT}/memory{group}/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            counts = dict(line.split() for line in file)
            return int(counts.get("oom_kill", 0)) > 0
    return False


def set_share(group: str, cpu_percent: float, priority: int) -> str:
    """Bound a group to so much of one core (0: no bound) and weigh it; what it does not get."""
    factor = WEIGHT ** (2 * (priority - PRIORITY_USUAL))
    quota = max(QUOTA_MIN_US, round(PERIOD_US * cpu_percent / 100)) if cpu_percent > 0 else -1
    if os.path.exists(f"{ROOT}/cgroup.controllers"):
        bound = "max" if quota < 0 else str(quota)
        writes = {
            f"{ROOT}{group}/cpu.weight": str(max(1, min(10_000, round(100 * factor)))),
            f"{ROOT}{group}/cpu.max": f"{bound} {PERIOD_US}",
        }
    else:
        writes = {
            f"{ROOT}/cpu{group}/cpu.shares": str(max(2, round(SHARES * factor))),
            f"{ROOT}/cpu{group}/cpu.cfs_quota_us": str(quota),
        }
    for path, value in writes.items():
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(value)
        except OSError:
            if quota >= 0 or priority != PRIORITY_USUAL:
                return "the kernel gives its control group no share of the processor"
    return ""


def join(name: str, memory_bytes: int, processes: int) -> tuple[list[str], str]:
    """Put this process, and what it forks from now on, into a group with bounds.

    Returns the folders of the group, and why there are none. The group lies in the one that this
    process has: what bounds that one goes on to hold.
    """
    try:
        bounds = _bounds(name, memory_bytes, processes)
        for folder, values in bounds.items():
            os.makedirs(folder, exist_ok=True)
            for file, value in values.items():
                _write(f"{folder}/{file}", str(value))
        # Bounded first, entered then: a group without bounds would only seem to be one.
        for folder in bounds:
            _write(f"{folder}/cgroup.procs", "0")
    except OSError as error:
        return [], f"no control group bounds models: {error.strerror} ({error.filename})"
    if not bounds:
        return [], "no control group bounds models: this kernel gives none for memory"
    return list(bounds), ""


def leave(folders: list[str]) -> None:
    """Go back to where this process came from, and remove the group; one in use stays."""
    for folder in folders:
        with contextlib.suppress(OSError):
            _write(f"{os.path.dirname(folder)}/cgroup.procs", "0")
            os.rmdir(folder)


def _bounds(name: str, memory_bytes: int, processes: int) -> dict[str, dict[str, int]]:
    """Return the folders of a group and what is written there; {}: there is no controller."""
    own = _own()
    if "" in own and os.path.exists(f"{ROOT}/cgroup.controllers"):
        # A group with groups below has no process of its own: with delegation systemd keeps the
        # daemon in one of this name, beside which others can be made.
        parent = f"{ROOT}{own[''].removesuffix(DAEMON)}".rstrip("/")
        _write(f"{parent}/cgroup.subtree_control", "+memory +pids")
        return {f"{parent}/{name}": {"memory.max": memory_bytes, "pids.max": processes}}
    files = {"memory": "memory.limit_in_bytes", "pids": "pids.max"}
    values = {"memory": memory_bytes, "pids": processes}
    return {
        f"{ROOT}/{one}{own[one].rstrip('/')}/{name}": {files[one]: values[one]}
        for one in files
        if one in own and os.path.isdir(f"{ROOT}/{one}")
    }


def _own() -> dict[str, str]:
    """Return the group of this process under each controller; "": that of version 2."""
    found: dict[str, str] = {}
    with open("/proc/self/cgroup", encoding="ascii") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            found |= dict.fromkeys(names.split(","), path)
    return found


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
