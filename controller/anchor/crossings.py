"""What handovers from cell to cell have come to, by pair of cells, and who goes to and fro."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from msgspec import Struct, structs

from controller.decider import Record
from controller.desk import Desk
from controller.handover_records import (
    OWNERLESS,
    CrossingRecord,
    HandoverRecord,
    HandoverState,
)
from controller.records import CROSSING
from protocols.histogram import BOUNDS, pack, quantile, unpack

CROSSINGS_MAX: Final = 4096
"""Pairs of cells that are told apart."""
NODES_MAX: Final = 100_000
"""Nodes whose last handover is remembered; the oldest is forgotten."""


class _Last(Struct, frozen=True):
    source: str
    target: str
    at_ms: int


class Crossings:
    """Counts handovers as they end, for one anchor."""

    def __init__(self, desk: Desk, anchor: str, back_ms: int) -> None:
        """Take no handover yet; a node that is back after less than `back_ms` went in vain."""
        self._desk = desk
        self._anchor = anchor
        self._back_ms = back_ms
        self.records: dict[str, CrossingRecord] = {}
        self._last: dict[str, _Last] = {}

    def restore(self, records: Iterable[Record]) -> None:
        """Take in what was counted before."""
        for one in records:
            if isinstance(one.value, CrossingRecord):
                self.records[_key(one.value)] = one.value

    def returns(self, handover: HandoverRecord) -> bool:
        """Whether a handover that is completed now is a ping-pong."""
        last = self._last.get(handover.node)
        return (
            last is not None
            and (last.target, last.source) == (handover.source, handover.target)
            and self._desk.now_ms - last.at_ms < self._back_ms
        )

    def ended(self, handover: HandoverRecord, cause: str) -> None:
        """Count a handover that has ended; what was void has not been one."""
        if handover.state is HandoverState.VOID:
            return
        record = self.records.get(_key(handover))
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
        self._keep(record, cause)

    def told(self, handover: HandoverRecord, cause: str) -> None:
        """Count what a node has told of a handover."""
        record = self.records.get(_key(handover))
        if record is None:
            return
        record = structs.replace(
            record,
            asked_again=record.asked_again + (handover.asked_again or 0),
            said_again=record.said_again + (handover.said_again or 0),
        )
        if handover.gap_ms is not None:
            gaps = unpack(record.gaps)
            gaps[bisect_left(BOUNDS, handover.gap_ms)] += 1
            longest_ms = max(record.gap_longest_ms, handover.gap_ms)
            record = structs.replace(
                record,
                gaps=pack(gaps),
                gap_longest_ms=longest_ms,
                gap_p50_ms=min(quantile(gaps, 0.5) or 0.0, longest_ms),
                gap_p99_ms=min(quantile(gaps, 0.99) or 0.0, longest_ms),
            )
        self._keep(record, cause)

    def _keep(self, record: CrossingRecord, cause: str) -> None:
        key = _key(record)
        self.records[key] = record
        self._desk.keep(CROSSING, f"{self._anchor}/{key}", record, cause)

    def _completed(self, record: CrossingRecord, handover: HandoverRecord) -> CrossingRecord:
        self._last.pop(handover.node, None)
        if len(self._last) >= NODES_MAX:
            del self._last[next(iter(self._last))]
        last = _Last(handover.source, handover.target, self._desk.now_ms)
        self._last[handover.node] = last
        took_ms = float(handover.phases.get(HandoverState.COMPLETED.value, 0))
        ownerless_ms = float(handover.phases.get(OWNERLESS, 0))
        return structs.replace(
            record,
            completed=record.completed + 1,
            ping_pongs=record.ping_pongs + handover.ping_pong,
            total_ms=record.total_ms + took_ms,
            longest_ms=max(record.longest_ms, took_ms),
            ownerless_longest_ms=max(record.ownerless_longest_ms, ownerless_ms),
        )


def _key(one: CrossingRecord | HandoverRecord) -> str:
    return f"{one.source}>{one.target}"
