"""What the scheduler says again: after a link began anew, with several anchors, at another pace."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from quality_bench import SMALL, envelope
from scheduler_bench import READY, Bench, grant, running, said, told
from tests_support import task_spec

from controller.decider import Linked, Output, Received, ToInvoke, ToNode, ToRole
from controller.scheduler.adoption import OVERTAKEN_MS
from controller.scheduler.greeting import GRANT_MS
from controller.scheduler.pace import FASTEST_SAMPLE_MS, sample_ms
from protocols.messages import (
    AnchorMoved,
    AnchorWelcome,
    Assign,
    Death,
    Elsewhere,
    EnvelopeRevoke,
    Invoke,
    NodeSummary,
    Release,
    Relinquished,
    Route,
    SchedulerHello,
    SetSensing,
    Status,
    TaskReport,
    Tune,
    Welcome,
)
from protocols.messages.hierarchy import TaskQos
from protocols.messages.invocation import Edge
from protocols.messages.presence import Holding
from protocols.messages.quality import Leeway, Tuning
from protocols.messages.task import InstanceState


def test_a_link_that_began_anew_brings_the_anchor_up_to_date(bench: Bench) -> None:
    epoch = running(bench, "n1", "n2")
    output = bench.feed(Linked("ta-main"))
    assert said(output, SchedulerHello)
    assert [one.epoch for one in said(output, TaskReport)] == [epoch]
    bench.anchor(grant("n1", "n2", first=33))
    output = bench.anchor(AnchorWelcome("ta-main", 1, 1))
    assert {one.node for one in said(output, NodeSummary)} == {"n1", "n2", "n3"}
    assert not said(output, Assign), "what runs is left alone"
    assert not said(output, Release)
    assert not said(bench.feed(Linked("namo-main")), SchedulerHello)


def test_what_an_anchor_no_longer_holds_is_released(bench: Bench) -> None:
    """Its revoke may have been lost with the link."""
    epoch = running(bench, "n1", "n2")
    bench.feed(Linked("ta-main"))
    output = bench.anchor(AnchorWelcome("ta-main", 1, 0))
    assert [one.epoch for one in told(output, "n1", Release)] == [epoch]


def test_a_welcome_whose_grants_have_not_come_drops_nothing(bench: Bench) -> None:
    running(bench, "n1", "n2")
    bench.feed(Linked("ta-main"))
    assert not said(bench.anchor(AnchorWelcome("ta-main", 1, 1)), Release)


def test_orphans_wait_for_every_anchor() -> None:
    bench = Bench(anchors=("ta-a", "ta-b"))
    bench.born("n1", holdings=(Holding("old.x", 3, READY, 1),))
    assert not said(welcome(bench, "ta-a"), Release)
    assert [one.task for one in said(welcome(bench, "ta-b"), Release)] == ["old.x"]


def welcome(bench: Bench, anchor: str):  # type: ignore[no-untyped-def]  # noqa: ANN201 - an Output
    return bench.feed(Received(anchor, 0, 0, "default", "test", AnchorWelcome(anchor, 1, 0)))


def test_another_anchor_takes_over_what_runs() -> None:
    bench = Bench(anchors=("ta-a", "ta-b"))
    for anchor in ("ta-a", "ta-b"):
        welcome(bench, anchor)
    bench.born("n1", "n2")
    bench.feed(Received("ta-a", 0, 0, "default", "test", grant("n1", "n2")))
    bench.ready("n1", 1)
    moved = grant("n1", "n2", generation=2, first=1001, current_node="n1", current_epoch=1)
    output = bench.feed(Received("ta-b", 0, 0, "default", "test", moved))
    [assign] = told(output, "n1", Assign)
    assert (assign.epoch, assign.generation) == (1001, 2)
    assert not said(output, Route), "the old epoch serves until the node has adopted the new one"
    output = bench.ready("n1", 1001, 2)
    assert said(output, Route)[-1].plan.steps[0].epoch == 1001
    assert not said(output, Release)
    assert [send.to.role for send in output.sends if isinstance(send.body, TaskReport)] == ["ta-b"]
    late = EnvelopeRevoke("svc.a", 1, "another anchor has it")
    assert not said(bench.feed(Received("ta-a", 0, 0, "default", "test", late)), Release)


# A service goes from anchor to anchor.

AT_A, AT_B = "ta-a", "ta-b"


def says(bench: Bench, anchor: str, *bodies: Any) -> Output:
    output = Output()
    for body in bodies:
        output.extend(bench.feed(Received(anchor, 0, 0, "default", "test", body)))
    return output


def linked(bench: Bench, anchor: str) -> int:
    """Have a link begin anew; return the number of the hello."""
    hellos = said(bench.feed(Linked(anchor)), SchedulerHello)
    number: int = max(one.number for one in hellos)
    return number


@pytest.fixture
def shared() -> Bench:
    """A scheduler of two anchors; the first has a task that runs."""
    bench = Bench(anchors=(AT_A, AT_B))
    for anchor in (AT_A, AT_B):
        says(bench, anchor, AnchorWelcome(anchor, 1, 0))
    bench.born("n1", "n2")
    says(bench, AT_A, grant("n1", "n2"))
    bench.ready("n1", 1)
    return bench


def moved(*, going: bool = False, anchor: str = AT_B) -> AnchorMoved:
    return AnchorMoved("svc", 1, 1, anchor, AT_A, 32, going=going)


def test_what_is_on_its_way_to_another_anchor_is_kept(shared: Bench) -> None:
    """Its grants come from there, or its first anchor has it again and grants it."""
    for again in (grant("n1", first=33), grant("n1", first=65)):
        number = linked(shared, AT_A)
        says(shared, AT_A, moved(going=True), AnchorWelcome(AT_A, 1, 0, number=number))
        shared.passes(3 * GRANT_MS, "n1", "n2")
        assert shared.ts.table.tasks["svc.a"].anchor == AT_A
        says(shared, AT_A if again.epoch_from == 33 else AT_B, again)
    assert shared.ts.table.tasks["svc.a"].anchor == AT_B
    says(shared, AT_A, moved())
    number = linked(shared, AT_A)
    says(shared, AT_A, AnchorWelcome(AT_A, 1, 0, number=number))
    output = shared.passes(3 * GRANT_MS, "n1", "n2")
    assert not said(output, SchedulerHello), "who has granted it is not asked for it"
    assert not [one for one in shared.seen if isinstance(one.body, Release)]


def test_what_no_anchor_has_any_more_ends(shared: Bench) -> None:
    """Who is said to have it is asked, for it may have deleted it while we heard nothing."""
    says(shared, AT_A, moved())
    assert shared.ts.table.tasks["svc.a"].anchor == AT_B
    output = shared.passes(GRANT_MS, "n1", "n2")
    [send] = [one for one in output.sends if isinstance(one.body, SchedulerHello)]
    assert send.to == ToRole(AT_B)
    # A welcome that was said before it had the service tells nothing.
    output = says(shared, AT_B, AnchorWelcome(AT_B, 1, 0, number=send.body.number - 1))
    assert not said(output, Release)
    output = says(shared, AT_B, AnchorWelcome(AT_B, 1, 0, number=send.body.number))
    assert [one.epoch for one in told(output, "n1", Release)] == [1]
    assert not shared.ts.table.tasks


def test_what_the_other_anchor_grants_late_runs_on(shared: Bench) -> None:
    says(shared, AT_A, moved())
    output = shared.passes(GRANT_MS, "n1", "n2")
    [hello] = said(output, SchedulerHello)
    says(shared, AT_B, grant("n1", first=33), AnchorWelcome(AT_B, 1, 1, number=hello.number))
    shared.passes(2 * GRANT_MS, "n1", "n2")
    assert shared.ts.table.tasks["svc.a"].grant.epoch_from == 33
    assert not [one for one in shared.seen if isinstance(one.body, Release)]


AT_C = "ta-c"
OVER = EnvelopeRevoke("svc.a", 0, "it is not to run there", node="n1")


@pytest.fixture
def brought() -> Bench:
    """A scheduler of three anchors, to which a node has brought a task; one has yet to speak."""
    bench = Bench(anchors=(AT_A, AT_B, AT_C))
    for anchor in (AT_A, AT_B, AT_C):
        says(bench, anchor, AnchorWelcome(anchor, 1, 0, roaming=True))
    bench.born("n1", holdings=(Holding("svc.a", 3, READY, 1),))
    for anchor in (AT_B, AT_C):
        assert not said(says(bench, anchor, OVER), Release)
    return bench


@pytest.mark.parametrize("before", [False, True])
def test_who_did_not_want_a_copy_may_have_got_it_since(brought: Bench, before: bool) -> None:
    """Refusals of different times do not add up while a service goes from anchor to anchor."""
    if before:
        # It has had the service meanwhile, and gave it to who had refused.
        says(brought, AT_C, structs.replace(moved(anchor=AT_A), before=AT_C))
    for word in (moved(going=True), moved(), OVER):
        # The last one was on its way when it got the service.
        sender = AT_B if word is OVER else AT_A
        assert not said(says(brought, sender, word), Release)
    output = brought.passes(GRANT_MS, "n1")
    assert not said(output, Release)
    number = max(
        one.body.number
        for one in output.sends
        if isinstance(one.body, SchedulerHello) and one.to == ToRole(AT_B)
    )
    assert not said(says(brought, AT_B, OVER), Release)
    says(brought, AT_B, grant("n1", first=33), AnchorWelcome(AT_B, 1, 1, number=number))
    assert [copy.node for copy in brought.ts.table.tasks["svc.a"].copies()] == ["n1"]


def test_a_copy_that_no_anchor_wants_any_more_ends(brought: Bench) -> None:
    output = says(brought, AT_A, moved())
    output.extend(brought.passes(GRANT_MS, "n1"))
    [hello] = [one for one in said(output, SchedulerHello) if one.number > 3]
    says(brought, AT_B, AnchorWelcome(AT_B, 1, 0, number=hello.number, roaming=True))
    # It is asked again and again, and says the same.
    assert not said(says(brought, AT_A, moved()), Release)
    assert [one.epoch for one in said(says(brought, AT_B, OVER), Release)] == [3]


def test_who_does_not_have_a_service_says_nothing_of_it(shared: Bench) -> None:
    said_wrong = {AT_B: moved(), "n1": moved(), AT_A: moved(anchor="ta-thief")}
    for sender, body in said_wrong.items():
        says(shared, sender, body)
    assert shared.ts.counters["forged_message"] == 1
    assert shared.ts.table.tasks["svc.a"].anchor == AT_A
    assert not said(shared.passes(2 * GRANT_MS, "n1", "n2"), SchedulerHello)


def test_a_variant_outlives_the_scheduler_that_chose_it() -> None:
    bench = Bench(epoch=2)
    tuned = Tuning(variant="small", priority=6)
    bench.born("n1", holdings=(Holding("svc.a", 7, READY, 1, tuned),))
    bench.born("n2")
    leeway = Leeway(variants=("small",), priority_max=6)
    offered = envelope("n1", "n2", first=33, leeway=leeway, current_node="n1", current_epoch=7)
    output = bench.anchor(offered)
    assert not said(output, Assign)
    assert not said(output, Tune)
    assert said(output, TaskReport)[-1].variant == "small"
    # Where its envelope does not allow that, it runs as the anchor wants it.
    narrow = msgspec.structs.replace(offered, leeway=Leeway(), epoch_from=65, epoch_to=96)
    [assign] = told(bench.anchor(narrow), "n1", Assign)
    assert assign.tuning.variant == ""


def test_a_variant_that_fails_everywhere_gives_way_to_what_the_anchor_wants() -> None:
    bench = Bench()
    bench.anchor(AnchorWelcome("ta-main", 1, 0))
    bench.born("n1")
    leeway = Leeway(variants=("small",))
    bench.anchor(envelope("n1", leeway=leeway))
    entry = bench.ts.table.tasks["svc.a"]
    bench.ready("n1", 1)
    entry.tuning = Tuning(variant="small")
    bench.ts.table.mark(entry, "test")
    [assign] = told(bench.passes(200, "n1"), "n1", Assign)
    assert assign.manifest == SMALL.manifest
    bench.ready("n1", 2)
    output = bench.node("n1", Status(3, "svc.a", 2, InstanceState.FAILED, "it crashes"))
    output.extend(bench.passes(400, "n1"))
    assert told(output, "n1", Assign)[-1].tuning.variant == ""


def test_a_client_makes_no_job_of_its_request(bench: Bench) -> None:
    running(bench, "n1")
    invoke = Invoke("r", "svc", 1000, {}, "tona/1/cell/client/c/reply", job=True, priority=9)
    output = bench.feed(Received("c", 1, 0, "default", "r", invoke))
    [sent] = [send.body for send in output.sends if isinstance(send.to, ToInvoke)]
    assert (sent.job, sent.priority) == (False, 9)


# Pace.


def test_a_tight_task_quickens_its_node_until_it_is_gone(bench: Bench) -> None:
    tight = task_spec(qos=TaskQos(latency_ms=500.0))
    offered = msgspec.structs.replace(grant("n1"), spec=tight)
    output = bench.anchor(offered)
    assert [one.sample_ms for one in told(output, "n1", SetSensing)] == [100]
    assert not told(output, "n2", SetSensing)
    output = bench.ready("n1", 1)
    output.extend(bench.passes(10_000, "n1", "n2", "n3"))
    assert len(told(output, "n1", SetSensing)) == 2, "it is told a few times, no more"
    [hello] = told(bench.born("n1", holdings=(Holding("svc.a", 1, READY, 1),)), "n1", Welcome)
    assert hello.sample_ms == 100, "a node that comes again is told at once"
    output = bench.anchor(EnvelopeRevoke("svc.a", 1, "over"))
    assert told(output, "n1", SetSensing)[0].sample_ms == 1000


@given(usual=st.integers(50, 10_000), budgets=st.lists(st.none() | st.floats(0.1, 1e7), max_size=8))
def test_the_pace_stays_within_its_bounds(usual: int, budgets: list[float | None]) -> None:
    pace = sample_ms(usual, budgets)
    assert FASTEST_SAMPLE_MS <= pace <= usual


# NAMO has had another anchor order a task anew, and the first one has not heard of it.

NEXT = Holding("svc.a", 1001, READY, 2)


@pytest.fixture
def roamed() -> Bench:
    """A scheduler of two anchors, to whose cell nodes come from others."""
    bench = Bench(anchors=(AT_A, AT_B))
    for anchor in (AT_A, AT_B):
        says(bench, anchor, AnchorWelcome(anchor, 1, 0, roaming=True))
    return bench


def places(bench: Bench) -> list[tuple[str, int]]:
    """Return where the route of the service leads: node and epoch of each step."""
    route = bench.ts.serving.route("svc")
    plan = route.plan if route is not None else None
    return [(one.node, one.epoch) for one in plan.steps] if plan is not None else []


@pytest.mark.parametrize("born_first", [False, True])
def test_what_a_node_holds_of_the_next_generation_waits_for_its_grant(
    roamed: Bench, born_first: bool
) -> None:
    before = grant("n1", first=33, current_node="n1", current_epoch=1)
    if not born_first:
        says(roamed, AT_A, before)
    roamed.born("n1", holdings=(NEXT,))
    if born_first:
        says(roamed, AT_A, before)
    roamed.passes(2000, "n1")
    assert roamed.ts.adoption.orphans_of("n1") == ("svc.a",)
    says(roamed, AT_B, grant("n1", generation=2, first=1033, current_node="n1"))
    says(roamed, AT_A, before)
    assert roamed.ts.table.tasks["svc.a"].anchor == AT_B
    roamed.passes(2000, "n1")
    assert not [one for one in roamed.seen if isinstance(one.body, (Assign, Release))]


def test_what_an_anchor_has_taken_from_another_is_adopted_when_its_node_comes(
    roamed: Bench,
) -> None:
    """It had the generation before as well, which we have begun nothing of."""
    for generation, first in ((1, 33), (2, 1033)):
        granted = grant("n1", generation=generation, first=first, current_node="n1")
        says(roamed, AT_B, granted)
    roamed.born("n1", holdings=(NEXT,))
    roamed.passes(2000, "n1")
    assert places(roamed) == [("n1", NEXT.epoch)]
    assert not [one for one in roamed.seen if isinstance(one.body, (Assign, Release))]


def test_what_a_node_comes_with_of_the_next_generation_gives_way_to_nothing_of_the_one_before(
    roamed: Bench,
) -> None:
    """It ran the one before here, and its first anchor has not heard that another one has it."""
    roamed.born("n1")
    says(roamed, AT_A, grant("n1", first=33))
    roamed.ready("n1", 33)
    roamed.seen.clear()
    roamed.born("n1", holdings=(NEXT,))
    roamed.passes(2000, "n1")
    says(roamed, AT_A, grant("n1", first=65, current_node="n1", current_epoch=33))
    says(roamed, AT_B, grant("n1", generation=2, first=1033, current_node="n1"))
    current = roamed.ts.table.tasks["svc.a"].current
    assert current is not None
    assert (current.node, current.epoch) == ("n1", NEXT.epoch)
    told_node = [one.body for one in roamed.seen if one.to == ToNode("n1")]
    assert not [one for one in told_node if isinstance(one, Assign)]
    assert {one.epoch for one in told_node if isinstance(one, Release)} == {33}


def test_what_nobody_grants_of_a_generation_gives_way_to_what_is_granted(roamed: Bench) -> None:
    """Stores that were lost begin anew, and nodes remember."""
    before = grant("n1", first=33, current_node="n1", current_epoch=1)
    roamed.born("n1", holdings=(NEXT,))
    says(roamed, AT_A, before)
    assert not roamed.ts.table.tasks
    roamed.passes(OVERTAKEN_MS, "n1")
    output = says(roamed, AT_A, before)
    assert [one.epoch for one in told(output, "n1", Release)] == [1001]


def test_where_a_task_is_tells_who_has_ordered_it_last(roamed: Bench) -> None:
    def served(generation: int, epoch: int, *, over: bool = False) -> Elsewhere:
        spec = task_spec("svc.a")
        return Elsewhere(spec, "svc", generation, ("svc.a",), (), "n9", epoch, "east", over=over)

    away = roamed.ts.table.away
    says(roamed, AT_A, served(1, 1))
    says(roamed, AT_B, served(2, 1001))
    says(roamed, AT_A, served(1, 2), served(1, 2, over=True))
    assert (away["svc.a"].anchor, away["svc.a"].copy.epoch) == (AT_B, 1001)
    says(roamed, AT_B, served(2, 1001, over=True))
    assert not away


def test_what_the_next_anchor_has_had_begun_is_known_although_the_first_one_granted_first(
    roamed: Bench,
) -> None:
    """The scheduler has begun anew, and the word to leave has not come to the first one yet."""
    says(roamed, AT_A, grant("n1", first=33, current_node="n1", current_epoch=1))
    says(roamed, AT_B, grant("n1", generation=2, first=1033, current_node="n1"))
    roamed.born("n1", holdings=(NEXT,))
    current = roamed.ts.table.tasks["svc.a"].current
    assert current is not None
    assert current.epoch == NEXT.epoch
    assert not [one for one in roamed.seen if isinstance(one.body, (Assign, Release))]


def test_a_newer_generation_that_has_not_come_is_let_go_beside_the_one_before(
    roamed: Bench,
) -> None:
    """Its anchor would wait for us for ever; the older one serves until its own anchor ends it."""
    says(roamed, AT_A, grant("n1", first=33, current_node="n1"))
    revoke = EnvelopeRevoke("svc.a", 2, "", transferred=True, node="n1", leased=1064)
    output = says(roamed, AT_B, revoke)
    assert [(one.generation, one.leased) for one in said(output, Relinquished)] == [(2, 1064)]
    assert roamed.ts.table.tasks["svc.a"].anchor == AT_A
    older = structs.replace(revoke, generation=1, leased=64)
    assert not said(says(roamed, AT_B, older), Relinquished), "of another one, as old: no answer"


def test_a_grant_of_before_takes_nothing_back_of_where_a_task_is_served_since(
    roamed: Bench,
) -> None:
    """NAMO has had another anchor order it, and the first one begins anew before it hears."""
    served = Elsewhere(
        *(task_spec("svc.a"), "svc", 2, ("svc.a",), (Edge("y", "a", "x"),)),
        *("n9", 1001, "east"),
    )
    revoke = EnvelopeRevoke("svc.a", 1, "the service has another anchor")
    says(roamed, AT_A, grant("n1", first=33))
    says(roamed, AT_B, served)
    says(roamed, AT_A, grant("n1", first=65), revoke)
    assert places(roamed) == [("n9", 1001)]
    # Its own anchor says who has it, and so does whoever grants it after that.
    says(roamed, AT_A, grant("n1", generation=3, first=2001))
    assert not roamed.ts.table.away


def test_what_is_served_elsewhere_since_is_found_although_its_first_anchor_is_silent(
    roamed: Bench,
) -> None:
    """Its node has left, and whoever could take back what was granted before is not there."""
    served = Elsewhere(
        *(task_spec("svc.a"), "svc", 2, ("svc.a",), (Edge("y", "a", "x"),)),
        *("n9", 1001, "east"),
    )
    roamed.born("n1")
    says(roamed, AT_A, grant("n1", first=33))
    roamed.ready("n1", 33)
    says(roamed, AT_B, served)
    assert places(roamed) == [("n1", 33)], "it still serves here"
    roamed.node("n1", Death("moved", orderly=True, moved_to="east"))
    assert places(roamed) == [("n9", 1001)]
    says(roamed, AT_B, structs.replace(served, generation=1, epoch=5))
    assert places(roamed) == [("n1", 33)], "that was before what is granted here"


@pytest.mark.parametrize("born_first", [False, True])
@pytest.mark.parametrize("elsewhere", [(), (AT_A,)])
def test_what_was_begun_elsewhere_while_an_anchor_was_not_heard_is_not_ended(
    elsewhere: tuple[str, ...], born_first: bool
) -> None:
    """Without leave we have waited, and the anchor has given the task to another scheduler."""
    bench = Bench(anchors=(AT_A,), elsewhere=elsewhere)
    says(bench, AT_A, AnchorWelcome(AT_A, 1, 0, roaming=True))
    if not born_first:
        says(bench, AT_A, grant("n1", first=33, current_node="n1"))
    bench.born("n1", holdings=(Holding("svc.a", 97, READY, 1),))
    if born_first:
        # It has been long on its way.
        says(bench, AT_A, grant("n1", first=33, current_node="n1"))
    released = [one for one in bench.seen if isinstance(one.body, Release)]
    if not elsewhere:
        assert released, "with leave nobody else can have begun it"
        return
    assert not released
    assert said(bench.passes(2 * GRANT_MS, "n1"), SchedulerHello), "it is to say whose it is"
    says(bench, AT_A, grant("n1", first=129, current_node="n1", current_epoch=97))
    current = bench.ts.table.tasks["svc.a"].current
    assert current is not None
    assert current.epoch == 97
    assert not [one for one in bench.seen if isinstance(one.body, (Assign, Release))]
