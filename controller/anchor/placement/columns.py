"""The nodes of a snapshot as arrays, one entry for each node, in the order of cell and name."""

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Final

import numpy as np
import numpy.typing as npt

from controller.anchor.placement.facts import NodeFacts, Snapshot
from controller.anchor.placement.sums import spread
from protocols.manifest import ExecutorKind
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Accelerator, ExecutorInfo, Inventory
from protocols.qoais import INDICATORS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

ROUND_TRIP_MS: Final = 2.0
"""Of a node that has not measured its own yet."""
BANDWIDTH_MBIT_PER_S: Final = 100.0
"""Of a link that is not known."""
BANDWIDTH_MIN_MBIT_PER_S: Final = 0.01
"""A link that is said to be slower is taken to be so slow."""
LOAD_MAX: Final = 0.9
"""Above this share of its cores a node is taken to be so loaded."""
FLEETS_KEPT: Final = 2
"""Arrays are made once for the same tuple of nodes: services are often placed many at a time."""
SECURITY: Final = "computing_security"
SECURITY_LEVELS: Final = INDICATORS[SECURITY].levels
"""Worst first."""
USUAL_SECURITY: Final = {
    ExecutorKind.WASM.value: "strong",
    ExecutorKind.ONNX.value: "basic",
    ExecutorKind.CONTAINER.value: "basic",
}
"""What executors of a kind keep where their node says nothing else."""
PROCESSOR: Final = "CPUExecutionProvider"
_BIT_MS: Final = 1e-3
"""Milliseconds that one bit takes at 1 Mbit/s."""


class Fleet:
    """What the cost model needs of every node, whatever is reserved there."""

    def __init__(self, facts: Sequence[NodeFacts]) -> None:
        nodes = sorted(facts, key=attrgetter("scheduler", "node"))
        inventories = [one.inventory for one in nodes]
        online = NodeState.ONLINE
        self.facts = nodes
        self.names = [one.node for one in nodes]
        self.index = {name: at for at, name in enumerate(self.names)}
        self.online: Bools = np.array([one.state is online for one in nodes], bool)
        self.cores = _floats([one.cpu_count for one in inventories])
        self.memory = _floats([one.task_memory_bytes for one in inventories])
        self.instances_max = _floats([one.max_instances for one in inventories])
        self.cpu_percent = _floats([one.cpu_percent for one in nodes])
        self.round_trip_ms = _known([one.round_trip_ms for one in nodes], ROUND_TRIP_MS)
        rates = _known([one.bandwidth_mbit_per_s for one in nodes], BANDWIDTH_MBIT_PER_S)
        self.byte_ms = 8 * _BIT_MS / np.maximum(rates, BANDWIDTH_MIN_MBIT_PER_S)
        self.cells = _cells(nodes)
        self.executors = _kinds([one.executors for one in inventories])
        self.accelerators = _kinds([one.accelerators for one in inventories])
        self.providers: dict[str, Bools] = {}
        self.security: dict[str, Ints] = {}
        """By kind of executor, made when it is asked for, as is what each provider's nodes are."""

    @cached_property
    def driving(self) -> tuple[str, ...]:
        """The providers among which there is something to choose."""
        return driving(one.inventory for one in self.facts)

    @cached_property
    def boards(self) -> dict[str, Ints]:
        """Where the nodes of each board stand."""
        return _grouped([one.inventory.profile for one in self.facts])


