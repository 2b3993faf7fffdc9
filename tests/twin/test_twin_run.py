"""The whole loop on fake time: production deciders and device cores under seeded faults."""

import pytest

from controller.twin.run import Outcome, Plan, Twin
from controller.twin.world import Faults


def run(seed: int, plan: Plan) -> Outcome:
    outcome = Twin(seed, plan).run()
    assert outcome.running == outcome.tasks == plan.services * plan.steps, outcome
    return outcome


def test_a_hundred_nodes_run_the_whole_loop() -> None:
    outcome = run(1, Plan(kills=10, cuts=5))
    assert outcome.unanswered == 0
    assert outcome.requests > 900


def test_a_seed_replays_the_same_run() -> None:
    plan = Plan(nodes=12, services=4, seconds=30, quiet_seconds=20, kills=3, cuts=2)
    assert run(5, plan) == run(5, plan)
    assert run(5, plan) != run(6, plan)


@pytest.mark.parametrize("seed", range(12))
def test_faults_everywhere_lose_no_request_and_no_task(seed: int) -> None:
    """Every node of a small fleet is killed or cut, messages vanish and double, twice the
    controller dies.
    """
    plan = Plan(
        nodes=8,
        services=4,
        seconds=50,
        quiet_seconds=40,
        kills=4,
        cuts=4,
        controller_kills=2,
        budget_ms=40_000,
        faults=Faults(delay_ms=(1, 40), drop_share=0.02, double_share=0.02),
    )
    outcome = run(seed, plan)
    assert outcome.unanswered == 0
