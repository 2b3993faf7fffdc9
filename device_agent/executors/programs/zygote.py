"""A warm process that forks children for the daemon; what they become is its program's business.

It has one thread, for a fork copies only one. A `fork` frame brings the child's sockets and tells
what it is to be; every child's birth and end are reported. When the daemon goes, the kernel kills
the zygote and after it the children.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs.stream import Header, Stream, die_with_parent
else:
    from stream import Header, Stream, die_with_parent

MAX_FDS: Final = 16
"""That come with one read: two sockets, or constants and a state."""
_FD: Final = struct.Struct("<i")

Become = Callable[["Header", "list[socket.socket]"], None]
"""What a child does with its `fork` frame and its sockets; its process ends when this returns."""


class Control:
    """The zygote's socket, which keeps the descriptors that come with the bytes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fds: list[int] = []

    def recv(self, size: int, /) -> bytes:
        """Read bytes and put descriptors aside."""
        room = socket.CMSG_LEN(MAX_FDS * _FD.size)
        data, ancillary, _, _ = self.sock.recvmsg(size, room)
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = len(payload) // _FD.size * _FD.size
                self.fds += [fd for (fd,) in _FD.iter_unpack(payload[:whole])]
        return data

    def take(self) -> list[int]:
        """Return the descriptors that came since the last time; they are the caller's."""
        fds, self.fds = self.fds, []
        return fds

    def sendall(self, data: bytes, /) -> None:
        """Write bytes."""
        self.sock.sendall(data)


class Zygote:
    """The children of this process, by number and by process."""

    def __init__(self, sock: socket.socket, become: Become, *, leaders: bool = False) -> None:
        """With `leaders` each child leads a process group, and whatever it forks ends with it."""
        self._leaders = leaders
        self._control = Control(sock)
        self._stream = Stream(self._control)
        self._become = become
        self._pid = os.getpid()
        self._numbers: dict[int, int] = {}
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._waker)
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
            self._kill(pid)
        for pid in self._numbers:
            os.waitpid(pid, 0)

    def _select(self) -> list[Any]:
        readers: list[Any] = [self._control.sock, self._wake]
        return select.select(readers, [], [])[0]

    def _handle(self, header: Header) -> None:
        number: int = header["child"]
        if header["op"] == "fork":
            self._fork(number, header)
            return
        for pid, known in self._numbers.items():
            if known == number:
                # Not reaped yet, so the process id is still this child's.
                self._kill(pid)

    def _kill(self, pid: int) -> None:
        if self._leaders:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)

    def _fork(self, number: int, header: Header) -> None:
        fds = self._control.take()
        try:
            pid = os.fork()
        except OSError as error:
            self._report(number, f"cannot fork: {error.strerror}")
        else:
            if pid == 0:
                self._be_child(header, fds)
            self._numbers[pid] = number
            self._stream.send({"id": 0, "born": [number, pid]})
        for fd in fds:
            os.close(fd)

    def _be_child(self, header: Header, fds: list[int]) -> None:
        status = os.EX_SOFTWARE
        try:
            die_with_parent(self._pid)
            if self._leaders:
                os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.sock.close()
            os.close(self._wake)
            os.close(self._waker)
            self._become(header, [socket.socket(fileno=fd) for fd in fds])
            status = os.EX_OK
        except BaseException:  # noqa: BLE001 - a process's edge: it must never return to the zygote
            traceback.print_exc()
        finally:
            os._exit(status)

    def _reap(self) -> None:
        os.read(self._wake, 4096)
        while self._numbers:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            if self._leaders:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(ended.si_pid, signal.SIGKILL)
            pid, status = os.waitpid(ended.si_pid, 0)
            code = os.waitstatus_to_exitcode(status)
            text = f"exited with {code}" if code >= 0 else f"was killed by {named(-code)}"
            number = self._numbers.pop(pid, None)
            if number is not None:
                self._report(number, text)

    def _report(self, number: int, text: str) -> None:
        self._stream.send({"id": 0, "exit": [number, text]})


def named(number: int) -> str:
    """Return the name of a signal; real-time ones have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def single_threaded(name: str) -> bool:
    """Whether this process may fork; says on stderr why not."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        print(f"{name} executor: {threads} threads after import, cannot fork", file=sys.stderr)
    return threads == 1
