"""Feeds: which node provides a source, what it is told, and when it is told again."""

import pytest
from quality_bench import envelope
from scheduler_bench import Bench, drain, said, told
from tests_support import INVENTORY

from controller.decider import Output, Received
from controller.scheduler.feeds import REPEATS
from controller.scheduler.settings import EPOCH_SHIFT
from protocols.manifest import Dtype
from protocols.messages import (
    AnchorWelcome,
    Assign,
    Birth,
    Death,
    EnvelopeRevoke,
    Feed,
    LoadReport,
)
from protocols.messages.presence import Feeding
from protocols.messages.quality import Leeway, Sink, SinkKind, Source, SourceKind
from protocols.qoais import Bound, Sla, Zone


def source(*nodes: str, kind: SourceKind = SourceKind.SENSOR) -> Source:
    return Source("x", kind, "camera", Dtype.UINT8, (8,), nodes, 20.0)


def fed(bench: Bench, *sources: Source, **changes: object) -> Output:
    """Grant a service with these sources and make it ready on the first node."""
    grant = envelope("n1", sources=sources, **changes)  # type: ignore[arg-type]
    output = bench.anchor(grant)
    output.extend(bench.ready("n1", 1))
    return output


def test_the_node_of_a_source_is_told_the_plan(bench: Bench) -> None:
    sinks = (Sink("y", SinkKind.TOPIC),)
    sla = Sla(Zone((Bound("latency_ms", at_most=300.0),)))
    feeds = told(fed(bench, source("n2", "n3"), sinks=sinks, sla=sla), "n2", Feed)
    assert feeds[0].plan is None, "nobody serves yet"
    assert feeds[-1].plan is not None
    assert feeds[-1].sources[0].name == "camera"
    assert feeds[-1].sinks == sinks
    assert feeds[-1].budget_ms == 1500
    assert feeds[-1].number > feeds[0].number
    others = told(Output(sends=bench.seen), "n3", Feed)
    assert [one.sources for one in others] == [()], "an earlier scheduler may have chosen it"


def test_a_feed_is_repeated_a_few_times_and_at_every_birth(bench: Bench) -> None:
    [*_, last] = told(fed(bench, source("n2")), "n2", Feed)
    repeats = told(bench.passes(10_000, "n1", "n2", "n3"), "n2", Feed)
    assert [one.number for one in repeats] == [last.number] * 2
    bench.born("n2")
    again = told(bench.passes(200, "n1", "n2", "n3"), "n2", Feed)
    assert [one.number for one in again] == [last.number]


def test_another_node_provides_when_the_first_is_gone_and_keeps_it(bench: Bench) -> None:
    fed(bench, source("n2", "n3"))
    output = bench.node("n2", Death("bye", orderly=True))
    assert told(output, "n3", Feed)[-1].sources
    output = bench.born("n2")
    output.extend(bench.passes(400, "n1", "n2", "n3"))
    stopped = told(output, "n2", Feed)
    assert all(not one.sources for one in stopped), "it is not taken back"
    assert not any(not one.sources for one in told(output, "n3", Feed))


def test_a_drained_node_provides_no_more(bench: Bench) -> None:
    fed(bench, source("n2", "n3"))
    output = drain(bench, "n2")
    assert told(output, "n3", Feed)[-1].sources
    assert told(output, "n2", Feed)[-1].sources == ()


def test_without_named_nodes_one_of_the_envelope_that_has_it_provides(bench: Bench) -> None:
    inventory = INVENTORY.__class__(
        **{name: getattr(INVENTORY, name) for name in INVENTORY.__struct_fields__}
        | {"sensors": ("camera",)}
    )
    bench.incarnations["n1"] += 1
    bench.node("n1", Birth("1", "boot", inventory))
    assert told(fed(bench, source()), "n1", Feed)[-1].sources


def test_a_service_that_is_over_is_fed_no_longer(bench: Bench) -> None:
    fed(bench, source("n2"))
    output = bench.anchor(EnvelopeRevoke("svc.a", 1, "over"))
    assert told(output, "n2", Feed)[-1].sources == ()
    bench.passes(10_000, "n1", "n2", "n3")
    assert not said(bench.passes(40_000, "n1", "n2", "n3"), Feed)


