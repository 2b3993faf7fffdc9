"""Calls on their way through an instance: a slot, a wait, one result."""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from pathlib import Path
from typing import Any, Final

from device_agent.executors.contract import ConstantFile, Contract
from device_agent.executors.door import PLAIN, Done, Failed, Setup
from device_agent.executors.link import Link
from protocols.manifest import Manifest

SETTLED_MAX: Final = 64
"""Deadlines of calls that are over which may be kept beside those of as many as are not."""


class Slots:
    """How many calls may run at once; the others wait: priority, then deadline, then first come."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._owed = 0
        """Slots to give up as soon as they come back."""
        self._waiting: list[tuple[int, float, int, Run]] = []
        self._arrivals = count()

    def take(self) -> bool:
        """Take a slot if one is free."""
        if self._free == 0:
            return False
        self._free -= 1
        return True

    async def wait(self, run: "Run") -> bool:
        """Wait for a slot, or until the run is over; whether the run has the slot."""
        heappush(self._waiting, (-run.priority, run.until_s, next(self._arrivals), run))
        try:
            await run.wait()
        except asyncio.CancelledError:
            if run.granted:
                self.release()
            raise
        finally:
            if not run.granted:
                # Its time is over: a slot that is long taken must not gather those that gave up.
                self._waiting = [one for one in self._waiting if one[-1] is not run]
                heapify(self._waiting)
        return run.granted

    def release(self) -> None:
        """Give a slot back, or on to the next that still waits; a new one comes this way too."""
        if self._owed:
            self._owed -= 1
            return
        while self._waiting:
            run = heappop(self._waiting)[-1]
            if run.go_on():
                run.granted = True
                return
        self._free += 1

    def shrink(self) -> None:
        """Have one slot less, now or when the next one comes back."""
        if self._free:
            self._free -= 1
        else:
            self._owed += 1


class Instance:
    """A task of this executor: what it runs and where it runs now."""

    __slots__ = (
        "artifact",
        "calls",
        "constants",
        "contract",
        "failures",
        "files",
        "growing",
        "key",
        "links",
        "manifest",
        "memory_bytes",
        "pid",
        "remarks",
        "resting",
        "runs",
        "setup",
        "slots",
        "starting",
        "task",
        "waiting",
    )

    def __init__(
        self,
        task: str,
        artifact: Path,
        manifest: Manifest,
        constants: dict[str, ConstantFile],
        slots: Slots,
        setup: Setup = PLAIN,
    ) -> None:
        self.task = task
        self.artifact = artifact
        self.manifest = manifest
        self.constants = constants
        self.files: dict[str, Path] = {}
        """What else it is made of, as `Executor.start` got it."""
        self.contract = Contract(manifest, constants)
        self.slots = slots
        self.setup = setup
        self.links: list[Link] = []
        """To the processes that serve it; none: it is not loaded, its next call does that."""
        self.growing = False
        """Whether more processes are on their way."""
        self.resting = False
        """Whether it is to hold nothing until its next call."""
        self.remarks: dict[str, str] = {}
        """What of its setup it does not get, by what it is about."""
        self.starting: asyncio.Task[None] | None = None
        self.runs: dict[str, Run] = {}
        self.waiting = 0
        self.calls = 0
        self.failures = 0
        self.memory_bytes = 0
        self.pid = 0
        self.key = 0
        """Its name in the executor process: a new one for every load, so that none is mistaken."""

    @property
    def link(self) -> Link | None:
        """The process with the fewest calls; None when there is none."""
        return min(self.links, key=_pending, default=None)

    def count(self, result: Done | Failed) -> None:
        """Note that a call has its result."""
        self.calls += 1
        if isinstance(result, Failed):
            self.failures += 1


def _pending(link: Link) -> int:
    return link.pending


class Run:
    """One call on its way: whoever settles it first decides what its caller gets."""

    __slots__ = (
        "_on_result",
        "_waiter",
        "due",
        "granted",
        "instance",
        "number",
        "priority",
        "result",
        "sent",
        "together",
        "until_s",
    )

    def __init__(
        self,
        instance: Instance,
        priority: int,
        on_result: Callable[[Done | Failed], None] | None = None,
    ) -> None:
        self.instance = instance
        self.priority = priority
        self._on_result = on_result
        self.number = 0
        self.sent: Link | None = None
        """Where the executor has the call."""
        self.granted = False
        self.together: set[Run] = {self}
        """Those that the executor answers in the same run, as long as it has not."""
        self.result: Done | Failed | None = None
        self.until_s = inf
        """When its request is of no use any more: all steps of one have the same."""
        self.due: list[Any] = []
        """Its place among the deadlines; empty: it has none."""
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Wait until somebody lets the run go on, or settles it."""
        if self.result is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def go_on(self) -> bool:
        """Let the run go on to its next stage; False when it does not wait."""
        if self._waiter is None or self._waiter.done():
            return False
        self._waiter.set_result(None)
        return True

    def settle(self, result: Done | Failed) -> bool:
        """Decide the result; False when it has been decided."""
        if self.result is not None:
            return False
        self.result = result
        self.forget_due()
        if self._on_result is None:
            self.go_on()
        else:
            self._on_result(result)
        return True

    def forget_due(self) -> None:
        """Have no deadline any more."""
        if self.due:
            self.due[-1] = None
            self.due = []


class Deadlines:
    """When runs have to be over: one timer for all, which moves only for an earlier one.

    A timer of the loop for each call would cost as much as the rest of its way out.
    """

    def __init__(self, late: Callable[[Run, int], None]) -> None:
        """`late` hears of a run that is not over, with the budget that it had in ms."""
        self._late = late
        self._numbers = count()
        self._due: list[list[Any]] = []
        """A heap: when, a number that orders equal ones, the budget, the run or None."""
        self._kept = SETTLED_MAX
        self._timer: asyncio.TimerHandle | None = None

    def set(self, run: Run, limit_s: float, budget_ms: int) -> None:
        """Hear of a run when it is not over by then."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + limit_s
        run.due = [due_s, next(self._numbers), budget_ms, run]
        heappush(self._due, run.due)
        if len(self._due) > self._kept:
            self._due = [one for one in self._due if one[-1] is not None]
            heapify(self._due)
            self._kept = 2 * len(self._due) + SETTLED_MAX
        if self._timer is None or due_s < self._timer.when():
            self._arm(loop, due_s)

    def _arm(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(due_s, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now_s = loop.time()
        while self._due and (self._due[0][-1] is None or self._due[0][0] <= now_s):
            _, _, budget_ms, run = heappop(self._due)
            if run is not None:
                self._late(run, budget_ms)
        if self._due and self._timer is None:
            self._arm(loop, self._due[0][0])

    def close(self) -> None:
        """Hear of no run any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
