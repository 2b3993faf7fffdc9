"""Statuses of tasks on their way to the scheduler: numbered, repeated until acknowledged.

One status a task is kept, the newest: it replaces an older one that is still unacknowledged. While
the node is offline they wait here and leave after the next welcome.
"""

from typing import Final

from msgspec import structs

from device_agent.core.commands import Say
from device_agent.core.timers import Key
from device_agent.core.turn import Turn
from protocols.messages.task import Status
from protocols.topics import Channel

OUTBOX_MAX: Final = 512
"""Tasks whose status may wait; beyond it the oldest is dropped, for a birth tells the same."""
REPEAT_FIRST_MS: Final = 1_000
REPEAT_MAX_MS: Final = 30_000
TEXT_MAX: Final = 1_000
"""Characters of a reason."""

_TIMER: Final[Key] = ("status", "")


class Outbox:
    """The unacknowledged statuses of this process."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._waiting: dict[str, tuple[Status, str]] = {}
        self._number = 0
        self._wait_ms = REPEAT_FIRST_MS
        self._online = False

    def __len__(self) -> int:
        return len(self._waiting)

    def post(self, status: Status, cause: str) -> None:
        """Take the newest status of a task, numbered now; send it when the scheduler listens."""
        self._number += 1
        task = status.task
        reason = status.reason[:TEXT_MAX]
        status = structs.replace(status, number=self._number, reason=reason)
        self._waiting.pop(task, None)
        self._waiting[task] = (status, cause)
        if len(self._waiting) > OUTBOX_MAX:
            del self._waiting[next(iter(self._waiting))]
            self._turn.counts["status dropped"] += 1
        if self._online:
            self._turn.out.append(Say(Channel.STATUS, status, cause))
            self._rearm(REPEAT_FIRST_MS)

    def acknowledge(self, number: int) -> None:
        """Forget the status of this number; an earlier one may have been lost on the way."""
        done = [task for task, (one, _) in self._waiting.items() if one.number == number]
        for task in done:
            del self._waiting[task]
        if not self._waiting:
            self._turn.timers.cancel(_TIMER)

    def online(self) -> None:
        """Send what has waited: the scheduler has welcomed this node."""
        self._online = True
        self._send_all(REPEAT_FIRST_MS)

    def offline(self) -> None:
        """Keep what comes: nobody listens."""
        self._online = False
        self._turn.timers.cancel(_TIMER)

    def on_timer(self) -> None:
        """Repeat what is not acknowledged, at growing intervals."""
        self._send_all(min(2 * self._wait_ms, REPEAT_MAX_MS))

    def _send_all(self, wait_ms: int) -> None:
        if not self._waiting:
            return
        for status, cause in self._waiting.values():
            self._turn.out.append(Say(Channel.STATUS, status, cause))
        self._rearm(wait_ms)

    def _rearm(self, wait_ms: int) -> None:
        self._wait_ms = wait_ms
        self._turn.timers.set(_TIMER, self._turn.now_ms + self._turn.spread(wait_ms))
