"""From what a node reports to what is required of its anchor: for the TS, or a TA that decides."""

from collections.abc import Mapping
from typing import Final

from controller.mobility.choice import Decision, Kind
from controller.mobility.control import Known, MobilityControl
from controller.mobility.settings import MobilitySettings
from protocols.messages.mobility import (
    MAX_CANDIDATES,
    HandoverAnswer,
    HandoverFailed,
    HandoverRequired,
    Measurement,
)

ASKED_MAX: Final = 100_000
"""Handovers that were required and are not over; beyond it the oldest is forgotten."""
TEXT_MAX: Final = 2000


class Asking:
    """Requires handovers under names of its own, and learns what becomes of them."""

    def __init__(self, settings: MobilitySettings, name: str, epoch: int) -> None:
        """`name` and `epoch` are those of the role that decides."""
        self.control = MobilityControl(settings)
        # No slash: the name is one segment of a URL.
        self._prefix = f"{name}-{epoch}"
        self._number = 0
        self._asked: dict[str, HandoverRequired] = {}
        """By node: the newest."""

    def measured(
        self,
        node: str,
        incarnation: int,
        body: Measurement,
        known: Mapping[str, Known],
        now_ms: float,
    ) -> HandoverRequired | None:
        """Decide on what a node reports; None: nothing is to be done."""
        decision = self.control.reported(node, body, known, now_ms)
        if decision.kind is Kind.STAY:
            return None
        return self._required(node, incarnation, decision)

    def _required(self, node: str, incarnation: int, decision: Decision) -> HandoverRequired:
        self._number += 1
        rule = decision.condition
        asked = HandoverRequired(
            f"{self._prefix}.{self._number}",
            node,
            incarnation,
            decision.targets[:MAX_CANDIDATES],
            decision.reason[:TEXT_MAX],
            conditional=decision.kind is Kind.CONDITIONAL,
            offset_db=rule.offset_db if rule is not None else 0.0,
            time_to_trigger_ms=rule.time_to_trigger_ms if rule is not None else 0,
        )
        if len(self._asked) >= ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        self._asked[node] = asked
        return asked

    def answered(self, body: HandoverAnswer | HandoverFailed, now_ms: float) -> None:
        """Learn that a handover is prepared, or did not happen."""
        asked = self._asked.get(body.node)
        if asked is None or asked.handover != body.handover:
            return
        if isinstance(body, HandoverAnswer) and body.admitted:
            return
        del self._asked[body.node]
        cells = (body.cell,) if isinstance(body, HandoverAnswer) else asked.cells
        for cell in cells:
            self.control.failed(body.node, cell, now_ms)

    def moved(self, node: str, source: str, target: str, now_ms: float) -> bool:
        """Learn that a node is served by another cell; returns whether that was a ping-pong."""
        self._asked.pop(node, None)
        return self.control.moved(node, source, target, now_ms).back

    def forget(self, node: str) -> None:
        """Drop a node."""
        self._asked.pop(node, None)
        self.control.forget(node)
