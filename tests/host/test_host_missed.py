"""What was published lately: kept within bounds, handed to nodes that were attached nowhere."""

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from controller.host import missed
from controller.host.missed import (
    AGAIN_MS,
    HANDED_MAX,
    HANDED_MAX_BYTES,
    HANDED_MS,
    KEPT_MAX,
    KEPT_MAX_BYTES,
    KEPT_MS,
    LINGER_MS,
    OVERLAP_MS,
    TOTAL_MAX_BYTES,
    VALUE_BYTES,
    Late,
    Lately,
    _Ring,
)
from protocols.codec import VERSION, Frame
from protocols.manifest import Dtype
from protocols.messages import CatchUp, Invoke, Missed, Result
from protocols.messages.invocation import Tensor
from protocols.messages.mobility import Followed
from protocols.topics import MISSED_MAX_BYTES, Channel, Party, build

INPUT = build("a", Party.SERVICE, "s", Channel.INPUT)
OUTPUT = build("a", Party.SERVICE, "t", Channel.OUTPUT)
FOLLOWED = frozenset({("s", Channel.INPUT), ("t", Channel.OUTPUT)})
BOTH = Followed("s", Channel.INPUT), Followed("t", Channel.OUTPUT)


def frame(body: Invoke | Result) -> Frame:
    return Frame(VERSION, "app", 1, 0, "acme", "why", body)


def value(name: str, size: int = 1) -> Frame:
    return frame(Invoke(name, "s", 1000, {"x": Tensor(Dtype.UINT8, (size,), bytes(size))}))


def asks(apart_ms: float = 0, cell: str = "a") -> CatchUp:
    return CatchUp(cell, apart_ms, BOTH)


def asked(lately: Lately, node: str, body: CatchUp, now_ms: int) -> list[Late]:
    return lately.asked(node, body, FOLLOWED, now_ms)


def names(found: list[Late]) -> list[str]:
    return [one.body.request for one in found]


def test_what_a_node_has_missed_is_handed_on_in_order_as_it_was_published() -> None:
    lately = Lately("a")
    lately.keep(INPUT, value("old"), 0)
    lately.keep(INPUT, value("r1"), 2000)
    y = Tensor(Dtype.UINT8, (1,), b"y")
    lately.keep(OUTPUT, frame(Result("r2", 3, {"y": y}, part=1, parts=2)), 2100)
    lately.keep(INPUT, value("r3"), 2200)
    lately.keep(build("a", Party.SERVICE, "u", Channel.INPUT), value("r4"), 2300)
    found = asked(lately, "n", asks(500), 2500)
    assert names(found) == ["r1", "r2", "r3"]
    body = Missed("t", Channel.OUTPUT, "app", "r2", 3, 1, {"y": y}, 400, "a")
    assert found[1] == Late("n", "a", body, "why", "acme")
    assert lately.counters["missed_asked"] == 1


def test_what_was_published_just_before_the_link_ended_is_among_it() -> None:
    lately = Lately("a")
    for at_ms in (0, 1, OVERLAP_MS):
        lately.keep(INPUT, value(f"r{at_ms}"), at_ms)
    assert names(asked(lately, "n", asks(), OVERLAP_MS + 1)) == ["r1", f"r{OVERLAP_MS}"]


def test_a_node_in_another_cell_goes_on_getting_it_until_its_gateway_brings_it() -> None:
    lately = Lately("a")
    assert asked(lately, "n", asks(cell="b"), 0) == []
    found = lately.keep(INPUT, value("r1"), LINGER_MS - 1)
    assert [(one.node, one.cell, one.body.age_ms) for one in found] == [("n", "b", 0)]
    assert lately.keep(INPUT, value("r2"), LINGER_MS) == []
    asked(lately, "n", asks(cell="b"), LINGER_MS)
    asked(lately, "n", asks(cell="c"), LINGER_MS + AGAIN_MS)
    at_ms = LINGER_MS + AGAIN_MS + 1
    assert [one.cell for one in lately.keep(INPUT, value("r3"), at_ms)] == ["c"]
    asked(lately, "n", asks(cell="a"), at_ms + AGAIN_MS)
    assert lately.keep(INPUT, value("r4"), at_ms + AGAIN_MS) == [], "it is back"


