"""The process around the embedded broker.

    python -m controller.broker.embedded_child PARENT_PID CONFIG HOST PORT

rumqttd has no option for TCP_NODELAY, and without it a QoS 1 round trip waits 40 ms for a delayed
acknowledgement. Accepted sockets inherit it from the listening one, so it is set there. A client
that reconnects to a restarted broker can be accepted before that: once our own session has been
answered, everyone before it in the queue has a socket too, and those get it one by one.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from iotcore import IotCoreBroker

from controller.broker.probe import session
from controller.broker.tether import die_with_parent
from controller.child import READY_PREFIX, READY_TIMEOUT_S

_POLL_S: Final = 0.002
_NODELAY: Final = (socket.IPPROTO_TCP, socket.TCP_NODELAY)


def own_sockets(port: int) -> Iterator[socket.socket]:
    """Yield a duplicate of each TCP socket of this process whose local port is `port`.

    Options set on it hold for the original; so would a timeout or blocking mode, and rumqttd would
    hang: leave those alone.
    """
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            one = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # closed since it was listed
            continue
        with closing(one):
            if one.family in {socket.AF_INET, socket.AF_INET6} and one.getsockname()[1] == port:
                yield one


async def listener_made_prompt(port: int) -> bool:
    """Set TCP_NODELAY on the socket that listens at `port`, as soon as there is one."""
    while True:
        for one in own_sockets(port):
            if _listens(one):
                one.setsockopt(*_NODELAY, 1)
                return bool(one.getsockopt(*_NODELAY))
        await asyncio.sleep(_POLL_S)


async def make_prompt(host: str, port: int) -> dict[str, Any]:
    """Set TCP_NODELAY on what listens at `port` and on all accepted there; return a report."""
    async with asyncio.timeout(READY_TIMEOUT_S):
        listener_nodelay = await listener_made_prompt(port)
    async with session(host, port) as writer:
        own_name = writer.get_extra_info("sockname")
        accepted_nodelay = False
        for one in own_sockets(port):
            if not _listens(one):
                if _peer(one) == own_name:
                    accepted_nodelay = bool(one.getsockopt(*_NODELAY))
                one.setsockopt(*_NODELAY, 1)
    return {"listener_nodelay": listener_nodelay, "accepted_nodelay": accepted_nodelay}


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _peer(one: socket.socket) -> Any:
    try:
        return one.getpeername()
    except OSError:  # gone already
        return None


def main() -> None:
    """Serve until killed; say when ready."""
    parent_pid, config, host, port = sys.argv[1:]
    die_with_parent(int(parent_pid))
    # rumqttd speaks of every packet as an error; what matters here is whether it answers.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    IotCoreBroker(config_path=config).start()
    report = asyncio.run(make_prompt(host, int(port)))
    sys.stdout.write(f"{READY_PREFIX}{json.dumps(report)}\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
