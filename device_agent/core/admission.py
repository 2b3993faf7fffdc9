"""The requests that are under way or remembered: which delivery belongs to which, within bounds.

A delivery of a live request is part of it; one of an answered request is answered again, or brings
it back to life under a higher attempt; any other makes a new one. When the node has as many as it
takes, one that only waits and has a lower priority is shed for a newcomer.
"""

from collections.abc import Callable
from typing import Final

from device_agent.core.commands import DropValues
from device_agent.core.events import Received
from device_agent.core.finished import Finished
from device_agent.core.replies import Replies, correlation_of
from device_agent.core.request import Request
from device_agent.core.turn import Turn
from device_agent.core.workers import Workers
from protocols.errors import Blame
from protocols.messages.invocation import Deliver, Failure, FailureCode, Invoke, Plan

ACCEPT_AFTER_MS: Final = 100
"""A tenth of the silence after which a client asks again: a word that the answer overtakes costs
broker, client and this node a turn each."""
LIVE_MAX: Final = 1024
"""Requests under way on this node, over all tasks."""
LIVE_MAX_BYTES: Final = 16 << 20
"""Inline tensors of all requests under way."""
MADE_MAX_BYTES: Final = 192 << 20
"""Large values made here, of requests under way and of those that are remembered."""
SWEEP_MS: Final = 10_000

_REFUSALS: Final = frozenset(
    {FailureCode.BUSY, FailureCode.SHED, FailureCode.NOT_READY, FailureCode.STALE}
)
_Code = FailureCode


