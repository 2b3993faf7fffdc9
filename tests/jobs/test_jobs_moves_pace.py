"""The pace at which jobs are handed over: a window for each service, and nothing twice in vain."""

from typing import Any

import pytest
from jobs_world import submit, tensor
from msgspec import structs

from controller.anchor.job_moves import AGAIN_MAX_MS, UNTAKEN_MS, WINDOW, WINDOW_BYTES, Moves
from controller.desk import Desk
from controller.records import JobRecord
from protocols.errors import Blame
from protocols.messages import JobHandover, JobOwned, JobsMoved
from protocols.messages.invocation import FailureCode
from protocols.messages.job import JobState


class Bench:
    def __init__(self, *schedulers: str) -> None:
        self.desk = Desk("ta")
        self.ended: list[JobRecord] = []
        self.moves = Moves(
            self.desk, lambda record, _move: self.ended.append(record), schedulers or ("ts",)
        )
        self.desk.begin(0)

    def begin(self, job: str, service: str = "svc", **more: Any) -> None:
        body = structs.replace(submit(job), service=service, **more)
        record = JobRecord(body, "c", "t", JobState.ACCEPTED, left_ms=body.deadline_ms)
        self.moves.begin(record, "c", "")

    def fired(self, at_ms: int = 0) -> list[JobHandover]:
        self.desk.begin(at_ms)
        self.moves.fired()
        return self.said()

    def owned(self, job: str) -> list[JobHandover]:
        self.desk.begin(self.desk.now_ms)
        self.moves.owned(None, JobOwned(job, "ta"))  # type: ignore[arg-type] - not looked at
        return self.said()

    def said(self) -> list[JobHandover]:
        sends = self.desk.output.sends
        return [one.body for one in sends if isinstance(one.body, JobHandover)]

    def due_ms(self) -> int:
        (timer,) = self.desk.output.timers
        assert timer.at_ms is not None
        return timer.at_ms


def names(said: list[JobHandover]) -> list[str]:
    return [one.submit.job for one in said]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_service_that_nobody_takes_holds_no_other_one_up(bench: Bench) -> None:
    for at in range(2 * WINDOW):
        bench.begin(f"a{at}", "dead")
    bench.begin("good", "healthy")
    said = names(bench.fired())
    assert len(said) == WINDOW + 1
    assert "good" in said


def test_the_next_one_follows_as_one_is_taken(bench: Bench) -> None:
    for at in range(WINDOW + 2):
        bench.begin(f"j{at}")
    bench.fired()
    assert names(bench.owned("j3")) == [f"j{WINDOW}"]
    assert names(bench.owned("j3")) == []


def test_a_window_holds_no_more_bytes_than_its_bound_and_never_less_than_one_job(
    bench: Bench,
) -> None:
    for at in range(8):
        bench.begin(f"j{at}", inputs={"x": tensor(bytes(WINDOW_BYTES // 2))})
    bench.begin("large", "other", inputs={"x": tensor(bytes(2 * WINDOW_BYTES))})
    assert names(bench.fired()) == ["j0", "j1", "large"]
    assert names(bench.owned("j0")) == ["j2"]


def test_silence_makes_the_pause_longer_up_to_its_bound(bench: Bench) -> None:
    bench.begin("j0")
    at_ms, pauses = 0, []
    for _ in range(7):
        assert names(bench.fired(at_ms)) == ["j0"]
        pauses.append(bench.due_ms() - at_ms)
        at_ms = bench.due_ms()
    assert pauses == [2000, 4000, 8000, 16_000, AGAIN_MAX_MS, AGAIN_MAX_MS, AGAIN_MAX_MS]


def test_nothing_is_said_again_before_its_time_and_large_jobs_one_by_one(bench: Bench) -> None:
    for at in range(4):
        bench.begin(f"j{at}", inputs={"x": tensor(bytes(WINDOW_BYTES // 4))})
    for at in range(4):
        bench.begin(f"s{at}", "small")
    assert len(bench.fired()) == 8
    assert names(bench.fired(1000)) == []
    assert names(bench.fired(2000)) == ["j0", "j1", "s0", "s1", "s2", "s3"]


def test_a_link_begun_anew_says_the_window_at_once(bench: Bench) -> None:
    for at in range(4):
        bench.begin(f"j{at}", inputs={"x": tensor(bytes(WINDOW_BYTES // 4))})
    bench.fired()
    bench.desk.begin(100)
    bench.moves.linked()
    assert names(bench.said()) == ["j0", "j1", "j2", "j3"]
    assert bench.due_ms() == 2100


def test_time_goes_on_while_a_job_is_on_its_way(bench: Bench) -> None:
    bench.begin("j0", deadline_ms=5000)
    assert [one.left_ms for one in bench.fired()] == [5000]
    assert [one.left_ms for one in bench.fired(2000)] == [3000]
    assert bench.due_ms() == 5000
    assert not bench.fired(5000)
    (end,) = bench.ended
    assert end.state is JobState.FAILED
    assert end.failure is not None
    assert end.failure.code is FailureCode.DEADLINE


def test_one_that_comes_back_has_what_is_left_of_its_time(bench: Bench) -> None:
    bench.begin("j0", deadline_ms=5000)
    bench.fired()
    bench.desk.begin(1500)
    ((record, _),) = bench.moves.returned("svc")
    assert record.left_ms == 3500
    assert "j0" not in bench.moves
    assert not bench.fired(UNTAKEN_MS)


def test_what_is_taken_slowly_is_not_given_up(bench: Bench) -> None:
    bench.begin("j0")
    bench.begin("j1")
    bench.fired()
    bench.fired(UNTAKEN_MS - 1)
    bench.owned("j0")
    bench.fired(UNTAKEN_MS + 1)
    assert not bench.ended
    bench.fired(2 * UNTAKEN_MS)
    (end,) = bench.ended
    assert end.failure is not None
    assert (end.failure.blame, end.failure.retryable) == (Blame.ENVIRONMENT, True)
    assert any(isinstance(one.body, JobsMoved) for one in bench.desk.output.sends)


def test_every_scheduler_hears_it() -> None:
    bench = Bench("ts-a", "ts-b")
    bench.begin("j0")
    assert len(bench.fired()) == 2
    assert len({one.to for one in bench.desk.output.sends}) == 2