def test_a_question_from_the_next_cell_is_heard_however_soon_it_comes() -> None:
    lately = Lately("a")
    lately.keep(INPUT, value("r1"), 0)
    assert [one.cell for one in asked(lately, "n", asks(cell="b"), 1)] == ["b"]
    assert [one.cell for one in asked(lately, "n", asks(cell="c"), 2)] == ["c"]
    assert [one.cell for one in lately.keep(INPUT, value("r2"), 3)] == ["c"]


def test_what_a_node_asked_for_elsewhere_does_not_go_to_where_it_is_no_more() -> None:
    lately = Lately("a")
    first, second = (CatchUp(cell, 0, (one,)) for cell, one in zip("bc", BOTH, strict=True))
    asked(lately, "n", first, 0)
    asked(lately, "n", second, AGAIN_MS)
    asked(lately, "m", first, AGAIN_MS)
    assert [one.node for one in lately.keep(INPUT, value("r1"), AGAIN_MS)] == ["m"]
    found = lately.keep(OUTPUT, frame(Result("r2", 1)), AGAIN_MS)
    assert [(one.node, one.cell) for one in found] == [("n", "c")]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3000)), min_size=60, max_size=80))
def test_room_is_made_by_the_topic_that_has_most(said: list[tuple[int, int]]) -> None:
    lately = Lately("a")
    drop, dropped = lately._drop, 0

    def dropping(ring: _Ring) -> None:
        nonlocal dropped
        assert ring.whole_bytes == max(one.whole_bytes for one in lately._rings.values())
        dropped += 1
        drop(ring)

    with (
        patch.object(missed, "TOTAL_MAX_BYTES", 20_000),
        patch.object(lately, "_drop", dropping),
    ):
        for number, (topic, size) in enumerate(said):
            # Some topics are quiet for so long that they are forgotten.
            now_ms = number * KEPT_MS // 30
            name = build("a", Party.SERVICE, f"s{topic}", Channel.INPUT)
            lately.keep(name, value(f"r{number}", size), now_ms)
            rings = lately._rings.values()
            assert lately._total_bytes == sum(one.whole_bytes for one in rings) <= 20_000
            assert len(lately._sizes) <= missed.STALE_MAX * 4
    assert lately.counters["missed_dropped"] == dropped


def test_a_node_that_asks_again_at_once_is_not_heard() -> None:
    lately = Lately("a")
    lately.keep(INPUT, value("r1"), 0)
    assert names(asked(lately, "n", asks(), 0)) == ["r1"]
    for _ in range(2):
        assert asked(lately, "n", asks(), AGAIN_MS - 1) == []
    assert lately.counters["missed_refused"] == 2
    assert names(asked(lately, "m", asks(), AGAIN_MS - 1)) == ["r1"]


def test_what_a_node_asks_for_besides_is_heard_at_once_and_the_first_goes_on() -> None:
    lately = Lately("a")
    lately.keep(INPUT, value("r1"), 0)
    lately.keep(OUTPUT, frame(Result("r2", 1)), 0)
    first, second = (CatchUp("b", 0, (one,)) for one in BOTH)
    assert names(asked(lately, "n", first, 0)) == ["r1"]
    assert names(asked(lately, "n", second, 1)) == ["r2"]
    assert asked(lately, "n", CatchUp("b", 0, BOTH), 2) == []
    assert lately.counters["missed_refused"] == 1
    for topic in (INPUT, OUTPUT):
        assert [one.cell for one in lately.keep(topic, value("r3"), 3)] == ["b"]


def test_more_than_is_kept_is_dropped_and_counted_the_oldest_first() -> None:
    lately = Lately("a")
    for number in range(KEPT_MAX + 3):
        lately.keep(INPUT, value(f"r{number}"), 0)
    found = names(asked(lately, "n", asks(), 0))
    assert (found[0], len(found)) == ("r3", KEPT_MAX)
    assert lately.counters["missed_dropped"] == 3
    lately.keep(INPUT, value("large", KEPT_MAX_BYTES), 0)
    assert names(asked(lately, "m", asks(), 0)) == ["large"]


def test_the_newest_of_several_topics_are_handed_on_together() -> None:
    lately = Lately("a")
    half = KEPT_MAX_BYTES // 2
    lately.keep(INPUT, value("r1", half), 0)
    lately.keep(OUTPUT, frame(Result("r2", 1, {})), 0)
    lately.keep(OUTPUT, value("r3", half), 0)
    lately.keep(INPUT, value("r4"), 0)
    assert names(asked(lately, "n", asks(), 0)) == ["r2", "r3", "r4"]


