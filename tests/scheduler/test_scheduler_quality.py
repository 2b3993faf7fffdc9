"""Quality in closed loop: each lever by its own cause, trials, relaxing, no flapping."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_bench import (
    SMALL,
    Loop,
    Truth,
    actions,
    envelope,
    escalations,
    story,
)
from scheduler_bench import said, told

from controller.scheduler import envelope as bounds
from controller.scheduler.complaints import AGAIN_MS
from protocols.manifest import Dtype
from protocols.messages import (
    Assign,
    EscalationAnswer,
    Feed,
    LinkReport,
    Release,
    Route,
    TaskEvent,
    TaskReport,
    Tune,
)
from protocols.messages.hierarchy import TaskQos
from protocols.messages.quality import Leeway, Source, SourceKind, Tuning, UserZone
from protocols.qoais import Bound, Sla, Zone

VARIANTS = Leeway(variants=("small", "tiny"), moves=False)
COST = {"": 80.0, "small": 40.0, "tiny": 20.0}


def by_variant(node: str, tuning: Tuning, feed: Feed | None) -> float:
    del node, feed
    return COST[tuning.variant]


def flat(node: str, tuning: Tuning, feed: Feed | None) -> float:
    del node, tuning, feed
    return 80.0


def started(truth: Truth, seed: int = 0, **changes: object) -> Loop:
    loop = Loop(truth, seed)
    loop.anchor(envelope("n1", "n2", **changes))  # type: ignore[arg-type]
    loop.lives(700)
    assert loop.node_now == "n1"
    return loop


# One lever each.


def test_algorithm_the_most_accurate_variant_that_is_fast_enough() -> None:
    loop = started(Truth(by_variant), leeway=VARIANTS)
    out = loop.lives(10_000)
    assert story(out) == ["danger", "acted", "helped"]
    [assign] = told(out, "n1", Assign)
    assert (assign.tuning.variant, assign.generation) == ("small", 1)
    assert assign.manifest == SMALL.manifest
    assert assign.epoch > 1
    assert not told(out, "n1", Release), "the node replaces its own instance"
    plans = [one.plan for one in said(out, Route)]
    assert all(plan is not None for plan in plans), "the old one serves until the new one is ready"
    assert plans[-1].steps[0].epoch == assign.epoch
    assert said(out, TaskReport)[-1].variant == "small"


def test_algorithm_keeps_the_accuracy_that_was_agreed() -> None:
    qos = TaskQos(latency_ms=100.0, bounds=(Bound("accuracy_percent", at_least=95.0),))
    loop = started(Truth(by_variant), leeway=VARIANTS, spec={"qos": qos})
    out = loop.lives(6000)
    assert not said(out, Assign)
    [handed_up] = escalations(out)[:1]
    assert "accuracy" in {one.action: one.outcome for one in handed_up.attempts}["variant small"]


def test_computing_more_workers_shorten_a_queue_without_a_restart() -> None:
    def run_ms(node: str, tuning: Tuning, feed: Feed | None) -> float:
        del node, feed
        loop.truth.queue_ms = 5.0 if tuning.replicas > 1 else 120.0
        return 60.0

    loop = Loop(Truth(run_ms, per_s=15.0))
    loop.anchor(envelope("n1", leeway=Leeway(replicas_max=4, variants=("small",))))
    out = loop.lives(12_000)
    assert not told(out, "n1", Assign)[1:], "nothing restarts"
    tune = told(out, "n1", Tune)[0]
    assert (tune.tuning.replicas, tune.epoch) == (2, 1)
    assert story(out)[:3] == ["danger", "acted", "helped"]


def test_computing_another_node_of_the_envelope() -> None:
    def run_ms(node: str, tuning: Tuning, feed: Feed | None) -> float:
        del tuning, feed
        return 95.0 if node == "n1" else 30.0

    loop = Loop(Truth(run_ms))
    # The other node has run it before, and that is remembered.
    loop.anchor(envelope("n2"))
    loop.lives(5000)
    loop.anchor(envelope("n1", "n2", generation=2, first=300, last=400))
    loop.lives(500)
    loop.ts.table.tasks["svc.a"].wanted = "n1"
    loop.ts.table.mark(loop.ts.table.tasks["svc.a"], "test")
    out = loop.lives(20_000)
    assert loop.node_now == "n2"
    assert any("move to n2" in one for one in actions(out))
    assert "helped" in story(out)


def test_connection_outputs_are_packed_when_a_link_is_full() -> None:
    loop = Loop(Truth(flat, sent_bytes=50_000))
    qos = TaskQos(bounds=(Bound("transmission_bytes", at_most=40_000),))
    grant = envelope(
        "n1", latency_ms=None, spec={"qos": qos}, leeway=Leeway(encodings=("deflate",))
    )
    loop.anchor(grant)
    loop.lives(1000)
    before = loop.report

    def packed():  # type: ignore[no-untyped-def]  # noqa: ANN202 - stands in for a method
        loop.truth.sent_bytes = 20_000 if loop.tuning.encoding else 50_000
        return before()

    loop.report = packed  # type: ignore[method-assign]
    out = loop.lives(8000)
    [tune] = told(out, "n1", Tune)
    assert tune.tuning.encoding == "deflate"
    assert said(out, Route)[-1].encoding == "deflate", "clients pack what they send it too"
    assert "helped" in story(out)


def test_connection_a_narrow_link_is_answered_by_packing_and_judged_by_the_users() -> None:
    link = LinkReport(1, "eth0", "wired", carrier=True, speed_mbit_per_s=1000.0, round_trip_ms=2.0)
    wide = [True]

    def transfer_ms() -> float:
        sent = 17_000 if loop.tuning.encoding else 56_000
        return 0.0 if wide[0] else sent / 500

    def measured():  # type: ignore[no-untyped-def]  # noqa: ANN202 - stands in for a method
        loop.truth.sent_bytes = 17_000 if loop.tuning.encoding else 56_000
        report = before()
        [user] = report.users
        more = transfer_ms()
        user = msgspec.structs.replace(
            user, latency_ms=user.latency_ms + more, latency_p95_ms=user.latency_p95_ms + more
        )
        made = msgspec.structs.replace(report.tasks[0], output_bytes=56_000 * report.tasks[0].done)
        return msgspec.structs.replace(report, tasks=(made,), users=(user,))

    loop = Loop(Truth(lambda *_: 40.0, sent_bytes=56_000))
    before, loop.report = loop.report, measured  # type: ignore[method-assign]
    zone = Zone((Bound("latency_ms", at_most=150.0),))
    leeway = Leeway(encodings=("deflate",), moves=False)
    loop.anchor(envelope("n1", latency_ms=140.0, leeway=leeway, sla=Sla(zone=zone)))
    loop.node("n1", link)
    assert not story(loop.lives(5000))
    wide[0] = False
    loop.node("n1", msgspec.structs.replace(link, delivery_mbit_per_s=4.0))
    out = loop.lives(12_000)
    assert story(out) == ["danger", "acted", "helped"]
    [tune] = told(out, "n1", Tune)
    assert tune.tuning.encoding == "deflate"
    [helped] = [
        one.body.detail
        for one in out.sends
        if isinstance(one.body, TaskEvent) and one.body.event == "helped"
    ]
    assert "of its bound to 5" in helped, f"the users' latency, not the task's: {helped}"
    # It stays as long as the link is narrow, and is taken back when that is over.
    loop.lives(40_000)
    assert loop.tuning.encoding == "deflate"
    wide[0] = True
    loop.node("n1", link)
    assert "relaxed" in story(loop.lives(60_000))
    assert loop.tuning.encoding == ""


def test_data_the_sources_send_less_and_again_more_when_it_is_over() -> None:
    trouble = [True]

    def run_ms(node: str, tuning: Tuning, feed: Feed | None) -> float:
        del node, tuning
        rate = (feed.rate_per_s or 20.0) if feed is not None else 20.0
        loop.truth.per_s = rate
        use = rate * 35.0 / 1000 * (1.0 if trouble[0] else 0.3)
        loop.truth.queue_ms = 35.0 * use / max(0.02, 1 - use)
        return 35.0 * (1.0 if trouble[0] else 0.3)

    source = Source("x", SourceKind.SENSOR, "camera", Dtype.UINT8, (8,), ("n1",), 20.0)
    loop = Loop(Truth(run_ms, noise=0.02))
    leeway = Leeway(moves=False, rate_min_per_s=5.0)
    loop.anchor(envelope("n1", leeway=leeway, sources=(source,)))
    out = loop.lives(12_000)
    feeds = told(out, "n1", Feed)
    assert feeds[0].rate_per_s == 0.0
    assert feeds[-1].rate_per_s == 10.0
    assert "helped" in story(out)
    assert [one.number for one in feeds] == sorted(one.number for one in feeds)
    trouble[0] = False
    out = loop.lives(60_000)
    assert told(out, "n1", Feed)[-1].rate_per_s == 0.0
    assert "relaxed" in story(out)


# What does not help.


def test_what_has_not_helped_is_taken_back_barred_and_told_upwards() -> None:
    loop = started(Truth(flat), leeway=VARIANTS, latency_ms=95.0)
    out = loop.lives(25_000)
    assert loop.tuning.variant == "", "everything was taken back"
    assert story(out).count("reverted") == 2
    handed_up = escalations(out)
    assert {one.action for one in handed_up[0].attempts} == {"variant small", "variant tiny"}
    first = handed_up[0]
    assert (first.indicator, first.target, first.broken) == ("latency_ms", 95.0, False)
    assert first.measured == pytest.approx(88.0, rel=0.1)
    assert len(handed_up) <= 4, "it is repeated ever more rarely"


def test_what_changes_nothing_is_not_even_tried() -> None:
    packs = Leeway(encodings=("deflate",), moves=False)
    loop = started(Truth(flat), leeway=packs, latency_ms=70.0)
    out = loop.lives(5000)
    assert "danger" in story(out)
    assert "acted" not in story(out)
    assert not said(out, Tune)
    assert escalations(out)[0].attempts[0].action == "encoding deflate"


def test_an_envelope_without_leeway_is_complained_about_at_once() -> None:
    loop = started(Truth(flat), latency_ms=90.0, leeway=Leeway(moves=False))
    out = loop.lives(3000)
    [handed_up] = escalations(out)
    assert not handed_up.attempts
    assert not said(out, Tune)
    assert not said(out, Assign)
    number = handed_up.number
    loop.anchor(EscalationAnswer(number, "svc.a", granted=False, reason="there is nothing else"))
    assert not escalations(loop.lives(AGAIN_MS - 1000))
    assert [one.number != number for one in escalations(loop.lives(3000))] == [True]
    loop.anchor(envelope("n1", "n2", leeway=VARIANTS, first=300, last=400, latency_ms=90.0))
    assert "acted" in story(loop.lives(3000)), "a new envelope is used at once"


def test_a_change_that_the_node_refuses_leaves_what_serves() -> None:
    loop = started(Truth(by_variant), leeway=VARIANTS)
    loop.refuses = True
    out = loop.lives(20_000)
    assert loop.tuning.variant == ""
    assert "reverted" in story(out)
    assert {one.plan.steps[0].epoch for one in said(out, Route)} == {1}, "it goes on serving"
    outcomes = [one.outcome for one in escalations(out)[0].attempts]
    assert any("no memory" in one for one in outcomes)


def test_nodes_that_shed_are_in_danger() -> None:
    loop = Loop(Truth(by_variant, per_s=30.0, shed_share=0.5))
    loop.anchor(envelope("n1", latency_ms=None, leeway=VARIANTS))
    out = loop.lives(4000)
    assert any("availability" in one for one in actions(out))


def test_users_who_wait_too_long_are_a_danger_where_no_task_has_a_share() -> None:
    sla = Sla(Zone((Bound("latency_ms", at_most=100.0),)))
    loop = Loop(Truth(by_variant))
    loop.anchor(envelope("n1", latency_ms=None, leeway=VARIANTS, sla=sla))
    out = loop.lives(8000)
    assert loop.tuning.variant == "small"
    views = [one.value for one in out.views if one.kind == "quality"]
    assert views[0].users == 1
    assert views[-1].satisfaction_ratio == 1.0
    assert views[-1].values["latency_ms"] == pytest.approx(44.0, rel=0.2)
    assert views[-1].tasks[0].tuning.variant == "small"
    assert views[-1].tasks[0].predicted_ms == pytest.approx(44.0, rel=0.3)


def test_a_user_with_a_zone_of_their_own_is_held_against_that() -> None:
    sla = Sla(Zone((Bound("latency_ms", at_most=1000.0),)), 0.9)
    own = (UserZone("u1", Zone((Bound("latency_ms", at_most=50.0),))),)
    loop = Loop(Truth(by_variant))
    loop.anchor(envelope("n1", latency_ms=None, leeway=Leeway(moves=False), sla=sla, users=own))
    out = loop.lives(3000)
    view = [one.value for one in out.views if one.kind == "quality"][-1]
    assert (view.users, view.satisfied, view.target_ratio) == (1, 0, 0.9)


# Mechanics.


def test_a_tune_is_repeated_until_the_node_has_taken_it() -> None:
    loop = started(Truth(flat))
    entry = loop.ts.table.tasks["svc.a"]
    loop._obey = lambda _: None  # type: ignore[method-assign]
    entry.tuning = Tuning(priority=5)
    loop.ts.table.mark(entry, "test")
    out = loop.lives(3300)
    tunes = told(out, "n1", Tune)
    assert len(tunes) >= 3
    assert len({one.number for one in tunes}) == 1
    loop._tuned("n1", tunes[0])
    assert not said(loop.lives(3000), Tune)


def test_a_node_that_begins_anew_is_tuned_again() -> None:
    loop = started(Truth(flat), leeway=Leeway(priority_max=9))
    entry = loop.ts.table.tasks["svc.a"]
    entry.tuning = Tuning(priority=7)
    loop.ts.table.mark(entry, "test")
    loop.lives(1000)
    assert loop.tuning.priority == 7
    loop.tuning = Tuning()
    loop.born("n1")
    loop.ready("n1", 1)
    loop.lives(1500)
    assert loop.tuning.priority == 7


def test_credit_follows_what_a_task_can_bear() -> None:
    loop = started(Truth(flat), latency_ms=800.0)
    loop.lives(3000)
    found = [one.body.credit for one in loop.seen if isinstance(one.body, Route)]
    assert found[:2] == [0, 64], "at first nothing is known"
    assert found[-1] in range(8, 13)


def test_a_link_that_gets_worse_says_what_packing_would_gain() -> None:
    loop = started(Truth(flat))
    idle = LinkReport(1, "eth0", "wired", carrier=True, round_trip_ms=5.0)
    loop.node("n1", idle)
    loop.node("n1", msgspec.structs.replace(idle, round_trip_ms=200.0))
    now, least = loop.ts.nodes.round_trips_ms("n1")
    assert (round(now), round(least)) == (200, 5)


# Under noise.


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    level=st.floats(0.6, 1.1),
    noise=st.floats(0.0, 0.4),
    helps=st.floats(0.4, 1.3),
)
def test_nothing_flaps_under_noise(seed: int, level: float, noise: float, helps: float) -> None:
    """Around the bound, with any noise, whether the levers help or harm."""

    def run_ms(node: str, tuning: Tuning, feed: Feed | None) -> float:
        del feed
        factor = 1.0 if tuning.variant == "" else helps
        factor *= 1.0 if tuning.replicas == 0 else helps
        return 100.0 * level / 1.1 * factor * (1.0 if node == "n1" else helps)

    loop = Loop(Truth(run_ms, noise=noise), seed)
    leeway = Leeway(variants=("small",), replicas_max=2, priority_max=6)
    grant = envelope("n1", "n2", leeway=leeway, last=1000)
    loop.anchor(grant)
    out = loop.lives(120_000)
    assert len(actions(out)) <= 2 * 8, actions(out)
    late = loop.lives(60_000)
    assert len(actions(late)) <= 5, "ever less is tried"
    for send in (*out.sends, *late.sends):
        if isinstance(send.body, Assign | Tune):
            assert bounds.allows(grant, send.body.tuning), send.body
            assert getattr(send.to, "node", "n1") in grant.nodes


def test_noise_well_below_the_bound_does_nothing_at_all() -> None:
    loop = started(Truth(lambda *_: 50.0, noise=0.25), leeway=VARIANTS)
    assert not story(loop.lives(120_000))
