"""One link between two roles in different processes: order and once-only over a wire with neither.

Theory of operation. Each side numbers what it says within an *opening* of its own. The two sides
are bound when each has heard the other name both openings; only then does anything numbered pass,
and only for this pair. The receiver takes numbers strictly in order and tells the highest one
taken; the sender keeps what is not taken, and after a growing pause sends the oldest again, then
what follows. A side that starts anew, or in which too much has waited, begins a new opening with
nothing said. A side that was bound and hears of a new opening of the other begins one too: what
the other's former life has taken of the old is not known. So all that a role ever hears in one
binding is the beginning of what the other has said in one opening, and a new binding is told to
both. Openings grow; a side that hears its own opening named higher than it is (it has lost its
memory) goes above that, by a step of its own life, so that no two lives share an opening. Pure.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from protocols.messages import Linking

WINDOW: Final = 256
"""Messages that may be under way."""
WINDOW_BYTES: Final = 2 << 20
QUEUE_MAX: Final = 20_000
"""Messages that may wait to be taken; one more, and a new opening begins."""
QUEUE_MAX_BYTES: Final = 32 << 20
RESEND_FIRST_MS: Final = 300
RESEND_CAP_MS: Final = 3000
RESEND_LEAST_MS: Final = 100
"""Between two resends, however often the other side is heard meanwhile."""
OPEN_FIRST_MS: Final = 200
OPEN_CAP_MS: Final = 2000
ACK_MS: Final = 20
"""How long an acknowledgement waits for a message to travel with."""
ACK_EVERY: Final = 64
"""Messages after which it does not wait."""
IDLE_MS: Final = 2000
"""A bound side that has said nothing for so long says which opening it is in."""

STEP_BITS: Final = 20
"""The low bits of a life's first opening are drawn by chance; they are its step too."""
OPENING_LIMIT: Final = 2**52
"""No opening reaches it; a side that claims a higher one is not believed."""


class Said(NamedTuple):
    """A message on a link, or a piece of one that goes on in the next number."""

    tenant: str
    cause: str
    body: bytes
    more: bool = False


