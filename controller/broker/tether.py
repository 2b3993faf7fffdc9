"""Become a command that dies with the process that started it.

    python -m controller.broker.tether PARENT_PID COMMAND [ARGUMENT...]

The kernel keeps the parent-death signal over an exec, so the command needs to know nothing of it.
It is tied to the parent's starting thread, for us the one that runs the event loop.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when `parent_pid` ends; exit at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"broker: prctl: {os.strerror(ctypes.get_errno())}")
    # A parent that died before the call sent no signal.
    if os.getppid() != parent_pid:
        sys.exit("broker: the process that started it is gone")


def main() -> None:
    """Tie this process to its parent, then become the command."""
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    die_with_parent(parent_pid)
    os.execv(command[0], command)  # noqa: S606 - an argument vector that our parent built


if __name__ == "__main__":
    main()
