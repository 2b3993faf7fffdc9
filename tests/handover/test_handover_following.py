"""Tasks at the edge follow the device that they serve, and what they remember comes along."""

from typing import Any

import pytest
from cells_bench import CellsBench
from tests_support import manifest, task_spec

from controller.anchor.following import SETTLE_MS
from controller.handover_records import HandoverState
from protocols.manifest import HostFunction, Limits
from protocols.messages import Assign, MemoryState, Release
from protocols.messages.invocation import REQUEST

EDGES = ("edge-a", "edge-b")
OWN, EDGE = "svc.own", "svc.edge"


def specs(**changes: Any) -> tuple[Any, ...]:
    counter = manifest(functions=(HostFunction.MEMORY,), limits=Limits(state_bytes=1 << 16))
    return (
        task_spec(OWN, REQUEST, nodes=("n",)),
        task_spec(EDGE, "own", **{"manifest": counter, "nodes": EDGES, **changes}),
    )


def bench_of(*cells: str, **changes: Any) -> CellsBench:
    bench = CellsBench(*(cells or ("a", "b")))
    bench.born("n", "a")
    for cell in bench.cells:
        bench.born(f"edge-{cell}", cell)
    bench.order("own", "edge", tasks=specs(**changes), spares=0)
    bench.passes(1000, "n", *EDGES)
    assert (bench.task(OWN).node, bench.task(EDGE).node) == ("n", "edge-a")
    bench.memory["edge-a", EDGE] = b"one"
    return bench


@pytest.fixture
def bench() -> CellsBench:
    return bench_of()


def served(bench: CellsBench, cell: str) -> tuple[str, str]:
    plan = bench.route(cell).plan
    [step] = [one for one in plan.steps if one.task == EDGE]
    return step.node, step.cell


def test_a_task_follows_its_device_with_all_that_it_remembers(bench: CellsBench) -> None:
    bench.hand_over("n", "b")
    bench.moves("n", "b")
    # It is prepared with a first copy, and goes on where it is.
    assert bench.awaits["edge-b", EDGE].node == "edge-a"
    assert bench.memory["edge-b", EDGE] == b"one"
    assert (served(bench, "a"), served(bench, "b")) == (("edge-a", "a"), ("edge-a", "a"))
    bench.memory["edge-a", EDGE] = b"one, two"
    bench.passes(SETTLE_MS + 200, "n", *EDGES)
    task = bench.task(EDGE)
    assert (task.scheduler, task.node, task.leaving, task.memory) == ("ts-b", "edge-b", None, None)
    assert bench.memory["edge-b", EDGE] == b"one, two"
    assert (served(bench, "a"), served(bench, "b")) == (("edge-b", "b"), ("edge-b", ""))
    assert EDGE not in bench.held["edge-a"]
    [*_, last] = bench.told("edge-b", MemoryState)
    # Only what was new was moved while requests waited.
    assert (last.final, last.data, last.after_bytes) == (True, b", two", 3)
    [record] = bench.handovers("n")
    assert record.state is HandoverState.COMPLETED
    assert record.edge == {EDGE: task.following}
    assert task.following.startswith("follows to edge-b: a request takes ")


def test_a_device_that_goes_back_finds_its_instance_as_it_was(bench: CellsBench) -> None:
    assigned = len(bench.told("edge-a", Assign))
    for _ in range(2):
        bench.moves("n", "b")
        bench.passes(300, "n", *EDGES)
        bench.moves("n", "a")
        bench.passes(300, "n", *EDGES)
    task = bench.task(EDGE)
    assert (task.scheduler, task.node, task.leaving, task.memory) == ("ts-a", "edge-a", None, None)
    assert served(bench, "a")[0] == "edge-a"
    assert len(bench.told("edge-a", Assign)) == assigned
    assert not bench.told("edge-a", Release)
    assert EDGE not in bench.held["edge-b"]
    bench.passes(SETTLE_MS + 200, "n", *EDGES)
    assert bench.task(EDGE).node == "edge-a"


def test_a_task_may_not_leave_what_no_node_there_takes() -> None:
    bench = bench_of(nodes=("edge-a", "edge-x"))
    bench.moves("n", "b")
    bench.passes(SETTLE_MS + 200, "n", *EDGES)
    task = bench.task(EDGE)
    assert (task.scheduler, task.node) == ("ts-a", "edge-a")
    assert task.following.startswith("stays on edge-a: ")
    assert bench.handovers("n")[0].edge[EDGE] == task.following
    assert served(bench, "b") == ("edge-a", "a")
