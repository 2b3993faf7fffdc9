"""Mobility control of one cell's nodes: what they report goes in, what is to be done comes out.

It remembers of each node its moves, a handover that is under way, and targets that failed. Whoever
embeds it (the TS, or a TA that decides for its cells) tells it what has become of a decision.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from controller.mobility.choice import STAY, Decision, Kind, Side, Situation, decide
from controller.mobility.moves import Move, Moves
from controller.mobility.settings import LOW, NEAR, MobilitySettings
from protocols.messages.mobility import CellMeasure, Measurement

BAR_MAX_MS: Final = 60_000
"""The longest that a target which failed is not tried."""
UNKNOWN: Final = "it is no neighbour of this cell"


class Known(Struct, frozen=True):
    """What the controller knows of a cell for one node, beside what the node measures."""

    load: float = 0.0
    """Of the cell, 1 is its limit."""
    use: float | None = None
    """As in `Side`."""
    refuses: str = ""
    """As in `Side`."""


class Tally(Struct):
    """What has become of decisions, since the start."""

    handovers: int = 0
    conditional: int = 0
    """Prepared ahead; executed or not."""
    moves: int = 0
    """What nodes did, of their own will too."""
    ping_pongs: int = 0
    failures: int = 0


class _Bar(Struct, frozen=True):
    until_ms: float
    wait_ms: float


class _Node(Struct):
    """One node that was near to move, or has moved."""

    moves: Moves
    busy_ms: float | None = None
    """Until when the decided handover may take."""
    prepared: tuple[str, ...] = ()
    """Of a conditional handover."""
    prepared_ms: float = 0.0
    """Until when."""
    due_ms: float | None = None
    """Since when a prepared node should have moved."""
    bars: dict[str, _Bar] = {}
    seen_ms: float = 0.0


class MobilityControl:
    """Decides for the nodes of one cell, or of all cells of one anchor."""

    def __init__(self, settings: MobilitySettings) -> None:
        self.settings = settings
        self.tally = Tally()
        self._nodes: dict[str, _Node] = {}

    def reported(
        self, node: str, measured: Measurement, known: Mapping[str, Known], now_ms: float
    ) -> Decision:
        """Decide on what a node reports; `known` names its serving cell and every neighbour."""
        one = self._node(node, now_ms)
        if one.busy_ms is not None and now_ms < one.busy_ms:
            return Decision(Kind.STAY, reason="a handover is under way")
        one.busy_ms = None
        if one.prepared and now_ms >= one.prepared_ms:
            one.prepared = ()
        wanted = set(measured.holding) or {other.cell for other in measured.neighbours}
        here = measured.serving.cell
        targets = tuple(
            self._side(one, other, known, now_ms)
            for other in measured.neighbours
            if other.cell in wanted and other.cell != here
        )
        situation = Situation(
            _side(measured.serving, known.get(here, Known())),
            targets,
            {to.cell: one.moves.margin_db(to.cell, now_ms, self.settings) for to in targets},
            radio=measured.radio,
            near=measured.rule in {NEAR, LOW},
        )
        return self._note(one, decide(situation, self.settings), now_ms)

    def _note(self, one: _Node, decision: Decision, now_ms: float) -> Decision:
        if decision.kind is Kind.HANDOVER:
            one.due_ms = now_ms if one.due_ms is None else one.due_ms
            late = now_ms - one.due_ms >= self.settings.patience_ms
            if set(decision.targets) <= set(one.prepared) and not late:
                return Decision(
                    Kind.STAY, reason="the node moves by itself", weighed=decision.weighed
                )
            one.prepared, one.due_ms = (), None
            one.busy_ms = now_ms + self.settings.patience_ms
            self.tally.handovers += 1
        elif decision.kind is Kind.CONDITIONAL:
            if set(decision.targets) <= set(one.prepared):
                return STAY
            one.prepared, one.due_ms = decision.targets, None
            one.prepared_ms = now_ms + self.settings.prepared_ms
            self.tally.conditional += 1
        return decision

    def required(self, node: str, now_ms: float) -> None:
        """Take note of a handover that somebody else asks for: by hand, or of the node's will."""
        self._node(node, now_ms).busy_ms = now_ms + self.settings.patience_ms

    def moved(self, node: str, source: str, target: str, now_ms: float) -> Move:
        """Take note that a node is served by another cell; returns whether that was a ping-pong."""
        one = self._node(node, now_ms)
        move = one.moves.moved(source, target, now_ms, self.settings)
        one.busy_ms, one.prepared = None, ()
        one.bars.pop(target, None)
        self.tally.moves += 1
        self.tally.ping_pongs += move.back
        return move

    def failed(self, node: str, target: str, now_ms: float) -> None:
        """Take note that a handover did not happen: the target is left alone for a while."""
        one = self._node(node, now_ms)
        before = one.bars.get(target)
        wait_ms = min(2 * before.wait_ms if before else self.settings.bar_ms, BAR_MAX_MS)
        one.bars[target] = _Bar(now_ms + wait_ms, wait_ms)
        one.busy_ms = None
        one.prepared = tuple(cell for cell in one.prepared if cell != target)
        self.tally.failures += 1

    def void(self, node: str) -> None:
        """Take note that what was prepared for a node is void: its time is over."""
        one = self._nodes.get(node)
        if one is not None:
            one.prepared = ()

    def prepared(self, node: str) -> tuple[str, ...]:
        """Return the cells that are prepared for a node that moves by itself."""
        one = self._nodes.get(node)
        return one.prepared if one is not None else ()

    def ping_pongs(self, node: str, now_ms: float) -> int:
        """Return how many ping-pongs of a node count now."""
        one = self._nodes.get(node)
        return one.moves.recent(now_ms, self.settings) if one is not None else 0

    def forget(self, node: str) -> None:
        """Drop a node."""
        self._nodes.pop(node, None)

    def sweep(self, now_ms: float) -> None:
        """Drop nodes of which nothing was heard for as long as their past counts."""
        since = now_ms - max(self.settings.window_ms, BAR_MAX_MS)
        for name in [name for name, one in self._nodes.items() if one.seen_ms < since]:
            del self._nodes[name]

    def _node(self, node: str, now_ms: float) -> _Node:
        one = self._nodes.get(node)
        if one is None:
            one = self._nodes[node] = _Node(Moves())
        one.seen_ms = now_ms
        return one

    def _side(
        self, one: _Node, measure: CellMeasure, known: Mapping[str, Known], now_ms: float
    ) -> Side:
        what = known.get(measure.cell)
        if what is None:
            what = Known(refuses=UNKNOWN)
        bar = one.bars.get(measure.cell)
        if not what.refuses and bar is not None and now_ms < bar.until_ms:
            what = Known(what.load, what.use, "a handover there has just failed")
        return _side(measure, what)


def _side(measure: CellMeasure, known: Known) -> Side:
    return Side(
        measure.cell,
        measure.level_db,
        measure.trend_db_per_s or 0.0,
        known.load,
        known.use,
        known.refuses,
    )
