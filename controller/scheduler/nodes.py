"""The node table: what the scheduler knows of every node of its cell, by column.

Numbers that are scanned for all nodes at once stand in arrays by slot, so that 100,000 nodes are
one table and a sweep is a few vector operations. What is looked at one node at a time stands in
plain lists beside them.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Birth, Inventory
from protocols.messages.sense import LinkReport, LoadReport

FIRST_SLOTS: Final = 64
LEAST_GROWS: Final = 1.002
"""By what factor the least round trip grows with each report, until it is met again."""
SUSPECT_HEARTBEATS: Final = 1.8
"""Silence of this many heartbeats makes a node suspect."""
CONFIRM_HEARTBEATS: Final = 1.0
"""A suspect that stays silent for this many more is lost..."""
CONFIRM_MIN_MS: Final = 400
"""...but never sooner than this after the suspicion."""
CONFIRM_MAX_MS: Final = 5000

_COLUMNS: Final = (
    "_codes",
    "_heard_ms",
    "_suspect_ms",
    "_heartbeat_ms",
    "cpu_percent",
    "summarised_cpu_percent",
    "summarised_round_trip_ms",
    "queue",
    "copies",
    "round_trip_ms",
    "round_trip_least_ms",
    "loss_percent",
    "throttled",
)
_CODES: Final = {state: code for code, state in enumerate(NodeState)}
_NEVER: Final = np.int64(2**62)
AWAY: Final = (NodeState.LOST, NodeState.MOVED)
"""Nobody can be told anything here."""


class NodeTable:
    """Nodes by slot; a slot is a node's until some node is forgotten: keep names, not slots."""

    def __init__(self) -> None:
        self.slots: dict[str, int] = {}
        self.names: list[str] = []
        self.states: list[NodeState] = []
        self.incarnations: list[int] = []
        self.births: list[Birth] = []
        self.loads: list[LoadReport | None] = []
        self.links: list[LinkReport | None] = []
        self.reasons: list[str] = []
        self._codes: NDArray[np.int8] = np.zeros(FIRST_SLOTS, np.int8)
        self._heard_ms: NDArray[np.int64] = np.zeros(FIRST_SLOTS, np.int64)
        self._suspect_ms: NDArray[np.int64] = np.full(FIRST_SLOTS, _NEVER, np.int64)
        self._heartbeat_ms: NDArray[np.int64] = np.zeros(FIRST_SLOTS, np.int64)
        self.cpu_percent: NDArray[np.float32] = np.zeros(FIRST_SLOTS, np.float32)
        self.summarised_cpu_percent: NDArray[np.float32] = np.zeros(FIRST_SLOTS, np.float32)
        self.summarised_round_trip_ms: NDArray[np.float32] = np.zeros(FIRST_SLOTS, np.float32)
        self.queue: NDArray[np.int64] = np.zeros(FIRST_SLOTS, np.int64)
        """Invocations that wait or run."""
        self.copies: NDArray[np.int32] = np.zeros(FIRST_SLOTS, np.int32)
        """Tasks that have a copy there: the models in use."""
        self.round_trip_ms: NDArray[np.float32] = np.zeros(FIRST_SLOTS, np.float32)
        """Not a number: not measured."""
        self.round_trip_least_ms: NDArray[np.float32] = np.zeros(FIRST_SLOTS, np.float32)
        """Of the last minutes: what an idle link takes."""
        self.loss_percent: NDArray[np.float32] = np.zeros(FIRST_SLOTS, np.float32)
        self.throttled: NDArray[np.bool_] = np.zeros(FIRST_SLOTS, np.bool_)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, node: str) -> bool:
        return node in self.slots

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def born(
        self, node: str, incarnation: int, birth: Birth, heartbeat_ms: int, now_ms: int
    ) -> int:
        """Take in a birth and return the node's slot; its state is the caller's to advance."""
        slot = self.slots.get(node)
        if slot is None:
            slot = self._new_slot(node, birth)
        self.births[slot] = birth
        self.incarnations[slot] = incarnation
        self._heartbeat_ms[slot] = heartbeat_ms
        self._heard_ms[slot] = now_ms
        return slot

    def _new_slot(self, node: str, birth: Birth) -> int:
        slot = len(self.names)
        self.slots[node] = slot
        self.names.append(node)
        self.states.append(NodeState.LOST)
        self.incarnations.append(0)
        self.births.append(birth)
        self.loads.append(None)
        self.links.append(None)
        self.reasons.append("")
        if slot == len(self._codes):
            self._grow()
        self._suspect_ms[slot] = _NEVER
        self.round_trip_ms[slot] = self.round_trip_least_ms[slot] = np.nan
        return slot

    def forget(self, node: str) -> None:
        """Drop a known node; the last one of the table takes its slot."""
        slot, last = self.slots.pop(node), len(self.names) - 1
        for column in _COLUMNS:
            values = getattr(self, column)
            values[slot] = values[last]
            values[last] = 0
        rows: tuple[list[Any], ...] = (
            self.names,
            self.states,
            self.incarnations,
            self.births,
            self.loads,
            self.links,
            self.reasons,
        )
        for row in rows:
            row[slot] = row[last]
            row.pop()
        if slot != last:
            self.slots[self.names[slot]] = slot

    def _grow(self) -> None:
        for column in _COLUMNS:
            old = getattr(self, column)
            setattr(self, column, np.concatenate([old, np.zeros_like(old)]))

    def loaded(self, slot: int, load: LoadReport) -> None:
        """Take in a load report."""
        self.loads[slot] = load
        self.cpu_percent[slot] = load.cpu_percent
        self.queue[slot] = load.queue
        self.throttled[slot] = bool(load.throttled)

    def linked(self, slot: int, link: LinkReport) -> None:
        """Take in a link report."""
        self.links[slot] = link
        self.round_trip_ms[slot] = np.nan if link.round_trip_ms is None else link.round_trip_ms
        self.loss_percent[slot] = link.loss_percent or 0.0
        if link.round_trip_ms is not None:
            least = float(self.round_trip_least_ms[slot]) * LEAST_GROWS
            # Not a number is never the lesser: the first one counts.
            idle = min(link.round_trip_ms, least)
            self.round_trip_least_ms[slot] = idle

    def set_state(self, slot: int, state: NodeState, now_ms: int, reason: str) -> None:
        """Put a node into a state that the presence table allowed."""
        self.states[slot] = state
        self.reasons[slot] = reason
        self._codes[slot] = _CODES[state]
        self._suspect_ms[slot] = now_ms if state is NodeState.SUSPECT else _NEVER

    def heard(self, slot: int, now_ms: int) -> None:
        """Note that a node has spoken."""
        self._heard_ms[slot] = now_ms

    def state(self, node: str) -> NodeState:
        """Return a node's state; an unknown node is lost."""
        slot = self.slots.get(node)
        return NodeState.LOST if slot is None else self.states[slot]

    def inventory(self, node: str) -> Inventory:
        """Return what a known node is."""
        return self.births[self.slots[node]].inventory

    def providers(self, node: str) -> frozenset[str]:
        """Return the ONNX execution providers of a node."""
        slot = self.slots.get(node)
        executors = () if slot is None else self.births[slot].inventory.executors
        return frozenset(one for executor in executors for one in executor.providers)

    def round_trips_ms(self, node: str) -> tuple[float, float]:
        """Return a node's round trip now and when its link is idle; 0 where not measured."""
        slot = self.slots.get(node)
        if slot is None or np.isnan(self.round_trip_ms[slot]):
            return 0.0, 0.0
        return float(self.round_trip_ms[slot]), float(self.round_trip_least_ms[slot])

    def silent_ms(self, slot: int, now_ms: int) -> int:
        """Return how long a node has not spoken."""
        return now_ms - int(self._heard_ms[slot])

    def silent(self, now_ms: int) -> list[int]:
        """Return the slots that have just been silent for too long to be trusted."""
        count = len(self.names)
        codes = self._codes[:count]
        alive = (codes == _CODES[NodeState.ONLINE]) | (codes == _CODES[NodeState.DRAINING])
        limit = self._heartbeat_ms[:count] * SUSPECT_HEARTBEATS
        overdue = now_ms - self._heard_ms[:count] > limit
        return [int(slot) for slot in np.flatnonzero(alive & overdue)]

    def unconfirmed(self, now_ms: int) -> list[int]:
        """Return the suspects whose time to answer is over."""
        count = len(self.names)
        codes = self._codes[:count]
        wait = np.clip(
            self._heartbeat_ms[:count] * CONFIRM_HEARTBEATS, CONFIRM_MIN_MS, CONFIRM_MAX_MS
        )
        suspect = codes == _CODES[NodeState.SUSPECT]
        over = now_ms - self._suspect_ms[:count] > wait
        return [int(slot) for slot in np.flatnonzero(suspect & over)]
