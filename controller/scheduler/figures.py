"""What runs cost, for the TA: its calibrations are passed on, runs in service are summed up.

The TS knows each run with its load; the TA hears their mean without what that added, and only of
tasks that have a choice.
"""

from collections.abc import Callable, Collection
from typing import Final

from msgspec import Struct

from controller.decider import Received, ToNode
from controller.desk import Desk
from controller.scheduler.cost import CostModel
from controller.scheduler.nodes import NodeTable
from controller.scheduler.table import TaskTable
from protocols.errors import Blame
from protocols.forms import has_choice
from protocols.messages import Calibrate, Calibrated, QualityReport, RunFigures
from protocols.messages.hierarchy import NodeState
from protocols.messages.quality import TaskSample

TELL_MS: Final = 5000
"""Between two words about a task on a node."""
RUN_MAX_MS: Final = 3_600_000.0
BYTES_MAX: Final = float(1 << 40)
RATE_MAX_PER_S: Final = 1e6
"""What a peer says beyond these is absurd, and counts as these."""


class _Sums(Struct):
    variant: str
    provider: str
    anchor: str
    tenant: str
    since_ms: int
    runs: int = 0
    run_ms: float = 0.0
    input_bytes: int = 0
    came: int = 0
    memory_bytes: int | None = None


class Figures:
    """Passes calibrations on, and tells what runs cost."""

    def __init__(
        self,
        desk: Desk,
        nodes: NodeTable,
        table: TaskTable,
        cost: CostModel,
        anchors: Collection[str],
        heard: Callable[[Received], int | None],
    ) -> None:
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._cost = cost
        self._anchors = anchors
        self._heard = heard
        self._sums: dict[tuple[str, str], _Sums] = {}
        """By task and node; what is not told in a while is told by the sweep, and forgotten."""

    def calibrate(self, event: Received, asked: Calibrate) -> None:
        """Have a node measure a program, for an anchor and nobody else."""
        if event.sender not in self._anchors:
            return
        if self._nodes.state(asked.node) is NodeState.ONLINE:
            self._desk.tell(ToNode(asked.node), asked, event.cause, event.tenant)
            return
        told = Calibrated(
            asked.number,
            asked.anchor,
            asked.node,
            refused=f"{asked.node} is not online",
            blame=Blame.ENVIRONMENT,
            passing=True,
        )
        self._desk.tell_role(event.sender, told, event.cause, event.tenant)

    def calibrated(self, event: Received, found: Calibrated) -> None:
        """Pass on what a node has measured."""
        known = self._heard(event) is not None
        if known and found.node == event.sender and found.anchor in self._anchors:
            self._desk.tell_role(found.anchor, found, event.cause, event.tenant)

    def quality(self, node: str, report: QualityReport) -> None:
        """Take in what a node has measured of its tasks."""
        slot = self._nodes.slots.get(node)
        if slot is None:
            return
        # Not what else slows the node now: that its runs take longer is what the TA is to hear.
        factor = self._cost.slowdown(float(self._nodes.cpu_percent[slot]))
        for sample in report.tasks:
            self._add(node, sample, report.window_ms, factor)

    def _add(self, node: str, sample: TaskSample, window_ms: int, factor: float) -> None:
        entry = self._table.tasks.get(sample.task)
        copy = entry.on_node(node) if entry is not None else None
        if entry is None or copy is None or not has_choice(entry.grant.spec):
            return
        if copy.epoch != sample.epoch or copy.tuning.variant != sample.variant:
            return
        provider = copy.tuning.provider
        sums = self._sums.get((sample.task, node))
        if sums is None or (sums.variant, sums.provider) != (sample.variant, provider):
            began_ms = self._desk.now_ms - window_ms
            sums = _Sums(sample.variant, provider, entry.anchor, entry.tenant, began_ms)
            self._sums[sample.task, node] = sums
        sums.runs += sample.done
        sums.run_ms += sample.done * sample.run_ms / factor
        sums.input_bytes += sample.input_bytes
        sums.came += sample.done + sample.failed + sample.shed + sample.late
        sums.memory_bytes = sample.memory_bytes or sums.memory_bytes

    def sweep(self) -> None:
        """Tell what is due."""
        for (task, node), sums in list(self._sums.items()):
            span_ms = self._desk.now_ms - sums.since_ms
            if span_ms < TELL_MS:
                continue
            del self._sums[task, node]
            runs = max(1, sums.runs)
            told = RunFigures(
                task,
                node,
                sums.variant,
                sums.provider,
                sums.runs,
                min(RUN_MAX_MS, sums.run_ms / runs),
                min(BYTES_MAX, sums.input_bytes / runs),
                sums.memory_bytes,
                min(RATE_MAX_PER_S, 1000 * sums.came / span_ms),
            )
            if sums.came and task in self._table.tasks:
                self._desk.tell_role(sums.anchor, told, "runs", sums.tenant)
