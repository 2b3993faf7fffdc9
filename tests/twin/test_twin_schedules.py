"""Fault schedules by the hundred: nothing is lost, nothing doubled, no rule broken."""

import pytest

from controller.twin import schedule
from controller.twin.faults import Kind
from controller.twin.pool import cores, replay, run_many
from controller.twin.rules import Rule
from controller.twin.schedule import Tally, Verdict

SCHEDULES = 200
FIRST = 1


@pytest.mark.timeout(600)
def test_hundreds_of_fault_schedules_break_no_rule() -> None:
    tally = run_many(FIRST, SCHEDULES, cores())
    assert not tally.broken, [one.text for one in tally.first]
    assert tally.schedules == SCHEDULES
    assert tally.tasks == SCHEDULES * schedule.JOBS
    assert {kind for kind in Kind if not tally.faults.get(kind)} == set(), "all kinds struck"


def test_a_schedule_replays_byte_for_byte() -> None:
    verdict, hashed, lines = replay(FIRST, traced=True)
    _, again, _ = replay(FIRST)
    assert verdict.rule is None
    assert hashed == again == verdict.fingerprint
    assert len(lines) > 1000


def test_a_schedule_is_a_function_of_its_seed() -> None:
    assert schedule.plan_of(7) == schedule.plan_of(7)
    assert len({str(schedule.plan_of(seed)) for seed in range(20)}) == 20


def test_sums_do_not_depend_on_who_counted() -> None:
    verdicts = [
        Verdict(1, Rule.LOST, "a job"),
        Verdict(2, Rule.EPOCH, "an epoch"),
        Verdict(3),
        Verdict(4, Rule.DOUBLED, "an answer"),
    ]
    whole, left, right = Tally(), Tally(), Tally()
    for verdict in verdicts:
        whole.add(verdict)
    for verdict in reversed(verdicts[:2]):
        left.add(verdict)
    for verdict in verdicts[2:]:
        right.add(verdict)
    right.merge(left)
    assert right == whole
    assert (whole.lost, whole.doubled, whole.violations, whole.schedules) == (1, 1, 1, 4)
    assert [one.seed for one in whole.first] == [1, 2, 4]
