"""Runs the containers of a node: one process for all of them, process 1 of a namespace of its own.

    container_host.py SOCKET_FD PARENT_PID RUNTIME PREFIX IMAGES   serve until the daemon hangs up
    container_host.py --probe RUNTIME PREFIX IMAGES                print what works here as JSON

`RUNTIME` is the path of one or empty, `PREFIX` begins the name of every control group of this node,
`IMAGES` is the folder of unpacked images. This process stays small and waits for process 1, which
does the work (`container_serve.py`) and takes every container along when it ends, however it ends;
then it removes what control groups are left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if __name__ == "__main__":
    # The library first: no module of ours hides one of it. Whoever imports this keeps its own path.
    _HERE: Final = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [one for one in sys.path if os.path.realpath(one) != _HERE] + [_HERE]

if TYPE_CHECKING:
    from device_agent.executors.programs import container_cgroup as cgroup
    from device_agent.executors.programs import container_space as space
else:
    import container_cgroup as cgroup
    import container_space as space

TOKEN_BYTES: Final = 4
FIRST_FD: Final = 3
MAX_FD: Final = 256
PROBE: Final = "--probe"


def inside(work: Callable[[str], int], prefix: str, token: str) -> int:
    """Do the work as process 1 of namespaces of our own; wait for its end, then tidy up.

    Where the kernel gives none, the work is done here and told why.
    """
    try:
        pid = space.enter()
    except space.NoSpace as error:
        return work(str(error))
    status = os.EX_SOFTWARE
    try:
        if pid == 0:
            status = work("")
        else:
            # The daemon is to see the end of process 1 as the end of the socket.
            os.closerange(FIRST_FD, MAX_FD)
            status = space.outlive(pid)
            cgroup.sweep(prefix, token)
    except BaseException:  # noqa: BLE001 - a process's edge: neither returns to what was before
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(status)


def main(arguments: list[str]) -> int:
    """Serve the daemon, or say what works."""
    probing = arguments[1] == PROBE
    space.die_with_parent(os.getppid() if probing else int(arguments[2]))
    os.umask(0o022)
    configured, prefix, folder = arguments[2:5] if probing else arguments[3:6]
    # Another host of this node may still be ending: what is its own has another name.
    token = os.urandom(TOKEN_BYTES).hex()

    def work(trouble: str) -> int:
        if TYPE_CHECKING:
            from device_agent.executors.programs import container_serve  # noqa: PLC0415 - as below
        else:
            import container_serve  # noqa: PLC0415 - process 1 alone needs the rest

        if probing:
            return container_serve.probe(configured, prefix, token, folder, trouble)
        handle = int(arguments[1])
        return container_serve.serve(handle, configured, prefix, token, folder, trouble)

    return inside(work, prefix, token)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
