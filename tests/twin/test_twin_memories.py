"""Tasks that remember, under faults: every change is there in the end, wherever they went."""

import pytest
from msgspec.structs import replace

from controller.scheduler.memories import Memories
from controller.twin import schedule
from controller.twin.faults import Kind
from controller.twin.rules import Rule

SEEDS = range(1, 9)
SHORT = {Kind.DROP: 2, Kind.DOUBLE: 2, Kind.REORDER: 2, Kind.DELAY: 2, Kind.BROKER: 1}


def verdict(seed: int, faults: dict[Kind, int] | None = None) -> schedule.Verdict:
    plan = schedule.plan_of(seed)
    faults = dict(plan.faults) if faults is None else faults
    plan = replace(plan, remembers=True, deployment="gateway", drains=1, faults=faults)
    return schedule.run(seed, plan=plan)


@pytest.mark.timeout(300)
def test_no_change_of_a_memory_is_lost_unless_its_loss_is_said() -> None:
    assert [one.text for one in map(verdict, SEEDS) if one.rule is not None] == []


def test_without_lost_nodes_no_memory_is_given_up() -> None:
    for seed in (1, 2):
        found = verdict(seed, SHORT)
        assert found.rule is None, found.text
        assert found.outcome is not None
        assert found.outcome.counts.get("memories given up", 0) == 0


def test_a_move_that_leaves_the_memory_behind_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memories, "origin", lambda *_: None)
    assert Rule.MEMORY in {verdict(seed).rule for seed in (1, 2, 4)}
