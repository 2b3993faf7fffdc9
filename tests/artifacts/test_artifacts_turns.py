"""Which values move next."""

from device_agent.artifacts.turns import OLDEST_EVERY, Turns
from device_agent.core.queue import FIRST, LEAST


def test_so_many_go_at_once_and_the_others_by_urgency() -> None:
    turns = Turns[str](2)
    assert turns.take("a", LEAST)
    assert turns.take("b", LEAST)
    for name, urgency in {
        "artifact": LEAST,
        "later": (-5, 200.0),
        "sooner": (-5, 100.0),
        "higher": (-6, 900.0),
        "as soon": (-5, 100.0),
    }.items():
        assert not turns.take(name, urgency)
    order = [turns.give() for _ in range(6)]
    assert order == ["higher", "sooner", "as soon", "later", "artifact", None]
    assert turns.take("c", LEAST)
    assert not turns.take("d", LEAST), "one place was given back, the others went on"


def test_one_that_waits_no_more_is_passed_over() -> None:
    turns = Turns[str](1)
    turns.take("a", LEAST)
    turns.take("b", (-5, 100.0))
    turns.take("c", (-5, 200.0))
    turns.leave("b")
    turns.leave("b")
    assert turns.give() == "c"


def test_what_a_moving_task_remembers_waits_for_one_place_whatever_else_comes() -> None:
    turns = Turns[str](1)
    turns.take("under way", (-9, 0.0))
    for number in range(100):
        turns.take(f"request {number}", (-9, float(number)))
    turns.take("memory", FIRST)
    turns.take("another request", (-9, 0.0))
    assert turns.give() == "memory"


def test_one_that_waits_goes_by_whoever_needs_it_soonest() -> None:
    turns = Turns[str](1)
    turns.take("a", LEAST)
    turns.take("shared", LEAST)
    turns.take("soon", (-5, 200.0))
    turns.take("as soon", (-5, 100.0))
    turns.hurry("shared", (-5, 100.0))
    turns.hurry("shared", (-5, 900.0))
    turns.hurry("a", FIRST)
    assert [turns.give() for _ in range(4)] == ["shared", "as soon", "soon", None]


def test_what_is_least_urgent_has_its_turn_however_many_urgent_ones_come() -> None:
    turns = Turns[str](1)
    turns.take("under way", LEAST)
    for name in ("sink", "second sink"):
        turns.take(name, LEAST)
    given = []
    for number in range(2 * OLDEST_EVERY):
        turns.take(f"request {number}", (-9, float(number)))
        given.append(turns.give())
    assert given[OLDEST_EVERY - 1] == "sink"
    assert given[-1] == "second sink"
    assert given.count("request 0") == 1


def test_a_memory_goes_before_the_one_that_has_waited_longest() -> None:
    turns = Turns[str](1)
    for name in ("under way", "sink"):
        turns.take(name, LEAST)
    for number in range(OLDEST_EVERY - 1):
        turns.take(f"request {number}", (-9, float(number)))
        turns.give()
    turns.take("memory", FIRST)
    assert [turns.give(), turns.give()] == ["memory", "sink"]
