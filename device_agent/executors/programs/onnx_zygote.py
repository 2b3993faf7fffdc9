"""Holds ONNX Runtime in memory and forks a process for each model.

    onnx_zygote.py SOCKET_FD PARENT_PID EMPTY_FOLDER GROUP SHARE   serve until the daemon hangs up
    onnx_zygote.py --probe               print version, providers and what is kept apart as JSON
    onnx_zygote.py --apart               try a control group, print why there is none

With a `SHARE` of the machine's memory above 0 it begins in a control group of the name `GROUP` that
holds it and all models together to that, where it may.

It has one thread, for a fork copies only one, and never touches a model: `onnx_child.py` says what
its children become. When the daemon goes, the kernel kills the zygote and after it the children.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

# Before the imports that read them: no telemetry, no thread pool of a library in this process.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

if __name__ == "__main__":
    # The library first: no module of ours hides one of it. Whoever imports this keeps its own path.
    _HERE: Final = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [one for one in sys.path if os.path.realpath(one) != _HERE] + [_HERE]

if TYPE_CHECKING:
    from device_agent.executors.programs import resting
else:
    import resting

resting.huge_pages(on=False)

try:
    if TYPE_CHECKING:
        from device_agent.executors.programs import container_cgroup as cgroup
        from device_agent.executors.programs import onnx_child, sandbox
        from device_agent.executors.programs.onnx_program import runtime
    else:
        import container_cgroup as cgroup
        import onnx_child
        import sandbox
        from onnx_program import runtime
except ImportError as missing:
    print(f"onnx executor: {missing} in {sys.executable}", file=sys.stderr)
    sys.exit(os.EX_UNAVAILABLE)

if TYPE_CHECKING:
    from device_agent.executors.programs.stream import Header, Stream, die_with_parent
    from device_agent.executors.programs.zygote import Zygote, single_threaded
else:
    from stream import Stream, die_with_parent
    from zygote import Zygote, single_threaded

PROCESSES: Final = 4096
"""And threads, of all models together."""


def become(_header: Header, socks: list[socket.socket]) -> None:
    """Serve one model until the daemon hangs up."""
    onnx_child.serve(*socks)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def probe() -> int:
    """Print what the daemon's inventory wants to know, the sandbox tried on this very process."""
    found = {
        "version": runtime.version,
        "providers": runtime.providers(),
    }
    kept = sandbox.enter(sandbox.Plan())
    found["security"] = "strong" if kept.strong else "basic"
    print(json.dumps(found))
    return 0


def apart() -> int:
    """Print why models have no control group here; nothing when they have one."""
    folders, why = cgroup.join(f"tona-trial-{os.getpid()}", _memory_bytes(), PROCESSES)
    cgroup.leave(folders)
    print(why)
    return 0


def main(arguments: list[str]) -> int:
    """Answer a probe, or serve."""
    if arguments[1] == "--probe":
        return probe()
    if arguments[1] == "--apart":
        return apart()
    die_with_parent(int(arguments[2]))
    sock = socket.socket(fileno=int(arguments[1]))
    if not single_threaded("onnx"):
        return os.EX_SOFTWARE
    gc.collect()
    gc.freeze()
    os.chdir(arguments[3])
    share = float(arguments[5])
    folders, why = (
        cgroup.join(arguments[4], int(share * _memory_bytes()), PROCESSES) if share else ([], "")
    )
    if why:
        print(f"onnx executor: {why}", file=sys.stderr)
    zygote = Zygote(sock, become, leaders=True)
    Stream(sock).send({"id": 0, "pid": os.getpid()})
    resting.give_back(*resting.mapped(resting.maps()))
    zygote.serve()
    cgroup.leave(folders)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
