"""What an anchor knows of costs: calibrations and runs, by program, provider and node. Durable.

The records stay when their task is gone: the same program is not measured again on a node, nor on
any other of its board. How often a task is asked, and with how much, is soft state.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import structs

from controller.anchor.placement.figures import Known, fitted, learnt, predicted
from controller.desk import Desk
from controller.records import FIGURE, FigureRecord
from protocols.messages import Calibrated, RunFigures

RECORDS_MAX: Final = 4096
"""The one that was written longest ago goes first."""
WORTH: Final = 0.1
"""A prediction that has changed by this share is made durable, and so told to people."""
TOLD_MS: Final = 5000
"""So much time a word about a task's requests covers."""
DEMAND_SHARE: Final = 0.3
"""Weight of the newest word in what is known of a task's requests."""
REASON_LENGTH: Final = 300


class Demand(NamedTuple):
    """The requests of a task."""

    per_s: float
    input_bytes: float
    told_ms: int = 0
    """When its scheduler last spoke of them: it does where there were any."""


class Figures:
    """Takes in what nodes measure."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._records: dict[str, FigureRecord] = {}
        self._known: dict[tuple[str, str], dict[str, FigureRecord]] = {}
        self._kept: dict[str, float] = {}
        """The mean run of the record that is durable, ms."""
        self._demands: dict[str, Demand] = {}
        """Of tasks that have been asked since our start."""

    def restore(self, record: FigureRecord) -> None:
        """Take in a durable record."""
        self._hold(record)
        self._kept[_key(record)] = record.line.mean_ms

    @property
    def known(self) -> Mapping[tuple[str, str], Known]:
        """What is known of each program and provider, by node."""
        return self._known

    def of(self, digest: str, provider: str, node: str) -> FigureRecord | None:
        """Return what is known of a program on a node."""
        return self._known.get((digest, provider), {}).get(node)

    def demand(self, task: str) -> Demand:
        """Return the requests of a task, as far as they are known; silence says there are few."""
        demand = self._demands.get(task)
        if demand is None:
            return Demand(0.0, 0.0)
        silent_ms = self._desk.now_ms - demand.told_ms
        if silent_ms <= TOLD_MS:
            return demand
        return demand._replace(per_s=min(demand.per_s, 1000 / silent_ms))

    def tried(self, digest: str, provider: str, board: str, found: Calibrated, cause: str) -> None:
        """Take in a calibration; what was refused in passing is asked again another time."""
        before = self.of(digest, provider, found.node)
        record = before or FigureRecord(digest, provider, found.node, board)
        if found.runs:
            record = structs.replace(
                record,
                line=record.line if record.runs else fitted(found.runs),
                start_ms=found.start_ms,
                wake_ms=found.wake_ms,
                memory_bytes=found.memory_bytes,
                held_bytes=found.held_bytes,
                tried=True,
                refused="",
            )
        elif not found.passing:
            record = structs.replace(record, tried=True, refused=found.refused[:REASON_LENGTH])
        self._keep(record, cause)

    def ran(self, digest: str, board: str, told: RunFigures, cause: str) -> float:
        """Take in runs in service; return what a run is predicted to take now, ms; 0: none is."""
        demand = self._demands.get(told.task)
        share = DEMAND_SHARE if demand is not None else 1.0
        now_ms = self._desk.now_ms
        before = demand or Demand(0.0, 0.0, now_ms)
        # Of the time in which none came nothing is told.
        per_s = told.per_s * TOLD_MS / max(TOLD_MS, now_ms - before.told_ms)
        self._demands[told.task] = Demand(
            before.per_s + share * (per_s - before.per_s),
            before.input_bytes + share * (told.input_bytes - before.input_bytes)
            if told.runs
            else before.input_bytes,
            now_ms,
        )
        if not told.runs:
            return 0.0
        old = self.of(digest, told.provider, told.node)
        record = old or FigureRecord(digest, told.provider, told.node, board)
        line = learnt(record.line, told.input_bytes, told.run_ms, told.runs)
        record = structs.replace(
            record,
            line=line,
            runs=record.runs + told.runs,
            memory_bytes=told.memory_bytes or record.memory_bytes,
            refused="",
        )
        self._hold(record)
        kept_ms, mean_ms = self._kept.get(_key(record), 0.0), line.mean_ms
        if abs(mean_ms - kept_ms) > WORTH * max(mean_ms, kept_ms):
            self._keep(record, cause)
        return predicted(line, told.input_bytes)

    def forget(self, task: str) -> None:
        """Forget the requests of a task that is over."""
        self._demands.pop(task, None)

    def _keep(self, record: FigureRecord, cause: str) -> None:
        self._hold(record)
        self._kept[_key(record)] = record.line.mean_ms
        self._desk.keep(FIGURE, _key(record), record, cause)
        while len(self._records) > RECORDS_MAX:
            self._drop(next(iter(self._records)), cause)

    def _hold(self, record: FigureRecord) -> None:
        key = _key(record)
        self._records.pop(key, None)
        self._records[key] = record
        self._known.setdefault((record.digest, record.provider), {})[record.node] = record

    def _drop(self, key: str, cause: str) -> None:
        record = self._records.pop(key)
        self._kept.pop(key, None)
        by_node = self._known[record.digest, record.provider]
        del by_node[record.node]
        if not by_node:
            del self._known[record.digest, record.provider]
        self._desk.keep(FIGURE, key, None, cause)


def _key(record: FigureRecord) -> str:
    return f"{record.digest}/{record.provider or '-'}/{record.node}"
