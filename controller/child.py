"""One life of a child process: started, its words kept, ended.

It runs in a session of its own, so that the terminal's Ctrl-C reaches us alone, who end it in
order. `tethered` makes the kernel kill it when we end, however that happens.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

from protocols.errors import EnvironmentFailure

READY_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 5.0
READY_PREFIX: Final = "ready "
"""How a child of ours begins the line that says that it is ready."""
LOG_MAX_BYTES: Final = 8 << 20
"""A larger log is put aside when its process starts anew; one older log is kept."""
LAST_WORDS_BYTES: Final = 2000
_KEPT_LINES: Final = 20
_KEPT_CHARACTERS: Final = 400
_SHOWN_LINES: Final = 3
_NOTHING: Final = "it wrote nothing"
_SCRUBBED: Final = ("TONA_", "NOTIFY_SOCKET", "WATCHDOG_")

_log = logging.getLogger(__name__)


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter, whatever folder we are in."""
    return [sys.executable, "-P", "-m", module, *arguments]


def tethered(command: Sequence[str]) -> list[str]:
    """Return a command that dies with this process."""
    return module_command("controller.broker.tether", str(os.getpid()), *command)


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: its flags say everything, ours must not."""
    return {name: value for name, value in own.items() if not name.startswith(_SCRUBBED)}


class Child:
    """A running process and the last lines that it wrote."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path | None) -> None:
        self._process = process
        self._log = log
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._wanted: list[tuple[str, asyncio.Future[str]]] = []
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def spawn(cls, command: Sequence[str], log: Path | None = None) -> Self:
        """Start a command; what it says on stderr goes to the log, or is kept like its stdout.

        Raises EnvironmentFailure when the machine cannot.
        """
        try:
            with _open(log) as errors:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors or asyncio.subprocess.STDOUT,
                    env=environment(os.environ),
                    start_new_session=True,
                )
        except OSError as error:
            what = f"cannot start {command[0]}"
            if error.filename not in (None, command[0]):
                what = f"cannot write {error.filename}"
            raise EnvironmentFailure(f"{what}: {error.strerror}") from None
        return cls(process, log)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def last_words(self) -> str:
        """What the process wrote last, on one line."""
        if self._log is None:
            return " / ".join(list(self._lines)[-_SHOWN_LINES:]) or _NOTHING
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_WORDS_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
            return next((line for line in reversed(lines) if line.strip()), _NOTHING)
        return _NOTHING

    async def said(self, prefix: str = "", within_s: float = READY_TIMEOUT_S) -> str:
        """Wait for a line on stdout that begins so and return its rest.

        Raises EnvironmentFailure when the process ends before it, or after the time.
        """
        line: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._wanted.append((prefix, line))
        for kept in list(self._lines):
            self._notice(kept)
        either: set[asyncio.Future[Any]] = {line, self._reader}
        try:
            async with asyncio.timeout(within_s):
                await asyncio.wait(either, return_when="FIRST_COMPLETED")
        except TimeoutError:
            raise EnvironmentFailure(f"not ready in {within_s:.0f} s") from None
        if not line.done():
            raise EnvironmentFailure(f"it ended at once: {self.last_words}")
        return line.result()

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

    async def stop(self, within_s: float = STOP_TIMEOUT_S) -> None:
        """End the process: asked, and after the time killed."""
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(within_s):
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
            if line:
                self._lines.append(line[:_KEPT_CHARACTERS])
                self._notice(line)
                _log.debug("process %d: %s", self.pid, line)

    def _notice(self, line: str) -> None:
        for prefix, found in self._wanted:
            if line.startswith(prefix) and not found.done():
                found.set_result(line.removeprefix(prefix))


@contextlib.contextmanager
def _open(log: Path | None) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_MAX_BYTES:
            log.replace(log.with_suffix(".old.log"))
    with log.open("ab") as file:
        yield file
