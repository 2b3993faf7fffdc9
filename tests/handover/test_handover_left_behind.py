"""Clients of a cell that no task of their service is left in are told where it is served."""

from anchor_bench import chain
from cells_bench import CellsBench
from msgspec import structs


def test_a_cell_whose_last_task_is_placed_elsewhere_knows_the_way() -> None:
    bench = CellsBench("a", "b", "c")
    for node, cell in (("n", "a"), ("edge-a", "a"), ("edge-c", "c")):
        bench.born(node, cell)
    order = chain("svc", 1, "own", "edge", spares=0)
    own, edge = order.tasks
    tasks = (
        structs.replace(own, nodes=("n",)),
        structs.replace(edge, nodes=("edge-a", "edge-c")),
    )
    order = structs.replace(order, tasks=tasks)
    bench.hear_at_anchor("namo", order)
    bench.passes(1000, "n", "edge-a", "edge-c")
    assert bench.task("svc.edge").scheduler == "ts-a"

    bench.moves("n", "b")
    bench.passes(1000, "n", "edge-a", "edge-c")
    bench.passes(40_000, "n", "edge-c")

    assert (bench.task("svc.own").scheduler, bench.task("svc.edge").scheduler) == ("ts-b", "ts-c")
    for cell in bench.cells:
        plan = bench.route(cell).plan
        assert plan is not None, f"clients of {cell} are told nothing"
        assert [(step.node, step.cell or cell) for step in plan.steps] == [
            ("n", "b"),
            ("edge-c", "c"),
        ]
