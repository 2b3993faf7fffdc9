"""The nodes that are there, counted as they change: what an anchor tells NAMO costs no walk."""

from collections import Counter
from itertools import chain
from statistics import fmean, median

from controller.anchor.ledger import Ledger
from controller.anchor.placement import NodeFacts
from protocols.messages.hierarchy import NodeState


class Census:
    """Figures of the nodes that are online."""

    def __init__(self) -> None:
        self.cpu_count = 0
        self._room: dict[str, int] = {}
        """Task memory by node."""
        self._cpu_percent: dict[str, float] = {}
        self._trips_ms: dict[str, float] = {}
        self._executors: Counter[str] = Counter()
        self._accelerators: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._room)

    def put(self, old: NodeFacts | None, new: NodeFacts | None) -> None:
        """Replace what is known of a node; None: nothing."""
        for facts, sign in ((old, -1), (new, 1)):
            if facts is not None and facts.state is NodeState.ONLINE:
                self._count(facts, sign)

    def _count(self, facts: NodeFacts, sign: int) -> None:
        has = facts.inventory
        self.cpu_count += sign * has.cpu_count
        for counter, found in (
            (self._executors, has.executors),
            (self._accelerators, has.accelerators),
        ):
            for kind in {str(one.kind) for one in found}:
                counter[kind] += sign
        if sign < 0:
            for by_node in (self._room, self._cpu_percent, self._trips_ms):
                by_node.pop(facts.node, None)
            return
        self._room[facts.node] = has.task_memory_bytes
        self._cpu_percent[facts.node] = facts.cpu_percent
        if facts.round_trip_ms is not None:
            self._trips_ms[facts.node] = facts.round_trip_ms

    @property
    def cpu_percent(self) -> float:
        """Mean of all nodes."""
        return fmean(self._cpu_percent.values()) if self._cpu_percent else 0.0

    @property
    def round_trip_ms(self) -> float | None:
        """Median of the nodes that have measured it."""
        return median(self._trips_ms.values()) if self._trips_ms else None

    @property
    def executors(self) -> dict[str, int]:
        """Nodes by the kinds of executor that they have."""
        return dict(sorted((+self._executors).items()))

    @property
    def accelerators(self) -> dict[str, int]:
        """Nodes by the kinds of accelerator that they have."""
        return dict(sorted((+self._accelerators).items()))

    def free_bytes(self, ledger: Ledger) -> tuple[int, int]:
        """Return the task memory that is not set aside, of all nodes and of the one with most."""
        free = self._room.copy()
        for node in chain(ledger.memory_bytes, ledger.shared()):
            if node in self._room:
                free[node] = max(0, self._room[node] - ledger.taken_bytes(node))
        return sum(free.values()), max(free.values(), default=0)