class _Same:
    """Tells tuples of nodes apart by identity: comparing them would cost what it is to save."""

    def __init__(self, nodes: tuple[NodeFacts, ...]) -> None:
        self.nodes = nodes

    def __hash__(self) -> int:
        return id(self.nodes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.nodes is self.nodes


@lru_cache(FLEETS_KEPT)
def _fleet(same: _Same) -> Fleet:
    return Fleet(same.nodes)


class Columns:
    """A snapshot as arrays; bytes are exact in float64 up to 2 ** 53."""

    def __init__(self, snapshot: Snapshot) -> None:
        fleet = _fleet(_Same(snapshot.nodes))
        self.facts, self.names, self.index = fleet.facts, fleet.names, fleet.index
        self.cells, self.online = fleet.cells, fleet.online
        self.cores, self.memory = fleet.cores, fleet.memory
        self.round_trip_ms, self.byte_ms = fleet.round_trip_ms, fleet.byte_ms
        self._executors, self._accelerators = fleet.executors, fleet.accelerators
        self._security, self._providers = fleet.security, fleet.providers
        self._fleet = fleet
        self.figures = snapshot.figures
        self.headroom = spread(snapshot.headroom_bytes, self.names, self.index)
        """Bytes that are free and stay so, for any one of the tasks that may grow."""
        reserved_bytes = spread(snapshot.reserved_bytes, self.names, self.index)
        self.free = fleet.memory - reserved_bytes - self.headroom
        self.instances = spread(snapshot.instances, self.names, self.index)
        self.room = fleet.instances_max - self.instances
        reserved = spread(snapshot.reserved_cpu_percent, self.names, self.index)
        self.load = (fleet.cpu_percent + reserved / fleet.cores) / 100
        """Share of the node's cores, before the plan."""

    def has_executor(self, kind: str) -> Bools:
        """Return which nodes can run programs of this kind."""
        return self._has(kind, self._executors)

    def has_accelerator(self, kind: str) -> Bools:
        """Return which nodes have one of this kind."""
        return self._has(kind, self._accelerators)

    def has_provider(self, provider: str) -> Bools:
        """Return whose ONNX Runtime has an execution provider."""
        if provider not in self._providers:
            having = [
                any(provider in executor.providers for executor in one.inventory.executors)
                for one in self.facts
            ]
            self._providers[provider] = np.array(having, bool)
        return self._providers[provider]

    @property
    def driving(self) -> tuple[str, ...]:
        """The providers among which there is something to choose."""
        return self._fleet.driving

    @property
    def boards(self) -> dict[str, Ints]:
        """Where the nodes of each board stand."""
        return self._fleet.boards

    def _has(self, kind: str, found: dict[str, Bools]) -> Bools:
        return found.get(kind, np.zeros(len(self.names), bool))

    def security(self, kind: str) -> Ints:
        """Return the level of computing security that each node's executor of a kind keeps."""
        if kind not in self._security:
            levels = [security_level(one.inventory, kind) for one in self.facts]
            self._security[kind] = np.array(levels, np.intp)
        return self._security[kind]

    def at(self, names: tuple[str, ...]) -> Bools:
        """Return which nodes are among these names."""
        found = np.zeros(len(self.names), bool)
        for name in names:
            if name in self.index:
                found[self.index[name]] = True
        return found


def security_level(inventory: Inventory, kind: str) -> int:
    """Return which of the indicator's levels a node's executor of a kind keeps, by its place.

    What the node declares and nobody knows counts as none.
    """
    declared = next((one.security for one in inventory.executors if one.kind == kind), "none")
    level = declared or USUAL_SECURITY.get(kind, "none")
    return SECURITY_LEVELS.index(level) if level in SECURITY_LEVELS else 0


def _cells(nodes: Sequence[NodeFacts]) -> list[slice]:
    """Return where each cell's nodes stand."""
    found: list[slice] = []
    begin = 0
    for _, some in groupby(nodes, key=attrgetter("scheduler")):
        end = begin + len(list(some))
        found.append(slice(begin, end))
        begin = end
    return found


def driving(inventories: Iterable[Inventory]) -> tuple[str, ...]:
    """Return the providers that reach accelerators, and the one for processors after them.

    Empty where there are no accelerators: then nothing is to be chosen.
    """
    found: dict[str, None] = {}
    for one in inventories:
        if one.accelerators:
            have = {name for executor in one.executors for name in executor.providers}
            for accelerator in one.accelerators:
                found |= dict.fromkeys(name for name in accelerator.providers if name in have)
    found.pop(PROCESSOR, None)
    return (*found, PROCESSOR) if found else ()


def _grouped(names: Sequence[str]) -> dict[str, Ints]:
    """Return where each name stands."""
    found: dict[str, list[int]] = {}
    for at, name in enumerate(names):
        found.setdefault(name, []).append(at)
    return {name: np.array(some, np.intp) for name, some in found.items()}


def _kinds(
    owned: Sequence[Sequence[ExecutorInfo] | Sequence[Accelerator]],
) -> dict[str, Bools]:
    """Return for each kind which nodes own one."""
    where = np.repeat(np.arange(len(owned)), np.array([len(some) for some in owned], np.intp))
    numbers: dict[str, int] = {}
    kinds = [one.kind for some in owned for one in some]
    for kind in set(kinds):
        numbers[kind] = len(numbers)
    numbered = np.array([numbers[kind] for kind in kinds], np.intp)
    found: dict[str, Bools] = {}
    for kind, number in numbers.items():
        found[kind] = np.zeros(len(owned), bool)
        found[kind][where[numbered == number]] = True
    return found


def _floats(values: list[float] | list[int]) -> Floats:
    return np.array(values, np.float64)


def _known(values: list[float | None], otherwise: float) -> Floats:
    """Return the values, and the other where there is none."""
    known = np.array(values, np.float64)
    return np.where(np.isnan(known), otherwise, known)
