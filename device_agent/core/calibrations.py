"""Calibrations: what a program costs on this node, measured beside its tasks.

One runs at a time, at the lowest priority, in an instance that serves nobody. It has no room of its
own: it takes what tasks leave, and ends as soon as one of them needs that.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import structs

from device_agent.core.capacity import elastic
from device_agent.core.commands import EndCalibration, RunCalibration, Say
from device_agent.core.instances import Held
from device_agent.core.turn import Turn
from protocols.errors import Blame
from protocols.messages.calibration import Calibrate, Calibrated
from protocols.messages.presence import Inventory
from protocols.topics import Channel

WAITING_MAX: Final = 16
"""Calibrations that wait; one more is refused for now."""


class _Asked(NamedTuple):
    body: Calibrate
    tenant: str
    cause: str


class Calibrations:
    """Which program is measured next, and what is said of it."""

    def __init__(self, turn: Turn, inventory: Inventory) -> None:
        self._turn = turn
        self._inventory = inventory
        self._waiting: deque[_Asked] = deque()
        self._running: _Asked | None = None

    def take(self, body: Calibrate, tenant: str, cause: str, held: Iterable[Held]) -> None:
        """Have a program measured, now or after those before it."""
        if any(one.body.number == body.number for one in self._all()):
            return
        asked = _Asked(body, tenant, cause)
        executor = next(
            (one for one in self._inventory.executors if one.kind == body.manifest.kind), None
        )
        if executor is None:
            self._refuse(asked, f"it has no {body.manifest.kind} executor")
        elif body.provider and body.provider not in executor.providers:
            self._refuse(asked, f"its ONNX Runtime has no {body.provider}")
        elif len(self._waiting) >= WAITING_MAX:
            self._refuse(asked, f"{WAITING_MAX} calibrations wait already", passing=True)
        else:
            self._waiting.append(asked)
            self._next(held)

    def ended(self, found: Calibrated, held: Iterable[Held]) -> None:
        """Tell what a calibration has found, and begin the next one."""
        if self._running is not None and self._running.body.number == found.number:
            asked, self._running = self._running, None
            self._say(asked, found)
        self._next(held)

    def pressed(self, held: Iterable[Held]) -> None:
        """Take note that tasks have come or changed: a calibration gives way."""
        if self._running is not None and self._short(self._running.body, held):
            self._end("a task needs its room")

    def give_way(self) -> None:
        """End what runs: a task has to start."""
        if self._running is not None:
            self._end("a task needs its room")

    def drained(self) -> None:
        """Give up everything, for the node is being emptied or ends."""
        if self._running is not None:
            self._end(self._turn.draining)
        while self._waiting:
            self._refuse(self._waiting.popleft(), self._turn.draining, passing=True)

    @property
    def running_bytes(self) -> int:
        """What the calibration that runs may take."""
        running = self._running
        return running.body.manifest.limits.memory_bytes if running is not None else 0

    def _all(self) -> list[_Asked]:
        return [*self._waiting, *([self._running] if self._running is not None else ())]

    def _end(self, reason: str) -> None:
        self._turn.out.append(EndCalibration(reason))

    def _next(self, held: Iterable[Held]) -> None:
        held = list(held)
        while self._running is None and self._waiting:
            asked = self._waiting.popleft()
            reason = self._turn.draining or self._short(asked.body, held)
            if reason:
                self._refuse(asked, reason, passing=True)
            else:
                self._running = asked
                urls = self._turn.store_urls
                self._turn.out.append(RunCalibration(asked.body, urls, asked.tenant, asked.cause))

    def _short(self, body: Calibrate, held: Iterable[Held]) -> str:
        """Say that there is no memory for a calibration beside the tasks; empty: there is."""
        have = self._inventory.task_memory_bytes
        taken = sum(_holds(one) for one in held if not one.released)
        asked = body.manifest.limits.memory_bytes
        if not have or taken + asked <= have:
            return ""
        left = max(0, have - taken) >> 20
        return f"it has {left} MiB of task memory left, a calibration asks for {asked >> 20} MiB"

    def _refuse(self, asked: _Asked, reason: str, *, passing: bool = False) -> None:
        found = Calibrated(
            asked.body.number,
            asked.body.anchor,
            self._turn.node,
            refused=reason,
            blame=Blame.ENVIRONMENT,
            passing=passing,
        )
        self._say(asked, found)

    def _say(self, asked: _Asked, found: Calibrated) -> None:
        told = structs.replace(found, node=self._turn.node, refused=found.refused[:1000])
        self._turn.out.append(Say(Channel.STATUS, told, asked.cause, asked.tenant))


def _holds(held: Held) -> int:
    """Return what a task may take as it is now; one that rests gives way to nobody."""
    shown = held.shown
    rests = shown is not None and shown.resting and elastic(shown)
    return 0 if rests else held.assign.manifest.limits.memory_bytes
