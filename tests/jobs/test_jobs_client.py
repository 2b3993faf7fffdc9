"""The client's side of jobs: submitted until accepted, asked for until ended, once."""

from typing import Any

import pytest
from jobs_world import REPLY, submit, tensor

from protocols.errors import Blame
from protocols.messages import JobAccepted, JobEnded, JobQuery, JobStatus, JobSubmit
from protocols.messages.invocation import Failure, FailureCode
from protocols.messages.job import JobState
from tona import jobs
from tona.jobs import (
    Ended,
    Followed,
    JobHeard,
    Jobs,
    JobsOnline,
    JobsWake,
    JobsWoken,
    Left,
    Opened,
    SendJob,
    Taken,
)


class Bench:
    """The core of a client and its clock."""

    def __init__(self) -> None:
        self.core = Jobs(REPLY)
        self.now_ms = 0.0
        self.wake_ms: float | None = None
        self.out: list[Any] = []
        self.feed(JobsOnline(connected=True))

    def feed(self, event: Any) -> list[Any]:
        out = self.core.handle(event, self.now_ms)
        for one in out:
            if isinstance(one, JobsWake):
                self.wake_ms = one.at_ms
        self.out += out
        return [one for one in out if not isinstance(one, JobsWake)]

    def passes(self, ms: float) -> list[Any]:
        end_ms, out = self.now_ms + ms, list[Any]()
        while self.wake_ms is not None and self.wake_ms <= end_ms:
            self.now_ms, self.wake_ms = self.wake_ms, None
            out += self.feed(JobsWoken())
        self.now_ms = end_ms
        return out

    def hear(self, body: Any) -> list[Any]:
        return self.feed(JobHeard(body))


def sent(out: list[Any]) -> list[Any]:
    return [one.body for one in out if isinstance(one, SendJob)]


def end(part: int = 0, parts: int = 1, failure: Failure | None = None) -> JobEnded:
    return JobEnded("j1", 1, "svc", {f"y{part}": tensor()}, failure, part, parts)


ACCEPTED = JobAccepted("j1", accepted=True)


def test_a_job_is_submitted_until_it_is_accepted() -> None:
    bench = Bench()
    assert sent(bench.feed(Opened(submit()))) == [submit()]
    repeated = sent(bench.passes(20_000))
    assert repeated == [submit()] * len(repeated)
    assert 2 <= len(repeated) <= 4, "ever more rarely"
    assert bench.hear(ACCEPTED) == [Taken("j1")]
    assert not bench.passes(600_000), "nobody waits for the end"


def test_a_followed_job_is_asked_for_after_a_silence() -> None:
    bench = Bench()
    bench.feed(Opened(submit()))
    bench.feed(Followed("j1", "svc"))
    bench.hear(ACCEPTED)
    asked = sent(bench.passes(60_000))
    assert asked == [JobQuery("j1", "svc", REPLY)] * len(asked)
    assert 2 <= len(asked) <= 5
    [ended] = bench.hear(end())
    assert isinstance(ended, Ended)
    assert ended.outputs == {"y0": tensor()}
    assert not bench.hear(end()), "the second end is nobody's"
    assert len(bench.core) == 0


def test_an_end_says_that_the_job_was_accepted() -> None:
    bench = Bench()
    bench.feed(Opened(submit()))
    assert [type(one) for one in bench.hear(end())] == [Taken, Ended]


def test_a_status_says_so_too() -> None:
    bench = Bench()
    bench.feed(Opened(submit()))
    assert bench.hear(JobStatus("j1", JobState.RUNNING)) == [Taken("j1")]


def test_the_parts_of_an_end_make_one() -> None:
    bench = Bench()
    bench.feed(Opened(submit()))
    assert not bench.hear(end(1, 2))
    assert not bench.hear(end(1, 2))
    [_, ended] = bench.hear(end(0, 2))
    assert ended.outputs == {"y0": tensor(), "y1": tensor()}


def test_a_failure_ends_it() -> None:
    bench = Bench()
    bench.feed(Opened(submit()))
    failure = Failure(FailureCode.EXECUTOR, Blame.USER, "no", retryable=False)
    assert bench.hear(end(failure=failure))[-1].failure == failure


def test_a_refusal_for_good_ends_it_and_one_that_may_pass_is_tried_again() -> None:
    bench = Bench()
    bench.feed(Opened(submit()))
    busy = JobAccepted("j1", accepted=False, reason="too many open jobs", retryable=True)
    assert not bench.hear(busy)
    assert sent(bench.passes(200)) == [submit()]
    bench.hear(busy)
    no = JobAccepted("j1", accepted=False, reason="there is no service 'svc' here")
    assert bench.hear(no) == [Taken("j1", no.reason)]
    assert not bench.passes(60_000)


def test_after_a_connection_everything_open_is_said_again() -> None:
    bench = Bench()
    bench.feed(Opened(submit("j1")))
    bench.feed(Opened(submit("j2")))
    bench.feed(Followed("j2", "svc"))
    bench.hear(JobAccepted("j2", accepted=True))
    bench.feed(JobsOnline(connected=False))
    assert not sent(bench.passes(60_000)), "nobody hears"
    again = sent(bench.feed(JobsOnline(connected=True)))
    assert [type(one) for one in again] == [JobSubmit, JobQuery]


def test_a_job_of_an_earlier_client_is_asked_for_at_once() -> None:
    bench = Bench()
    assert sent(bench.feed(Followed("old", "svc"))) == [JobQuery("old", "svc", REPLY)]


def test_who_has_left_is_not_told() -> None:
    bench = Bench()
    bench.feed(Opened(submit()))
    bench.feed(Left("j1"))
    assert not bench.hear(end())
    assert not bench.passes(60_000)


def test_jobs_of_a_client_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "JOBS_MAX", 1)
    bench = Bench()
    bench.feed(Opened(submit("j1")))
    [refused] = bench.feed(Opened(submit("j2")))
    assert "follows 1 jobs" in refused.refused


def test_what_is_due_does_not_grow_with_jobs_that_are_over() -> None:
    bench = Bench()
    for at in range(5000):
        bench.feed(Opened(submit(f"j{at}")))
        bench.hear(JobAccepted(f"j{at}", accepted=True))
        bench.feed(Left(f"j{at}"))
    assert len(bench.core._due) <= jobs.DUE_SPARE + 1


def test_who_is_refused_again_and_again_asks_ever_more_rarely() -> None:
    bench = Bench()
    bench.feed(Opened(submit()))
    busy = JobAccepted("j1", accepted=False, reason="too many open jobs", retryable=True)
    pauses = []
    for _ in range(12):
        bench.hear(busy)
        before_ms = bench.now_ms
        while not sent(bench.passes(10)):
            assert bench.now_ms - before_ms < 2 * jobs.SUBMIT_MAX_MS
        pauses.append(bench.now_ms - before_ms)
    assert pauses[0] < 2 * jobs.REFUSED_FIRST_MS
    assert pauses[-1] >= jobs.SUBMIT_MAX_MS
    assert pauses == sorted(pauses)
