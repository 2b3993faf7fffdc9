"""Holds wasmtime and its engine in memory and forks a host for each tenant.

    wasm_zygote.py SOCKET_FD PARENT_PID THREADS      serve until the daemon hangs up
    wasm_zygote.py --probe                           print the version as JSON

It never touches a module: a host that is forked knows nothing of any tenant.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

if __name__ == "__main__":
    # The library first: no module of ours hides one of it. Whoever imports this keeps its own path.
    _HERE: Final = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [one for one in sys.path if os.path.realpath(one) != _HERE] + [_HERE]

try:
    import wasmtime

    if TYPE_CHECKING:
        from device_agent.executors.programs import (
            resting,
            sandbox,
            wasm_compile,
            wasm_engine,
            wasm_host,
        )
    else:
        import resting
        import sandbox
        import wasm_compile
        import wasm_engine
        import wasm_host
except ImportError as missing:
    print(f"wasm executor: {missing} in {sys.executable}", file=sys.stderr)
    sys.exit(os.EX_UNAVAILABLE)

if TYPE_CHECKING:
    from device_agent.executors.programs.stream import Header, die_with_parent
    from device_agent.executors.programs.zygote import Zygote, single_threaded
else:
    from stream import die_with_parent
    from zygote import Zygote, single_threaded


FILES: Final = 1024
"""Open in one host at once."""
COMPILER_BYTES: Final = 2 << 30


class Children:
    """What a forked process becomes: a host or a compiler, with the engine that is here already."""

    def __init__(self, engine: wasmtime.Engine, threads: int) -> None:
        self._engine = engine
        self._threads = threads

    def become(self, header: Header, socks: list[socket.socket]) -> None:
        """Serve the daemon until it hangs up, or compile what it sends; in the sandbox."""
        read, look, write = (tuple(header.get(one, ())) for one in ("read", "look", "write"))
        plan = sandbox.Plan(read, look, write, files=FILES)
        if header["what"] == "compiler":
            sandbox.enter(plan._replace(memory_bytes=COMPILER_BYTES))
            wasm_compile.serve(socks[0], self._engine)
        else:
            kept = sandbox.enter(plan)
            folders = wasm_host.Folders(header["forms"], header["blobs"])
            wasm_host.Host(socks[0], self._engine, folders, kept.gaps).run(self._threads)


def probe() -> int:
    """Print what the daemon's inventory wants to know, the sandbox tried on this very process."""
    from importlib.metadata import version  # noqa: PLC0415 - the zygote itself never needs it

    found = {"version": version("wasmtime"), "providers": []}
    kept = sandbox.enter(sandbox.Plan())
    found["security"] = "strong" if kept.strong else "basic"
    print(json.dumps(found))
    return 0


def main(arguments: list[str]) -> int:
    """Answer a probe, or serve."""
    probed = arguments[1] == "--probe"
    guests = wasm_host.MORE_THREADS + (1 if probed else int(arguments[3]))
    if lacking := wasm_engine.lacking(guests):
        print(f"wasm executor: {lacking}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    if probed:
        return probe()
    die_with_parent(int(arguments[2]))
    sock = socket.socket(fileno=int(arguments[1]))
    threads = int(arguments[3])
    children = Children(wasm_engine.engine(guests), threads)
    if not single_threaded("wasm"):
        return os.EX_SOFTWARE
    gc.collect()
    resting.give_back(*resting.mapped(resting.maps()))
    gc.freeze()
    Zygote(sock, children.become).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
