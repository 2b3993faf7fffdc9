"""Child processes of the daemon: one socket to each, exits seen without threads, all reaped."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from device_agent.executors.link import Link, Reply, no_event
from protocols.errors import EnvironmentFailure

PROGRAMS: Final = Path(__file__).parent / "programs"
END_GRACE_S: Final = 2.0
"""How long a process may take to leave after its socket was closed."""
PROBE_TIMEOUT_S: Final = 30.0
PROBE_MAX_BYTES: Final = 64 * 1024

OnEnd = Callable[["Process"], None]


def no_end(process: "Process") -> None:
    """Leave the end of a process to whoever waits for it."""
    del process


class Process:
    """A running program that was started as `INTERPRETER -s PROGRAM FD PARENT_PID ARGUMENTS`."""

    def __init__(
        self,
        interpreter: str,
        program: Path,
        arguments: tuple[str, ...],
        on_end: OnEnd,
        on_event: Callable[[Reply], None] = no_event,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the program; `on_end` hears once that its socket or itself has ended.

        It has our environment with these additions.
        Raises EnvironmentFailure when it cannot be started.
        """
        self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            self._popen = subprocess.Popen(
                [
                    *(interpreter, "-s", str(program)),
                    *(str(theirs.fileno()), str(os.getpid()), *arguments),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env=None if environment is None else {**os.environ, **environment},
            )
        except OSError as error:
            ours.close()
            raise EnvironmentFailure(f"cannot start {interpreter}: {error.strerror}") from None
        finally:
            theirs.close()
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)
        self.link = Link(ours, lambda: on_end(self), on_event)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._exited.set_result(self._popen.wait())
        self.link.finish()

    @property
    def running(self) -> bool:
        """Whether the process has not been reaped."""
        return not self._exited.done()

    def kill(self) -> None:
        """End the process by force, at once."""
        if self.running:
            self._popen.kill()

    async def exited(self) -> str:
        """Wait for the end and say how it came."""
        code = await asyncio.shield(self._exited)
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exited with {code}"

    async def end(self) -> None:
        """Close the socket, wait for the process to leave, kill it when it does not."""
        self.link.close()
        try:
            await asyncio.wait_for(self.exited(), END_GRACE_S)
        except TimeoutError:
            self.kill()
            await self.exited()


async def probe(interpreter: str, program: Path, arguments: tuple[str, ...] = ()) -> bytes | None:
    """Run `PROGRAM --probe ARGUMENTS`; what it prints, None when it cannot run here."""
    try:
        process = await asyncio.create_subprocess_exec(
            *(interpreter, "-s", str(program), "--probe", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            limit=PROBE_MAX_BYTES,
        )
    except OSError:
        return None
    try:
        output, _ = await asyncio.wait_for(process.communicate(), PROBE_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    return output if process.returncode == 0 else None


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process; 0 when it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    found = [line for line in rollup.splitlines() if line.startswith("Pss:")]
    return int(found[0].split()[1]) * 1024 if found else 0
