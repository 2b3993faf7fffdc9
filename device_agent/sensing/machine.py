"""What does not change while the daemon runs: name, system, limits of the kernel."""

import os
from pathlib import Path
from typing import Final

from device_agent.sensing.files import text

UNLIMITED_BYTES: Final = 1 << 60
"""cgroup v1 writes a huge number for no limit."""
BOOT_ID: Final = "proc/sys/kernel/random/boot_id"


def arch() -> str:
    """Return uname's machine."""
    return os.uname().machine


def os_name(root: Path) -> str:
    """Return the system's name for a person and its kernel."""
    kernel = text(root / "proc/sys/kernel/osrelease")
    pretty = "Linux"
    for line in text(root / "etc/os-release").splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            pretty = value.strip("\"'")
    return f"{pretty} ({kernel})" if kernel else pretty


def boot_id(root: Path) -> str:
    """Return the kernel's identifier of this boot, or empty."""
    return text(root / BOOT_ID)


def has_memory_cgroup(root: Path) -> bool:
    """Whether the kernel can hold a group of processes to an amount of memory."""
    if "memory" in text(root / "sys/fs/cgroup/cgroup.controllers").split():
        return True
    for line in text(root / "proc/cgroups").splitlines():
        words = line.split()
        if words and words[0] == "memory":
            return words[-1] == "1"
    return False


def memory_limit(root: Path) -> int | None:
    """Return the memory cgroup's bound of a container, in bytes, or None."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = text(root / "sys/fs/cgroup" / name)
        if limit.isdigit() and int(limit) < UNLIMITED_BYTES:
            return int(limit)
    return None
