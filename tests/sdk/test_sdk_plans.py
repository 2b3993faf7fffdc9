"""A route with several plans: requests are shared, repeated where they were, moved if need be."""

import msgspec
import pytest
from test_sdk_requests import BUSY, Desk, route, sent, step

from protocols.messages import Result, Route
from protocols.messages.invocation import Step
from tona import requests
from tona.requests import ACCEPT_MS


@pytest.fixture
def warm() -> Desk:
    one = Desk()
    one.submit("first")
    one.hear(route(step("t", "n1", 1, "x")))
    one.hear(Result("first", 1))
    return one


def spread(*steps: Step, epoch: int = 2) -> Route:
    """Return a route with one plan for each step: the same task on several nodes."""
    first, *others = (route(one, epoch=epoch).plan for one in steps)
    return msgspec.structs.replace(
        route(steps[0], epoch=epoch), plan=first, others=tuple(one for one in others if one)
    )


def test_requests_are_shared_among_all_the_plans_of_a_route(warm: Desk) -> None:
    warm.hear(spread(step("t", "n1", 1, "x"), step("t", "n2", 2, "x")))
    nodes = [sent(warm.submit(f"r{number}"))[0][0] for number in range(4)]
    assert sorted(nodes) == ["n1", "n1", "n2", "n2"]


def test_a_repeated_request_goes_where_it_was_unless_that_refused_it(warm: Desk) -> None:
    warm.hear(spread(step("t", "n1", 1, "x"), step("t", "n2", 2, "x")))
    [(node, _, _)] = sent(warm.submit("r"))
    [(again, _, attempt)] = sent(warm.sleep(ACCEPT_MS + 10))
    assert (again, attempt) == (node, 2)
    warm.hear(Result("r", 2, failure=BUSY))
    [(other, _, attempt)] = sent(warm.sleep(requests.PAUSE_CAP_MS))[:1]
    assert (attempt, {node, other}) == (3, {"n1", "n2"})


def test_what_is_under_way_stays_when_another_plan_comes_or_goes(warm: Desk) -> None:
    warm.hear(spread(step("t", "n1", 1, "x"), step("t", "n2", 2, "x")))
    there = {sent(warm.submit(f"r{number}"))[0][0]: f"r{number}" for number in range(2)}
    moved = sent(warm.hear(route(step("t", "n1", 1, "x"), epoch=3)))
    assert moved == [("n1", there["n2"], 2)]
