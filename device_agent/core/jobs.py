"""Ends of jobs on their way to the scheduler: numbered, repeated until acknowledged.

An end is kept across connections: while the node is offline it waits here, and after the next
welcome it is said again. Each has a pace of its own, so that a slow scheduler is not flooded; what
is repeated at once is bounded.
"""

from typing import Final

from msgspec import Struct

from device_agent.core.commands import Say
from device_agent.core.timers import Key
from device_agent.core.turn import Turn
from device_agent.core.values import inline_bytes
from protocols.messages.invocation import Result
from protocols.messages.job import JobEnded
from protocols.topics import Channel

ENDS_MAX: Final = 1024
ENDS_MAX_BYTES: Final = 4 << 20
"""Ends that may wait, and their inline tensors; beyond it the oldest is dropped, and its job is run
again.
"""
REPEAT_FIRST_MS: Final = 1_000
REPEAT_MAX_MS: Final = 30_000
BURST: Final = 64
"""Ends repeated at once; the others follow after `BURST_PAUSE_MS`."""
BURST_PAUSE_MS: Final = 50

_TIMER: Final[Key] = ("job", "")


class _End(Struct, eq=False):
    """An end that nobody has acknowledged."""

    body: JobEnded
    cause: str
    tenant: str
    size_bytes: int
    due_ms: float
    wait_ms: float = REPEAT_FIRST_MS


class JobEnds:
    """The unacknowledged ends of this process."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._waiting: dict[int, _End] = {}
        self._numbers: dict[tuple[str, int, int], int] = {}
        """By job, attempt and part."""
        self._bytes = 0
        self._number = 0
        self._online = False
        self._armed_ms: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def ended(self, service: str, result: Result, cause: str, tenant: str) -> None:
        """Take what would be the answer to a client; the request is the job."""
        key = (result.request, result.attempt, result.part)
        older = self._numbers.get(key)
        if older is not None:
            self._forget(older)
        self._number = number = self._number + 1
        body = JobEnded(
            result.request,
            result.attempt,
            service,
            result.outputs,
            result.failure,
            result.part,
            result.parts,
            result.timings,
            number,
        )
        size_bytes = inline_bytes(result.outputs)
        now_ms = self._turn.now_ms
        end = _End(body, cause, tenant, size_bytes, now_ms + self._turn.spread(REPEAT_FIRST_MS))
        self._waiting[number] = end
        self._numbers[key] = number
        self._bytes += size_bytes
        while len(self._waiting) > ENDS_MAX or self._bytes > ENDS_MAX_BYTES:
            self._forget(next(iter(self._waiting)))
            self._turn.counts["job end dropped"] += 1
        if self._online:
            self._turn.out.append(Say(Channel.RESULT, body, cause, tenant))
            self._rearm(end.due_ms)

    def acknowledge(self, numbers: tuple[int, ...]) -> None:
        """Forget the ends of these numbers; an unknown one is fine."""
        for number in numbers:
            self._forget(number)

    def online(self) -> None:
        """Send what has waited: the scheduler has welcomed this node."""
        self._online = True
        for end in self._waiting.values():
            end.due_ms, end.wait_ms = self._turn.now_ms, REPEAT_FIRST_MS / 2
        self.on_timer()

    def offline(self) -> None:
        """Keep what comes: nobody listens."""
        self._online = False
        self._armed_ms = None
        self._turn.timers.cancel(_TIMER)

    def on_timer(self) -> None:
        """Repeat what is not acknowledged, each at growing intervals."""
        self._armed_ms = None
        if not self._online or not self._waiting:
            return
        now_ms = self._turn.now_ms
        left = BURST
        for end in self._waiting.values():
            if end.due_ms <= now_ms and left:
                left -= 1
                end.wait_ms = min(2 * end.wait_ms, REPEAT_MAX_MS)
                end.due_ms = now_ms + self._turn.spread(end.wait_ms)
                self._turn.out.append(Say(Channel.RESULT, end.body, end.cause, end.tenant))
        first_ms = min(end.due_ms for end in self._waiting.values())
        self._rearm(max(first_ms, now_ms + BURST_PAUSE_MS))

    def _forget(self, number: int) -> None:
        end = self._waiting.pop(number, None)
        if end is not None:
            self._bytes -= end.size_bytes
            key = (end.body.job, end.body.attempt, end.body.part)
            if self._numbers.get(key) == number:
                del self._numbers[key]

    def _rearm(self, at_ms: float) -> None:
        """Be woken then, or earlier: a timer that finds nothing due does no harm."""
        if self._armed_ms is None or at_ms < self._armed_ms:
            self._armed_ms = at_ms
            self._turn.timers.set(_TIMER, at_ms)
