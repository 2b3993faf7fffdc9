"""What must hold at every step and at the end of a run; a broken rule names its seed."""

from collections.abc import Iterable, Mapping

from controller.twin.client import SimClient
from controller.twin.node import SimNode
from protocols.messages.presence import Holding
from protocols.messages.task import InstanceState


class BrokenRule(AssertionError):
    """A checker has found what must never be; the text tells seed, time and rule."""


class Checkers:
    """Watches a run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.highest_epoch: dict[tuple[str, str], int] = {}
        self.runs = 0

    def ran(self, node: str, task: str, epoch: int, call: str) -> None:
        """Check an execution: a node never goes back to an older epoch of a task."""
        del call
        self.runs += 1
        key = (node, task)
        if epoch < self.highest_epoch.get(key, 0):
            raise self._broken(f"{node} runs {task} under epoch {epoch} after a newer one")
        self.highest_epoch[key] = epoch

    def capacity(self, nodes: Iterable[SimNode]) -> None:
        """Check that no node holds more memory than it may give to tasks."""
        for node in nodes:
            if node.alive:
                held = node.held_bytes()
                if held > node.shape.memory_bytes // 2:
                    raise self._broken(f"{node.name} holds {held} bytes of tasks")

    def answered(self, clients: Iterable[SimClient]) -> tuple[int, int]:
        """Return (answered, unanswered); two different answers to one request break the run.

        The wire may double a message and a crash may make a step run twice; whoever asked takes
        the first answer, so a second one must at least say the same.
        """
        answered = unanswered = 0
        for client in clients:
            for request, asked in client.requests.items():
                if asked.answered_ms is None:
                    unanswered += 1
                else:
                    answered += 1
                if len(asked.answers) > 1:
                    raise self._broken(f"{request} got {len(asked.answers)} different answers")
        return answered, unanswered

    def converged(
        self, nodes: Mapping[str, SimNode], tasks: Iterable[str], placed: Mapping[str, str]
    ) -> None:
        """Check that each task runs on the one node that its scheduler says, and nowhere else.

        Beyond these tasks no node holds anything, not even what has failed.
        """
        holders: dict[str, list[str]] = {}
        for node in nodes.values():
            if node.alive:
                for holding in ready(node.core.assignments.holdings()):
                    holders.setdefault(holding.task, []).append(node.name)
        for node in nodes.values():
            for task in node.core.assignments.held if node.alive else ():
                if placed.get(task) != node.name:
                    raise self._broken(f"{node.name} still holds {task}")
        for task in tasks:
            if holders.get(task, []) != [placed.get(task)]:
                raise self._broken(f"{task} is held by {holders.get(task, [])}, not {placed}")

    def emptied(self, drained: Iterable[str], placed: Mapping[str, str]) -> None:
        """Check that nothing runs on a node that an operator has drained."""
        for task, node in placed.items():
            if node in drained:
                raise self._broken(f"{task} runs on {node}, which was drained")

    def _broken(self, text: str) -> BrokenRule:
        return BrokenRule(f"seed {self.seed}: {text}")


def ready(holdings: Iterable[Holding]) -> list[Holding]:
    """Return the holdings that serve."""
    return [one for one in holdings if one.state == InstanceState.READY]
