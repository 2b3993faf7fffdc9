"""One link between two roles in different processes: order and once-only over a wire with neither.

Theory of operation. Each side numbers what it says within an *opening* of its own. The two sides
are bound when each has heard the other name both openings; only then does anything numbered pass,
and only for this pair. The receiver takes numbers strictly in order and tells the highest one
taken; the sender keeps what is not taken, and after a pause that begins with what an answer usually
takes, and grows, sends the oldest again. Where the answer to that names more than this one, nothing
was lost and nothing else is said twice: the other side was slow. Else what follows is sent again. A
side that says again and again what it has taken, and no more, lacks the next one: that is sent at
once, for it may have been lost with the answers before it.
What was never sent has no number yet: a newer word of the same *slot* takes the place of the one
that waits, and an urgent one goes before all that wait. A side that starts anew, or in which too
much has waited, begins a new opening with nothing said. A side that was bound and hears of a new
opening of the other begins one too: what the other's former life has taken of the old is not known.
So all that a role ever hears in one binding is the beginning of what the other has said in one
opening, and a new binding is told to both. Openings grow; a side that hears its own opening named
higher than it is (it has lost its memory) goes above that, by a step of its own life, so that no
two lives share an opening. Pure.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from protocols.messages import Linking
from protocols.messages.host import FURTHER_MAX, Linked

WINDOW: Final = 256
"""Messages that may be under way."""
WINDOW_BYTES: Final = 2 << 20
QUEUE_MAX: Final = 20_000
"""Messages that may wait to be taken; one more, and a new opening begins."""
QUEUE_MAX_BYTES: Final = 32 << 20
PACK_BYTES: Final = 32 << 10
"""A frame takes no further message beyond this."""
RESEND_FIRST_MS: Final = 300
"""At the least; where answers take longer, four times their spread above their mean (RFC 6298)."""
RESEND_CAP_MS: Final = 3000
RESEND_LEAST_MS: Final = 100
"""Between two resends, however often the other side is heard meanwhile."""
LACKED_AFTER: Final = 3
"""Equal answers in a row after which the next message was lost, not reordered (RFC 5681)."""
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


COUNTERS: Final = {"links_resent": 0, "links_doubled": 0, "links_replaced": 0}
"""Messages sent again, frames that had come before, words that gave way to newer ones."""


class Said(Struct):
    """A message on a link, or a piece of one that goes on in the next number."""

    tenant: str
    cause: str
    body: bytes
    more: bool = False
    slot: str = ""
    """What it is the newest word about; empty: each word counts."""


class Link:
    """One side of a link. Call `frames` after every other call, and when `due_ms` has come."""

    def __init__(
        self, receiver: str, opening: int, now_ms: int, counters: dict[str, int] | None = None
    ) -> None:
        self.receiver = receiver
        """The role on the other side."""
        self.opening = opening
        self.counters = COUNTERS.copy() if counters is None else counters
        self._step = 1 + opening % (1 << STEP_BITS)
        self.peer_opening = 0
        self.bound = False
        self.queued_bytes = 0
        self._queue: deque[Said] = deque()
        """What was said and is not known to be taken; the first `_flying` are under way."""
        self._slots: dict[str, Said] = {}
        """Of what was never sent."""
        self._first = 1
        """Number of the first in the queue."""
        self._flying = 0
        self._flying_bytes = 0
        self._sent_high = 0
        self._taken = 0
        self._told = 0
        """The number taken that the other side was last told."""
        self._wait_ms = OPEN_FIRST_MS
        self._tries = 0
        """How often the oldest was sent again."""
        self._repeated = 0
        """How often the other side has said only what it had said before."""
        self._answer_ms = self._spread_ms = 0.0
        """What answers take, and by how much that varies; 0: not known."""
        self._timed: tuple[int, int] | None = None
        """A number whose answer is timed, and when it was sent."""
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

    @property
    def ready(self) -> bool:
        """Whether something may be sent for the first time now."""
        # After a resend nothing new flies before an answer.
        return (
            self.bound
            and self._flying < min(len(self._queue), WINDOW)
            and self._flying_bytes < WINDOW_BYTES
            and not (self._flying and self._tries)
        )

    def say(self, pieces: Sequence[Said], now_ms: int, *, urgent: bool = False) -> None:
        """Take the pieces of a message; where too much waits already, all of that is given up."""
        if len(self._queue) >= QUEUE_MAX or self.queued_bytes >= QUEUE_MAX_BYTES:
            self._reopen(self.opening + 1, now_ms)
        slot = pieces[0].slot if len(pieces) == 1 else ""
        older = self._slots.get(slot) if slot else None
        if older is not None:
            self.queued_bytes += len(pieces[0].body) - len(older.body)
            newer = pieces[0]
            older.tenant, older.cause, older.body = newer.tenant, newer.cause, newer.body
            self.counters["links_replaced"] += 1
            return
        if slot:
            self._slots[slot] = pieces[0]
        self.queued_bytes += sum(len(one.body) for one in pieces)
        at = self._unsent() if urgent else len(self._queue)
        if at == len(self._queue):
            self._queue += pieces
            return
        for one in reversed(pieces):
            self._queue.insert(at, one)

    def _unsent(self) -> int:
        """Return where in the queue a message may begin that was never sent."""
        at = self._sent_high - self._first + 1
        while 0 < at < len(self._queue) and self._queue[at - 1].more:
            at += 1
        return at

    def hear(self, frame: Linking, now_ms: int) -> tuple[bool, list[Said]]:
        """Take a frame of the other side; return whether the link is newly bound, and messages."""
        if max(frame.opening, frame.peer_opening) >= OPENING_LIMIT:
            return False, []
        self.heard_ms = now_ms
        if frame.peer_opening > self.opening:
            self._reopen(frame.peer_opening + self._step, now_ms)
        if frame.opening < self.peer_opening:
            # Late, or of a side that has lost its memory: then our answer tells it.
            self._ack_ms = now_ms
            return False, []
        if frame.opening > self.peer_opening and self.bound:
            self._reopen(self.opening + 1, now_ms)
        self.peer_opening = frame.opening
        if frame.peer_opening != self.opening:
            self._ack_ms = now_ms
            return False, []
        new = not self.bound
        if new:
            self._bind(now_ms)
        again = frame.number == 0 and self._flying > 0 and frame.taken == self._first - 1
        self._repeated += again
        self._acknowledged(frame.taken, now_ms)
        if self._flying and (self._tries or self._repeated >= LACKED_AFTER):
            # It is there again: what was lost meanwhile need not wait for its turn.
            self._resend_ms = max(now_ms, self._resent_ms + RESEND_LEAST_MS)
        if frame.number == 0:
            return new, []
        return new, self._numbered(frame, now_ms)

    def wake(self, now_ms: int) -> None:
        """Say what waits for an answer at once: the wire was down and is up again."""
        # What an answer has waited for the wire tells nothing of the other side.
        self._wait_ms, self._tries, self._timed = OPEN_FIRST_MS, 0, None
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
            out.append(self._next(now_ms, 0))
            self.counters["links_resent"] += 1
            self._resent_ms, self._repeated = now_ms, 0
            self._resend_ms = now_ms + self._patience_ms()
            self._tries += 1
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

    def _patience_ms(self) -> int:
        """Return how long an answer is waited for."""
        usual_ms = int(self._answer_ms + 4 * self._spread_ms)
        first_ms = min(max(RESEND_FIRST_MS, usual_ms), RESEND_CAP_MS)
        return min(first_ms << min(self._tries, 8), RESEND_CAP_MS)

    def _fill(self, now_ms: int) -> list[Linking]:
        out = []
        while self.ready:
            out.append(self._next(now_ms, FURTHER_MAX))
        if out and self._resend_ms is None:
            self._resend_ms = now_ms + self._patience_ms()
        return out

    def _next(self, now_ms: int, further: int) -> Linking:
        """Return a frame of the next message, and of some of those that follow it."""
        number = self._first + self._flying
        if self._timed is None and number > self._sent_high:
            self._timed = number, now_ms
        said = self._fly()
        size = len(said.body)
        rest: list[Linked] = []
        while len(rest) < further and self.ready:
            size += len(self._queue[self._flying].body)
            if size > PACK_BYTES:
                break
            one = self._fly()
            rest.append(Linked(one.tenant, one.cause, one.body, one.more))
        return self._frame(number, said, tuple(rest))

    def _fly(self) -> Said:
        """Count the next message as under way, and return it."""
        said = self._queue[self._flying]
        self._flying += 1
        self._flying_bytes += len(said.body)
        high = self._first + self._flying - 1
        if high > self._sent_high:
            self._sent_high = high
            self._slots.pop(said.slot, None)
        return said

    def _frame(self, number: int, said: Said, further: tuple[Linked, ...] = ()) -> Linking:
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
            further,
        )

    def _bind(self, now_ms: int) -> None:
        self.bound = True
        self._taken = self._told = 0
        self._tries = 0
        self._resend_ms = None
        # The other side may be bound only by our next word.
        self._ack_ms = now_ms

    def _reopen(self, opening: int, now_ms: int) -> None:
        self.opening = opening
        self.bound = False
        self._queue.clear()
        self._slots.clear()
        self.queued_bytes = 0
        self._first, self._flying, self._flying_bytes, self._sent_high = 1, 0, 0, 0
        self._taken = self._told = 0
        self._wait_ms, self._tries, self._timed = OPEN_FIRST_MS, 0, None
        self._repeated = 0
        self._resend_ms = now_ms

    def _acknowledged(self, taken: int, now_ms: int) -> None:
        if not self._first <= taken <= self._sent_high:
            return
        slow = self._tries > 0 and taken > self._first
        for _ in range(taken - self._first + 1):
            size = len(self._queue.popleft().body)
            self.queued_bytes -= size
            if self._flying:
                self._flying -= 1
                self._flying_bytes -= size
        self._first = taken + 1
        if slow:
            # What was sent before the resend has come: the rest of it is on its way.
            self._flying = self._sent_high - taken
            self._flying_bytes = sum(len(self._queue[at].body) for at in range(self._flying))
        if self._tries and not slow:
            # Of what is sent twice nobody knows which was answered.
            self._timed = None
        elif self._timed is not None and taken >= self._timed[0]:
            self._measure(now_ms - self._timed[1])
            self._timed = None
        self._tries = self._repeated = 0
        self._resend_ms = now_ms + self._patience_ms() if self._flying else None

    def _measure(self, answer_ms: int) -> None:
        if not self._answer_ms:
            self._answer_ms, self._spread_ms = answer_ms, answer_ms / 2
            return
        self._spread_ms += (abs(answer_ms - self._answer_ms) - self._spread_ms) / 4
        self._answer_ms += (answer_ms - self._answer_ms) / 8

    def _numbered(self, frame: Linking, now_ms: int) -> list[Said]:
        known = self._taken + 1 - frame.number
        if not 0 <= known <= len(frame.further):
            # Taken before, or one between was lost: it will be sent again.
            self.counters["links_doubled"] += known > 0
            self._ack_ms = now_ms
            return []
        self._taken = frame.number + len(frame.further)
        soon = self._taken - self._told >= ACK_EVERY
        due_ms = now_ms if soon else now_ms + ACK_MS
        self._ack_ms = due_ms if self._ack_ms is None else min(self._ack_ms, due_ms)
        said = [Said(frame.tenant, frame.cause, frame.body, frame.more)]
        said += [Said(one.tenant, one.cause, one.body, one.more) for one in frame.further]
        return said[known:]
