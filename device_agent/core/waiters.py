"""Who waits for which values to be moved: one transfer each, as urgent as the most urgent of them.

Whoever leaves takes nothing back of that: a transfer that was hurried once stays so.
"""

from typing import TYPE_CHECKING, Generic, TypeVar

from msgspec import Struct

from device_agent.core.commands import FetchBlob, HurryBlob, LeaveBlob, PushBlob
from device_agent.core.queue import Urgency

if TYPE_CHECKING:
    from device_agent.core.request import Request
    from device_agent.core.turn import Turn

Who = TypeVar("Who")


class _Waited(Struct, Generic[Who]):
    """A value that moves."""

    urgency: Urgency
    """Its transfer was told."""
    by: list[Who]


class Waiters(Generic[Who]):
    """Those who wait for values to come, or with `pushing` to have gone."""

    def __init__(self, turn: "Turn", *, pushing: bool = False) -> None:
        self._turn = turn
        self._pushing = pushing
        self._values: dict[str, _Waited[Who]] = {}

    def add(self, digest: str, size_bytes: int, who: Who, request: "Request") -> None:
        """Have somebody wait for a value that a request needs: it moves, or moves sooner."""
        waited = self._values.get(digest)
        if waited is None:
            self._values[digest] = _Waited(request.urgency, [who])
            kind = PushBlob if self._pushing else FetchBlob
            urls = self._turn.urls(request.reply_to)
            move = kind(digest, size_bytes, urls, request.cause, request.urgency)
            self._turn.out.append(move)
            return
        waited.by.append(who)
        if request.urgency < waited.urgency:
            waited.urgency = request.urgency
            self._turn.out.append(HurryBlob(digest, request.urgency, self._pushing))

    def leave(self, digest: str, who: Who) -> None:
        """Have somebody wait no more, if he does; what nobody else waits for is not moved."""
        waited = self._values.get(digest)
        if waited is not None and who in waited.by:
            waited.by.remove(who)
            if not waited.by:
                del self._values[digest]
                self._turn.out.append(LeaveBlob(digest, self._pushing))

    def end(self, digest: str) -> list[Who]:
        """Return who has waited for a value that waits no more: it was moved, or cannot be."""
        waited = self._values.pop(digest, None)
        return waited.by if waited is not None else []