class Admission:
    """The requests of this node. `shed` lets go of one to make room."""

    def __init__(
        self,
        turn: Turn,
        replies: Replies,
        workers: Workers,
        shed: Callable[[Request], None],
    ) -> None:
        self._turn = turn
        self._replies = replies
        self._workers = workers
        self._shed = shed
        self.live: dict[str, Request] = {}
        self._bytes = 0
        self.made_bytes = 0
        self._by_priority = [0] * 10
        self.finished = Finished(self.drop)

    def known(
        self,
        event: Received,
        body: Invoke | Deliver,
        plan: Plan,
        reply_to: str,
        size_bytes: int,
    ) -> Request | None:
        """Return the live request of a delivery, new or brought back; None when it is answered."""
        request = self.live.get(body.request)
        if body.attempt > 1 or (request is not None and isinstance(body, Invoke)):
            self._turn.counts["asked again"] += 1
        if request is not None:
            request.repeated.clear()
            if body.attempt > request.attempt:
                self._adopt(request, event, body, plan, reply_to)
            elif body.attempt < request.attempt or isinstance(body, Invoke):
                self.accept(request)
            if body.attempt < request.attempt:
                self._turn.counts["late attempt"] += 1
                return None
            self.hold(request, size_bytes)
            return request
        request = self.finished.pop(body.request)
        if request is None:
            request = self._new(event, body, plan, reply_to)
        elif not self._again(request, event, body, plan, reply_to):
            return None
        return self._admit(request, event, body, size_bytes)

    def accept(self, request: Request) -> None:
        """Say once for a delivery that its request is under way."""
        if "" not in request.repeated:
            request.repeated.add("")
            self._replies.accept(request)

    def hold(self, request: Request, size_bytes: int) -> None:
        """Count what a live request keeps in memory; admission goes by the sum."""
        request.size_bytes += size_bytes
        self._bytes += size_bytes

    def keep(self, request: Request, made: dict[str, int]) -> bool:
        """Count what was made for a live request, until it is dropped; whether that is in bounds.

        It lasts as long as the request is under way; what is to leave the node gets its name in
        the cell's store before that.
        """
        request.made.update(made)
        self.made_bytes += sum(made.values())
        return self.made_bytes <= MADE_MAX_BYTES

    def drop(self, request: Request) -> None:
        """Let go of what was made for a request."""
        if request.made:
            self.made_bytes -= sum(request.made.values())
            self._turn.out.append(DropValues(tuple(request.made)))
            request.made.clear()

    def settle(self, request: Request) -> None:
        """Retire a request of which nothing is under way any more."""
        if request.live or self.live.get(request.id) is not request:
            return
        del self.live[request.id]
        self._bytes -= request.size_bytes
        self._by_priority[request.priority] -= 1
        self._turn.timers.cancel(("request", request.id))
        failure = request.failure
        if failure is None or not failure.retryable:
            self.drop(request)
        if request.guest is not None:
            return
        if request.ran or request.done or (failure and failure.code not in _REFUSALS):
            if not len(self.finished):
                self._turn.timers.set(("sweep", ""), self._turn.now_ms + SWEEP_MS)
            self.finished.put(request)
        else:
            self.drop(request)

    def sweep(self) -> None:
        """Forget old answers; come again while there are any."""
        self.finished.sweep(self._turn.now_ms)
        if len(self.finished):
            self._turn.timers.set(("sweep", ""), self._turn.now_ms + SWEEP_MS)

    def _new(self, event: Received, body: Invoke | Deliver, plan: Plan, reply_to: str) -> Request:
        user = "" if body.job else self._replies.user(reply_to)
        return Request(
            body.request,
            body.attempt,
            plan,
            reply_to,
            correlation_of(event, body),
            self._turn.now_ms + body.budget_ms,
            event.cause,
            event.tenant,
            user,
            body.priority,
            body.answer_encoding,
            body.job,
            body.agent,
            event.cell,
        )

    def _again(
        self, request: Request, event: Received, body: Invoke | Deliver, plan: Plan, reply_to: str
    ) -> bool:
        """Whether an answered request comes back to life; its answer is said again if not."""
        failure = request.failure
        twice = isinstance(body, Invoke) and event.cell != request.cell
        if body.attempt < request.attempt or (twice and body.attempt == request.attempt):
            # One attempt comes once by one cell: by another one it was carried after the node.
            self._turn.counts["late attempt"] += 1
            self.finished.put(request)
            return False
        higher = body.attempt > request.attempt
        if higher:
            self._adopt(request, event, body, plan, reply_to)
        if failure is not None and not (higher and failure.retryable):
            self._replies.result(request, failure)
            self.finished.put(request)
            return False
        request.failure = None
        return True

    def _adopt(
        self,
        request: Request,
        event: Received,
        body: Invoke | Deliver,
        plan: Plan,
        reply_to: str,
    ) -> None:
        """Go on under a higher attempt: partial inputs come again with it, runs go on."""
        live = request.id in self.live
        if live:
            self._by_priority[request.priority] -= 1
            self._by_priority[body.priority] += 1
        request.attempt = body.attempt
        request.cell = event.cell
        request.plan = plan
        request.reply_to = reply_to
        request.priority = body.priority
        request.correlation = correlation_of(event, body)
        request.deadline_ms = self._turn.now_ms + body.budget_ms
        request.waiting.clear()
        for answer in request.done.values():
            # The plan may lead elsewhere now, and the cell's store keeps large values a while only.
            answer.pushed.clear()
        if live:
            self._workers.rerank(request)
            due_ms = min(self._turn.now_ms + ACCEPT_AFTER_MS, request.deadline_ms)
            self._turn.timers.set(("request", request.id), due_ms)

    def _admit(
        self, request: Request, event: Received, body: Invoke | Deliver, size_bytes: int
    ) -> Request | None:
        """Make a request live within the bounds of this node."""
        failure = self._refusal(request, body, size_bytes)
        if failure is not None:
            if request.done:
                self.finished.put(request)
            else:
                self.drop(request)
            self._replies.refuse(event, body, request.reply_to, failure)
            return None
        due_ms = min(self._turn.now_ms + ACCEPT_AFTER_MS, request.deadline_ms)
        self.enter(request, size_bytes, due_ms)
        return request

    def enter(self, request: Request, size_bytes: int, due_ms: float) -> None:
        """Count a request as live and look after it again then."""
        request.size_bytes = 0
        request.repeated.clear()
        self.hold(request, size_bytes)
        self.live[request.id] = request
        self._by_priority[request.priority] += 1
        self._turn.timers.set(("request", request.id), due_ms)

    def _refusal(self, request: Request, body: Invoke | Deliver, size_bytes: int) -> Failure | None:
        turn = self._turn
        if turn.draining and not request.done:
            text = f"node {turn.node} takes no new request: {turn.draining}"
            return _failure(turn, _Code.NOT_READY, text, retryable=True)
        if body.budget_ms <= 0:
            return _failure(turn, _Code.DEADLINE, "no time was left on arrival", retryable=False)
        if not self.has_room(size_bytes):
            least = self._least(body.priority)
            if least is not None:
                self._shed(least)
            if not self.has_room(size_bytes):
                return _failure(turn, _Code.BUSY, self.full(), retryable=True)
        return None

    def has_room(self, size_bytes: int) -> bool:
        """Whether another request of this size fits."""
        return (
            len(self.live) < LIVE_MAX
            and self._bytes + size_bytes <= LIVE_MAX_BYTES
            and self.made_bytes < MADE_MAX_BYTES
        )

    def full(self) -> str:
        """Say what there is no more room beside."""
        size = self._bytes + self.made_bytes
        return (
            f"node {self._turn.node} has {len(self.live)} requests with {size} bytes of values "
            "under way, its limit"
        )

    def _least(self, priority: int) -> Request | None:
        """Return the request that waits and is worth least, if that is less than a priority."""
        if not any(self._by_priority[:priority]):
            return None
        waiting = [one for one in self.live.values() if one.priority < priority and one.untouched]
        return min(waiting, key=lambda one: (one.priority, -one.deadline_ms), default=None)


def _failure(turn: Turn, code: FailureCode, text: str, *, retryable: bool) -> Failure:
    blame = Blame.USER if code is _Code.DEADLINE else Blame.ENVIRONMENT
    return Failure(code, blame, text, retryable, "", turn.node)
