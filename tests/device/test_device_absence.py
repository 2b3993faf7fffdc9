"""What a node asks for that was attached nowhere, and what it does with what it is handed."""

from typing import Any

import pytest
from device_cells import Roamer
from device_harness import NODE, SimNode, assign, chain, manifest, of, tensor
from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.absence import AGAIN_MAX, ANSWER_MS, DOUBT_MS, LATE_MS, WAYS
from device_agent.core.feeder import UNDER_WAY_MAX
from protocols.manifest import Dtype
from protocols.messages import CatchUp, Feed, LinkReport, Missed, Result
from protocols.messages.mobility import MAX_FOLLOWED, Followed
from protocols.messages.quality import MAX_SOURCES, Source, SourceKind
from protocols.topics import Channel

OTHER = Source("x", SourceKind.TOPIC, "other.y", Dtype.UINT8, (-1,), rate_per_s=100.0)
FEED = Feed("s", 1, chain(("t", NODE, 1)), (OTHER,), budget_ms=5000)


def following(**changed: Any) -> SimNode:
    node = SimNode()
    node.join()
    node.hear(assign("t", of=manifest(queue=64)))
    node.hear(structs.replace(FEED, **changed))
    return node


def missed(name: str, age_ms: float = 0.0) -> Missed:
    value = tensor(name.encode())
    return Missed("other", Channel.OUTPUT, "n2", name, 1, 0, {"y": value}, age_ms)


def of_cell(cell: str) -> events.Received:
    body = structs.replace(missed("v1"), cell=cell)
    return events.Received(Channel.MISSED, f"ts-{cell}", 1, 0, "default", "c", body)


def handed(node: SimNode, *names: str, age_ms: float = 1000.0) -> None:
    """Hand a node values that were published 20 ms after each other."""
    for number, name in enumerate(names):
        node.hear(missed(name, age_ms - 20 * number), Channel.MISSED)


def published(node: SimNode, name: str) -> None:
    body = Result(name, 1, {"y": tensor(name.encode())})
    node.tell(events.Published("other", Channel.OUTPUT, body, sender="n2"))


def run(node: SimNode) -> list[str]:
    """Answer everything; return what the feed has asked for, in order."""
    asked: list[str] = []
    while node.calls:
        for call, one in list(node.calls.items()):
            asked.append(one.inputs["x"].data.decode())  # type: ignore[union-attr]
            node.answer(call)
    return asked


def asks(said: list[commands.Command]) -> list[tuple[str, CatchUp]]:
    found = [one for one in said if isinstance(one, commands.Say)]
    return [(one.cell, one.body) for one in found if isinstance(one.body, CatchUp)]


def back(node: SimNode, reason: str = "the broker closed it") -> list[tuple[str, CatchUp]]:
    """Lose the connection for two seconds; return what the node asks for when it is back."""
    node.tell(events.Disconnected(reason))
    node.after(2000)
    before = len(node.said)
    node.join()
    return asks(node.said[before:])


def test_a_node_that_is_back_asks_for_what_it_follows_since_it_may_have_been_cut_off() -> None:
    node = following()
    wanted = CatchUp("cell", 2000.0 + DOUBT_MS, (Followed("other", Channel.OUTPUT),))
    assert back(node) == [("cell", wanted)]
    assert not asks(node.hear(structs.replace(FEED, number=2))), "once"


def test_a_node_far_from_its_broker_asks_for_more() -> None:
    node = following()
    link = LinkReport(1, "wwan0", "cellular", carrier=True, round_trip_ms=400.0)
    node.tell(events.LinkSampled(link))
    ((_, asked),) = back(node)
    assert asked.apart_ms == 2000 + DOUBT_MS + WAYS * 400


def test_what_a_short_stay_may_not_have_got_is_asked_for_again() -> None:
    node = following()
    back(node)
    node.after(LATE_MS - 1)
    ((_, asked),) = back(node)
    assert asked.apart_ms == 2000 + LATE_MS - 1 + 2000 + DOUBT_MS
    node.after(LATE_MS + DOUBT_MS)
    ((_, asked),) = back(node)
    assert asked.apart_ms == 2000 + DOUBT_MS


def test_a_feed_that_is_told_anew_after_a_move_is_asked_for_as_well() -> None:
    node = following()
    node.hear(structs.replace(FEED, number=2, sources=()))
    assert back(node) == []
    node.after(500)
    ((cell, asked),) = asks(node.hear(structs.replace(FEED, number=3)))
    assert (cell, asked.apart_ms) == ("cell", 2500.0 + DOUBT_MS)
    node.after(10_000)
    other = structs.replace(OTHER, name="third.y")
    assert not asks(node.hear(structs.replace(FEED, number=4, sources=(other,))))


def test_a_cell_of_which_nothing_comes_is_asked_again_a_few_times() -> None:
    node = following()
    (first,) = back(node)
    for count in range(1, AGAIN_MAX + 1):
        assert not asks(node.after(ANSWER_MS - 1))
        ((cell, asked),) = asks(node.after(1))
        assert (cell, asked.topics) == (first[0], first[1].topics)
        assert asked.apart_ms == first[1].apart_ms + count * ANSWER_MS, "since the same time"
    assert not asks(node.after(10 * ANSWER_MS))


