"""More instances than one node can take: a deviceless task is served on spares of its envelope too.

When the workers of a task are busy and calls wait all the same, or they wait for memory of their
node, for longer than a moment, it gets an instance on a further node; when fewer would do for its
keep-alive, the newest one goes. What went too early stays longer next time. A task that remembers
something stays on one node, and so do those of a group, and those that run each other's models.
"""

from typing import Final

from msgspec import Struct

from controller.desk import Desk
from controller.scheduler import envelope
from controller.scheduler.copies import CopyState, TaskEntry
from controller.scheduler.nodes import NodeTable
from controller.scheduler.table import TaskTable
from protocols.messages import QualityReport

FULL: Final = 0.8
"""Busier than this share of the time, workers are too few where calls wait."""
SLACK: Final = 0.5
"""The share of the time that those would be busy who are left when one node goes."""
FULL_MS: Final = 1000
"""So long they have to be too few."""
KEEP_MS: Final = 30_000
KEEP_MAX_MS: Final = 600_000
"""So long fewer must do, unless the task says how long; doubled when that was too early."""
FRESH_MS: Final = 3000
"""A node that has said nothing of a task for so long runs nothing of it."""
HOT_PERCENT: Final = 90.0
"""A node whose cores are so busy can take no more, however idle the task's workers seem."""
EPOCHS_LEFT: Final = 8
"""Of the lease, for moves: below it no further instance is made."""


class Load(Struct, frozen=True):
    """What one node says of a task."""

    busy: float
    """Workers that ran, on the mean."""
    waits: bool
    """Whether calls wait or were refused."""
    hot: bool
    """Whether the node can run no more: its cores are busy, or it lacks memory for the task."""
    heard_ms: int


class Demand(Struct):
    """What is known of the calls of one task."""

    loads: dict[str, Load] = {}
    full_ms: int | None = None
    """Since when there are too few workers."""
    slack_ms: int | None = None
    """Since when fewer nodes would do."""
    keep_ms: int = 0
    narrowed_ms: int = -(10**12)


def decide(demand: Demand, nodes: int, workers: int, keep_ms: int, now_ms: int) -> int:
    """Return 1 for one more node, -1 for one less, 0 for as many as there are.

    `workers` are those of one node; `keep_ms` is how long the task keeps what it needs no more.
    """
    loads = [one for one in demand.loads.values() if now_ms - one.heard_ms < FRESH_MS]
    busy = sum(one.busy for one in loads)
    worked_off = busy >= FULL * workers * nodes or all(one.hot for one in loads)
    full = bool(loads) and worked_off and any(one.waits for one in loads)
    slack = nodes > 1 and not full and busy <= SLACK * workers * (nodes - 1)
    demand.full_ms = (demand.full_ms or now_ms) if full else None
    demand.slack_ms = (demand.slack_ms or now_ms) if slack else None
    if demand.full_ms is not None and now_ms - demand.full_ms >= FULL_MS:
        if now_ms - demand.narrowed_ms < 2 * max(keep_ms, demand.keep_ms):
            demand.keep_ms = min(KEEP_MAX_MS, 2 * max(keep_ms, demand.keep_ms))
        demand.full_ms = None
        return 1
    if demand.slack_ms is not None and now_ms - demand.slack_ms >= max(keep_ms, demand.keep_ms):
        demand.slack_ms, demand.narrowed_ms = None, now_ms
        return -1
    return 0


class Further:
    """Which tasks of a cell are to have more nodes, or fewer."""

    def __init__(self, desk: Desk, nodes: NodeTable, table: TaskTable) -> None:
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._demands: dict[str, Demand] = {}

    def take(self, node: str, report: QualityReport) -> None:
        """Take in what a node has measured."""
        for sample in report.tasks:
            entry = self._table.tasks.get(sample.task)
            if entry is None or not spreads(entry):
                continue
            copy = entry.on_node(node)
            if copy is None or copy.epoch != sample.epoch or not report.window_ms:
                continue
            busy = (sample.done + sample.failed) * sample.run_ms / report.window_ms
            waits = bool(sample.queue or sample.shed)
            busy_percent = float(self._nodes.cpu_percent[self._nodes.slots[node]])
            hot = sample.starved or busy_percent >= HOT_PERCENT
            demand = self._demands.setdefault(sample.task, Demand())
            demand.loads[node] = Load(busy, waits, hot, self._desk.now_ms)

    def sweep(self) -> list[tuple[TaskEntry, int]]:
        """Return the tasks that are to have a node more, or one less."""
        found = []
        for task, demand in list(self._demands.items()):
            entry = self._table.tasks.get(task)
            if entry is None or not spreads(entry):
                del self._demands[task]
                continue
            nodes = serving(entry)
            demand.loads = {one: load for one, load in demand.loads.items() if one in nodes}
            step = decide(
                demand,
                max(1, len(nodes)),
                envelope.replicas_of(entry.grant, entry.tuning),
                _keep_ms(entry),
                self._desk.now_ms,
            )
            if step:
                found.append((entry, step))
        return found

    def place(self, entry: TaskEntry) -> str:
        """Return the node for one more instance; empty when there is none."""
        if entry.coming is not None or entry.epochs_left() <= EPOCHS_LEFT:
            return ""
        if any(copy.state is CopyState.ASSIGNED for copy in entry.copies()):
            return ""
        usable = (one for one in self._table.usable(entry) if entry.on_node(one) is None)
        return next(usable, "")


def spreads(entry: TaskEntry) -> bool:
    """Whether a task may be served on several nodes."""
    spec = entry.grant.spec
    alone = spec.manifest.remembers or spec.manifest.infers or spec.inferred or spec.group
    return spec.deviceless is not None and not alone


def serving(entry: TaskEntry) -> list[str]:
    """Return the nodes on which a task is served now."""
    return [one.node for one in entry.served()]


def _keep_ms(entry: TaskEntry) -> int:
    deviceless = entry.grant.spec.deviceless
    return (deviceless.keep_alive_ms if deviceless is not None else 0) or KEEP_MS
