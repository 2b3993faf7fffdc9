"""Keeps one broker process alive: restarted when it ends or stops answering."""

import asyncio
import contextlib
import logging
import random
import signal
from collections.abc import Awaitable, Callable
from typing import Final

from controller.broker import restarts
from controller.child import Child
from protocols.errors import EnvironmentFailure, TonaBug, UserError

LIVENESS_EVERY_S: Final = 5.0
LIVENESS_MISSES_MAX: Final = 3

_log = logging.getLogger(__name__)


class Supervisor:
    """Runs what `launch` starts, for as long as restarts can mend it.

    `launch` returns a child that is ready, or raises EnvironmentFailure and leaves none behind;
    `probe` raises EnvironmentFailure when the broker does not answer.
    """

    def __init__(
        self,
        what: str,
        launch: Callable[[], Awaitable[Child]],
        probe: Callable[[], Awaitable[None]],
    ) -> None:
        self._what = what
        self._launch = launch
        self._probe = probe
        self._child: Child | None = None
        self._keeper: asyncio.Task[EnvironmentFailure] | None = None
        self._up = asyncio.Event()
        self._renewing = False

    @property
    def pid(self) -> int | None:
        """Process id of the broker; None while there is none."""
        return self._child.pid if self._child is not None and self._up.is_set() else None

    async def start(self) -> None:
        """Start the broker. Raises EnvironmentFailure when its first start fails."""
        self._took_up(await self._launch())
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self._what}")

    async def stop(self) -> None:
        """End broker and supervision. Safe to call twice, and before `start`."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        child, self._child = self._child, None
        self._up.clear()
        if child is not None:
            await child.stop()

    async def wait_failed(self) -> EnvironmentFailure:
        """Wait until the broker is beyond mending by restarts, and return why."""
        if self._keeper is None:
            raise TonaBug(f"{self._what} was not started")
        return await asyncio.shield(self._keeper)

    async def wait_up(self) -> int:
        """Wait until the broker runs and is ready, and return its process id."""
        while self._child is None or not self._up.is_set():
            await self._up.wait()
        return self._child.pid

    def send(self, number: signal.Signals) -> None:
        """Send the running broker a signal."""
        if self._child is not None:
            self._child.send(number)

    async def renew(self) -> None:
        """Replace the running broker by a fresh one, without blame. Raises EnvironmentFailure."""
        # One that is being started may have read its old files already: it is replaced too.
        await self._up_or_failed()
        self._renewing = True
        self._up.clear()
        self.send(signal.SIGTERM)
        await self._up_or_failed()

    async def _up_or_failed(self) -> None:
        up, failed = asyncio.create_task(self._up.wait()), asyncio.create_task(self.wait_failed())
        try:
            await asyncio.wait({up, failed}, return_when="FIRST_COMPLETED")
            if failed.done():
                raise failed.result()
        finally:
            up.cancel()
            failed.cancel()

    def _took_up(self, child: Child) -> None:
        self._child = child
        self._renewing = False
        self._up.set()

    async def _keep(self) -> EnvironmentFailure:
        clock = asyncio.get_running_loop().time
        failures = 0
        while self._child is not None:
            since = clock()
            reason = await self._end_of(self._child)
            self._up.clear()
            if not self._renewing:
                failures = restarts.failures_after(failures, clock() - since)
                _log.warning("broker: %s %s; starting it again", self._what, reason)
            while not self._up.is_set():
                if restarts.given_up(failures):
                    return EnvironmentFailure(f"the broker ({self._what}) keeps failing: {reason}")
                await asyncio.sleep(restarts.delay_s(failures, random.random()))  # noqa: S311 - jitter
                try:
                    self._took_up(await self._launch())
                except (EnvironmentFailure, UserError) as failure:
                    failures, reason = failures + 1, str(failure)
                    _log.warning("broker: %s did not start: %s", self._what, reason)
        raise TonaBug(f"{self._what} lost its child")

    async def _end_of(self, child: Child) -> str:
        """Wait until the child has ended, or end it when it has stopped answering."""
        ended = asyncio.create_task(child.wait())
        misses = 0
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=LIVENESS_EVERY_S)
                misses = 0 if ended.done() or await self._answers() else misses + 1
                if misses >= LIVENESS_MISSES_MAX:
                    child.send(signal.SIGKILL)
                    await ended
                    return "stopped answering and was killed"
            return f"ended ({_ending(ended.result())})"
        finally:
            ended.cancel()

    async def _answers(self) -> bool:
        try:
            await self._probe()
        except (EnvironmentFailure, UserError):
            return False
        return True


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    return f"signal {-code}"