@pytest.mark.parametrize("cell", ["cell", ""])
def test_a_cell_of_which_something_comes_has_the_question(cell: str) -> None:
    node = following()
    back(node)
    node.hear(structs.replace(missed("v1"), cell=cell), Channel.MISSED)
    assert not asks(node.after(ANSWER_MS))


def test_only_the_cell_is_asked_again_of_which_nothing_comes() -> None:
    node = between_two_cells()
    node.cells["a"].reachable = False
    node.after(ANSWER_MS)
    said = node.core.handle(of_cell("a"), node.now_ms)
    before = len(node.said)
    node.after(ANSWER_MS)
    assert not asks(said)
    assert [cell for cell, _ in asks(node.said[before:])] == ["b"]


def test_nothing_is_asked_again_by_who_is_attached_nowhere() -> None:
    node = following()
    back(node)
    node.tell(events.Disconnected("the broker closed it"))
    assert not asks(node.after(ANSWER_MS))
    node.after(ANSWER_MS)
    before = len(node.said)
    node.join()
    ((_, asked),) = asks(node.said[before:])
    assert asked.apart_ms == 2000 + DOUBT_MS + 2 * ANSWER_MS, "then for both times"


@pytest.mark.parametrize("heard", [False, True])
def test_who_leaves_before_a_cell_has_answered_asks_for_the_time_before_as_well(
    heard: bool,
) -> None:
    node = Roamer(radios=1)
    node.join()
    node.hear("a", FEED)
    node.command("b")
    node.go()
    ((_, first),) = asks(node.said)
    if heard:
        node.tell(of_cell("a"))
    came_ms, before = node.now_ms, len(node.said)
    node.after(LATE_MS + ANSWER_MS / 2)
    assert bool(asks(node.said[before:])) is not heard
    before = len(node.said)
    node.command("c")
    node.go()
    asked = {body.apart_ms for _, body in asks(node.said[before:])}
    stayed_ms = node.now_ms - came_ms
    if heard:
        assert max(asked) < stayed_ms
    else:
        assert asked == {first.apart_ms + stayed_ms}


