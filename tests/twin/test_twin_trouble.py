"""The loop under what people and machines do to it besides kills and cuts, from seeds."""

import pytest
from msgspec.structs import replace

from controller.records import USE_CASE, UseCaseRecord, UseCaseState
from controller.twin.node import Shape
from controller.twin.run import Plan, Twin
from controller.twin.world import Faults

TASK_BYTES = 256 << 20
ROUGH = Faults(delay_ms=(1, 40), drop_share=0.02, double_share=0.02)
SMALL = Plan(
    nodes=8,
    services=4,
    steps=2,
    requests_per_s=1.0,
    budget_ms=40_000,
    seconds=50,
    quiet_seconds=40,
    kills=0,
    cuts=0,
    controller_kills=1,
    faults=ROUGH,
)


def room(tasks: int) -> Shape:
    """A machine with room for so many tasks; it gives them half of its memory."""
    return Shape(memory_bytes=2 * tasks * TASK_BYTES)


TROUBLE = {
    "operations over a controller that dies": replace(
        SMALL, services=6, deletes=2, again=1, changes=2, controller_kills=3, kills=3, cuts=2
    ),
    "every node dies at once": replace(SMALL, blackouts=1),
    "a tenth of the messages is lost": replace(
        SMALL, kills=2, cuts=2, faults=Faults((1, 60), drop_share=0.1, double_share=0.05)
    ),
    "messages take seconds": replace(
        SMALL, kills=2, cuts=2, faults=Faults((200, 2500), drop_share=0.01, double_share=0.02)
    ),
    "tasks wait until others are deleted": replace(
        SMALL, nodes=4, services=8, deletes=4, kills=2, shape=room(3)
    ),
    "tasks wait, and come again": replace(
        SMALL, nodes=4, services=8, deletes=4, again=1, kills=2, shape=room(4)
    ),
    "nodes join late": replace(SMALL, late_nodes=7),
    "nodes end in order": replace(SMALL, shut_downs=4),
    "nodes are drained": replace(SMALL, drains=3, cuts=2, controller_kills=2),
    "executors break": replace(SMALL, nodes=5, breaks=5, kills=2, cuts=1, controller_kills=3),
    "executors break while tasks change": replace(
        SMALL, nodes=3, breaks=3, changes=2, shape=room(6)
    ),
    "the store is lost": replace(SMALL, wipes=2, kills=2, cuts=2),
    "the store is lost and executors break": replace(
        SMALL, nodes=3, wipes=2, breaks=3, kills=1, changes=1, deletes=1, again=1
    ),
}


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
        for (kind, _), record in twin.store.current.items()
        if kind == USE_CASE and isinstance(record.value, UseCaseRecord)
    ]
    assert states.count(UseCaseState.RUNNING) == living
    assert set(states) <= {UseCaseState.RUNNING, UseCaseState.DELETED}
