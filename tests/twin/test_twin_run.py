"""The whole loop on fake time: production deciders and device cores under seeded faults."""

import pytest

from controller.twin.faults import Kind
from controller.twin.network import Weather
from controller.twin.run import Outcome, Plan, Twin


def run(seed: int, plan: Plan) -> Outcome:
    outcome = Twin(seed, plan).run()
    assert outcome.running == outcome.tasks == plan.services * plan.steps, outcome
    return outcome


def test_a_hundred_nodes_run_the_whole_loop() -> None:
    outcome = run(1, Plan(faults={Kind.NODE_CRASH: 10, Kind.CUT: 5, Kind.HOST_CRASH: 1}))
    assert outcome.unanswered == 0
    assert outcome.requests > 900


def test_a_seed_replays_the_same_run() -> None:
    plan = Plan(
        nodes=12,
        services=4,
        seconds=30,
        quiet_seconds=20,
        faults={Kind.NODE_CRASH: 3, Kind.CUT: 2, Kind.HOST_CRASH: 1},
    )
    assert run(5, plan) == run(5, plan)
    assert run(5, plan).fingerprint != run(6, plan).fingerprint


@pytest.mark.parametrize("seed", range(12))
def test_faults_everywhere_lose_no_request_and_no_task(seed: int) -> None:
    """Every node of a small fleet is killed or cut, messages vanish and double, twice the
    controller dies.
    """
    plan = Plan(
        nodes=8,
        services=4,
        seconds=50,
        quiet_seconds=60,
        faults={Kind.NODE_CRASH: 4, Kind.CUT: 4, Kind.HOST_CRASH: 2},
        budget_ms=40_000,
        weather=Weather((1, 40), drop_share=0.02, double_share=0.02, reorder=True),
    )
    outcome = run(seed, plan)
    assert outcome.unanswered == 0
