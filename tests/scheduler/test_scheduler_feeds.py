"""Feeds: which node provides a source, what it is told, and when it is told again."""

from quality_bench import envelope
from scheduler_bench import Bench, drain, said, told
from tests_support import INVENTORY

from controller.decider import Output
from protocols.manifest import Dtype
from protocols.messages import Birth, Death, EnvelopeRevoke, Feed
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
