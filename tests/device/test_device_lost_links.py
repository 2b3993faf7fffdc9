"""What the network says of a link is acted on at once, and a short stall is waited out."""

import pytest
from device_cells import Roamer
from device_harness import of

from device_agent.core import commands, events
from device_agent.core.mobility import SILENT_MS, UNANSWERED
from protocols.messages import HandoverTimes, Neighbours
from protocols.messages.sense import LinkReport


@pytest.fixture
def node() -> Roamer:
    one = Roamer()
    one.join()
    return one


def sampled(broken: str = "", *, carrier: bool = False) -> events.LinkSampled:
    return events.LinkSampled(LinkReport(1, "wlan0", "wifi", carrier), broken)


def test_a_lost_carrier_is_not_waited_for(node: Roamer) -> None:
    node.measured({"a": -90.0, "b": -100.0, "c": -80.0})
    node.tell(sampled(carrier=True))
    node.tell(sampled())
    assert node.sessions == {"a": 1}, "a report is no word on the connection"
    node.cells["a"].reachable = False
    out = node.tell(sampled("wlan0 has lost its carrier"))
    assert [(one.cell, one.reason) for one in of(commands.Renew, out)] == [
        ("a", "wlan0 has lost its carrier")
    ]
    node.after(0)
    assert node.serving == "c"
    node.complete()
    (times,) = of(HandoverTimes, node.said)
    assert (times.source, times.apart_ms) == ("a", 0.0)
    assert not of(commands.Renew, node.tell(sampled(carrier=True)))


def test_an_error_of_the_network_is_not_waited_for(node: Roamer) -> None:
    node.cells["a"].reachable = False
    node.sessions["a"] = 0
    node.tell(events.Disconnected("no route to host", "a", broken=True))
    node.after(0)
    assert node.serving == "b"


@pytest.mark.parametrize(
    ("unanswered", "silent_ms", "flees"),
    [
        (UNANSWERED, SILENT_MS, True),
        (UNANSWERED - 1, 10 * SILENT_MS, False),
        (10 * UNANSWERED, SILENT_MS - 1, False),
    ],
)
def test_a_broker_that_answers_no_more_is_left_and_a_stall_is_waited_out(
    node: Roamer, unanswered: int, silent_ms: float, *, flees: bool
) -> None:
    node.cells["a"].reachable = False
    node.tell(events.CellsMeasured((), unanswered=unanswered, silent_ms=silent_ms))
    node.after(0)
    assert (node.serving == "b") is flees


def test_without_a_neighbour_a_lost_carrier_changes_nothing() -> None:
    node = Roamer()
    node.go()
    told = node.tell(sampled("wlan0 has lost its carrier"))
    assert not of(commands.Renew, told)
    node.hear("a", Neighbours(1, ()))
    node.tell(events.CellsMeasured((), unanswered=UNANSWERED, silent_ms=SILENT_MS))
    told = node.tell(sampled("wlan0 has lost its carrier"))
    assert not of(commands.Renew, told)
    assert node.sessions == {"a": 1}
