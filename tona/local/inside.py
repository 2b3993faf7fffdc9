"""Become a command in a network namespace, which dies with the process that started it.

    python -m tona.local.inside PARENT_PID NAMESPACE COMMAND [ARGUMENT...]

NAMESPACE is a path, such as /proc/PID/fd/N or /run/netns/NAME. The command gets a /sys of its own,
for the interfaces in /sys/class/net are those of the namespace that mounted it.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from controller.broker.tether import die_with_parent
from controller.child import module_command

NEWNS: Final = 0x00020000
NEWNET: Final = 0x40000000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

_libc: Final = ctypes.CDLL(None, use_errno=True)


def command_inside(space: str, command: list[str]) -> list[str]:
    """Return a command that runs in a namespace and dies with this process."""
    return module_command("tona.local.inside", str(os.getpid()), space, *command)


def checked(result: int, what: str) -> None:
    """Raise OSError when a call of the C library has failed."""
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def new_space() -> int:
    """Return a descriptor of a new network namespace; it lives as long as that or a process in it.

    Raises OSError.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        checked(_libc.unshare(NEWNET), "a network namespace")
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        checked(_libc.setns(home, NEWNET), "the way back")
        return made
    finally:
        os.close(home)


def enter(space: str) -> None:
    """Bring this thread into a network namespace. Raises OSError."""
    handle = os.open(space, os.O_RDONLY | os.O_CLOEXEC)
    try:
        checked(_libc.setns(handle, NEWNET), f"entering {space}")
    finally:
        os.close(handle)


@contextmanager
def inside(space: str) -> Iterator[None]:
    """Be in a network namespace while the context lasts; with one thread and no await in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(space)
        try:
            yield
        finally:
            checked(_libc.setns(home, NEWNET), "the way back")
    finally:
        os.close(home)


def own_sys() -> None:
    """Give this process a /sys that shows the namespace it is in. Raises OSError."""
    checked(_libc.unshare(NEWNS), "mounts of its own")
    checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "private mounts")
    # A machine without /sys in the way, as a container may be, gets one all the same.
    _libc.umount2(b"/sys", MNT_DETACH)
    checked(_libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None), "mounting /sys")


def main() -> None:
    """Tie this process to its parent, enter the namespace, become the command."""
    parent_pid, space, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    try:
        enter(space)
        own_sys()
    except OSError as error:
        sys.exit(f"{space}: {error.strerror}")
    # Last: the kernel forgets it when a process changes what it may do.
    die_with_parent(parent_pid)
    os.execv(command[0], command)  # noqa: S606 - an argument vector that our parent built


if __name__ == "__main__":
    main()
