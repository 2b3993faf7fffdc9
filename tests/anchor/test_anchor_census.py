"""The census of the nodes is what a walk over all of them would count."""

from collections import Counter
from statistics import median

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests_support import INVENTORY

from controller.anchor.census import Census
from controller.anchor.ledger import Ledger
from controller.anchor.placement import NodeFacts
from protocols.manifest import ExecutorKind
from protocols.messages.hierarchy import NodeState, Reserved
from protocols.messages.presence import ExecutorInfo

NODES = ("n1", "n2", "n3")


@st.composite
def facts(draw: st.DrawFn) -> NodeFacts:
    """Return what may be known of one of a few nodes."""
    kinds = draw(st.lists(st.sampled_from(ExecutorKind), max_size=4))
    inventory = replace(
        INVENTORY,
        cpu_count=draw(st.integers(1, 8)),
        task_memory_bytes=draw(st.integers(0, 100)),
        executors=tuple(ExecutorInfo(kind, "1") for kind in kinds),
    )
    return NodeFacts(
        draw(st.sampled_from(NODES)),
        draw(st.sampled_from(NodeState)),
        inventory,
        draw(st.floats(0, 100)),
        draw(st.none() | st.floats(0, 50)),
    )


@given(st.lists(facts() | st.sampled_from(NODES), max_size=12), st.integers(0, 120))
def test_figures_are_those_of_all_nodes_that_are_there(
    changes: list[NodeFacts | str], taken: int
) -> None:
    census, known = Census(), dict[str, NodeFacts]()
    for change in changes:
        if isinstance(change, str):
            census.put(known.pop(change, None), None)
        else:
            census.put(known.get(change.node), change)
            known[change.node] = change
    ledger = Ledger()
    ledger.put_others("n1", (Reserved("x", taken),))
    there = [one for one in known.values() if one.state is NodeState.ONLINE]
    free = [max(0, one.inventory.task_memory_bytes - taken * (one.node == "n1")) for one in there]
    trips = [one.round_trip_ms for one in there if one.round_trip_ms is not None]
    kinds = Counter(
        str(kind) for one in there for kind in {info.kind for info in one.inventory.executors}
    )
    assert len(census) == len(there)
    assert census.cpu_count == sum(one.inventory.cpu_count for one in there)
    assert census.round_trip_ms == (median(trips) if trips else None)
    assert census.executors == kinds
    assert census.free_bytes(ledger) == (sum(free), max(free, default=0))