def test_all_topics_together_have_a_bound_and_quiet_ones_are_forgotten() -> None:
    lately = Lately("a")
    for number in range(2 * TOTAL_MAX_BYTES // KEPT_MAX_BYTES):
        topic = build("a", Party.SERVICE, f"s{number}", Channel.INPUT)
        lately.keep(topic, value("r", KEPT_MAX_BYTES), 0)
    assert TOTAL_MAX_BYTES - KEPT_MAX_BYTES < lately._total_bytes <= TOTAL_MAX_BYTES
    for _ in range(3 * TOTAL_MAX_BYTES // KEPT_MAX_BYTES):
        lately.keep(INPUT, value("r"), KEPT_MS + 1)
    assert list(lately._rings) == [("s", Channel.INPUT)]
    assert lately._total_bytes == lately._rings["s", Channel.INPUT].whole_bytes


def test_values_without_tensors_have_a_bound_too() -> None:
    lately = Lately("a")
    for topic in range(TOTAL_MAX_BYTES // VALUE_BYTES // KEPT_MAX + 1):
        name = build("a", Party.SERVICE, f"s{topic}", Channel.INPUT)
        for _ in range(KEPT_MAX):
            lately.keep(name, frame(Invoke("r", "s", 1000, {})), 0)
    assert lately.counters["missed_dropped"] == KEPT_MAX
    kept = sum(len(one.said) for one in lately._rings.values())
    assert kept == TOTAL_MAX_BYTES // VALUE_BYTES


@given(
    st.lists(st.tuples(st.sampled_from((INPUT, OUTPUT)), st.integers(0, 3000)), max_size=60),
    st.integers(0, 2 * KEPT_MS),
)
def test_whatever_is_published_what_is_young_enough_is_handed_on(
    said: list[tuple[object, int]], apart_ms: int
) -> None:
    lately, now_ms, at = Lately("a"), 0, []
    for number, (topic, pause_ms) in enumerate(said):
        now_ms += pause_ms
        at.append(now_ms)
        lately.keep(topic, value(f"r{number}"), now_ms)  # type: ignore[arg-type]
    found = asked(lately, "n", asks(apart_ms), now_ms)
    span_ms = min(KEPT_MS, apart_ms + OVERLAP_MS)
    assert names(found) == [f"r{i}" for i, then in enumerate(at) if now_ms - then <= span_ms]
    assert lately._total_bytes == sum(one.whole_bytes for one in lately._rings.values())


def test_what_no_node_of_the_cell_takes_in_is_not_handed_on() -> None:
    lately = Lately("a")
    lately.keep(INPUT, value("r1"), 0)
    assert lately.asked("n", asks(cell="b"), {("t", Channel.OUTPUT)}, 1) == []
    assert lately.keep(INPUT, value("r2"), 2) == []


def test_only_so_much_is_handed_on_in_a_second() -> None:
    lately = Lately("a")
    for number in range(KEPT_MAX):
        lately.keep(INPUT, value(f"r{number}"), 0)
    crowd = [f"n{number}" for number in range(HANDED_MAX // KEPT_MAX)]
    first = [len(asked(lately, one, asks(cell="b"), 0)) for one in crowd]
    assert sum(first) == HANDED_MAX
    assert asked(lately, "late", asks(), 0) == []
    assert lately.keep(INPUT, value("new"), 1) == []
    assert lately.counters["missed_dropped"] == 1 + KEPT_MAX + len(crowd)
    assert len(lately.keep(INPUT, value("newer"), HANDED_MS)) == len(crowd)


def test_large_values_are_handed_on_within_a_bound_too() -> None:
    lately = Lately("a")
    lately.keep(INPUT, value("old"), 0)
    for number in range(4):
        lately.keep(INPUT, value(f"r{number}", KEPT_MAX_BYTES // 4), 0)
    crowd = HANDED_MAX_BYTES // KEPT_MAX_BYTES
    first = [len(asked(lately, f"n{number}", asks(cell="b"), 0)) for number in range(crowd)]
    assert first == [4] * crowd
    assert asked(lately, "late", asks(cell="b"), 0) == []
    assert [one.node for one in lately.keep(INPUT, value("none", 0), 0)][-1] == "late"
    assert lately.keep(INPUT, value("new"), 0) == []
    assert len(lately.keep(INPUT, value("newer"), HANDED_MS)) == crowd + 1


def test_a_channel_for_it_holds_the_largest_value() -> None:
    assert INPUT.rule.max_bytes < MISSED_MAX_BYTES
