"""How often a node samples: as often as its tightest task needs, else at the cell's pace."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from controller.decider import ToNode
from controller.desk import Desk
from controller.scheduler.table import TaskTable
from protocols.messages import SetSensing
from protocols.messages.hierarchy import NodeState

SAMPLES_PER_BUDGET: Final = 5
"""Danger is to be seen well within the time that a request may take."""
FASTEST_SAMPLE_MS: Final = 50
REPEAT_MS: Final = 1000
REPEATS: Final = 3
"""No report names its pace: a change is told so often, and again with every birth."""


class _Told(Struct):
    sample_ms: int
    sent_ms: int
    times: int


def sample_ms(usual_ms: int, latencies_ms: Iterable[float | None]) -> int:
    """Return the sampling interval of a node whose tasks have these latency budgets."""
    budgets = [one for one in latencies_ms if one is not None]
    if not budgets:
        return usual_ms
    return min(usual_ms, max(FASTEST_SAMPLE_MS, int(min(budgets) / SAMPLES_PER_BUDGET)))


class Pace:
    """What each node was last told; told anew when its tasks change."""

    def __init__(self, usual_ms: int, heartbeat_ms: int, desk: Desk, table: TaskTable) -> None:
        self._usual_ms = usual_ms
        self._heartbeat_ms = heartbeat_ms
        self._desk = desk
        self._table = table
        self._told: dict[str, _Told] = {}
        self._untold: set[str] = set()

    def born(self, node: str) -> int:
        """Return the pace that a node's welcome tells, ms."""
        pace = self._wanted(node)
        self._told[node] = _Told(pace, self._desk.now_ms, REPEATS)
        self._untold.discard(node)
        return pace

    def forget(self, node: str) -> None:
        """Forget what a node was told."""
        self._told.pop(node, None)
        self._untold.discard(node)

    def changed(self, node: str) -> None:
        """Tell a node its pace when its tasks ask for another one."""
        pace = self._wanted(node)
        told = self._told.get(node)
        if told is None or told.sample_ms == pace:
            return
        if self._table.nodes.state(node) is NodeState.LOST:
            return
        self._told[node] = _Told(pace, self._desk.now_ms, 0)
        self._untold.add(node)
        self._say(node)

    def sweep(self) -> None:
        """Say again what may not have been heard."""
        for node in sorted(self._untold):
            told = self._told[node]
            if told.times >= REPEATS:
                self._untold.discard(node)
            elif self._desk.now_ms - told.sent_ms >= REPEAT_MS:
                self._say(node)

    def _say(self, node: str) -> None:
        told = self._told[node]
        told.sent_ms, told.times = self._desk.now_ms, told.times + 1
        body = SetSensing(heartbeat_ms=self._heartbeat_ms, sample_ms=told.sample_ms)
        self._desk.tell(ToNode(node), body, "pace")

    def _wanted(self, node: str) -> int:
        tasks = (self._table.tasks[task] for task in self._table.on(node))
        return sample_ms(self._usual_ms, (one.grant.spec.qos.latency_ms for one in tasks))
