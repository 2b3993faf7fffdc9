"""What neighbours of the cell may fetch here: the daemon listens, a process of its own serves.

The process is started by the first who knocks and leaves when nobody has for `IDLE_S`: an idle
node holds a socket and nothing else.
"""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from protocols.errors import EnvironmentFailure

if TYPE_CHECKING:
    from device_agent.artifacts.fetch import TlsFiles

BACKLOG: Final = 16
IDLE_S: Final = 30.0
PAUSE_S: Final = 5.0
"""After a process that ended at once: what is wrong with it must not cost a core."""
_PROGRAM: Final = Path(__file__).parent / "share_child.py"


class Sharing:
    """Serves the artifacts of a folder at an address; port 0 takes a free one."""

    def __init__(self, host: str, port: int, folder: Path, tls: "TlsFiles | None" = None) -> None:
        """Listen. Raises EnvironmentFailure."""
        try:
            self._socket = socket.create_server((host, port), backlog=BACKLOG)
        except OSError as error:
            raise EnvironmentFailure(
                f"cannot listen for neighbours at {host}:{port}: {error.strerror}"
            ) from None
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._arguments = [str(folder), str(IDLE_S)]
        if tls is not None:
            self._arguments += [str(tls.authority), str(tls.certificate), str(tls.key)]
        scheme = "https" if tls is not None else "http"
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"
        self._pidfd = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._wait()

    def close(self) -> None:
        """Stop serving at once."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._process is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._knocked)

    def _knocked(self) -> None:
        """Leave whoever knocks to a process of its own; it accepts for itself."""
        self._loop.remove_reader(self._socket)
        number = self._socket.fileno()
        command = [sys.executable, "-s", str(_PROGRAM), str(number), str(os.getpid())]
        try:
            self._process = subprocess.Popen(
                [*command, *self._arguments], pass_fds=(number,), stdin=subprocess.DEVNULL
            )
        except OSError:
            self._pause = self._loop.call_later(PAUSE_S, self._wait)
            return
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        assert self._process is not None  # noqa: S101 - its end is what is seen here
        code, self._process = self._process.wait(), None
        if code:
            self._pause = self._loop.call_later(PAUSE_S, self._wait)
        else:
            self._wait()
