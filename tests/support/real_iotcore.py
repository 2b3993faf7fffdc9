"""The embedded broker in a process of its own: CONFIG; prints `ready` once it listens.

Accepted sockets inherit TCP_NODELAY from the listening one, for which the broker has no option.
"""

import os
import socket
import stat
import sys
import threading
import time
from pathlib import Path

from iotcore.iotcore import IotCoreBroker


def listening() -> list[socket.socket]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not stat.S_ISSOCK(entry.stat().st_mode):
                continue
            one = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            continue
        try:
            accepts = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            accepts = 0
        if accepts and one.family == socket.AF_INET:
            found.append(one)
        else:
            one.close()
    return found


def main() -> None:
    broker = IotCoreBroker(config_path=sys.argv[1])
    broker.check_ports()
    threading.Thread(target=broker.run_forever, daemon=True).start()
    while not (sockets := listening()):
        time.sleep(0.005)
    for one in sockets:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    # The parent's end of the pipe closes with the parent.
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
