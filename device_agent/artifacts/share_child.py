"""Serves the artifacts of this node to its neighbours; it leaves when nobody asks any more.

    share_child.py LISTENING_FD PARENT_PID FOLDER IDLE_S [AUTHORITY CERTIFICATE KEY]

Read only, by digest, with ranges. Who fetches holds the bytes against their digest, and what they
are against what is signed: nobody has to trust us.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs.stream import die_with_parent
else:
    if __name__ == "__main__":
        # The library first: no module of ours hides one of it. Who imports this keeps its path.
        _HERE = os.path.dirname(os.path.realpath(__file__))
        _OURS = [os.path.join(os.path.dirname(_HERE), "executors", "programs")]
        sys.path[:] = [one for one in sys.path if os.path.realpath(one) != _HERE] + _OURS
    from stream import die_with_parent

CONNECTIONS_MAX: Final = 8
"""At once; one more is turned away, and asks the store."""
TIMEOUT_S: Final = 10.0
TICK_S: Final = 0.5
NICE: Final = 10
"""Neighbours get what the node's own work leaves."""
_PATH: Final = re.compile(r"/v1/artifacts/([0-9a-f]{64})")
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S
    server: Server

    def setup(self) -> None:
        """Shake hands here, in the connection's own thread: a slow one delays nobody."""
        self.request.settimeout(TIMEOUT_S)
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_GET(self) -> None:
        """Send an artifact, or the rest of it."""
        found = _PATH.fullmatch(self.path)
        file = self.server.open(found[1]) if found else -1
        if file < 0:
            self._end(404)
            return
        try:
            size = os.fstat(file).st_size
            wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
            start = int(wanted[1]) if wanted else 0
            if start > size or (start == size and wanted):
                self._end(416)
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(size - start))
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()
            with os.fdopen(os.dup(file), "rb") as content:
                self.connection.sendfile(content, start)
        finally:
            os.close(file)

    def log_message(self, *_: Any) -> None:
        """Say nothing: who fetches what is the store's to know."""

    def version_string(self) -> str:
        """Return nothing of use to a stranger."""
        return "tona"

    def _end(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Server(ThreadingMixIn, TCPServer):
    """Takes connections from a socket that listens already."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, folder: str, tls: ssl.SSLContext | None) -> None:
        super().__init__(listening.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.tls = tls
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._room = threading.Semaphore(CONNECTIONS_MAX)
        self._busy = 0
        self._lock = threading.Lock()
        self.last_s = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Since the last connection ended; 0 while there is one."""
        return 0.0 if self._busy else time.monotonic() - self.last_s

    def open(self, name: str) -> int:
        """Open an artifact that is whole; -1: it is not here."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(name, flags, dir_fd=self._folder)
        except OSError:
            return -1

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread, or turn away."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._busy += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._busy -= 1
                self.last_s = time.monotonic()
            self._room.release()

    def handle_error(self, *_: Any) -> None:
        """Let go of a connection that broke: its end asks elsewhere."""


def context(files: list[str]) -> ssl.SSLContext | None:
    """Return what lets in whom the cell's authority has named; None without files."""
    if not files:
        return None
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files[0])
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(files[1], files[2])
    return made


def main(arguments: list[str]) -> int:
    """Serve until nobody has asked for a while."""
    die_with_parent(int(arguments[2]))
    os.nice(NICE)
    server = Server(socket.socket(fileno=int(arguments[1])), arguments[3], context(arguments[5:]))
    server.timeout = TICK_S
    while server.idle_s < float(arguments[4]):
        server.handle_request()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
