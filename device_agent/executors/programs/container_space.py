"""Namespaces of our own around every container: what is in them ends with process 1.

The host's second process is process 1 of a process namespace, so that the kernel ends every
container when it dies, however it dies. Its mounts are its own too: what it mounts and writes
into memory is gone with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

NEWNS: Final = 0x00020000
NEWUSER: Final = 0x10000000
NEWPID: Final = 0x20000000
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
PR_SET_PDEATHSIG: Final = 1
WORK: Final = "/run"
"""Covered by memory of our own: every container has to be able to walk there."""
HYBRID: Final = "/sys/fs/cgroup/unified"
"""Where version 2 is mounted beside version 1; crun takes such a machine for one of version 2."""
HOST_ID: Final = 1_900_000_000
"""The first of the user ids that containers are on this machine: nobody's."""
HOST_IDS: Final = 1 << 16

_libc: Final = ctypes.CDLL(None, use_errno=True)


class NoSpace(Exception):
    """The kernel does not give us namespaces; the text says what it refused."""


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount. Raises OSError."""
    words = [os.fsencode(one) if one else None for one in (source, target, kind, options)]
    _check(_libc.mount(words[0], words[1], words[2], flags, words[3]), f"mounting {target}")


def unmount(target: str) -> None:
    """Take a mount away, at once for everybody to see. Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmounting {target}")


def bind_tree(source: str, target: str) -> None:
    """Show a folder at another place, read-only, without devices and privileges. Raises OSError."""
    mount(source, target, flags=MS_BIND)
    mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def enter() -> int:
    """Make namespaces of our own; 0 in their process 1, its process id in who has to wait for it.

    Raises NoSpace.
    """
    what = "namespaces for mounts and processes"
    try:
        if os.geteuid() or _libc.unshare(NEWNS | NEWPID):
            # Without the privilege of root a user namespace gives it, for itself alone.
            _enter_user_space()
            _check(_libc.unshare(NEWNS | NEWPID), what)
    except OSError as error:
        raise NoSpace(f"the kernel does not allow {error.strerror or error}") from None
    pid = os.fork()
    if pid:
        return pid
    # Its parent lies outside of its sight: only the kernel can tell of its end.
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return 0


def _enter_user_space() -> None:
    """Be root of a user namespace that knows this user alone. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(NEWUSER), "a user namespace")
    maps = {"setgroups": "deny", "uid_map": f"0 {uid} 1", "gid_map": f"0 {gid} 1"}
    for name, text in maps.items():
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exit when it already has."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def furnish() -> None:
    """Mount what process 1 needs for its work. Raises NoSpace."""
    try:
        mount("", "/", flags=MS_REC | MS_PRIVATE)
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount("tona", WORK, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        if os.path.isdir(HYBRID):
            _hide_hybrid()
    except OSError as error:
        raise NoSpace(f"the kernel does not allow {error.strerror or error}") from None


def _hide_hybrid() -> None:
    """Take version 2 of control groups out of sight. Raises OSError."""
    try:
        unmount(HYBRID)
    except OSError:
        # In a user namespace mounts from outside stay: there it is only not to be seen.
        mount("tona", HYBRID, "tmpfs", MS_RDONLY)


def outlive(pid: int) -> int:
    """Wait for process 1; how it ended, as an exit code."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def host_ids() -> range:
    """Return the user ids that containers can be, as this user namespace knows ids."""
    best = range(1)
    with open("/proc/self/uid_map", encoding="ascii") as file:
        for line in file:
            first, _, count = map(int, line.split())
            if first <= HOST_ID < first + count:
                return range(HOST_ID, min(first + count, HOST_ID + HOST_IDS))
            if count > 1:
                best = range(first + count - 1, first + count)
    return best
