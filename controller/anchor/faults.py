"""Artifacts that can never run: what is their author's fault is not tried again on other nodes.

A loss, a full node or a failed download may pass and is tried again. What a node blames on the
artifact itself fails on every other node too: after `ENOUGH` nodes, or all there are, the task is
given up until its generation changes.
"""

from collections.abc import Iterable
from typing import Final

from controller.anchor.book import Book
from controller.records import TaskRecord
from protocols.errors import Blame
from protocols.messages.hierarchy import MAX_FAILURES, Attempt

ENOUGH: Final = 2
REASON_LENGTH: Final = 300
TRIED: Final = "run on "
"""How a scheduler begins the attempt of a node."""


def hopeless(task: TaskRecord) -> bool:
    """Whether the newest generation of a task was given up."""
    return task.given_up == task.generation


def failures(task: TaskRecord, attempts: Iterable[Attempt]) -> dict[str, str]:
    """Return which nodes could not run the newest generation of a task and why, the latest last."""
    found = dict(task.failures)
    for one in attempts:
        node = one.action.removeprefix(TRIED)
        if node != one.action:
            found.pop(node, None)
            found[node] = one.outcome[:REASON_LENGTH]
    return dict(list(found.items())[-MAX_FAILURES:])


class Faults:
    """By task and node: what was the artifact's fault in the newest generation."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._found: dict[str, tuple[int, dict[str, Attempt]]] = {}

    def note(self, task: TaskRecord, attempts: Iterable[Attempt]) -> None:
        """Take in what a scheduler has tried for the newest generation."""
        for one in attempts:
            node = one.action.removeprefix(TRIED)
            if one.blame is Blame.USER and node != one.action:
                generation, found = self._found.get(task.spec.task, (task.generation, {}))
                if generation != task.generation:
                    found = {}
                found[node] = one
                self._found[task.spec.task] = task.generation, found

    def of(self, task: TaskRecord) -> dict[str, Attempt]:
        """Return what was the artifact's fault, by node; nothing of one that has served."""
        generation, found = self._found.get(task.spec.task, (0, {}))
        return found if generation == task.generation != task.served else {}

    def enough(self, task: TaskRecord) -> bool:
        """Whether no further node has to be tried."""
        return len(self.of(task)) >= ENOUGH

    def reason(self, task: TaskRecord) -> str:
        """Say why a task is given up."""
        found = self.of(task)
        last = next(reversed(found.values()), None)
        cause = last.outcome if last is not None else task.reason
        nodes = " and ".join(found)
        return f"{cause} (it failed so on {nodes}, and is not tried again until it is changed)"

    def forget(self, task: str) -> None:
        """Forget a task that is over."""
        self._found.pop(task, None)