def test_a_narrower_envelope_takes_a_reduction_back(bench: Bench) -> None:
    leeway = Leeway(rate_min_per_s=5.0)
    fed(bench, source("n2"), leeway=leeway)
    feeds = bench.ts.feeds
    feeds.set_data("svc", feeds.data("svc").__class__(rate_per_s=5.0))
    assert told(bench.passes(200, "n1"), "n2", Feed)[-1].rate_per_s == 5.0
    grant = envelope("n1", sources=(source("n2"),), first=300, last=400)
    assert told(bench.anchor(grant), "n2", Feed)[-1].rate_per_s == 0.0


def test_a_node_that_was_away_hears_that_it_feeds_no_longer(bench: Bench) -> None:
    fed(bench, source("n2", "n3"))
    bench.passes(6000, "n1", "n3")
    assert not told(bench.passes(60_000, "n1", "n3"), "n2", Feed), "it is lost"
    output = bench.born("n2")
    output.extend(bench.passes(400, "n1", "n2", "n3"))
    assert [one.sources for one in told(output, "n2", Feed)] == [()]


def test_a_node_that_was_away_hears_that_the_service_is_over(bench: Bench) -> None:
    fed(bench, source("n2"))
    bench.passes(3000, "n1", "n3")
    bench.anchor(EnvelopeRevoke("svc.a", 1))
    bench.passes(60_000, "n1", "n3")
    output = bench.born("n2")
    output.extend(bench.passes(400, "n1", "n2", "n3"))
    assert [one.sources for one in told(output, "n2", Feed)] == [()]


def test_raw_input_that_may_not_leave_its_node_is_fed_where_the_task_runs(bench: Bench) -> None:
    sla = Sla(Zone((Bound("data_privacy", level="node"),)))
    bench.anchor(envelope("n1", "n2", sources=(source("n2", "n1"),), sla=sla))
    output = bench.ready("n1", 1)
    assert told(output, "n1", Feed)[-1].plan is not None
    assert not any(one.sources for one in told(Output(sends=bench.seen), "n2", Feed))
    output = drain(bench, "n1")
    assert not any(one.sources for one in told(output, "n2", Feed)), "the task is still on n1"
    output = bench.ready("n2", 2)
    assert told(output, "n2", Feed)[-1].sources
    assert not told(Output(sends=bench.seen), "n1", Feed)[-1].sources


# Sinks.

SINKS = (Sink("y", SinkKind.TOPIC),)


def test_a_service_that_only_clients_ask_tells_its_last_node_of_its_sinks(bench: Bench) -> None:
    output = bench.anchor(envelope("n1", "n2", sinks=SINKS))
    [feed] = told(output, "n1", Feed)
    assert (feed.sinks, feed.sources, feed.plan) == (SINKS, (), None), "before it is ready"
    output = bench.ready("n1", 1)
    output.extend(bench.passes(100_000, "n1", "n2", "n3"))
    refreshed = told(output, "n1", Feed)
    assert len(refreshed) >= 5, "it is said now and then for ever"
    assert {(one.number, one.sinks) for one in refreshed} == {(feed.number, SINKS)}
    assert not told(Output(sends=bench.seen), "n2", Feed)


def test_sinks_follow_the_task_and_stay_a_while_where_it_was(bench: Bench) -> None:
    bench.anchor(envelope("n1", "n2", sinks=SINKS))
    bench.ready("n1", 1)
    bench.node("n2", LoadReport(1, 10.0))
    output = bench.lasts("n1", LoadReport(1, 97.0))
    assert told(output, "n2", Assign)
    assert told(output, "n2", Feed)[-1].sinks == SINKS, "before the first request comes"
    output = bench.ready("n2", 2)
    output.extend(bench.passes(8000, "n1", "n2", "n3"))
    assert not [one for one in told(output, "n1", Feed) if not one.sinks], "what runs may end"
    output = bench.passes(4000, "n1", "n2", "n3")
    assert told(output, "n1", Feed)[0].sinks == ()
    assert not told(bench.passes(60_000, "n1", "n2", "n3"), "n1", Feed)[3:], "and no more"


def test_a_node_that_has_the_last_task_and_a_source_is_told_both_in_one(bench: Bench) -> None:
    output = fed(bench, source("n1"), sinks=SINKS)
    last = told(output, "n1", Feed)[-1]
    assert last.sinks == SINKS
    assert last.sources
    assert last.plan is not None


def test_the_sinks_of_a_service_that_is_over_end(bench: Bench) -> None:
    bench.anchor(envelope("n1", sinks=SINKS))
    bench.ready("n1", 1)
    output = bench.anchor(EnvelopeRevoke("svc.a", 1, "over"))
    assert [one.sinks for one in told(output, "n1", Feed)] == [()]
    assert not said(bench.passes(60_000, "n1", "n2", "n3"), Feed)[REPEATS:]


