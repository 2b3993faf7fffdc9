"""A service of a device: a task of its own, and a counter at the edge that remembers."""

from typing import Any

from cells_bench import CellsBench
from tests_support import manifest, task_spec

from protocols.manifest import HostFunction, Limits
from protocols.messages.invocation import REQUEST

EDGES = ("edge-a", "edge-b")
OWN, EDGE = "svc.own", "svc.edge"


def specs(**changes: Any) -> tuple[Any, ...]:
    counter = manifest(functions=(HostFunction.MEMORY,), limits=Limits(state_bytes=1 << 16))
    return (
        task_spec(OWN, REQUEST, nodes=("n",)),
        task_spec(EDGE, "own", **{"manifest": counter, "nodes": EDGES, **changes}),
    )


def following_bench(*cells: str, **changes: Any) -> CellsBench:
    bench = CellsBench(*(cells or ("a", "b")))
    bench.born("n", "a")
    for cell in bench.cells:
        bench.born(f"edge-{cell}", cell)
    bench.order("own", "edge", tasks=specs(**changes), spares=0)
    bench.passes(1000, "n", *EDGES)
    assert (bench.task(OWN).node, bench.task(EDGE).node) == ("n", "edge-a")
    bench.memory["edge-a", EDGE] = b"one"
    return bench
