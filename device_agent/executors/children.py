"""Processes forked for ONNX tasks: those that load a model, and those that run its calls."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from device_agent.executors.calls import Instance
from device_agent.executors.link import Link, Reply, no_event
from protocols.errors import EnvironmentFailure
from protocols.manifest import Manifest


class Recipe(Struct, frozen=True):
    """What a process has to have loaded to serve an instance."""

    manifest: Manifest
    threads: int
    providers: tuple[str, ...]
    tenant: str


class Child:
    """One forked process: its frames, its stop socket, its model."""

    def __init__(
        self,
        parent: Link,
        number: int,
        hung_up: "Callable[[Child], None]",
        on_event: Callable[[Reply], None] = no_event,
    ) -> None:
        """Have the process behind `parent` fork; `hung_up` hears when the child's socket ends.

        Raises EnvironmentFailure when the parent does not listen.
        """
        self.number = number
        self.parent = parent
        self.instance: Instance | None = None
        self.unwanted = False
        """We ended it, so its end is no news."""
        self.gone = asyncio.Event()
        self.pid = 0
        """0: not known yet."""
        self.loaded: Reply | None = None
        """What the process that loaded the model says of it."""
        calls, its_calls = socket.socketpair()
        stops, its_stops = socket.socketpair()
        try:
            fds = its_calls.fileno(), its_stops.fileno()
            parent.tell({"op": "fork", "child": number}, fds)
        except EnvironmentFailure:
            calls.close()
            stops.close()
            raise
        finally:
            its_calls.close()
            its_stops.close()
        self.stops = Link(stops, lambda: None)
        self.link = Link(calls, lambda: hung_up(self), on_event)

    async def ask(self, header: dict[str, Any], timeout_s: float) -> Reply | None:
        """Send a request and wait for its answer; None when the process ends first.

        Raises TimeoutError.
        """
        return await asyncio.wait_for(self.link.ask(header), timeout_s)

    def kill(self) -> None:
        """End it by force, with all that it forked."""
        self.unwanted = True
        if self.parent.open:
            self.parent.tell({"op": "kill", "child": self.number})
        self.link.close()
