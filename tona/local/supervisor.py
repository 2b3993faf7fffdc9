"""Keeps named processes alive: what dies is started again, after a growing and bounded pause."""

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from controller.broker import restarts
from controller.child import Child, tethered
from protocols.errors import EnvironmentFailure, TonaBug
from tona.local.inside import command_inside

ANNOUNCE_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 15.0
WRONG_USE: Final = 2
"""The exit code of a process of ours that says that it was asked for what cannot be."""
WRONG_USES_MAX: Final = 3
"""In a row; another start would be told the same."""

Command = Callable[[], Sequence[str]]
Told = Callable[[str, str], None]
"""Hears what happens to a process: its name, and a sentence."""


class _Kept:
    """One process and what brings it back."""

    def __init__(self, command: Command, space: str, log: Path, child: Child) -> None:
        self.command = command
        self.space = space
        self.log = log
        self.child = child
        self.left_down = False
        self.keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Starts, keeps and stops the processes of one cell; lives on one event loop."""

    def __init__(self, logs: Path, told: Told) -> None:
        self._logs = logs
        self._told = told
        self._kept: dict[str, _Kept] = {}
        self._failed: asyncio.Future[EnvironmentFailure] = (
            asyncio.get_running_loop().create_future()
        )

    async def start(
        self, name: str, command: Command, *, announces: bool = False, space: str = ""
    ) -> str:
        """Start a process and keep it; returns its first line where it announces itself.

        `space` is the path of the network namespace that it runs in; empty: ours. Raises
        EnvironmentFailure when the first start fails.
        """
        log = self._logs / f"{name}.log"
        child = await _spawn(command, space, log)
        kept = self._kept[name] = _Kept(command, space, log, child)
        line = ""
        if announces:
            try:
                line = await child.said(within_s=ANNOUNCE_TIMEOUT_S)
            except EnvironmentFailure as error:
                raise EnvironmentFailure(f"{name} did not start: {error} (log: {log})") from None
        kept.keeper = asyncio.create_task(self._keep(name, kept), name=f"keep {name}")
        return line

    def pid(self, name: str) -> int:
        """Return the process id of a process that was started."""
        return self._kept[name].child.pid

    def kill(self, name: str) -> int:
        """Kill a process at once and leave it down; returns its id."""
        kept = self._kept[name]
        kept.left_down = True
        kept.child.send(signal.SIGKILL)
        return kept.child.pid

    async def renew(self, name: str) -> None:
        """End a process in order and start it anew, by its command as it is now.

        Raises EnvironmentFailure.
        """
        kept = self._kept[name]
        await self.stop(name)
        await self.start(name, kept.command, space=kept.space)

    async def failed(self) -> EnvironmentFailure:
        """Wait until a process is beyond mending by restarts, and return why; may never return."""
        return await asyncio.shield(self._failed)

    async def stop(self, *names: str, within_s: float = STOP_TIMEOUT_S) -> None:
        """Stop these processes side by side; those that were never started are no error."""
        kept = [self._kept.pop(name) for name in names if name in self._kept]
        for one in kept:
            if one.keeper is not None:
                one.keeper.cancel()
        keepers = [one.keeper for one in kept if one.keeper is not None]
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(one.child.stop(within_s) for one in kept))

    async def _keep(self, name: str, kept: _Kept) -> None:
        loop = asyncio.get_running_loop()
        failures, wrong_uses, since_s = 0, 0, loop.time()
        while True:
            code = await kept.child.wait()
            if kept.left_down:
                return
            failures = restarts.failures_after(failures, loop.time() - since_s)
            wrong_uses = min(wrong_uses + 1, failures) if code == WRONG_USE else 0
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            words = f" ({kept.child.last_words})" if code > 0 else ""
            useless = wrong_uses >= WRONG_USES_MAX
            if useless or restarts.given_up(failures):
                times = wrong_uses if useless else failures
                self._give_up(name, f"{how}{words}, {times} times in a row")
                return
            self._told(name, f"{how}{words}: starting it again")
            # Chance only spreads restarts in time.
            await asyncio.sleep(restarts.delay_s(failures, random.random()))  # noqa: S311 - to spread
            try:
                kept.child = await _spawn(kept.command, kept.space, kept.log)
            except EnvironmentFailure as error:
                self._give_up(name, str(error))
                return
            self._told(name, f"runs again as process {kept.child.pid}")
            since_s = loop.time()

    def _give_up(self, name: str, why: str) -> None:
        if name not in self._kept:
            raise TonaBug(f"{name} is kept by nobody")
        if not self._failed.done():
            log = self._kept[name].log
            self._failed.set_result(EnvironmentFailure(f"{name} {why} (log: {log})"))


async def _spawn(command: Command, space: str, log: Path) -> Child:
    """Start a process that dies with us. Raises EnvironmentFailure."""
    words = list(command())
    return await Child.spawn(command_inside(space, words) if space else tethered(words), log)
