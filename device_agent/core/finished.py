"""Requests that were answered, remembered so that asking again does not run them again."""

from collections.abc import Callable
from typing import Final

from device_agent.core.request import Request
from device_agent.core.values import inline_bytes

FINISHED_MAX: Final = 1024
FINISHED_MAX_BYTES: Final = 4 << 20
"""Inline tensors."""
FINISHED_MADE_MAX_BYTES: Final = 32 << 20
"""Large values that were made here: what has failed may be tried again, from where it stood."""
MARGIN_MS: Final = 5_000
"""A request is remembered this long after its deadline."""


class Finished:
    """The newest answered requests, bounded in number, bytes and time."""

    def __init__(self, drop: Callable[[Request], None]) -> None:
        """`drop` lets go of what a forgotten request has made."""
        self._requests: dict[str, Request] = {}
        self._drop = drop
        self.size_bytes = 0
        self.made_bytes = 0

    def __len__(self) -> int:
        return len(self._requests)

    def pop(self, request: str) -> Request | None:
        """Take a request out: it comes back to life, or is put in again."""
        found = self._requests.pop(request, None)
        if found is not None:
            self.size_bytes -= found.size_bytes
            self.made_bytes -= sum(found.made.values())
        return found

    def _forget(self, request: str) -> None:
        found = self.pop(request)
        if found is not None:
            self._drop(found)

    def put(self, request: Request) -> None:
        """Remember a request; the oldest make room."""
        request.size_bytes = sum(inline_bytes(one.outputs) for one in request.done.values())
        self._requests[request.id] = request
        self.size_bytes += request.size_bytes
        self.made_bytes += sum(request.made.values())
        while (
            len(self._requests) > FINISHED_MAX
            or self.size_bytes > FINISHED_MAX_BYTES
            or self.made_bytes > FINISHED_MADE_MAX_BYTES
        ):
            self._forget(next(iter(self._requests)))

    def sweep(self, now_ms: float) -> None:
        """Forget those whose time is over."""
        over = [one.id for one in self._requests.values() if one.deadline_ms + MARGIN_MS <= now_ms]
        for request in over:
            self._forget(request)