class Link:
    """One side of a link. Call `frames` after every other call, and when `due_ms` has come."""

    def __init__(self, receiver: str, opening: int, now_ms: int) -> None:
        self.receiver = receiver
        """The role on the other side."""
        self.opening = opening
        self._step = 1 + opening % (1 << STEP_BITS)
        self.peer_opening = 0
        self.bound = False
        self.queued_bytes = 0
        self._queue: deque[Said] = deque()
        """What was said and is not known to be taken; the first `_flying` are under way."""
        self._first = 1
        """Number of the first in the queue."""
        self._flying = 0
        self._flying_bytes = 0
        self._sent_high = 0
        self._taken = 0
        self._told = 0
        """The number taken that the other side was last told."""
        self._wait_ms = OPEN_FIRST_MS
        self._resend_ms: int | None = now_ms
        """When to say again what was not answered; unbound: the opening."""
        self._resent_ms = now_ms
        self._ack_ms: int | None = None
        self._spoke_ms = now_ms
        self.heard_ms = now_ms
        """When the other side was last heard."""

    @property
    def queued(self) -> int:
        """How many messages are not known to be taken."""
        return len(self._queue)

    @property
    def due_ms(self) -> int:
        """When `frames` has something to do at the latest."""
        due = self._spoke_ms + IDLE_MS
        for one in (self._resend_ms, self._ack_ms):
            if one is not None:
                due = min(due, one)
        return due

    def say(self, pieces: Sequence[Said], now_ms: int) -> None:
        """Take the pieces of a message; where too much waits already, all of that is given up."""
        if len(self._queue) >= QUEUE_MAX or self.queued_bytes >= QUEUE_MAX_BYTES:
            self._reopen(self.opening + 1, now_ms)
        self._queue += pieces
        self.queued_bytes += sum(len(one.body) for one in pieces)

    def hear(self, frame: Linking, now_ms: int) -> tuple[bool, Said | None]:
        """Take a frame of the other side; return whether the link is newly bound, and a message."""
        if max(frame.opening, frame.peer_opening) >= OPENING_LIMIT:
            return False, None
        self.heard_ms = now_ms
        if frame.peer_opening > self.opening:
            self._reopen(frame.peer_opening + self._step, now_ms)
        if frame.opening < self.peer_opening:
            # Late, or of a side that has lost its memory: then our answer tells it.
            self._ack_ms = now_ms
            return False, None
        if frame.opening > self.peer_opening and self.bound:
            self._reopen(self.opening + 1, now_ms)
        self.peer_opening = frame.opening
        if frame.peer_opening != self.opening:
            self._ack_ms = now_ms
            return False, None
        new = not self.bound
        if new:
            self._bind(now_ms)
        self._acknowledged(frame.taken, now_ms)
        if self._flying and self._wait_ms > RESEND_FIRST_MS:
            # It is there again: what was lost meanwhile need not wait for its turn.
            self._resend_ms = max(now_ms, self._resent_ms + RESEND_LEAST_MS)
        if frame.number == 0:
            return new, None
        return new, self._numbered(frame, now_ms)

    def wake(self, now_ms: int) -> None:
        """Say what waits for an answer at once: the wire was down and is up again."""
        self._wait_ms = RESEND_FIRST_MS if self.bound else OPEN_FIRST_MS
        self._ack_ms = now_ms
        if self._flying or not self.bound:
            self._resend_ms = now_ms

    def frames(self, now_ms: int) -> list[Linking]:
        """Return what is to be sent now."""
        resend = self._resend_ms is not None and now_ms >= self._resend_ms
        out: list[Linking] = []
        if not self.bound:
            if resend:
                self._ack_ms = now_ms
                self._resend_ms = now_ms + self._wait_ms
                self._wait_ms = min(2 * self._wait_ms, OPEN_CAP_MS)
        elif resend:
            # The oldest alone: only an answer shows that more would not be lost as well.
            self._flying = self._flying_bytes = 0
            out.append(self._next())
            self._resent_ms = now_ms
            self._resend_ms = now_ms + self._wait_ms
            self._wait_ms = min(2 * self._wait_ms, RESEND_CAP_MS)
        else:
            out += self._fill(now_ms)
        acknowledge = self._ack_ms is not None and now_ms >= self._ack_ms
        if not out and (acknowledge or now_ms >= self._spoke_ms + IDLE_MS):
            out.append(self._frame(0, Said("default", "", b"")))
        if out:
            self._ack_ms = None
            self._told = self._taken
            self._spoke_ms = now_ms
        return out

    def _fill(self, now_ms: int) -> list[Linking]:
        out = []
        while (
            self._flying < min(len(self._queue), WINDOW)
            and self._flying_bytes < WINDOW_BYTES
            # After a resend nothing new flies before an answer.
            and not (self._flying and self._wait_ms > RESEND_FIRST_MS)
        ):
            out.append(self._next())
        if out and self._resend_ms is None:
            self._resend_ms = now_ms + self._wait_ms
        return out

    def _next(self) -> Linking:
        number, said = self._first + self._flying, self._queue[self._flying]
        self._flying += 1
        self._flying_bytes += len(said.body)
        self._sent_high = max(self._sent_high, number)
        return self._frame(number, said)

    def _frame(self, number: int, said: Said) -> Linking:
        return Linking(
            self.opening,
            self.peer_opening,
            number,
            self._taken,
            self.receiver,
            said.tenant,
            said.cause,
            said.body,
            said.more,
        )

    def _bind(self, now_ms: int) -> None:
        self.bound = True
        self._taken = self._told = 0
        self._wait_ms = RESEND_FIRST_MS
        self._resend_ms = None
        # The other side may be bound only by our next word.
        self._ack_ms = now_ms

    def _reopen(self, opening: int, now_ms: int) -> None:
        self.opening = opening
        self.bound = False
        self._queue.clear()
        self.queued_bytes = 0
        self._first, self._flying, self._flying_bytes, self._sent_high = 1, 0, 0, 0
        self._taken = self._told = 0
        self._wait_ms = OPEN_FIRST_MS
        self._resend_ms = now_ms

    def _acknowledged(self, taken: int, now_ms: int) -> None:
        if not self._first <= taken <= self._sent_high:
            return
        for _ in range(taken - self._first + 1):
            size = len(self._queue.popleft().body)
            self.queued_bytes -= size
            if self._flying:
                self._flying -= 1
                self._flying_bytes -= size
        self._first = taken + 1
        self._wait_ms = RESEND_FIRST_MS
        self._resend_ms = now_ms + self._wait_ms if self._flying else None

    def _numbered(self, frame: Linking, now_ms: int) -> Said | None:
        if frame.number != self._taken + 1:
            # Taken before, or one between was lost: it will be sent again.
            self._ack_ms = now_ms
            return None
        self._taken = frame.number
        soon = self._taken - self._told >= ACK_EVERY
        due_ms = now_ms if soon else now_ms + ACK_MS
        self._ack_ms = due_ms if self._ack_ms is None else min(self._ack_ms, due_ms)
        return Said(frame.tenant, frame.cause, frame.body, frame.more)
