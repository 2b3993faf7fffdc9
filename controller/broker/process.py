"""One life of a broker's process: started, its output kept, ended."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Self

from protocols.errors import EnvironmentFailure

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 5.0
READY_PREFIX: Final = "ready "
_KEPT_LINES: Final = 20
_KEPT_CHARACTERS: Final = 400

_log = logging.getLogger(__name__)


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours, whatever the working folder holds."""
    return [sys.executable, "-P", "-m", module, str(os.getpid()), *arguments]


class Child:
    """A running process and the last lines that it wrote."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def spawn(cls, command: Sequence[str]) -> Self:
        """Start `command`. Raises EnvironmentFailure when the machine cannot."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                # The terminal's Ctrl-C is for the controller, which stops its broker last.
                start_new_session=True,
            )
        except OSError as error:
            raise EnvironmentFailure(f"cannot start {command[0]}: {error.strerror}") from None
        return cls(process)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """What the process wrote last, on one line."""
        return " / ".join(list(self._lines)[-3:]) or "it wrote nothing"

    async def ready(self) -> str:
        """Wait for the line that starts with READY_PREFIX and return its rest.

        Raises EnvironmentFailure when the process ends before it, or after READY_TIMEOUT_S.
        """
        either: set[asyncio.Future[Any]] = {self._ready, self._reader}
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await asyncio.wait(either, return_when="FIRST_COMPLETED")
        except TimeoutError:
            raise EnvironmentFailure(f"not ready in {READY_TIMEOUT_S:.0f} s") from None
        if not self._ready.done():
            raise EnvironmentFailure(f"it ended at once: {self.last_words}")
        return self._ready.result()

    async def wait(self) -> int:
        """Wait until the process has ended and return its code, negative for a signal."""
        code = await self._process.wait()
        # Not awaited itself: several may wait here, and one of them cancelled must not end it.
        await asyncio.wait({self._reader})
        return code

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
        await self.wait()

    async def _read(self) -> None:
        output = self._process.stdout
        while output is not None:
            try:
                raw = await output.readline()
            except ValueError:  # longer than the reader's limit: it has dropped the line
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").strip()
            if line.startswith(READY_PREFIX) and not self._ready.done():
                self._ready.set_result(line.removeprefix(READY_PREFIX))
            elif line:
                self._lines.append(line[:_KEPT_CHARACTERS])
                _log.debug("broker %d: %s", self.pid, line)
