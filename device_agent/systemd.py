"""systemd's readiness and watchdog protocol: datagrams to NOTIFY_SOCKET; nothing without it."""

import os
import socket
from collections.abc import Mapping
from typing import Final

READY: Final = "READY=1"
ALIVE: Final = "WATCHDOG=1"
STOPPING: Final = "STOPPING=1"


class Notifier:
    """Tells systemd, if it listens; a lost word is not worth a failure."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self.interval_s: float | None = None
        """Half of what the watchdog allows; None when there is none for this process."""
        microseconds = environment.get("WATCHDOG_USEC", "")
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        if self._address and ours and microseconds.isdecimal() and int(microseconds):
            self.interval_s = int(microseconds) / 2e6

    def say(self, word: str) -> None:
        """Send one line; without systemd nothing happens."""
        if not self._address:
            return
        flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_UNIX, flags) as line:
            try:
                line.sendto(word.encode(), self._address)
            except OSError:
                return
