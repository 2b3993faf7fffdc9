"""Processes of a benchmark: tied to it, ready by an event, ended in order.

Every one is started through `controller.broker.tether`, so that the kernel kills it when the
benchmark dies, however that happens.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

READY_TIMEOUT_S: Final = 60.0
ANSWER_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 15.0
ROOT: Final = Path(__file__).parents[2]
_LINE_MAX_BYTES: Final = 1 << 22
_NOT_PASSED_ON: Final = ("TONA_", "NOTIFY_SOCKET", "WATCHDOG_", "PYTHONDONTWRITEBYTECODE")
"""Byte code is cached as on any machine: compiling at the start leaves its memory behind."""


def environment() -> dict[str, str]:
    """Return the environment of every process: ours, without what would change their conduct."""
    own = os.environ
    return {name: own[name] for name in own if not name.startswith(_NOT_PASSED_ON)}


def module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module under this interpreter."""
    return [sys.executable, "-m", name, *arguments]


class Process:
    """A running process; `ask` speaks with it in lines of JSON."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self.ended = asyncio.create_task(process.wait())

    @property
    def pid(self) -> int:
        """The process id, the same from the tether on."""
        return self._process.pid

    async def line(self, timeout_s: float = READY_TIMEOUT_S) -> Any:
        """Return the next line that it says, decoded from JSON. Raises RuntimeError without one."""
        output = self._process.stdout
        assert output is not None
        try:
            async with asyncio.timeout(timeout_s):
                raw = await output.readline()
        except TimeoutError:
            raise RuntimeError(f"no word from {self._log.stem} within {timeout_s} s") from None
        if not raw:
            raise RuntimeError(f"{self._log.stem} has ended: {self.last_words()}")
        return msgspec.json.decode(raw)

    async def ask(self, question: Any, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Say a line and return the answer."""
        line = self._process.stdin
        assert line is not None
        line.write(msgspec.json.encode(question) + b"\n")
        return await self.line(timeout_s)

    def last_words(self) -> str:
        """Return the end of its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    async def stop(self) -> None:
        """End the process: asked, then killed."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self._process.kill()
            await self.ended


@asynccontextmanager
async def running(
    command: Sequence[str], log: Path, more: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """Run a command as long as the context; stderr goes to `log`."""
    tether = module("controller.broker.tether", str(os.getpid()), *command)
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *tether,
            cwd=ROOT,
            env=environment() | dict(more or {}),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            limit=_LINE_MAX_BYTES,
            start_new_session=True,
        )
    one = Process(process, log)
    try:
        yield one
    finally:
        await one.stop()


@asynccontextmanager
async def running_notified(
    command: Sequence[str], folder: Path, name: str
) -> AsyncIterator[Process]:
    """Run a daemon that says READY=1 to systemd's socket, and yield it when it has."""
    path = folder / f"{name}.notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.setblocking(False)
        line.bind(str(path))
        async with running(command, folder / f"{name}.log", {"NOTIFY_SOCKET": str(path)}) as one:
            told = asyncio.create_task(_ready(line))
            await asyncio.wait(
                {told, one.ended}, timeout=READY_TIMEOUT_S, return_when="FIRST_COMPLETED"
            )
            if not told.done():
                told.cancel()
                raise RuntimeError(f"{name} is not ready: {one.last_words()}")
            yield one
    path.unlink(missing_ok=True)


async def _ready(line: socket.socket) -> None:
    while b"READY=1" not in await asyncio.get_running_loop().sock_recv(line, 4096):
        pass
