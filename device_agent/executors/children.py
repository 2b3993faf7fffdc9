"""Children of the ONNX zygote, one model in each."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from device_agent.executors.calls import Instance
from device_agent.executors.link import Link, Reply
from device_agent.executors.process import Process
from protocols.errors import EnvironmentFailure
from protocols.manifest import Manifest


class Recipe(Struct, frozen=True):
    """What a child has to have loaded to serve an instance."""

    manifest: Manifest
    threads: int
    providers: tuple[str, ...]


class Child:
    """One forked process: its calls, its stop socket, its model."""

    def __init__(self, zygote: Process, number: int, hung_up: "Callable[[Child], None]") -> None:
        """Have the zygote fork; `hung_up` hears when its socket ends.

        Raises EnvironmentFailure when the zygote does not listen.
        """
        self.number = number
        self.zygote = zygote
        self.instance: Instance | None = None
        self.unwanted = False
        """We ended it, so its end is no news."""
        self.gone = asyncio.Event()
        self.loaded: Reply | None = None
        calls, its_calls = socket.socketpair()
        stops, its_stops = socket.socketpair()
        try:
            fds = its_calls.fileno(), its_stops.fileno()
            zygote.link.tell({"op": "fork", "child": number}, fds)
        except EnvironmentFailure:
            calls.close()
            stops.close()
            raise
        finally:
            its_calls.close()
            its_stops.close()
        self.stops = Link(stops, lambda: None)
        self.link = Link(calls, lambda: hung_up(self))

    def kill(self) -> None:
        """End it by force."""
        self.unwanted = True
        if self.zygote.link.open:
            self.zygote.link.tell({"op": "kill", "child": self.number})
        self.link.close()


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process; 0 when it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    found = [line for line in rollup.splitlines() if line.startswith("Pss:")]
    return int(found[0].split()[1]) * 1024 if found else 0
