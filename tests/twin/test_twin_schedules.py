"""Fault schedules by the hundred: nothing is lost, nothing doubled, no rule broken."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from thorough import TIMES

from controller.twin import schedule
from controller.twin.faults import Kind
from controller.twin.pool import cores, replay, run_many, workers
from controller.twin.rules import Rule
from controller.twin.schedule import Tally, Verdict

SCHEDULES = 200 * TIMES
FIRST = 1


@pytest.mark.timeout(600 * TIMES)
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


def test_sums_do_not_depend_on_who_ends_first() -> None:
    verdicts = [
        Verdict(1, Rule.LOST, "a job"),
        Verdict(2, Rule.EPOCH, "an epoch"),
        Verdict(3),
        Verdict(4, Rule.DOUBLED, "an answer"),
    ]
    whole, other = Tally(), Tally()
    for verdict in verdicts:
        whole.add(verdict)
    for verdict in reversed(verdicts):
        other.add(verdict)
    assert other == whole
    assert (whole.lost, whole.doubled, whole.violations, whole.schedules) == (1, 1, 1, 4)
    assert [one.seed for one in whole.first] == [1, 2, 4]


@pytest.mark.parametrize("seed", [6594, 7558, 8116])
def test_seeds_that_found_something_are_kept(seed: int) -> None:
    """A drained node whose tasks have no other place; timers that run a hair fast."""
    verdict, first, _ = replay(seed)
    assert verdict.rule is None, verdict.text
    assert first


def test_an_interrupt_leaves_what_was_run_until_then() -> None:
    def interrupt(total: Tally) -> None:
        if total.schedules == 3:
            raise KeyboardInterrupt

    tally = run_many(1, 1000, 1, interrupt)
    assert tally.schedules == 3
    assert tally.tasks > 0


def interrupted() -> None:
    with workers(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        long = pool.submit(time.sleep, 3600)
        while not long.running():
            time.sleep(0.01)
        raise KeyboardInterrupt


@pytest.mark.timeout(60)
def test_an_interrupt_ends_what_runs() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted()


@pytest.mark.timeout(180)
def test_an_interrupt_while_workers_begin_is_told_by_none_of_them() -> None:
    command = [sys.executable, "-m", "tona", "sim", "faults", "--schedules", "100000", "--jobs=1"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as parent:
        try:
            while not any(map(imports, born(parent.pid))):
                assert parent.poll() is None
                time.sleep(0.01)
            os.killpg(parent.pid, signal.SIGINT)
            _, said = parent.communicate()
        finally:
            parent.kill()
    assert (parent.returncode, said) == (130, b"")


def born(parent: int) -> Iterator[int]:
    """Give the workers of a process, as soon as they are there."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            yield int(pid)


def imports(pid: int) -> bool:
    """Whether a worker is about to load what it runs."""
    return b"msgspec" in Path(f"/proc/{pid}/maps").read_bytes()


def begun(parent: int) -> Iterator[int]:
    """Give the workers of a process that have set themselves up: they ignore interrupts."""
    for pid in born(parent):
        status = Path(f"/proc/{pid}/status").read_text()
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)
        if ignored & 1 << (signal.SIGINT - 1):
            yield pid


@pytest.mark.timeout(180)
def test_workers_end_with_a_parent_that_is_killed() -> None:
    command = [
        sys.executable,
        "-m",
        "tona",
        "sim",
        "faults",
        "--schedules",
        "100000",
        "--jobs",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        try:
            while not (found := list(begun(parent.pid))):
                assert parent.poll() is None
                time.sleep(0.05)
            worker = os.pidfd_open(found[0])
        finally:
            parent.kill()
    try:
        assert select.select([worker], [], [], 60)[0], "the worker goes on alone"
    finally:
        os.close(worker)
