"""Whether a task follows: what a request takes from afar and near, and what the switch costs."""

from typing import Any

import pytest
from msgspec import structs

from controller.anchor.nearness import BETWEEN_MS, Asker, Device, Place, Question, switch_ms, weigh

HERE, THERE = Place("m", "a", 2.0, 10.0, 0.0), Place("k", "b", 2.0, 10.0, 0.0)
DEVICE = Device("n", "b", 4.0, 60.0)
ASKED = Question("svc.edge", HERE, THERE, "", (DEVICE,), None, 10.0, 0, 3.0)


def asked(**changes: Any) -> Question:
    return structs.replace(ASKED, **changes)


def test_a_task_follows_for_the_way_between_the_gateways() -> None:
    verdict = weigh(ASKED)
    assert verdict.follows
    found = f"a request takes {16 + BETWEEN_MS} ms from a, 16.0 ms in b"
    assert verdict.reason == f"follows to k: {found} ({BETWEEN_MS} ms between them, assumed)"


def test_a_way_that_was_measured_counts_for_the_requests_and_for_the_switch() -> None:
    ways = {("a", "b"): 0.4}
    verdict = weigh(asked(ways_ms=ways))
    assert not verdict.follows
    assert "16.4 ms from a, 16.0 ms in b (0.4 ms between them, measured)" in verdict.reason
    # What is between other cells says nothing here.
    assert weigh(asked(ways_ms={("a", "c"): 0.4})) == weigh(ASKED)
    large = {"memory_bytes": 1 << 16}
    assert switch_ms(asked(**large, ways_ms=ways)) < switch_ms(asked(**large))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"there": None, "refused": "no room"}, "stays on m: no room"),
        # The node there is so busy that the way is the lesser evil.
        ({"there": structs.replace(THERE, busy=0.6)}, "31.0 ms in b"),
        ({"here": structs.replace(HERE, run_ms=0.5)}, "16.0 ms in b"),
        # Another device that it serves is where the task is.
        ({"devices": (DEVICE, structs.replace(DEVICE, node="o", cell="a"))}, "stays on m"),
        # A device that goes to and fro, and a large memory.
        (
            {"devices": (structs.replace(DEVICE, stays_s=1.0),), "memory_bytes": 64 << 20},
            "in the 1 s that the device is thought to stay less is won than lost",
        ),
    ],
)
def test_a_task_stays_where_it_is_better_off(changes: dict[str, Any], why: str) -> None:
    verdict = weigh(asked(**changes))
    assert not verdict.follows
    assert why in verdict.reason


def test_who_asks_counts_as_the_device_does() -> None:
    # The device has come, its client has stayed: half of the way is gone in either place.
    stayed = weigh(asked(askers=(Asker("a", 10.0),)))
    assert "a request takes 19.0 ms from a, 19.0 ms in b" in stayed.reason
    assert not stayed.follows
    clients = asked(devices=(), askers=(Asker("a", 1.0), Asker("b", 9.0)))
    verdict = weigh(clients)
    assert verdict.follows
    assert "a request takes 21.0 ms from a, 13.0 ms in b" in verdict.reason
    assert not weigh(structs.replace(clients, askers=(Asker("a", 9.0), Asker("b", 8.0)))).follows


def test_a_bound_that_only_the_new_cell_keeps_decides_alone() -> None:
    short = asked(devices=(structs.replace(DEVICE, stays_s=1.0),), memory_bytes=64 << 20)
    assert not weigh(short).follows
    assert weigh(structs.replace(short, bound_ms=20.0)).follows


def test_what_requests_wait_grows_with_the_memory_and_with_their_number() -> None:
    small, large = asked(memory_bytes=1 << 10), asked(memory_bytes=1 << 24)
    assert switch_ms(ASKED) < switch_ms(small) < switch_ms(large)
    assert switch_ms(small) < switch_ms(structs.replace(small, per_s=100.0))


def moves(*rates: tuple[float, float], own: float = 0.0, **changes: Any) -> int:
    """Return how often a task moves between two cells, from which it is asked so often by turns.

    Its node is busier than the other one by what it takes itself.
    """
    places, count = [HERE, THERE], 0
    for a_per_s, b_per_s in rates:
        here, there = structs.replace(places[0], busy=own), places[1]
        askers = (Asker("a", a_per_s), Asker("b", b_per_s))
        now = asked(here=here, there=there, askers=askers, per_s=a_per_s + b_per_s, **changes)
        if weigh(now).follows:
            places.reverse()
            count += 1
    return count


BOTH = (structs.replace(DEVICE, node="o", cell="a"), DEVICE)
EQUAL, RESTLESS = [(10.0, 10.0)] * 20, [(11.0, 9.0), (9.0, 11.0)] * 10


@pytest.mark.parametrize("rates", [EQUAL, RESTLESS])
@pytest.mark.parametrize("devices", [(), BOTH])
@pytest.mark.parametrize("own", [0.0, 0.6])
@pytest.mark.parametrize("bound_ms", [None, 30.0])
def test_a_task_that_two_cells_ask_equally_often_does_not_go_to_and_fro(
    rates: list[tuple[float, float]],
    devices: tuple[Device, ...],
    own: float,
    bound_ms: float | None,
) -> None:
    assert moves(*rates, own=own, devices=devices, bound_ms=bound_ms) == 0


@pytest.mark.parametrize("devices", [(), BOTH])
def test_it_goes_once_to_where_clearly_more_ask(devices: tuple[Device, ...]) -> None:
    assert moves(*[(2.0, 18.0)] * 20, own=0.6, devices=devices) == 1
