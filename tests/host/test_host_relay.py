"""What a gateway carries to other cells, and what never leaves."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from controller.decider import Carry
from controller.host.relay import ASKED_MAX, CARRIED, CELLS_MAX, REMEMBERED_MAX, Relay
from protocols.messages import Cancel, Deliver, Drain, Invoke
from protocols.messages.invocation import Edge, Plan, Step
from protocols.topics import TABLE, Channel, Party, Topic, build

PLAN = Plan("service", 1, (Step("s.a", "n1", 1, cell="east"),), (Edge("out", "s.a", "out"),))


def invoke(request: str, attempt: int = 1) -> Invoke:
    return Invoke(request, "service", 1000, {}, "tona/1/west/client/c/reply", attempt)


def inbox(cell: str, node: str) -> Topic:
    return build(cell, Party.NODE, node, Channel.INVOKE)


def west(*cells: str) -> Relay:
    relay = Relay("west")
    relay.reach(cells)
    return relay


def test_requests_and_answers_go_to_the_cell_that_their_topic_names() -> None:
    relay = west("east")
    reply = build("east", Party.CLIENT, "c", Channel.REPLY)
    assert relay.onward(inbox("east", "n1"), invoke("r")) == inbox("east", "n1")
    assert relay.onward(reply, invoke("r")) == reply
    assert relay.onward(inbox("west", "n1"), invoke("r")) is None
    assert relay.onward(inbox("north", "n1"), invoke("r")) is None


def test_requests_of_the_own_cell_for_another_one_are_counted_once_each() -> None:
    relay = west("east")
    for attempt, cell in product((1, 2), ("east", "west", "north")):
        relay.onward(inbox(cell, "n1"), invoke("r", attempt))
    relay.onward(build("east", Party.CLIENT, "c", Channel.REPLY), Cancel("r"))
    assert relay.asked() == {"service": 1}
    assert relay.asked() == {}
    for number in range(ASKED_MAX + 10):
        asked = structs.replace(invoke("r"), service=f"s{number}")
        relay.onward(inbox("east", "n1"), asked)
    assert len(relay.asked()) == ASKED_MAX


def test_what_controls_a_cell_stays_in_it() -> None:
    relay = west("east")
    relay.carry(Carry("n1", "east", 1000), 0)
    for party, channel in TABLE:
        if (party, channel) not in CARRIED:
            for cell in ("west", "east"):
                assert relay.onward(build(cell, party, "n1", channel), Drain()) is None
                assert str(build(cell, party, "n1", channel)) not in relay.filters()


def test_a_node_that_left_is_followed_for_the_time_that_was_said() -> None:
    relay = west("east")
    relay.carry(Carry("n1", "east", 1000), 5_000)
    assert relay.due_ms == 6_000
    assert str(inbox("west", "n1")) in relay.filters()
    assert relay.onward(inbox("west", "n1"), invoke("r")) == inbox("east", "n1")
    assert not relay.expire(5_999)
    assert relay.expire(6_000)
    assert relay.onward(inbox("west", "n1"), invoke("r2")) is None
    assert relay.due_ms is None
    assert str(inbox("west", "n1")) not in relay.filters()


def test_a_node_that_is_back_is_followed_no_more() -> None:
    relay = west("east")
    relay.carry(Carry("n1", "east", 1000), 0)
    relay.carry(Carry("n1", "", 0), 1)
    assert relay.onward(inbox("west", "n1"), invoke("r")) is None
    relay.carry(Carry("n1", "west", 1000), 1)
    assert relay.due_ms is None


def test_two_gateways_that_send_each_other_a_node_carry_nothing_in_circles() -> None:
    one, other = west("east"), Relay("east")
    other.reach(["west"])
    one.carry(Carry("n1", "east", 1000), 0)
    other.carry(Carry("n1", "west", 1000), 0)
    deliver = Deliver("r", 1, "s.a", 1000, {}, "tona/1/west/client/c/reply", PLAN)
    for body in (invoke("r"), deliver, Cancel("r")):
        topic: Topic | None = inbox("west", "n1")
        hops = 0
        while topic is not None:
            relay = one if topic.cell == "west" else other
            topic, hops = relay.onward(topic, body), hops + 1
        assert hops == 3


def test_a_repeated_request_is_carried_again_and_what_is_remembered_is_bounded() -> None:
    relay = west("east")
    relay.carry(Carry("n1", "east", 1000), 0)
    here, there = inbox("west", "n1"), inbox("east", "n1")
    assert [relay.onward(here, invoke("r", n)) for n in (1, 1, 2)] == [there, None, there]
    for number in range(REMEMBERED_MAX):
        assert relay.onward(here, invoke(f"x{number}")) == there
    assert relay.onward(here, invoke("r")) == there


def test_only_so_many_cells_are_in_reach() -> None:
    relay = west("west", *(f"c{number}" for number in range(2 * CELLS_MAX)))
    assert len(relay.cells) == CELLS_MAX
    assert "west" not in relay.cells


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["n1", "n2"]),
            st.sampled_from(["west", "east", "north", "south"]),
            st.integers(0, 50),
            st.integers(0, 20),
        )
    )
)
def test_nothing_is_ever_carried_to_where_nobody_is(steps: list[tuple[str, str, int, int]]) -> None:
    relay, now_ms = west("east", "north"), 0
    for number, (node, cell, for_ms, pause_ms) in enumerate(steps):
        relay.carry(Carry(node, cell, for_ms), now_ms)
        now_ms += pause_ms
        relay.expire(now_ms)
        for one, party_channel in product(("n1", "n2"), CARRIED):
            party, channel = party_channel
            onward = relay.onward(build("west", party, one, channel), invoke(f"{number}"))
            assert onward is None or (onward.cell in relay.cells and onward.name == one)
