"""Nodes that feed services and go to other cells: who tells them, and what is brought to them."""

from cells_bench import CellsBench
from msgspec import structs
from tests_support import INVENTORY

from controller.decider import ToNode
from controller.host.relay import FOLLOWED_MS, Relay
from controller.scheduler.decider import Scheduler
from controller.scheduler.feeds import LINGER_MS
from protocols.manifest import Dtype
from protocols.messages import Feed
from protocols.messages.hierarchy import NodeState
from protocols.messages.quality import Sink, SinkKind, Source, SourceKind
from protocols.topics import Channel, Party, build

CAMERA = Source("x", SourceKind.SENSOR, "camera", Dtype.UINT8, (-1,), rate_per_s=10.0)
TOPIC = Source("x", SourceKind.TOPIC, "other.y", Dtype.UINT8, (-1,), rate_per_s=10.0)
SINKS = (Sink("y", SinkKind.TOPIC),)
SEES = structs.replace(INVENTORY, sensors=("camera",))


def fed(source: Source = CAMERA) -> CellsBench:
    """Return cells with a service on `n`, fed by `m`, or by `n` itself."""
    bench = CellsBench("a", "b")
    bench.inventories = {"m": SEES, "k": SEES}
    for node in ("n", "m", "k"):
        bench.born(node, "a")
    bench.passes(500, "n", "m", "k")
    bench.order("a", spares=0, specs={"nodes": ("n",)}, sources=(source,), sinks=SINKS)
    bench.passes(2500, "n", "m", "k")
    assert bench.task().node == "n"
    return bench


def feeds(bench: CellsBench, node: str, cell: str = "a") -> list[Feed]:
    return bench.told_at(cell, node, Feed)


def pair(bench: CellsBench) -> tuple[str, str]:
    """Return the node that feeds the service, and the one that could."""
    return ("k", "m") if any(one.sources for one in feeds(bench, "k")) else ("m", "k")


def follows(bench: CellsBench, cell: str) -> frozenset[tuple[str, Channel]]:
    return frozenset(bench.follows.get(f"ts-{cell}", ()))


def test_a_camera_that_goes_to_another_cell_feeds_its_service_from_there() -> None:
    bench = fed()
    feeder, other = pair(bench)
    bench.goes(feeder, "b")
    bench.passes(LINGER_MS + 2000, "n", "m", "k")
    said = feeds(bench, feeder, "b")
    assert said, "the scheduler of its cell tells it"
    assert all(one.sources and one.plan is not None for one in said), "never told to end"
    assert [step.cell for step in said[-1].plan.steps] == ["a"]
    assert (said[-1].sources[0].nodes, said[-1].sinks) == ((feeder,), SINKS)
    assert not any(one.sources for one in feeds(bench, other)), "one alone feeds it"
    before = len(feeds(bench, feeder))
    bench.goes(feeder, "a")
    bench.passes(LINGER_MS + 2000, "n", "m", "k")
    said = feeds(bench, feeder)[before:]
    assert all(one.sources for one in said)
    assert [step.cell for step in said[-1].plan.steps] == [""]


def test_another_camera_feeds_it_when_the_one_that_has_gone_is_lost() -> None:
    bench = fed()
    feeder, other = pair(bench)
    bench.goes(feeder, "b")
    bench.passes(2000, "n", "m", "k")
    bench.start("ts-a")
    for node in ("n", other):
        bench.born(node, "a")
    bench.passes(3000, "n", "m", "k")
    assert not any(one.sources for one in feeds(bench, other)), "its scheduler begins anew"
    bench.passes(40_000, "n", other)
    assert feeds(bench, other)[-1].sources


def test_what_nobody_here_knows_of_is_ended_after_a_while_and_not_at_once() -> None:
    bench = fed()
    feeder, _ = pair(bench)
    bench.cut.add("ta")
    bench.goes(feeder, "b")
    bench.passes(LINGER_MS - 1000, "n", "m", "k")
    assert not feeds(bench, feeder, "b")
    bench.passes(3000, "n", "m", "k")
    assert [one.sources for one in feeds(bench, feeder, "b")][:1] == [()]


def test_what_a_source_names_is_brought_to_the_cell_of_its_node() -> None:
    bench = fed(TOPIC)
    assert follows(bench, "a") == {("other", Channel.OUTPUT)}
    bench.goes("n", "b")
    bench.passes(2000, "n")
    assert feeds(bench, "n", "b")[-1].sources
    assert follows(bench, "b") == {("other", Channel.OUTPUT)}
    assert not follows(bench, "a")


def test_a_gateway_brings_what_was_said_in_another_cell_and_nothing_twice() -> None:
    relay = Relay("a")
    relay.reach(("a", "b"))
    relay.follow([("s", Channel.OUTPUT), ("s", Channel.REQUEST)], 0)
    there = build("b", Party.SERVICE, "s", Channel.OUTPUT)
    assert relay.filters_at("b") == [str(there)]
    assert relay.brings(there, "b")
    brought = build("c", Party.SERVICE, "s", Channel.OUTPUT)
    assert not relay.brings(brought, "b"), "b has it from c, from where it comes here as well"
    assert not relay.brings(build("b", Party.SERVICE, "t", Channel.OUTPUT), "b")
    relay.follow((), 500)
    assert relay.brings(there, "b"), "its nodes may be between two cells"
    assert relay.due_ms == 500 + FOLLOWED_MS
    assert relay.expire(relay.due_ms)
    assert not relay.brings(there, "b")


def test_a_cell_that_a_node_has_left_does_not_end_what_it_feeds() -> None:
    bench = fed(TOPIC)
    for here, there in ("ab", "ba", "ab"):
        before = len(bench.seen)
        bench.leaves("n", there)
        bench.passes(500, "m", "k")
        assert bench.feeds["n"], f"{here} leaves it to the scheduler of the next cell"
        bench.moves("n", there, attached=False)
        bench.passes(4000, "n", "m", "k")
        said = [
            (by, one.body)
            for by, one in bench.seen[before:]
            if isinstance(one.body, Feed) and one.to == ToNode("n")
        ]
        assert said
        assert all(by == f"ts-{there}" and one.sources for by, one in said), "not even in between"


def test_an_end_that_was_told_in_an_earlier_stay_is_not_told_again() -> None:
    bench = fed(TOPIC)
    bench.passes(10_000, "m", "k")
    bench.moves("n", "b", attached=False)
    bench.passes(4000, "n", "m", "k")
    assert bench.feeds["n"]
    before = len(feeds(bench, "n"))
    bench.cut.add("ta")
    bench.leaves("n", "a")
    bench.moves("n", "a", attached=False)
    bench.passes(3000, "n", "m", "k")
    assert not feeds(bench, "n")[before:], "the anchor has not said yet whose it is"


def test_who_is_silent_for_a_moment_feeds_on_while_nobody_could_take_its_place() -> None:
    bench = fed(TOPIC)
    before = len(feeds(bench, "n"))
    bench.passes(2100, "m", "k")
    scheduler = bench.roles["ts-a"]
    assert isinstance(scheduler, Scheduler)
    assert scheduler.nodes.state("n") is NodeState.SUSPECT
    bench.passes(1000, "n", "m", "k")
    assert all(one.sources for one in feeds(bench, "n")[before:])
