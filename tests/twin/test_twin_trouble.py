"""The loop under what people and machines do to it besides kills and cuts, from seeds."""

import pytest
from msgspec.structs import replace

from controller.records import USE_CASE, UseCaseRecord, UseCaseState
from controller.twin.faults import Kind
from controller.twin.hands import Shape
from controller.twin.network import Weather
from controller.twin.run import Plan, Twin

TASK_BYTES = 256 << 20
DIE, CUT, RESTART = Kind.NODE_CRASH, Kind.CUT, Kind.HOST_CRASH
SMALL = Plan(
    nodes=8,
    services=4,
    steps=2,
    requests_per_s=1.0,
    budget_ms=40_000,
    seconds=50,
    quiet_seconds=120,
    faults={RESTART: 1},
    weather=Weather((1, 40), drop_share=0.02, double_share=0.02, reorder=True),
)


def weather(slowest_ms: int, fastest_ms: int = 1, drop: float = 0.02, double: float = 0.02) -> Plan:
    fails = Weather((fastest_ms, slowest_ms), drop_share=drop, double_share=double, reorder=True)
    return replace(SMALL, weather=fails, faults={RESTART: 1, DIE: 2, CUT: 2})


def room(tasks: int) -> Shape:
    """A machine with room for so many tasks; it gives them half of its memory."""
    return Shape(memory_bytes=2 * tasks * TASK_BYTES)


TROUBLE = {
    "operations over a controller that dies": replace(
        SMALL, services=6, deletes=2, again=1, changes=2, faults={RESTART: 3, DIE: 3, CUT: 2}
    ),
    "every node dies at once": replace(SMALL, faults={RESTART: 1, Kind.BLACKOUT: 1}),
    "a tenth of the messages is lost": weather(60, drop=0.1, double=0.05),
    "messages take seconds": weather(2500, 200, drop=0.01),
    "tasks wait until others are deleted": replace(
        SMALL, nodes=4, services=8, deletes=4, shape=room(3), faults={RESTART: 1, DIE: 2}
    ),
    "tasks wait, and come again": replace(
        SMALL, nodes=4, services=8, deletes=4, again=1, shape=room(4), faults={RESTART: 1, DIE: 2}
    ),
    "nodes join late": replace(SMALL, late_nodes=7),
    "nodes end in order": replace(SMALL, faults={RESTART: 1, Kind.SHUT_DOWN: 4}),
    "nodes are drained": replace(SMALL, drains=3, faults={RESTART: 2, CUT: 2}),
    "executors break": replace(
        SMALL, nodes=5, faults={RESTART: 3, Kind.BREAK: 5, DIE: 2, CUT: 1}
    ),
    "executors break while tasks change": replace(
        SMALL, nodes=3, changes=2, shape=room(6), faults={RESTART: 1, Kind.BREAK: 3}
    ),
    "the store is lost": replace(SMALL, wipes=2, faults={RESTART: 1, DIE: 2, CUT: 2}),
    "the store is lost and executors break": replace(
        SMALL, nodes=3, wipes=2, changes=1, deletes=1, again=1,
        faults={RESTART: 1, Kind.BREAK: 3, DIE: 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("trouble", TROUBLE)
def test_in_the_end_everything_runs_once_and_nothing_is_left_over(trouble: str, seed: int) -> None:
    plan = TROUBLE[trouble]
    twin = Twin(seed, plan)
    outcome = twin.run()
    living = plan.services - plan.deletes + plan.again
    assert outcome.running == outcome.tasks, outcome
    assert outcome.tasks >= living * plan.steps
    assert outcome.unanswered == 0
    assert len(twin.clients) == living
    states = [
        record.value.state
        for (kind, _), record in twin.head.store.current.items()
        if kind == USE_CASE and isinstance(record.value, UseCaseRecord)
    ]
    assert states.count(UseCaseState.RUNNING) == living
    assert set(states) <= {UseCaseState.RUNNING, UseCaseState.DELETED}
