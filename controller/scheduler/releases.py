"""Releases that no node has confirmed; each is repeated until then, or the node is lost."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from controller.decider import Send, ToNode
from protocols.messages import Release

RESEND_MS: Final = 1000
MAX_RELEASES: Final = 100_000
"""Beyond it the oldest is forgotten: the node's next birth tells of the task again."""


class _Releasing(Struct):
    epoch: int
    reason: str
    cause: str
    sent_ms: int


class Releases:
    """By node and task; a newer release of the same replaces an older one."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], _Releasing] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, node: str, task: str, epoch: int, reason: str, cause: str, now_ms: int) -> Send:
        """Release a task up to an epoch; returns the message."""
        self._waiting[node, task] = _Releasing(epoch, reason, cause, now_ms)
        if len(self._waiting) > MAX_RELEASES:
            del self._waiting[next(iter(self._waiting))]
        return Send(ToNode(node), Release(task, epoch, reason), cause)

    def confirm(self, node: str, task: str, epoch: int, *, over: bool) -> None:
        """Take in where a node is: this epoch is over there, or still lives."""
        waiting = self._waiting.get((node, task))
        if waiting is not None and (epoch > waiting.epoch or (over and epoch == waiting.epoch)):
            del self._waiting[node, task]

    def supersede(self, node: str, task: str) -> None:
        """Drop a release: the node is assigned the task under a newer epoch."""
        self._waiting.pop((node, task), None)

    def waits(self, node: str, task: str) -> bool:
        """Whether a release of a task has not been confirmed by a node."""
        return (node, task) in self._waiting

    def forget(self, node: str) -> None:
        """Drop what waits for a lost node: when it returns, its holdings are looked at anew."""
        for key in [key for key in self._waiting if key[0] == node]:
            del self._waiting[key]

    def due(self, now_ms: int) -> Iterator[Send]:
        """Yield the messages to repeat now."""
        for (node, task), one in self._waiting.items():
            if now_ms - one.sent_ms >= RESEND_MS:
                one.sent_ms = now_ms
                yield Send(ToNode(node), Release(task, one.epoch, one.reason), one.cause)
