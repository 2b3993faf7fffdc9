"""What nodes hold and nobody has granted, by node and by task: looked up for every birth."""

from collections.abc import Container, Iterator
from typing import Final

from controller.scheduler.copies import Stamp
from protocols.messages.presence import Holding

MAX_ORPHANS: Final = 10_000
MAX_OF_NODE: Final = 1024
"""As many as a birth can tell of: no node takes the room of the others."""

Held = tuple[Stamp, Holding]
"""When a node said so, and what it holds."""
Age = tuple[int, int]
"""Generation and number of a service: it only grows while that goes from anchor to anchor."""


class Orphans:
    """Copies without an envelope, and which anchors have refused each; at most MAX_ORPHANS."""

    def __init__(self) -> None:
        self._on: dict[str, dict[str, Held]] = {}
        """By node and task."""
        self._nodes: dict[str, set[str]] = {}
        """By task."""
        self._tasks: dict[str, set[str]] = {}
        """By service."""
        self._refused_by: dict[tuple[str, str], dict[str, Age]] = {}
        """By node and task: who does not have it, and had it last at which age; zeros: never."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter([(node, task) for node, held in self._on.items() for task in held])

    def put(self, node: str, task: str, held: Held) -> None:
        """Note what a node holds; nothing when there are too many already."""
        before = self.get(node, task)
        full = self._count >= MAX_ORPHANS or len(self._on.get(node, ())) >= MAX_OF_NODE
        if before is None and full:
            return
        if before is not None and before[0][0] < held[0][0]:
            # It is attached anew: an anchor that did not want it may have got it since.
            self._refused_by.pop((node, task), None)
        on = self._on.setdefault(node, {})
        self._count += task not in on
        on[task] = held
        self._nodes.setdefault(task, set()).add(node)
        self._tasks.setdefault(_service(task), set()).add(task)

    def get(self, node: str, task: str) -> Held | None:
        """Return what a node holds of a task."""
        return self._on.get(node, {}).get(task)

    def pop(self, node: str, task: str) -> Held:
        """Take an orphan that is there."""
        on, nodes = self._on[node], self._nodes[task]
        held = on.pop(task)
        nodes.discard(node)
        self._count -= 1
        if not on:
            del self._on[node]
        if not nodes:
            del self._nodes[task]
            tasks = self._tasks[_service(task)]
            tasks.discard(task)
            if not tasks:
                del self._tasks[_service(task)]
        self._refused_by.pop((node, task), None)
        return held

    def refuse(self, node: str, task: str, anchor: str, attached: int = 0) -> set[str]:
        """Note that an anchor does not want an orphan; return all that have said so.

        It speaks of the attachment `attached`, 0 for any: of a newer one it says nothing.
        """
        said = self._refused_by.setdefault((node, task), {})
        held = self.get(node, task)
        if not attached or held is None or attached >= held[0][0]:
            said.setdefault(anchor, (0, 0))
        return set(said)

    def given(self, node: str, task: str, anchor: str, to: str, age: Age) -> bool:
        """Note that an anchor has given an orphan to another one; returns whether that is new.

        What the other one has said before it had the orphan counts no more.
        """
        said = self._refused_by.setdefault((node, task), {})
        if said.get(anchor, (0, 0)) >= age:
            return False
        said[anchor] = age
        said.pop(to, None)
        return True

    def tasks_on(self, node: str) -> tuple[str, ...]:
        """Return the tasks of a node's orphans, by name."""
        return tuple(sorted(self._on.get(node, ())))

    def tasks_of(self, service: str) -> tuple[str, ...]:
        """Return the tasks of a service that nodes hold, by name."""
        return tuple(sorted(self._tasks.get(service, ())))

    def nodes_of(self, task: str) -> list[str]:
        """Return the nodes that hold a task, the newest epoch first."""
        found = sorted(self._nodes.get(task, ()))
        return sorted(found, key=lambda node: -self._on[node][task][1].epoch)

    def nodes(self) -> list[str]:
        """Return the nodes that hold any."""
        return sorted(self._on)

    def born(self, node: str, stamp: Stamp, named: Container[str]) -> None:
        """Forget what a node has told of before a birth that does not name it: it is over there."""
        for task, held in list(self._on.get(node, {}).items()):
            if task not in named and held[0] <= stamp:
                self.pop(node, task)

    def drop(self, node: str) -> None:
        """Forget what a node holds."""
        for task in self.tasks_on(node):
            self.pop(node, task)


def _service(task: str) -> str:
    return task.rpartition(".")[0]
