"""Whatever dies while a task follows its device: what it remembers is written in one place."""

from typing import Final

from cells_bench import CellsBench
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_following import EDGE, EDGES, following_bench

from controller.decider import Linked
from controller.scheduler.memories import WAIT_MAX_MS

ROLES: Final = ("ta", "ts-a", "ts-b")
STEPS: Final = (
    *(f"{what} {role}" for what in ("start", "cut") for role in ROLES),
    *("heal", "go", "go", "wait", "wait", "long", "run", "run", "run", "reborn"),
)


def _run(bench: CellsBench) -> None:
    """Have the task run wherever a node would run it now: it is held and awaits nothing."""
    able = [one for one in EDGES if EDGE in bench.held[one] and (one, EDGE) not in bench.awaits]
    for node in able:
        plans = [bench.route(cell) for cell in bench.cells]
        steps = [one for route in plans if route and route.plan for one in route.plan.steps]
        if any(one.task == EDGE and one.node == node for one in steps):
            bench.memory[node, EDGE] += b"."
            bench.runs[EDGE] = bench.runs.get(EDGE, 0) + 1


def _heal(bench: CellsBench) -> None:
    cut, bench.cut = set(bench.cut), set()
    for role in cut:
        for other in bench.roles:
            if other != role and "ta" in (role, other):
                bench.feed(role, Linked(other))
                bench.feed(other, Linked(role))


def _start(bench: CellsBench, role: str) -> None:
    bench.start(role)
    for other in bench.roles:
        if other != role and "ta" in (role, other):
            bench.feed(other, Linked(role))
    for node, (cell, _) in list(bench.nodes.items()):
        if role == f"ts-{cell}":
            bench.born(node, cell)


def _step(bench: CellsBench, step: str) -> None:
    what, _, role = step.partition(" ")
    match what:
        case "start":
            _start(bench, role)
        case "cut":
            bench.cut.add(role)
        case "heal":
            _heal(bench)
        case "go":
            bench.moves("n", "b" if bench.nodes["n"][0] == "a" else "a")
        case "reborn":
            for edge in EDGES:
                bench.born(edge, bench.nodes[edge][0])
        case "run":
            _run(bench)
        case _:
            bench.passes(400 if what == "wait" else 2600, "n", *EDGES)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=4, max_size=14))
def test_nothing_that_it_remembers_is_lost_whoever_dies(steps: list[str]) -> None:
    bench = following_bench()
    began = len(bench.memory["edge-a", EDGE])
    for step in steps:
        _step(bench, step)
    _heal(bench)
    bench.passes(WAIT_MAX_MS // 3, "n", *EDGES)
    task = bench.task(EDGE)
    assert (task.leaving, task.memory, task.heir) == (None, None, "")
    assert [one for one in EDGES if EDGE in bench.held[one]] == [task.node]
    assert (task.node, EDGE) not in bench.awaits
    assert len(bench.memory[task.node, EDGE]) - began == bench.runs.get(EDGE, 0)
    assert task.scheduler == f"ts-{bench.nodes[task.node][0]}"
