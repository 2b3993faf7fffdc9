"""Holds numpy and ONNX Runtime in memory and forks a child for each instance.

    onnx_zygote.py SOCKET_FD PARENT_PID EMPTY_FOLDER      serve until the daemon hangs up
    onnx_zygote.py --probe                                print version and providers as JSON

It has one thread, for a fork copies only one, and never touches a model. A `fork` frame brings two
sockets, the child's own; every child's end is reported. When the daemon goes, the kernel kills the
zygote and after it the children.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

# Before the imports that read them: no telemetry, no thread pool of a library in this process.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

try:
    import onnxruntime

    if TYPE_CHECKING:
        from device_agent.executors.programs import onnx_child
    else:
        import onnx_child
except ImportError as missing:
    print(f"onnx executor: {missing} in {sys.executable}", file=sys.stderr)
    sys.exit(os.EX_UNAVAILABLE)

if TYPE_CHECKING:
    from device_agent.executors.programs.stream import Header, Stream, die_with_parent
else:
    from stream import Header, Stream, die_with_parent

_FDS: Final = struct.Struct("<2i")


class Control:
    """The zygote's socket, which keeps the descriptors that come with the bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fds: list[int] = []

    def recv(self, size: int, /) -> bytes:
        """Read bytes and put descriptors aside."""
        data, ancillary, _, _ = self.sock.recvmsg(size, socket.CMSG_LEN(_FDS.size))
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self.fds += _FDS.unpack(payload[: _FDS.size])
        return data

    def sendall(self, data: bytes, /) -> None:
        """Write bytes."""
        self.sock.sendall(data)


class Zygote:
    """The children of this process, by number and by process."""

    def __init__(self, sock: socket.socket, empty: str) -> None:
        self._control = Control(sock)
        self._stream = Stream(self._control)
        self._empty = empty
        self._pid = os.getpid()
        self._numbers: dict[int, int] = {}
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve frames until the daemon hangs up, then end the children."""
        while True:
            ready = [self._control.sock] if self._stream.has_rest() else self._select()
            if self._wake in ready:
                self._reap()
            if self._control.sock in ready:
                frame = self._stream.receive()
                if frame is None:
                    break
                self._handle(frame[0])
        for pid in self._numbers:
            os.kill(pid, signal.SIGKILL)
        for pid in self._numbers:
            os.waitpid(pid, 0)

    def _select(self) -> list[Any]:
        readers: list[Any] = [self._control.sock, self._wake]
        return select.select(readers, [], [])[0]

    def _handle(self, header: Header) -> None:
        number: int = header["child"]
        if header["op"] == "fork":
            self._fork(number)
            return
        for pid, known in self._numbers.items():
            if known == number:
                # Not reaped yet, so the process id is still this child's.
                os.kill(pid, signal.SIGKILL)

    def _fork(self, number: int) -> None:
        fds, self._control.fds = self._control.fds, []
        try:
            pid = os.fork()
        except OSError as error:
            self._report(number, f"cannot fork: {error.strerror}")
        else:
            if pid == 0:
                self._become_child(fds)
            self._numbers[pid] = number
        for fd in fds:
            os.close(fd)

    def _become_child(self, fds: list[int]) -> None:
        status = os.EX_SOFTWARE
        try:
            die_with_parent(self._pid)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.sock.close()
            os.chdir(self._empty)
            sock, stops = (socket.socket(fileno=fd) for fd in fds)
            onnx_child.Child(sock, stops).serve()
            status = os.EX_OK
        except BaseException:  # noqa: BLE001 - a process's edge: it must never return to the zygote
            traceback.print_exc()
        finally:
            os._exit(status)

    def _reap(self) -> None:
        os.read(self._wake, 4096)
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            text = f"exited with {code}" if code >= 0 else f"killed by signal {-code}"
            self._report(self._numbers.pop(pid), text)

    def _report(self, number: int, text: str) -> None:
        self._stream.send({"id": 0, "exit": [number, text]})


def probe() -> int:
    """Print what the daemon's inventory wants to know."""
    found = {
        "version": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
    }
    print(json.dumps(found))
    return 0


def main(arguments: list[str]) -> int:
    """Answer a probe, or serve."""
    if arguments[1] == "--probe":
        return probe()
    die_with_parent(int(arguments[2]))
    sock = socket.socket(fileno=int(arguments[1]))
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        print(f"onnx executor: {threads} threads after import, cannot fork", file=sys.stderr)
        return os.EX_SOFTWARE
    gc.collect()
    gc.freeze()
    zygote = Zygote(sock, arguments[3])
    Stream(sock).send({"id": 0, "pid": os.getpid()})
    zygote.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
