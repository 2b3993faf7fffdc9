"""Forms in the twin: what simulated machines measure decides, as it does on real ones."""

from msgspec import structs

from controller.records import TaskRecord
from controller.twin.hands import Cost, Shape
from controller.twin.run import Plan, Twin
from controller.twin.usecases import Flavour, chain
from protocols.messages.presence import ExecutorInfo

OWN_MS, GRAPH_MS = 60.0, 5.0
PLAN = Plan(
    nodes=4,
    services=2,
    steps=2,
    seconds=40,
    quiet_seconds=20,
    shape=Shape(run_ms=(5, 5)),
    flavours=(Flavour.TIGHT,),
)


def settled(twin: Twin) -> list[TaskRecord]:
    """Run it on machines where the second form of each task is fast; return what runs at last."""
    for number in range(PLAN.services):
        for task in chain(number, PLAN.steps, 0, Flavour.TIGHT)["services"][0]["tasks"]:
            (graph,) = (one for one in task["variants"] if one["name"] == "graph")
            for node in twin.nodes.values():
                costs = node.hands.programs
                costs[task["artifact"]["digest"]] = Cost(OWN_MS, OWN_MS)
                costs[graph["artifact"]["digest"]] = Cost(GRAPH_MS, GRAPH_MS)
    outcome = twin.run()
    assert outcome.unanswered == 0
    return [one for one in twin.tasks().values() if one.state == "running"]


def test_simulated_machines_measure_and_the_fast_form_runs() -> None:
    tasks = settled(Twin(1, PLAN))
    assert len(tasks) == PLAN.services * PLAN.steps
    assert {one.variant for one in tasks} == {"graph"}
    for one in tasks:
        assert one.placement is not None
        assert {option.source for option in one.placement.options} <= {"measured", "of its board"}


def test_without_the_executor_the_other_form_stays() -> None:
    twin = Twin(1, PLAN)
    for node in twin.nodes.values():
        wasm = ExecutorInfo("wasm", "sim")
        node.hands._inventory = structs.replace(node.hands.inventory, executors=(wasm,))
    assert {one.variant for one in settled(twin)} == {""}