# What nodes say that they feed.

WIDE = Leeway(rate_min_per_s=2.0, decimations=(2,), functions=("changes",))
BEFORE = 1 << EPOCH_SHIFT
"""The first number of a scheduler that has gone."""
REDUCED = Feeding("svc", BEFORE + 3, 5.0, 2, "changes")


def again(*order: str, leeway: Leeway = WIDE, feeding: Feeding = REDUCED) -> Output:
    """Start a scheduler anew that hears a birth, a grant and the welcome in this order."""
    bench = Bench(epoch=2)
    grant = envelope("n1", leeway=leeway, sources=(source("n2"),), sinks=SINKS)
    steps = {
        "birth": lambda: bench.born("n2", feeds=(feeding,)),
        "grant": lambda: bench.anchor(grant),
        "welcome": lambda: bench.anchor(AnchorWelcome("ta-main", 2, 1)),
    }
    output = Output()
    for step in order:
        output.extend(steps[step]())
    output.extend(bench.born("n1"))
    output.extend(bench.passes(2000, "n1", "n2"))
    return output


@pytest.mark.parametrize(
    "order",
    [("birth", "grant", "welcome"), ("grant", "birth", "welcome"), ("grant", "welcome", "birth")],
)
def test_a_reduction_outlives_the_scheduler_that_chose_it(order: tuple[str, ...]) -> None:
    feeds = told(again(*order), "n2", Feed)
    assert {(one.rate_per_s, one.decimation, one.function) for one in feeds} == {
        (5.0, 2, "changes")
    }
    assert all(one.sources for one in feeds), "it was not told to end meanwhile"


def test_a_reduction_that_the_envelope_does_not_allow_is_taken_back() -> None:
    feeds = told(again("birth", "grant", "welcome", leeway=Leeway(rate_min_per_s=9.0)), "n2", Feed)
    assert {(one.rate_per_s, one.decimation, one.function) for one in feeds} == {(0.0, 1, "")}


@pytest.mark.parametrize("number", [0, (2 << EPOCH_SHIFT) + 5])
def test_what_this_scheduler_has_chosen_is_not_what_a_node_says(number: int) -> None:
    """A number of this life is no word of a life before; nor is the word of just any node."""
    bench = Bench(epoch=2)
    bench.anchor(AnchorWelcome("ta-main", 2, 1))
    bench.born("n1", "n2")
    fed(bench, source("n2"), leeway=WIDE)
    data = bench.ts.feeds.data("svc").__class__(rate_per_s=10.0)
    bench.ts.feeds.set_data("svc", data)
    slower = Feeding("svc", number or REDUCED.number, 5.0)
    bench.born("n2", feeds=(slower,))
    bench.born("n3", feeds=(slower,))
    assert bench.ts.feeds.data("svc") == data
    assert told(Output(sends=bench.seen), "n3", Feed)[-1].sources == ()


def test_a_feed_of_no_service_ends_when_every_anchor_has_granted() -> None:
    bench = Bench(epoch=2, anchors=("ta-a", "ta-b"))
    bench.born("n2", feeds=(Feeding("gone", 7),))
    for anchor in ("ta-a", "ta-b"):
        assert not said(Output(sends=bench.seen), Feed), "its envelope may still come"
        welcome = AnchorWelcome(anchor, 2, 0)
        bench.feed(Received(anchor, 0, 0, "default", "test", welcome))
    [end] = told(Output(sends=bench.seen), "n2", Feed)
    assert (end.service, end.sources, end.sinks) == ("gone", (), ())
    assert end.number > 7
    assert len(told(bench.passes(60_000, "n2"), "n2", Feed)) == REPEATS - 1


def test_a_feed_that_nobody_ended_ends_at_the_birth_of_its_node(bench: Bench) -> None:
    output = bench.born("n2", feeds=(Feeding("gone", 7),))
    assert [one.service for one in told(output, "n2", Feed)] == ["gone"]
    fed(bench, source("n3"))
    output = bench.born("n2", feeds=(Feeding("svc", 7),))
    assert [one.sources for one in told(output, "n2", Feed)] == [()], "another one provides"


def test_what_a_lost_node_fed_is_forgotten() -> None:
    bench = Bench(epoch=2)
    bench.born("n2", feeds=(Feeding("gone", 7),))
    bench.node("n2", Death("bye", orderly=True))
    bench.anchor(AnchorWelcome("ta-main", 2, 0))
    assert not said(Output(sends=bench.seen), Feed)
    assert not bench.ts.feeds._heard
