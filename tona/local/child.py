"""One process of ours and its log file; it dies with the process that started it.

It is started through the tether, so that the kernel kills it when its parent ends, however that
happens; in a session of its own, so that the terminal's Ctrl-C reaches the parent alone.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Self

from protocols.errors import EnvironmentFailure

ANNOUNCE_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 15.0
LOG_MAX_BYTES: Final = 8 << 20
"""A larger log is put aside when its process starts anew; one older log is kept."""
LAST_WORDS_BYTES: Final = 2000
_SCRUBBED: Final = ("TONA_", "NOTIFY_SOCKET", "WATCHDOG_")


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter, whatever folder we are in."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: its flags say everything, ours must not."""
    return {name: value for name, value in own.items() if not name.startswith(_SCRUBBED)}


class Child:
    """A running process."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    @classmethod
    async def spawn(cls, command: Sequence[str], log: Path) -> Self:
        """Start a command; what it says on stderr goes to the log. Raises EnvironmentFailure."""
        tethered = module_command("controller.broker.tether", str(os.getpid()), *command)
        try:
            with _open(log) as errors:
                process = await asyncio.create_subprocess_exec(
                    *tethered,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    env=environment(os.environ),
                    start_new_session=True,
                )
        except OSError as error:
            what = (
                f"cannot write {error.filename}" if error.filename else f"cannot start {command[0]}"
            )
            raise EnvironmentFailure(f"{what}: {error.strerror}") from None
        return cls(process, log)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The last line of its log."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_WORDS_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), "it wrote nothing")
        return "it wrote nothing"

    async def announced(self) -> bytes:
        """Wait for the first line on stdout. Raises EnvironmentFailure when none comes."""
        output = self._process.stdout
        assert output is not None  # noqa: S101 - spawn made the pipe
        try:
            async with asyncio.timeout(ANNOUNCE_TIMEOUT_S):
                line = await output.readline()
        except TimeoutError:
            raise EnvironmentFailure(f"not ready in {ANNOUNCE_TIMEOUT_S:.0f} s") from None
        if not line:
            raise EnvironmentFailure(f"it ended at once: {self.last_words}")
        return line

    async def wait(self) -> int:
        """Wait until the process has ended and return its code, negative for a signal."""
        return await self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a process that has just ended needs none."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self) -> None:
        """End the process: asked, and after STOP_TIMEOUT_S killed."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            await self._process.wait()


def _open(log: Path) -> IO[bytes]:
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_MAX_BYTES:
            log.replace(log.with_suffix(".old.log"))
    return log.open("ab")
