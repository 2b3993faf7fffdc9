"""A request in work has its route looked at: its node may have gone without a word."""

import pytest
from test_sdk_requests import Desk, finish, route, sent, step

from protocols.messages import Accepted, Result
from tona.events import AskRoute, Command
from tona.requests import LOOK_CAP_MS, LOOK_MS


@pytest.fixture
def working() -> Desk:
    """Return a desk with a request that a node has accepted."""
    one = Desk()
    one.submit("r", deadline_ms=30_000)
    one.hear(route(step("t", "n1", 1, "x")))
    one.hear(Accepted("r", 1, "n1"))
    return one


def asks(said: list[Command]) -> int:
    return sum(isinstance(one, AskRoute) for one in said)


def test_its_route_is_looked_at_ever_more_seldom_within_bounds(working: Desk) -> None:
    same = route(step("t", "n1", 1, "x"))
    for wait_ms in (LOOK_MS, 2 * LOOK_MS, 4 * LOOK_MS, LOOK_CAP_MS, LOOK_CAP_MS):
        assert working.sleep(wait_ms - 1) == []
        assert working.sleep(1) == [AskRoute("s")]
        assert working.hear(same) == [], "where it is in work it is left in peace"
    assert finish(working.hear(Result("r", 1, {}))).failure is None


def test_one_whose_node_has_gone_without_a_word_goes_where_the_route_leads(working: Desk) -> None:
    assert working.sleep(LOOK_MS) == [AskRoute("s")]
    assert sent(working.hear(route(step("t", "n2", 2, "x"), epoch=2))) == [("n2", "r", 2)]
    working.hear(Accepted("r", 2, "n2"))
    assert working.sleep(LOOK_MS) == [AskRoute("s")], "from the beginning"


def test_many_in_work_look_at_it_no_more_often_than_one(working: Desk) -> None:
    same = route(step("t", "n1", 1, "x"))
    count = 0
    for number in range(50):
        working.submit(f"q{number}", deadline_ms=30_000)
        working.hear(Accepted(f"q{number}", 1, "n1"))
        asked = asks(working.sleep(100))
        count += asked
        if asked:
            working.hear(same)
    assert 2 <= count <= 50 * 100 // LOOK_MS


def test_the_deadline_is_kept(working: Desk) -> None:
    assert finish(working.sleep(30_000)).failure is not None
    assert working.sleep(60_000) == []
