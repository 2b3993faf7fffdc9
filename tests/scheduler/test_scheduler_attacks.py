"""What peers may say and when: absurd figures, late words, changes in the midst of changes."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_bench import Loop, Truth, envelope, escalations
from scheduler_bench import READY, Bench, grant, running, said, told

from controller.decider import Output
from controller.scheduler import envelope as bounds
from controller.scheduler.complaints import AGAIN_MS
from controller.scheduler.cost import CostModel
from controller.scheduler.decider import Scheduler
from protocols.manifest import Dtype
from protocols.messages import (
    Assign,
    EnvelopeRevoke,
    Escalation,
    Feed,
    Invoke,
    JobEnded,
    JobRun,
    LinkReport,
    LoadReport,
    QualityReport,
    Release,
    Route,
    Status,
    TaskReport,
    Tune,
)
from protocols.messages.hierarchy import TaskQos
from protocols.messages.presence import Holding
from protocols.messages.quality import (
    Leeway,
    Source,
    SourceKind,
    TaskSample,
    Tuning,
    UserSample,
    UserZone,
)
from protocols.messages.task import InstanceState
from protocols.qoais import Bound, Zone

FETCHING = InstanceState.FETCHING
FIGURES = st.sampled_from(
    [0.0, -1.0, 5e-324, 1e-9, 1.0, 90.0, 1e12, 1e300, math.inf, -math.inf, math.nan]
)
COUNTS = st.sampled_from([0, 1, 7, 2**31, 2**53])


def slow(node: str, tuning: Tuning, feed: object) -> float:
    del node, feed
    return 80.0 if tuning.variant == "" else 40.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(FIGURES, min_size=9, max_size=9), COUNTS, COUNTS), max_size=8))
def test_no_figure_of_a_node_makes_the_scheduler_raise(
    said_figures: list[tuple[list[float], int, int]],
) -> None:
    loop = Loop(Truth(slow))
    loop.anchor(envelope("n1", "n2", leeway=Leeway(variants=("small",), encodings=("deflate",))))
    loop.lives(700)
    assert loop.running is not None
    epoch = loop.running.epoch
    for figures, one, other in said_figures:
        wait, run, tail, fetch, energy, latency, trip, jitter, speed = figures
        sample = TaskSample(
            "svc.a", epoch, "", one, other, one, other, one, wait, run, tail, fetch, other, one,
            other, one, energy,
        )  # fmt: skip
        user = UserSample("svc", "u", one, other, latency, run)
        loop.node("n1", QualityReport(loop.now_ms, one, (sample,), (user,)))
        loop.node("n1", LoadReport(loop.now_ms, 95.0, queue=one))
        link = LinkReport(
            1, "eth0", "wired", True, speed_mbit_per_s=speed, round_trip_ms=trip, jitter_ms=jitter
        )
        loop.node("n1", link)
        loop.lives(600)
    loop.lives(6000)


def test_absurd_figures_are_counted_and_dropped(bench: Bench) -> None:
    epoch = running(bench, "n1")
    for figure in (math.nan, math.inf, -1.0):
        sample = TaskSample("svc.a", epoch, done=1, run_ms=figure)
        bench.node("n1", QualityReport(1, 500, (sample,)))
        bench.node("n1", LinkReport(1, "eth0", "wired", True, round_trip_ms=figure))
    assert bench.ts.counters["absurd_report"] == 6


def test_nobody_tells_of_the_quality_of_services_that_it_does_not_serve(bench: Bench) -> None:
    epoch = running(bench, "n1")
    sample = TaskSample("svc.a", epoch, done=9, run_ms=1.0)
    report = QualityReport(1, 500, (sample,), (UserSample("svc", "u", 9, 0, 60_000.0, 1.0),))
    ts = bench.ts
    bench.node("n2", report)
    assert (ts.keeper.gauges._users, ts.ways._here.after(1000)) == ({}, {})
    bench.node("n1", report)
    assert ts.keeper.gauges._users.keys() == ts.ways._here.after(1000).keys() == {"svc"}


def test_nobody_ends_jobs_of_services_that_it_does_not_serve(bench: Bench) -> None:
    running(bench, "n1")
    end = JobEnded("j1", 1, "svc", {}, number=1)
    assert not said(bench.node("n2", end), JobEnded)
    assert said(bench.node("n1", end), JobEnded) == [end]


@pytest.mark.parametrize("attempt", [3, 4, 99])
def test_a_run_that_is_known_is_ended_only_by_whom_it_was_sent(bench: Bench, attempt: int) -> None:
    running(bench, "n1", "n2")
    assert said(bench.anchor(JobRun("j1", 3, "svc", {}, 1000)), Invoke)
    end = JobEnded("j1", attempt, "svc", {}, number=1)
    assert not said(bench.node("n2", end), JobEnded), "it may serve, but was sent nothing"
    assert said(bench.node("n1", end), JobEnded) == [end], "another anchor's number may be higher"


def test_the_late_end_of_an_earlier_attempt_counts(bench: Bench) -> None:
    running(bench, "n1", "n2")
    bench.anchor(JobRun("j1", 3, "svc", {}, 1000))
    end = JobEnded("j1", 2, "svc", {}, number=1)
    assert said(bench.node("n2", end), JobEnded) == [end]


def test_what_never_left_its_node_teaches_nothing_of_packing() -> None:
    cost = CostModel()
    cost.learn_sent("d", "", 100, 100)
    cost.learn_sent("d", "deflate", 100, 0)
    assert cost.packing("d", "deflate") > 0.0


def test_a_node_in_trouble_whose_task_may_not_move_is_told_ever_more_rarely() -> None:
    loop = Loop(Truth(slow))
    loop.anchor(envelope("n1", "n2", latency_ms=None, leeway=Leeway(moves=False)))
    loop.cpu["n1"] = 97.0
    out = loop.lives(40_000)
    assert 1 <= len(escalations(out)) <= 1 + 40_000 // AGAIN_MS


def test_a_user_with_a_zone_of_its_own_is_in_danger_without_one_of_the_service() -> None:
    zone = Zone((Bound("latency_ms", at_most=60.0),))
    loop = Loop(Truth(slow))
    loop.anchor(
        envelope(
            "n1",
            latency_ms=None,
            leeway=Leeway(variants=("small",), moves=False),
            users=(UserZone("u1", zone),),
        )
    )
    out = loop.lives(6000)
    assert [one.tuning.variant for one in said(out, Assign)][-1:] == ["small"]


def stuck(bench: Bench) -> int:
    """Have a second generation begin beside the first on n1, and not come to an end."""
    running(bench, "n1", "n2")
    [assign] = said(bench.anchor(grant("n1", "n2", generation=2)), Assign)
    status = Status(2, "svc.a", assign.epoch, FETCHING, generation=2, serving_epoch=1)
    bench.node("n1", status)
    return int(assign.epoch)


def test_a_newer_generation_does_not_wait_for_one_that_never_comes(bench: Bench) -> None:
    epoch = stuck(bench)
    output = bench.anchor(grant("n1", "n2", generation=3))
    [assign] = told(output, "n1", Assign)
    assert (assign.generation, assign.epoch) == (3, epoch + 1)
    assert not said(output, Release), "its node replaces what it prepares"
    assert all(one.plan is not None for one in said(output, Route)), "the first one serves on"


def test_a_copy_on_another_node_that_is_wanted_no_more_is_released(bench: Bench) -> None:
    running(bench, "n1", "n2", "n3")
    [assign] = said(bench.anchor(grant("n2", "n3", first=1)), Assign)
    bench.node("n2", Status(2, "svc.a", assign.epoch, FETCHING, generation=1))
    output = bench.anchor(grant("n3", first=1))
    assert [one.epoch for one in told(output, "n2", Release)] == [assign.epoch]
    assert [one.epoch for one in told(output, "n3", Assign)] == [assign.epoch + 1]


def test_a_variant_that_does_not_come_is_taken_back_under_a_newer_epoch() -> None:
    loop = Loop(Truth(slow))
    loop.anchor(envelope("n1", leeway=Leeway(variants=("small",), moves=False)))
    loop.lives(700)
    hangs: list[Assign] = []
    start = loop._start

    def hang(node: str, assign: Assign) -> Output:
        if not assign.tuning.variant:
            return start(node, assign)
        hangs.append(assign)
        return loop.node(node, Status(3, "svc.a", assign.epoch, FETCHING))

    loop._start = hang  # type: ignore[method-assign]
    out = loop.lives(30_000)
    assert hangs, "the variant was tried"
    back = [one for one in told(out, "n1", Assign) if one.epoch > hangs[0].epoch]
    assert back[0].tuning.variant == ""
    entry = loop.ts.table.tasks["svc.a"]
    assert entry.current is not None
    assert entry.current.epoch >= back[0].epoch


def test_what_serves_beside_a_preparation_is_served_again_after_a_rebirth(bench: Bench) -> None:
    epoch = stuck(bench)
    bench.born("n1", holdings=(Holding("svc.a", epoch, FETCHING, 2),))
    output = bench.node("n1", Status(3, "svc.a", epoch, FETCHING, generation=2, serving_epoch=1))
    assert said(output, Route)[-1].plan.steps[0].epoch == 1


def test_a_status_does_not_make_an_orphan_forget_how_it_runs() -> None:
    bench = Bench(epoch=2)
    small = Tuning(variant="small", priority=6)
    bench.born("n1", holdings=(Holding("svc.a", 7, READY, 1, small),))
    bench.node("n1", Status(1, "svc.a", 7, READY, generation=1))
    given = envelope("n1", "n2", first=8, leeway=Leeway(variants=("small",), priority_max=9))
    output = bench.anchor(given)
    assert not said(output, Assign), "a healthy task is not touched"
    assert said(output, TaskReport)[-1].variant == "small"


def test_tunes_of_a_task_that_was_gone_and_came_again_are_newer(bench: Bench) -> None:
    numbers = []
    for round_ in range(2):
        first = 1 + 40 * round_
        running(bench, "n1", first=first)
        tuned = grant("n1", first=first, tuning=Tuning(priority=6))
        [tune] = said(bench.anchor(tuned), Tune)
        numbers.append(tune.number)
        bench.anchor(EnvelopeRevoke("svc.a", 1))
        bench.node("n1", Status(9, "svc.a", first, InstanceState.STOPPED))
    assert numbers[0] < numbers[1]


def test_a_late_grant_of_an_older_generation_changes_nothing(bench: Bench) -> None:
    running(bench, "n1", generation=2)
    before = bench.ts.keeper._grants["svc.a"]
    bench.anchor(grant("n1", "n2", generation=1))
    assert bench.ts.keeper._grants["svc.a"] is before


@pytest.mark.parametrize("latency_ms", [1e-3, 1e6])
def test_the_credit_is_a_number_however_short_a_run_is_said_to_be(
    bench: Bench, latency_ms: float
) -> None:
    given = envelope("n1", latency_ms=latency_ms)
    assert given.spec.qos == TaskQos(latency_ms=latency_ms)
    [assign] = said(bench.anchor(given), Assign)
    bench.ready("n1", assign.epoch)
    sample = TaskSample("svc.a", assign.epoch, done=1, run_ms=5e-324)
    bench.node("n1", QualityReport(1, 500, (sample,)))
    scheduler: Scheduler = bench.ts
    assert 1 <= scheduler.keeper.credit("svc") <= 64


LEEWAYS = (
    Leeway(variants=("small", "tiny"), replicas_max=4, priority_max=8, cpu_percent_max=400.0),
    Leeway(variants=("small",), moves=False, threads_max=4),
    Leeway(moves=False),
    Leeway(encodings=("deflate",), rate_min_per_s=1.0, decimations=(2,)),
)
ENVELOPES = (("n1", "n2"), ("n2",), ("n2", "n1"), ("n1",))


@settings(max_examples=25, deadline=None)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(ENVELOPES),
            st.sampled_from(LEEWAYS),
            st.sampled_from([0, 0, 1]),
            st.integers(0, 80),
        ),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 100),
)
def test_nothing_leaves_an_envelope_however_it_changes(
    changes: list[tuple[tuple[str, ...], Leeway, int, int]], seed: int
) -> None:
    """Grants wider and narrower, in the midst of trials, moves and modifications."""
    loop, generation, last = Loop(Truth(slow, noise=0.3), seed), 1, 0
    fed = (Source("x", SourceKind.SENSOR, "load", Dtype.UINT8, (8,), ("n1", "n2"), 20.0),)
    for nodes, leeway, newer, tenths in changes:
        generation += newer
        given = envelope(
            *nodes, latency_ms=60.0, leeway=leeway, generation=generation, sources=fed, last=5000
        )
        out = loop.anchor(given)
        out.extend(loop.lives(tenths * 100))
        for send in out.sends:
            node, body = getattr(send.to, "node", ""), send.body
            if isinstance(body, Assign):
                assert node in nodes
                assert body.generation == generation
                assert body.epoch > last
                last = body.epoch
            if isinstance(body, Assign | Tune):
                assert bounds.allows(given, body.tuning)
            if isinstance(body, Feed) and body.sources:
                assert body.decimation in (1, *leeway.decimations)
                assert not body.rate_per_s or 0 < leeway.rate_min_per_s <= body.rate_per_s
    loop.lives(20_000)
    [route] = list(loop.ts.serving.routes.values())
    assert route.plan is not None, "it converges"
    entry = loop.ts.table.tasks["svc.a"]
    assert entry.current is not None
    assert (entry.current.generation, entry.current.node in changes[-1][0]) == (generation, True)


def test_an_escalation_can_be_said_whatever_the_envelope_and_is_of_this_life() -> None:
    numbers = []
    for epoch in (1, 2):
        bench = Bench(epoch=epoch, name="t" * 64)
        [escalation] = escalations(bench.anchor(grant(*(f"n{one}" for one in range(70)))))
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(escalation), type=Escalation)
        numbers.append(escalation.number)
    assert numbers[0] != numbers[1]
