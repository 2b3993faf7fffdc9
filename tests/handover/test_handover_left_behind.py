"""A service in several cells: its clients are told where it is, and no task waits for another."""

from anchor_bench import chain
from cells_bench import CellsBench
from msgspec import structs

from controller.decider import Called
from controller.twin.run import Named


def spread() -> CellsBench:
    """Return a bench on which a node has left the cell of its service's other task."""
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
    return bench


def test_a_cell_whose_last_task_is_placed_elsewhere_knows_the_way() -> None:
    bench = spread()
    bench.passes(40_000, "n", "edge-c")

    assert (bench.task("svc.own").scheduler, bench.task("svc.edge").scheduler) == ("ts-b", "ts-c")
    for cell in bench.cells:
        plan = bench.route(cell).plan
        assert plan is not None, f"clients of {cell} are told nothing"
        assert [(step.node, step.cell or cell) for step in plan.steps] == [
            ("n", "b"),
            ("edge-c", "c"),
        ]


def test_a_task_goes_to_another_cell_while_another_one_has_no_node() -> None:
    bench = spread()
    bench.passes(40_000, "edge-a", "edge-c")
    assert bench.task("svc.own").state == "waiting"
    drain = Called("c", "node.drain", Named("edge-a"), "default", "test", 0)
    bench.feed("ts-a", drain)
    bench.passes(3000, "edge-a", "edge-c")
    edge = bench.task("svc.edge")
    assert (edge.scheduler, edge.node, edge.leaving) == ("ts-c", "edge-c", None)
