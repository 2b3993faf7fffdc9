"""Moves artifacts and blobs over HTTP, apart from the daemon; it leaves when the daemon hangs up.

    fetch_child.py SOCKET_FD PARENT_PID THREADS

What it does lies in `fetch_worker.py`: the file that is started is compiled anew each time.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from device_agent.artifacts.fetch_worker import Worker
    from device_agent.executors.programs.stream import die_with_parent
else:
    if __name__ == "__main__":
        # The library first: no module of ours hides one of it. Who imports this keeps its path.
        _HERE = os.path.dirname(os.path.realpath(__file__))
        _OURS = [os.path.join(os.path.dirname(_HERE), "executors", "programs"), _HERE]
        sys.path[:] = [one for one in sys.path if os.path.realpath(one) != _HERE] + _OURS
    from fetch_worker import Worker
    from stream import die_with_parent

M_ARENA_MAX: Final = -8
"""Of glibc's mallopt."""


def main(arguments: list[str]) -> int:
    """Serve with as many transfers at once as the daemon asked for."""
    die_with_parent(int(arguments[2]))
    # A heap for each thread would keep what each of them had at most.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    worker = Worker(socket.socket(fileno=int(arguments[1])))
    for _ in range(int(arguments[3]) - 1):
        threading.Thread(target=worker.serve, daemon=True).start()
    worker.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