def test_more_than_one_message_holds_is_asked_for_in_several() -> None:
    node = SimNode()
    node.join()
    node.hear(assign("t", of=manifest(queue=64)))
    for feed in range(MAX_FOLLOWED // MAX_SOURCES + 1):
        sources = tuple(
            structs.replace(OTHER, input=f"x{one}", name=f"other-{feed}-{one}.y")
            for one in range(MAX_SOURCES)
        )
        node.hear(structs.replace(FEED, service=f"s{feed}", sources=sources))
    asked = [body for _, body in back(node)]
    assert [len(one.topics) for one in asked] == [MAX_FOLLOWED, MAX_SOURCES]
    topics = {(one.service, one.channel) for body in asked for one in body.topics}
    assert topics == node.core.feeder.followed.keys()


def test_who_was_never_away_or_follows_nothing_asks_for_nothing() -> None:
    node = SimNode()
    node.connect()
    node.welcome()
    assert not asks(node.said)
    assert back(node) == []
    camera = structs.replace(OTHER, kind=SourceKind.SENSOR, name="camera")
    assert back(following(sources=(camera,))) == []


def test_what_was_missed_is_used_in_order_and_each_once() -> None:
    node = following()
    published(node, "v1")
    back(node)
    handed(node, "v1", "v2", "v3")
    handed(node, "v3", "v4", age_ms=960.0)
    assert run(node) == ["v1", "v2", "v3", "v4"]
    assert node.core.counts["missed"] == 3
    assert node.core.counts["feed twice"] == 2


def test_more_than_may_be_under_way_waits_and_newer_values_wait_behind_it() -> None:
    node = following()
    names = [f"v{number}" for number in range(2 * UNDER_WAY_MAX)]
    handed(node, *names)
    published(node, "new")
    node.after(20)
    published(node, "newer")
    assert run(node) == [*names, "new", "newer"]
    assert not node.core.counts["feed replaced"]


def test_what_was_missed_goes_before_the_newest_and_does_not_pass_for_it() -> None:
    other = structs.replace(OTHER, input="z", name="third.y")
    node = following(sources=(OTHER, other))
    third = Result("z1", 1, {"y": tensor(b"z")})
    node.tell(events.Published("third", Channel.OUTPUT, third, sender="n3"))
    published(node, "new")
    handed(node, "old")
    assert run(node) == ["new", "old"]
    again = structs.replace(third, request="z2")
    node.after(20)
    node.tell(events.Published("third", Channel.OUTPUT, again, sender="n3"))
    assert run(node) == ["new"]


def test_what_is_older_than_the_feeds_budget_is_dropped_and_counted() -> None:
    node = following()
    handed(node, "old", age_ms=FEED.budget_ms + 1.0)
    handed(node, "young")
    assert run(node) == ["young"]
    assert node.core.counts["kept dropped"] == 1


def test_what_was_missed_is_thinned_by_when_it_was_published() -> None:
    node = following()
    source = structs.replace(OTHER, rate_per_s=2.0)
    node.hear(structs.replace(FEED, number=2, sources=(source,)))
    for number in range(8):
        node.hear(missed(f"v{number}", 2000.0 - 250 * number), Channel.MISSED)
    assert run(node) == ["v0", "v1", "v2", "v3", "v5", "v7"], "some may come bunched"
    assert node.core.counts["feed thinned"] == 2


def test_what_two_gateways_hand_on_at_the_pace_is_taken_in_whatever_order_it_comes() -> None:
    source = structs.replace(OTHER, rate_per_s=10.0)
    node = following(sources=(source,))
    for first in (40, 0, 20):
        for number in range(first, first + 20):
            node.hear(missed(f"v{number}", 8000.0 - 100 * number), Channel.MISSED)
    run(node)
    assert node.core.counts["feed thinned"] == 0
    assert node.core.counts["missed"] == 60


def test_what_the_node_does_not_follow_is_not_taken() -> None:
    node = following()
    node.hear(structs.replace(missed("v1"), service="third"), Channel.MISSED)
    assert not node.calls
    assert node.core.counts["foreign message"] == 1


def test_the_report_of_the_link_says_how_many_there_were() -> None:
    node = following()
    handed(node, "v1", "v2")
    said = node.tell(events.LinkSampled(LinkReport(1, "eth0", "wired", carrier=True)))
    assert [one.missed for one in of(LinkReport, said)] == [2]


def test_the_report_of_the_link_says_what_feeds_left_out_and_replaced() -> None:
    node = following()
    for number in range(UNDER_WAY_MAX + 3):
        node.after(20)
        published(node, f"v{number}")
    node.hear(structs.replace(FEED, number=2, sources=(structs.replace(OTHER, rate_per_s=0.0),)))
    published(node, "more")
    said = node.tell(events.LinkSampled(LinkReport(1, "eth0", "wired", carrier=True)))
    told = [(one.feed_thinned, one.feed_replaced) for one in of(LinkReport, said)]
    assert told == [(1, 2)]


def test_the_report_of_the_link_says_what_the_broker_has_refused() -> None:
    node = following()
    for text in ("status: not authorized (code 0x87)", "load: quota exceeded (code 0x97)"):
        assert not node.tell(events.PublishRefused(text))
    said = node.tell(events.LinkSampled(LinkReport(1, "eth0", "wired", carrier=True)))
    told = [one.refused for one in of(LinkReport, said)]
    assert told == ["load: quota exceeded (code 0x97), 2 refused in all"]


def test_what_the_cell_before_says_of_a_feed_after_the_farewell_does_not_count() -> None:
    alone = Roamer(radios=1)
    alone.join()
    alone.hear("a", structs.replace(FEED, number=7))
    alone.command("b")
    end = Feed("s", 8)
    alone.tell(events.Received(Channel.COMMAND, "ts-a", 1, 0, "default", "c", end, cell="a"))
    alone.go()
    (asked,) = of(CatchUp, alone.said)
    assert [one.service for one in asked.topics] == ["other"]
    assert not of(commands.Unfollow, alone.said)
    alone.hear("b", Feed("s", 1))
    assert of(commands.Unfollow, alone.said), "the cell that serves ends it"


def between_two_cells() -> Roamer:
    """Return a node that is served by `b`, still attached to `a`, and then loses `b`."""
    node = Roamer()
    node.join()
    node.hear("a", FEED)
    node.command("b")
    node.go()
    assert set(node.sessions) == {"a", "b"}
    node.after(1000)
    node.cut("b")
    return node


def test_a_cell_that_is_lost_while_another_one_is_left_is_asked_and_so_is_that_one() -> None:
    node = between_two_cells()
    before = len(node.said)
    node.cells["a"].reachable = False
    node.after(3000)
    assert node.serving == "c"
    asked = asks(node.said[before:])
    assert [cell for cell, _ in asked] == ["a", "b"] * 2, "both again, for neither says anything"
    assert all(body.apart_ms >= DOUBT_MS for _, body in asked)


def test_who_has_left_one_cell_and_lost_the_other_keeps_what_it_says() -> None:
    node = between_two_cells()
    for one in node.cells.values():
        one.reachable = False
    assert node.core.feeder.sinks.online, "it is attached where it came from"
    node.after(3000)
    assert not any(node.sessions.values())
    assert not node.core.feeder.sinks.online


def test_a_cell_that_is_lost_while_it_is_left_is_asked_for_what_it_did_not_bring() -> None:
    node = Roamer()
    node.join()
    node.hear("a", FEED)
    node.command("b")
    node.go()
    before = len(node.said)
    node.cut("a")
    ((cell, asked),) = asks(node.said[before:])
    assert (cell, asked.cell, asked.apart_ms) == ("a", "b", DOUBT_MS)
