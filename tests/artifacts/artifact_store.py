"""A store that misbehaves on request."""

import http.server
import threading


class Store(http.server.ThreadingHTTPServer):
    """Serves `content` by path with ranges; `faults` are used up one a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.always: dict[str, str] = {}
        """A fault of every request for a path."""
        self.gates: dict[str, threading.Event] = {}
        """Before the answer of a path is sent."""
        self.asked: list[tuple[str, str, str]] = []
        """Method, path and range of every request."""

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def log_message(self, *_: object) -> None:
        pass

    def _plain(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append(("GET", self.path, wanted))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        fault = self.server.always.get(self.path, fault)
        data = self.server.content.get(self.path)
        if self.path in self.server.gates:
            self.server.gates[self.path].wait(60)
        if data is None:
            self._plain(404)
            return
        if fault.isdigit():
            self._plain(int(fault))
            return
        start = int(wanted[6:-1]) if wanted and fault != "whole" else 0
        self.send_response(206 if start else 200)
        if start:
            shown = 0 if fault == "shifted" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(data) - 1}/{len(data)}")
        if fault == "endless":
            self._without_end(data)
            return
        body = data[start:]
        if fault == "longer":
            body += b"more"
        if fault == "wrong":
            body = bytes(len(body))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _without_end(self, data: bytes) -> None:
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for _ in range(4096):
            try:
                self.wfile.write(data + bytes(65536))
            except OSError:
                return

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(("PUT", self.path, ""))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault:
            self._plain(int(fault))
            return
        self.server.content[self.path] = data
        self._plain(201)
