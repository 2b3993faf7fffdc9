"""What handovers from cell to cell have come to, by pair of cells, and who goes to and fro."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct, structs

from controller.decider import Record
from controller.desk import Desk
from controller.handover_records import CrossingRecord, HandoverRecord, HandoverState
from controller.records import CROSSING

PING_PONG_MS: Final = 10_000
"""A node that is back after less was handed over in vain."""
CROSSINGS_MAX: Final = 4096
"""Pairs of cells that are told apart."""
NODES_MAX: Final = 100_000
"""Nodes whose last handover is remembered; the oldest is forgotten."""


class _Last(Struct, frozen=True):
    source: str
    target: str
    at_ms: int


class Crossings:
    """Counts handovers as they end."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.records: dict[str, CrossingRecord] = {}
        self._last: dict[str, _Last] = {}

    def restore(self, records: Iterable[Record]) -> None:
        """Take in what was counted before."""
        for one in records:
            if isinstance(one.value, CrossingRecord):
                self.records[one.key] = one.value

    def ended(self, handover: HandoverRecord, cause: str) -> None:
        """Count a handover that has ended; what was void has not been one."""
        if handover.state is HandoverState.VOID:
            return
        key = f"{handover.source}>{handover.target}"
        record = self.records.get(key)
        if record is None:
            if len(self.records) >= CROSSINGS_MAX:
                return
            record = CrossingRecord(handover.source, handover.target)
        match handover.state:
            case HandoverState.COMPLETED:
                record = self._completed(record, handover)
            case HandoverState.REFUSED:
                record = structs.replace(record, refused=record.refused + 1)
            case _:
                record = structs.replace(record, failed=record.failed + 1)
        self.records[key] = record
        self._desk.keep(CROSSING, key, record, cause)

    def _completed(self, record: CrossingRecord, handover: HandoverRecord) -> CrossingRecord:
        now_ms = self._desk.now_ms
        last = self._last.pop(handover.node, None)
        back = (
            last is not None
            and (last.target, last.source) == (handover.source, handover.target)
            and now_ms - last.at_ms < PING_PONG_MS
        )
        if len(self._last) >= NODES_MAX:
            del self._last[next(iter(self._last))]
        self._last[handover.node] = _Last(handover.source, handover.target, now_ms)
        took_ms = float(handover.phases.get(HandoverState.COMPLETED.value, 0))
        ownerless_ms = float(handover.phases.get("ownerless", 0))
        return structs.replace(
            record,
            completed=record.completed + 1,
            ping_pongs=record.ping_pongs + back,
            total_ms=record.total_ms + took_ms,
            longest_ms=max(record.longest_ms, took_ms),
            ownerless_longest_ms=max(record.ownerless_longest_ms, ownerless_ms),
        )
